//! Writes into a sharded collection: each statement for the one shard that has the document.
//!
//! No index tells two documents of one `_id` apart that stand on two shards, and a write that a `mongos` sends to all
//! shards may miss a document whose chunk is moving. So before a flush the target is asked under which value of the
//! shard key its documents stand: updates and deletes go there, and what is to stand under another value is deleted
//! there first. A crash between the two is healed by the replay: a whole document is written again, and an update that
//! misses its document is read from the source, in overlap too. What becomes of each statement is pure ([`place`]).

use std::collections::HashMap;
use std::time::Instant;

use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::model::{DocumentKey, Namespace, Origin};
use oplogue_engine::sink::{Content, FlushReport, Write};

use super::counters::count;
use super::mend::{batches, documents};
use super::namespace::{Apart, Item, Place, Prepared};
use super::plan::{Form, Plan, steps, whole};
use super::{MongoSink, merge};
use crate::mongodb::command::{self, Statement, StatementError};
use crate::mongodb::shard_key::{Route, ShardKey, Unroutable};
use crate::mongodb::writer::RawWriter;

const ILLEGAL_OPERATION: i32 = 20;
/// No shard can be told: the value is missing from the query, or cannot be one.
const SHARD_KEY_NOT_FOUND: i32 = 61;
const IMMUTABLE_FIELD: i32 = 66;
const INVALID_OPTIONS: i32 = 72;
/// A shard refuses to change the value of a document that the query does not name by all of the key.
const NOT_ALL_OF_THE_KEY: i32 = 31025;

const IDS_AT_ONCE: usize = 1000;

/// Where documents stand: values of the shard key by `_id`. More than one: somebody else put a document of the same
/// `_id` on another shard.
pub(in crate::mongodb) type Places = HashMap<DocumentKey, Vec<Route>>;

/// A write for the shards that it concerns.
#[derive(Debug)]
pub(super) struct Placed<'a> {
    /// Deletes that must be done before: the document stands under another value.
    pub(super) first: Vec<Statement<'a>>,
    pub(super) plan: Plan<'a>,
    /// Documents that go to another value.
    pub(super) moved: u64,
}

/// What placing depends on besides the write.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules<'k> {
    pub(super) key: &'k ShardKey,
    /// An update that may change the key becomes the whole document of the source.
    pub(super) fallback: bool,
    pub(super) form: Form,
}

/// Places a planned write whose document stands under these values now.
///
/// # Errors
/// `Unroutable` inside, when the document can have no place; outside, when it cannot be read.
pub(super) fn place<'a>(
    write: &'a Write,
    plan: Plan<'a>,
    stands: &[Route],
    rules: Rules<'_>,
) -> Result<std::result::Result<Placed<'a>, Unroutable>> {
    let may_change = rules.key.may_change_by(&write.content);
    let plan = match (plan, &write.content) {
        (Plan::One(_) | Plan::Steps(_), _) if may_change && rules.fallback => Plan::Refetch,
        // What it becomes in the end has no place that could be told: one after the other.
        (Plan::One(_), Content::Patched { base, patches, .. }) if may_change => {
            steps(&write.key, Some(whole(&write.key, base)?), patches, rules.form)?
        }
        (plan, _) => plan,
    };
    let mut placing = Placing { key: rules.key, stands: stands.to_vec(), moved: 0 };
    let placed = match plan {
        Plan::One(statement) => placing.one(write, statement).map(|mut all| {
            let last = all.pop();
            Placed { first: all, plan: last.map_or(Plan::Nothing, Plan::One), moved: placing.moved }
        }),
        Plan::Steps(list) => {
            let all: std::result::Result<Vec<_>, _> =
                list.into_iter().map(|statement| placing.one(write, statement)).collect();
            all.map(|all| Placed {
                first: Vec::new(),
                plan: Plan::Steps(all.into_iter().flatten().collect()),
                moved: placing.moved,
            })
        }
        plan @ (Plan::Refetch | Plan::Nothing) => Ok(Placed { first: Vec::new(), plan, moved: 0 }),
    };
    Ok(placed)
}

/// Where one document stands while its statements are placed.
struct Placing<'k> {
    key: &'k ShardKey,
    stands: Vec<Route>,
    moved: u64,
}

impl Placing<'_> {
    /// The statement for its shard, behind the deletes that it needs.
    fn one<'a>(
        &mut self,
        write: &'a Write,
        statement: Statement<'a>,
    ) -> std::result::Result<Vec<Statement<'a>>, Unroutable> {
        let whole = whole_of(write, &statement);
        if let Some(document) = whole {
            let route = self.key.route(document)?;
            let former: Vec<Route> = self.stands.drain(..).filter(|stands| *stands != route).collect();
            self.moved += former.len() as u64;
            let mut all = self.deletes(&write.key, &former);
            if !matches!(statement, Statement::Insert(_)) {
                all.push(statement.routed(&route));
            } else {
                all.push(statement);
            }
            self.stands.push(route);
            return Ok(all);
        }
        if let Statement::Delete { key } = &statement {
            let former = std::mem::take(&mut self.stands);
            let all = self.deletes(key, &former);
            return Ok(if all.is_empty() { vec![statement] } else { all });
        }
        Ok(vec![match self.stands.as_slice() {
            [route] if !self.key.is_collated() => statement.routed(route),
            // By `_id` alone a mongos sends it to every shard.
            _ => statement,
        }])
    }

    fn deletes<'a>(&self, key: &'a [u8], from: &[Route]) -> Vec<Statement<'a>> {
        let delete = Statement::Delete { key };
        match from {
            [] => Vec::new(),
            // By the collection's collation two ids of different bytes are one, and two values of the key are not.
            _ if self.key.is_collated() => vec![delete],
            routes => routes.iter().map(|route| delete.clone().routed(route)).collect(),
        }
    }
}

/// The document that a statement puts in place, whatever stands there; for a pipeline over one, that one.
fn whole_of<'s>(write: &'s Write, statement: &Statement<'s>) -> Option<&'s [u8]> {
    match (statement, &write.content) {
        (Statement::Insert(document) | Statement::Literal { document, .. }, _) => Some(document),
        (Statement::Update { update, upsert: true, .. }, _) => Some(update),
        (Statement::Pipeline { upsert: true, .. }, Content::Patched { base, .. }) => Some(base),
        (
            Statement::Update { .. }
            | Statement::Pipeline { .. }
            | Statement::Modify { .. }
            | Statement::Delete { .. }
            | Statement::Routed { .. },
            _,
        ) => None,
    }
}

/// The error of a document that the shard key has no place for, as a server would report it.
pub(in crate::mongodb) fn no_place(why: &Unroutable) -> StatementError {
    StatementError {
        at: Instant::now(),
        code: SHARD_KEY_NOT_FOUND,
        message: why.to_string(),
        key_pattern: None,
        key_value: None,
    }
}

/// The upsert of a whole document, for its own shard; anything else as it is.
///
/// # Errors
/// `Unroutable`.
pub(in crate::mongodb) fn upsert_at<'a>(
    key: &ShardKey,
    statement: Statement<'a>,
) -> std::result::Result<Statement<'a>, Unroutable> {
    let document = match &statement {
        Statement::Update { update: document, upsert: true, .. } | Statement::Literal { document, .. } => *document,
        Statement::Insert(_)
        | Statement::Update { .. }
        | Statement::Modify { .. }
        | Statement::Pipeline { .. }
        | Statement::Delete { .. }
        | Statement::Routed { .. } => return Ok(statement),
    };
    Ok(statement.routed(&key.route(document)?))
}

/// Whether a refusal is about the shard key of the document.
pub(super) fn is_about_the_key(content: &Content, error: &StatementError) -> bool {
    let is_update = matches!(content, Content::Patch(_) | Content::Patched { .. });
    match error.code {
        SHARD_KEY_NOT_FOUND | NOT_ALL_OF_THE_KEY => true,
        ILLEGAL_OPERATION | IMMUTABLE_FIELD | INVALID_OPTIONS => is_update,
        _ => false,
    }
}

/// A refused change of the shard key, in words that name the key and the setting.
pub(super) fn changed_key(key: &ShardKey, error: &StatementError) -> StatementError {
    let message = format!(
        "the update changes the document's value of the target's shard key {}, and \
         incr_sync.executor.immutable_shard_key_fallback is false (true deletes it there and writes it whole): {} \
         (the server's code {})",
        key.text(),
        error.message,
        error.code
    );
    StatementError { at: error.at, code: IMMUTABLE_FIELD, message, key_pattern: None, key_value: None }
}

impl MongoSink {
    /// Places all that is prepared for a sharded collection. Plain inserts find their shard by themselves.
    pub(super) async fn place_all<'a>(&self, key: &ShardKey, prepared: &mut Prepared<'a>) -> Result<()> {
        let items = std::mem::take(&mut prepared.items);
        let apart = std::mem::take(&mut prepared.apart);
        let is_insert = |item: &Item<'_>| matches!(item.statement, Statement::Insert(_));
        let of_items = items.iter().filter(|item| !is_insert(item)).map(|item| item.write);
        let of_apart = apart.iter().filter(|apart| matches!(apart.plan, Plan::Steps(_))).map(|apart| apart.write);
        let keys: Vec<&[u8]> = of_items.chain(of_apart).map(|write| write.key.as_ref()).collect();
        let places = self.locate(&prepared.place.name, key, &keys).await?;
        let (plain, placed): (Vec<_>, Vec<_>) = items.into_iter().partition(is_insert);
        prepared.items = plain;
        let placed = placed.into_iter().map(|item| Apart {
            index: item.index,
            write: item.write,
            plan: Plan::One(item.statement),
            overlap: item.overlap,
        });
        for Apart { index, write, plan, overlap } in placed.chain(apart) {
            let form = self.form(&prepared.place, overlap);
            let rules = Rules { key, fallback: self.options.immutable_shard_key_fallback, form };
            let stands = places.get(&DocumentKey::of_document(&write.key)?).map_or(&[][..], Vec::as_slice);
            match place(write, plan, stands, rules)? {
                Ok(Placed { first, plan, moved }) => {
                    self.counters.moved(moved);
                    prepared.first.extend(first.into_iter().map(|statement| (write.origin, statement)));
                    match plan {
                        Plan::One(statement) => {
                            prepared.items.push(Item { index, write, statement, overlap, again: false });
                        }
                        Plan::Nothing => {}
                        plan @ (Plan::Steps(_) | Plan::Refetch) => {
                            prepared.apart.push(Apart { index, write, plan, overlap });
                        }
                    }
                }
                Err(why) => prepared.placeless.push((index, write, no_place(&why))),
            }
        }
        prepared.items.sort_by_key(|item| item.index);
        Ok(())
    }

    /// Takes documents out from where they are not to stand any more.
    pub(super) async fn clear_former(&self, prepared: &Prepared<'_>) -> Result<FlushReport> {
        let mut report = FlushReport::default();
        for run in prepared.first.chunk_by(|a, b| a.0 == b.0) {
            let statements: Vec<&Statement<'_>> = run.iter().map(|(_, statement)| statement).collect();
            let origin: Option<Origin> = run.first().and_then(|(origin, _)| *origin);
            let manner = self.manner(prepared.place.target, origin);
            let outcome = command::send(&self.client, &prepared.place.name, &statements, manner).await?;
            if let Some((_, error)) = outcome.errors.first() {
                let text = format!(
                    "delete from {} what is to stand on another shard: {} (code {})",
                    prepared.place.name, error.message, error.code
                );
                return Err(Error::new(Side::Sink, Kind::Unavailable, text));
            }
            merge(&mut report, FlushReport { operation_time: outcome.operation_time, ..FlushReport::default() });
        }
        Ok(report)
    }

    /// Places the statements that put one whole document in place.
    pub(super) async fn place_whole<'a>(
        &self,
        place: &Place,
        key: &ShardKey,
        write: &'a Write,
        statements: Vec<Statement<'a>>,
    ) -> Result<std::result::Result<Vec<Statement<'a>>, StatementError>> {
        let places = self.locate(&place.name, key, &[&write.key]).await?;
        let stands = places.into_values().next().unwrap_or_default();
        let mut placing = Placing { key, stands, moved: 0 };
        let placed: std::result::Result<Vec<_>, Unroutable> =
            statements.into_iter().map(|statement| placing.one(write, statement)).collect();
        self.counters.moved(placing.moved);
        if placing.moved > 0 {
            let id = super::shown_id(&write.key);
            tracing::debug!(namespace = %place.name, %id, "a document goes to its new value of the shard key");
        }
        Ok(placed.map(|all| all.into_iter().flatten().collect()).map_err(|why| no_place(&why)))
    }

    /// A refusal about the shard key: the collection is sharded in another way than was known, or an update changes
    /// the key. `None`: it is something else.
    pub(super) async fn refused_by_key(
        &self,
        place: &Place,
        write: &Write,
        error: &StatementError,
    ) -> Result<Option<StatementError>> {
        if !place.target.is_mongos || !is_about_the_key(&write.content, error) {
            return Ok(None);
        }
        if self.catalogue.is_sharded_anew(&place.name).await? {
            let text = format!(
                "write to {}: the collection was sharded in another way meanwhile: {} (code {})",
                place.name, error.message, error.code
            );
            return Err(Error::new(Side::Sink, Kind::Unavailable, text));
        }
        let Some(key) = place.shard_key.as_deref() else { return Ok(None) };
        let is_update = matches!(write.content, Content::Patch(_) | Content::Patched { .. });
        let is_change = is_update && key.may_change_by(&write.content) && !self.options.immutable_shard_key_fallback;
        Ok(is_change.then(|| changed_key(key, error)))
    }

    /// Asks where documents of these keys stand.
    ///
    /// # Errors
    /// Those of the target.
    pub(in crate::mongodb) async fn locate(&self, name: &Namespace, key: &ShardKey, ids: &[&[u8]]) -> Result<Places> {
        let mut places = Places::with_capacity(ids.len());
        for chunk in ids.chunks(IDS_AT_ONCE) {
            let mut w = RawWriter::with_capacity(64 * chunk.len() + 256);
            w.string("find", name.collection());
            w.document("filter", |w| super::mend::among(w, chunk.iter().copied()));
            w.document("projection", |w| key.project(w));
            for reply in batches(&self.client, name, Side::Sink, "look for the shards of documents", w).await? {
                for document in documents(&reply)? {
                    // What stands there has a place, or it would not stand there.
                    if let Ok(route) = key.route(document) {
                        places.entry(DocumentKey::of_document(document)?).or_default().push(route);
                    }
                }
            }
        }
        Ok(places)
    }
}

impl super::Counters {
    /// Documents that were taken out because they go to another value of the shard key.
    pub(in crate::mongodb) fn moved(&self, documents: u64) {
        if documents == 0 {
            return;
        }
        count(&self.moved, documents);
        self.series.iter().for_each(|series| {
            series.sink.moved.inc_by(documents);
        });
    }
}

#[cfg(test)]
mod tests;
