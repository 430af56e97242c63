//! The ordered end of a run: source, decoder, chain, lanes and barriers, the target's majority, the last checkpoint.
//!
//! Asked to stop, the reader takes nothing new and hands on what it has; the loop goes on until that has run dry. What
//! cannot go on without more of the source, or before its time has come, is left unacknowledged and said in the log.
//! This module has no deadline of its own: the assembly has one over the whole run, and every five seconds the log
//! names who it is that everybody waits for.

use std::time::Duration;

use tokio::time::Instant;

use super::Loop;
use super::reader::{CHAIN, READER};
use crate::error::Result;
use crate::metrics::Status;

/// How often the log names who is late.
const NOTICE_EVERY: Duration = Duration::from_secs(5);

/// The ticks of the log lines about whoever is late.
#[derive(Debug)]
pub(super) struct Notice {
    next: Option<Instant>,
}

impl Notice {
    /// No notice is due before [`Notice::begin`].
    pub(super) fn off() -> Self {
        Self { next: None }
    }

    /// The first notice is due in five seconds.
    pub(super) fn begin() -> Self {
        Self { next: Some(Instant::now() + NOTICE_EVERY) }
    }

    /// Waits until the next notice is due; for ever when none is to come. Cancel safe.
    pub(super) async fn due(&mut self) {
        match self.next {
            Some(next) => tokio::time::sleep_until(next).await,
            None => std::future::pending().await,
        }
        self.next = Some(Instant::now() + NOTICE_EVERY);
    }
}

/// How far the shutdown has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Drain {
    /// It has not begun.
    No,
    /// What was read is still coming.
    Coming,
    /// The chain has closed its channel: all that comes has come, if reader and chain ended well.
    Dry,
    /// What still comes is not taken any more.
    Cut,
}

impl Drain {
    /// Whether batches are taken.
    pub(super) fn takes(self) -> bool {
        match self {
            Self::No | Self::Coming => true,
            Self::Dry | Self::Cut => false,
        }
    }
}

impl Loop {
    /// The source stops by itself (it sees the same token): from here on only what was read is finished.
    pub(super) fn begin_drain(&mut self) {
        self.drain = Drain::Coming;
        self.notice = Notice::begin();
        self.core.drain();
        self.leave_delayed();
        self.show_late();
    }

    /// A change whose time has not come is not waited for, and so is nothing behind it.
    pub(super) fn leave_delayed(&mut self) {
        if self.drain == Drain::No {
            return;
        }
        if let Some(open) = self.admitting.take() {
            let changes = open.rest.len() + 1;
            tracing::info!(changes, "delayed changes are left to the next start, with what was read behind them");
            self.cut();
        }
    }

    /// Nothing more is taken: whoever hands on batches sees the channel closed.
    fn cut(&mut self) {
        self.batches.close();
        self.drain = Drain::Cut;
    }

    /// A task ended. The channels of a fault close before its error arrives: what has run dry is only believed when
    /// everything before the loop has ended well.
    pub(super) fn task_ended(&mut self, name: &'static str, ended: Result<()>) -> Result<()> {
        ended.map_err(|e| e.context(name))?;
        if matches!(name, READER | CHAIN) {
            self.before_loop = self.before_loop.saturating_sub(1);
        }
        Ok(())
    }

    /// The chain has closed its channel.
    pub(super) fn has_run_dry(&mut self) {
        if self.drain == Drain::No {
            self.begin_drain();
        }
        self.drain = Drain::Dry;
    }

    /// Whether all that a shutdown waits for has come back.
    pub(super) fn is_drained(&mut self) -> bool {
        // Everything waits behind a copy that is left, memory too: the reader would never run dry.
        if self.drain == Drain::Coming && self.core.left().copies > 0 {
            self.cut();
        }
        match self.drain {
            Drain::No | Drain::Coming => false,
            Drain::Dry => self.before_loop == 0 && !self.core.is_busy(),
            Drain::Cut => !self.core.is_busy(),
        }
    }

    /// What stays for the next start, in the log.
    pub(super) fn say_what_is_left(&self) {
        let left = self.core.left();
        if !left.is_nothing() {
            tracing::info!(
                colliding_documents = left.parked,
                ddl_for_the_mark = left.postponed,
                copies = left.copies,
                held_changes = left.held,
                "left to the next start, the checkpoint stands before it"
            );
        }
    }

    /// Keeps who is late where the end of the process finds it.
    pub(super) fn show_late(&self) {
        if self.drain == Drain::No {
            return;
        }
        let mut late = self.core.outstanding();
        if self.drain == Drain::Coming {
            late.insert(0, "the reader and the plugin chain".to_owned());
        }
        self.status.set_late(late);
    }

    /// The log line about who is late.
    pub(super) fn say_who_is_late(&self) {
        self.show_late();
        say_late(&self.status);
    }

    /// Waits until all that is accepted is durable, and stores it: what must be true before a destructive DDL, and at
    /// the end.
    pub(super) async fn store_now(&mut self) -> Result<()> {
        self.after_core()?;
        let (mut notice, status) = (Notice::begin(), self.status.clone());
        while self.durable.is_waiting() {
            status.set_late(vec![self.durable.shown()]);
            let durability = noticing(&mut notice, &status, self.sink.durability()).await?;
            self.reached(durability)?;
            if self.durable.is_waiting() {
                noticing(&mut notice, &status, tokio::time::sleep(Duration::from_millis(5))).await;
            }
        }
        status.set_late(vec!["the checkpoint store".to_owned()]);
        let saved = noticing(&mut notice, &status, self.saver.store_now()).await?;
        status.set_late(Vec::new());
        if let Some(position) = saved {
            self.saved(position);
        }
        Ok(())
    }
}

/// Waits for `work`, and names it in the log while it takes long.
async fn noticing<T>(notice: &mut Notice, status: &Status, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = notice.due() => say_late(status),
        }
    }
}

fn say_late(status: &Status) {
    let late = status.late().join(", ");
    tracing::warn!(late, "still waiting");
}
