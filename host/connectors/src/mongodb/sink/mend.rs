//! Carries out the cures: second forms of a statement, missing documents, whole documents from the source.
//!
//! Everything here is rare and goes one statement at a time. A statement is tried a few times in other forms; what is
//! refused even so is reported for its own change, never for its neighbours.

use bytes::Bytes;
use futures_util::StreamExt as _;
use mongodb::Client;
use mongodb::raw_batch_cursor::RawBatchCursor;
use oplogue_engine::conflict::Ruling;
use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::model::raw::{self, Elements};
use oplogue_engine::model::{DocumentKey, Namespace, OpTime, Origin};
use oplogue_engine::sink::{FlushReport, Write};

use super::super::patience::answered;
use super::counters::count;
use super::cure::{self, Cure, cure};
use super::lose::{Loss, refused};
use super::namespace::{Item, Place};
use super::original::Original;
use super::plan::{Form, Plan, plan, whole};
use super::{MissingDocument, MongoSink, merge};
use crate::mongodb::classify;
use crate::mongodb::command::{self, Statement, StatementError};
use crate::mongodb::literal::needs_literal;
use crate::mongodb::writer::RawWriter;

/// How often one statement is sent again, in whatever forms, before its error is final.
const TRIES: usize = 4;

/// What went wrong with a statement.
#[derive(Debug)]
pub(super) enum Trouble {
    /// No document matched.
    Missing,
    Error(StatementError),
}

/// What comes next for a statement in trouble.
enum Next<'a> {
    Send(Statement<'a>),
    Done(FlushReport),
    /// The document was written as the source has it: nothing else of this write is left to do.
    Whole(FlushReport),
}

/// How a statement in trouble ended.
pub(super) struct Mended {
    pub(super) report: FlushReport,
    /// The whole document was dealt with, not only this statement.
    whole: bool,
}

impl MongoSink {
    /// Brings one statement to an end.
    ///
    /// # Errors
    /// When its outcome is unknown, or the settings say that this must stop the run.
    pub(super) async fn mend(&self, place: &Place, item: &Item<'_>, first: Trouble) -> Result<Mended> {
        let mut trouble = first;
        let mut statement = item.statement.clone();
        for _ in 0..TRIES {
            statement = match self.next(place, item, statement, &trouble).await? {
                Next::Send(statement) => statement,
                Next::Done(report) => return Ok(Mended { report, whole: false }),
                Next::Whole(report) => return Ok(Mended { report, whole: true }),
            };
            count(&self.counters.repeated, 1);
            match self.send_one(place, &statement, item.write.origin, item.overlap).await? {
                Ok(time) => return Ok(Mended { report: done(time), whole: false }),
                Err(next) => trouble = next,
            }
        }
        match trouble {
            Trouble::Error(error) => {
                let report = self.refuse(place, item.index, item.write, &error).await?;
                Ok(Mended { report, whole: false })
            }
            Trouble::Missing => {
                let text = format!("update {}: the document comes and goes; somebody else writes there", place.name);
                Err(Error::new(Side::Sink, Kind::Unavailable, text))
            }
        }
    }

    async fn next<'a>(
        &self,
        place: &Place,
        item: &Item<'a>,
        statement: Statement<'a>,
        trouble: &Trouble,
    ) -> Result<Next<'a>> {
        let error = match trouble {
            Trouble::Missing => return self.missing(place, item).await,
            Trouble::Error(error) => error,
        };
        let by_key = self.refused_by_key(place, item.write, error).await?;
        if let Some(error) = by_key {
            return Ok(Next::Done(self.refuse(place, item.index, item.write, &error).await?));
        }
        let cured = cure(&item.write.content, statement.core(), error);
        Ok(match cured {
            Cure::Accept => Next::Done(FlushReport::default()),
            Cure::Again => Next::Send(statement),
            Cure::Refuse if item.overlap && cure::is_by_index(error.code) => {
                Next::Whole(self.refetch(place, item.index, item.write).await?)
            }
            Cure::Refuse => Next::Done(self.refuse(place, item.index, item.write, error).await?),
            Cure::Duplicate => self.duplicate(place, item, error).await?,
            // The server would put its own time into it.
            // So is a name at the top level that begins with `$`, which such a server takes from no statement.
            Cure::InsertAnew if body(item.write).is_some_and(|document| needs_literal(document).unwrap_or(true)) => {
                Next::Done(self.refuse(place, item.index, item.write, error).await?)
            }
            Cure::DeleteFirst | Cure::InsertAnew => {
                let delete = Statement::Delete { key: &item.write.key };
                match (self.send_one(place, &delete, item.write.origin, true).await?, body(item.write)) {
                    (Ok(_), Some(document)) if cured == Cure::InsertAnew => Next::Send(Statement::Insert(document)),
                    // What stood there is gone: a statement for a document that is there would write nothing now.
                    (Ok(_), Some(document)) if place.shard_key.is_none() => {
                        Next::Send(Statement::replace(&item.write.key, document)?)
                    }
                    (Ok(_), _) => Next::Send(statement),
                    (Err(_), _) => Next::Done(self.refuse(place, item.index, item.write, error).await?),
                }
            }
            Cure::Exact => match plan(item.write, Form { fast: false, ..self.form(place, item.overlap) })? {
                Plan::One(exact) => Next::Send(match &statement {
                    Statement::Routed { route, .. } => exact.routed(route),
                    Statement::Insert(_)
                    | Statement::Update { .. }
                    | Statement::Modify { .. }
                    | Statement::Literal { .. }
                    | Statement::Pipeline { .. }
                    | Statement::Delete { .. } => exact,
                }),
                Plan::Steps(_) | Plan::Refetch | Plan::Nothing => {
                    Next::Whole(self.refetch(place, item.index, item.write).await?)
                }
            },
            Cure::Refetch => Next::Whole(self.refetch(place, item.index, item.write).await?),
        })
    }

    /// Sends one statement: its operation time, or what went wrong with it.
    async fn send_one(
        &self,
        place: &Place,
        statement: &Statement<'_>,
        origin: Option<Origin>,
        overlap: bool,
    ) -> Result<Result<Option<OpTime>, Trouble>> {
        self.catalogue.still_held().await?;
        let manner = self.manner(place.target, origin);
        let mut outcome = command::send(&self.client, &place.name, &[statement], manner).await?;
        Ok(match outcome.errors.pop() {
            Some((_, error)) => Err(Trouble::Error(error)),
            None if outcome.matched == 0 && self.must_match(place, statement, overlap).await? => Err(Trouble::Missing),
            None => Ok(outcome.operation_time),
        })
    }

    /// An insert, outside of overlap, whose `_id` is taken.
    async fn duplicate<'a>(&self, place: &Place, item: &Item<'a>, error: &StatementError) -> Result<Next<'a>> {
        // Of an insert with updates behind it, this is the first statement.
        let inserted = match item.statement.core() {
            Statement::Insert(document) => Some(*document),
            Statement::Update { .. }
            | Statement::Modify { .. }
            | Statement::Literal { .. }
            | Statement::Pipeline { .. }
            | Statement::Routed { .. }
            | Statement::Delete { .. } => None,
        };
        let Some(document) = body(item.write).map(AsRef::as_ref).or(inserted) else {
            return Ok(Next::Done(FlushReport::default()));
        };
        let replaces = item.overlap || self.options.insert_on_dup_update;
        if replaces && place.shard_key.is_some() {
            return Ok(Next::Done(self.put(place, item.index, item.write, document).await?));
        }
        if replaces {
            return Ok(Next::Send(Statement::replace(&item.write.key, document)?));
        }
        let loss = Loss { namespace: &place.name, write: item.write, error };
        let ruling = self.judge(loss.namespace, loss.write, error).await?;
        if ruling == Ruling::Overwrite {
            // A replacement is the delete and the insert in one.
            self.name(loss, &ruling, Some(&item.write.key));
            self.count_overwritten(loss);
            return Ok(Next::Send(Statement::replace(&item.write.key, document)?));
        }
        let refusal = self.conclude(loss, ruling).await?;
        // What stands there is somebody else's: updates behind the insert are not for it.
        Ok(Next::Whole(refusal.map_or_else(FlushReport::default, |refusal| refused(item.index, refusal))))
    }

    /// An update whose document the target does not have: outside of overlap, or in a collection whose documents
    /// expire. In overlap the source alone knows, whatever the settings.
    async fn missing<'a>(&self, place: &Place, item: &Item<'a>) -> Result<Next<'a>> {
        if item.overlap {
            return self.refetch(place, item.index, item.write).await.map(Next::Whole);
        }
        self.counters.one_missing();
        match self.options.missing_document {
            MissingDocument::Ignore => Ok(Next::Whole(FlushReport::default())),
            MissingDocument::Refetch => self.refetch(place, item.index, item.write).await.map(Next::Whole),
            // Nobody knows the shard key of a document that is made out of an update.
            MissingDocument::Upsert if place.shard_key.is_some() => {
                self.refetch(place, item.index, item.write).await.map(Next::Whole)
            }
            MissingDocument::Upsert => {
                let form = Form { fast: false, upsert: true, ..self.form(place, item.overlap) };
                match plan(item.write, form)? {
                    Plan::One(statement) => Ok(Next::Send(statement)),
                    Plan::Steps(_) | Plan::Refetch | Plan::Nothing => {
                        self.refetch(place, item.index, item.write).await.map(Next::Whole)
                    }
                }
            }
            MissingDocument::Stop => {
                self.prove_same_leader().await?;
                let id = shown_id(&item.write.key);
                let text = format!(
                    "update {}: the target has no document {id} (incr_sync.executor.missing_document = stop)",
                    place.name
                );
                Err(Error::new(Side::Sink, Kind::CannotApply, text))
            }
        }
    }

    /// Writes the whole document as the source has it now; nothing when the source has none any more, since its
    /// delete is on the way, or when a plugin keeps it from the target.
    async fn refetch(&self, place: &Place, index: usize, write: &Write) -> Result<FlushReport> {
        match self.fetch(write).await? {
            Original::Document(document) => self.put(place, index, write, &document).await,
            Original::Absent | Original::Dropped => Ok(FlushReport::default()),
        }
    }

    /// Writes a whole document, whatever stands there.
    async fn put(&self, place: &Place, index: usize, write: &Write, document: &[u8]) -> Result<FlushReport> {
        let key = &write.key;
        let statements = match whole(key, document)? {
            Plan::One(statement) => vec![statement],
            Plan::Steps(statements) => statements,
            Plan::Refetch | Plan::Nothing => Vec::new(),
        };
        let statements = match place.shard_key.as_deref() {
            None => statements,
            Some(shard_key) => match self.place_whole(place, shard_key, write, statements).await? {
                Ok(placed) => placed,
                Err(error) => return self.refuse(place, index, write, &error).await,
            },
        };
        let mut tried = self.put_all(place, &statements, write.origin).await?;
        if matches!(&tried, Err(e) if e.code == cure::DOLLAR_PREFIXED) && !needs_literal(document)? {
            tried =
                self.put_all(place, &[Statement::Delete { key }, Statement::Insert(document)], write.origin).await?;
        }
        match tried {
            Ok(time) => Ok(done(time)),
            Err(error) => self.refuse(place, index, write, &error).await,
        }
    }

    async fn put_all(
        &self,
        place: &Place,
        statements: &[Statement<'_>],
        origin: Option<Origin>,
    ) -> Result<Result<Option<OpTime>, StatementError>> {
        let mut time = None;
        for statement in statements {
            match self.send_one(place, statement, origin, true).await? {
                Ok(at) => time = at.max(time),
                Err(Trouble::Missing) => {}
                Err(Trouble::Error(error)) => return Ok(Err(error)),
            }
        }
        Ok(Ok(time))
    }

    /// A write that needs more than one statement, or the whole document.
    pub(super) async fn write_apart(
        &self,
        place: &Place,
        index: usize,
        write: &Write,
        plan: &Plan<'_>,
        overlap: bool,
    ) -> Result<FlushReport> {
        let Plan::Steps(steps) = plan else {
            return self.refetch(place, index, write).await;
        };
        let mut report = FlushReport::default();
        for statement in steps {
            match self.send_one(place, statement, write.origin, overlap).await? {
                Ok(time) => merge(&mut report, done(time)),
                Err(trouble) => {
                    let item = Item { index, write, statement: statement.clone(), overlap, again: false };
                    let mended = self.mend(place, &item, trouble).await?;
                    merge(&mut report, mended.report);
                    if mended.whole || !report.refused.is_empty() {
                        break;
                    }
                }
            }
        }
        Ok(report)
    }

    /// Those of `items` whose document the target does not have.
    pub(super) async fn absent<'i, 'a>(&self, place: &Place, items: Vec<&'i Item<'a>>) -> Result<Vec<&'i Item<'a>>> {
        const IDS_AT_ONCE: usize = 1000;
        let mut absent = Vec::new();
        for chunk in items.chunks(IDS_AT_ONCE) {
            let present = present(&self.client, &place.name, chunk).await?;
            for item in chunk {
                let key = DocumentKey::of_document(&item.write.key)?;
                if !present.contains(&key) {
                    absent.push(*item);
                }
            }
        }
        Ok(absent)
    }
}

/// The keys, among those of `items`, that the collection holds.
async fn present(client: &Client, name: &Namespace, items: &[&Item<'_>]) -> Result<Vec<DocumentKey>> {
    let mut w = RawWriter::with_capacity(64 * items.len() + 256);
    w.string("find", name.collection());
    w.document("filter", |w| among(w, items.iter().map(|item| item.write.key.as_ref())));
    w.document("projection", |w| w.int("_id", 1));
    let mut keys = Vec::new();
    for reply in batches(client, name, Side::Sink, "look for missing documents", w).await? {
        for document in documents(&reply)? {
            keys.push(DocumentKey::of_document(document)?);
        }
    }
    Ok(keys)
}

/// Appends a filter for the documents of these keys.
pub(super) fn among<'k>(w: &mut RawWriter, keys: impl Iterator<Item = &'k [u8]>) {
    among_at(w, "_id", keys);
}

/// The same, where the `_id` is at another place.
pub(super) fn among_at<'k>(w: &mut RawWriter, place: &str, keys: impl Iterator<Item = &'k [u8]>) {
    w.document(place, |w| {
        w.array("$in", |w| {
            for key in keys {
                if let Ok(Some(id)) = raw::find(key, "_id") {
                    w.element(&id);
                }
            }
        });
    });
}

/// Runs a cursor command to its end; whole raw replies.
pub(super) async fn batches(
    client: &Client,
    name: &Namespace,
    side: Side,
    doing: &str,
    command: RawWriter,
) -> Result<Vec<Bytes>> {
    let failed = |e| classify::error(side, &format!("{doing} of {name}"), e);
    let mut cursor = open(client, name, side, doing, command).await?.map_err(failed)?;
    let mut replies = Vec::new();
    while let Some(batch) = answered(side, doing, cursor.next()).await? {
        replies.push(Bytes::copy_from_slice(batch.map_err(failed)?.as_raw_document().as_bytes()));
    }
    Ok(replies)
}

/// Opens a cursor; the server's refusal is inside.
pub(super) async fn open(
    client: &Client,
    name: &Namespace,
    side: Side,
    doing: &str,
    command: RawWriter,
) -> Result<std::result::Result<RawBatchCursor, mongodb::error::Error>> {
    let command = command::raw(command.finish())?;
    let database = client.database(name.database());
    let asked = database.run_raw_cursor_command(command).batch();
    answered(side, &format!("{doing} of {name}"), asked).await
}

/// The documents of a cursor's reply.
pub(super) fn documents(reply: &[u8]) -> Result<Vec<&[u8]>> {
    let mut found = Vec::new();
    let Some(cursor) = raw::find(reply, "cursor")? else {
        return Ok(found);
    };
    for element in Elements::new(cursor.value)? {
        let element = element?;
        if matches!(element.name, b"firstBatch" | b"nextBatch") {
            for document in Elements::new(element.value)? {
                found.push(document?.value);
            }
        }
    }
    Ok(found)
}

fn done(operation_time: Option<OpTime>) -> FlushReport {
    FlushReport { operation_time, ..FlushReport::default() }
}

pub(super) fn body(write: &Write) -> Option<&Bytes> {
    use oplogue_engine::sink::Content;
    match &write.content {
        Content::Insert(document) | Content::Replace(document) => Some(document),
        Content::Patch(_) | Content::Patched { .. } | Content::Delete => None,
    }
}

/// An `_id` for a message, cut to a readable length.
pub(in crate::mongodb) fn shown_id(key: &[u8]) -> String {
    const CHARS_MAX: usize = 120;
    let id = bson::RawDocument::from_bytes(key).ok().and_then(|d| d.get("_id").ok().flatten());
    let text = id.map_or_else(|| "without _id".to_owned(), |id| format!("{id:?}"));
    text.chars().take(CHARS_MAX).collect()
}
