//! A transaction that has ended and is passed on in pieces.
//!
//! Its operations may lie in memory, on disk, or in entries of the oplog that were never read. First the chain is
//! walked back to its beginning, if that is not known; then the parts come one after the other, oldest first, and
//! memory is asked for before each, so that a transaction of any size passes through the budget. No checkpoint stands
//! between two pieces: until the last one is out, the position stays before the whole. Nothing here reads or waits.

use std::sync::Arc;

use bytes::Bytes;

use super::Need;
use super::oplog::Entry;
use super::transaction::{Chain, Part, operations};
use crate::budget::Permit;
use crate::error::Result;
use crate::model::Position;

/// A part that the walk back finds is kept up to this size, and read again in its turn beyond it.
const KEEP_BYTES_MAX: usize = 64 << 10;

/// What is to be done next.
#[derive(Debug)]
pub(super) enum Next {
    Need(Need),
    /// These operations are to be passed on, with their memory: `None` = together with those that follow.
    Part {
        operations: Bytes,
        permit: Option<Permit>,
        is_last: bool,
    },
}

/// The walk back, then the parts.
#[derive(Debug)]
pub(super) struct Ending {
    commit: Entry,
    stream: u32,
    chain: Chain,
    /// Memory for the next part.
    permit: Option<Permit>,
    /// The next part itself, once it is here.
    part: Option<Bytes>,
    /// Up to this size all parts are passed on as one.
    whole_max: usize,
    /// Whether they are; known when the walk is over.
    whole: Option<bool>,
}

impl Ending {
    pub(super) fn new(commit: Entry, stream: u32, chain: Chain, whole_max: usize) -> Self {
        Self { commit, stream, chain, permit: None, part: None, whole_max, whole: None }
    }

    /// The entry that made the operations visible.
    pub(super) fn commit(&self) -> &Entry {
        &self.commit
    }

    /// Whether all parts are passed on as one.
    pub(super) fn is_whole(&self) -> bool {
        self.whole.unwrap_or_default()
    }

    /// The position that holds for as long as not all of it has been passed on.
    pub(super) fn before(&self) -> &Position {
        &self.chain.before
    }

    /// Number of the stream whose oplog has the chain.
    pub(super) fn stream(&self) -> u32 {
        self.stream
    }

    /// All of it, when it is complete, in memory, and not larger than `bytes_max`.
    pub(super) fn inline(self, bytes_max: usize) -> std::result::Result<Vec<Bytes>, Box<Self>> {
        let here = self.chain.parts.iter().all(|part| matches!(part, Part::Memory(_)));
        if self.chain.head.is_some() || !here || self.chain.bytes() > bytes_max {
            return Err(Box::new(self));
        }
        let parts = self.chain.parts.into_iter().filter_map(|part| match part {
            Part::Memory(bytes) => Some(bytes),
            Part::Stored(_) | Part::Oplog { .. } => None,
        });
        Ok(parts.collect())
    }

    pub(super) fn granted(&mut self, permit: Permit) {
        self.permit = Some(permit);
    }

    pub(super) fn loaded(&mut self, operations: Bytes) {
        self.part = Some(operations);
    }

    /// An entry of the oplog: the head that the walk asked for, or a part that it had found.
    pub(super) fn entry(&mut self, entry: &Entry, bytes: usize) -> Result<()> {
        if self.chain.head.is_some() {
            return self.chain.prepend(entry, bytes, KEEP_BYTES_MAX);
        }
        self.part = Some(operations(entry)?);
        Ok(())
    }

    pub(super) fn next(&mut self) -> Next {
        if let Some(time) = self.chain.head {
            return Next::Need(Need::Entry { stream: self.stream, time });
        }
        let total = self.chain.bytes();
        let whole = *self.whole.get_or_insert(total <= self.whole_max);
        if let Some(operations) = self.part.take() {
            return self.pass_on(operations);
        }
        if self.permit.is_none() {
            let bytes = if whole { total } else { self.chain.parts.front().map_or(0, Part::bytes) };
            return Next::Need(Need::Memory { bytes });
        }
        match self.chain.parts.pop_front() {
            Some(Part::Stored(stored)) => Next::Need(Need::Load(Arc::new(stored))),
            Some(Part::Oplog { time, .. }) => Next::Need(Need::Entry { stream: self.stream, time }),
            Some(Part::Memory(operations)) => self.pass_on(operations),
            // A chain that turned out to hold nothing: its end still moves the position.
            None => self.pass_on(empty()),
        }
    }

    fn pass_on(&mut self, operations: Bytes) -> Next {
        let is_last = self.chain.parts.is_empty();
        let permit = if is_last || !self.is_whole() { self.permit.take() } else { None };
        Next::Part { operations, permit, is_last }
    }
}

/// An empty BSON array.
fn empty() -> Bytes {
    Bytes::from_static(&[5, 0, 0, 0, 0])
}
