//! From the source to the loop: the reader task and the chain's thread.
//!
//! The reader owns the source and the decoder; the chain runs on a thread of its own, because a plugin may take its
//! time and must never do so inside a poll. Between them and behind them stand channels of a few batches; what keeps
//! memory bounded is the byte permit that every batch carries.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::budget::Budget;
use crate::decode::{Answer, Decode, DecodeCounts, Need, Step};
use crate::error::{Kind, Result};
use crate::metrics::{DropReason, Metrics, Status};
use crate::model::{ChangeBatch, OpTime, RawBatch};
use crate::plugin::{ChainWorker, PluginChain};
use crate::source::Source;
use crate::spill::Spill;
use crate::supervise::Supervisor;

/// The names of the tasks before the loop.
pub(super) const READER: &str = "reader";
pub(super) const CHAIN: &str = "plugin chain";

/// Batches between two stages.
const QUEUE: usize = 4;

/// How often the source is asked for its newest position, for the lag.
const NEWEST_EVERY: Duration = Duration::from_secs(1);

/// What the reader is made of.
pub(super) struct Parts {
    pub(super) source: Box<dyn Source>,
    pub(super) decoder: Box<dyn Decode>,
    /// Memory for the pieces of large transactions.
    pub(super) budget: Budget,
    pub(super) spill: Spill,
}

/// Starts both and returns the batches that come out of the chain, in order. After `stop` what was read before it
/// still comes, and then the channel is closed.
pub(super) fn start(
    tasks: &mut Supervisor,
    parts: Parts,
    chain: Arc<dyn PluginChain>,
    (metrics, status): (&Metrics, &Status),
    stop: &CancellationToken,
) -> mpsc::Receiver<ChangeBatch> {
    let (decoded, to_chain) = mpsc::channel(QUEUE);
    let (chained, out) = mpsc::channel(QUEUE);
    let abort = tasks.token();
    let (metrics_of, status_of, stop) = (metrics.clone(), status.clone(), stop.clone());
    let reader = Reader { parts, metrics: metrics_of, status: status_of, newest_at: None, stop };
    tasks.spawn(READER, async move {
        tokio::select! {
            biased;
            () = abort.cancelled() => Ok(()),
            ended = reader.run(decoded) => ended,
        }
    });
    let metrics = metrics.clone();
    tasks.spawn_blocking(CHAIN, move || {
        let worker = chain.worker()?;
        pass_through(worker, to_chain, &chained, &metrics)
    });
    out
}

struct Reader {
    parts: Parts,
    metrics: Metrics,
    status: Status,
    newest_at: Option<Instant>,
    stop: CancellationToken,
}

impl Reader {
    async fn run(mut self, out: mpsc::Sender<ChangeBatch>) -> Result<()> {
        self.metrics.source.opens.inc();
        let stop = self.stop.clone();
        loop {
            // The source is left in the middle of a request; what it had delivered is handed on below.
            let raw = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                raw = self.next() => raw?,
            };
            let bytes = raw.entries.len() as u64;
            let before = self.parts.decoder.counts();
            self.parts.decoder.begin(raw);
            // Between two batches is a place to stop as well: a reply can hold a large transaction.
            while !stop.is_cancelled() {
                match self.parts.decoder.step()? {
                    Step::Batch(batch) => {
                        self.status.positions().set_read(read_up_to(&batch));
                        self.status.shards().set_read(&batch.last);
                        for change in &batch.changes {
                            self.metrics.decode.changes.of(change.operation).inc();
                        }
                        if out.send(batch).await.is_err() {
                            return Ok(());
                        }
                    }
                    Step::Need(need) => self.answer(need).await?,
                    Step::Done => break,
                }
            }
            self.measure(before, bytes);
        }
    }

    /// The next reply, unless reading is paused.
    async fn next(&mut self) -> Result<RawBatch> {
        loop {
            if self.status.is_paused() {
                self.status.wait_while_paused().await;
            }
            self.ask_newest().await?;
            match self.parts.source.next().await {
                // A pause longer than a cursor lives (a delay at the byte budget) costs no more than a new cursor.
                Err(error) if error.kind() == Kind::CursorLost => {
                    tracing::info!(%error, "the source's cursor is opened again");
                    self.parts.source.open(&self.parts.decoder.reopen()).await?;
                    self.metrics.source.opens.inc();
                }
                read => return read,
            }
        }
    }

    /// Gets the decoder what it needs to end a transaction, or to keep one open.
    async fn answer(&mut self, need: Need) -> Result<()> {
        let Parts { source, decoder, budget, spill } = &mut self.parts;
        let answer = match need {
            Need::Memory { bytes } => Answer::Memory(budget.acquire(bytes).await),
            Need::Entry { stream, time } => {
                let entry = source.entry_at(stream, time).await;
                Answer::Entry(entry.map_err(|e| e.context("complete a transaction that began before the position"))?)
            }
            Need::Store(operations) => Answer::Stored(spill.store(operations).await?),
            Need::Load(stored) => Answer::Loaded(spill.load(stored).await?),
        };
        decoder.answer(answer)
    }

    async fn ask_newest(&mut self) -> Result<()> {
        if self.newest_at.is_none_or(|at| at.elapsed() >= NEWEST_EVERY) {
            self.status.positions().set_newest(self.parts.source.newest().await?);
            self.newest_at = Some(Instant::now());
        }
        Ok(())
    }

    fn measure(&self, before: DecodeCounts, bytes: u64) {
        let now = self.parts.decoder.counts();
        let entries = now.entries - before.entries;
        self.status.positions().heard();
        self.metrics.source.read(entries, bytes, now.largest_bytes);
        let dropped = &self.metrics.decode.dropped;
        for (reason, count) in [
            (DropReason::Noop, now.noop - before.noop),
            (DropReason::FromMigrate, now.from_migrate - before.from_migrate),
            (DropReason::Own, now.own - before.own),
            (DropReason::Looped, now.looped - before.looped),
            (DropReason::Internal, now.internal - before.internal),
            (DropReason::Aborted, now.aborted - before.aborted),
            (DropReason::Gone, now.gone - before.gone),
        ] {
            dropped.of(reason).inc_by(count);
        }
        self.metrics.decode.whole.inc_by(now.whole - before.whole);
        let split = now.split - before.split;
        if split > 0 {
            self.metrics.schedule.split.inc_by(split);
            tracing::warn!(
                transactions = split,
                "too large, or with DDL inside: written in parts although incr_sync.transaction = atomic"
            );
        }
    }
}

/// What was read by this batch: beyond its position where an open transaction holds that back. The next run's overlap
/// goes by it, since all of it may be applied.
fn read_up_to(batch: &ChangeBatch) -> OpTime {
    let newest = batch.changes.last().map(|change| change.time).filter(|time| time.ts() > batch.last.time().ts());
    newest.unwrap_or_else(|| batch.last.time())
}

fn pass_through(
    mut worker: Box<dyn ChainWorker>,
    mut batches: mpsc::Receiver<ChangeBatch>,
    out: &mpsc::Sender<ChangeBatch>,
    metrics: &Metrics,
) -> Result<()> {
    while let Some(mut batch) = batches.blocking_recv() {
        let report = worker.process(&mut batch)?;
        metrics.plugin.passed(&report);
        if out.blocking_send(batch).is_err() {
            break;
        }
    }
    Ok(())
}
