//! The batch as a plugin reads it: columns from the host, entries for the author.
//!
//! An entry borrows from the batch and copies nothing. Offsets come from the host; a slice that does not fit reads
//! as empty instead of trapping.

use crate::bson;

/// What happened; the numbers are the contract's op codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Op {
    Snapshot = 0,
    Insert = 1,
    Replace = 2,
    UpdateDiff = 3,
    UpdateModifiers = 4,
    Delete = 5,
    Ddl = 6,
}

impl Op {
    /// The op of a code; `None` for a code of a newer host.
    #[must_use]
    pub const fn of(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::Snapshot,
            1 => Self::Insert,
            2 => Self::Replace,
            3 => Self::UpdateDiff,
            4 => Self::UpdateModifiers,
            5 => Self::Delete,
            6 => Self::Ddl,
            _ => return None,
        })
    }

    /// Whether the body is a whole document.
    #[must_use]
    pub const fn is_document(self) -> bool {
        matches!(self, Self::Snapshot | Self::Insert | Self::Replace)
    }
}

/// A set of ops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ops(pub u8);

impl Ops {
    pub const NONE: Self = Self(0);
    pub const ALL: Self = Self(0b111_1111);
    /// Everything but DDL.
    pub const DOCUMENTS: Self = Self(0b011_1111);
    /// Everything but the full copy.
    pub const CHANGES: Self = Self(0b111_1110);
    pub const DDL: Self = Self::of(Op::Ddl);

    /// The set of one op.
    #[must_use]
    pub const fn of(op: Op) -> Self {
        Self(1 << op as u8)
    }

    /// Both sets together.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Entries in source order, as columns; place `i` of each belongs to entry `i`.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    pub seq: u64,
    /// Source wall time of the newest entry, milliseconds since the Unix epoch. Use this for a clock.
    pub now_ms: i64,
    pub namespaces: Vec<String>,
    pub ns: Vec<u32>,
    pub op: Vec<u8>,
    pub ts: Vec<u64>,
    pub wall_ms: Vec<i64>,
    pub off: Vec<u32>,
    pub len: Vec<u32>,
    pub arena: Vec<u8>,
}

/// One change.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    pub op: Op,
    /// As earlier plugins left it.
    pub namespace: &'a str,
    /// Source time, `seconds << 32 | increment`.
    pub ts: u64,
    /// Source wall clock, milliseconds since the Unix epoch.
    pub wall_ms: i64,
    /// Raw key document `{_id: …}`; empty where the op has none or nothing was asked for.
    pub key: &'a [u8],
    /// Raw body; empty unless [`crate::Body::Full`] was asked for. Its meaning depends on the op.
    pub body: &'a [u8],
}

impl Batch {
    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.op.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.op.is_empty()
    }

    /// Entry `at`; `None` behind the end or for an op this SDK does not know.
    #[must_use]
    pub fn entry(&self, at: usize) -> Option<Entry<'_>> {
        let op = Op::of(*self.op.get(at)?)?;
        let (off, len) = (*self.off.get(at)? as usize, *self.len.get(at)? as usize);
        let slice = self.arena.get(off..off + len).unwrap_or_default();
        let (key, body) = bson::split_first(slice);
        Some(Entry {
            op,
            namespace: self.namespaces.get(*self.ns.get(at)? as usize)?,
            ts: *self.ts.get(at)?,
            wall_ms: *self.wall_ms.get(at)?,
            key: if key.len() > 5 { key } else { &[] },
            body,
        })
    }

    /// For tests: adds an entry with a key (empty = none) and a body.
    pub fn push(&mut self, op: Op, namespace: &str, key: &[u8], body: &[u8]) {
        let known = self.namespaces.iter().position(|n| n == namespace);
        let ns = known.unwrap_or_else(|| {
            self.namespaces.push(namespace.to_owned());
            self.namespaces.len() - 1
        });
        let off = self.arena.len();
        self.arena.extend_from_slice(if key.is_empty() { &bson::EMPTY } else { key });
        self.arena.extend_from_slice(body);
        self.ns.push(ns as u32);
        self.op.push(op as u8);
        self.ts.push(0);
        self.wall_ms.push(0);
        self.off.push(off as u32);
        self.len.push((self.arena.len() - off) as u32);
    }
}
