//! The writers: one task a lane, one flush at a time.
//!
//! A lane's task takes a flush, hands it to the sink and sends back what became of it, together with the writes, so
//! that a refused one can be parked. It keeps nothing between two flushes and never retries: an unknown outcome is
//! the pipeline's affair.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;

use crate::error::{Error, Kind, Result, Side};
use crate::metrics::{Metrics, WriteKind};
use crate::sink::{Content, FlushReport, Sink, Write};
use crate::supervise::Supervisor;

/// A flush that came back.
pub(super) struct LaneDone {
    pub(super) lane: usize,
    pub(super) writes: Vec<Write>,
    pub(super) report: Result<FlushReport>,
}

/// The lanes' channels.
pub(super) struct Lanes {
    flushes: Vec<mpsc::Sender<Vec<Write>>>,
    done: mpsc::Receiver<LaneDone>,
    busy: usize,
}

impl Lanes {
    pub(super) fn start(tasks: &mut Supervisor, count: usize, sink: &Arc<dyn Sink>, metrics: &Metrics) -> Self {
        let (sender, done) = mpsc::channel(count.max(1));
        let flushes = (0..count.max(1))
            .map(|lane| {
                let (flushes, incoming) = mpsc::channel(1);
                let (sink, sender, metrics) = (Arc::clone(sink), sender.clone(), metrics.clone());
                tasks.spawn("lane", write_all(lane, incoming, sink, sender, metrics));
                flushes
            })
            .collect();
        Self { flushes, done, busy: 0 }
    }

    pub(super) fn flush(&mut self, lane: usize, writes: Vec<Write>) -> Result<()> {
        let sent = self.flushes.get(lane).map(|flushes| flushes.try_send(writes));
        if !matches!(sent, Some(Ok(()))) {
            return Err(Error::new(
                Side::Internal,
                Kind::Bug,
                format!("lane {lane} took no flush although it is idle"),
            ));
        }
        self.busy += 1;
        Ok(())
    }

    pub(super) async fn finished(&mut self) -> Option<LaneDone> {
        let done = self.done.recv().await?;
        self.busy = self.busy.saturating_sub(1);
        Some(done)
    }

    pub(super) fn busy(&self) -> usize {
        self.busy
    }
}

async fn write_all(
    lane: usize,
    mut flushes: mpsc::Receiver<Vec<Write>>,
    sink: Arc<dyn Sink>,
    done: mpsc::Sender<LaneDone>,
    metrics: Metrics,
) -> Result<()> {
    while let Some(writes) = flushes.recv().await {
        let began = Instant::now();
        let report = sink.write(&writes).await;
        metrics.sink.flush_seconds.observe(began.elapsed().as_secs_f64());
        metrics.sink.flushes.inc();
        if let Ok(report) = &report {
            count(&metrics, &writes, report);
        }
        if done.send(LaneDone { lane, writes, report }).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// Counts the statements that were accepted.
fn count(metrics: &Metrics, writes: &[Write], report: &FlushReport) {
    let mut counts = [0_u64; 4];
    let mut refused = report.refused.iter().map(|(at, _)| *at).peekable();
    for (at, write) in writes.iter().enumerate() {
        if refused.next_if_eq(&at).is_some() {
            continue;
        }
        let place = match write.content {
            Content::Insert(_) => 0,
            Content::Replace(_) | Content::Patched { .. } => 1,
            Content::Patch(_) => 2,
            Content::Delete => 3,
        };
        if let Some(count) = counts.get_mut(place) {
            *count += 1;
        }
    }
    let kinds = [WriteKind::Insert, WriteKind::Replace, WriteKind::Update, WriteKind::Delete];
    for (kind, count) in kinds.into_iter().zip(counts) {
        metrics.sink.statements.of(kind).inc_by(count);
    }
}
