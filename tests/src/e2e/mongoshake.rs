//! A MongoShake user changes one binary: Oplogue goes on where MongoShake stood, with its file and its command line.
//!
//! MongoShake itself is not run; what it leaves behind is set up by hand: two sides that agree up to a position, its
//! checkpoint document with that position, and a source that was written to since. Documents that were written before the
//! position are taken away from the target first, so that a start one entry too early would bring them back.

use anyhow::{Context as _, Result};
use bson::{Document, Timestamp, doc};
use mongodb::options::{Acknowledgment, WriteConcern};
use mongodb::{Client, Collection};
use oplogue_tests::collector::Collector;
use oplogue_tests::servers::free_port;

use super::rig::{PATIENCE, Rig, SENTINEL};

const TAKEN_OVER: &str = "a MongoShake checkpoint is taken over";

/// Where the checkpoint document stands, and what the configuration says of it.
struct Place<'a> {
    client: Client,
    url: Option<String>,
    database: &'a str,
    collection: &'a str,
}

impl Place<'_> {
    fn documents(&self) -> Collection<Document> {
        self.client.database(self.database).collection(self.collection)
    }

    /// MongoShake's document as its version 2.8 writes it.
    async fn leave_checkpoint(&self, position: Timestamp) -> Result<Document> {
        let document = doc! {
            "_id": bson::oid::ObjectId::new(),
            "name": "source",
            "ckpt": (i64::from(position.time) << 32) | i64::from(position.increment),
            "version": 2,
            "fetch_method": "oplog",
            "oplog_disk_queue": "",
            "oplog_disk_queue_apply_finish_ts": 1_i64,
        };
        let majority = WriteConcern::builder().w(Acknowledgment::Majority).build();
        self.documents().insert_one(&document).write_concern(majority).await?;
        Ok(document)
    }

    /// A collector.conf of version 10 with what its users set, and nothing of ours.
    fn conf(&self, rig: &Rig) -> Result<String> {
        let url = self.url.as_deref().map(|url| format!("checkpoint.storage.url = {url}\n")).unwrap_or_default();
        Ok(format!(
            "# the settings of a running MongoShake\nconf.version = 10\nid = mongoshake\nmaster_quorum = false\n\
             full_sync.http_port = {}\nincr_sync.http_port = {}\nsystem_profile_port = {}\n\
             log.level = info\nlog.dir = \nlog.file = collector.log\nlog.flush = false\nsync_mode = all\n\
             mongo_urls = {}\nmongo_connect_mode = primary\ntunnel = direct\ntunnel.address = {}\n\
             filter.ddl_enable = true\n{url}checkpoint.storage.db = {}\ncheckpoint.storage.collection = {}\n\
             incr_sync.mongo_fetch_method = oplog\nincr_sync.shard_key = collection\nincr_sync.worker = 8\n",
            free_port()?,
            free_port()?,
            free_port()?,
            rig.source.uri_as_user(),
            rig.target.uri_as_user(),
            self.database,
            self.collection,
        ))
    }
}

#[tokio::test]
async fn a_checkpoint_on_the_source_is_gone_on_from() -> Result<()> {
    let rig = Rig::start().await?;
    let place = Place { client: rig.source.client(), url: None, database: "mongoshake", collection: "ckpt_default" };
    take_over(&rig, &place).await
}

#[tokio::test]
async fn a_checkpoint_on_the_target_is_gone_on_from() -> Result<()> {
    let rig = Rig::start().await?;
    let place = Place {
        client: rig.target.client(),
        url: Some(rig.target.uri_as_user()),
        database: "oplogue",
        collection: "ckpt_of_shop",
    };
    take_over(&rig, &place).await
}

async fn take_over(rig: &Rig, place: &Place<'_>) -> Result<()> {
    rig.fill(40).await?;
    let things = rig.source.client().database("shop").collection::<Document>("things");
    let majority = WriteConcern::builder().w(Acknowledgment::Majority).build();
    things.insert_many((0..20).map(|n| doc! { "_id": n, "n": 0 })).await?;
    things.insert_one(doc! { "_id": "before the position" }).await?;
    let at = things.insert_one(doc! { "_id": "at the position" }).write_concern(majority.clone()).await;
    at.context("write the last change before the position")?;
    let position = newest_entry(rig).await?;
    clone_by_hand(rig).await?;
    // The change at the position itself may be applied again: MongoShake's time can stand among several.
    let taken_away = doc! { "_id": "before the position" };
    let copied = rig.target.client().database("shop").collection::<Document>("things");
    copied.delete_many(taken_away.clone()).await?;
    let of_mongoshake = place.leave_checkpoint(position).await?;
    things.insert_one(doc! { "_id": "behind the position" }).await?;
    things.update_many(doc! { "n": 0 }, doc! { "$inc": { "n": 1 } }).await?;
    let mut load = rig.start_load();
    load.reach(500, PATIENCE).await?;

    let mut collector = Collector::start_conf(&place.conf(rig)?)?;
    collector.wait_log(TAKEN_OVER, PATIENCE).await?;
    let from = format!("from={}.{} ", position.time, position.increment);
    collector.wait_log(&from, PATIENCE).await?;
    let done = load.totals().done;
    load.reach(done + 1_500, PATIENCE).await?;
    // From here on the checkpoint is its own.
    let status = collector.terminate(PATIENCE).await?;
    anyhow::ensure!(status.success(), "exit {status}:\n{}", collector.log_end());
    let own = own_checkpoint(place).await?;
    anyhow::ensure!(own > position, "stored {own:?}, taken over at {position:?}");
    collector.run()?;
    let from = format!("from={}.{} ", own.time, own.increment);
    collector.wait_log(&from, PATIENCE).await?;
    load.stop().await?;

    let before = |id: &str| id == "before the position";
    let comparison = rig.comparison().expect(move |namespace, document| {
        let kept = namespace != "shop.things" || !document.get_str("_id").is_ok_and(before);
        kept.then(|| document.to_owned())
    });
    let log_file = collector.dir().join("logs/collector.log");
    let copied_once = collector.log().matches("full sync").count();
    comparison.wait(SENTINEL, PATIENCE).await.with_context(|| collector.log_end())?;
    anyhow::ensure!(copied.count_documents(taken_away).await? == 0, "changes before the position were applied");
    anyhow::ensure!(collector.log().matches(TAKEN_OVER).count() == 1, "taken over twice:\n{}", collector.log_end());
    anyhow::ensure!(copied_once == 0, "a full copy ran:\n{}", collector.log_end());
    anyhow::ensure!(log_file.is_file(), "MongoShake's form logs to a file: {}", log_file.display());
    let left = place.documents().find_one(doc! { "format": { "$exists": false } }).await?;
    anyhow::ensure!(left.as_ref() == Some(&of_mongoshake), "MongoShake's document was changed: {left:?}");
    let status = collector.terminate(PATIENCE).await?;
    anyhow::ensure!(status.success(), "exit {status}:\n{}", collector.log_end());
    collector.assert_no_unexpected_warnings(&[])
}

/// The time of the newest entry of the source's oplog that changes data.
async fn newest_entry(rig: &Rig) -> Result<Timestamp> {
    let oplog = rig.source.client().database("local").collection::<Document>("oplog.rs");
    let entry = oplog.find_one(doc! { "op": "i", "ns": "shop.things" }).sort(doc! { "$natural": -1 }).await?;
    Ok(entry.context("the oplog has no insert")?.get_timestamp("ts")?)
}

/// Makes the target what MongoShake had made it: all collections, documents and indexes.
async fn clone_by_hand(rig: &Rig) -> Result<()> {
    let (source, target) = (rig.source.client(), rig.target.client());
    for database in ["shop", "stock", "users"] {
        for name in source.database(database).list_collection_names().await? {
            let from = source.database(database).collection::<bson::RawDocumentBuf>(&name);
            let to = target.database(database).collection::<bson::RawDocumentBuf>(&name);
            let mut documents = Vec::new();
            let mut cursor = from.find(doc! {}).await?;
            while cursor.advance().await? {
                documents.push(cursor.current().to_owned());
            }
            to.insert_many(documents).await.with_context(|| format!("clone {database}.{name}"))?;
            let mut indexes = from.list_indexes().await?;
            let mut wanted = Vec::new();
            while indexes.advance().await? {
                wanted.push(indexes.deserialize_current()?);
            }
            wanted.retain(|index| index.keys != doc! { "_id": 1 });
            if !wanted.is_empty() {
                to.create_indexes(wanted).await.with_context(|| format!("clone indexes of {database}.{name}"))?;
            }
        }
    }
    Ok(())
}

async fn own_checkpoint(place: &Place<'_>) -> Result<Timestamp> {
    let own = place.documents().find_one(doc! { "_id": "mongoshake/source" }).await?;
    let own = own.context("no checkpoint of our own")?;
    anyhow::ensure!(own.get_str("format").is_ok_and(|format| format == "oplogue"), "{own}");
    Ok(own.get_document("position")?.get_timestamp("ts")?)
}
