//! How far the full copy has come, collection by collection.
//!
//! The planner announces every collection once and gets a handle; the copy's tasks add to the handle without a lock.
//! Counts of documents and bytes are the planner's estimates (`collStats`), so a finished collection counts as done
//! whatever the estimate said. Nothing here is stored: progress that survives a restart lives in the checkpoint.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::clock::Clock;

/// Where one collection's copy stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CollectionState {
    Waiting,
    Processing,
    Finished,
}

impl CollectionState {
    /// The name used in metrics and logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Processing => "processing",
            Self::Finished => "finished",
        }
    }
}

/// One collection's progress: shared by the tasks that copy it.
#[derive(Debug)]
pub struct CollectionProgress {
    documents_total: u64,
    bytes_total: u64,
    documents_done: AtomicU64,
    bytes_done: AtomicU64,
    state: AtomicU8,
}

impl CollectionProgress {
    /// The first partition is being read.
    pub fn start(&self) {
        self.state.fetch_max(1, Ordering::Relaxed);
    }

    /// Adds documents that the target accepted, or that an earlier run had copied.
    pub fn add(&self, documents: u64, bytes: u64) {
        self.documents_done.fetch_add(documents, Ordering::Relaxed);
        self.bytes_done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Every partition is copied.
    pub fn finish(&self) {
        self.state.store(2, Ordering::Relaxed);
    }

    fn now(&self) -> CollectionNow {
        CollectionNow {
            state: match self.state.load(Ordering::Relaxed) {
                0 => CollectionState::Waiting,
                1 => CollectionState::Processing,
                _ => CollectionState::Finished,
            },
            documents_total: self.documents_total,
            documents_done: self.documents_done.load(Ordering::Relaxed),
            bytes_total: self.bytes_total,
            bytes_done: self.bytes_done.load(Ordering::Relaxed),
        }
    }
}

/// A copy of one collection's progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CollectionNow {
    pub state: CollectionState,
    pub documents_total: u64,
    pub documents_done: u64,
    pub bytes_total: u64,
    pub bytes_done: u64,
}

/// Progress of the whole copy.
#[derive(Debug)]
pub struct CopyProgress {
    clock: Clock,
    collections: RwLock<BTreeMap<String, Arc<CollectionProgress>>>,
    began_ms: AtomicI64,
    ended_ms: AtomicI64,
}

/// A copy of the whole progress at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CopyNow {
    /// By source namespace, in order.
    pub collections: Vec<(String, CollectionNow)>,
    pub waiting: u64,
    pub processing: u64,
    pub finished: u64,
    pub documents_total: u64,
    pub documents_done: u64,
    pub bytes_total: u64,
    pub bytes_done: u64,
    /// Wall-clock milliseconds; 0 = did not begin / did not end.
    pub began_ms: i64,
    pub ended_ms: i64,
}

impl CopyProgress {
    pub(super) fn new(clock: Clock) -> Self {
        Self { clock, collections: RwLock::default(), began_ms: AtomicI64::new(0), ended_ms: AtomicI64::new(0) }
    }

    /// Announces a collection with its estimates. The same name again starts that collection over.
    pub fn plan(&self, namespace: &str, documents: u64, bytes: u64) -> Arc<CollectionProgress> {
        let _first = self.began_ms.compare_exchange(0, self.clock.now_ms(), Ordering::Relaxed, Ordering::Relaxed);
        let progress = Arc::new(CollectionProgress {
            documents_total: documents,
            bytes_total: bytes,
            documents_done: AtomicU64::new(0),
            bytes_done: AtomicU64::new(0),
            state: AtomicU8::new(0),
        });
        let mut collections = self.collections.write().unwrap_or_else(PoisonError::into_inner);
        collections.insert(namespace.to_owned(), Arc::clone(&progress));
        progress
    }

    /// The copy is over: stops the clock of its rate.
    pub fn end(&self) {
        self.ended_ms.store(self.clock.now_ms(), Ordering::Relaxed);
    }

    /// Everything at this moment.
    #[must_use]
    pub fn now(&self) -> CopyNow {
        let mut all = CopyNow {
            began_ms: self.began_ms.load(Ordering::Relaxed),
            ended_ms: self.ended_ms.load(Ordering::Relaxed),
            ..CopyNow::default()
        };
        let collections = self.collections.read().unwrap_or_else(PoisonError::into_inner);
        for (name, progress) in collections.iter() {
            let one = progress.now();
            match one.state {
                CollectionState::Waiting => all.waiting += 1,
                CollectionState::Processing => all.processing += 1,
                CollectionState::Finished => all.finished += 1,
            }
            all.documents_total += one.documents_total;
            all.documents_done += one.documents_done;
            all.bytes_total += one.bytes_total;
            all.bytes_done += one.bytes_done;
            all.collections.push((name.clone(), one));
        }
        all
    }
}

impl CopyNow {
    /// Collections in all.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.waiting + self.processing + self.finished
    }

    /// Share of collections that are finished, in percent: what MongoShake's `/progress` calls progress.
    #[must_use]
    pub fn percent_of_collections(&self) -> f64 {
        percent(self.finished, self.total())
    }

    /// Share of bytes that are copied, in percent, at most 100: estimates may be low.
    #[must_use]
    pub fn percent_of_bytes(&self) -> f64 {
        let done: u64 = self.collections.iter().map(|(_, one)| one.bytes_counted()).sum();
        percent(done, self.bytes_total)
    }
}

impl CollectionNow {
    /// Bytes that count as done: all of a finished collection, never more than the estimate.
    fn bytes_counted(&self) -> u64 {
        match self.state {
            CollectionState::Finished => self.bytes_total,
            CollectionState::Waiting | CollectionState::Processing => self.bytes_done.min(self.bytes_total),
        }
    }

    /// Share of documents that are copied, in percent, at most 100; 100 when finished.
    #[must_use]
    pub fn percent(&self) -> f64 {
        match self.state {
            CollectionState::Finished => 100.0,
            CollectionState::Waiting | CollectionState::Processing => {
                percent(self.documents_done, self.documents_total)
            }
        }
    }
}

/// `done` of `total` in percent; an empty total is complete.
fn percent(done: u64, total: u64) -> f64 {
    if total == 0 { 100.0 } else { (done as f64 * 100.0 / total as f64).min(100.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_states_follow_the_handles() {
        let copy = CopyProgress::new(Clock::System);
        let a = copy.plan("db.a", 100, 1000);
        let b = copy.plan("db.b", 50, 3000);
        copy.plan("db.c", 0, 0);
        a.start();
        a.add(120, 900);
        a.finish();
        b.start();
        b.add(25, 1500);
        let now = copy.now();
        assert_eq!((now.total(), now.waiting, now.processing, now.finished), (3, 1, 1, 1));
        assert_eq!((now.documents_done, now.documents_total), (145, 150));
        assert!((now.percent_of_bytes() - 62.5).abs() < 1e-9);
        assert!((now.percent_of_collections() - 33.333_333).abs() < 1e-3);
        assert!(now.began_ms > 0);
    }
}
