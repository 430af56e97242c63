//! Transactions whose beginning lies before the position that a run starts from.
//!
//! A large transaction is a chain of entries, and a prepared one ends long after it began; a position may lie between.
//! What the beginning holds is read by no tailing cursor, so it must be fetched backwards, or it is lost. The position
//! is set as an operator would set it; the target begins empty.

use mongodb::ClientSession;
use mongodb::options::WriteConcern;
use oplogue_engine::model::{OpTime, Position};

use super::*;

/// Starts a collector that takes everything up to and with the entry at `done` as applied.
async fn follow_from(rig: &Rig, done: Timestamp) -> Result<Collector> {
    let position = Position::Oplog(OpTime::new(done.time, done.increment, -1));
    lease(rig).await?.set(&position).await?;
    Collector::start(&rig.config()?.set("sync_mode", "incr"))
}

async fn newest(rig: &Rig) -> Result<Timestamp> {
    let oplog = rig.source.client().database("local").collection::<Document>("oplog.rs");
    let newest = oplog.find_one(doc! {}).sort(doc! { "$natural": -1 }).await?.context("an empty oplog")?;
    Ok(newest.get_timestamp("ts")?)
}

async fn insert(rig: &Rig, session: &mut ClientSession, from: i32, pad: &str) -> mongodb::error::Result<()> {
    for id in from..from + 20 {
        shop(&rig.source, "big").insert_one(doc! { "_id": id, "pad": pad }).session(&mut *session).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_chain_whose_first_entries_are_older_than_the_position() -> Result<()> {
    // A transaction of 40 MB does not fit the small cache that tests give a server.
    let rig = Rig::of(Options { cache_gb: 1.0, ..Options::guide_source() }, Options::guide_target()).await?;
    let client = rig.source.client();
    // A transaction reads a snapshot of the majority.
    client.database("shop").create_collection("big").write_concern(WriteConcern::majority()).await?;
    let mut session = client.start_session().await?;
    // MongoDB 4.4 may refuse one of this size with a write conflict, though nobody else writes.
    let pad = "p".repeat(2_000_000);
    session.start_transaction().and_run2(async |session| insert(&rig, session, 0, &pad).await).await?;
    let oplog = client.database("local").collection::<Document>("oplog.rs");
    let first = doc! { "op": "c", "o.partialTxn": true };
    let first = oplog.find_one(first).sort(doc! { "$natural": 1 }).await?.context("the transaction is one entry")?;
    let collector = follow_from(&rig, first.get_timestamp("ts")?).await?;
    rig.finish(rig.comparison(), collector, &[]).await
}

/// Three prepared ones: committed after the start, aborted after it, and open when the collector is killed.
#[tokio::test]
async fn prepared_before_the_position_and_ended_long_after() -> Result<()> {
    // Only a server without users lets a client prepare.
    let rig = Rig::of(Options::default().named("source"), Options::guide_target()).await?;
    let client = rig.source.client();
    // A transaction reads a snapshot of the majority.
    client.database("shop").create_collection("big").write_concern(WriteConcern::majority()).await?;
    let mut sessions = Vec::new();
    for number in 0..3 {
        let mut session = client.start_session().await?;
        session.start_transaction().await?;
        insert(&rig, &mut session, number * 100, "small").await?;
        let prepare = doc! { "prepareTransaction": 1, "writeConcern": { "w": "majority" } };
        let reply = client.database("admin").run_command(prepare).session(&mut session).await?;
        sessions.push((session, reply.get_timestamp("prepareTimestamp")?));
    }
    let done = newest(&rig).await?;
    let mut collector = follow_from(&rig, done).await?;
    collector.wait_log("incremental starts", PATIENCE).await?;
    let mut ends = sessions.into_iter();
    let mut next = || ends.next().context("three were prepared");
    commit(&rig, next()?).await?;
    let (mut session, _) = next()?;
    session.abort_transaction().await?;
    shop(&rig.source, "c01").insert_one(doc! { "_id": "between" }).await?;
    let passed = async || Ok(shop(&rig.target, "c01").find_one(doc! { "_id": "between" }).await?.is_some());
    until(&collector, "what came after the first two", passed).await?;
    collector.kill9();
    collector.run()?;
    commit(&rig, next()?).await?;
    rig.finish(rig.comparison(), collector, &[]).await
}

async fn commit(rig: &Rig, (mut session, prepared): (ClientSession, Timestamp)) -> Result<()> {
    let commit = doc! { "commitTransaction": 1, "commitTimestamp": prepared };
    rig.source.client().database("admin").run_command(commit).session(&mut session).await?;
    Ok(())
}
