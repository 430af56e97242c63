//! The half of the pipeline that does things: it turns I/O into events for `state` and its commands into I/O.
//!
//! Five kinds of tasks surround the loop, all named and owned: the reader (source and decoder), the chain on a thread
//! of its own, one writer a lane, the poller of the target's majority, and one-shot fences. The loop itself never
//! waits for a server except before a destructive DDL, when everything is drained anyway. It decides nothing about
//! order; that is `state`'s.

mod drain;
mod lanes;
mod reader;
mod saver;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::ack::SlotId;
use crate::budget::Budget;
use crate::checkpoint::{Checkpoint, CheckpointStore, Stage};
use crate::decode::Decode;
use crate::error::{Action, Error, Kind, Result, Side};
use crate::metrics::{Metrics, Status};
use crate::model::{Change, ChangeBatch, CollectionUuid, Ddl, Namespaces, OpTime, Position};
use crate::pipeline::durable::DurableQueue;
use crate::pipeline::state::{Command, Core, CoreCounts, CoreOptions, FenceId};
use crate::plugin::PluginChain;
use crate::sink::{DdlOutcome, Durability, FlushReport, Sink, WholeReport, Write};
use crate::source::Source;
use crate::spill::Spill;
use crate::supervise::Supervisor;
use drain::{Drain, Notice};
use lanes::{LaneDone, Lanes};
use saver::Saver;

/// How often the target is asked for its majority.
const DURABILITY_POLL: Duration = Duration::from_millis(200);

/// How long the end of a run waits for its tasks: none of them holds work any more then.
const TASKS_DEADLINE: Duration = Duration::from_secs(10);

/// How long the end by a fault waits for the target's majority before the last checkpoint. A shutdown waits until its
/// own deadline.
const LAST_MAJORITY_WAIT: Duration = Duration::from_secs(10);

/// What must happen when the overlap is over, besides settling.
#[async_trait]
pub trait AtMark: Send + Sync {
    /// Everything before the mark is written and nothing is in flight: builds what could not stand before (unique
    /// indexes). `None` = done; `Some(until)` = not possible yet, overlap goes on until that source time.
    async fn reached(&self) -> Result<Option<OpTime>>;
}

/// Brings collections over the filter's border.
#[async_trait]
pub trait Border: Send + Sync {
    /// Copies the collection of a [`Ddl::CopyIn`] from the source, as it is now. Everything else is drained, and the
    /// position before the entry is stored: a crash repeats the copy.
    ///
    /// # Errors
    /// Those of both servers; `CannotApply` when something is in its place on the target.
    async fn copy_in(&self, change: &Change, overlap: bool, stop: &CancellationToken) -> Result<CopiedIn>;
}

/// What a copy across the border came to.
#[derive(Debug, Clone, Copy)]
pub struct CopiedIn {
    pub outcome: DdlOutcome,
    /// Its changes up to this source time may be in the copy already.
    pub overlap_until: OpTime,
    /// Whether the collection must keep its order as a whole.
    pub ordered: bool,
}

/// The job's numbers.
#[derive(Debug, Clone)]
pub struct IncrementalOptions {
    pub core: CoreOptions,
    /// Time between two stored checkpoints.
    pub checkpoint_interval: Duration,
    /// The stage that is stored until the mark is passed; `Incremental` after it.
    pub stage: Stage,
    /// SHA-256 of the configuration, stored with each checkpoint.
    pub configuration: String,
}

/// Everything one incremental run is made of. The source is open at the checkpoint's position.
pub struct Incremental {
    pub source: Box<dyn Source>,
    pub decoder: Box<dyn Decode>,
    /// The budget that the source's batches are taken from.
    pub budget: Budget,
    /// Where open transactions go that do not fit into memory.
    pub spill: Spill,
    pub namespaces: Arc<Namespaces>,
    pub chain: Arc<dyn PluginChain>,
    pub sink: Arc<dyn Sink>,
    pub store: Arc<dyn CheckpointStore>,
    pub at_mark: Arc<dyn AtMark>,
    pub border: Arc<dyn Border>,
    pub metrics: Metrics,
    pub status: Status,
    pub options: IncrementalOptions,
}

/// Why a run ended.
#[derive(Debug)]
pub enum Ended {
    /// As asked: what was read is durable and stored, but for what the log names as left to the next start.
    Stopped,
    /// A passing fault: start again from the last durable position, after a pause.
    Rewind(Error),
    /// A fault that an operator must look at. Nothing is lost by it: the checkpoint stands before it.
    Fault(Error),
}

impl Ended {
    /// How a run ends by this error.
    #[must_use]
    pub fn of(error: Error) -> Self {
        match error.action() {
            Action::Rewind => Self::Rewind(error),
            Action::Stop => Self::Fault(error),
        }
    }
}

/// What a run leaves behind.
#[derive(Debug)]
pub struct Finished {
    pub why: Ended,
    /// The last position that was durable on the target, if any became so in this run.
    pub durable: Option<Position>,
    /// The last position that was stored.
    pub stored: Option<Position>,
    /// The stage to go on with.
    pub stage: Stage,
}

impl Incremental {
    /// Runs until a fault comes, or until everything that was read before `stop` was cancelled is durable and stored.
    /// That has no deadline: the caller drops this future when the time is up.
    pub async fn run(self, stop: CancellationToken) -> Finished {
        let stage = self.options.stage;
        let durable = match self.sink.durability().await {
            Ok(now) => DurableQueue::begin(now),
            Err(error) => return Finished { why: Ended::of(error), durable: None, stored: None, stage },
        };
        // Not a child of `stop`: a shutdown needs every task but the reading of the source.
        let mut tasks = Supervisor::new(&CancellationToken::new());
        let mut pipeline = Loop::start(self, durable, &mut tasks, &stop);
        let outcome = pipeline.until_end(&mut tasks, &stop).await;
        let finish = match &outcome {
            Ok(()) => pipeline.store_now().await,
            Err(_) => pipeline.finish().await,
        };
        let (durable, stored, stage) = pipeline.into_positions();
        // With the loop its channels are gone, which is what lanes and saver end by.
        tasks.shutdown(TASKS_DEADLINE).await.ok();
        let why = match outcome.and(finish) {
            Ok(()) => Ended::Stopped,
            Err(error) => Ended::of(error),
        };
        Finished { why, durable, stored, stage }
    }
}

/// A batch whose changes are admitted as their time comes.
struct Admitting {
    slot: SlotId,
    rest: std::vec::IntoIter<Change>,
    next: Option<Change>,
    last: Position,
    /// They become visible together, when the last of them may.
    atomic: bool,
}

/// What a fence's own task came to, with the newest write of the target after it: a DDL that was done already, or an
/// index that was built, may be as young as that.
enum FenceDone {
    Ddl(FenceId, Result<(DdlOutcome, OpTime)>),
    CopyIn(FenceId, Option<CollectionUuid>, Result<(CopiedIn, OpTime)>),
    Settle(FenceId, Result<FlushReport>),
    Mark(FenceId, Result<(Option<OpTime>, OpTime)>),
    Whole(FenceId, Vec<Vec<Write>>, Result<WholeReport>),
}

struct Loop {
    core: Core,
    durable: DurableQueue,
    lanes: Lanes,
    batches: mpsc::Receiver<ChangeBatch>,
    polled: mpsc::Receiver<Result<Durability>>,
    fences: (mpsc::Sender<FenceDone>, mpsc::Receiver<FenceDone>),
    admitting: Option<Admitting>,
    drain: Drain,
    /// Tasks before the loop that have not ended: the reader and the chain.
    before_loop: usize,
    notice: Notice,
    stop: CancellationToken,
    /// The core's counts when they were last added to the series, which outlive this run.
    measured: CoreCounts,
    durable_at: Option<Position>,
    stored_at: Option<Position>,
    saver: Saver,
    sink: Arc<dyn Sink>,
    at_mark: Arc<dyn AtMark>,
    border: Arc<dyn Border>,
    chain: Arc<dyn PluginChain>,
    metrics: Metrics,
    status: Status,
    options: IncrementalOptions,
}

impl Loop {
    fn start(run: Incremental, durable: DurableQueue, tasks: &mut Supervisor, stop: &CancellationToken) -> Self {
        let Incremental { source, decoder, budget, spill, .. } = run;
        let Incremental { namespaces, chain, sink, store, at_mark, border, metrics, status, options, .. } = run;
        let parts = reader::Parts { source, decoder, budget, spill };
        let batches = reader::start(tasks, parts, Arc::clone(&chain), (&metrics, &status), stop);
        let lanes = Lanes::start(tasks, options.core.lanes, &sink, &metrics);
        let polled = poll_durability(tasks, Arc::clone(&sink));
        let saver = Saver::start(tasks, store, Arc::clone(&sink), options.checkpoint_interval);
        Self {
            core: Core::new(namespaces, options.core.clone()),
            durable,
            lanes,
            batches,
            polled,
            fences: mpsc::channel(16),
            admitting: None,
            drain: Drain::No,
            before_loop: 2,
            notice: Notice::off(),
            stop: stop.clone(),
            measured: CoreCounts::default(),
            durable_at: None,
            stored_at: None,
            saver,
            sink,
            at_mark,
            border,
            chain,
            metrics,
            status,
            options,
        }
    }

    /// The loop. The arms stand in the order of what frees most: an end first, then what frees lanes, then what moves
    /// the position, then new work. Asked to stop, it goes on until what was read has run dry.
    async fn until_end(&mut self, tasks: &mut Supervisor, stop: &CancellationToken) -> Result<()> {
        loop {
            let due_ms = self.due_in_ms();
            tokio::select! {
                biased;
                () = stop.cancelled(), if self.drain == Drain::No => self.begin_drain(),
                () = self.notice.due() => self.say_who_is_late(),
                Some((name, ended)) = tasks.next_end() => self.task_ended(name, ended)?,
                Some(done) = self.lanes.finished() => self.lane_done(done)?,
                Some(done) = self.fences.1.recv() => self.fence_done(done)?,
                Some(durability) = self.polled.recv() => self.reached(durability?)?,
                Some(saved) = self.saver.saved() => self.saved(saved?),
                () = tokio::time::sleep(Duration::from_millis(due_ms.unwrap_or_default())), if due_ms.is_some() => {
                    self.admit_due()?;
                }
                batch = self.batches.recv(), if self.admitting.is_none() && self.drain.takes() => match batch {
                    Some(batch) => self.take(batch)?,
                    None if stop.is_cancelled() => self.has_run_dry(),
                    None => return self.reader_ended(tasks).await,
                },
            }
            self.execute(tasks).await?;
            self.saver.save_if_due();
            if self.is_drained() {
                self.say_what_is_left();
                return Ok(());
            }
            self.show_late();
        }
    }

    /// The chain closed its channel: its or the reader's own error is the reason.
    async fn reader_ended(&self, tasks: &mut Supervisor) -> Result<()> {
        while let Some((name, ended)) = tasks.next_end().await {
            ended.map_err(|e| e.context(name))?;
        }
        Err(Error::new(Side::Internal, Kind::Bug, "the reader ended without a reason"))
    }

    fn take(&mut self, mut batch: ChangeBatch) -> Result<()> {
        self.metrics.schedule.queued.inc_by(batch.changes.len() as u64);
        if batch.changes.iter().all(|change| change.not_before_ms == 0) {
            self.core.batch(batch)?;
            return self.after_core();
        }
        let slot = self.core.open(batch.seq, batch.changes.len(), batch.last.clone(), batch.permit)?;
        let latest = batch.changes.iter().map(|change| change.not_before_ms).max().unwrap_or_default();
        if batch.atomic {
            batch.changes.iter_mut().for_each(|change| change.not_before_ms = latest);
        }
        let mut rest = batch.changes.into_iter();
        let (next, atomic) = (rest.next(), batch.atomic);
        self.admitting = Some(Admitting { slot, next, rest, last: batch.last, atomic });
        self.admit_due()?;
        self.leave_delayed();
        Ok(())
    }

    /// Milliseconds until the next delayed change is due; `None` when none waits.
    fn due_in_ms(&self) -> Option<u64> {
        let next = self.admitting.as_ref()?.next.as_ref()?;
        Some((next.not_before_ms - self.status.clock().now_ms()).max(0).unsigned_abs())
    }

    fn admit_due(&mut self) -> Result<()> {
        let now = self.status.clock().now_ms();
        if let Some(open) = &mut self.admitting {
            while let Some(change) = open.next.take_if(|change| change.not_before_ms <= now) {
                if open.atomic {
                    let whole = std::iter::once(change).chain(open.rest.by_ref()).collect();
                    self.core.offer_whole(open.slot, whole)?;
                } else {
                    self.core.offer(open.slot, change)?;
                }
                open.next = open.rest.next();
            }
            if open.next.is_none() {
                let reached = open.last.time();
                self.admitting = None;
                self.core.close(reached)?;
            } else {
                self.core.pump()?;
            }
        }
        self.after_core()
    }

    fn lane_done(&mut self, done: LaneDone) -> Result<()> {
        let report = done.report?;
        if let Some(time) = report.operation_time {
            self.durable.wrote(time);
        }
        self.metrics.sink.refused.inc_by(report.refused.len() as u64);
        self.core.flushed(done.lane, done.writes, &report)?;
        self.after_core()
    }

    fn fence_done(&mut self, done: FenceDone) -> Result<()> {
        match done {
            FenceDone::Ddl(id, outcome) => {
                let (outcome, newest) = outcome?;
                self.durable.wrote(newest);
                self.ddl_done(id, outcome)?;
            }
            FenceDone::CopyIn(id, _, Err(error)) if self.stop.is_cancelled() && error.kind() == Kind::Unavailable => {
                tracing::debug!(%error, "a copy over the filter's border is given up");
                self.core.given_up(id)?;
            }
            FenceDone::CopyIn(id, source, copied) => {
                let (copied, newest) = copied?;
                self.durable.wrote(newest);
                self.core.copied_in(source, copied.ordered, copied.overlap_until);
                // What a copy leaves to the mark must be met again after a restart.
                self.options.stage = Stage::CatchUp;
                self.ddl_done(id, copied.outcome)?;
            }
            FenceDone::Settle(id, report) => {
                let report = report?;
                if let Some(time) = report.operation_time {
                    self.durable.wrote(time);
                }
                self.core.settled(id, &report)?;
            }
            FenceDone::Whole(id, waves, written) => {
                let WholeReport { report, at_once } = written?;
                if let Some(time) = report.operation_time {
                    self.durable.wrote(time);
                }
                if !at_once {
                    self.metrics.schedule.split.inc();
                    tracing::warn!("the target did not take transactions as one: they were written in parts");
                }
                self.core.whole_done(id, waves, &report)?;
            }
            FenceDone::Mark(id, outcome) => {
                let (outcome, newest) = outcome?;
                self.durable.wrote(newest);
                self.mark_done(id, outcome)?;
            }
        }
        self.after_core()
    }

    fn mark_done(&mut self, id: FenceId, again: Option<OpTime>) -> Result<()> {
        if let Some(until) = again {
            return self.core.mark_again(id, until);
        }
        self.core.fence_done(id)?;
        self.options.stage = Stage::Incremental;
        tracing::info!("overlap is over: the target has passed the newest source position of the start");
        Ok(())
    }

    fn ddl_done(&mut self, id: FenceId, outcome: DdlOutcome) -> Result<()> {
        match outcome {
            DdlOutcome::Done(time) => {
                self.durable.wrote(time.unwrap_or_default());
                self.metrics.sink.ddl_executed.inc();
                self.core.fence_done(id)
            }
            DdlOutcome::Already => {
                self.metrics.sink.ddl_skipped.inc();
                self.core.fence_done(id)
            }
            // Counted by the sink, which also leaves things out that had to wait.
            DdlOutcome::Refused => self.core.fence_done(id),
            DdlOutcome::Postponed => self.core.ddl_postponed(id),
        }
    }

    fn after_core(&mut self) -> Result<()> {
        if let Some(position) = self.core.take_watermark() {
            self.status.positions().set_accepted(position.time());
            self.durable.accepted(position);
        }
        Ok(())
    }

    fn reached(&mut self, durability: Durability) -> Result<()> {
        let position = self.durable.reached(durability, self.core.is_busy()).map_err(|_| {
            Error::new(Side::Sink, Kind::FailedOver, "the target elected a new primary while writes were not durable")
        })?;
        if let Some(position) = position {
            self.status.positions().set_durable(position.time());
            self.status.shards().set_durable(&position);
            self.status.recovered();
            self.durable_at = Some(position.clone());
            self.saver.offer(self.checkpoint(position));
        }
        Ok(())
    }

    fn saved(&mut self, position: Position) {
        self.metrics.pipeline.checkpoint_saves.inc();
        self.status.positions().set_checkpoint(position.time());
        self.status.shards().set_checkpoint(&position);
        self.stored_at = Some(position);
    }

    fn checkpoint(&self, position: Position) -> Checkpoint {
        Checkpoint {
            stage: self.options.stage,
            position,
            plugins: self.chain.generations(),
            configuration: self.options.configuration.clone(),
        }
    }

    async fn execute(&mut self, tasks: &mut Supervisor) -> Result<()> {
        for command in self.core.take_commands() {
            match command {
                Command::Flush { lane, writes } => self.lanes.flush(lane, writes)?,
                Command::Ddl { fence, change, overlap } => {
                    if change.ddl.as_ref().is_some_and(|ddl| ddl.is_destructive()) {
                        self.store_now().await?;
                    }
                    if matches!(change.ddl.as_deref(), Some(Ddl::CopyIn { .. })) {
                        self.copy_in(tasks, fence, change, overlap);
                        continue;
                    }
                    let (sink, done) = (Arc::clone(&self.sink), self.fences.0.clone());
                    tasks.spawn("ddl", async move {
                        let outcome =
                            async { Ok((sink.ddl(&change, overlap).await?, sink.durability().await?.newest)) };
                        let outcome = outcome.await;
                        done.send(FenceDone::Ddl(fence, outcome)).await.ok();
                        Ok(())
                    });
                }
                Command::Settle { fence, writes, last_word } => {
                    let (sink, done) = (Arc::clone(&self.sink), self.fences.0.clone());
                    tasks.spawn("settle", async move {
                        let outcome = sink.settle(&writes, last_word).await;
                        done.send(FenceDone::Settle(fence, outcome)).await.ok();
                        Ok(())
                    });
                }
                Command::Whole { fence, waves } => {
                    let (sink, done) = (Arc::clone(&self.sink), self.fences.0.clone());
                    tasks.spawn("whole transactions", async move {
                        let outcome = sink.write_whole(&waves).await;
                        done.send(FenceDone::Whole(fence, waves, outcome)).await.ok();
                        Ok(())
                    });
                }
                Command::Mark { fence } => {
                    let (at_mark, sink) = (Arc::clone(&self.at_mark), Arc::clone(&self.sink));
                    let done = self.fences.0.clone();
                    tasks.spawn("mark", async move {
                        let outcome = async { Ok((at_mark.reached().await?, sink.durability().await?.newest)) };
                        let outcome = outcome.await;
                        done.send(FenceDone::Mark(fence, outcome)).await.ok();
                        Ok(())
                    });
                }
            }
        }
        self.measure();
        Ok(())
    }

    fn copy_in(&self, tasks: &mut Supervisor, fence: FenceId, change: Box<Change>, overlap: bool) {
        let (border, sink) = (Arc::clone(&self.border), Arc::clone(&self.sink));
        let (done, stop) = (self.fences.0.clone(), self.stop.child_token());
        tasks.spawn("copy into the filter", async move {
            let copied = border.copy_in(&change, overlap, &stop).await;
            let copied = async { Ok((copied?, sink.durability().await?.newest)) }.await;
            done.send(FenceDone::CopyIn(fence, change.collection, copied)).await.ok();
            Ok(())
        });
    }

    fn measure(&mut self) {
        let counts = self.core.counts();
        let schedule = &self.metrics.schedule;
        schedule.busy_lanes.set(i64::try_from(self.lanes.busy()).unwrap_or(i64::MAX));
        let before = std::mem::replace(&mut self.measured, counts);
        schedule.coalesced.inc_by(counts.coalesced - before.coalesced);
        schedule.parked.inc_by(counts.parked - before.parked);
        schedule.barriers.inc_by(counts.fences - before.fences);
        if counts.one_lane > before.one_lane {
            let collections = counts.one_lane - before.one_lane;
            tracing::info!(collections, "unique keys collide too often: written in one lane from now on");
        }
        schedule.split.inc_by(counts.split - before.split);
        self.metrics.sink.changes.inc_by(counts.accepted - before.accepted);
    }

    /// After a fault: lets the flushes that are on their way come back, then stores the last position.
    async fn finish(&mut self) -> Result<()> {
        let mut first_error = Ok(());
        while self.lanes.busy() > 0 {
            let Some(done) = self.lanes.finished().await else {
                break;
            };
            let handled = self.lane_done(done);
            first_error = first_error.and(handled);
        }
        let stored = self.store_last().await;
        first_error.and(stored)
    }

    fn into_positions(self) -> (Option<Position>, Option<Position>, Stage) {
        (self.durable_at, self.stored_at, self.options.stage)
    }

    async fn store_last(&mut self) -> Result<()> {
        let give_up = tokio::time::Instant::now() + LAST_MAJORITY_WAIT;
        match tokio::time::timeout_at(give_up, self.store_now()).await {
            Ok(stored) => stored,
            Err(_) => {
                tracing::warn!("the target's majority is late: the last checkpoint stands before the newest writes");
                Ok(())
            }
        }
    }
}

fn poll_durability(tasks: &mut Supervisor, sink: Arc<dyn Sink>) -> mpsc::Receiver<Result<Durability>> {
    let (sender, receiver) = mpsc::channel(1);
    let stop = tasks.token();
    tasks.spawn("durability poller", async move {
        loop {
            let durability = sink.durability().await;
            let failed = durability.is_err();
            if sender.send(durability).await.is_err() || failed {
                return Ok(());
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(DURABILITY_POLL) => {}
            }
        }
    });
    receiver
}
