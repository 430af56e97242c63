//! Reads one partition, reply by reply, and goes on behind the last document when the cursor is lost.
//!
//! The first request is small and tells how large the documents are; the next ones ask for as many as fill a reply of
//! the wanted size. A new cursor starts at the last document that was delivered, which is then cut off if it is still
//! there. A capped collection has no order by `_id`: it is read again from its start and skipped up to that document;
//! if that was evicted, all that is left is newer and is delivered.

use async_trait::async_trait;
use bson::{RawDocumentBuf, Timestamp, rawdoc};
use bytes::Bytes;
use futures_util::StreamExt as _;
use mongodb::Client;
use mongodb::options::SelectionCriteria;
use mongodb::raw_batch_cursor::{RawBatch, RawBatchCursor};
use oplogue_engine::budget::{Budget, Permit};
use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::model::raw::{self, Elements};
use oplogue_engine::model::{DocumentKey, OpTime};
use oplogue_engine::source::{Partition, ScanOrder, SnapshotCursor};

use crate::mongodb::classify;
use crate::mongodb::reply::{self, CursorSlot, REPLY_BYTES_MAX};

/// Documents of the first request, which shows how large documents are.
const PROBE_DOCUMENTS: u32 = 200;
/// Documents of each request in natural order, where the cursor is not opened again to ask for another number.
const NATURAL_DOCUMENTS: u32 = 1000;
/// More documents in one reply gain nothing.
const REPLY_DOCUMENTS_MAX: usize = 100_000;
/// A reply this many times off the wanted size makes the cursor ask for another number of documents.
const OFF_BY: usize = 4;

/// What is read, and how.
pub(super) struct Read {
    pub(super) client: Client,
    pub(super) criteria: SelectionCriteria,
    pub(super) partition: Partition,
    pub(super) after: OpTime,
    pub(super) reply_bytes: usize,
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

pub(super) struct PartitionCursor {
    read: Read,
    budget: Budget,
    cursor: CursorSlot,
    open: bool,
    done: bool,
    skip: Skip,
    delivered: Option<Delivered>,
    documents: u32,
    probing: bool,
    estimate: usize,
}

impl PartitionCursor {
    pub(super) fn new(read: Read, budget: Budget) -> Self {
        let probing = read.partition.order == ScanOrder::Id;
        Self {
            documents: if probing { PROBE_DOCUMENTS } else { NATURAL_DOCUMENTS },
            probing,
            estimate: read.reply_bytes,
            read,
            budget,
            cursor: CursorSlot::default(),
            open: false,
            done: false,
            skip: Skip::Nothing,
            delivered: None,
        }
    }

    async fn step(&mut self) -> Result<Option<(Bytes, Permit)>> {
        while !self.done {
            let mut permit = self.budget.acquire(self.estimate).await;
            if !self.open {
                self.reopen().await?;
            }
            let Some(reply) = self.reply().await? else {
                break;
            };
            let bytes = reply.as_raw_document().as_bytes().len();
            permit.resize(bytes);
            // A cursor of number 0 is finished: what this reply holds is the last.
            self.done = raw::find(reply.as_raw_document().as_bytes(), "cursor")?
                .and_then(|cursor| raw::find(cursor.value, "id").ok().flatten())
                .is_some_and(|id| id.value.iter().all(|byte| *byte == 0));
            let documents = reply::array(reply)?;
            let documents = self.cut(&documents)?;
            let (count, last) = reply::last_document(&documents)?;
            let Some(last) = last else { continue };
            self.note(last)?;
            self.tune(bytes, count);
            return Ok(Some((documents, permit)));
        }
        self.done = true;
        self.close();
        Ok(None)
    }

    async fn reply(&mut self) -> Result<Option<RawBatch>> {
        let doing = self.doing();
        let Some(cursor) = self.cursor.get() else {
            return Ok(None);
        };
        cursor.next().await.transpose().map_err(|e| match classify::code(&e) {
            // CappedPositionLost: the collection rolled over the cursor. What is left is read again.
            Some(136) => Error::new(Side::Source, Kind::CursorLost, format!("{doing}: the collection rolled over")),
            _ => classify::error(Side::Source, &doing, e),
        })
    }

    async fn reopen(&mut self) -> Result<()> {
        self.skip = match (&self.delivered, self.read.partition.order) {
            (None, _) => Skip::Nothing,
            (Some(_), ScanOrder::Id) => Skip::First,
            (Some(delivered), ScanOrder::Natural) if self.still_there(&delivered.bound).await? => Skip::UpTo,
            (Some(_), ScanOrder::Natural) => Skip::Nothing,
        };
        let cursor = self.find(self.command()?).await?;
        self.cursor.put(Some(cursor));
        self.open = true;
        Ok(())
    }

    async fn find(&self, command: RawDocumentBuf) -> Result<RawBatchCursor> {
        let database = self.read.client.database(self.read.partition.namespace.database());
        let cursor = database
            .run_raw_cursor_command(command)
            .selection_criteria(self.read.criteria.clone())
            .batch_size(self.documents)
            .batch()
            .await;
        cursor.map_err(|e| classify::error(Side::Source, &self.doing(), e))
    }

    fn command(&self) -> Result<RawDocumentBuf> {
        let partition = &self.read.partition;
        let mut command = rawdoc! {
            "find": partition.namespace.collection(),
            "batchSize": i32::try_from(self.documents).unwrap_or(i32::MAX),
            "readConcern": self.read_concern(),
        };
        match partition.order {
            ScanOrder::Natural => command.append(bson::cstr!("hint"), rawdoc! { "$natural": 1 }),
            ScanOrder::Id => {
                command.append(bson::cstr!("hint"), rawdoc! { "_id": 1 });
                let min = self.delivered.as_ref().map(|delivered| &delivered.bound).or(partition.min.as_ref());
                if let Some(min) = min {
                    command.append(bson::cstr!("min"), document(min)?);
                }
                if let Some(max) = &partition.max {
                    command.append(bson::cstr!("max"), document(max)?);
                }
            }
        }
        Ok(command)
    }

    fn read_concern(&self) -> RawDocumentBuf {
        let after = Timestamp { time: self.read.after.secs, increment: self.read.after.inc };
        rawdoc! { "level": "majority", "afterClusterTime": after }
    }

    async fn still_there(&self, bound: &Bytes) -> Result<bool> {
        let command = rawdoc! {
            "find": self.read.partition.namespace.collection(),
            "filter": document(bound)?,
            "limit": 1,
            "singleBatch": true,
            "projection": { "_id": 1 },
            "readConcern": self.read_concern(),
        };
        let mut found = false;
        reply::drain(Side::Source, &self.doing(), self.find(command).await?, |_| {
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
        if self.done || self.read.partition.order == ScanOrder::Natural {
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
        self.cursor.put(None);
        self.open = false;
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
