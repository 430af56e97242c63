//! Parking: writes that a unique index of the target refused, until their collection can be settled as a whole.
//!
//! While changes are repeated, values of a unique index may meet in states that the source never had, so a refusal is
//! no verdict yet. A parked write takes every later write of its document along, in order, and has a bound in bytes of
//! its own. It never decides how colliding writes are put in place; that is the sink's settlement.

use std::collections::VecDeque;

use super::fence::{FenceId, Phase, Purpose};
use super::{Core, bug};
use crate::error::{Error, Kind, Result, Side};
use crate::schedule::lane::Address;
use crate::schedule::{Pending, Scope};
use crate::sink::{Content, FlushReport, Refusal};

/// Bytes that parked writes may own.
const PARKED_BYTES_MAX: usize = 64 << 20;

impl Core {
    /// A unique key refused a write: it waits until its collection is drained, with everything later of its document.
    pub(super) fn park(&mut self, lane: usize, pending: Pending) -> Result<()> {
        let address = pending.address;
        self.counts.parked += 1;
        let later = self.lanes.get_mut(lane).map(|lane| lane.take(&address)).unwrap_or_default();
        let mut waiting = VecDeque::from([pending]);
        for pending in &mut waiting {
            self.parked_bytes += pending.detach();
            self.tracker.park(&pending.acks, true)?;
        }
        for mut next in later {
            self.settle_count(address.0)?;
            self.parked_bytes += next.detach();
            self.tracker.park(&next.acks, true)?;
            if let Some(apart) = absorb_last(&mut waiting, next) {
                waiting.push_back(apart);
            }
        }
        self.parked.insert(address, waiting);
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
    pub(super) fn join_parked(&mut self, mut pending: Pending) -> Result<Option<Pending>> {
        if self.parked.is_empty() {
            return Ok(Some(pending));
        }
        let address = pending.address;
        let Some(waiting) = self.parked.get_mut(&address) else {
            return Ok(Some(pending));
        };
        let acks = pending.acks.clone();
        self.parked_bytes += pending.detach();
        if let Some(apart) = absorb_last(waiting, pending) {
            waiting.push_back(apart);
        }
        self.tracker.park(&acks, true)?;
        self.after_parking(address)?;
        Ok(None)
    }

    /// What is parked holds no memory of the source's replies any more, so it has a bound of its own; and a parked
    /// write that has become a delete can collide with nothing, so it is free again.
    fn after_parking(&mut self, address: Address) -> Result<()> {
        let waiting = self.parked.get(&address);
        let is_delete = |pending: &Pending| matches!(pending.write.content, Content::Delete);
        if waiting.is_some_and(|waiting| waiting.len() == 1 && waiting.front().is_some_and(is_delete)) {
            for pending in self.parked.remove(&address).into_iter().flatten() {
                self.tracker.park(&pending.acks, false)?;
                self.enqueue(pending);
            }
        }
        if self.parked.is_empty() {
            self.parked_bytes = 0;
        }
        if self.parked_bytes > PARKED_BYTES_MAX {
            let text = format!(
                "{} documents collide on unique indexes of the target while changes may be repeated, more than can be \
                 kept until that is over; drop the unique indexes and let Oplogue build them again",
                self.parked.len()
            );
            return Err(Error::new(Side::Sink, Kind::Exhausted, text));
        }
        Ok(())
    }

    fn park_again(&mut self, pending: Pending) {
        self.parked.entry(pending.address).or_default().push_back(pending);
    }

    pub(super) fn take_parked(&mut self, scope: Scope) -> Vec<Pending> {
        let mut addresses: Vec<_> = self.parked.keys().filter(|address| scope.covers(address.0)).copied().collect();
        addresses.sort_unstable();
        addresses.iter().filter_map(|address| self.parked.remove(address)).flatten().collect()
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
                Some(Refusal::UniqueKey { .. }) if !is_final => self.park_again(pending),
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

/// Merges into the last waiting write; gives the write back when it must stand alone.
fn absorb_last(waiting: &mut VecDeque<Pending>, pending: Pending) -> Option<Pending> {
    match waiting.back_mut() {
        Some(last) => last.absorb(pending),
        None => Some(pending),
    }
}
