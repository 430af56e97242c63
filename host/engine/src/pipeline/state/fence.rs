//! Barriers: what must not be overtaken, what waits behind it, and which of them goes next.
//!
//! A DDL, a settlement of unique keys and the overlap mark each need a scope with nothing pending or in flight. They
//! stand apart from the flow of writes because their order among themselves is a rule of its own, and the one that a
//! deadlock would come from. Nothing here writes or waits: a barrier whose time has come becomes a command.

use std::collections::{HashSet, VecDeque};

use super::whole::Whole;
use super::{Command, Core, bug};
use crate::ack::SlotId;
use crate::error::Result;
use crate::model::{Change, NamespaceId, OpTime};
use crate::schedule::{Pending, Scope};

/// A barrier's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FenceId(u64);

#[derive(Debug)]
pub(super) enum Purpose {
    Ddl { change: Option<Box<Change>>, slot: SlotId },
    Settle,
    Mark,
    Whole(Whole),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Waiting until nothing in the scope is pending or in flight.
    Draining,
    /// Parked writes of the scope are being settled.
    Settling,
    /// The settled scope is ready for the fence's own command.
    Settled,
    /// The command is out.
    Fired,
    /// The shutdown leaves it to the next start, with everything behind it.
    Left,
}

impl Phase {
    /// Whether a command is out that has not come back.
    pub(super) fn is_out(self) -> bool {
        match self {
            Self::Settling | Self::Fired => true,
            Self::Draining | Self::Settled | Self::Left => false,
        }
    }
}

#[derive(Debug)]
pub(super) struct Fence {
    pub(super) id: FenceId,
    pub(super) scope: Scope,
    pub(super) purpose: Purpose,
    pub(super) phase: Phase,
    /// What is being settled, with what it acknowledges.
    pub(super) settling: Vec<Pending>,
}

impl Fence {
    /// The mark stands behind every change of the overlap, also behind one that was held when the mark came up.
    fn lets_pass(&self, change: &Change, overlap_until: OpTime) -> bool {
        matches!(self.purpose, Purpose::Mark) && change.time.ts() <= overlap_until.ts()
    }

    fn holds(&self, change: &Change, overlap_until: OpTime) -> bool {
        self.scope.covers(change.target) && !self.lets_pass(change, overlap_until)
    }
}

/// What waits behind a barrier as one.
#[derive(Debug)]
pub(super) enum Waiting {
    One(Change),
    /// A transaction that stays whole.
    Whole(Vec<Change>),
}

impl Waiting {
    fn changes(&self) -> &[Change] {
        match self {
            Self::One(change) => std::slice::from_ref(change),
            Self::Whole(changes) => changes,
        }
    }
}

/// Changes behind barriers, in source order, with an index of what they cover.
#[derive(Debug, Default)]
pub(super) struct Held {
    pub(super) changes: VecDeque<(SlotId, Waiting)>,
    namespaces: HashSet<NamespaceId>,
    scopes: Vec<Scope>,
}

impl Held {
    pub(super) fn push(&mut self, slot: SlotId, change: Change) {
        match &change.ddl {
            Some(ddl) => self.scopes.push(Scope::of(ddl)),
            None => {
                self.namespaces.insert(change.target);
            }
        }
        self.changes.push_back((slot, Waiting::One(change)));
    }

    /// A whole transaction waits for everything before it, and everything later waits for it.
    pub(super) fn push_whole(&mut self, slot: SlotId, changes: Vec<Change>) {
        self.scopes.push(Scope::Cluster);
        self.changes.push_back((slot, Waiting::Whole(changes)));
    }

    /// Changes that wait.
    pub(super) fn count(&self) -> usize {
        self.changes.iter().map(|(_, waiting)| waiting.changes().len()).sum()
    }

    /// Whether a later change of `namespace` must stay behind something that is held.
    fn covers(&self, namespace: NamespaceId) -> bool {
        self.namespaces.contains(&namespace) || self.scopes.iter().any(|scope| scope.covers(namespace))
    }
}

impl Core {
    pub(super) fn reach_mark(&mut self) {
        if !self.passed_mark && !self.fences.iter().any(|fence| matches!(fence.purpose, Purpose::Mark)) {
            self.raise(Scope::Cluster, Purpose::Mark);
        }
    }

    pub(super) fn must_wait(&self, change: &Change) -> bool {
        if self.fences.is_empty() {
            return false;
        }
        // A DDL waits for every barrier and everything held, so that DDL keep their order among themselves.
        if change.ddl.is_some() {
            return !self.held.changes.is_empty()
                || self.fences.iter().any(|f| !f.lets_pass(change, self.options.overlap_until));
        }
        self.fences.iter().any(|fence| fence.holds(change, self.options.overlap_until))
            || self.held.covers(change.target)
    }

    pub(super) fn raise(&mut self, scope: Scope, purpose: Purpose) {
        let id = FenceId(self.next_fence);
        self.next_fence += 1;
        self.counts.fences += 1;
        self.fences.push(Fence { id, scope, purpose, phase: Phase::Draining, settling: Vec::new() });
    }

    pub(super) fn lower(&mut self, id: FenceId) -> Result<Fence> {
        let at = self.fences.iter().position(|fence| fence.id == id).ok_or_else(|| bug("unknown fence".into()))?;
        Ok(self.fences.remove(at))
    }

    /// Lets held changes go on as far as the remaining barriers allow.
    pub(super) fn release(&mut self) -> Result<()> {
        let held = std::mem::take(&mut self.held);
        for (slot, waiting) in held.changes {
            // The mark may have moved on while they waited, and lies before them again.
            let until = self.options.overlap_until.ts();
            let is_beyond = match &waiting {
                Waiting::One(change) => change.time.ts() > until,
                Waiting::Whole(changes) => changes.iter().any(|change| change.time.ts() > until),
            };
            if is_beyond {
                self.reach_mark();
            }
            match waiting {
                Waiting::One(change) => self.admit(slot, change)?,
                Waiting::Whole(changes) => self.admit_whole(slot, changes),
            }
        }
        Ok(())
    }

    pub(super) fn fire(&mut self, at: usize) -> Result<()> {
        let Some(fence) = self.fences.get(at) else {
            return Ok(());
        };
        let (id, scope, phase) = (fence.id, fence.scope, fence.phase);
        let waits = matches!(phase, Phase::Draining | Phase::Settled);
        if !waits || self.is_blocked(at) || !self.drained(scope) || self.leaves(at) {
            return Ok(());
        }
        if phase == Phase::Draining {
            let settling = self.take_parked(scope);
            if !settling.is_empty() {
                let writes = settling.iter().map(|pending| pending.write.clone()).collect();
                let last_word = self.is_last_word(at);
                if let Some(fence) = self.fences.get_mut(at) {
                    fence.settling = settling;
                    fence.phase = Phase::Settling;
                }
                self.commands.push(Command::Settle { fence: id, writes, last_word });
                return Ok(());
            }
        }
        self.fire_own(at)
    }

    /// Whether the target stands where the source stood once this barrier's scope is drained.
    pub(super) fn is_last_word(&self, at: usize) -> bool {
        self.passed_mark || self.fences.get(at).is_some_and(|fence| matches!(fence.purpose, Purpose::Mark))
    }

    /// Whether another barrier goes first. The mark waits for all others and for every change of the overlap; the
    /// others wait for those that came before them.
    fn is_blocked(&self, at: usize) -> bool {
        let Some(fence) = self.fences.get(at) else { return true };
        let until = self.options.overlap_until.ts();
        match fence.purpose {
            Purpose::Mark => {
                let mut held = self.held.changes.iter().flat_map(|(_, waiting)| waiting.changes());
                self.fences.len() > 1 || held.any(|change| change.time.ts() <= until)
            }
            Purpose::Ddl { .. } | Purpose::Settle | Purpose::Whole(_) => {
                let mut earlier = self.fences.iter().take(at);
                earlier.any(|other| !matches!(other.purpose, Purpose::Mark) && other.scope.intersects(fence.scope))
            }
        }
    }

    fn fire_own(&mut self, at: usize) -> Result<()> {
        let until = self.options.overlap_until.ts();
        let Some(fence) = self.fences.get_mut(at) else {
            return Ok(());
        };
        fence.phase = Phase::Fired;
        let id = fence.id;
        match &mut fence.purpose {
            Purpose::Ddl { change, .. } => {
                let change = change.take().ok_or_else(|| bug("a DDL was fired twice".into()))?;
                let overlap = change.time.ts() <= until;
                self.rename_parked(&change);
                self.commands.push(Command::Ddl { fence: id, change, overlap });
            }
            Purpose::Mark => self.commands.push(Command::Mark { fence: id }),
            Purpose::Whole(whole) => {
                let changes = whole.take();
                return self.fire_whole(id, changes);
            }
            // Everything parked was settled with an earlier barrier: nothing is left to do.
            Purpose::Settle => {
                self.lower(id)?;
                self.release()?;
                return self.pump();
            }
        }
        Ok(())
    }

    fn drained(&self, scope: Scope) -> bool {
        match scope {
            Scope::Collection(namespace) => self.spread.is_drained(namespace),
            Scope::Cluster => self.spread.is_empty(),
        }
    }
}
