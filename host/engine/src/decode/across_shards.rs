//! The parts of one transaction on several shards, in an order that is right.
//!
//! A transaction that changes a document's shard key deletes it on one shard and inserts it on another. The oplogs say
//! which shard did what, but not in which order the two happened, and it matters: the document is there afterwards. The
//! shards agree on one thing: of all parts that touch an `_id` at most one leaves a document behind. So what ends with
//! a delete goes first. To know what does, everything is looked through once; then it is gone through twice more, for
//! what goes first and for the rest. Each piece gets memory of the budget before it is brought into memory, so that a
//! transaction of any size passes; between two pieces only fingerprints of the deleted documents are kept. This is
//! about parts of one transaction only; all else is ordered by cluster time. Nothing here reads or waits.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use super::Need;
use super::oplog::Entry;
use super::transaction::{Chain, Part};
use crate::budget::Permit;
use crate::error::{Error, Kind, Result, Side};
use crate::model::{Change, DocumentKey, NamespaceId, OpTime, Operation, Position};
use crate::spill::Stored;

/// What is to be done next.
#[derive(Debug)]
pub(super) enum Next {
    Need(Need),
    Piece(Piece),
}

/// Operations whose turn it is: expanded, they are given to [`Across::choose`].
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) operations: Bytes,
    /// Number of the part that they belong to.
    part: usize,
    pub(super) turn: Turn,
    /// Their memory: `None` = what is chosen of them goes together with what follows.
    pub(super) permit: Option<Permit>,
    pub(super) is_last: bool,
}

/// How often everything was gone through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// What is deleted is noted; nothing is passed on.
    Looking,
    /// What ends with a delete is passed on.
    First,
    /// All else is.
    Rest,
}

/// One entry's operations.
#[derive(Debug)]
struct Held {
    part: usize,
    operations: Where,
    bytes: usize,
}

#[derive(Debug)]
enum Where {
    Memory(Bytes),
    /// On disk, where they are read from in each turn.
    Stored(Arc<Stored>),
}

/// A transaction across shards that was committed, while its parts are passed on.
#[derive(Debug)]
pub(super) struct Across {
    commit: Entry,
    stream: u32,
    before: Position,
    /// Of all parts, one part behind the other; what is done goes to the end, or away in the last turn.
    pieces: VecDeque<Held>,
    /// Pieces that are left of this turn.
    left: usize,
    turn: Turn,
    /// All of it is passed on as one: its size.
    whole: Option<usize>,
    permit: Option<Permit>,
    loaded: Option<Bytes>,
    /// The documents that are gone after the part of this number.
    deleted: HashSet<(usize, NamespaceId, DocumentKey)>,
    has_command: bool,
}

impl Across {
    /// `before` is the place before the commit. Up to `whole_max` bytes are passed on as one.
    ///
    /// # Errors
    /// `CannotApply` for a part that only the oplog has.
    pub(super) fn new(
        commit: Entry,
        stream: u32,
        chains: Vec<Chain>,
        before: Position,
        whole_max: usize,
    ) -> Result<Self> {
        let mut pieces = VecDeque::new();
        for (part, chain) in chains.into_iter().enumerate() {
            for piece in chain.parts {
                let bytes = piece.bytes();
                let operations = match piece {
                    Part::Memory(operations) => Where::Memory(operations),
                    Part::Stored(stored) => Where::Stored(Arc::new(stored)),
                    // Only a walk back finds such, and there is none here.
                    Part::Oplog { time, .. } => return Err(unseen_start(time)),
                };
                pieces.push_back(Held { part, operations, bytes });
            }
        }
        let (left, total) = (pieces.len(), pieces.iter().map(|piece| piece.bytes).sum());
        Ok(Self {
            commit,
            stream,
            before,
            pieces,
            left,
            turn: Turn::Looking,
            whole: (total <= whole_max).then_some(total),
            permit: None,
            loaded: None,
            deleted: HashSet::new(),
            has_command: false,
        })
    }

    pub(super) fn commit(&self) -> &Entry {
        &self.commit
    }

    pub(super) fn stream(&self) -> u32 {
        self.stream
    }

    /// Whether all of it is passed on as one.
    pub(super) fn is_whole(&self) -> bool {
        self.whole.is_some()
    }

    /// The position that holds until all of it has been passed on.
    pub(super) fn before(&self) -> &Position {
        &self.before
    }

    pub(super) fn granted(&mut self, permit: Permit) {
        self.permit = Some(permit);
    }

    pub(super) fn loaded(&mut self, operations: Bytes) {
        self.loaded = Some(operations);
    }

    pub(super) fn next(&mut self) -> Next {
        if self.left == 0 {
            let goes_first = !self.deleted.is_empty() || self.has_command;
            self.turn = if self.turn == Turn::Looking && goes_first { Turn::First } else { Turn::Rest };
            self.left = self.pieces.len();
        }
        let front = self.pieces.front();
        if self.permit.is_none() {
            let bytes = self.whole.or(front.map(|piece| piece.bytes)).unwrap_or_default();
            return Next::Need(Need::Memory { bytes });
        }
        let here = self.loaded.take();
        match (here, front.map(|piece| &piece.operations)) {
            (Some(operations), _) => self.take(operations),
            (None, Some(Where::Memory(operations))) => self.take(operations.clone()),
            (None, Some(Where::Stored(stored))) => Next::Need(Need::Load(Arc::clone(stored))),
            // A transaction of nothing: its end still moves the position.
            (None, None) => self.take(empty()),
        }
    }

    fn take(&mut self, operations: Bytes) -> Next {
        let front = self.pieces.pop_front();
        let part = front.as_ref().map_or(0, |piece| piece.part);
        self.left = self.left.saturating_sub(1);
        if self.turn != Turn::Rest {
            self.pieces.extend(front);
        }
        let is_last = self.turn == Turn::Rest && self.left == 0;
        let permit = if is_last || !self.is_whole() { self.permit.take() } else { None };
        Next::Piece(Piece { operations, part, turn: self.turn, permit, is_last })
    }

    /// Appends to `out` those changes of a piece whose turn it is.
    ///
    /// # Errors
    /// `Malformed` for a change without a usable `_id`.
    pub(super) fn choose(&mut self, piece: &Piece, changes: Vec<Change>, out: &mut Vec<Change>) -> Result<()> {
        for change in changes {
            // A command is about no document: it goes before all of them.
            let place = match change.operation {
                Operation::Ddl => None,
                Operation::Insert
                | Operation::Snapshot
                | Operation::Replace
                | Operation::UpdateDiff
                | Operation::UpdateModifiers
                | Operation::Delete => {
                    Some((piece.part, change.source, DocumentKey::of_document(change.key_document())?))
                }
            };
            match (piece.turn, place) {
                (Turn::Looking, None) => self.has_command = true,
                (Turn::Looking, Some(place)) if change.operation == Operation::Delete => {
                    self.deleted.insert(place);
                }
                (Turn::Looking, Some(place)) => {
                    self.deleted.remove(&place);
                }
                (turn @ (Turn::First | Turn::Rest), place) => {
                    let goes_first = place.is_none_or(|place| self.deleted.contains(&place));
                    if goes_first == (turn == Turn::First) {
                        out.push(change);
                    }
                }
            }
        }
        Ok(())
    }
}

/// A prepared transaction whose beginning lies further back than a first start reads.
pub(super) fn unseen_start(unread: OpTime) -> Error {
    let text = format!(
        "a prepared transaction ends here that had been open for long when reading began: its entry at {unread} was not \
         read; its parts on the other shards are not known, nor is their order; copy again, or start from an earlier time"
    );
    Error::new(Side::Source, Kind::CannotApply, text)
}

/// A transaction that one shard had committed at the start and another had not.
pub(super) fn cut_in_two() -> Error {
    let text = "a transaction across shards was being committed at the time where reading starts: one shard's part of it is \
                on the target, the other's is not, and their order counts; start from a time a few seconds away, or copy";
    Error::new(Side::Source, Kind::CannotApply, text)
}

/// An empty BSON array.
fn empty() -> Bytes {
    Bytes::from_static(&[5, 0, 0, 0, 0])
}
