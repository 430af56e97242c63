//! What only a job on change streams does: positions as resume tokens, and jobs that change their way of reading.
//!
//! That the data comes out the same is shown by the other tests, which run in both ways. Here positions go from one form to
//! the other and back, under load and through kills, and a checkpoint of MongoShake's change-stream mode is taken over.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bson::{Document, doc};
use oplogue_tests::collector::{Collector, HAND_OVER};
use oplogue_tests::load::Load;
use oplogue_tests::servers::Options;

use super::rig::{PATIENCE, Rig, handed_over};

/// A busy server takes its time to notice that a killed collector is gone.
const EXPECTED: [&str; 1] = ["an earlier run of this job still has connections to the target"];

async fn checkpoint(rig: &Rig) -> Result<Option<Document>> {
    let checkpoints = rig.source.client().database("mongoshake").collection::<Document>("ckpt_default");
    Ok(checkpoints.find_one(doc! { "format": "oplogue", "stage": "incremental" }).await?)
}

/// Waits for a checkpoint that stands behind `done` more operations and holds a token, or holds none.
async fn stored_with_token(rig: &Rig, load: &mut Load, wanted: bool) -> Result<()> {
    let done = load.totals().done;
    load.reach(done + 600, PATIENCE).await?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let stored = checkpoint(rig).await?;
        let position = stored.as_ref().and_then(|stored| stored.get_document("position").ok());
        if position.is_some_and(|position| position.contains_key("token") == wanted) {
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < deadline, "no such checkpoint: {position:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_job_goes_on_in_the_other_mode_and_back() -> Result<()> {
    let rig = Rig::start().await?;
    rig.fill(60).await?;
    let config = |method: &str| -> Result<_> { Ok(rig.config()?.set("incr_sync.mongo_fetch_method", method)) };
    let mut load = rig.start_load();
    let mut collector = Collector::start(&config("oplog")?)?;
    handed_over(&mut collector).await?;
    stored_with_token(&rig, &mut load, false).await?;
    collector.kill9();
    for (method, has_token) in [("change_stream", true), ("oplog", false), ("change_stream", true)] {
        let mut next = Collector::start(&config(method)?)?;
        stored_with_token(&rig, &mut load, has_token).await.with_context(|| next.log_end())?;
        anyhow::ensure!(!next.log().contains(HAND_OVER), "the data was copied again:\n{}", next.log());
        next.assert_no_unexpected_warnings(&EXPECTED)?;
        next.kill9();
    }
    let last = Collector::start(&config("change_stream")?)?;
    load.stop().await?;
    rig.finish(rig.comparison(), last, &EXPECTED).await?;
    let stored = checkpoint(&rig).await?.context("no checkpoint is left")?;
    let token = stored.get_document("position")?.get_document("token")?.get_str("_data")?;
    anyhow::ensure!(token.starts_with("82"), "{stored}");
    Ok(())
}

#[tokio::test]
async fn a_checkpoint_of_mongoshakes_change_streams_is_taken_over() -> Result<()> {
    let rig = Rig::start().await?.by_change_stream();
    let client = rig.source.client();
    let shop = client.database("shop").collection::<Document>("c00");
    shop.insert_one(doc! { "_id": "before" }).await?;
    let hello = client.database("admin").run_command(doc! { "hello": 1 }).await?;
    let time = hello.get_document("lastWrite")?.get_document("opTime")?.get_timestamp("ts")?;
    let number = (i64::from(time.time) << 32) | i64::from(time.increment);
    let theirs = doc! { "name": "source", "ckpt": number, "version": 2, "fetch_method": "change_stream" };
    client.database("mongoshake").collection("ckpt_default").insert_one(theirs).await?;
    rig.fill(20).await?;
    let mut collector = Collector::start(&rig.config()?.set("sync_mode", "incr").set("filter.ddl_enable", true))?;
    collector.wait_log("a MongoShake checkpoint is taken over", PATIENCE).await?;
    let mut load = rig.start_load();
    load.reach(300, PATIENCE).await?;
    load.stop().await?;
    rig.finish(rig.comparison(), collector, &[]).await
}

/// Before 6.0 a change stream shows nothing of the collections behind time-series.
#[tokio::test]
async fn what_an_older_stream_hides_is_not_left_behind() -> Result<()> {
    let source = Options { version: "5.0.4".to_owned(), ..Options::guide_source() };
    let rig = Rig::of(source, Options::guide_target()).await?;
    let series = doc! { "create": "measured", "timeseries": { "timeField": "t" } };
    rig.source.client().database("shop").run_command(series).await?;
    let config = rig.config()?.set("incr_sync.mongo_fetch_method", "change_stream");
    let mut collector = Collector::start(&config)?;
    anyhow::ensure!(!collector.wait(PATIENCE).await?.success(), "it runs:\n{}", collector.log_end());
    let log = collector.log();
    anyhow::ensure!(log.contains("show no change of shop.measured"), "{log}");
    let names = rig.target.client().database("shop").list_collection_names().await?;
    anyhow::ensure!(names.is_empty(), "copied: {names:?}");
    let mut without = Collector::start(&config.set("filter.namespace.black", "shop.measured"))?;
    handed_over(&mut without).await?;
    anyhow::ensure!(without.terminate(PATIENCE).await?.success(), "{}", without.log_end());
    Ok(())
}
