//! Transactions of the source that become visible on the target as one (`incr_sync.transaction = "atomic"`).
//!
//! Such a transaction is a barrier over everything: it is written when all that came before is, by one command for all
//! of it, and what comes later waits. What arrives while the barrier drains joins it, further transactions and plain
//! changes alike, so that a stream of transactions costs one command for many of them; only what was made at another
//! cluster waits for a barrier of its own, because a transaction of the target carries one mark. In overlap a document may
//! already hold later changes, so nothing is ever visible as one there: those are spread. Nothing here writes.

use std::collections::VecDeque;

use super::fence::{FenceId, Phase, Purpose};
use super::{Command, Core, bug};
use crate::ack::SlotId;
use crate::error::{Kind, Result};
use crate::model::Change;
use crate::schedule::lane::{Acks, Address};
use crate::schedule::{Lane, Scope};
use crate::sink::{FlushReport, Refusal, Write};

/// What joins a barrier that drains: no more changes and bytes than these together. One transaction may be larger.
const JOINED_CHANGES_MAX: usize = 4096;
const JOINED_BYTES_MAX: usize = 8 << 20;

/// The changes of one barrier.
#[derive(Debug, Default)]
pub(super) struct Whole {
    changes: Vec<(SlotId, Change)>,
    bytes: usize,
    /// What each statement of the command stands for, once it is out.
    notes: Vec<(Address, Acks)>,
}

impl Whole {
    /// Whether these may go along. A transaction of the target has one mark, so all come from one cluster.
    fn takes(&self, changes: &[Change]) -> bool {
        let bytes: usize = changes.iter().map(Change::bytes).sum();
        let origin = self.changes.first().map(|(_, first)| first.origin);
        self.changes.len() + changes.len() <= JOINED_CHANGES_MAX
            && self.bytes + bytes <= JOINED_BYTES_MAX
            && changes.iter().all(|change| origin.is_none_or(|origin| origin == change.origin))
    }

    /// The changes, to be written.
    pub(super) fn take(&mut self) -> Vec<(SlotId, Change)> {
        std::mem::take(&mut self.changes)
    }

    fn push(&mut self, slot: SlotId, change: Change) {
        self.bytes += change.bytes();
        self.changes.push((slot, change));
    }
}

impl Core {
    /// The changes of a transaction that shall become visible together, of an open batch, without DDL.
    ///
    /// # Errors
    /// As [`Core::batch`].
    pub fn offer_whole(&mut self, slot: SlotId, changes: Vec<Change>) -> Result<()> {
        if changes.iter().any(|change| change.time.ts() <= self.options.overlap_until.ts()) {
            self.counts.split += 1;
            return changes.into_iter().try_for_each(|change| self.offer(slot, change));
        }
        self.reach_mark();
        self.admit_whole(slot, changes);
        Ok(())
    }

    pub(super) fn admit_whole(&mut self, slot: SlotId, changes: Vec<Change>) {
        if let Some(whole) = self.draining_whole(&changes) {
            changes.into_iter().for_each(|change| whole.push(slot, change));
        } else if !self.fences.is_empty() || !self.held.changes.is_empty() {
            self.held.push_whole(slot, changes);
        } else {
            let mut whole = Whole::default();
            changes.into_iter().for_each(|change| whole.push(slot, change));
            self.raise(Scope::Cluster, Purpose::Whole(whole));
        }
    }

    /// Lets a plain change that would wait behind a draining barrier go with it. Gives it back when it may not: a
    /// collection that keeps its order may be a capped one, which no transaction can write.
    pub(super) fn join_whole(&mut self, slot: SlotId, change: Change) -> Option<Change> {
        let plain = change.ddl.is_none()
            && change.time.ts() > self.options.overlap_until.ts()
            && !self.keeps_order(change.target, change.collection);
        if !plain || matches!(self.fences.last(), Some(fence) if !matches!(fence.purpose, Purpose::Whole(_))) {
            return Some(change);
        }
        // Buckets of time-series and the like are written by no transaction either.
        if self.namespaces.name(change.target).collection().starts_with("system.") {
            return Some(change);
        }
        match self.draining_whole(std::slice::from_ref(&change)) {
            Some(whole) => {
                whole.push(slot, change);
                None
            }
            None => Some(change),
        }
    }

    /// The newest barrier, while it drains and takes these, and nothing is held that would be overtaken.
    fn draining_whole(&mut self, changes: &[Change]) -> Option<&mut Whole> {
        if !self.held.changes.is_empty() {
            return None;
        }
        let fence = self.fences.last_mut().filter(|fence| fence.phase == Phase::Draining)?;
        match &mut fence.purpose {
            Purpose::Whole(whole) if whole.takes(changes) => Some(whole),
            Purpose::Whole(_) | Purpose::Ddl { .. } | Purpose::Settle | Purpose::Mark => None,
        }
    }

    /// Everything before is written: the barrier's own changes become one command.
    pub(super) fn fire_whole(&mut self, id: FenceId, changes: Vec<(SlotId, Change)>) -> Result<()> {
        // A lane of its own merges what can be merged and keeps the rest in waves of distinct documents.
        let mut lane = Lane::default();
        for (slot, change) in changes {
            let keep_order = self.keeps_order(change.target, change.collection);
            let mut pending = self.pending(slot, change)?;
            pending.write.in_order = keep_order;
            if lane.push(pending, keep_order) {
                self.counts.coalesced += 1;
            }
        }
        let (mut waves, mut notes) = (Vec::new(), Vec::new());
        while let Some(writes) = lane.start_flush() {
            waves.push(writes);
            notes.extend(lane.finish_flush());
        }
        let fence = self.fences.iter_mut().find(|fence| fence.id == id).ok_or_else(|| bug("unknown fence".into()))?;
        fence.purpose = Purpose::Whole(Whole { notes, ..Whole::default() });
        self.commands.push(Command::Whole { fence: id, waves });
        Ok(())
    }

    /// The command of a barrier is done. `report` speaks of the writes of all waves, one behind the other.
    ///
    /// # Errors
    /// `Conflict` when a unique key is taken even so; `CannotApply` when the target refuses a write for good; `Bug`.
    pub fn whole_done(&mut self, id: FenceId, waves: Vec<Vec<Write>>, report: &FlushReport) -> Result<()> {
        let Purpose::Whole(whole) = self.lower(id)?.purpose else {
            return Err(bug("another fence was to be written whole".into()));
        };
        let writes: VecDeque<Write> = waves.into_iter().flatten().collect();
        if writes.len() != whole.notes.len() {
            return Err(bug(format!("{} of {} writes came back", writes.len(), whole.notes.len())));
        }
        for (at, ((address, acks), write)) in whole.notes.iter().zip(writes).enumerate() {
            match report.refused.iter().find(|(index, _)| *index == at).map(|(_, refusal)| refusal) {
                None => self.acknowledge(acks)?,
                Some(Refusal::UniqueKey { index, message }) => {
                    let text = format!("unique index {index}: {message}");
                    return Err(self.refused(address.0, &write, &text, Kind::Conflict));
                }
                Some(Refusal::Refused { code, message }) => {
                    let text = format!("error {code}: {message}");
                    return Err(self.refused(address.0, &write, &text, Kind::CannotApply));
                }
            }
        }
        self.release()?;
        self.pump()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Arc;

    use bson::rawdoc;
    use bytes::Bytes;

    use super::*;
    use crate::budget::Permit;
    use crate::model::{ChangeBatch, Namespaces, OpTime, Operation, Origin, Position};
    use crate::pipeline::state::CoreOptions;

    fn core(namespaces: &Arc<Namespaces>, overlap_until: u32) -> Core {
        let overlap_until = OpTime::new(1, overlap_until, 1);
        let options = CoreOptions {
            lanes: 4,
            overlap_until,
            single_lane: HashSet::new(),
            single_lane_collections: HashSet::new(),
            auto: false,
        };
        Core::new(Arc::clone(namespaces), options)
    }

    fn insert(namespaces: &Namespaces, collection: &str, id: i32, inc: u32) -> Change {
        let namespace = namespaces.intern(collection);
        Change {
            operation: Operation::Insert,
            source: namespace,
            target: namespace,
            key: Bytes::new(),
            body: Bytes::from(rawdoc! { "_id": id }.into_bytes()),
            time: OpTime::new(1, inc, 1),
            wall_ms: 0,
            collection: None,
            origin: None,
            not_before_ms: 0,
            moved: false,
            creates: false,
            ddl: None,
        }
    }

    fn batch(core: &mut Core, seq: u64, changes: Vec<Change>, atomic: bool) -> Vec<Command> {
        let last = Position::Oplog(changes.last().unwrap().time);
        core.batch(ChangeBatch { seq, changes, last, atomic, permit: Arc::new(Permit::none()) }).unwrap();
        core.take_commands()
    }

    fn done(core: &mut Core, command: Command) -> Vec<Command> {
        match command {
            Command::Mark { fence } => core.fence_done(fence).unwrap(),
            Command::Flush { lane, writes } => core.flushed(lane, writes, &FlushReport::default()).unwrap(),
            Command::Whole { fence, waves } => core.whole_done(fence, waves, &FlushReport::default()).unwrap(),
            Command::Ddl { .. } | Command::Settle { .. } => panic!("{command:?}"),
        }
        core.take_commands()
    }

    #[test]
    fn a_transaction_waits_for_all_before_it_and_takes_along_what_comes_meanwhile() {
        let names = Namespaces::shared();
        let mut core = core(&names, 0);
        let mut commands = batch(&mut core, 0, vec![insert(&names, "a.b", 1, 1)], false);
        let flush = done(&mut core, commands.remove(0)).remove(0);
        assert!(matches!(flush, Command::Flush { .. }), "{flush:?}");
        let two = vec![insert(&names, "a.b", 2, 2), insert(&names, "a.c", 2, 2)];
        assert!(batch(&mut core, 1, two, true).is_empty(), "the flush before it is still out");
        assert!(batch(&mut core, 2, vec![insert(&names, "a.d", 3, 3)], false).is_empty());
        let two = vec![insert(&names, "a.b", 4, 4), insert(&names, "a.c", 4, 4)];
        assert!(batch(&mut core, 3, two, true).is_empty());
        let whole = done(&mut core, flush).remove(0);
        let Command::Whole { waves, .. } = &whole else { panic!("{whole:?}") };
        assert_eq!((waves.len(), waves[0].len()), (1, 5), "both transactions and what came between them");
        // What comes while it is written waits for it, and goes on by itself where nothing keeps it whole.
        assert!(batch(&mut core, 4, vec![insert(&names, "a.b", 5, 5)], false).is_empty());
        assert_eq!(core.take_watermark().unwrap().time().inc, 1);
        let next = done(&mut core, whole).remove(0);
        assert_eq!(core.take_watermark().unwrap().time().inc, 4);
        assert!(matches!(next, Command::Flush { .. }), "{next:?}");
        done(&mut core, next);
        assert!(core.is_idle());
    }

    #[test]
    fn what_was_made_at_another_cluster_waits_for_a_barrier_of_its_own() {
        let names = Namespaces::shared();
        let mut core = core(&names, 0);
        let from = |number, changes: Vec<Change>| -> Vec<Change> {
            changes.into_iter().map(|change| Change { origin: Origin::new(number), ..change }).collect()
        };
        let two = |inc: u32| vec![insert(&names, "a.b", inc as i32, inc), insert(&names, "a.c", inc as i32, inc)];
        let mut commands = batch(&mut core, 0, vec![insert(&names, "a.b", 1, 1)], false);
        let flush = done(&mut core, commands.remove(0)).remove(0);
        // 0 stands for no mark, which is an origin too: the cluster that is read.
        let stream = [(1, true), (1, false), (2, false), (2, true), (0, true), (0, false), (1, true)];
        for (seq, (number, atomic)) in (2..).zip(stream) {
            let changes = if atomic { two(seq) } else { vec![insert(&names, "a.d", seq as i32, seq)] };
            assert!(batch(&mut core, u64::from(seq) - 1, from(number, changes), atomic).is_empty());
        }
        let mut command = flush;
        let mut written = Vec::new();
        while !core.is_idle() {
            let mut next = done(&mut core, command);
            assert!(next.len() <= 1, "one after the other: {next:?}");
            let Some(following) = next.pop() else { break };
            command = following;
            let writes: Vec<&Write> = match &command {
                Command::Whole { waves, .. } => waves.iter().flatten().collect(),
                Command::Flush { writes, .. } => writes.iter().collect(),
                Command::Ddl { .. } | Command::Settle { .. } | Command::Mark { .. } => panic!("{command:?}"),
            };
            let mut origins: Vec<_> = writes.iter().map(|write| write.origin.map_or(0, Origin::number)).collect();
            origins.dedup();
            written.push((origins, writes.len()));
        }
        assert!(core.is_idle());
        let expected = [(vec![1], 3), (vec![2], 1), (vec![2], 2), (vec![0], 3), (vec![1], 2)];
        assert_eq!(written, expected);
    }

    #[test]
    fn a_transaction_in_overlap_is_spread_and_counted() {
        let names = Namespaces::shared();
        let mut core = core(&names, 9);
        let two = vec![insert(&names, "a.b", 2, 2), insert(&names, "a.c", 2, 2)];
        let commands = batch(&mut core, 0, two, true);
        assert!(commands.iter().all(|command| matches!(command, Command::Flush { .. })), "{commands:?}");
        assert_eq!(core.counts().split, 1);
    }
}
