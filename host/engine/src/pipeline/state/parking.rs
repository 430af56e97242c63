//! Parking: writes that a unique index of the target refused, until their collection can be settled as a whole.
//!
//! While changes are repeated, values of a unique index may meet in states that the source never had, so a refusal is
//! no verdict yet. A parked write takes every later write of its document along, in order, and has a bound in bytes of
//! its own. It never decides how colliding writes are put in place; that is the sink's settlement.

use std::collections::{HashMap, VecDeque};

use super::fence::{FenceId, Phase, Purpose};
use super::{Core, bug};
use crate::error::{Error, Kind, Result, Side};
use crate::model::{Change, CollectionUuid, Ddl, NamespaceId};
use crate::schedule::lane::Address;
use crate::schedule::{Pending, Scope};
use crate::sink::{Content, FlushReport, Refusal, Write};

/// Bytes that parked writes may own.
const PARKED_BYTES_MAX: usize = 64 << 20;

/// Parked writes by document, oldest first, and the bytes that they own at this moment.
#[derive(Debug, Default)]
pub(super) struct Parked {
    documents: HashMap<Address, VecDeque<Pending>>,
    bytes: usize,
}

impl Parked {
    /// How many documents wait.
    pub(super) fn documents(&self) -> usize {
        self.documents.len()
    }

    fn holds(&self, address: &Address) -> bool {
        self.documents.contains_key(address)
    }

    /// Puts a write behind those of its document, as one with the last of them where it can be.
    fn add(&mut self, mut pending: Pending) {
        let own = pending.detach();
        let waiting = self.documents.entry(pending.address).or_default();
        let last = waiting.back().map(Pending::bytes).unwrap_or_default();
        // What was merged can be smaller than either: a delete needs nothing of what was before.
        self.bytes = self.bytes.saturating_sub(last);
        if let Some(Write { content: Content::Patched { inserted, .. }, .. }) = waiting.back_mut().map(|p| &mut p.write)
        {
            // It may have been written in part before it was refused: a whole document behind it replaces that.
            *inserted &= !matches!(pending.write.content, Content::Replace(_));
        }
        let apart = match waiting.back_mut() {
            // Under a name that a rename gave away, another collection's document of that `_id` may wait.
            Some(last) if last.write.collection == pending.write.collection => last.absorb(pending),
            Some(_) | None => Some(pending),
        };
        self.bytes += waiting.back().map(Pending::bytes).unwrap_or_default();
        if let Some(apart) = apart {
            self.bytes += own;
            waiting.push_back(apart);
        }
    }

    /// A write comes back from a settlement that did not settle it; those of a document come in their order.
    fn put_back(&mut self, pending: Pending) {
        self.bytes += pending.bytes();
        self.documents.entry(pending.address).or_default().push_back(pending);
    }

    /// A collection has another name: what waits of it is found under that from now on.
    fn rename(&mut self, from: NamespaceId, to: NamespaceId, collection: CollectionUuid) {
        let of_it = |(address, waiting): (&Address, &VecDeque<Pending>)| {
            let moves = waiting.iter().any(|pending| pending.write.collection == Some(collection));
            (address.0 == from && moves).then_some(*address)
        };
        let addresses: Vec<Address> = self.documents.iter().filter_map(of_it).collect();
        for address in addresses {
            let waiting = self.documents.remove(&address).unwrap_or_default();
            let (moving, staying): (VecDeque<_>, VecDeque<_>) =
                waiting.into_iter().partition(|pending| pending.write.collection == Some(collection));
            if !staying.is_empty() {
                self.documents.insert(address, staying);
            }
            let there = (to, address.1);
            self.documents.entry(there).or_default().extend(moving.into_iter().map(|pending| Pending {
                address: there,
                write: Write { target: to, ..pending.write },
                ..pending
            }));
        }
    }

    /// Takes out all writes of one document.
    fn take(&mut self, address: &Address) -> VecDeque<Pending> {
        let taken = self.documents.remove(address).unwrap_or_default();
        self.bytes = self.bytes.saturating_sub(taken.iter().map(Pending::bytes).sum());
        taken
    }

    /// Whether nothing but a delete is left of a document.
    fn is_delete(&self, address: &Address) -> bool {
        let waiting = self.documents.get(address).filter(|waiting| waiting.len() == 1);
        waiting.and_then(VecDeque::front).is_some_and(|pending| matches!(pending.write.content, Content::Delete))
    }
}

impl Core {
    /// A unique key refused a write: it waits until its collection is drained, with everything later of its document.
    pub(super) fn park(&mut self, lane: usize, pending: Pending) -> Result<()> {
        let address = pending.address;
        self.counts.parked += 1;
        let later = self.lanes.get_mut(lane).map(|lane| lane.take(&address)).unwrap_or_default();
        self.tracker.park(&pending.acks, true)?;
        self.parked.add(pending);
        for next in later {
            self.settle_count(address.0)?;
            self.tracker.park(&next.acks, true)?;
            self.parked.add(next);
        }
        self.after_parking(address)?;
        let scope = Scope::Collection(address.0);
        if self.options.auto && self.passed_mark && self.contention.collided(address.0, self.spread.returned(address.0))
        {
            self.to_one_lane.insert(address.0);
        }
        let exists = self
            .fences
            .iter()
            .any(|f| matches!(f.purpose, Purpose::Settle) && f.scope == scope && f.phase == Phase::Draining);
        if self.passed_mark && !exists {
            self.raise(scope, Purpose::Settle);
        }
        Ok(())
    }

    /// Puts a write behind a parked one of its document; gives it back when there is none.
    pub(super) fn join_parked(&mut self, pending: Pending) -> Result<Option<Pending>> {
        let address = pending.address;
        if !self.parked.holds(&address) {
            return Ok(Some(pending));
        }
        self.tracker.park(&pending.acks, true)?;
        self.parked.add(pending);
        self.after_parking(address)?;
        Ok(None)
    }

    /// A rename is about to be executed, and everything before it is written or parked.
    pub(super) fn rename_parked(&mut self, change: &Change) {
        if let (Some(Ddl::Rename { from, to, .. }), Some(collection)) = (change.ddl.as_deref(), change.collection) {
            self.parked.rename(from.target, to.target, collection);
        }
    }

    /// What is parked holds no memory of the source's replies any more, so it has a bound of its own; and a parked
    /// write that has become a delete can collide with nothing, so it is free again.
    fn after_parking(&mut self, address: Address) -> Result<()> {
        if self.parked.is_delete(&address) {
            for pending in self.parked.take(&address) {
                self.tracker.park(&pending.acks, false)?;
                // In order, it came before everything that waits. Where a collation makes two `_id`s one, it must not take
                // what was written since.
                if pending.write.in_order {
                    self.enqueue_first(pending);
                } else {
                    self.enqueue(pending);
                }
            }
        }
        if self.parked.bytes > PARKED_BYTES_MAX {
            let text = format!(
                "{} documents collide on unique indexes of the target while changes may be repeated, more than can be \
                 kept until that is over; drop the unique indexes and let Oplogue build them again",
                self.parked.documents()
            );
            return Err(Error::new(Side::Sink, Kind::Exhausted, text));
        }
        Ok(())
    }

    pub(super) fn take_parked(&mut self, scope: Scope) -> Vec<Pending> {
        let covered = self.parked.documents.keys().filter(|address| scope.covers(address.0));
        let mut addresses: Vec<_> = covered.copied().collect();
        addresses.sort_unstable();
        addresses.iter().flat_map(|address| self.parked.take(address)).collect()
    }

    /// A settlement is done; `report` names the writes that collide even so.
    ///
    /// # Errors
    /// `Conflict` when writes collide although the target stands where the source stood.
    pub fn settled(&mut self, id: FenceId, report: &FlushReport) -> Result<()> {
        let at = self.fences.iter().position(|fence| fence.id == id).ok_or_else(|| bug("unknown fence".into()))?;
        let is_final = self.is_last_word(at);
        let Some(fence) = self.fences.get_mut(at) else {
            return Err(bug("unknown fence".into()));
        };
        let settling = std::mem::take(&mut fence.settling);
        fence.phase = Phase::Settled;
        let scope = fence.scope;
        let only_settles = matches!(fence.purpose, Purpose::Settle);
        for (index, pending) in settling.into_iter().enumerate() {
            let refusal = report.refused.iter().find(|(at, _)| *at == index).map(|(_, refusal)| refusal);
            match refusal {
                None => {
                    self.tracker.park(&pending.acks, false)?;
                    self.acknowledge(&pending.acks)?;
                }
                // It owns its bytes already, and its acknowledgements are noted as parked.
                Some(Refusal::UniqueKey { .. }) if !is_final => self.parked.put_back(pending),
                Some(Refusal::UniqueKey { index, message }) => {
                    let text = format!("unique index {index}: {message}");
                    return Err(self.refused(pending.address.0, &pending.write, &text, Kind::Conflict));
                }
                Some(Refusal::Refused { code, message }) => {
                    let text = format!("error {code}: {message}");
                    return Err(self.refused(pending.address.0, &pending.write, &text, Kind::CannotApply));
                }
            }
        }
        if let Scope::Collection(namespace) = scope
            && self.to_one_lane.remove(&namespace)
            && self.options.single_lane.insert(namespace)
        {
            self.counts.one_lane += 1;
        }
        if only_settles {
            self.lower(id)?;
            self.release()?;
        }
        self.pump()
    }
}
