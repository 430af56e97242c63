//! One oplog entry's envelope: which parts it has and where they stand.
//!
//! Facts of the format: `op`, `ns`, `ui`, `o`, `o2`, `ts`, `t`, `wall`, `lsid`, `txnNumber`, `prevOpTime`,
//! `fromMigrate` as written by MongoDB 4.4 to 6.0. Unknown fields are ignored; a missing required field is an error.
//! The parts are slices of the reply; nothing is decoded but the numbers of the envelope.

use bytes::Bytes;

use crate::error::{Error, Kind, Result, Side};
use crate::model::raw::{self, Element, Elements, kind};
use crate::model::{Change, CollectionUuid, Namespaces, OpTime, Operation, Origin};

/// A parsed envelope.
#[derive(Debug, Clone)]
pub struct Entry {
    /// `i`, `u`, `d`, `c` or `n`.
    pub op: u8,
    ns: Bytes,
    /// `ui`.
    pub collection: Option<CollectionUuid>,
    /// `o`: document, update, key or command.
    pub o: Bytes,
    /// `o2`: the selector of an update.
    pub o2: Bytes,
    /// `ts` and `t`.
    pub time: OpTime,
    /// `wall`, milliseconds since the Unix epoch.
    pub wall_ms: i64,
    /// Written by a chunk migration.
    pub from_migrate: bool,
    /// `lsid` and `txnNumber`, raw, of an entry that belongs to a session.
    pub session: Option<(Bytes, i64)>,
    /// Where a collector had read it that wrote it here: a mark in `txnNumber`.
    pub origin: Option<Origin>,
    /// `g`: the global id that kernels of Alibaba write.
    pub global_id: Option<Bytes>,
    /// `prevOpTime`; `None` when it is the first (or no) entry of a chain. Statements of retryable writes have one too:
    /// only those of transactions are looked at.
    pub previous: Option<OpTime>,
    /// An `applyOps` that groups retryable writes instead of carrying a transaction (`multiOpType: 1`, MongoDB ≥ 7).
    pub groups_writes: bool,
}

impl Entry {
    /// Parses a top-level entry.
    ///
    /// # Errors
    /// `Malformed` when a required field is missing or of the wrong type.
    pub fn parse(bytes: Bytes) -> Result<Self> {
        let entry = Self::walk(&bytes)?;
        if entry.time.ts() == 0 {
            return Err(missing("ts"));
        }
        Ok(entry)
    }

    /// Parses an operation inside `applyOps`; its times are those of `commit`.
    ///
    /// # Errors
    /// As [`Entry::parse`].
    pub fn parse_inner(bytes: Bytes, commit: &Self) -> Result<Self> {
        let mut entry = Self::walk(&bytes)?;
        entry.time = commit.time;
        entry.wall_ms = commit.wall_ms;
        entry.session = None;
        entry.previous = None;
        entry.origin = commit.origin;
        entry.global_id = entry.global_id.or_else(|| commit.global_id.clone());
        Ok(entry)
    }

    /// A command entry as the oplog has it, for a change of the catalogue that was learned in another form.
    pub(super) fn of_command(ns: String, o: Bytes, collection: Option<CollectionUuid>, at: (OpTime, i64)) -> Self {
        let ns = Bytes::from(ns);
        Self { op: b'c', ns, collection, o, time: at.0, wall_ms: at.1, ..Self::empty() }
    }

    fn empty() -> Self {
        Self {
            op: 0,
            ns: Bytes::new(),
            collection: None,
            o: Bytes::new(),
            o2: Bytes::new(),
            time: OpTime { term: -1, ..OpTime::default() },
            wall_ms: 0,
            from_migrate: false,
            session: None,
            origin: None,
            global_id: None,
            previous: None,
            groups_writes: false,
        }
    }

    fn walk(bytes: &Bytes) -> Result<Self> {
        let mut entry = Self::empty();
        let mut lsid = None;
        let mut number = None;
        for element in Elements::new(bytes)? {
            let element = element?;
            match (element.name, element.kind) {
                (b"op", kind::STRING) => entry.op = element.value.get(4).copied().unwrap_or_default(),
                (b"ns", kind::STRING) => entry.ns = text(bytes, &element),
                (b"o", kind::DOCUMENT) => entry.o = bytes.slice(element.offset..element.end()),
                (b"o2", kind::DOCUMENT) => entry.o2 = bytes.slice(element.offset..element.end()),
                (b"ts", kind::TIMESTAMP) => {
                    let ts = raw::read_i64(element.value, 0)?.cast_unsigned();
                    entry.time = OpTime { term: entry.time.term, ..OpTime::from_ts(ts) };
                }
                (b"t", kind::INT64) => entry.time.term = raw::read_i64(element.value, 0)?,
                (b"wall", kind::DATE) => entry.wall_ms = raw::read_i64(element.value, 0)?,
                (b"ui", kind::BINARY) => entry.collection = uuid(element.value),
                (b"fromMigrate", kind::BOOLEAN) => entry.from_migrate = element.value == [1],
                (b"lsid", kind::DOCUMENT) => lsid = Some(bytes.slice(element.offset..element.end())),
                (b"txnNumber", kind::INT64) => number = Some(raw::read_i64(element.value, 0)?),
                (b"g", kind::STRING) => entry.global_id = Some(text(bytes, &element)),
                (b"multiOpType", kind::INT32) => entry.groups_writes = raw::read_i32(element.value, 0)? == 1,
                (b"prevOpTime", kind::DOCUMENT) => {
                    entry.previous = op_time(element.value)?;
                }
                _ => {}
            }
        }
        entry.origin = number.and_then(Origin::of_transaction);
        entry.session = lsid.zip(number);
        if entry.op == 0 {
            return Err(missing("op"));
        }
        if entry.op != b'n' && (entry.o.is_empty() || entry.ns.is_empty()) {
            return Err(missing("o or ns"));
        }
        Ok(entry)
    }

    /// The namespace as logged. Names are UTF-8 on every server; other bytes yield an empty name, which no rule and
    /// no collection has.
    #[must_use]
    pub fn ns(&self) -> &str {
        std::str::from_utf8(&self.ns).unwrap_or_default()
    }

    /// The database part of [`Entry::ns`].
    #[must_use]
    pub fn database(&self) -> &str {
        self.ns().split('.').next().unwrap_or_default()
    }

    /// The first field's name of a command entry.
    ///
    /// # Errors
    /// `Malformed` for an empty command.
    pub fn command_name(&self) -> Result<&[u8]> {
        Ok(self.command()?.name)
    }

    /// The first element of `o`: the command's name and argument.
    ///
    /// # Errors
    /// `Malformed` for an empty command.
    pub fn command(&self) -> Result<Element<'_>> {
        Elements::new(&self.o)?.next().ok_or_else(|| missing("command name"))?.map_err(Into::into)
    }

    /// The collection a command names, when its argument is a string.
    #[must_use]
    pub fn command_collection(&self) -> Option<&str> {
        let first = self.command().ok()?;
        (first.kind == kind::STRING).then(|| string(first.value)).flatten()
    }

    /// The change of an `i`, `u` or `d` entry.
    ///
    /// # Errors
    /// `CannotApply` for an update of an unknown version; `Malformed`.
    pub fn to_change(&self, namespaces: &Namespaces) -> Result<Change> {
        let id = namespaces.intern(self.ns());
        let (operation, key, body) = match self.op {
            b'i' => (Operation::Insert, self.o2.clone(), self.o.clone()),
            b'd' => (Operation::Delete, self.o.clone(), Bytes::new()),
            _ => {
                if self.o2.is_empty() {
                    return Err(missing("o2"));
                }
                let (operation, body) = update(&self.o)?;
                (operation, self.o2.clone(), body)
            }
        };
        Ok(Change {
            operation,
            source: id,
            target: id,
            key,
            body,
            time: self.time,
            wall_ms: self.wall_ms,
            collection: self.collection,
            origin: self.origin,
            not_before_ms: 0,
            moved: false,
            creates: false,
            ddl: None,
        })
    }
}

/// Tells the forms of an update's `o` apart: `{$v: 2, diff: …}`, `{$v: 1, $set: …}`, `{$set: …}`, or a replacement.
///
/// A logged modifier document always begins with its `$v` or first modifier, so a replacement that merely holds a
/// `$` name further back is not mistaken for one. One that begins with such a name has its `_id` further back, which no
/// modifier document has (the server goes by that, too).
pub(super) fn update(o: &Bytes) -> Result<(Operation, Bytes)> {
    let Some(first) = Elements::new(o)?.next() else {
        return Ok((Operation::Replace, o.clone()));
    };
    let first = first?;
    if first.name.first() == Some(&b'$') && raw::find(o, "_id")?.is_some() {
        return Ok((Operation::Replace, o.clone()));
    }
    if first.name == b"$v" {
        let version = match first.kind {
            kind::INT32 => i64::from(raw::read_i32(first.value, 0)?),
            kind::INT64 => raw::read_i64(first.value, 0)?,
            _ => -1,
        };
        return match version {
            1 => Ok((Operation::UpdateModifiers, elements_from(o, first.end()))),
            2 => {
                let diff = raw::find(o, "diff")?.filter(|d| d.kind == kind::DOCUMENT).ok_or_else(|| missing("diff"))?;
                Ok((Operation::UpdateDiff, o.slice(diff.offset..diff.end())))
            }
            other => Err(Error::new(Side::Source, Kind::CannotApply, format!("update of unknown version $v: {other}"))),
        };
    }
    match first.name {
        b"$set" | b"$unset" => Ok((Operation::UpdateModifiers, o.clone())),
        _ => Ok((Operation::Replace, o.clone())),
    }
}

/// The elements of `document` behind offset `end`, as a document of their own. Copies.
pub(super) fn elements_from(document: &Bytes, end: usize) -> Bytes {
    let rest = document.get(end..).unwrap_or_default();
    let length = i32::try_from(rest.len() + 4).unwrap_or(i32::MAX);
    let mut out = Vec::with_capacity(rest.len() + 4);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(rest);
    Bytes::from(out)
}

/// The time in a `{ts, t}` document; `None` for the null time that begins a chain.
fn op_time(document: &[u8]) -> Result<Option<OpTime>> {
    let ts = raw::find(document, "ts")?.ok_or_else(|| missing("prevOpTime.ts"))?;
    let ts = raw::read_i64(ts.value, 0)?.cast_unsigned();
    let term = match raw::find(document, "t")? {
        Some(term) if term.kind == kind::INT64 => raw::read_i64(term.value, 0)?,
        _ => -1,
    };
    Ok((ts != 0).then_some(OpTime { term, ..OpTime::from_ts(ts) }))
}

/// `document` without its field `name`. Copies.
pub(super) fn without(document: &Bytes, name: &[u8]) -> Result<Bytes> {
    let mut rest = Vec::with_capacity(document.len());
    for element in Elements::new(document)? {
        let element = element?;
        // Type, name and its end stand before the value.
        let start = element.offset.saturating_sub(element.name.len() + 2);
        if element.name != name {
            rest.extend_from_slice(document.get(start..element.end()).unwrap_or_default());
        }
    }
    rest.push(0);
    Ok(elements_from(&Bytes::from(rest), 0))
}

/// The bytes of a BSON string's text, as a slice of `whole`.
fn text(whole: &Bytes, element: &Element<'_>) -> Bytes {
    whole.slice(element.offset + 4..(element.end() - 1).max(element.offset + 4))
}

/// The text of a BSON string value.
#[must_use]
pub fn string(value: &[u8]) -> Option<&str> {
    let end = value.len().checked_sub(1)?;
    std::str::from_utf8(value.get(4..end)?).ok()
}

/// A UUID (binary subtype 4, 16 bytes) out of a BSON binary value.
#[must_use]
pub fn uuid(value: &[u8]) -> Option<CollectionUuid> {
    value.get(5..)?.try_into().ok()
}

pub(super) fn missing(field: &str) -> Error {
    Error::new(Side::Source, Kind::Malformed, format!("the entry has no usable field {field}"))
}
