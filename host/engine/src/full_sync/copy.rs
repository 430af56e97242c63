//! The copy itself: readers over `_id` ranges, each reply through the chain and to the target, with inserts on their
//! way while the next reply is read.
//!
//! Every reply holds a permit of the byte budget until its documents are written, so the copy's memory is bounded
//! whatever the sizes. A reader keeps a few inserts in flight and never reorders within what it sends. Nothing here
//! knows a driver.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio_util::sync::CancellationToken;

use super::plan::{Plan, PlannedCollection};
use crate::budget::Permit;
use crate::error::Result;
use crate::metrics::{CollectionProgress, Metrics, Status};
use crate::model::raw::{self, Elements, kind};
use crate::model::{Change, ChangeBatch, NamespaceId, Namespaces, OpTime, Operation, Position};
use crate::plugin::{ChainWorker, PluginChain};
use crate::sink::CopyTarget;
use crate::source::{Partition, ScanOrder, SnapshotReader};
use crate::supervise::{Supervisor, off_thread};

/// Which indexes the copy builds, and when (`full_sync.create_index`). Unique ones always wait for the overlap mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IndexTiming {
    None,
    BeforeData,
    AfterData,
}

/// The copy's numbers.
#[derive(Debug, Clone)]
pub struct FullSyncOptions {
    /// Readers at once (`full_sync.reader.collection_parallel`).
    pub readers: usize,
    /// Inserts that one reader keeps in flight, at most (`full_sync.reader.write_document_parallel`).
    pub inserts_in_flight: usize,
    /// A collection larger than this is split into `_id` ranges of about this size.
    pub partition_bytes: u64,
    pub indexes: IndexTiming,
}

/// What the copy did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CopySummary {
    pub collections: u64,
    pub documents: u64,
    pub bytes: u64,
    /// The newest operation time on the target.
    pub target_time: Option<OpTime>,
    /// Unique indexes that wait for the overlap mark.
    pub unique_indexes_waiting: u64,
}

/// A full copy, ready to run.
pub struct FullSync {
    pub reader: Arc<dyn SnapshotReader>,
    pub target: Arc<dyn CopyTarget>,
    pub chain: Arc<dyn PluginChain>,
    pub namespaces: Arc<Namespaces>,
    pub metrics: Metrics,
    pub status: Status,
    pub options: FullSyncOptions,
    /// The position noted before the first read: reads are not older.
    pub after: OpTime,
}

/// One unit of work.
struct Task {
    collection: Arc<PlannedCollection>,
    /// Where the documents go.
    target: NamespaceId,
    partition: Partition,
    progress: Arc<CollectionProgress>,
    open: Arc<std::sync::atomic::AtomicUsize>,
}

struct Shared {
    run: FullSync,
    tasks: Mutex<VecDeque<Task>>,
    summary: Mutex<CopySummary>,
}

impl FullSync {
    /// Copies everything.
    ///
    /// # Errors
    /// The first fault of any reader or writer; `Ok(None)` when `stop` was cancelled before the end.
    pub async fn run(self, stop: &CancellationToken) -> Result<Option<CopySummary>> {
        let plan = Plan::make(&*self.reader, &self.chain, &self.namespaces).await?;
        tracing::info!(collections = plan.collections.len(), left_out = plan.left_out.len(), "full sync is planned");
        let mut tasks = VecDeque::new();
        for collection in &plan.collections {
            self.target.prepare(&collection.plan, collection.target).await?;
        }
        if self.options.indexes == IndexTiming::BeforeData {
            self.build_indexes(&plan).await?;
        }
        for collection in plan.collections.iter().filter(|c| c.has_documents()) {
            tasks.extend(self.split(collection).await?);
        }
        let timing = self.options.indexes;
        let readers = self.options.readers.clamp(1, tasks.len().max(1));
        let summary = CopySummary { collections: plan.collections.len() as u64, ..CopySummary::default() };
        let shared = Arc::new(Shared { run: self, tasks: Mutex::new(tasks), summary: Mutex::new(summary) });
        let mut readers_running = Supervisor::new(stop);
        for _ in 0..readers {
            readers_running.spawn("copy reader", Arc::clone(&shared).read_all(readers_running.token()));
        }
        while let Some((name, ended)) = readers_running.next_end().await {
            ended.map_err(|e| e.context(name))?;
        }
        if stop.is_cancelled() {
            return Ok(None);
        }
        let waiting = match timing {
            IndexTiming::AfterData => shared.run.build_indexes(&plan).await?,
            IndexTiming::BeforeData => shared.run.count_unique(&plan).await?,
            IndexTiming::None => 0,
        };
        shared.run.status.copy().end();
        let mut summary = shared.summary.lock().unwrap_or_else(PoisonError::into_inner).clone();
        summary.unique_indexes_waiting = waiting;
        Ok(Some(summary))
    }

    async fn split(&self, collection: &PlannedCollection) -> Result<Vec<Task>> {
        let plan = &collection.plan;
        let target = collection.stored_in(&self.namespaces);
        let progress = self.status.copy().plan(plan.namespace.as_str(), plan.documents, plan.bytes);
        let partitions = self.reader.partition(plan, self.options.partition_bytes).await?;
        let open = Arc::new(std::sync::atomic::AtomicUsize::new(partitions.len()));
        let collection = Arc::new(collection.clone());
        Ok(partitions
            .into_iter()
            .map(|partition| Task {
                collection: Arc::clone(&collection),
                target,
                partition,
                progress: Arc::clone(&progress),
                open: Arc::clone(&open),
            })
            .collect())
    }

    /// Builds the indexes that can stand on a fuzzy copy; returns how many unique ones wait for the mark.
    async fn build_indexes(&self, plan: &Plan) -> Result<u64> {
        let mut waiting = 0;
        for collection in plan.collections.iter().filter(|c| c.has_documents()) {
            let specs = self.reader.indexes(&collection.plan.namespace).await?;
            let (unique, plain): (Vec<_>, Vec<_>) = specs.into_iter().partition(|spec| is_unique(spec));
            waiting += unique.len() as u64;
            if !plain.is_empty() {
                self.target.create_indexes(collection.target, &plain).await?;
            }
        }
        Ok(waiting)
    }

    async fn count_unique(&self, plan: &Plan) -> Result<u64> {
        let mut waiting = 0;
        for collection in plan.collections.iter().filter(|c| c.has_documents()) {
            let specs = self.reader.indexes(&collection.plan.namespace).await?;
            waiting += specs.iter().filter(|spec| is_unique(spec)).count() as u64;
        }
        Ok(waiting)
    }
}

/// Whether an index specification is of a unique index other than `_id`.
#[must_use]
pub fn is_unique(spec: &[u8]) -> bool {
    let truthy = |name| {
        raw::find(spec, name).ok().flatten().is_some_and(|e| match e.kind {
            kind::BOOLEAN | kind::INT32 | kind::INT64 | kind::DOUBLE => e.value.iter().any(|byte| *byte != 0),
            _ => false,
        })
    };
    truthy("unique") || truthy("prepareUnique")
}

impl Shared {
    fn next_task(&self) -> Option<Task> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    async fn read_all(self: Arc<Self>, stop: CancellationToken) -> Result<()> {
        let mut worker = Arc::clone(&self.run.chain).worker()?;
        while let Some(task) = self.next_task() {
            task.progress.start();
            let doing = format!("copy {}", task.partition.namespace);
            let copied = self.copy(&task, worker, &stop).await.map_err(|e| e.context(doing))?;
            match copied {
                Some(back) => worker = back,
                None => return Ok(()),
            }
            if task.open.fetch_sub(1, std::sync::atomic::Ordering::SeqCst) == 1 {
                task.progress.finish();
                tracing::info!(namespace = %task.partition.namespace, "collection is copied");
            }
        }
        Ok(())
    }

    /// Copies one partition; gives the worker back, or `None` when asked to stop.
    async fn copy(
        &self,
        task: &Task,
        mut worker: Box<dyn ChainWorker>,
        stop: &CancellationToken,
    ) -> Result<Option<Box<dyn ChainWorker>>> {
        let mut cursor = self.run.reader.open(&task.partition, self.run.after).await?;
        let mut inserts = FuturesUnordered::new();
        // In natural order the order of insertion is part of the content: one insert after the other.
        let inserts_max = match task.partition.order {
            ScanOrder::Id => self.run.options.inserts_in_flight.max(1),
            ScanOrder::Natural => 1,
        };
        let mut at_end = false;
        while !at_end || !inserts.is_empty() {
            let may_read = !at_end && inserts.len() < inserts_max;
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(None),
                Some(done) = inserts.next(), if !inserts.is_empty() => done?,
                reply = cursor.next(), if may_read => match reply? {
                    None => at_end = true,
                    Some((documents, permit)) => {
                        let (batch, back) = self.through_chain(task, documents, permit, worker).await?;
                        worker = back;
                        inserts.push(self.insert(task, batch));
                    }
                },
            }
        }
        Ok(Some(worker))
    }

    /// Runs one reply through the plugin chain, on a thread where a plugin may take its time.
    async fn through_chain(
        &self,
        task: &Task,
        documents: Bytes,
        permit: Permit,
        mut worker: Box<dyn ChainWorker>,
    ) -> Result<(ChangeBatch, Box<dyn ChainWorker>)> {
        let mut batch = snapshot_batch(task, &documents, permit, self.run.after, self.run.status.clock().now_ms())?;
        self.run.metrics.decode.changes.of(Operation::Snapshot).inc_by(batch.changes.len() as u64);
        let (report, batch, worker) = off_thread("plugin chain", move || {
            let report = worker.process(&mut batch);
            (report, batch, worker)
        })
        .await?;
        self.run.metrics.plugin.passed(&report?);
        Ok((batch, worker))
    }

    /// Writes what the chain left of a batch. Time-series buckets are named by the plan, not by the chain.
    async fn insert(&self, task: &Task, batch: ChangeBatch) -> Result<()> {
        let mut documents: Vec<Bytes> = Vec::with_capacity(batch.changes.len());
        let mut bytes = 0;
        let mut elsewhere: Vec<(NamespaceId, Bytes)> = Vec::new();
        for change in batch.changes {
            bytes += change.body.len() as u64;
            if change.target == task.collection.target {
                documents.push(change.body);
            } else {
                elsewhere.push((change.target, change.body));
            }
        }
        let count = (documents.len() + elsewhere.len()) as u64;
        let mut newest = None;
        if !documents.is_empty() {
            newest = self.run.target.insert(task.target, &documents).await?;
        }
        elsewhere.sort_by_key(|(target, _)| *target);
        for group in elsewhere.chunk_by(|a, b| a.0 == b.0) {
            let bodies: Vec<_> = group.iter().map(|(_, body)| body.clone()).collect();
            if let Some((target, _)) = group.first() {
                newest = newest.max(self.run.target.insert(*target, &bodies).await?);
            }
        }
        task.progress.add(count, bytes);
        let mut summary = self.summary.lock().unwrap_or_else(PoisonError::into_inner);
        summary.documents += count;
        summary.bytes += bytes;
        summary.target_time = summary.target_time.max(newest);
        drop(batch.permit);
        Ok(())
    }
}

/// The documents of a reply as snapshot changes.
fn snapshot_batch(task: &Task, documents: &Bytes, permit: Permit, after: OpTime, now_ms: i64) -> Result<ChangeBatch> {
    let mut changes = Vec::new();
    for element in Elements::new(documents)? {
        let element = element?;
        changes.push(Change {
            operation: Operation::Snapshot,
            source: task.collection.source,
            target: task.collection.source,
            key: Bytes::new(),
            body: documents.slice(element.offset..element.end()),
            time: after,
            wall_ms: now_ms,
            collection: task.collection.plan.uuid,
            not_before_ms: 0,
            ddl: None,
        });
    }
    Ok(ChangeBatch { seq: 0, changes, last: Position::Oplog(after), permit: Arc::new(permit) })
}
