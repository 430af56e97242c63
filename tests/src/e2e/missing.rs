//! `incr_sync.executor.missing_document`: an update whose document somebody removed from the target.
//!
//! Each policy is tried in the real collector, after the overlap mark, where alone it holds. The document that is
//! missing was there before, so that nothing else than the policy can explain what stands there afterwards.

use anyhow::{Context as _, Result};
use bson::{Document, doc};
use mongodb::Collection;
use mongodb::options::{Acknowledgment, WriteConcern};
use oplogue_tests::collector::Collector;
use oplogue_tests::example::MaskField;

use super::rig::{PATIENCE, Rig};

const MARK: &str = "overlap is over";

const MISSING: &str = "oplogue_sink_missing_documents_total";
const REFETCHED: &str = "oplogue_sink_refetched_documents_total";

struct Things {
    source: Collection<Document>,
    target: Collection<Document>,
}

impl Things {
    fn of(rig: &Rig) -> Self {
        let of = |set: &oplogue_tests::servers::ReplicaSet| set.client().database("shop").collection("things");
        Self { source: of(&rig.source), target: of(&rig.target) }
    }

    /// Removes a document from the target behind the collector's back and changes it on the source.
    async fn update_a_missing(&self, id: &str) -> Result<()> {
        let gone = self.target.delete_one(doc! { "_id": id }).write_concern(majority()).await?;
        anyhow::ensure!(gone.deleted_count == 1, "{id} was not on the target");
        let update = doc! { "$set": { "x": 1 } };
        self.source.update_one(doc! { "_id": id }, update).write_concern(majority()).await?;
        Ok(())
    }
}

/// A counter of the running collector.
async fn counter(collector: &Collector, name: &str) -> Result<u64> {
    let metrics = collector.get("/metrics").await?;
    let line = metrics.lines().find_map(|line| line.strip_prefix(name));
    Ok(line.context("the counter is not there")?.trim().parse()?)
}

fn majority() -> WriteConcern {
    WriteConcern::builder().w(Acknowledgment::Majority).build()
}

#[tokio::test]
async fn a_missing_document_is_ignored_read_invented_or_stops_the_run() -> Result<()> {
    let rig = Rig::start().await?;
    let things = Things::of(&rig);
    let ids = ["ignore", "refetch", "upsert", "as-mongoshake", "stop"];
    let start = |id: &str| doc! { "_id": id, "x": 0, "keep": "kept" };
    things.source.insert_many(ids.map(start)).write_concern(majority()).await?;
    for id in ids {
        let config = match id {
            "as-mongoshake" => rig.config()?.set("incr_sync.executor.upsert", true),
            policy => rig.config()?.set("incr_sync.executor.missing_document", policy),
        };
        let mut collector = Collector::start(&config)?;
        collector.wait_log(MARK, PATIENCE).await?;
        things.update_a_missing(id).await?;
        if id == "stop" {
            let status = collector.wait(PATIENCE).await?;
            anyhow::ensure!(status.code() == Some(1), "exit {status}:\n{}", collector.log_end());
            let log = collector.log();
            anyhow::ensure!(log.contains("the target has no document") && log.contains("stop"), "{log}");
            continue;
        }
        let expected = match id {
            "ignore" => None,
            "upsert" => Some(doc! { "_id": id, "x": 1 }),
            _ => Some(doc! { "_id": id, "x": 1, "keep": "kept" }),
        };
        let read = matches!(id, "refetch" | "as-mongoshake");
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            let found = things.target.find_one(doc! { "_id": id }).await?;
            let counted = (counter(&collector, MISSING).await?, counter(&collector, REFETCHED).await?);
            if found == expected && counted == (1, u64::from(read)) {
                break;
            }
            let late = std::time::Instant::now() > deadline;
            anyhow::ensure!(!late, "{id}: {found:?}, counted {counted:?}\n{}", collector.log_end());
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        let status = collector.terminate(PATIENCE).await?;
        anyhow::ensure!(status.success(), "exit {status}:\n{}", collector.log_end());
        collector.assert_no_unexpected_warnings(&[])?;
    }
    Ok(())
}

/// What is read whole from the source passes the plugins like everything else.
#[tokio::test]
async fn a_document_that_is_read_again_is_masked_too() -> Result<()> {
    let rig = Rig::start().await?;
    let things = Things::of(&rig);
    let document = doc! { "_id": "a", "x": 0, "email": "somebody@example.test" };
    things.source.insert_one(document).write_concern(majority()).await?;
    let plugin = MaskField::install(rig.source.dir())?;
    let mut collector = Collector::start(&plugin.join(rig.config()?))?;
    collector.wait_log(MARK, PATIENCE).await?;
    things.update_a_missing("a").await?;
    let deadline = std::time::Instant::now() + PATIENCE;
    let expected = Some(doc! { "_id": "a", "x": 1, "email": "***" });
    while counter(&collector, REFETCHED).await? == 0 || things.target.find_one(doc! {}).await? != expected {
        let found = things.target.find_one(doc! {}).await?;
        anyhow::ensure!(std::time::Instant::now() < deadline, "{found:?}\n{}", collector.log_end());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    anyhow::ensure!(collector.terminate(PATIENCE).await?.success(), "{}", collector.log_end());
    collector.assert_no_unexpected_warnings(&[])
}
