//! Inserts that are repeated into capped collections, whose order and whose evictions are data.
//!
//! What is inserted again goes to the end, behind its predecessors, as it did on the source. While that is repeated the
//! target is ahead of the stream, so a full collection could evict documents that the source still has: for a document
//! that was deleted since, or for the larger form of one that shrank since. Nothing would bring them back. So where
//! something would have to go, the source is asked what it has: what it has no more stays away (its delete is on the
//! way), and what stands on the target already is moved as it stands. What came back under its `_id` since is told by the
//! source's oplog, which has the delete between the two. Sources before 5.0.7 delete nothing from a capped
//! collection, and before 5.0 they change no sizes there; targets before 5.0.7 delete nothing either and never come here.

use std::collections::{HashMap, HashSet};

use bson::{Document, RawDocument, doc};
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use mongodb::Client;
use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::model::raw::{self, kind};
use oplogue_engine::model::{CollectionUuid, DocumentKey, Namespace, OpTime};
use oplogue_engine::sink::{FlushReport, Write};

use super::counters::count;
use super::mend::{among, among_at, batches, body, documents};
use super::namespace::{Item, Place, Sent};
use super::{MongoSink, cure, merge};
use crate::mongodb::command::{self, Statement, StatementError};
use crate::mongodb::literal::needs_literal;
use crate::mongodb::originals::Originals;
use crate::mongodb::patience::{self, Asked, answered, worked_on};
use crate::mongodb::writer::RawWriter;
use crate::mongodb::{classify, ddl};

mod fate;

use fate::{Fate, Known, Order, Repeated, Room, Sized, fates, moved};

/// The subtype of binary data that is a UUID.
const UUID: u8 = 4;

impl MongoSink {
    /// Sends repeated inserts of a capped collection, in their order.
    pub(super) async fn send_again<'i, 'a>(&self, place: &Place, run: &'i [Item<'a>]) -> Result<Sent<'i, 'a>> {
        let fates = self.fates(place, run).await?;
        let having =
            |fate: Fate| run.iter().zip(&fates).filter(move |(_, one)| **one == fate).map(|(item, _)| item.write);
        let moved = self.standing(place, having(Fate::Move).collect()).await?;
        let kept = run.iter().zip(&fates).filter(|(_, fate)| **fate != Fate::LeaveOut);
        let kept: Vec<&'i Item<'a>> = kept.map(|(item, _)| item).collect();
        count(&self.counters.left_out, (run.len() - kept.len()) as u64);
        if kept.is_empty() {
            return Ok(Sent { report: FlushReport::default(), troubles: Vec::new() });
        }
        let mut report = self.clear_way(place, &kept).await?;
        let mut statements = Vec::with_capacity(kept.len());
        for item in &kept {
            let key = DocumentKey::of_document(&item.write.key)?;
            statements.push(match moved.get(&key) {
                Some(document) => like(&item.statement, &item.write.key, document)?,
                None => item.statement.clone(),
            });
        }
        let statements: Vec<&Statement<'_>> = statements.iter().collect();
        let manner = self.manner(place.target, kept.first().and_then(|item| item.write.origin));
        let outcome = command::send(&self.client, &place.name, &statements, manner).await?;
        merge(&mut report, FlushReport { operation_time: outcome.operation_time, ..FlushReport::default() });
        Ok(Sent { report, troubles: self.troubles(place, &kept, outcome).await? })
    }

    /// Takes out of the collection what is about to be inserted again. Left in its place it would stand before documents
    /// that were evicted and come back.
    async fn clear_way(&self, place: &Place, items: &[&Item<'_>]) -> Result<FlushReport> {
        let removals: Vec<Statement<'_>> =
            items.iter().map(|item| Statement::Delete { key: &item.write.key }).collect();
        let statements: Vec<&Statement<'_>> = removals.iter().collect();
        let manner = self.manner(place.target, items.first().and_then(|item| item.write.origin));
        let outcome = command::send(&self.client, &place.name, &statements, manner).await?;
        is_clear(&place.name, &outcome.errors)?;
        Ok(FlushReport { operation_time: outcome.operation_time, ..FlushReport::default() })
    }

    /// Asks only where something would have to go.
    async fn fates(&self, place: &Place, run: &[Item<'_>]) -> Result<Vec<Fate>> {
        let all_inserted = vec![Fate::Insert; run.len()];
        let (Some(room), Some(source)) = (room(&self.client, &place.name).await?, &self.source) else {
            return Ok(all_inserted);
        };
        let mut repeated = Vec::with_capacity(run.len());
        for item in run {
            let bytes = body(item.write).map_or(0, |document| document.len() as u64);
            repeated.push(Repeated { key: DocumentKey::of_document(&item.write.key)?, bytes, standing: None });
        }
        if !room.with_all(&repeated).is_over() {
            return Ok(all_inserted);
        }
        let keys = run.iter().map(|item| item.write.key.as_ref());
        let standing = sizes(&self.client, &place.name, |w| w.document("$match", |w| among(w, keys))).await?;
        let standing: HashMap<_, _> = standing.into_iter().map(|one| (one.key, one.bytes)).collect();
        repeated.iter_mut().for_each(|one| one.standing = standing.get(&one.key).copied());
        let after = room.with_all(&repeated);
        if !after.is_over() {
            return Ok(all_inserted);
        }
        let front = self.front(place, after, &repeated).await?;
        Ok(match self.order(source, run, &front).await? {
            Some(order) => {
                // The oplog is asked only where it makes a difference.
                let keys = repeated.iter().map(|one| one.key).collect();
                let mut known = Known { order, deleted: keys, by_order: false };
                let if_all = fates(room, &front, &repeated, &known);
                known.deleted = HashSet::new();
                if if_all == fates(room, &front, &repeated, &known) {
                    return Ok(if_all);
                }
                match self.deleted_since(source, run).await {
                    Ok(deleted) => known.deleted = deleted,
                    // A job by change stream goes without the privilege, and an oplog may have gone on.
                    Err(error) if matches!(error.kind(), Kind::Unauthorized | Kind::HistoryLost) => {
                        tracing::warn!(namespace = %place.name, %error, "what came back is told by the order of documents");
                        known.by_order = true;
                    }
                    Err(error) => return Err(error),
                }
                fates(room, &front, &repeated, &known)
            }
            None => all_inserted,
        })
    }

    /// Which of the documents of `run` the source has deleted after what is repeated of them. Reads its oplog from the
    /// oldest of them on.
    async fn deleted_since(&self, source: &Originals, run: &[Item<'_>]) -> Result<HashSet<DocumentKey>> {
        let mut deletes: HashMap<DocumentKey, u64> = HashMap::new();
        for write in asked(run) {
            let name = self.namespaces.name(write.source);
            for place in source.places(&name).await?.iter() {
                for (key, time) in logged_deletes(place.client, &name, write.collection, run).await? {
                    let newest = deletes.entry(key).or_default();
                    *newest = time.max(*newest);
                }
            }
        }
        let mut deleted = HashSet::new();
        for item in run {
            let key = DocumentKey::of_document(&item.write.key)?;
            if deletes.get(&key).is_some_and(|time| *time > item.write.time.ts()) {
                deleted.insert(key);
            }
        }
        Ok(deleted)
    }

    /// The oldest documents of the target, at least as many as have to go where nothing is left out.
    async fn front(&self, place: &Place, after: Room, repeated: &[Repeated]) -> Result<Vec<Sized>> {
        let moved = moved(repeated);
        let mut limit = 2 * repeated.len() + 16;
        loop {
            let number = i32::try_from(limit).unwrap_or(i32::MAX);
            let front = sizes(&self.client, &place.name, |w| w.int("$limit", number)).await?;
            let left =
                front.iter().filter(|one| !moved.contains(&one.key)).fold(after, |room, one| room.without(one.bytes));
            if front.len() < limit || !left.is_over() {
                return Ok(front);
            }
            limit *= 4;
        }
    }

    /// The target's documents under the keys of `writes`, whole.
    async fn standing(&self, place: &Place, writes: Vec<&Write>) -> Result<HashMap<DocumentKey, Bytes>> {
        let mut standing = HashMap::new();
        if writes.is_empty() {
            return Ok(standing);
        }
        let mut w = RawWriter::with_capacity(64 * writes.len() + 256);
        w.string("find", place.name.collection());
        w.document("filter", |w| among(w, writes.iter().map(|write| write.key.as_ref())));
        for reply in batches(&self.client, &place.name, Side::Sink, "read what is inserted again", w).await? {
            for document in documents(&reply)? {
                standing.insert(DocumentKey::of_document(document)?, Bytes::copy_from_slice(document));
            }
        }
        Ok(standing)
    }

    /// What the source has of the repeated documents and of those in front, and in which order. `None` when a
    /// collection of theirs is gone: then its end is on the way.
    async fn order(&self, source: &Originals, run: &[Item<'_>], front: &[Sized]) -> Result<Option<Order>> {
        let keys: Vec<&[u8]> = run
            .iter()
            .map(|item| item.write.key.as_ref())
            .chain(front.iter().map(|document| document.selector.as_ref()))
            .collect();
        let newest = run.iter().map(|item| item.write.time).max().unwrap_or_default();
        let mut order = Order::new();
        for (number, write) in asked(run).into_iter().enumerate() {
            let Some(found) = self.record_ids(source, write, &keys, newest).await? else { return Ok(None) };
            order.extend(found.into_iter().map(|(key, record)| (key, (number, record))));
        }
        Ok(Some(order))
    }

    /// Under which numbers a collection of the source has documents, not older than `newest`.
    async fn record_ids(
        &self,
        source: &Originals,
        write: &Write,
        keys: &[&[u8]],
        newest: OpTime,
    ) -> Result<Option<Vec<(DocumentKey, i64)>>> {
        let mut name = self.namespaces.name(write.source);
        loop {
            let mut found = Vec::new();
            for place in source.places(&name).await?.iter() {
                found.extend(record_ids(place.client, &name, keys, newest).await?);
            }
            let Some(uuid) = write.collection else { return Ok(Some(found)) };
            // Its collection may have moved since, and something else may stand under its name.
            match source.name_now(&name, uuid).await? {
                Some(now) if now == name => return Ok(Some(found)),
                Some(now) => name = now,
                None => return Ok(None),
            }
        }
    }
}

/// A write of each source collection among those of `run`.
fn asked<'i>(run: &'i [Item<'_>]) -> Vec<&'i Write> {
    let mut asked: Vec<&Write> = Vec::new();
    for Item { write, .. } in run {
        if !asked.iter().any(|one| (one.source, one.collection) == (write.source, write.collection)) {
            asked.push(write);
        }
    }
    asked
}

/// The statement that inserts `document` in the way of `statement`.
fn like<'a>(statement: &Statement<'a>, key: &'a [u8], document: &'a [u8]) -> Result<Statement<'a>> {
    if matches!(statement, Statement::Literal { .. }) {
        return Ok(Statement::Literal { key, document });
    }
    // All of a command are of one verb.
    Ok(if needs_literal(document)? { statement.clone() } else { Statement::Insert(document) })
}

/// `None` where there is no such collection.
async fn room(client: &Client, name: &Namespace) -> Result<Option<Room>> {
    let doing = &format!("ask how full {name} is");
    let collection = client.database(name.database()).collection::<Document>(name.collection());
    let asked = collection.aggregate([doc! { "$collStats": { "storageStats": {} } }]);
    let found = match answered(Side::Sink, doing, asked).await? {
        Ok(cursor) => answered(Side::Sink, doing, cursor.try_collect::<Vec<Document>>()).await?,
        Err(e) => Err(e),
    };
    let found = match found {
        Ok(found) => found,
        Err(e) if classify::code(&e) == Some(ddl::NAMESPACE_NOT_FOUND) => return Ok(None),
        // A role may lack `collStats`, which `readWrite` has.
        Err(e) if classify::kind(Side::Sink, &e) == Kind::Unauthorized => return Ok(Some(Room::UNKNOWN)),
        Err(e) => return Err(classify::error(Side::Sink, doing, e)),
    };
    let stats = found.first().and_then(|found| found.get_document("storageStats").ok());
    Ok(stats.filter(|stats| stats.get_bool("capped").unwrap_or(false)).map(|stats| {
        let number = |name| command::integer(stats, name).and_then(|n| u64::try_from(n).ok());
        // No limit is reported as none, 0 or -1.
        let limit = |name| number(name).filter(|n| *n > 0).unwrap_or(u64::MAX);
        Room {
            documents: number("count").unwrap_or_default(),
            bytes: number("size").unwrap_or_default(),
            documents_max: limit("max"),
            bytes_max: limit("maxSize"),
        }
    }))
}

/// Keys and sizes of the target's documents that a first stage lets through, in their order.
async fn sizes(client: &Client, name: &Namespace, first: impl FnOnce(&mut RawWriter)) -> Result<Vec<Sized>> {
    let mut w = RawWriter::with_capacity(1024);
    w.string("aggregate", name.collection());
    w.array("pipeline", |w| {
        w.document("", first);
        w.document("", |w| {
            w.document("$project", |w| w.document("bytes", |w| w.string("$bsonSize", "$$ROOT")));
        });
    });
    w.document("cursor", |_| ());
    let mut sizes = Vec::new();
    for reply in batches(client, name, Side::Sink, "read the sizes of documents", w).await? {
        for found in documents(&reply)? {
            let bytes = number(found, "bytes")?;
            let (selector, key) = (Bytes::copy_from_slice(found), DocumentKey::of_document(found)?);
            sizes.push(Sized { selector, key, bytes: bytes.unsigned_abs() });
        }
    }
    Ok(sizes)
}

async fn record_ids(
    client: &Client,
    name: &Namespace,
    keys: &[&[u8]],
    newest: OpTime,
) -> Result<Vec<(DocumentKey, i64)>> {
    let mut w = RawWriter::with_capacity(64 * keys.len() + 256);
    w.string("find", name.collection());
    w.document("filter", |w| among(w, keys.iter().copied()));
    w.document("projection", |w| w.int("_id", 1));
    w.boolean("showRecordId", true);
    w.document("readConcern", |w| {
        w.string("level", "majority");
        if newest.ts() > 0 {
            w.value("afterClusterTime", kind::TIMESTAMP, &newest.ts().to_le_bytes());
        }
    });
    let mut found = Vec::new();
    for reply in batches(client, name, Side::Source, "look for what is inserted again", w).await? {
        for document in documents(&reply)? {
            found.push((DocumentKey::of_document(document)?, number(document, "$recordId")?));
        }
    }
    Ok(found)
}

/// The deletes in one collection, of documents of `run`, that a server has logged since the oldest of their inserts, with
/// their times.
async fn logged_deletes(
    client: &Client,
    name: &Namespace,
    collection: Option<CollectionUuid>,
    run: &[Item<'_>],
) -> Result<Vec<(DocumentKey, u64)>> {
    let oplog = Namespace::of("local", "oplog.rs");
    let oldest = run.iter().map(|item| item.write.time.ts()).min().unwrap_or_default();
    let mut w = RawWriter::with_capacity(64 * run.len() + 256);
    w.string("find", oplog.collection());
    w.document("filter", |w| {
        w.document("ts", |w| w.value("$gt", kind::TIMESTAMP, &oldest.to_le_bytes()));
        w.string("op", "d");
        match collection {
            Some(uuid) => w.binary("ui", UUID, &uuid),
            None => w.string("ns", name.as_str()),
        }
        among_at(w, "o._id", run.iter().map(|item| item.write.key.as_ref()));
    });
    w.document("projection", |w| ["ts", "o._id"].into_iter().for_each(|field| w.int(field, 1)));
    w.document("readConcern", |w| w.string("level", "majority"));
    // As long as the oplog of the overlap is large.
    let comment = patience::comment();
    w.string("comment", &comment);
    let command = Asked { side: Side::Source, client, criteria: None, comment: &comment };
    let doing = &format!("look into the oplog for deletes in {name}");
    let failed = |e| classify::error(Side::Source, doing, e);
    let database = client.database(oplog.database());
    let asked = database.run_raw_cursor_command(command::raw(w.finish())?).batch();
    let mut cursor = worked_on(&command, doing, asked).await?.map_err(failed)?;
    let mut found = Vec::new();
    while let Some(reply) = worked_on(&command, doing, cursor.next()).await? {
        for entry in documents(reply.map_err(failed)?.as_raw_document().as_bytes())? {
            let (Some(ts), Some(o)) = (raw::find(entry, "ts")?, raw::find(entry, "o")?) else { continue };
            let time = ts.value.try_into().map(u64::from_le_bytes).unwrap_or_default();
            found.push((DocumentKey::of_document(o.value)?, time));
        }
    }
    Ok(found)
}

fn number(document: &[u8], name: &str) -> Result<i64> {
    let malformed = |e| Error::new(Side::Sink, Kind::Malformed, "read a size").caused_by(e);
    let document = RawDocument::from_bytes(document).map_err(malformed)?;
    let value = document.get(name).map_err(malformed)?;
    Ok(value.and_then(|value| value.as_i64().or_else(|| value.as_i32().map(i64::from))).unwrap_or_default())
}

/// Whatever is refused would leave the document where its order is wrong.
fn is_clear(name: &Namespace, errors: &[(usize, StatementError)]) -> Result<()> {
    let Some((_, error)) = errors.iter().find(|(_, error)| error.code != cure::ILLEGAL_OPERATION) else {
        return Ok(());
    };
    let kind = classify::of_code(error.code).unwrap_or(Kind::CannotApply);
    let text = format!("take out of {name} what is inserted again: {} (code {})", error.message, error.code);
    Err(Error::new(Side::Sink, kind, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_that_is_not_cleared_is_no_success() {
        let error = |code| StatementError {
            at: std::time::Instant::now(),
            code,
            message: "refused".into(),
            key_pattern: None,
            key_value: None,
        };
        let name = Namespace::new("a.log");
        assert!(is_clear(&name, &[]).is_ok());
        assert!(is_clear(&name, &[(0, error(20)), (1, error(20))]).is_ok(), "5.0.6 deletes nothing from a capped one");
        for (code, kind) in [(13, Kind::Unauthorized), (112, Kind::Unavailable), (8, Kind::CannotApply)] {
            let refused = is_clear(&name, &[(0, error(20)), (1, error(code))]).unwrap_err();
            assert!(refused.kind() == kind && refused.to_string().contains("a.log"), "{refused}");
        }
    }
}
