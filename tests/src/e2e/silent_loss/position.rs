//! The stored position moves although nothing passes, and history that is gone is said to be gone.
//!
//! A position that stands still on a quiet or filtered stream leaves the oplog one day, and the restart after that
//! loses data or copies everything. Checkpoints are kept on the target here: on the source each of them would be an
//! entry of its own and move the position by itself.

use super::*;

async fn stored(rig: &Rig) -> Result<Option<Timestamp>> {
    let documents = rig.target.client().database("mongoshake").collection::<Document>("ckpt_default");
    let found = documents.find_one(doc! { "_id": "test/source" }).await?;
    let position = found.as_ref().and_then(|found| found.get_document("position").ok());
    Ok(position.and_then(|position| position.get_timestamp("ts").ok()))
}

fn config(rig: &Rig) -> Result<oplogue_tests::collector::PipelineConfig> {
    let config = rig.config()?.set("checkpoint.storage.url", rig.target.uri());
    Ok(config.set("checkpoint.interval", 200))
}

#[tokio::test]
async fn an_idle_source_moves_the_position() -> Result<()> {
    let source = Options {
        parameters: vec![("periodicNoopIntervalSecs".to_owned(), "1".to_owned())],
        ..Options::guide_source()
    };
    let rig = Rig::of(source, Options::guide_target()).await?;
    shop(&rig.source, "c00").insert_one(doc! { "_id": 1 }).await?;
    let mut collector = Collector::start(&config(&rig)?)?;
    handed_over(&mut collector).await?;
    rig.comparison().wait(SENTINEL, PATIENCE).await?;
    for _ in 0..3 {
        let before = stored(&rig).await?.context("nothing is stored")?;
        until(&collector, "the position moves", async || Ok(stored(&rig).await? > Some(before))).await?;
    }
    rig.finish(rig.comparison(), collector, &[]).await
}

#[tokio::test]
async fn a_filtered_stream_moves_the_position() -> Result<()> {
    let rig = Rig::start().await?;
    shop(&rig.source, "c00").insert_one(doc! { "_id": 1 }).await?;
    let mut collector = Collector::start(&config(&rig)?.set("filter.namespace.white", "nothing.here"))?;
    handed_over(&mut collector).await?;
    for round in 0..3 {
        let write =
            doc! { "insert": "c00", "documents": (0..200).map(|id| doc! { "r": round, "n": id }).collect::<Vec<_>>() };
        let reply = rig.source.client().database("shop").run_command(write).await?;
        let written = reply.get_timestamp("operationTime")?;
        until(&collector, "the position passes what is filtered", async || Ok(stored(&rig).await? >= Some(written)))
            .await?;
    }
    let status = collector.terminate(PATIENCE).await?;
    anyhow::ensure!(status.success(), "exit {status}:\n{}", collector.log_end());
    let names = rig.target.client().database("shop").list_collection_names().await?;
    anyhow::ensure!(names.is_empty(), "{names:?} leaked");
    collector.assert_no_unexpected_warnings(&[])
}

/// A drop that is repeated after a crash must not be met together with what came before it: that was in the collection.
#[tokio::test]
async fn the_position_before_a_drop_is_stored_before_the_drop() -> Result<()> {
    let rig = Rig::start().await?;
    for name in ["c00", "c01"] {
        shop(&rig.source, name).insert_one(doc! { "_id": 1 }).await?;
    }
    // After the first one no checkpoint is due in this test.
    let config = config(&rig)?.set("checkpoint.interval", 3_600_000).set("filter.ddl_enable", true);
    let mut collector = Collector::start(&config)?;
    collector.wait_log("overlap is over", PATIENCE).await?;
    passed(&rig, &collector).await?;
    let saves = "oplogue_checkpoint_saves_total 1\n";
    until(&collector, "the first checkpoint", async || Ok(collector.get("/metrics").await?.contains(saves))).await?;
    let write = doc! { "insert": "c00", "documents": [{ "_id": "before the drop" }] };
    let before = rig.source.client().database("shop").run_command(write).await?.get_timestamp("operationTime")?;
    passed(&rig, &collector).await?;
    anyhow::ensure!(stored(&rig).await? < Some(before), "a position is stored without a drop");
    shop(&rig.source, "c01").drop().await?;
    let target = rig.target.client().database("shop");
    until(&collector, "the drop", async || Ok(!target.list_collection_names().await?.contains(&"c01".to_owned())))
        .await?;
    let at = stored(&rig).await?;
    anyhow::ensure!(at >= Some(before), "the drop was run while {at:?} was stored, and {before:?} stood before it");
    rig.finish(rig.comparison(), collector, &[]).await
}

#[tokio::test]
async fn a_collector_that_was_away_too_long_says_so() -> Result<()> {
    // What is behind the last checkpoint of its storage stays.
    let arguments = vec!["--syncdelay=1".to_owned()];
    let source = Options { oplog_mb: Some(8), arguments, ..Options::guide_source() };
    let rig = Rig::of(source, Options::guide_target()).await?;
    shop(&rig.source, "c00").insert_one(doc! { "_id": 1 }).await?;
    let mut collector = Collector::start(&config(&rig)?)?;
    handed_over(&mut collector).await?;
    rig.comparison().wait(SENTINEL, PATIENCE).await?;
    let status = collector.terminate(PATIENCE).await?;
    anyhow::ensure!(status.success(), "exit {status}:\n{}", collector.log_end());
    let left = stored(&rig).await?.context("nothing is stored")?;
    let pad = "p".repeat(200_000);
    let oplog = rig.source.client().database("local").collection::<Document>("oplog.rs");
    until(&collector, "the position leaves the oplog", async || {
        shop(&rig.source, "c01").insert_many((0..40).map(|_| doc! { "pad": &pad })).await?;
        shop(&rig.source, "c01").delete_many(doc! {}).await?;
        // The server may cut off the very entry that is read.
        let Ok(Some(oldest)) = oplog.find_one(doc! {}).sort(doc! { "$natural": 1 }).await else { return Ok(false) };
        Ok(oldest.get_timestamp("ts")? > left)
    })
    .await?;
    collector.run()?;
    let status = collector.wait(PATIENCE).await?;
    anyhow::ensure!(!status.success(), "history is missing and nobody says so:\n{}", collector.log_end());
    anyhow::ensure!(collector.log_end().contains("the oplog holds"), "{}", collector.log_end());
    anyhow::ensure!(stored(&rig).await? == Some(left), "the position moved over the gap");
    Ok(())
}
