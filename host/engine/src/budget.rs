//! The memory budget: every batch between the source's socket and its acknowledgement holds a permit in bytes.
//!
//! One rule makes the back-pressure of the whole engine: a source asks for a permit before it reads on, and a batch
//! gives its permit back when nothing holds it any more. When the sink is slow, the permits are out and the source
//! waits. There is no other throttle and no queue that can grow beyond the budget.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Permits are counted in units of this many bytes, so that the semaphore's 32-bit count covers any budget.
const UNIT_BYTES: usize = 1024;

/// A shared budget of bytes.
#[derive(Debug, Clone)]
pub struct Budget {
    semaphore: Arc<Semaphore>,
    units: usize,
    held: Arc<AtomicUsize>,
}

impl Budget {
    /// A budget of `bytes` (at least one unit of 1 KiB).
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        let units = (bytes / UNIT_BYTES).clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        Self { semaphore: Arc::new(Semaphore::new(units)), units, held: Arc::default() }
    }

    /// Waits until `bytes` are free and takes them. A request above the whole budget takes the whole budget, so one
    /// large batch passes alone instead of never.
    pub async fn acquire(&self, bytes: usize) -> Permit {
        let units = bytes.div_ceil(UNIT_BYTES).clamp(1, self.units);
        // The semaphore is never closed; a closed one would only mean that nothing limits us any more.
        let permit = Arc::clone(&self.semaphore).acquire_many_owned(units as u32).await.ok();
        self.held.fetch_add(units, Ordering::Relaxed);
        Permit { permit, units, held: Arc::clone(&self.held), joined: Vec::new() }
    }

    /// The budget in `count` equal parts, for readers that hold a reply until the others have one too: were the budget
    /// shared, the last one could wait for memory that the others hold until it has read. [`Budget::held_bytes`] counts
    /// what all parts hold.
    #[must_use]
    pub fn parts(&self, count: usize) -> Vec<Self> {
        let bytes = self.bytes() / count.max(1);
        (0..count).map(|_| Self { held: Arc::clone(&self.held), ..Self::new(bytes) }).collect()
    }

    /// The whole budget in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.units * UNIT_BYTES
    }

    /// Bytes that are out at this moment.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.held.load(Ordering::Relaxed) * UNIT_BYTES
    }
}

/// Bytes taken from a [`Budget`], given back when dropped.
#[derive(Debug)]
pub struct Permit {
    permit: Option<OwnedSemaphorePermit>,
    units: usize,
    held: Arc<AtomicUsize>,
    joined: Vec<Permit>,
}

impl Permit {
    /// A permit that holds nothing: for heartbeats and tests.
    #[must_use]
    pub fn none() -> Self {
        Self { permit: None, units: 0, held: Arc::default(), joined: Vec::new() }
    }

    /// The bytes this permit holds, rounded up to the unit.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.units * UNIT_BYTES + self.joined.iter().map(Self::bytes).sum::<usize>()
    }

    /// Gives `other` back together with this one.
    pub fn join(&mut self, other: Self) {
        self.joined.push(other);
    }

    /// Corrects an estimate when the true size is known, without waiting.
    ///
    /// What was taken too much is given back. What is missing is taken if it is free; the rest overshoots the budget
    /// until the permit is dropped (waiting here while holding memory could make two readers wait for each other),
    /// so an estimate should be the size of the last reply. The overshoot counts in [`Budget::held_bytes`].
    pub fn resize(&mut self, bytes: usize) {
        let Some(permit) = &mut self.permit else {
            return;
        };
        let units = bytes.div_ceil(UNIT_BYTES).max(1);
        let taken = permit.num_permits();
        if units < taken {
            drop(permit.split(taken - units));
        } else if let Ok(missing) = u32::try_from(units - taken) {
            let free = u32::try_from(permit.semaphore().available_permits()).unwrap_or(u32::MAX);
            let more = Arc::clone(permit.semaphore()).try_acquire_many_owned(missing.min(free));
            if let Ok(more) = more {
                permit.merge(more);
            }
        }
        if units >= self.units {
            self.held.fetch_add(units - self.units, Ordering::Relaxed);
        } else {
            self.held.fetch_sub(self.units - units, Ordering::Relaxed);
        }
        self.units = units;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.held.fetch_sub(self.units, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waits_for_returned_bytes() {
        let budget = Budget::new(10 * 1024);
        let first = budget.acquire(8 * 1024).await;
        let waiting = budget.acquire(4 * 1024);
        tokio::pin!(waiting);
        assert!(futures_util::poll!(&mut waiting).is_pending());
        drop(first);
        assert_eq!(waiting.await.bytes(), 4 * 1024);
    }

    #[tokio::test]
    async fn an_estimate_is_corrected_both_ways() {
        let budget = Budget::new(10 * 1024);
        let mut first = budget.acquire(8 * 1024).await;
        first.resize(2 * 1024);
        assert_eq!(budget.held_bytes(), 2 * 1024);
        let second = budget.acquire(6 * 1024).await;
        first.resize(7 * 1024);
        assert_eq!(budget.held_bytes(), 13 * 1024, "the overshoot is counted");
        drop(first);
        drop(second);
        assert_eq!(budget.held_bytes(), 0);
        assert_eq!(budget.acquire(10 * 1024).await.bytes(), 10 * 1024);
    }

    #[tokio::test]
    async fn a_request_above_the_budget_takes_all_of_it() {
        let budget = Budget::new(4 * 1024);
        let all = budget.acquire(1 << 30).await;
        assert_eq!(budget.held_bytes(), 4 * 1024);
        drop(all);
        assert_eq!(budget.held_bytes(), 0);
    }
}
