//! What the sink met, counted: the rare roads it took and the documents it disagreed about.
//!
//! The counts of one sink are for its tests; what an operator watches goes to the process's series at the same
//! moment, because a sink lives only from one rewind to the next. Nothing is logged here.

use std::sync::atomic::{AtomicU64, Ordering};

use oplogue_engine::metrics::{ConflictNow, Metrics};

/// Live counters, shared by all lanes.
#[derive(Debug, Default)]
pub struct Counters {
    pub(crate) fast: AtomicU64,
    pub(crate) exact: AtomicU64,
    pub(crate) refetched: AtomicU64,
    pub(crate) missing: AtomicU64,
    pub(crate) conflicts: AtomicU64,
    pub(crate) repeated: AtomicU64,
    pub(crate) superseded: AtomicU64,
    pub(crate) left_out: AtomicU64,
    pub(crate) together: AtomicU64,
    pub(crate) rolled_back: AtomicU64,
    pub(crate) moved: AtomicU64,
    pub(crate) refused_ddl: AtomicU64,
    /// The process's series, when somebody watches.
    pub(crate) series: Option<Metrics>,
}

/// The counters at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SinkCounts {
    /// Updates written as classic modifiers.
    pub fast: u64,
    /// Updates written as a pipeline.
    pub exact: u64,
    /// Documents read whole from the source.
    pub refetched: u64,
    /// Updates, outside of overlap, whose document was not there.
    pub missing: u64,
    /// Changes that the target refused for good, and inserts whose document stood there already and was kept.
    pub conflicts: u64,
    /// Statements written a second time, in another form or after a collision.
    pub repeated: u64,
    /// Writes, in overlap, of collections that a later DDL dropped already.
    pub superseded: u64,
    /// Inserts, in overlap, into full capped collections of documents that the source has no more.
    pub left_out: u64,
    /// Flushes written in one transaction.
    pub together: u64,
    /// Such transactions that came to nothing: their statements went apart.
    pub rolled_back: u64,
    /// Documents that were deleted where they stood because they go to another value of the target's shard key.
    pub moved: u64,
    /// Commands, and single indexes of them, that the target refused and that were left out.
    pub refused_ddl: u64,
}

impl Counters {
    pub(crate) fn one_conflict(&self, conflict: ConflictNow) {
        count(&self.conflicts, 1);
        if let Some(series) = &self.series {
            series.sink.conflicts.of(conflict.kind).inc();
            series.sink.rulings.of(conflict.ruling).inc();
            series.sink.recent_conflicts.note(conflict);
        }
    }

    pub(crate) fn one_refused_ddl(&self) {
        count(&self.refused_ddl, 1);
        self.series.iter().for_each(|series| {
            series.sink.ddl_refused.inc();
        });
    }

    pub(crate) fn one_missing(&self) {
        count(&self.missing, 1);
        self.series.iter().for_each(|series| {
            series.sink.missing.inc();
        });
    }

    pub(crate) fn one_refetched(&self) {
        count(&self.refetched, 1);
        self.series.iter().for_each(|series| {
            series.sink.refetched.inc();
        });
    }

    pub(crate) fn one_transaction(&self, committed: bool) {
        count(if committed { &self.together } else { &self.rolled_back }, 1);
        self.series.iter().for_each(|series| {
            let counter = if committed { &series.sink.transactions } else { &series.sink.transactions_rolled_back };
            counter.inc();
        });
    }

    pub(crate) fn read(&self) -> SinkCounts {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        SinkCounts {
            fast: get(&self.fast),
            exact: get(&self.exact),
            refetched: get(&self.refetched),
            missing: get(&self.missing),
            conflicts: get(&self.conflicts),
            repeated: get(&self.repeated),
            superseded: get(&self.superseded),
            left_out: get(&self.left_out),
            together: get(&self.together),
            rolled_back: get(&self.rolled_back),
            moved: get(&self.moved),
            refused_ddl: get(&self.refused_ddl),
        }
    }
}

/// Adds to a counter.
pub(crate) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}
