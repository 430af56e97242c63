//! Turns completions that arrive in any order into one position that is safe to store.
//!
//! A lane may finish changes of batch 7 before those of batch 5. The tracker keeps one slot a batch, in source order,
//! counts what is still open in each, and moves the watermark over the finished prefix only. It never stores
//! anything and knows nothing of sinks; see `checkpoint` and `sink`.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::budget::Permit;
use crate::error::{Error, Kind, Result, Side};
use crate::model::Position;
use crate::schedule::lane::Acks;

/// Number of a batch's slot: the batch's `seq`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(u64);

#[derive(Debug)]
struct Slot {
    open: usize,
    /// Of the open ones, those that wait aside with bytes of their own.
    parked: usize,
    last: Position,
    /// Given back when the batch's own changes are done, even while earlier batches are not.
    permit: Option<Arc<Permit>>,
}

impl Slot {
    fn give_back(&mut self) {
        if self.open <= self.parked {
            self.permit = None;
        }
    }
}

/// Counts open changes a batch and knows the finished prefix.
#[derive(Debug, Default)]
pub struct AckTracker {
    slots: VecDeque<Slot>,
    /// `seq` of the first slot in `slots`.
    base: u64,
    watermark: Option<Position>,
}

impl AckTracker {
    /// Opens the slot of batch `seq` with `open` changes to wait for. Slots are opened in order, without gaps.
    ///
    /// # Errors
    /// `Bug` when a batch is missing: its position would be passed without it.
    pub fn open(&mut self, seq: u64, open: usize, last: Position, permit: Arc<Permit>) -> Result<SlotId> {
        let expected = self.base + self.slots.len() as u64;
        if seq != expected {
            return Err(bug(format!("batch {seq} came where {expected} was expected")));
        }
        let permit = (open > 0).then_some(permit);
        self.slots.push_back(Slot { open, parked: 0, last, permit });
        self.advance();
        Ok(SlotId(seq))
    }

    /// Marks `count` changes of a slot as accepted by the sink or dropped on purpose.
    ///
    /// # Errors
    /// `Bug` when the slot is gone or has fewer open changes: something was acknowledged twice.
    pub fn resolve(&mut self, slot: SlotId, count: usize) -> Result<()> {
        let at = slot.0.checked_sub(self.base).and_then(|at| usize::try_from(at).ok());
        let Some(entry) = at.and_then(|at| self.slots.get_mut(at)) else {
            return Err(bug(format!("batch {} was acknowledged after it had finished", slot.0)));
        };
        entry.open = entry
            .open
            .checked_sub(count)
            .ok_or_else(|| bug(format!("batch {} was acknowledged more often than it has changes", slot.0)))?;
        entry.give_back();
        self.advance();
        Ok(())
    }

    /// Notes that changes wait aside (`aside`), or wait in line again. A batch of which only such changes are left
    /// gives its memory back: they own their bytes, and could otherwise hold up the reading that would free them.
    ///
    /// # Errors
    /// `Bug` when a slot is gone or more come back than were aside.
    pub fn park(&mut self, acks: &Acks, aside: bool) -> Result<()> {
        for (slot, count) in acks.iter() {
            let at = slot.0.checked_sub(self.base).and_then(|at| usize::try_from(at).ok());
            let entry = at.and_then(|at| self.slots.get_mut(at));
            let entry = entry.ok_or_else(|| bug(format!("a change of the finished batch {} was parked", slot.0)))?;
            let parked = if aside { entry.parked.checked_add(count) } else { entry.parked.checked_sub(count) };
            entry.parked = parked.ok_or_else(|| bug(format!("batch {} has no parked changes", slot.0)))?;
            entry.give_back();
        }
        Ok(())
    }

    /// The position up to which everything is accepted, since the last call; `None` if it did not move.
    pub fn take_watermark(&mut self) -> Option<Position> {
        self.watermark.take()
    }

    /// Batches that are not finished yet.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.slots.len()
    }

    fn advance(&mut self) {
        while self.slots.front().is_some_and(|slot| slot.open == 0) {
            if let Some(done) = self.slots.pop_front() {
                self.watermark = Some(done.last);
                self.base += 1;
            }
        }
    }
}

fn bug(message: String) -> Error {
    Error::new(Side::Internal, Kind::Bug, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::OpTime;

    fn at(inc: u32) -> Position {
        Position::Oplog(OpTime::new(1, inc, 1))
    }

    fn open(tracker: &mut AckTracker, seq: u64, n: usize) -> SlotId {
        tracker.open(seq, n, at(seq as u32), Arc::new(Permit::none())).unwrap()
    }

    #[test]
    fn moves_over_the_finished_prefix_only() {
        let mut tracker = AckTracker::default();
        let (a, b) = (open(&mut tracker, 0, 2), open(&mut tracker, 1, 1));
        tracker.resolve(b, 1).unwrap();
        assert_eq!(tracker.take_watermark(), None);
        tracker.resolve(a, 1).unwrap();
        assert_eq!(tracker.take_watermark(), None);
        tracker.resolve(a, 1).unwrap();
        assert_eq!(tracker.take_watermark(), Some(at(1)));
        assert_eq!(tracker.outstanding(), 0);
    }

    #[tokio::test]
    async fn a_finished_batch_gives_its_memory_back_behind_an_open_one() {
        let budget = crate::budget::Budget::new(1 << 20);
        let mut tracker = AckTracker::default();
        open(&mut tracker, 0, 1);
        let permit = Arc::new(budget.acquire(1 << 19).await);
        let second = tracker.open(1, 1, at(1), permit).unwrap();
        tracker.resolve(second, 1).unwrap();
        assert_eq!(budget.held_bytes(), 0);
    }

    #[tokio::test]
    async fn a_batch_with_only_parked_changes_holds_no_memory() {
        let budget = crate::budget::Budget::new(1 << 20);
        let mut tracker = AckTracker::default();
        let slot = tracker.open(0, 2, at(0), Arc::new(budget.acquire(1 << 19).await)).unwrap();
        tracker.park(&Acks::one(slot), true).unwrap();
        assert!(budget.held_bytes() > 0);
        tracker.resolve(slot, 1).unwrap();
        assert_eq!(budget.held_bytes(), 0);
        assert_eq!(tracker.take_watermark(), None);
        tracker.park(&Acks::one(slot), false).unwrap();
        tracker.resolve(slot, 1).unwrap();
        assert_eq!(tracker.take_watermark(), Some(at(0)));
    }

    #[test]
    fn an_empty_batch_moves_the_position() {
        let mut tracker = AckTracker::default();
        open(&mut tracker, 0, 0);
        assert_eq!(tracker.take_watermark(), Some(at(0)));
    }

    #[test]
    fn refuses_what_would_acknowledge_twice_or_skip() {
        let mut tracker = AckTracker::default();
        let a = open(&mut tracker, 0, 1);
        let _b = open(&mut tracker, 1, 1);
        tracker.resolve(a, 1).unwrap();
        assert!(tracker.resolve(a, 1).is_err());
        assert!(tracker.resolve(_b, 2).is_err());
        assert!(tracker.open(7, 1, at(7), Arc::new(Permit::none())).is_err());
    }
}
