//! The full copy against the bare loader.
//!
//! Loader, collector, loader: the two loader runs bracket the collector's, and their difference is the noise. The
//! collector's time includes its start and its end, since a user waits for those too. The target is emptied
//! before each run; the copies are compared once, so that no speed is bought with a hole.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};
use oplogue_tests::collector::{Collector, PipelineConfig};
use oplogue_tests::compare::{self, Comparison};
use oplogue_tests::servers::{Options as SetOptions, ReplicaSet};

use super::table::{self, Row};
use super::usage::{self, Watcher};
use super::{loader, writes};

const COLLECTION: &str = "documents";

pub(super) async fn run(options: &super::Options, program: &Path) -> Result<()> {
    let set = SetOptions { cache_gb: 1.0, ..SetOptions::default() };
    let (source, target) = tokio::join!(ReplicaSet::start(set.clone()), ReplicaSet::start(set));
    let (source, target) = (source?, target?);
    writes::fill(&source.client(), COLLECTION, options.documents, options.document_bytes).await?;
    let bench = Copy { options, source, target };
    let before = bench.by_loader("bare loader (A)").await?;
    let collector = bench.by_collector(program).await?;
    let found = Comparison::new(bench.source.client(), bench.target.client()).run().await?;
    anyhow::ensure!(found.is_empty(), "the copy is wrong:\n{}", compare::report(&found));
    let after = bench.by_loader("bare loader (A again)").await?;
    table::print(&[before, collector, after]);
    Ok(())
}

struct Copy<'a> {
    options: &'a super::Options,
    source: ReplicaSet,
    target: ReplicaSet,
}

impl Copy<'_> {
    async fn by_loader(&self, name: &str) -> Result<Row> {
        self.empty_target().await?;
        let earlier = usage::of(std::process::id())?;
        let took = loader::copy(&self.source.client(), &self.target.client(), writes::DB, COLLECTION).await?;
        let mut used = usage::of(std::process::id())?.since(earlier);
        // The peak of this process includes the making of the documents.
        used.peak_mb = None;
        Ok(self.row(name, took, used))
    }

    async fn by_collector(&self, program: &Path) -> Result<Row> {
        self.empty_target().await?;
        let config = PipelineConfig::between(&self.source, &self.target)?.set("sync_mode", "full");
        let started = Instant::now();
        let mut collector = Collector::start_program(program, &config)?;
        let watcher = Watcher::start(collector.pid().context("the collector runs")?);
        let status = collector.wait(std::time::Duration::from_secs(1_800)).await?;
        let took = started.elapsed();
        anyhow::ensure!(status.success(), "the collector ended with {status}:\n{}", collector.log_end());
        Ok(self.row("oplogue, sync_mode full", took, watcher.finish()))
    }

    async fn empty_target(&self) -> Result<()> {
        self.target.client().database(writes::DB).drop().await.context("empty the target")
    }

    fn row(&self, name: &str, took: std::time::Duration, used: usage::Usage) -> Row {
        let bytes = u64::from(self.options.documents) * self.options.document_bytes as u64;
        let name = name.to_owned();
        Row { name, items: self.options.documents, took, bytes: Some(bytes), usage: Some(used), target: None }
    }
}
