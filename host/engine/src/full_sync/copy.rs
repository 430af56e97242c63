//! The copy itself: readers over `_id` ranges, each reply through the chain and to the target, with inserts on their
//! way while the next reply is read.
//!
//! Every reply holds a permit of the byte budget until its documents are written, so the copy's memory is bounded
//! whatever the sizes. A reader keeps a few inserts in flight and never reorders within what it sends. Nothing here
//! knows a driver.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio_util::sync::CancellationToken;

use super::persistent::Persistent;
use super::plan::{Plan, PlannedCollection};
use crate::budget::Permit;
use crate::error::{Error, Kind, Result, Side};
use crate::metrics::{CollectionProgress, Metrics, Status};
use crate::model::raw::{self, Elements, kind};
use crate::model::{
    Change, ChangeBatch, CollectionUuid, Namespace, NamespaceId, Namespaces, OpTime, Operation, Position,
};
use crate::plugin::{ChainWorker, PluginChain};
use crate::sink::CopyTarget;
use crate::source::{CollectionPlan, Partition, ScanOrder, SnapshotReader, Source, majority_has};
use crate::supervise::{Supervisor, off_thread};

/// How often the catalogue is listed again while it changes.
const LISTINGS: usize = 20;

/// Which indexes the copy builds, and when (`full_sync.create_index`). Unique ones and those that
/// let documents expire always wait for the overlap mark.
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
    /// Indexes that wait for the overlap mark, see [`waits_for_mark`].
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
    open: Arc<AtomicUsize>,
    /// A cursor has found the collection under another name.
    moved: Arc<AtomicBool>,
}

struct Shared {
    run: FullSync,
    tasks: Mutex<VecDeque<Task>>,
    summary: Mutex<CopySummary>,
    /// A plugin sent documents of one collection to the place of another.
    rerouted: AtomicBool,
}

impl FullSync {
    /// Copies everything.
    ///
    /// # Errors
    /// The first fault of any reader or writer; `Ok(None)` when `stop` was cancelled before the end.
    pub async fn run(mut self, source: &dyn Source, stop: &CancellationToken) -> Result<Option<CopySummary>> {
        let (listed, at) = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(None),
            listed = self.agreed(source) => listed?,
        };
        // A member that is behind the list would read nothing under a name that came meanwhile.
        self.after = self.after.max(at);
        let plan = Plan::make(listed, &self.chain, &self.namespaces)?;
        tracing::info!(collections = plan.collections.len(), left_out = plan.left_out.len(), "full sync is planned");
        self.run_plan(plan, stop).await
    }

    /// The source's collections as its majority has them. A server lists what it has itself: a drop or a rename that
    /// only the primary knows can be taken back, and what is not copied for it is in no stream. With a time by which a
    /// majority has them so.
    async fn agreed(&self, source: &dyn Source) -> Result<(Vec<CollectionPlan>, OpTime)> {
        // Of a cluster no term is known, and of a set a list of one primary's time is settled when a majority has all that
        // this one had by then. Otherwise two lists must agree.
        let is_set = self.after.term >= 0;
        let mut led = source.written().await?.term;
        let mut before: Option<Vec<CollectionPlan>> = None;
        let mut round = 0;
        loop {
            round += 1;
            let listed = self.reader.collections().await?;
            let written = source.written().await?;
            let waits = || tracing::info!(until = %written, "waiting until the source's majority has its catalogue");
            majority_has(source, written, waits).await?;
            let leads = source.written().await?.term;
            let same = match &before {
                Some(before) => self.shapes(before)? == self.shapes(&listed)?,
                None => false,
            };
            if same || (is_set && led == written.term && written.term == leads) {
                return Ok((listed, written));
            }
            if round >= LISTINGS {
                tracing::warn!("the source's collections change all the time: the copy goes by the last list of them");
                return Ok((listed, written));
            }
            (led, before) = (leads, Some(listed));
        }
    }

    /// What of a list decides about the copy: the collections that pass.
    fn shapes<'l>(
        &self,
        listed: &'l [CollectionPlan],
    ) -> Result<Vec<(&'l Namespace, Option<CollectionUuid>, &'l Bytes)>> {
        let mut shapes = Vec::with_capacity(listed.len());
        for plan in listed {
            if self.chain.route(self.namespaces.intern(plan.namespace.as_str()))?.is_some() {
                shapes.push((&plan.namespace, plan.uuid, &plan.options));
            }
        }
        Ok(shapes)
    }

    /// Copies what `plan` says.
    ///
    /// # Errors
    /// As [`FullSync::run`].
    pub async fn run_plan(mut self, plan: Plan, stop: &CancellationToken) -> Result<Option<CopySummary>> {
        self.reader = Arc::new(Persistent(self.reader));
        let mut tasks = VecDeque::new();
        let mut newest = None;
        for collection in &plan.collections {
            newest = self.target.prepare(&collection.plan, collection.target).await?.max(newest);
        }
        if self.options.indexes == IndexTiming::BeforeData {
            newest = self.build_indexes(&plan).await?.time.max(newest);
        }
        for collection in plan.collections.iter().filter(|c| c.has_documents()) {
            let CollectionPlan { namespace, documents, bytes, .. } = &collection.plan;
            let progress = self.status.copy().plan(namespace.as_str(), *documents, *bytes);
            tasks.extend(self.split(collection, progress).await?);
        }
        let timing = self.options.indexes;
        let readers = self.options.readers.clamp(1, tasks.len().max(1));
        let collections = plan.collections.len() as u64;
        let summary = CopySummary { collections, target_time: newest, ..CopySummary::default() };
        let (tasks, summary) = (Mutex::new(tasks), Mutex::new(summary));
        let shared = Arc::new(Shared { run: self, tasks, summary, rerouted: AtomicBool::new(false) });
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
        let built = match timing {
            IndexTiming::AfterData => shared.run.build_indexes(&plan).await?,
            IndexTiming::BeforeData => Built { waiting: shared.run.count_waiting(&plan).await?, time: None },
            IndexTiming::None => Built::default(),
        };
        shared.run.status.copy().end();
        let mut summary = shared.summary.lock().unwrap_or_else(PoisonError::into_inner).clone();
        summary.unique_indexes_waiting = built.waiting;
        summary.target_time = summary.target_time.max(built.time);
        Ok(Some(summary))
    }

    async fn split(&self, collection: &PlannedCollection, progress: Arc<CollectionProgress>) -> Result<Vec<Task>> {
        let partitions = self.reader.partition(&collection.plan, self.options.partition_bytes).await?;
        if partitions.is_empty() {
            // Nothing to read, and nobody to say so at its end.
            progress.finish();
        }
        Ok(self.tasks(&Arc::new(collection.clone()), partitions, &progress))
    }

    fn tasks(
        &self,
        collection: &Arc<PlannedCollection>,
        partitions: Vec<Partition>,
        progress: &Arc<CollectionProgress>,
    ) -> Vec<Task> {
        let target = collection.stored_in(&self.namespaces);
        let open = Arc::new(AtomicUsize::new(partitions.len()));
        let moved = Arc::new(AtomicBool::new(false));
        let task = |partition| Task {
            collection: Arc::clone(collection),
            target,
            partition,
            progress: Arc::clone(progress),
            open: Arc::clone(&open),
            moved: Arc::clone(&moved),
        };
        partitions.into_iter().map(task).collect()
    }

    /// Builds the indexes that can stand on a fuzzy copy.
    async fn build_indexes(&self, plan: &Plan) -> Result<Built> {
        let mut built = Built::default();
        for collection in plan.collections.iter().filter(|c| c.has_documents()) {
            let part = self.build_indexes_of(collection).await?;
            built = Built { waiting: built.waiting + part.waiting, time: part.time.max(built.time) };
        }
        Ok(built)
    }

    async fn build_indexes_of(&self, collection: &PlannedCollection) -> Result<Built> {
        let specs = self.indexes(collection).await?;
        let (waiting, plain): (Vec<_>, Vec<_>) = specs.into_iter().partition(|spec| waits_for_mark(spec));
        let mut built = Built { waiting: waiting.len() as u64, time: None };
        if !plain.is_empty() {
            built.time = self.target.create_indexes(collection.target, &plain).await?;
        }
        Ok(built)
    }

    async fn count_waiting(&self, plan: &Plan) -> Result<u64> {
        let mut waiting = 0;
        for collection in plan.collections.iter().filter(|c| c.has_documents()) {
            waiting += self.indexes(collection).await?.iter().filter(|spec| waits_for_mark(spec)).count() as u64;
        }
        Ok(waiting)
    }

    /// The indexes of a planned collection, under whatever name it has now; none once it is dropped.
    async fn indexes(&self, collection: &PlannedCollection) -> Result<Vec<Bytes>> {
        let Some(name) = self.reader.place(&collection.plan).await? else { return Ok(Vec::new()) };
        let specs = self.reader.indexes(&name).await?;
        match self.reader.place(&collection.plan).await? {
            None => Ok(Vec::new()),
            Some(still) if still == name => Ok(specs),
            Some(_) => Err(moved(&name)),
        }
    }
}

/// What became of the indexes.
#[derive(Debug, Clone, Copy, Default)]
struct Built {
    /// Those that wait for the overlap mark.
    waiting: u64,
    /// When the last one was built, in the target's time.
    time: Option<OpTime>,
}

fn moved(name: &Namespace) -> Error {
    let text = format!("copy {name}: the source renamed it meanwhile; what is to be copied is listed again");
    Error::new(Side::Source, Kind::CursorLost, text)
}

/// Whether an index cannot stand before the overlap mark. A unique one may not hold on a fuzzy copy. One that lets
/// documents expire would delete those whose life an update prolongs that is still to be replayed.
#[must_use]
pub fn waits_for_mark(spec: &[u8]) -> bool {
    let truthy = |name| {
        raw::find(spec, name).ok().flatten().is_some_and(|e| match e.kind {
            kind::BOOLEAN | kind::INT32 | kind::INT64 | kind::DOUBLE => e.value.iter().any(|byte| *byte != 0),
            _ => false,
        })
    };
    let expires = raw::find(spec, "expireAfterSeconds").ok().flatten().is_some();
    expires || truthy("unique") || truthy("prepareUnique")
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
            if task.open.fetch_sub(1, Ordering::SeqCst) == 1 {
                // The source may have to get its majority back first.
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return Ok(()),
                    read = self.collection_read(&task) => read?,
                }
            }
        }
        Ok(())
    }

    /// The last partition of a collection is read. Cursors are opened by name, so after a rename they may have read
    /// another collection, or nothing: then the collection is copied again from the name it has now. One that was
    /// dropped meanwhile is done: its drop is replayed, and so is every document of a successor.
    async fn collection_read(&self, task: &Task) -> Result<()> {
        let planned = &*task.collection;
        let from = &planned.plan.namespace;
        let now = self.run.reader.place(&planned.plan).await?;
        let is_here = now.as_ref() == Some(from);
        // Away and back again, it may have been read under the name of another one.
        let moved_and_back = task.moved.load(Ordering::SeqCst);
        let Some(name) = now.filter(|name| name != from || moved_and_back) else {
            let moved = if is_here { self.run.reader.moved(&planned.plan).await? } else { Vec::new() };
            if !moved.is_empty() {
                tracing::info!(namespace = %from, ranges = moved.len(), "read again: they moved to another shard");
                let tasks = self.run.tasks(&task.collection, moved, &task.progress);
                self.tasks.lock().unwrap_or_else(PoisonError::into_inner).extend(tasks);
                return Ok(());
            }
            task.progress.finish();
            tracing::info!(namespace = %from, "collection is copied");
            return Ok(());
        };
        if self.rerouted.load(Ordering::SeqCst) {
            // What others sent to its place would be lost with it.
            return Err(moved(from));
        }
        tracing::info!(namespace = %from, now = %name, "the source renamed this collection; it is copied again");
        let plan = CollectionPlan { namespace: name, ..planned.plan.clone() };
        let again = PlannedCollection { plan, ..planned.clone() };
        let mut newest = self.run.target.prepare_again(&again.plan, again.target).await?;
        if self.run.options.indexes == IndexTiming::BeforeData {
            newest = self.run.build_indexes_of(&again).await?.time.max(newest);
        }
        {
            let mut summary = self.summary.lock().unwrap_or_else(PoisonError::into_inner);
            summary.target_time = summary.target_time.max(newest);
        }
        let tasks = self.run.split(&again, Arc::clone(&task.progress)).await?;
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).extend(tasks);
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
                    None => {
                        task.moved.fetch_or(cursor.moved(), Ordering::SeqCst);
                        at_end = true;
                    }
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
        if !elsewhere.is_empty() {
            self.rerouted.store(true, Ordering::SeqCst);
        }
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
            origin: None,
            not_before_ms: 0,
            moved: false,
            creates: false,
            ddl: None,
        });
    }
    Ok(ChangeBatch { seq: 0, changes, last: Position::Oplog(after), atomic: false, permit: Arc::new(permit) })
}
