//! Stores checkpoints beside the loop, one at a time, newest first.
//!
//! A majority write on a slow source must not hold up the lanes, so saving is a task of its own. Only the newest
//! durable position matters: one that is overtaken while a save is on its way is never sent. Before a destructive DDL
//! the loop asks for a save and waits for it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::checkpoint::{Checkpoint, CheckpointStore};
use crate::error::{Error, Kind, Result, Side};
use crate::model::Position;
use crate::sink::Sink;
use crate::supervise::Supervisor;

pub(super) struct Saver {
    jobs: mpsc::Sender<Checkpoint>,
    done: mpsc::Receiver<Result<Position>>,
    newest: Option<Checkpoint>,
    saving: bool,
    interval: Duration,
    saved_at: Option<Instant>,
}

impl Saver {
    pub(super) fn start(
        tasks: &mut Supervisor,
        store: Arc<dyn CheckpointStore>,
        sink: Arc<dyn Sink>,
        interval: Duration,
    ) -> Self {
        let (jobs, mut incoming) = mpsc::channel::<Checkpoint>(1);
        let (results, done) = mpsc::channel(1);
        tasks.spawn("checkpoint saver", async move {
            while let Some(checkpoint) = incoming.recv().await {
                let saved = async {
                    store.save(&checkpoint).await?;
                    sink.stored(checkpoint.position.needed_since()).await?;
                    Ok(checkpoint.position)
                };
                if results.send(saved.await).await.is_err() {
                    break;
                }
            }
            Ok(())
        });
        Self { jobs, done, newest: None, saving: false, interval, saved_at: None }
    }

    /// A newer durable position.
    pub(super) fn offer(&mut self, checkpoint: Checkpoint) {
        self.newest = Some(checkpoint);
    }

    /// Starts a save when the interval has passed and something new is there.
    pub(super) fn save_if_due(&mut self) {
        if self.saved_at.is_none_or(|at| at.elapsed() >= self.interval) {
            self.begin();
        }
    }

    /// The next finished save.
    pub(super) async fn saved(&mut self) -> Option<Result<Position>> {
        let saved = self.done.recv().await?;
        self.saving = false;
        self.saved_at = Some(Instant::now());
        Some(saved)
    }

    /// Saves the newest position now and waits for it. `None` when it was saved before.
    pub(super) async fn store_now(&mut self) -> Result<Option<Position>> {
        let mut last = None;
        loop {
            self.begin();
            if !self.saving {
                return Ok(last);
            }
            match self.saved().await {
                Some(saved) => last = Some(saved?),
                None => {
                    return Err(Error::new(Side::Store, Kind::Bug, "the checkpoint saver ended"));
                }
            }
        }
    }

    fn begin(&mut self) {
        if !self.saving
            && let Some(checkpoint) = self.newest.take()
        {
            self.saving = self.jobs.try_send(checkpoint).is_ok();
        }
    }
}
