//! One event of a change stream: which parts it has, and the change it stands for.
//!
//! Facts of the format (server manual, "Change Events", and tried on MongoDB 4.4 to 6.0): `operationType`, `ns`,
//! `documentKey`, `fullDocument`, `rawUpdateDescription`, `updateDescription`, `operationDescription`, `to`,
//! `collectionUUID`, `clusterTime`, `wallTime`, `lsid`, `txnNumber`. An update is exact in three forms: as the server's own
//! diff (`rawUpdateDescription`, 6.0 and later), as the whole document where it was asked for (5.0), and as the modifiers of
//! a server that logs such (4.4). `updateDescription` of a later server is never used: it cannot tell a dot in
//! a name from a path, nor a new field from one that moved to the end.

mod catalogue;
mod split;

use bytes::Bytes;

use super::oplog::{missing, string, update, uuid};
use crate::error::{Error, Kind, Result, Side};
use crate::model::raw::{self, Element, Elements, kind};
use crate::model::{Change, CollectionUuid, NamespaceId, OpTime, Operation};

pub(super) use split::Fragments;

/// A parsed event. The parts are slices of the reply; an absent one is empty.
#[derive(Debug, Clone, Default)]
pub(super) struct Event {
    operation: Bytes,
    /// `ns` as a whole: `{db, coll}`, or `{db}` of a `dropDatabase`.
    pub(super) ns: Bytes,
    to: Bytes,
    key: Bytes,
    document: Bytes,
    /// `fullDocument` is there, be it null.
    looked_up: bool,
    raw_update: Bytes,
    update: Bytes,
    command: Bytes,
    collection: Option<CollectionUuid>,
    pub(super) time: OpTime,
    wall_ms: i64,
    /// `_id`: the resume token.
    pub(super) token: Bytes,
    lsid: Bytes,
    number: i64,
}

/// What tells the transaction of an event: session, number and time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TransactionId(Bytes, i64, u64);

impl TransactionId {
    /// The same with bytes of its own.
    pub(super) fn detached(self) -> Self {
        Self(Bytes::copy_from_slice(&self.0), self.1, self.2)
    }
}

/// What an event of documents comes to.
#[derive(Debug)]
pub(super) enum Content {
    Change(Operation, Bytes),
    /// An update whose document is gone already: its delete follows.
    Gone,
    /// Not of documents: see [`Event::commands`].
    Catalogue,
}

impl Event {
    /// Reads the envelope.
    ///
    /// # Errors
    /// `Malformed` when a part is missing that every event has.
    pub(super) fn parse(bytes: &Bytes) -> Result<Self> {
        let mut event = Self { time: OpTime::new(0, 0, -1), ..Self::default() };
        for element in Elements::new(bytes)? {
            event.take(bytes, &element?)?;
        }
        if event.operation.is_empty() || event.token.is_empty() || event.time.ts() == 0 {
            return Err(missing("operationType, _id or clusterTime"));
        }
        if event.wall_ms == 0 {
            // Servers before 6.0 report no wall time of their own.
            event.wall_ms = i64::from(event.time.secs) * 1000;
        }
        Ok(event)
    }

    fn take(&mut self, whole: &Bytes, element: &Element<'_>) -> Result<()> {
        let part = || whole.slice(element.offset..element.end());
        match (element.name, element.kind) {
            (b"_id", kind::DOCUMENT) => self.token = part(),
            (b"operationType", kind::STRING) => {
                self.operation = whole.slice(element.offset + 4..(element.end() - 1).max(element.offset + 4));
            }
            (b"ns", kind::DOCUMENT) => self.ns = part(),
            (b"to", kind::DOCUMENT) => self.to = part(),
            (b"documentKey", kind::DOCUMENT) => self.key = part(),
            (b"fullDocument", kind::DOCUMENT) => (self.document, self.looked_up) = (part(), true),
            (b"fullDocument", kind::NULL) => self.looked_up = true,
            (b"rawUpdateDescription", kind::DOCUMENT) => self.raw_update = part(),
            (b"updateDescription", kind::DOCUMENT) => self.update = part(),
            (b"operationDescription", kind::DOCUMENT) => self.command = part(),
            (b"collectionUUID", kind::BINARY) => self.collection = uuid(element.value),
            (b"clusterTime", kind::TIMESTAMP) => {
                let ts = raw::read_i64(element.value, 0)?.cast_unsigned();
                self.time = OpTime { term: -1, ..OpTime::from_ts(ts) };
            }
            (b"wallTime", kind::DATE) => self.wall_ms = raw::read_i64(element.value, 0)?,
            (b"lsid", kind::DOCUMENT) => self.lsid = part(),
            (b"txnNumber", kind::INT64) => self.number = raw::read_i64(element.value, 0)?,
            _ => {}
        }
        Ok(())
    }

    /// `operationType`.
    pub(super) fn operation(&self) -> &str {
        std::str::from_utf8(&self.operation).unwrap_or_default()
    }

    /// The transaction that the event belongs to. Events outside of one carry no session.
    pub(super) fn transaction(&self) -> Option<TransactionId> {
        (!self.lsid.is_empty()).then(|| TransactionId(self.lsid.clone(), self.number, self.time.ts()))
    }

    /// `db.coll`.
    pub(super) fn name(&self) -> Result<String> {
        name(&self.ns)
    }

    /// What the event says about a document.
    ///
    /// # Errors
    /// `Malformed`; `CannotApply` for an update without an exact form.
    pub(super) fn content(&self) -> Result<Content> {
        let document =
            || if self.document.is_empty() { Err(missing("fullDocument")) } else { Ok(self.document.clone()) };
        let content = match self.operation.as_ref() {
            b"insert" => Content::Change(Operation::Insert, document()?),
            b"replace" => Content::Change(Operation::Replace, document()?),
            b"delete" => Content::Change(Operation::Delete, Bytes::new()),
            b"update" => self.updated()?,
            _ => return Ok(Content::Catalogue),
        };
        if self.key.is_empty() {
            return Err(missing("documentKey"));
        }
        Ok(content)
    }

    fn updated(&self) -> Result<Content> {
        if !self.raw_update.is_empty() {
            let (operation, body) = update(&self.raw_update)?;
            return Ok(Content::Change(operation, body));
        }
        if self.looked_up {
            let found = !self.document.is_empty();
            return Ok(if found { Content::Change(Operation::Replace, self.document.clone()) } else { Content::Gone });
        }
        modifiers(&self.update).map(|body| Content::Change(Operation::UpdateModifiers, body))
    }

    /// Whether an update came as the whole document.
    pub(super) fn is_looked_up(&self) -> bool {
        self.operation.as_ref() == b"update" && self.raw_update.is_empty() && self.looked_up
    }

    /// The change of an event about a document.
    pub(super) fn into_change(self, operation: Operation, body: Bytes, id: NamespaceId) -> Change {
        Change {
            operation,
            source: id,
            target: id,
            key: self.key,
            body,
            time: self.time,
            wall_ms: self.wall_ms,
            collection: self.collection,
            origin: None,
            not_before_ms: 0,
            moved: false,
            creates: false,
            ddl: None,
        }
    }
}

/// `{db, coll}` as one name.
fn name(ns: &[u8]) -> Result<String> {
    let part = |field: &str| -> Result<String> {
        let found = raw::find(ns, field)?.filter(|part| part.kind == kind::STRING);
        found.and_then(|part| string(part.value)).map(str::to_owned).ok_or_else(|| missing("ns"))
    };
    Ok(format!("{}.{}", part("db")?, part("coll")?))
}

/// `updateDescription` of a server that logs modifiers (before 5.0): paths mean there what they mean in `$set` and `$unset`.
fn modifiers(description: &[u8]) -> Result<Bytes> {
    let inexact = || {
        let text = "the server describes this update in a form that is not exact; read its oplog instead";
        Error::new(Side::Source, Kind::CannotApply, text)
    };
    // Reported by servers since 5.0, which log diffs.
    if description.is_empty() || raw::find(description, "truncatedArrays")?.is_some() {
        return Err(inexact());
    }
    let mut operators = Vec::new();
    if let Some(set) = raw::find(description, "updatedFields")?.filter(|set| set.value.len() > 5) {
        operators.push(element(kind::DOCUMENT, b"$set", set.value));
    }
    let mut unset = Vec::new();
    if let Some(removed) = raw::find(description, "removedFields")? {
        for path in Elements::new(removed.value)? {
            let path = path?;
            let path = path.value.get(4..).and_then(|text| text.strip_suffix(b"\0")).ok_or_else(inexact)?;
            unset.push(element(kind::BOOLEAN, path, &[1]));
        }
    }
    if !unset.is_empty() {
        operators.push(element(kind::DOCUMENT, b"$unset", &document(&unset)));
    }
    Ok(Bytes::from(document(&operators)))
}

/// One element's bytes.
fn element(kind: u8, name: &[u8], value: &[u8]) -> Vec<u8> {
    [&[kind], name, &[0], value].concat()
}

/// A string element's bytes.
fn text(name: &str, value: &str) -> Vec<u8> {
    let length = i32::try_from(value.len() + 1).unwrap_or(i32::MAX);
    element(kind::STRING, name.as_bytes(), &[&length.to_le_bytes(), value.as_bytes(), &[0]].concat())
}

/// A document of these elements.
fn document(elements: &[Vec<u8>]) -> Vec<u8> {
    let length = elements.iter().map(Vec::len).sum::<usize>() + 5;
    let mut out = Vec::with_capacity(length);
    out.extend_from_slice(&i32::try_from(length).unwrap_or(i32::MAX).to_le_bytes());
    elements.iter().for_each(|element| out.extend_from_slice(element));
    out.push(0);
    out
}

/// The bytes of all elements of a document.
fn inside(document: &[u8]) -> &[u8] {
    document.get(4..document.len().saturating_sub(1)).unwrap_or_default()
}
