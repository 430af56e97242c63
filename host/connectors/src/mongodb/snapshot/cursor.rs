//! Reads one partition, reply by reply, and goes on behind the last document when the cursor is lost.
//!
//! The first request is small and tells how large the documents are; the next ones ask for as many as fill a reply of
//! the wanted size. A new cursor starts at the last document that was delivered, which is then cut off if it is still
//! there. A capped collection has no order by `_id`: it is read again from its start and skipped up to that document;
//! if that was evicted, all that is left is newer and is delivered.
//!
//! From 6.0 on each read says which collection it means. Before, a name is all that a server takes, and under it another
//! collection may stand just then, or none: see [`PartitionCursor::is_what_is_meant`].

use async_trait::async_trait;
use bson::spec::BinarySubtype;
use bson::{Binary, RawDocumentBuf, rawdoc};
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use mongodb::Client;
use mongodb::error::Error as DriverError;
use mongodb::options::SelectionCriteria;
use mongodb::raw_batch_cursor::{RawBatch, RawBatchCursor};
use oplogue_engine::budget::{Budget, Permit};
use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::model::raw::{self, Elements, kind};
use oplogue_engine::model::{CollectionUuid, DocumentKey, OpTime};
use oplogue_engine::source::{Partition, ScanOrder, SnapshotCursor};

use crate::mongodb::client::ConnectMode;
use crate::mongodb::patience::{self, Asked, answered, worked_on};
use crate::mongodb::reply::{self, CursorSlot, REPLY_BYTES_MAX, Slot};
use crate::mongodb::snapshot::catalogue::uuid_of_entry;
use crate::mongodb::snapshot::{INVALID_OPTIONS, PLAN_KILLED, UUID_MISMATCH};
use crate::mongodb::{classify, tail};

/// Documents of the first request, which shows how large documents are.
const PROBE_DOCUMENTS: u32 = 200;
/// Documents of each request in natural order, where the cursor is not opened again to ask for another number.
const NATURAL_DOCUMENTS: u32 = 1000;
/// More documents in one reply gain nothing.
const REPLY_DOCUMENTS_MAX: usize = 100_000;
/// A reply this many times off the wanted size makes the cursor ask for another number of documents.
const OFF_BY: usize = 4;

/// A cursor on its way.
type Opening = BoxFuture<'static, Result<RawBatchCursor, DriverError>>;

/// What is read, and how.
pub(super) struct Read {
    pub(super) client: Client,
    pub(super) mode: ConnectMode,
    /// The member that is read.
    pub(super) criteria: SelectionCriteria,
    pub(super) partition: Partition,
    /// Identity of the collection, where the server takes it.
    pub(super) uuid: Option<CollectionUuid>,
    pub(super) after: OpTime,
    pub(super) reply_bytes: usize,
}

impl Read {
    /// The shard key's index, where the partition is a range of that.
    fn index(&self) -> Option<&Bytes> {
        self.partition.owned.as_ref()?.index.as_ref()
    }

    /// The collection that a read must be shown to be of, since the server does not take it.
    fn unproved(&self) -> Option<CollectionUuid> {
        self.partition.uuid.filter(|_| self.uuid.is_none())
    }

    /// A read of it. One waits as long as the server works on it: a prepared transaction can hold it up for hours.
    fn asked<'a>(&'a self, comment: &'a str) -> Asked<'a> {
        Asked { side: Side::Source, client: &self.client, criteria: Some(&self.criteria), comment }
    }

    /// What stands in place of bounds.
    fn filter(&self) -> Option<&Bytes> {
        self.partition.owned.as_ref()?.filter.as_ref()
    }
}

/// The last document that was delivered.
struct Delivered {
    /// `{_id: value}`, a lower bound.
    bound: Bytes,
    key: DocumentKey,
}

/// What the next reply must have cut off at its front.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Skip {
    Nothing,
    /// The first document, if it is the last delivered one.
    First,
    /// Everything up to the last delivered one.
    UpTo,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The range of the index, or the whole collection in its order.
    Scan,
    /// To the server a range with a lower bound and no upper one ends before `MaxKey`.
    MaxKey,
    Done,
}

pub(super) struct PartitionCursor {
    read: Read,
    budget: Budget,
    cursor: CursorSlot,
    opening: Slot<Opening>,
    held: Option<Permit>,
    open: bool,
    phase: Phase,
    /// Whether the scan that is open began at a lower bound.
    from_min: bool,
    skip: Skip,
    delivered: Option<Delivered>,
    documents: u32,
    probing: bool,
    estimate: usize,
    /// The collection had another name at some time.
    moved: bool,
    /// The first reply of a cursor must show that the collection was there.
    is_first: bool,
    /// By which the server tells these reads from others.
    comment: String,
}

impl PartitionCursor {
    pub(super) fn new(read: Read, budget: Budget) -> Self {
        let probing = read.partition.order == ScanOrder::Id && read.index().is_none();
        Self {
            documents: if probing { PROBE_DOCUMENTS } else { NATURAL_DOCUMENTS },
            probing,
            estimate: read.reply_bytes,
            read,
            budget,
            cursor: CursorSlot::default(),
            opening: Slot::default(),
            held: None,
            open: false,
            phase: Phase::Scan,
            from_min: false,
            skip: Skip::Nothing,
            delivered: None,
            moved: false,
            is_first: false,
            comment: patience::comment(),
        }
    }

    async fn step(&mut self) -> Result<Option<(Bytes, Permit)>> {
        loop {
            let read = match self.phase {
                Phase::Scan => self.scan().await?,
                Phase::MaxKey => self.max_key().await?,
                Phase::Done => return Ok(None),
            };
            if read.is_some() {
                return Ok(read);
            }
        }
    }

    /// The next reply of the scan with documents in it; at its end the next phase begins.
    async fn scan(&mut self) -> Result<Option<(Bytes, Permit)>> {
        while self.phase == Phase::Scan {
            // Before a cursor is opened too: the driver then holds its first reply.
            self.hold().await;
            if !self.open && !self.reopen().await? {
                continue;
            }
            let Some(reply) = self.reply().await? else {
                self.finish();
                self.begin_anew_if_unmet();
                continue;
            };
            let mut permit = self.held.take().unwrap_or_else(Permit::none);
            let bytes = reply.as_raw_document().as_bytes().len();
            permit.resize(bytes);
            if std::mem::take(&mut self.is_first) && reply::is_last(&reply)? {
                self.is_elsewhere();
                continue;
            }
            if reply::is_last(&reply)? {
                self.finish();
            }
            let documents = reply::array(reply)?;
            let documents = self.cut(&documents)?;
            self.begin_anew_if_unmet();
            let (count, last) = reply::last_document(&documents)?;
            let Some(last) = last else { continue };
            self.note(last)?;
            self.tune(bytes, count);
            return Ok(Some((documents, permit)));
        }
        Ok(None)
    }

    /// Memory for the request in flight. Kept when the caller drops its future: the reply comes nevertheless.
    async fn hold(&mut self) {
        if self.held.is_none() {
            self.held = Some(self.budget.acquire(self.estimate).await);
        }
    }

    fn finish(&mut self) {
        let by_id = self.read.partition.order == ScanOrder::Id && self.read.index().is_none();
        let unbounded = by_id && self.read.partition.max.is_none();
        self.phase = if unbounded && self.from_min { Phase::MaxKey } else { Phase::Done };
        self.close();
    }

    /// The document that everything was to be cut off to was not met: it went between two reads, and so nothing tells what
    /// was delivered. All of it is delivered again.
    fn begin_anew_if_unmet(&mut self) {
        if self.phase == Phase::Done && self.skip == Skip::UpTo {
            (self.phase, self.skip, self.delivered) = (Phase::Scan, Skip::Nothing, None);
        }
    }

    /// The document whose `_id` is `MaxKey`, which no scan with a lower bound returns.
    async fn max_key(&mut self) -> Result<Option<(Bytes, Permit)>> {
        let mut permit = self.budget.acquire(self.estimate).await;
        self.pick_member().await?;
        let mut command = self.of_collection();
        command.append(bson::cstr!("limit"), 1);
        self.append_batch_size(&mut command);
        // With several plans to choose from a server may come to the end before its first reply.
        command.append(bson::cstr!("hint"), rawdoc! { "_id": 1 });
        command.append(bson::cstr!("filter"), rawdoc! { "_id": bson::RawBson::MaxKey });
        let opened = self.find(command).await;
        let Some(cursor) = self.accepted(opened).await? else { return Ok(None) };
        self.cursor.put(Some(cursor));
        let mut reply = self.reply().await?;
        if let Some(empty) = reply.take_if(|_| std::mem::take(&mut self.is_first)) {
            if reply::is_last(&empty)? {
                self.is_elsewhere();
                return Ok(None);
            }
            reply = self.reply().await?;
        }
        self.phase = Phase::Done;
        self.cursor.put(None);
        let Some(reply) = reply else { return Ok(None) };
        permit.resize(reply.as_raw_document().as_bytes().len());
        let documents = reply::array(reply)?;
        let Some(found) = reply::first_document(&documents)? else {
            return Ok(None);
        };
        let key = DocumentKey::of_document(found)?;
        let new = self.delivered.as_ref().is_none_or(|delivered| delivered.key != key);
        Ok(new.then_some((documents, permit)))
    }

    async fn reply(&mut self) -> Result<Option<RawBatch>> {
        let doing = self.doing();
        let Some(cursor) = self.cursor.get() else {
            return Ok(None);
        };
        let command = self.read.asked(&self.comment);
        worked_on(&command, &doing, cursor.next()).await?.transpose().map_err(|e| match classify::code(&e) {
            // CappedPositionLost: the collection rolled over the cursor. What is left is read again.
            Some(136) => Error::new(Side::Source, Kind::CursorLost, format!("{doing}: the collection rolled over")),
            code => {
                // The next cursor is opened by name, and here nothing says whose name it is then.
                self.moved |= code == Some(PLAN_KILLED) && self.read.uuid.is_none();
                classify::error(Side::Source, &doing, e)
            }
        })
    }

    /// The cursor, if it is of the collection that is meant. `None` at the end of a partition whose collection has another
    /// name now, or is dropped; and where a server of 6.0 with an older feature compatibility version, which not everybody
    /// may ask for, refuses the identity: the phase is then begun again without it.
    async fn accepted(&mut self, opened: Result<RawBatchCursor, DriverError>) -> Result<Option<RawBatchCursor>> {
        let cursor = match opened {
            Ok(cursor) => cursor,
            Err(e) => match classify::code(&e) {
                Some(INVALID_OPTIONS) if self.read.uuid.take().is_some() => return Ok(None),
                Some(UUID_MISMATCH) => {
                    self.is_elsewhere();
                    return Ok(None);
                }
                _ => return Err(classify::error(Side::Source, &self.doing(), e)),
            },
        };
        if self.is_what_is_meant().await? {
            return Ok(Some(cursor));
        }
        self.is_elsewhere();
        Ok(None)
    }

    /// Opens a cursor behind the last document; false when nothing can come there, or the phase is to be begun again.
    async fn reopen(&mut self) -> Result<bool> {
        let min = self.min().map(|min| raw::find(min, "_id")).transpose()?.flatten();
        if min.is_some_and(|id| id.kind == kind::MAX_KEY) {
            // Nothing comes behind it, and the server refuses a range that starts there.
            self.phase = Phase::MaxKey;
            self.held = None;
            return Ok(false);
        }
        if self.opening.get().is_none() {
            self.pick_member().await?;
            self.skip = match (&self.delivered, self.read.partition.order) {
                (None, _) => Skip::Nothing,
                // Keys repeat and hashes stand in no document: the range begins again.
                (Some(_), ScanOrder::Id) if self.read.index().is_some() => Skip::Nothing,
                (Some(_), ScanOrder::Id) => Skip::First,
                (Some(delivered), ScanOrder::Natural) if self.still_there(&delivered.bound).await? => Skip::UpTo,
                (Some(_), ScanOrder::Natural) => Skip::Nothing,
            };
            self.from_min = self.min().is_some();
            let opening = self.find(self.command()?);
            self.opening.put(Some(opening));
        }
        let Some(opening) = self.opening.get() else { return Ok(false) };
        let opened = worked_on(&self.read.asked(&self.comment), "open a cursor of the copy", opening).await;
        self.opening.put(None);
        let opened = opened?;
        let Some(cursor) = self.accepted(opened).await? else { return Ok(false) };
        self.cursor.put(Some(cursor));
        self.open = true;
        Ok(true)
    }

    /// Stays with one member where the collection of a name must be proved: what one calls so another may not.
    async fn pick_member(&mut self) -> Result<()> {
        if self.read.unproved().is_some() {
            self.read.criteria = tail::pick_member(&self.read.client, self.read.mode).await?;
        }
        Ok(())
    }

    /// Whether a cursor that was opened by name is one of the collection that is meant. It was opened without documents
    /// and so is open still: a rename or a drop kills it at its next reply. When the collection has the name now, after
    /// the opening, and that reply comes, then it had the name all the time. A name that nobody had gives no open cursor,
    /// which the first reply tells.
    async fn is_what_is_meant(&mut self) -> Result<bool> {
        let Some(meant) = self.read.unproved() else { return Ok(true) };
        self.is_first = true;
        let name = &self.read.partition.namespace;
        let doing = format!("look whose name {name} is (needs `listCollections`)");
        let failed = |e| classify::error(Side::Source, &doing, e);
        // By the name alone, which a server looks up; with more it would walk over all there are.
        let command = rawdoc! { "listCollections": 1, "filter": { "name": name.collection() }, "cursor": {} };
        let database = self.read.client.database(name.database());
        let asked = database.run_raw_cursor_command(command).selection_criteria(self.read.criteria.clone()).batch();
        let listed = answered(Side::Source, &doing, asked).await?.map_err(failed)?;
        let mut found = false;
        reply::drain(Side::Source, &doing, listed, |bytes| {
            found |= uuid_of_entry(&bytes)? == Some(meant);
            Ok(())
        })
        .await?;
        Ok(found)
    }

    /// The collection is not there under the name: whoever asked for it looks where it is.
    fn is_elsewhere(&mut self) {
        self.moved = true;
        self.phase = Phase::Done;
        self.close();
    }

    /// A request that owns all it needs, so that it can be kept when the caller drops the future that waits for it.
    fn find(&self, command: RawDocumentBuf) -> Opening {
        let database = self.read.client.database(self.read.partition.namespace.database());
        let (criteria, documents) = (self.read.criteria.clone(), self.documents);
        Box::pin(async move {
            let request = database.run_raw_cursor_command(command).selection_criteria(criteria).batch_size(documents);
            request.batch().await
        })
    }

    /// The beginning of each read: what it reads, and how new that must be.
    fn of_collection(&self) -> RawDocumentBuf {
        let mut command = rawdoc! {
            "find": self.read.partition.namespace.collection(),
            "readConcern": self.read_concern(),
            "comment": self.comment.as_str(),
        };
        if let Some(uuid) = self.read.uuid {
            let uuid = Binary { subtype: BinarySubtype::Uuid, bytes: uuid.to_vec() };
            command.append(bson::cstr!("collectionUUID"), uuid);
        }
        command
    }

    fn of_one(&self) -> RawDocumentBuf {
        let mut command = self.of_collection();
        command.append(bson::cstr!("limit"), 1);
        command.append(bson::cstr!("singleBatch"), true);
        command
    }

    fn command(&self) -> Result<RawDocumentBuf> {
        let partition = &self.read.partition;
        let mut command = self.of_collection();
        self.append_batch_size(&mut command);
        match partition.order {
            ScanOrder::Natural => command.append(bson::cstr!("hint"), rawdoc! { "$natural": 1 }),
            ScanOrder::Id => {
                let index = self.read.index().map(document).transpose()?;
                command.append(bson::cstr!("hint"), index.unwrap_or_else(|| rawdoc! { "_id": 1 }));
                if let Some(filter) = self.read.filter() {
                    command.append(bson::cstr!("filter"), document(filter)?);
                }
                if let Some(min) = self.min() {
                    command.append(bson::cstr!("min"), document(min)?);
                }
                if let Some(max) = &partition.max {
                    command.append(bson::cstr!("max"), document(max)?);
                }
            }
        }
        Ok(command)
    }

    /// How many documents come with the cursor itself.
    fn append_batch_size(&self, command: &mut RawDocumentBuf) {
        let documents = if self.read.unproved().is_some() { 0 } else { self.documents };
        command.append(bson::cstr!("batchSize"), i32::try_from(documents).unwrap_or(i32::MAX));
    }

    /// Where a new scan begins.
    fn min(&self) -> Option<&Bytes> {
        let delivered = self.delivered.as_ref().filter(|_| self.read.index().is_none());
        delivered.map(|delivered| &delivered.bound).or(self.read.partition.min.as_ref())
    }

    fn read_concern(&self) -> RawDocumentBuf {
        let after = self.read.after.timestamp();
        rawdoc! { "level": "majority", "afterClusterTime": after }
    }

    async fn still_there(&self, bound: &Bytes) -> Result<bool> {
        let mut command = self.of_one();
        command.append(bson::cstr!("filter"), document(bound)?);
        command.append(bson::cstr!("projection"), rawdoc! { "_id": 1 });
        let cursor = match self.find(command).await {
            Ok(cursor) => cursor,
            // The scan itself will meet it.
            Err(e) if classify::code(&e) == Some(UUID_MISMATCH) => return Ok(false),
            Err(e) => return Err(classify::error(Side::Source, &self.doing(), e)),
        };
        let mut found = false;
        reply::drain(Side::Source, &self.doing(), cursor, |_| {
            found = true;
            Ok(())
        })
        .await?;
        Ok(found)
    }

    /// Cuts off what was delivered before.
    fn cut(&mut self, documents: &Bytes) -> Result<Bytes> {
        let Some(delivered) = &self.delivered else {
            return Ok(documents.clone());
        };
        if self.skip == Skip::Nothing {
            return Ok(documents.clone());
        }
        let mut passed = 0;
        for element in Elements::new(documents)? {
            let same = DocumentKey::of_document(element?.value)? == delivered.key;
            passed += 1;
            if same {
                self.skip = Skip::Nothing;
                return Ok(reply::without_first(documents, passed)?);
            }
            if self.skip == Skip::First {
                self.skip = Skip::Nothing;
                return Ok(documents.clone());
            }
        }
        Ok(reply::without_first(documents, passed)?)
    }

    fn note(&mut self, last: &[u8]) -> Result<()> {
        let id = raw::find(last, "_id")?.ok_or_else(|| {
            let text = format!("{}: a document has no _id", self.doing());
            Error::new(Side::Source, Kind::CannotApply, text)
        })?;
        let key = DocumentKey::of_value(id.kind, id.value)?;
        self.delivered = Some(Delivered { bound: bound(id.kind, id.value), key });
        Ok(())
    }

    /// Sets how many documents the next request asks for; another number needs another cursor.
    fn tune(&mut self, bytes: usize, count: usize) {
        self.estimate = (bytes + bytes / 4).clamp(self.read.reply_bytes / 4, REPLY_BYTES_MAX);
        if self.phase != Phase::Scan || self.read.partition.order == ScanOrder::Natural || self.read.index().is_some() {
            return;
        }
        let wanted = self.read.reply_bytes / (bytes / count.max(1)).max(1);
        let wanted = wanted.clamp(1, REPLY_DOCUMENTS_MAX);
        let current = self.documents as usize;
        if self.probing || wanted > current * OFF_BY || wanted < current / OFF_BY {
            self.probing = false;
            self.documents = u32::try_from(wanted).unwrap_or(PROBE_DOCUMENTS);
            self.estimate = self.estimate.max(self.read.reply_bytes);
            self.close();
        }
    }

    fn close(&mut self) {
        self.opening.put(None);
        self.cursor.put(None);
        self.held = None;
        self.open = false;
        self.is_first = false;
    }

    fn doing(&self) -> String {
        format!("copy {} (needs `find`)", self.read.partition.namespace)
    }
}

#[async_trait]
impl SnapshotCursor for PartitionCursor {
    async fn next(&mut self) -> Result<Option<(Bytes, Permit)>> {
        let mut outcome = self.step().await;
        if matches!(&outcome, Err(fault) if fault.kind() == Kind::CursorLost) {
            tracing::debug!(namespace = %self.read.partition.namespace, "the copy's cursor was lost; it is opened again");
            self.close();
            outcome = self.step().await;
        }
        if outcome.is_err() {
            self.close();
        }
        outcome
    }

    fn moved(&self) -> bool {
        self.moved
    }
}

/// `{_id: value}`, byte for byte as the server sent the value.
fn bound(kind: u8, value: &[u8]) -> Bytes {
    let length = 4 + 1 + 4 + value.len() + 1;
    let mut bytes = Vec::with_capacity(length);
    bytes.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
    bytes.push(kind);
    bytes.extend_from_slice(b"_id\0");
    bytes.extend_from_slice(value);
    bytes.push(0);
    Bytes::from(bytes)
}

fn document(bytes: &Bytes) -> Result<RawDocumentBuf> {
    RawDocumentBuf::from_bytes(bytes.to_vec())
        .map_err(|e| Error::new(Side::Source, Kind::Malformed, "read a partition's bound").caused_by(e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_the_document_of_its_id() {
        let document = rawdoc! { "x": 1, "_id": { "a": [1, "b"] } };
        let id = raw::find(document.as_bytes(), "_id").unwrap().unwrap();
        assert_eq!(bound(id.kind, id.value), rawdoc! { "_id": { "a": [1, "b"] } }.as_bytes());
    }
}
