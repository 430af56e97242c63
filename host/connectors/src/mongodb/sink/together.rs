//! Whole flushes in one transaction of the target, because that costs the server about half.
//!
//! A statement of its own is a transaction of the storage engine and an entry of the target's oplog; statements that
//! share a transaction share both (measured on 6.0.27: 13 to 23 us of server CPU an update instead of 34). Order and
//! outcome are those of separate commands: keys are distinct within a flush. What does not go through as a whole is
//! rolled back by the server and written apart at once, so nothing depends on this; a collection that was the reason
//! stays apart for a while.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use oplogue_engine::error::Result;
use oplogue_engine::model::{Namespace, NamespaceId, Origin};
use oplogue_engine::sink::{FlushReport, Write};

use super::namespace::{Item, Place, Prepared, Sent, groups};
use super::{MongoSink, Target, cure};
use crate::mongodb::command::{DUPLICATE_KEY, Manner, Outcome, Statement};
use crate::mongodb::transaction::{self, Broken, Committed, Transaction};

/// Fewer statements are quicker on their own: a transaction costs a round trip and an entry of `config.transactions`.
const STATEMENTS_MIN: usize = 64;

/// A transaction's commands go one after the other, so each should be worth its round trip.
const STATEMENTS_A_COMMAND_MIN: usize = 16;

/// More bytes than this gain little and would hold much of the server's cache.
const BYTES_MAX: usize = 8 << 20;

/// For how many flushes a collection stays apart after its first failure; doubled with each further one.
const APART_FIRST: u32 = 8;
const APART_MAX: u32 = 1024;

/// Which collections stay apart for now.
#[derive(Debug, Default)]
pub(super) struct Together {
    apart: Mutex<HashMap<NamespaceId, Rest>>,
}

#[derive(Debug, Clone, Copy)]
struct Rest {
    flushes_left: u32,
    next: u32,
}

impl Together {
    /// Whether a collection may take part; counts the flushes it stays away.
    fn admits(&self, namespace: NamespaceId) -> bool {
        let mut apart = self.apart.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(rest) = apart.get_mut(&namespace).filter(|rest| rest.flushes_left > 0) else { return true };
        rest.flushes_left -= 1;
        false
    }

    fn failed(&self, namespace: NamespaceId) {
        let mut apart = self.apart.lock().unwrap_or_else(PoisonError::into_inner);
        let rest = apart.entry(namespace).or_insert(Rest { flushes_left: 0, next: APART_FIRST });
        rest.flushes_left = rest.next;
        rest.next = (rest.next * 2).min(APART_MAX);
    }

    fn succeeded(&self, namespace: NamespaceId) {
        self.apart.lock().unwrap_or_else(PoisonError::into_inner).remove(&namespace);
    }
}

/// One namespace's share of a transaction.
struct Part<'i, 'a> {
    /// Place among the prepared ones.
    at: usize,
    prepared: &'i Prepared<'a>,
    /// Statements of one verb and origin each.
    groups: Vec<Vec<&'i Item<'a>>>,
}

/// What came of a transaction.
enum Transacted {
    /// Committed: its time, and the outcome of each group of each part.
    Written(FlushReport, Vec<Vec<Outcome>>),
    /// Rolled back: nothing was written. The collection that was the reason, if one was.
    RolledBack(Option<NamespaceId>, Why),
}

/// Why a transaction came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// A unique index other than `_id` has a value in another document.
    UniqueKey,
    /// The server broke it off, and might take it the next time.
    BrokenOff,
    /// It refused a statement.
    Refused,
}

impl MongoSink {
    /// Writes what can be written together in one transaction. For each part what came of it, `None` for those that are
    /// still to be written.
    ///
    /// # Errors
    /// When the transaction's outcome is unknown.
    pub(super) async fn write_together<'i, 'a>(
        &self,
        prepared: &'i [Prepared<'a>],
        target: Target,
    ) -> Result<Vec<Option<Sent<'i, 'a>>>> {
        let mut sent: Vec<Option<Sent<'i, 'a>>> = prepared.iter().map(|_| None).collect();
        let admitted = target.is_replicated && !target.is_mongos;
        let Some((parts, origin)) = admitted.then(|| self.parts(prepared)).flatten() else {
            return Ok(sent);
        };
        let (report, outcomes) = match self.transact(&parts, target, origin).await? {
            Transacted::Written(report, outcomes) => (report, outcomes),
            Transacted::RolledBack(reason, _) => {
                self.counters.one_transaction(false);
                reason.into_iter().for_each(|namespace| self.together.failed(namespace));
                return Ok(sent);
            }
        };
        parts.iter().for_each(|part| self.together.succeeded(part.prepared.namespace));
        self.collect(&parts, &report, outcomes, &mut sent).await?;
        Ok(sent)
    }

    /// Writes all of it in one transaction; what came of each part, or why nothing did. `origin` is that of all.
    ///
    /// # Errors
    /// When the transaction's outcome is unknown.
    pub(super) async fn write_at_once<'i, 'a>(
        &self,
        prepared: &'i [Prepared<'a>],
        target: Target,
        origin: Option<Origin>,
    ) -> Result<Result<Vec<Option<Sent<'i, 'a>>>, Why>> {
        let parts: Vec<Part<'i, 'a>> = prepared
            .iter()
            .enumerate()
            .map(|(at, prepared)| Part { at, prepared, groups: in_order(prepared) })
            .collect();
        match self.transact(&parts, target, origin).await? {
            Transacted::Written(report, outcomes) => {
                let mut sent: Vec<Option<Sent<'i, 'a>>> = prepared.iter().map(|_| None).collect();
                self.collect(&parts, &report, outcomes, &mut sent).await?;
                Ok(Ok(sent))
            }
            Transacted::RolledBack(_, why) => {
                self.counters.one_transaction(false);
                Ok(Err(why))
            }
        }
    }

    /// Notes a transaction that was committed, and what each of its parts met.
    async fn collect<'i, 'a>(
        &self,
        parts: &[Part<'i, 'a>],
        report: &FlushReport,
        outcomes: Vec<Vec<Outcome>>,
        sent: &mut [Option<Sent<'i, 'a>>],
    ) -> Result<()> {
        self.counters.one_transaction(true);
        for (part, outcomes) in parts.iter().zip(outcomes) {
            let mut troubles = Vec::new();
            for (items, outcome) in part.groups.iter().zip(outcomes) {
                troubles.extend(self.troubles(&part.prepared.place, items, outcome).await?);
            }
            if let Some(slot) = sent.get_mut(part.at) {
                *slot = Some(Sent { report: report.clone(), troubles });
            }
        }
        Ok(())
    }

    /// Whether a document of a collection can be rewritten inside a transaction of the target.
    pub(super) fn takes_transactions(&self, place: &Place) -> bool {
        let capped = self.catalogue.info(&place.name).is_some_and(|info| info.capped);
        place.target.is_replicated && !place.target.is_mongos && !capped && is_plain(&place.name)
    }

    /// The parts that go together, and the origin of all; `None` when it is not worth it, or there are several.
    fn parts<'i, 'a>(&self, prepared: &'i [Prepared<'a>]) -> Option<(Vec<Part<'i, 'a>>, Option<Origin>)> {
        let total: usize = prepared.iter().map(|part| part.items.len()).sum();
        if total < STATEMENTS_MIN {
            return None;
        }
        let fits = |part: &Prepared<'_>| !part.ordered && is_plain(&part.place.name) && !part.items.is_empty();
        let parts: Vec<Part<'i, 'a>> = prepared
            .iter()
            .enumerate()
            .filter(|(_, part)| fits(part) && self.together.admits(part.namespace))
            .map(|(at, prepared)| Part { at, prepared, groups: groups(&prepared.items) })
            .collect();
        let items = || parts.iter().flat_map(|part| &part.prepared.items);
        let commands: usize = parts.iter().map(|part| part.groups.len()).sum();
        let statements_min = STATEMENTS_MIN.max(commands * STATEMENTS_A_COMMAND_MIN);
        let origin = shared_origin(items().map(|item| item.write))?;
        let bytes: usize = items().map(|item| item.statement.bytes()).sum();
        (items().count() >= statements_min && bytes <= BYTES_MAX).then_some((parts, origin))
    }

    async fn transact(&self, parts: &[Part<'_, '_>], target: Target, origin: Option<Origin>) -> Result<Transacted> {
        let manner = self.manner(target, origin);
        let mut session = transaction::begin(&self.client, manner).await?;
        let mut outcomes = Vec::with_capacity(parts.len());
        for part in parts {
            match self.fill(&mut session, part, manner).await {
                Ok(Ok(of_part)) => outcomes.push(of_part),
                Ok(Err(why)) => {
                    transaction::abort(session).await;
                    return Ok(Transacted::RolledBack(Some(part.prepared.namespace), why));
                }
                Err(broken) => {
                    transaction::abort(session).await;
                    let why = if broken.is_passing() { Why::BrokenOff } else { Why::Refused };
                    return match broken.rolled_back() {
                        Ok(()) => Ok(Transacted::RolledBack(Some(part.prepared.namespace), why)),
                        Err(broken) => Err(broken.into_error(&format!("write to {}", part.prepared.place.name))),
                    };
                }
            }
        }
        Ok(match transaction::commit(session).await? {
            Committed::At(operation_time) => {
                Transacted::Written(FlushReport { operation_time, ..FlushReport::default() }, outcomes)
            }
            Committed::Again(_) => Transacted::RolledBack(None, Why::BrokenOff),
        })
    }

    /// Sends one part, until the server refuses a statement.
    async fn fill(
        &self,
        session: &mut Transaction<'_>,
        part: &Part<'_, '_>,
        manner: Manner<'_>,
    ) -> Result<Result<Vec<Outcome>, Why>, Broken> {
        let mut outcomes = Vec::with_capacity(part.groups.len());
        for group in &part.groups {
            let statements: Vec<&Statement<'_>> = group.iter().map(|item| &item.statement).collect();
            let outcome =
                transaction::send(&self.client, session, &part.prepared.place.name, &statements, manner).await?;
            if let Some((_, error)) = outcome.errors.first() {
                let unique = error.code == DUPLICATE_KEY && !cure::is_id(error);
                return Ok(Err(if unique { Why::UniqueKey } else { Why::Refused }));
            }
            outcomes.push(outcome);
        }
        Ok(Ok(outcomes))
    }
}

/// The statements of a part in an order that is right where one may depend on another: as they came where order counts,
/// deletes before all others where it does not.
fn in_order<'i, 'a>(prepared: &'i Prepared<'a>) -> Vec<Vec<&'i Item<'a>>> {
    if !prepared.ordered {
        return groups(&prepared.items);
    }
    let runs = prepared.items.chunk_by(|a, b| a.statement.verb() == b.statement.verb());
    runs.map(|run| run.iter().collect()).collect()
}

/// The origin of all of these; `None` when they have several. A transaction has one mark, and a change that carries
/// another's would be dropped before it reaches every cluster of a ring, so such never share one.
pub(super) fn shared_origin<'w>(writes: impl IntoIterator<Item = &'w Write>) -> Option<Option<Origin>> {
    let mut writes = writes.into_iter();
    let Some(first) = writes.next() else { return Some(None) };
    writes.all(|write| write.origin == first.origin).then_some(first.origin)
}

/// Whether the server takes transactions on a collection of that name. That it may be capped is known elsewhere.
fn is_plain(name: &Namespace) -> bool {
    !matches!(name.database(), "admin" | "config" | "local") && !name.collection().starts_with("system.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collection_that_fails_stays_apart_for_longer_and_longer() {
        let together = Together::default();
        let namespace = oplogue_engine::model::Namespaces::default().intern("a.b");
        assert!(together.admits(namespace));
        for round in 0..3_u32 {
            together.failed(namespace);
            let apart = (0..).take_while(|_| !together.admits(namespace)).count();
            assert_eq!(apart, 8 << round);
        }
        together.succeeded(namespace);
        together.failed(namespace);
        assert_eq!((0..).take_while(|_| !together.admits(namespace)).count(), 8);
    }

    #[test]
    fn only_ordinary_collections_take_part() {
        for (name, plain) in [("a.b", true), ("a.system.buckets.x", false), ("config.x", false), ("admin.x", false)] {
            assert_eq!(is_plain(&Namespace::new(name)), plain, "{name}");
        }
    }
}
