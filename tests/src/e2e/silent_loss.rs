//! The ways in which replicators lose data without a word, one test each.
//!
//! What stands elsewhere: a `w: 1` target that fails over (`failover`), the forms of updates that others lose
//! (`sink::update_oracle`), unknown outcomes (`sink::flush`), a write that arrives late (`network`). Balancer moves are
//! tried with sharded sources; NaN in JSON and the acknowledgements of Kafka, files and TCP belong to sinks that are
//! not built. Every test here ends with equality, or with a fault that says what is wrong.

use std::time::Duration;

use anyhow::{Context as _, Result};
use bson::{Bson, Document, Timestamp, doc};
use mongodb::Collection;
use oplogue_connectors::mongodb::client::{ConnectOptions, connect};
use oplogue_connectors::mongodb::store::{MongoStore, StoreOptions};
use oplogue_engine::checkpoint::CheckpointStore as _;
use oplogue_engine::error::Side;
use oplogue_tests::collector::{Collector, HAND_OVER};
use oplogue_tests::servers::{Options, ReplicaSet};

use super::rig::{PATIENCE, Rig, SENTINEL, handed_over, passed, until};

mod copy;
mod position;
mod transactions;

fn shop(set: &ReplicaSet, name: &str) -> Collection<Document> {
    set.client().database("shop").collection(name)
}

/// A namespace that does not pass leaks in a transaction neither by its writes nor by its creation, and an aborted
/// one leaves nothing.
#[tokio::test]
async fn a_transaction_over_the_filters_border() -> Result<()> {
    let rig = Rig::start().await?;
    shop(&rig.source, "c00").insert_one(doc! { "_id": 0 }).await?;
    let config = rig.config()?.set("filter.namespace.white", "shop").set("filter.ddl_enable", true);
    let mut collector = Collector::start(&config)?;
    handed_over(&mut collector).await?;
    let client = rig.source.client();
    let hidden = client.database("hidden");
    for round in 0..30 {
        let mut session = client.start_session().await?;
        session.start_transaction().await?;
        hidden.collection("h").insert_one(doc! { "_id": round }).session(&mut session).await?;
        shop(&rig.source, "c00").insert_one(doc! { "_id": round + 1 }).session(&mut session).await?;
        shop(&rig.source, &format!("new{round}")).insert_one(doc! { "_id": 1 }).session(&mut session).await?;
        hidden.create_collection(format!("made{round}")).session(&mut session).await?;
        if round % 3 == 0 {
            session.abort_transaction().await?;
        } else {
            session.commit_transaction().await?;
        }
    }
    rig.finish(rig.comparison().only(|name| name.starts_with("shop.")), collector, &[]).await
}

/// The duplicate keys of a bulk are answered; the refusal among them is no duplicate, and stops the run.
#[tokio::test]
async fn a_refusal_among_duplicate_keys_is_not_hidden() -> Result<()> {
    let rig = Rig::start().await?;
    let mut collector = Collector::start(&rig.config()?)?;
    handed_over(&mut collector).await?;
    // Not from the source: the target alone refuses one document, and has some others already.
    let validator = doc! { "bad": { "$exists": false } };
    rig.target.client().database("shop").create_collection("c01").validator(validator).await?;
    shop(&rig.target, "c01").insert_many((0..50).map(|id| doc! { "_id": id * 2, "old": true })).await?;
    let documents = (0..100).map(|id| {
        if id == 51 {
            doc! { "_id": id, "bad": 1 }
        } else {
            doc! { "_id": id }
        }
    });
    shop(&rig.source, "c01").insert_many(documents).await?;
    let status = collector.wait(PATIENCE).await?;
    anyhow::ensure!(!status.success(), "the refused document is lost:\n{}", collector.log_end());
    anyhow::ensure!(collector.log_end().contains("121"), "its reason is not named:\n{}", collector.log_end());
    Ok(())
}

/// A document may begin with the name of a command; an entry is told by its kind and never by that.
#[tokio::test]
async fn a_document_that_begins_like_a_command() -> Result<()> {
    let rig = Rig::start().await?;
    shop(&rig.source, "c00").insert_one(doc! { "_id": 0, "kept": true }).await?;
    let config = rig.config()?.set("filter.ddl_enable", true);
    let mut collector = Collector::start(&config)?;
    handed_over(&mut collector).await?;
    let names = ["drop", "dropDatabase", "create", "applyOps", "renameCollection", "commitTransaction", "msg"];
    for (id, name) in names.into_iter().enumerate() {
        let id = i64::try_from(id)? + 10;
        let body = doc! { name: "c00", "to": "shop.c09", "diff": { "d": { "kept": false } }, "_id": id };
        shop(&rig.source, "c01").insert_one(body.clone()).await?;
        // A replacement by a pipeline is logged with its `_id` last, so that the name does come first.
        shop(&rig.source, "c02").insert_one(doc! { "_id": id }).await?;
        let stages = vec![doc! { "$replaceWith": { "$literal": body } }];
        shop(&rig.source, "c02").update_one(doc! { "_id": id }, stages).await?;
    }
    rig.finish(rig.comparison(), collector, &[]).await
}

/// A paused instance whose lease was taken meanwhile writes nothing when it wakes up, and ends; its successor, which
/// has waited for that, goes on.
#[tokio::test]
async fn a_paused_instance_that_wakes_up_writes_nothing() -> Result<()> {
    let rig = Rig::start().await?;
    let here = shop(&rig.source, "c00");
    here.insert_one(doc! { "_id": 0 }).await?;
    let mut old = Collector::start(&rig.config()?)?;
    handed_over(&mut old).await?;
    rig.comparison().wait(SENTINEL, PATIENCE).await?;
    old.signal("STOP")?;
    here.insert_one(doc! { "_id": "in the pause" }).await?;
    let taken = lease(&rig).await?;
    taken.acquire().await?;
    // Longer than an instance trusts its last word of the lease.
    tokio::time::sleep(Duration::from_secs(12)).await;
    old.signal("CONT")?;
    let status = old.wait(PATIENCE).await?;
    anyhow::ensure!(!status.success() && old.log_end().contains("lease"), "exit {status}:\n{}", old.log_end());
    let leaked = shop(&rig.target, "c00").find_one(doc! { "_id": "in the pause" }).await?;
    anyhow::ensure!(leaked.is_none(), "a fenced instance wrote {leaked:?}");
    // The same with a real successor, which must not write before the paused one has ended.
    old.run()?;
    until(&old, "the first one follows", async || Ok(old.log().matches("incremental starts").count() == 2)).await?;
    rig.comparison().wait(SENTINEL, PATIENCE).await?;
    old.signal("STOP")?;
    let mut new = Collector::start(&rig.config()?)?;
    here.insert_one(doc! { "_id": "for the successor" }).await?;
    new.wait_log("waiting for the end of an earlier run's connections", PATIENCE).await?;
    anyhow::ensure!(!new.log().contains("incremental starts"), "{}", new.log_end());
    old.signal("CONT")?;
    let status = old.wait(PATIENCE).await?;
    anyhow::ensure!(!status.success() && old.log_end().contains("lease"), "exit {status}:\n{}", old.log_end());
    rig.finish(rig.comparison(), new, &["an earlier run of this job"]).await
}

/// The lease of the collector's job, as another instance would take it.
async fn lease(rig: &Rig) -> Result<MongoStore> {
    let client = connect(Side::Store, &rig.source.uri_as_user(), &ConnectOptions::default()).await?;
    let options = StoreOptions {
        database: "mongoshake".to_owned(),
        collection: "ckpt_default".to_owned(),
        job: "test".to_owned(),
        replica_set: "source".to_owned(),
        holder: "successor:1".to_owned(),
    };
    Ok(MongoStore::new(&client, options))
}
