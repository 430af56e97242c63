//! What the target does not take: the run stops and says why, or goes on when it is told to.
//!
//! The guide's target user may not run `collMod`, which is the refusal that most users meet first.
//! What other users lack is the server's to say and is not tried here.

use anyhow::Result;
use bson::doc;
use oplogue_tests::collector::Collector;

use super::super::rig::{PATIENCE, Rig, SENTINEL, handed_over};
use super::with_ddl;

#[tokio::test]
async fn a_refused_ddl_stops_the_run_or_is_skipped() -> Result<()> {
    let rig = Rig::start().await?;
    rig.fill(10).await?;
    let config = with_ddl(&rig)?;
    let mut collector = Collector::start(&config)?;
    handed_over(&mut collector).await?;
    // Said before anything is refused.
    collector.wait_log("the target's user may not run every DDL", PATIENCE).await?;
    let db = rig.source.client().database("shop");
    db.run_command(doc! { "collMod": "c01", "validator": { "a": { "$ne": 77 } } }).await?;
    db.collection("c01").insert_one(doc! { "_id": "after" }).await?;
    let status = collector.wait(PATIENCE).await?;
    assert_eq!(status.code(), Some(1), "{}", collector.log_end());
    let log = collector.log();
    for text in ["collMod", "shop.c01", "code 13", "entry at", "incr_sync.ddl_refused"] {
        assert!(log.contains(text), "{text} is not in the log:\n{}", collector.log_end());
    }
    // Stopped before it: a restart meets it again.
    collector.run()?;
    assert_eq!(collector.wait(PATIENCE).await?.code(), Some(1), "{}", collector.log_end());
    let mut collector = Collector::start(&config.set("incr_sync.ddl_refused", "skip"))?;
    collector.wait_log("a DDL that the target refuses is skipped", PATIENCE).await?;
    let comparison = rig.comparison().without_options();
    comparison.wait(SENTINEL, PATIENCE).await?;
    let metrics = collector.get("/metrics").await?;
    assert!(metrics.contains("oplogue_sink_refused_ddl_total 1"), "{metrics}");
    rig.finish(comparison, collector, &["a DDL that the target refuses is skipped"]).await
}
