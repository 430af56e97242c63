//! The engine's view of the plugin chain: no WebAssembly type appears here.
//!
//! A chain gives each worker thread its own [`ChainWorker`] with its own instances; workers process whole batches in
//! place and keep the order of entries. A dropped change is taken out of the batch by the chain and thereby
//! acknowledged: the batch's position stands even when nothing of it is left.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Mutex;

use crate::budget::Permit;
use crate::error::Result;
use crate::model::{Change, ChangeBatch, NamespaceId, Operation, Position};
use crate::sink::Write;
use crate::source::CollectionPlan;
use crate::supervise::off_thread;

/// What one pass of a batch through the chain did. For every batch, `seen = kept + dropped + dead`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ChainReport {
    pub seen: u64,
    pub kept: u64,
    pub dropped: u64,
    pub delayed: u64,
    pub dead: u64,
}

/// What a chain knows of a namespace of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Met {
    /// The source has it, as far as the stream has come, and it is no view.
    Collection,
    /// The source has this view.
    View,
    /// The source may have had such a view when an entry was logged that is still to come. Only a view goes for it, and it
    /// keeps nothing that another name goes to.
    Past,
}

impl Met {
    /// As what a list of the source's collections shows one.
    #[must_use]
    pub fn of(plan: &CollectionPlan) -> Self {
        if plan.kind == "view" { Self::View } else { Self::Collection }
    }
}

/// A loaded chain that makes workers and can be replaced plugin by plugin while it runs.
pub trait PluginChain: Send + Sync {
    /// A worker with instances of its own. Made once for each thread.
    ///
    /// # Errors
    /// `PluginFault` when an instance cannot be made.
    fn worker(self: Arc<Self>) -> Result<Box<dyn ChainWorker>>;

    /// The route of a namespace outside of a batch: for planning the full copy and for views and indexes.
    /// `None` = dropped, `Some(target)` otherwise.
    ///
    /// # Errors
    /// `PluginFault` when a router traps.
    fn route(&self, source: NamespaceId) -> Result<Option<NamespaceId>>;

    /// [`Self::route`] of what the source has or had. What a chain has met is what an entry about a whole database is
    /// about.
    ///
    /// # Errors
    /// `PluginFault` when a router traps.
    fn meet(&self, source: NamespaceId, _met: Met) -> Result<Option<NamespaceId>> {
        self.route(source)
    }

    /// The active generation of each plugin, in chain order, for the checkpoint.
    fn generations(&self) -> Vec<GenerationInfo>;

    /// What each plugin did so far, in chain order, for the metrics and the status page.
    fn stats(&self) -> Vec<PluginStats>;
}

/// One worker's instances of the chain. Lives on one thread; called between batches only.
pub trait ChainWorker: Send {
    /// Runs every plugin over `batch`, in place. A newer generation is picked up before the first entry, never
    /// inside a batch.
    ///
    /// # Errors
    /// `PluginFault` when a plugin faults and its policy is `fail`; the batch is then unchanged from the source's
    /// point of view: nothing of it was acknowledged.
    fn process(&mut self, batch: &mut ChangeBatch) -> Result<ChainReport>;
}

/// Which version of a plugin is active.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GenerationInfo {
    pub plugin: String,
    pub generation: u64,
    /// Version in the manifest.
    pub version: String,
    /// SHA-256 of the module, hexadecimal.
    pub sha256: String,
    /// SHA-256 of its configuration, hexadecimal; empty where an older checkpoint does not tell.
    pub configuration: String,
}

/// What a plugin did since the start, all of its generations together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PluginStats {
    pub plugin: String,
    /// The active generation, and its version in the manifest.
    pub generation: u64,
    pub version: String,
    /// Calls into the guest with entries or a conflict; routes are not counted.
    pub calls: u64,
    /// Entries shown.
    pub entries: u64,
    /// Wall time inside these calls, in nanoseconds.
    pub nanos: u64,
    /// Traps, limits hit, wrong answers and refusals, whatever the policy did about them.
    pub faults: u64,
    /// Calls beyond the soft time limit.
    pub slow: u64,
    /// Generations that became active while the stream ran, and those of them that were rolled back.
    pub swaps: u64,
    pub rollbacks: u64,
    /// The plugin's own counters, if `metrics` is granted.
    pub custom: BTreeMap<String, u64>,
}

/// The chain without plugins: everything passes, under its own name.
#[derive(Debug, Default)]
pub struct EmptyChain;

impl PluginChain for EmptyChain {
    fn worker(self: Arc<Self>) -> Result<Box<dyn ChainWorker>> {
        Ok(Box::new(PassAll))
    }

    fn route(&self, source: NamespaceId) -> Result<Option<NamespaceId>> {
        Ok(Some(source))
    }

    fn generations(&self) -> Vec<GenerationInfo> {
        Vec::new()
    }

    fn stats(&self) -> Vec<PluginStats> {
        Vec::new()
    }
}

struct PassAll;

impl ChainWorker for PassAll {
    fn process(&mut self, batch: &mut ChangeBatch) -> Result<ChainReport> {
        let seen = batch.changes.len() as u64;
        Ok(ChainReport { seen, kept: seen, ..ChainReport::default() })
    }
}

/// Takes documents that are read from the source for one change through the chain, as the copy takes its documents.
pub struct Passage {
    chain: Arc<dyn PluginChain>,
    /// The worker, between two documents.
    idle: Mutex<Option<Box<dyn ChainWorker>>>,
}

impl Passage {
    /// Through `chain`; its worker is made for the first document.
    #[must_use]
    pub fn new(chain: Arc<dyn PluginChain>) -> Self {
        Self { chain, idle: Mutex::new(None) }
    }

    /// What the chain makes of the whole `document` that `write` is about; none when a plugin drops it.
    ///
    /// # Errors
    /// `PluginFault`.
    pub async fn take(&self, write: &Write, document: Bytes) -> Result<Option<Bytes>> {
        let mut idle = self.idle.lock().await;
        let mut worker = match idle.take() {
            Some(worker) => worker,
            None => Arc::clone(&self.chain).worker()?,
        };
        let change = Change {
            operation: Operation::Replace,
            source: write.source,
            target: write.source,
            key: write.key.clone(),
            body: document,
            time: write.time,
            wall_ms: i64::from(write.time.secs) * 1000,
            collection: write.collection,
            origin: write.origin,
            not_before_ms: 0,
            moved: false,
            creates: false,
            ddl: None,
        };
        let last = Position::Oplog(write.time);
        let permit = Arc::new(Permit::none());
        let mut batch = ChangeBatch { seq: 0, changes: vec![change], last, atomic: false, permit };
        let (report, mut batch, worker) = off_thread("plugin chain", move || {
            let report = worker.process(&mut batch);
            (report, batch, worker)
        })
        .await?;
        *idle = Some(worker);
        report?;
        // One that a plugin moves elsewhere is no document of the place that asks for it.
        let here = batch.changes.pop().filter(|change| !change.moved || change.target == write.target);
        Ok(here.map(|change| change.body))
    }
}

/// Takes the entries that `keep` refuses out of a batch and counts them.
pub fn retain(batch: &mut ChangeBatch, mut keep: impl FnMut(&mut Change) -> bool) -> u64 {
    let before = batch.changes.len();
    batch.changes.retain_mut(|change| keep(change));
    (before - batch.changes.len()) as u64
}
