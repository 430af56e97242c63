//! Where the stream stands, as numbers that can be written and read without a lock, and the lag that follows.
//!
//! Lag is easy to get wrong on a quiet source: the difference of two source times grows although nothing is missing,
//! and jumps by the length of the pause at the first write after it. So lag is 0 while nothing is outstanding, and
//! never more than the time since the last moment at which nothing was. The pipeline stores positions here; it never
//! reads them back to decide anything.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use crate::clock::Clock;
use crate::model::OpTime;

/// Source times of the stream's stations, `secs << 32 | inc`; 0 = not known yet.
#[derive(Debug)]
pub struct Positions {
    clock: Clock,
    newest: AtomicU64,
    read: AtomicU64,
    accepted: AtomicU64,
    durable: AtomicU64,
    checkpoint: AtomicU64,
    /// When nothing was outstanding for the last time, wall-clock milliseconds of this host; 0 = never yet.
    caught_up_ms: AtomicI64,
    /// When the source answered for the last time.
    heard_ms: AtomicI64,
}

/// A copy of all positions at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PositionsNow {
    /// Newest majority-committed position of the source, as last asked.
    pub newest: OpTime,
    /// Read and handed on: MongoShake's `lsn`.
    pub read: OpTime,
    /// Accepted by the target (w:1 reply): MongoShake's `lsn_ack`.
    pub accepted: OpTime,
    /// Durable on the target's majority.
    pub durable: OpTime,
    /// Stored: where a restart goes on. MongoShake's `lsn_ckpt`.
    pub checkpoint: OpTime,
    /// Age of the oldest change that is not durable, milliseconds.
    pub lag_ms: u64,
    /// Milliseconds since the source answered; `None` before its first answer.
    pub silent_ms: Option<u64>,
}

impl Positions {
    pub(super) fn new(clock: Clock) -> Self {
        Self {
            clock,
            newest: AtomicU64::new(0),
            read: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
            durable: AtomicU64::new(0),
            checkpoint: AtomicU64::new(0),
            caught_up_ms: AtomicI64::new(0),
            heard_ms: AtomicI64::new(0),
        }
    }

    /// The source's newest majority-committed position, whenever it was asked. Counts as a sign of life.
    pub fn set_newest(&self, time: OpTime) {
        self.newest.store(time.ts(), Ordering::Relaxed);
        self.heard();
    }

    /// The last entry of the newest batch that was read. Counts as a sign of life.
    pub fn set_read(&self, time: OpTime) {
        self.read.store(time.ts(), Ordering::Relaxed);
        self.heard();
    }

    /// The source answered, with or without entries.
    pub fn heard(&self) {
        self.heard_ms.store(self.clock.now_ms(), Ordering::Relaxed);
    }

    /// Everything up to here is accepted by the target.
    pub fn set_accepted(&self, time: OpTime) {
        self.accepted.store(time.ts(), Ordering::Relaxed);
    }

    /// Everything up to here is durable on the target: the watermark.
    pub fn set_durable(&self, time: OpTime) {
        self.durable.store(time.ts(), Ordering::Relaxed);
        let outstanding = self.outstanding_up_to();
        if outstanding > 0 && time.ts() >= outstanding {
            self.caught_up_ms.store(self.clock.now_ms(), Ordering::Relaxed);
        }
    }

    /// The position of the stored checkpoint.
    pub fn set_checkpoint(&self, time: OpTime) {
        self.checkpoint.store(time.ts(), Ordering::Relaxed);
    }

    fn outstanding_up_to(&self) -> u64 {
        self.newest.load(Ordering::Relaxed).max(self.read.load(Ordering::Relaxed))
    }

    /// All positions and what follows from them.
    #[must_use]
    pub fn now(&self) -> PositionsNow {
        let time = |cell: &AtomicU64| OpTime::from_ts(cell.load(Ordering::Relaxed));
        let heard = self.heard_ms.load(Ordering::Relaxed);
        let silent = self.clock.now_ms().saturating_sub(heard).max(0).unsigned_abs();
        PositionsNow {
            newest: time(&self.newest),
            read: time(&self.read),
            accepted: time(&self.accepted),
            durable: time(&self.durable),
            checkpoint: time(&self.checkpoint),
            lag_ms: self.lag_ms(),
            silent_ms: (heard > 0).then_some(silent),
        }
    }

    /// Age of the oldest change that is not durable, in milliseconds; 0 when nothing is outstanding.
    ///
    /// The smaller of two upper bounds: the distance between the source's newest entry and the durable position, and
    /// the time since this process last saw both equal.
    #[must_use]
    pub fn lag_ms(&self) -> u64 {
        let durable = self.durable.load(Ordering::Relaxed);
        let newest = self.outstanding_up_to();
        if newest == 0 || durable == 0 {
            // Nothing was read or nothing was ever durable: the stream has not begun; the copy has its own progress.
            return 0;
        }
        let now_ms = self.clock.now_ms();
        if durable >= newest {
            self.caught_up_ms.store(now_ms, Ordering::Relaxed);
            return 0;
        }
        let distance_ms = ((newest >> 32) - (durable >> 32)).saturating_mul(1000).max(1);
        match self.caught_up_ms.load(Ordering::Relaxed) {
            // A run that starts behind was never caught up: only the distance is known.
            0 => distance_ms,
            caught_up => distance_ms.min(now_ms.saturating_sub(caught_up).max(0).unsigned_abs()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn at(secs: u32) -> OpTime {
        OpTime::new(secs, 1, 1)
    }

    fn positions() -> (Positions, Arc<AtomicI64>) {
        let ms = Arc::new(AtomicI64::new(1_000_000_000));
        (Positions::new(Clock::Manual(Arc::clone(&ms))), ms)
    }

    #[test]
    fn an_idle_source_has_no_lag_however_old_its_last_entry() {
        let (p, ms) = positions();
        p.set_newest(at(500));
        p.set_read(at(500));
        p.set_durable(at(500));
        ms.fetch_add(3_600_000, Ordering::SeqCst);
        assert_eq!(p.lag_ms(), 0);
    }

    #[test]
    fn the_first_write_after_a_pause_is_as_old_as_it_is() {
        let (p, ms) = positions();
        p.set_newest(at(500));
        p.set_durable(at(500));
        ms.fetch_add(3_600_000, Ordering::SeqCst);
        assert_eq!(p.lag_ms(), 0);
        p.set_newest(at(4100));
        ms.fetch_add(40, Ordering::SeqCst);
        assert_eq!(p.lag_ms(), 40);
        p.set_durable(at(4100));
        assert_eq!(p.lag_ms(), 0);
    }

    #[test]
    fn a_run_that_starts_behind_shows_the_distance() {
        let (p, ms) = positions();
        p.set_durable(at(100));
        p.set_newest(at(700));
        ms.fetch_add(10, Ordering::SeqCst);
        assert_eq!(p.lag_ms(), 600_000);
    }
}
