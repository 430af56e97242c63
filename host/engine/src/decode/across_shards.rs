//! The parts of one transaction on several shards, as one list of changes.
//!
//! A transaction that changes a document's shard key deletes it on one shard and inserts it on another. The oplogs say
//! which shard did what, but not in which order the two happened, and it matters: the document is there afterwards. The
//! shards agree on one thing: of all parts that touch an `_id` at most one leaves a document behind. So what ends with
//! a delete goes first. For that all of it must be in memory. This is about parts of one transaction only; all else is
//! ordered by cluster time.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use super::Need;
use super::oplog::Entry;
use super::transaction::{Chain, Part};
use crate::error::{Error, Kind, Result, Side};
use crate::model::{Change, DocumentKey, NamespaceId, Operation, Position};

/// A transaction across shards that was committed, while its parts come into memory.
#[derive(Debug)]
pub(super) struct Across {
    commit: Entry,
    stream: u32,
    before: Position,
    waiting: VecDeque<VecDeque<Part>>,
    /// Of each shard, in order.
    here: Vec<Vec<Bytes>>,
}

impl Across {
    /// # Errors
    /// `CannotApply` when the beginning of a part was not read.
    pub(super) fn new(commit: Entry, stream: u32, chains: Vec<Chain>) -> Result<Self> {
        if chains.iter().any(|chain| chain.head.is_some()) {
            return Err(unseen_start());
        }
        let before = chains.iter().map(|chain| &chain.before).min_by_key(|before| before.time().ts());
        let before = before.cloned().unwrap_or(Position::Oplog(commit.time));
        let waiting = chains.into_iter().map(|chain| chain.parts).collect();
        Ok(Self { commit, stream, before, waiting, here: vec![Vec::new()] })
    }

    pub(super) fn commit(&self) -> &Entry {
        &self.commit
    }

    pub(super) fn stream(&self) -> u32 {
        self.stream
    }

    /// The position that holds until all of it has been passed on.
    pub(super) fn before(&self) -> &Position {
        &self.before
    }

    /// What is missing; `None` when all is here.
    pub(super) fn next(&mut self) -> Option<Need> {
        while let Some(parts) = self.waiting.front_mut() {
            match parts.pop_front() {
                Some(Part::Memory(operations)) => self.loaded(operations),
                Some(Part::Stored(stored)) => return Some(Need::Load(stored)),
                Some(Part::Oplog { time, .. }) => return Some(Need::Entry { stream: self.stream, time }),
                None => {
                    self.waiting.pop_front();
                    self.here.push(Vec::new());
                }
            }
        }
        None
    }

    pub(super) fn loaded(&mut self, operations: Bytes) {
        if let Some(part) = self.here.last_mut() {
            part.push(operations);
        }
    }

    /// The operations of each shard.
    pub(super) fn into_parts(self) -> Vec<Vec<Bytes>> {
        self.here
    }
}

/// A prepared transaction whose beginning lies further back than a first start reads.
pub(super) fn unseen_start() -> Error {
    let text = "a prepared transaction ends here that had been open for long when reading began; its parts on the other \
                shards are not known, nor is their order; copy again, or start from an earlier time";
    Error::new(Side::Source, Kind::CannotApply, text)
}

/// Appends the changes of all parts to `out`.
///
/// # Errors
/// `Malformed` for a change without a usable `_id`.
pub(super) fn join(parts: Vec<Vec<Change>>, out: &mut Vec<Change>) -> Result<()> {
    let mut remaining = Vec::new();
    for part in parts {
        let deleted = deleted_in(&part)?;
        for change in part {
            let goes_first = match place(&change)? {
                Some(place) => deleted.get(&place).copied().unwrap_or_default(),
                None => true,
            };
            if goes_first { out.push(change) } else { remaining.push(change) }
        }
    }
    out.append(&mut remaining);
    Ok(())
}

/// Which documents of a part are gone after it.
fn deleted_in(part: &[Change]) -> Result<HashMap<(NamespaceId, DocumentKey), bool>> {
    let mut deleted = HashMap::new();
    for change in part {
        if let Some(place) = place(change)? {
            deleted.insert(place, change.operation == Operation::Delete);
        }
    }
    Ok(deleted)
}

/// The document that a change is about; none for a command.
fn place(change: &Change) -> Result<Option<(NamespaceId, DocumentKey)>> {
    if change.operation == Operation::Ddl {
        return Ok(None);
    }
    Ok(Some((change.source, DocumentKey::of_document(change.key_document())?)))
}
