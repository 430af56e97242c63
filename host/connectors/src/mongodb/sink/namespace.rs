//! One namespace's part of a flush: grouped by verb, sent, and every result looked at.
//!
//! Order inside a flush is free where keys are told apart by their bytes. It is kept for capped collections, whose
//! insertion order is data, and for collections with a collation, where `"a"` and `"A"` are one key to the server
//! and two to the scheduler.

use std::sync::Arc;

use futures_util::future::join_all;
use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::model::{Namespace, NamespaceId, Origin};
use oplogue_engine::sink::{Content, FlushReport, Write};

use super::counters::count;
use super::mend::Trouble;
use super::plan::{Form, Plan, plan};
use super::{MongoSink, Target, merge};
use crate::mongodb::command::{self, Outcome, Statement, StatementError, Verb};
use crate::mongodb::shard_key::ShardKey;

/// A planned write: its place in the flush, and what it becomes.
pub(super) struct Item<'a> {
    pub(super) index: usize,
    pub(super) write: &'a Write,
    pub(super) statement: Statement<'a>,
    /// In overlap, of its namespace or of this document alone.
    pub(super) overlap: bool,
    /// An insert that is repeated into a capped collection: the document goes first, if it is there, so that it stands
    /// behind its predecessors again.
    pub(super) again: bool,
}

/// What the writes of one namespace need besides themselves.
pub(super) struct Place {
    pub(super) name: Namespace,
    pub(super) target: Target,
    /// Of a collection of a cluster whose documents are placed by more than their `_id`.
    pub(super) shard_key: Option<Arc<ShardKey>>,
}

/// What a write of its own becomes: everything that cannot share a command.
pub(super) struct Apart<'a> {
    pub(super) index: usize,
    pub(super) write: &'a Write,
    pub(super) plan: Plan<'a>,
    pub(super) overlap: bool,
}

/// One namespace's part of a flush, planned.
pub(super) struct Prepared<'a> {
    pub(super) namespace: NamespaceId,
    pub(super) place: Place,
    /// Statements go in the order of the flush.
    pub(super) ordered: bool,
    pub(super) items: Vec<Item<'a>>,
    pub(super) apart: Vec<Apart<'a>>,
    /// Deletes that go before everything: documents that stand on other shards than they shall.
    pub(super) first: Vec<(Option<Origin>, Statement<'a>)>,
    /// Writes whose documents can stand on no shard.
    pub(super) placeless: Vec<(usize, &'a Write, StatementError)>,
    writes: &'a [(usize, &'a Write)],
}

impl Prepared<'_> {
    /// Whether all of it can go in one transaction with others.
    pub(super) fn fits_transaction(&self) -> bool {
        self.apart.is_empty()
    }
}

/// What came of the statements of one namespace, and those still in trouble.
pub(super) struct Sent<'i, 'a> {
    pub(super) report: FlushReport,
    pub(super) troubles: Vec<(&'i Item<'a>, Trouble)>,
}

impl MongoSink {
    /// Plans the writes of one namespace; sends nothing.
    pub(super) async fn prepare<'a>(
        &self,
        namespace: NamespaceId,
        writes: &'a [(usize, &'a Write)],
        target: Target,
    ) -> Result<Prepared<'a>> {
        let name = self.namespaces.name(namespace);
        let shard_key = if target.is_mongos { self.catalogue.shard_key(&name) } else { None };
        let place = Place { name, target, shard_key: shard_key.clone() };
        let info = self.catalogue.info(&place.name);
        let ordered =
            info.is_some_and(|info| info.is_ordered()) || writes.first().is_some_and(|(_, write)| write.in_order);
        // Servers before 5.0.7 delete nothing from a capped collection, and an insert that they refuse evicts a document
        // all the same. There a repeated insert is a replacement, which leaves in its place what is there.
        let clears = target.empties_capped && info.is_some_and(|info| info.capped);
        let mut items = Vec::with_capacity(writes.len());
        let mut apart = Vec::new();
        for (index, write) in writes {
            if self.superseded(&place.name, write).await? {
                count(&self.counters.superseded, 1);
                continue;
            }
            let overlap = self.is_overlap(write);
            let again = clears && overlap && matches!(write.content, Content::Insert(_));
            // A document that is not there went later, and to make it again would evict one that stays.
            // Only in order is a replacement the source's, and not a delete and an insert that were merged.
            let gone = write.in_order
                && overlap
                && info.is_some_and(|info| info.capped)
                && matches!(write.content, Content::Replace(_));
            match plan(write, self.form(&place, overlap && !again))? {
                Plan::One(statement) => {
                    let statement = if gone { statement.of_what_stands() } else { statement };
                    self.count_form(&statement);
                    items.push(Item { index: *index, write, statement, overlap, again });
                }
                Plan::Nothing => {}
                plan @ (Plan::Steps(_) | Plan::Refetch) => apart.push(Apart { index: *index, write, plan, overlap }),
            }
        }
        let (first, placeless) = (Vec::new(), Vec::new());
        let mut prepared = Prepared { namespace, place, ordered, items, apart, first, placeless, writes };
        if let Some(key) = shard_key {
            self.place_all(&key, &mut prepared).await?;
        }
        Ok(prepared)
    }

    /// Brings one namespace's part to its end. `sent` is what came of its statements where they went together with
    /// other namespaces'; they are sent here otherwise.
    pub(super) async fn write_prepared<'i, 'a>(
        &self,
        prepared: &'i Prepared<'a>,
        sent: Option<Sent<'i, 'a>>,
    ) -> Result<FlushReport> {
        let place = &prepared.place;
        let Sent { mut report, troubles } = match sent {
            Some(sent) => sent,
            None => self.send_apart(prepared).await?,
        };
        for (index, write, error) in &prepared.placeless {
            merge(&mut report, self.refuse(place, *index, write, error).await?);
        }
        // Only now: a statement that collided may have waited for room that a neighbour was about to make.
        for (item, trouble) in troubles {
            merge(&mut report, self.mend(place, item, trouble).await?.report);
        }
        if !self.options.ddl_ignored {
            self.meet_collections(&place.name, prepared.writes).await?;
        }
        for Apart { index, write, plan, overlap } in &prepared.apart {
            merge(&mut report, self.write_apart(place, *index, write, plan, *overlap).await?);
        }
        Ok(report)
    }

    /// Sends the statements of one namespace in commands of their own.
    async fn send_apart<'i, 'a>(&self, prepared: &'i Prepared<'a>) -> Result<Sent<'i, 'a>> {
        let Prepared { place, items, .. } = prepared;
        let mut all = Sent { report: FlushReport::default(), troubles: Vec::new() };
        if !prepared.first.is_empty() {
            merge(&mut all.report, self.clear_former(prepared).await?);
        }
        if prepared.ordered {
            for run in items.chunk_by(|a, b| together(a) == together(b) && a.again == b.again) {
                let is_again = run.first().is_some_and(|item| item.again);
                let sent = if is_again {
                    self.send_again(place, run).await?
                } else {
                    self.send_group(place, run.iter().collect()).await?
                };
                merge(&mut all.report, sent.report);
                for (item, trouble) in sent.troubles {
                    merge(&mut all.report, self.mend(place, item, trouble).await?.report);
                }
            }
        } else {
            for sent in join_all(groups(items).into_iter().map(|group| self.send_group(place, group))).await {
                let sent = sent?;
                merge(&mut all.report, sent.report);
                all.troubles.extend(sent.troubles);
            }
        }
        Ok(all)
    }

    /// Learns source collections that nothing introduced, so that a later DDL and a replay can tell them apart.
    async fn meet_collections(&self, name: &Namespace, writes: &[(usize, &Write)]) -> Result<()> {
        let mut last = None;
        for source in writes.iter().filter_map(|(_, write)| write.belongs_to()) {
            if last.replace(source) != Some(source) {
                self.catalogue.meet(name, source).await?;
            }
        }
        Ok(())
    }

    pub(in crate::mongodb) fn is_overlap(&self, write: &Write) -> bool {
        write.overlap || self.future.covers(write.target, &write.key, write.time)
    }

    /// The form of a first try: what misses its document is looked at before anything is invented.
    pub(super) fn form(&self, place: &Place, overlap: bool) -> Form {
        Form { overlap, fast: true, upsert: false, dialect: place.target.dialect }
    }

    fn count_form(&self, statement: &Statement<'_>) {
        match statement {
            Statement::Modify { .. } => count(&self.counters.fast, 1),
            Statement::Pipeline { .. } => count(&self.counters.exact, 1),
            Statement::Insert(_)
            | Statement::Update { .. }
            | Statement::Literal { .. }
            | Statement::Delete { .. }
            | Statement::Routed { .. } => {}
        }
    }

    /// Whether a document that a statement does not find is one too few. In overlap it was deleted later, unless the
    /// target removes documents by itself: then the update may have been the one that prolonged its life. Of a sharded
    /// collection a crash may have left out a document that was on its way to another shard.
    pub(super) async fn must_match(&self, place: &Place, statement: &Statement<'_>, overlap: bool) -> Result<bool> {
        let always = !overlap || place.shard_key.is_some();
        Ok(!statement.may_miss() && (always || self.catalogue.expires(&place.name).await?))
    }

    /// Sends statements of one verb; returns those in trouble.
    async fn send_group<'i, 'a>(&self, place: &Place, items: Vec<&'i Item<'a>>) -> Result<Sent<'i, 'a>> {
        let statements: Vec<&Statement<'_>> = items.iter().map(|item| &item.statement).collect();
        let manner = self.manner(place.target, items.first().and_then(|item| item.write.origin));
        let outcome = command::send(&self.client, &place.name, &statements, manner).await?;
        let report = FlushReport { operation_time: outcome.operation_time, ..FlushReport::default() };
        Ok(Sent { report, troubles: self.troubles(place, &items, outcome).await? })
    }

    /// The statements of one verb that did not do what they should, by what the server said of them.
    pub(super) async fn troubles<'i, 'a>(
        &self,
        place: &Place,
        items: &[&'i Item<'a>],
        outcome: Outcome,
    ) -> Result<Vec<(&'i Item<'a>, Trouble)>> {
        let mut troubles = Vec::new();
        let found = outcome.matched + outcome.errors.len() as u64;
        if found < items.len() as u64 {
            let broken: Vec<usize> = outcome.errors.iter().map(|(at, _)| *at).collect();
            let mut asked: Vec<&'i Item<'a>> = Vec::new();
            for (at, item) in items.iter().enumerate() {
                if broken.binary_search(&at).is_err() && self.must_match(place, &item.statement, item.overlap).await? {
                    asked.push(item);
                }
            }
            troubles.extend(self.absent(place, asked).await?.into_iter().map(|item| (item, Trouble::Missing)));
        }
        for (at, error) in outcome.errors {
            let Some(item) = items.get(at) else {
                let text = format!("write to {}: an error of statement {at} of {}", place.name, items.len());
                return Err(Error::new(Side::Sink, Kind::Unavailable, text));
            };
            troubles.push((*item, Trouble::Error(error)));
        }
        Ok(troubles)
    }
}

/// What goes into one command with each other: one verb, of changes of one origin.
type Sort = (Verb, Option<Origin>);

fn together(item: &Item<'_>) -> Sort {
    (item.statement.verb(), item.write.origin)
}

/// The items of each verb, and of each origin, that occurs.
pub(super) fn groups<'i, 'a>(items: &'i [Item<'a>]) -> Vec<Vec<&'i Item<'a>>> {
    let mut groups: Vec<(Sort, Vec<&'i Item<'a>>)> = Vec::new();
    for item in items {
        let key = together(item);
        match groups.iter_mut().find(|(of, _)| *of == key) {
            Some((_, group)) => group.push(item),
            None => groups.push((key, vec![item])),
        }
    }
    groups.sort_by_key(|(key, _)| *key);
    groups.into_iter().map(|(_, group)| group).collect()
}
