//! Transactions that are open where reading begins, and where the collector dies.
//!
//! A copy, a stored position and a crash can each fall between the first entry of a transaction and its end. The ends
//! come when the test says so, since the transactions are prepared. Nothing here needs a load.

use anyhow::Result;
use bson::{Document, Timestamp, doc};
use mongodb::Client;
use mongodb::options::WriteConcern;
use oplogue_tests::collector::Collector;
use oplogue_tests::prepared::Transaction;
use oplogue_tests::servers::Options;

use super::super::rig::{PATIENCE, Rig, SENTINEL, handed_over};
use super::{CACHE_GB, THIRD_OF_AN_ENTRY, collection, coordinator, rig, seed};

/// Prepares one of one entry and one of several; both insert and change what others see already.
async fn prepare_two(client: &Client) -> Result<(Transaction, Transaction)> {
    let mut small = Transaction::begin(client).await?;
    small.insert("c01", "small", 2, 10).await?;
    let seeded = small.collection("c01");
    let more = doc! { "$inc": { "n": 1 } };
    seeded.update_one(doc! { "_id": "seed" }, more).session(small.session()).await?;
    small.prepare().await?;
    let mut large = Transaction::begin(client).await?;
    large.insert("c02", "large", 3, THIRD_OF_AN_ENTRY).await?;
    large.prepare().await?;
    Ok((small, large))
}

/// The newest entry of the source's oplog.
async fn newest(rig: &Rig) -> Result<Timestamp> {
    let oplog = rig.source.client().database("local").collection::<Document>("oplog.rs");
    let last = oplog.find_one(doc! {}).sort(doc! { "$natural": -1 }).await?;
    Ok(last.unwrap_or_default().get_timestamp("ts")?)
}

/// Leaves a MongoShake checkpoint at `at`, from which an incremental run starts.
async fn shake_checkpoint(rig: &Rig, at: Timestamp) -> Result<()> {
    let stored = rig.source.client().database("mongoshake").collection("ckpt_default");
    let ckpt = (i64::from(at.time) << 32) | i64::from(at.increment);
    let document = doc! { "name": "source", "ckpt": ckpt, "version": 2, "fetch_method": "oplog",
    "oplog_disk_queue": "", "oplog_disk_queue_apply_finish_ts": 1_i64 };
    stored.insert_one(document).write_concern(WriteConcern::majority()).await?;
    Ok(())
}

#[tokio::test]
async fn prepared_before_the_copy_and_committed_after_its_start() -> Result<()> {
    let rig = rig(&Options::guide_source().version, CACHE_GB).await?;
    seed(&rig, &["c00", "c01", "c02"]).await?;
    let coordinator = coordinator(&rig).await?;
    let (small, large) = prepare_two(&coordinator).await?;
    let mut other = Transaction::begin(&coordinator).await?;
    other.insert("c00", "never", 1, 10).await?;
    other.prepare().await?;
    let mut collector = Collector::start(&rig.config()?)?;
    // The position is noted first. The copy then waits for what is prepared, as every such read does.
    let status = rig.source.client().database("mongoshake").collection::<Document>("ckpt_default");
    let deadline = std::time::Instant::now() + PATIENCE;
    while status.find_one(doc! { "ckpt": { "$gt": 0 } }).await?.is_none() {
        anyhow::ensure!(std::time::Instant::now() < deadline, "no position was noted:\n{}", collector.log_end());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    small.commit().await?;
    other.abort().await?;
    large.commit().await?;
    handed_over(&mut collector).await?;
    rig.finish(rig.comparison(), collector, &[]).await
}

#[tokio::test]
async fn begun_before_a_mongoshake_checkpoint_and_committed_after_it() -> Result<()> {
    let rig = rig(&Options::guide_source().version, CACHE_GB).await?;
    seed(&rig, &["c00", "c01", "c02"]).await?;
    seed_target(&rig, &["c00", "c01", "c02"]).await?;
    let coordinator = coordinator(&rig).await?;
    let (small, large) = prepare_two(&coordinator).await?;
    // Behind both, with a change between that the checkpoint says is applied already.
    let between = doc! { "_id": "between" };
    collection(&rig, "c00").insert_one(&between).write_concern(WriteConcern::majority()).await?;
    rig.target.client().database("shop").collection::<Document>("c00").insert_one(&between).await?;
    shake_checkpoint(&rig, newest(&rig).await?).await?;
    large.commit().await?;
    let collector = Collector::start(&rig.config()?.set("sync_mode", "incr"))?;
    small.commit().await?;
    rig.finish(rig.comparison().without_options(), collector, &[]).await
}

#[tokio::test]
async fn a_checkpoint_in_the_middle_of_a_chain() -> Result<()> {
    let rig = rig(&Options::guide_source().version, CACHE_GB).await?;
    seed(&rig, &["c00", "c01"]).await?;
    seed_target(&rig, &["c00", "c01"]).await?;
    let mut chain = Transaction::begin(&rig.source.client()).await?;
    chain.insert("c01", "chained", 5, THIRD_OF_AN_ENTRY).await?;
    chain.commit().await?;
    let oplog = rig.source.client().database("local").collection::<Document>("oplog.rs");
    let parts = oplog.find(doc! { "o.partialTxn": true }).sort(doc! { "$natural": 1 }).await?;
    let parts: Vec<Document> = futures_util::TryStreamExt::try_collect(parts).await?;
    anyhow::ensure!(parts.len() >= 2, "{} entries", parts.len());
    shake_checkpoint(&rig, parts[1].get_timestamp("ts")?).await?;
    let collector = Collector::start(&rig.config()?.set("sync_mode", "incr"))?;
    rig.finish(rig.comparison().without_options(), collector, &[]).await
}

#[tokio::test]
async fn killed_while_transactions_are_open() -> Result<()> {
    let rig = rig(&Options::guide_source().version, CACHE_GB).await?;
    seed(&rig, &["c00", "c01", "c02"]).await?;
    // So little memory that the large one is on disk when the process dies.
    let folder = rig.source.dir().join("spill");
    std::fs::create_dir_all(&folder)?;
    let config = rig.config()?.by_oplog_only("a change stream shows no open transaction that could be put aside");
    let config = config.set("limits.transaction_bytes", "1MB").set("checkpoint.interval", 100);
    let config = config.set("limits.spill_dir", folder.to_string_lossy().into_owned());
    let mut collector = Collector::start(&config)?;
    handed_over(&mut collector).await?;
    let coordinator = coordinator(&rig).await?;
    let (small, large) = prepare_two(&coordinator).await?;
    let sentinel = rig.target.client().database("shop").collection::<Document>("c00");
    for round in 0..3 {
        // Written behind them, and seen on the target: the collector has read both by then.
        let document = doc! { "_id": format!("behind{round}") };
        collection(&rig, "c00").insert_one(&document).await?;
        let deadline = std::time::Instant::now() + PATIENCE;
        while sentinel.find_one(document.clone()).await?.is_none() {
            anyhow::ensure!(std::time::Instant::now() < deadline, "{SENTINEL}: {}", collector.log_end());
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        // Time enough for a checkpoint that would be too far.
        tokio::time::sleep(std::time::Duration::from_millis(700)).await;
        collector.kill9();
        anyhow::ensure!(std::fs::read_dir(&folder)?.count() == 1, "one folder was left behind, and no other");
        collector.run()?;
    }
    collector.kill9();
    small.commit().await?;
    large.commit().await?;
    collector.run()?;
    rig.finish(rig.comparison(), collector, &[]).await?;
    anyhow::ensure!(std::fs::read_dir(&folder)?.count() == 0, "the end leaves nothing behind");
    Ok(())
}

/// The seed on the target, for runs without a copy.
async fn seed_target(rig: &Rig, names: &[&str]) -> Result<()> {
    let shop = rig.target.client().database("shop");
    for name in names {
        shop.collection(name).insert_one(doc! { "_id": "seed", "n": 1 }).await?;
    }
    Ok(())
}
