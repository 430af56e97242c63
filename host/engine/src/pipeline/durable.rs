//! From accepted to durable: which accepted position the target's majority has reached.
//!
//! A `w: 1` reply says that the primary has the write; only a majority-committed operation time says that no
//! fail-over can take it away (correctness.md §7). This queue remembers which operation time each accepted position
//! depends on. It asks nobody and stores nothing; the loop feeds it.

use std::collections::VecDeque;

use crate::model::{OpTime, Position};
use crate::sink::Durability;

/// Accepted positions that wait for the target's majority.
#[derive(Debug, Default)]
pub struct DurableQueue {
    waiting: VecDeque<(Position, OpTime)>,
    /// The newest operation time that any accepted write had.
    newest_write: OpTime,
    /// The term in which the target's writes were accepted, as last polled.
    term: Option<i64>,
    /// How far the majority had come at the last poll.
    majority: OpTime,
    /// A write was accepted by a primary of another term than the polled one.
    mixed_terms: bool,
    /// A loss was reported: nothing that waited may be called durable any more.
    lost: bool,
}

/// The target changed its primary while accepted writes were not yet majority-committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LostLeader;

impl DurableQueue {
    /// A queue for a run that begins while the target stands so. What earlier runs wrote may not be durable yet, and
    /// the first position depends on it.
    #[must_use]
    pub fn begin(now: Durability) -> Self {
        Self { newest_write: now.newest, term: Some(now.term), majority: now.majority, ..Self::default() }
    }

    /// A write was accepted at this operation time of the target (term -1 where the reply named none).
    pub fn wrote(&mut self, operation_time: OpTime) {
        if let Some(term) = self.term
            && operation_time.term >= 0
            && operation_time.term != term
        {
            self.mixed_terms = true;
        }
        self.newest_write = self.newest_write.max(operation_time);
    }

    /// Everything up to `position` is accepted.
    pub fn accepted(&mut self, position: Position) {
        match self.waiting.back_mut() {
            // Positions between two polls that depend on the same write are one.
            Some((last, time)) if *time == self.newest_write => *last = position,
            Some(_) | None => self.waiting.push_back((position, self.newest_write)),
        }
    }

    /// The target's majority has come this far. Returns the newest position that is durable now, if it moved.
    /// `in_flight`: something was sent to the target that has not been answered.
    ///
    /// # Errors
    /// [`LostLeader`] when the primary's term changed while writes were waiting or on their way: they may be rolled
    /// back, so the pipeline must go back to the last durable position. A write that is on its way may be answered by
    /// the former primary yet, with a time below what the new one's majority has, and not every reply names its term.
    pub fn reached(&mut self, durability: Durability, in_flight: bool) -> Result<Option<Position>, LostLeader> {
        let same_term = self.term.is_none_or(|term| term == durability.term);
        let at_stake = in_flight || !self.waiting.is_empty() || self.newest_write.ts() > self.majority.ts();
        self.term = Some(durability.term);
        self.majority = durability.majority;
        if self.lost || self.mixed_terms || (!same_term && at_stake) {
            self.lost = true;
            self.waiting.clear();
            return Err(LostLeader);
        }
        let mut durable = None;
        while self.waiting.front().is_some_and(|(_, time)| time.ts() <= durability.majority.ts()) {
            durable = self.waiting.pop_front().map(|(position, _)| position);
        }
        Ok(durable)
    }

    /// Whether accepted positions wait.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// For who is late: how far the majority has come, and the write that the oldest waiting position depends on.
    #[must_use]
    pub fn shown(&self) -> String {
        let needed = self.waiting.front().map_or(self.majority, |(_, time)| *time);
        format!("the target's majority (it has {}, {needed} is waited for)", self.majority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::newest_write;

    fn at(inc: u32) -> Position {
        Position::Oplog(OpTime::new(1, inc, 1))
    }

    fn majority(inc: u32, term: i64) -> Durability {
        Durability { majority: OpTime::new(9, inc, term), newest: OpTime::new(9, inc, term), term }
    }

    #[test]
    fn a_position_waits_for_the_majority_of_its_newest_write() {
        let mut queue = DurableQueue::default();
        queue.wrote(OpTime::new(9, 5, 1));
        queue.accepted(at(1));
        queue.wrote(OpTime::new(9, 8, 1));
        queue.accepted(at(2));
        assert_eq!(queue.reached(majority(4, 1), false), Ok(None));
        assert_eq!(queue.reached(majority(7, 1), false), Ok(Some(at(1))));
        assert_eq!(queue.reached(majority(8, 1), false), Ok(Some(at(2))));
    }

    #[test]
    fn a_new_primary_under_waiting_writes_is_a_loss() {
        let mut queue = DurableQueue::default();
        queue.wrote(OpTime::new(9, 5, 1));
        queue.accepted(at(1));
        assert_eq!(queue.reached(majority(4, 1), false), Ok(None));
        assert_eq!(queue.reached(majority(9, 2), false), Err(LostLeader));
        assert_eq!(queue.reached(majority(9, 2), false), Err(LostLeader), "a loss is final for this run");
    }

    #[test]
    fn a_write_of_an_unfinished_batch_is_at_stake_too() {
        let mut queue = DurableQueue::default();
        assert_eq!(queue.reached(majority(1, 1), false), Ok(None));
        queue.wrote(OpTime::new(9, 5, 1));
        assert_eq!(queue.reached(majority(9, 2), false), Err(LostLeader));
    }

    #[test]
    fn a_reply_of_the_former_primary_that_comes_late_is_a_loss() {
        let mut queue = DurableQueue::default();
        assert_eq!(queue.reached(majority(1, 2), false), Ok(None));
        queue.wrote(OpTime::new(9, 5, 1));
        queue.accepted(at(1));
        assert_eq!(queue.reached(majority(9, 2), false), Err(LostLeader));
    }

    #[test]
    fn a_commit_of_the_former_primary_that_comes_after_the_new_term_was_seen_is_a_loss() {
        let mut queue = DurableQueue::default();
        assert_eq!(queue.reached(majority(4, 1), false), Ok(None));
        // Nothing waits when the new primary shows itself, but a commit is on its way to the old one.
        let seen = queue.reached(majority(9, 2), true);
        // It is answered with a time that the new history has passed, and without a term.
        queue.wrote(OpTime::new(9, 7, -1));
        queue.accepted(at(1));
        assert_eq!((seen, queue.reached(majority(9, 2), false)), (Err(LostLeader), Err(LostLeader)));
    }

    #[test]
    fn parts_of_a_flush_under_two_primaries_are_a_loss() {
        let mut queue = DurableQueue::default();
        assert_eq!(queue.reached(majority(4, 2), false), Ok(None));
        let (former, new) = (Some(OpTime::new(9, 5, 1)), Some(OpTime::new(9, 6, 2)));
        queue.wrote(newest_write(former, new).unwrap());
        queue.accepted(at(1));
        assert_eq!(queue.reached(majority(9, 2), false), Err(LostLeader));
    }

    #[test]
    fn what_an_earlier_run_wrote_is_at_stake_from_the_first_moment() {
        let now = Durability { newest: OpTime::new(9, 7, 1), ..majority(3, 1) };
        let mut queue = DurableQueue::begin(now);
        queue.accepted(at(1));
        assert_eq!(queue.reached(majority(6, 1), false), Ok(None));
        assert_eq!(queue.reached(majority(7, 1), false), Ok(Some(at(1))));
        let mut queue = DurableQueue::begin(now);
        assert_eq!(queue.reached(majority(9, 2), false), Err(LostLeader));
    }

    #[test]
    fn a_dropped_change_needs_no_write() {
        let mut queue = DurableQueue::default();
        queue.accepted(at(1));
        assert_eq!(queue.reached(majority(0, 1), false), Ok(Some(at(1))));
    }
}
