//! What a worker does when a plugin faults: a new instance, a search for the entry, the policy for that entry alone.
//!
//! A fault of a batch is halved down to the entries that cause it, so that one bad document never costs its
//! neighbours. A generation on trial is rolled back instead. Nothing is lost silently: an entry is kept, dropped by
//! policy and counted, in the dead-letter file, or the run stops in front of it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use oplogue_engine::model::ChangeBatch;

use super::worker::{Halt, Worker, bug, fate};
use super::{Chain, plugin_fault};
use crate::columns::Pending;
use crate::edits::Checked;
use crate::instance::Fault;
use crate::spec::OnError;

/// A plugin that cannot handle this many entries in a row is not asked again: the run stops.
const POISONED_MAX: u32 = 64;
/// Longest pause before a plugin that keeps faulting is asked again.
const PAUSE_MAX: Duration = Duration::from_millis(50);
/// How often `retry-after-ms` is honoured for one call, and the longest such pause.
const RETRIES_MAX: u32 = 10;
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(5);
/// While the entry behind a time-out is searched for, a call gets this part of its time.
const SEARCH_SHARE: u32 = 8;

/// Entries that are still to be answered for.
struct Left<'i> {
    items: &'i [Pending],
    what: What,
    hard: Duration,
}

/// What is to happen to them.
enum What {
    Show,
    /// They were shown, and this came of it.
    Search(Fault),
    /// The policy meets the one that they are.
    Condemn(Fault),
}

impl Worker {
    /// Counts a fault and takes a poisoned instance away.
    pub(super) fn after_fault(&mut self, plugin: usize, fault: &Fault) {
        if let Some(seat) = self.seats.get_mut(plugin) {
            seat.generation.counts.faults.fetch_add(1, Ordering::Relaxed);
            if fault.poisons() {
                seat.guest = None;
            }
        }
    }

    pub(super) fn describe(&self, plugin: usize, fault: &Fault) -> String {
        match self.seats.get(plugin).map(|seat| &seat.generation) {
            Some(generation) => format!(
                "plugin {} (generation {}, version {}) {fault}",
                generation.plugin, generation.number, generation.module.manifest.version
            ),
            None => fault.to_string(),
        }
    }

    /// Goes on with entries of which a call failed, until each is answered for or met the policy. A list of what is left
    /// and no recursion: a plugin may refuse every second entry of a large call.
    pub(super) fn faulted(
        &mut self,
        chain: &Chain,
        batch: &mut ChangeBatch,
        plugin: usize,
        items: &[Pending],
        fault: Fault,
        hard: Duration,
    ) -> Result<(), Halt> {
        let mut left = vec![Left { items, what: What::Search(fault), hard }];
        while let Some(Left { items, what, hard }) = left.pop() {
            let answer = match what {
                What::Show => self.ask(chain, batch, plugin, items, hard),
                What::Search(fault) => Err(fault),
                What::Condemn(fault) => {
                    self.poison(chain, batch, plugin, items, &fault)?;
                    continue;
                }
            };
            let fault = match answer {
                Ok(checked) => {
                    self.apply(chain, batch, plugin, items, &checked)?;
                    continue;
                }
                Err(fault) => fault,
            };
            let Some(fault) = self.stands(chain, batch, plugin, items, fault, hard)? else { continue };
            let seat = self.seats.get(plugin).ok_or_else(|| bug("a plugin has no seat"))?;
            let (limits, fresh) = (seat.generation.module.limits, seat.fresh);
            if let Some(at) = named_entry(&fault, items) {
                let (before, after) = items.split_at(at);
                let (named, after) = after.split_at(1);
                // All in their order: what is good between two that are not ends their row.
                let show = |items| Left { items, what: What::Show, hard: limits.hard };
                let condemned = Left { items: named, what: What::Condemn(fault), hard };
                left.extend([show(after), condemned, show(before)].into_iter().filter(|part| !part.items.is_empty()));
            } else if items.len() > 1 {
                let by_time = matches!(fault, Fault::Time(_));
                let hard = if by_time { (limits.hard / SEARCH_SHARE).max(limits.soft) } else { hard };
                let (first, second) = items.split_at(items.len() / 2);
                left.extend([second, first].map(|items| Left { items, what: What::Show, hard }));
            } else if (matches!(fault, Fault::Time(_)) && hard < limits.hard) || (fault.poisons() && !fresh) {
                // Only the full time condemns an entry, and only an instance that has nothing behind it: another one may
                // be worn out by what it was shown before.
                left.push(Left { items, what: What::Show, hard: limits.hard });
            } else {
                self.poison(chain, batch, plugin, items, &fault)?;
            }
        }
        Ok(())
    }

    /// Whether a fault is to be dealt with: `None` when the plugin only asked for time, and has answered since.
    fn stands(
        &mut self,
        chain: &Chain,
        batch: &mut ChangeBatch,
        plugin: usize,
        items: &[Pending],
        fault: Fault,
        hard: Duration,
    ) -> Result<Option<Fault>, Halt> {
        let fault = match self.retry(chain, batch, plugin, items, fault, hard) {
            Ok(checked) => return self.apply(chain, batch, plugin, items, &checked).map(|()| None),
            Err(fault) => fault,
        };
        self.after_fault(plugin, &fault);
        let seat = self.seats.get(plugin).ok_or_else(|| bug("a plugin has no seat"))?;
        let generation = Arc::clone(&seat.generation);
        if self.active.trial && chain.roll_back(&generation, &fault.to_string()) {
            return Err(Halt::Again);
        }
        Ok(Some(fault))
    }

    /// Asks again as long as the plugin says when.
    fn retry(
        &mut self,
        chain: &Chain,
        batch: &ChangeBatch,
        plugin: usize,
        items: &[Pending],
        mut fault: Fault,
        hard: Duration,
    ) -> Result<Checked, Fault> {
        for _ in 0..RETRIES_MAX {
            let Fault::Failure(failure) = &fault else { break };
            let Some(ms) = failure.retry_after_ms else { break };
            std::thread::sleep(Duration::from_millis(u64::from(ms)).min(RETRY_PAUSE_MAX));
            match self.ask(chain, batch, plugin, items, hard) {
                Ok(checked) => return Ok(checked),
                Err(again) => fault = again,
            }
        }
        Err(fault)
    }

    /// Applies the policy to the one entry that the plugin cannot handle.
    fn poison(
        &mut self,
        chain: &Chain,
        batch: &mut ChangeBatch,
        plugin: usize,
        item: &[Pending],
        fault: &Fault,
    ) -> Result<(), Halt> {
        let ([item], Some(seat)) = (item, self.seats.get_mut(plugin)) else { return Ok(()) };
        seat.poisoned_in_a_row += 1;
        let (row, policy) = (seat.poisoned_in_a_row, seat.generation.on_error);
        let name = seat.generation.plugin.clone();
        let mut message = self.describe(plugin, fault);
        if let Some(change) = batch.changes.get(item.at) {
            let namespace = chain.namespaces.name(change.source);
            message = format!("{message}; entry: {} of {namespace} at {}", change.operation.name(), change.time);
        }
        if row >= POISONED_MAX {
            let message = format!("{message}; {row} entries in a row failed, the breaker is open");
            return Err(Halt::Error(plugin_fault(message)));
        }
        let must_fail = matches!(fault, Fault::Memory { .. } | Fault::Restart(_));
        if policy == OnError::Fail || must_fail {
            return Err(Halt::Error(plugin_fault(message)));
        }
        tracing::warn!(plugin = name, policy = ?policy, "{message}");
        match policy {
            OnError::Fail | OnError::Skip => self.advance(chain, &mut batch.changes, item.at, plugin + 1)?,
            OnError::Drop => self.mark(item.at, fate::DROPPED),
            OnError::DeadLetter => self.bury(chain, batch, plugin, item.at, message)?,
        }
        if row > 4 {
            std::thread::sleep(Duration::from_millis(1 << row.min(16)).min(PAUSE_MAX));
        }
        Ok(())
    }
}

/// The place of the entry that a refusal names.
fn named_entry(fault: &Fault, items: &[Pending]) -> Option<usize> {
    match fault {
        Fault::Failure(failure) => failure.entry.map(|at| at as usize).filter(|at| *at < items.len()),
        Fault::Trap(_) | Fault::Time(_) | Fault::Memory { .. } | Fault::Lie(_) | Fault::Restart(_) => None,
    }
}
