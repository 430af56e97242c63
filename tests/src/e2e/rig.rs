//! What every end-to-end test sets up: two sets with the guide's users, a load, a collector.
//!
//! It keeps the tests to what is particular about them. Its deadlines are generous, because the machine is
//! shared and nothing here measures speed. It is not in the harness library because only tests use it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bson::doc;
use bson::oid::ObjectId;
use oplogue_tests::collector::{Collector, HAND_OVER, PipelineConfig};
use oplogue_tests::compare::Comparison;
use oplogue_tests::load::{Load, LoadOptions};
use oplogue_tests::patience;
use oplogue_tests::servers::{Options, ReplicaSet};

/// Nothing in these tests may take longer.
pub(super) const PATIENCE: Duration = Duration::from_secs(180);

/// Hundreds of DDL, each of which waits for a stored checkpoint, on a machine that others use too.
pub(super) const LONG_PATIENCE: Duration = Duration::from_secs(600);

/// Where the last document of a test is written; every test replicates it.
pub(super) const SENTINEL: &str = "shop.c00";

pub(super) struct Rig {
    pub(super) source: ReplicaSet,
    pub(super) target: ReplicaSet,
    pub(super) load: LoadOptions,
    by_change_stream: bool,
}

impl Rig {
    pub(super) async fn start() -> Result<Self> {
        Self::with_members(1, 1).await
    }

    pub(super) async fn with_members(source: usize, target: usize) -> Result<Self> {
        let source = Options::guide_source().with_members(source);
        Self::of(source, Options::guide_target().with_members(target)).await
    }

    pub(super) async fn of(source: Options, target: Options) -> Result<Self> {
        let (source, target) = tokio::join!(ReplicaSet::start(source), ReplicaSet::start(target));
        let (source, target) = (source?, target?);
        let series = source.series().min(target.series());
        // Enough writers to overlap, few enough to leave the collector a core.
        // Before 6.0 a document of a capped collection keeps its size.
        let capped = source.series() < (6, 0) || target.series() >= (6, 0);
        let load = LoadOptions { workers: 3, rate: Some(1_500.0), series, capped, ..LoadOptions::default() };
        Ok(Self { source, target, load, by_change_stream: false })
    }

    /// Reads the source's change stream instead of its oplog. On 5.0 no unique values change hands then: an update there can show a later
    /// state of its document, so that a value is met before its former owner has given it up (docs/OPERATIONS.md).
    pub(super) fn by_change_stream(mut self) -> Self {
        self.load.unique_swaps &= self.source.series() != (5, 0);
        Self { by_change_stream: true, ..self }
    }

    /// Fills the source with that many documents a collection.
    pub(super) async fn fill(&self, documents: usize) -> Result<()> {
        Load::prepare(&self.source.client(), &self.load, documents).await
    }

    pub(super) fn start_load(&self) -> Load {
        Load::start(&self.source.client(), &self.load)
    }

    pub(super) fn config(&self) -> Result<PipelineConfig> {
        let config = PipelineConfig::between(&self.source, &self.target)?;
        let config =
            if self.by_change_stream { config.set("incr_sync.mongo_fetch_method", "change_stream") } else { config };
        Ok(config.set("checkpoint.storage.url", self.source.uri_as_user()))
    }

    pub(super) fn comparison(&self) -> Comparison {
        Comparison::new(self.source.client(), self.target.client())
    }

    /// Waits for equality and stops the collector; `allowed` are texts that warnings of this test may contain.
    pub(super) async fn finish(&self, comparison: Comparison, collector: Collector, allowed: &[&str]) -> Result<()> {
        self.finish_at(comparison, SENTINEL, collector, allowed).await
    }

    /// The same where the last document goes elsewhere.
    pub(super) async fn finish_at(
        &self,
        comparison: Comparison,
        sentinel: &str,
        mut collector: Collector,
        allowed: &[&str],
    ) -> Result<()> {
        let seed = self.load.seed;
        let equal = comparison.wait(sentinel, PATIENCE).await;
        equal.with_context(|| format!("seed {seed}; the log ends with:\n{}", collector.log_end()))?;
        let status = collector.terminate(PATIENCE).await?;
        anyhow::ensure!(status.success(), "seed {seed}; exit {status}:\n{}", collector.log_end());
        collector.assert_no_unexpected_warnings(allowed).with_context(|| format!("seed {seed}"))
    }
}

/// Waits until everything that stands in the source is accepted by the target or dropped on purpose. That a later
/// document arrived says less: it may go by another lane and overtake.
pub(super) async fn passed(rig: &Rig, collector: &Collector) -> Result<()> {
    let (db, name) = SENTINEL.split_once('.').context("the sentinel has a database and a collection")?;
    let write = doc! { "insert": name, "documents": [{ "_id": ObjectId::new(), "sentinel": true }] };
    let written = rig.source.client().database(db).run_command(write).await?.get_timestamp("operationTime")?;
    let written = u64::from(written.time) << 32 | u64::from(written.increment);
    until(collector, "the acknowledgement of the last document", async || {
        // A process that was just started may not listen yet.
        let Ok(page) = collector.get("/repl").await else { return Ok(false) };
        let page: serde_json::Value = serde_json::from_str(&page)?;
        let accepted = page["lsn_ack"]["ts"].as_str().context("no lsn_ack")?.parse::<u64>()?;
        Ok(accepted >= written)
    })
    .await
}

/// Waits until something is so.
pub(super) async fn until(
    collector: &Collector,
    what: &str,
    mut is_so: impl AsyncFnMut() -> Result<bool>,
) -> Result<()> {
    let (started, patience) = (Instant::now(), patience::at_most(PATIENCE));
    while !is_so().await? {
        anyhow::ensure!(started.elapsed() < patience, "not so in time: {what}; the log:\n{}", collector.log_end());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Waits for the line that says that the copy is over.
pub(super) async fn handed_over(collector: &mut Collector) -> Result<()> {
    collector.wait_log(HAND_OVER, PATIENCE).await
}
