//! What becomes visible at once: transactions and `applyOps`.
//!
//! The entries of a transaction are kept until its last one or its commit is read, and expanded under the time of that. A
//! small one is expanded in its place; a large one, and one whose beginning must be read again, goes on in steps, each of
//! which may need something. One across shards waits for its first commit and goes on as one.

use std::sync::Arc;

use bytes::Bytes;

use super::across_shards::{self, Across, Turn};
use super::ending::{Ending, Next};
use super::oplog::Entry;
use super::transaction::{self, Chain, Known, Seen};
use super::{Decoder, Need};
use crate::error::Result;
use crate::model::Position;
use crate::model::raw::Elements;

/// A transaction of several entries that is larger than this is passed on in pieces with memory of their own.
const INLINE_BYTES_MAX: usize = 1 << 20;

impl Decoder {
    pub(super) fn apply_ops(&mut self, entry: &Entry, stream: u32) -> Result<()> {
        let place = self.place();
        match self.transactions.step(stream, entry, place.clone(), self.options.transaction_bytes)? {
            Seen::Visible(operations) => self.expand_inner(entry, &operations),
            Seen::Kept => Ok(()),
            Seen::Excess(operations) => {
                self.excess = Some(operations);
                Ok(())
            }
            Seen::Ended(chain) => self.end(entry, stream, chain, place),
        }
    }

    /// A prepared transaction was committed. Of a cluster, what began before everything that was read may have parts on
    /// other shards that nothing here knows of.
    pub(super) fn commit(&mut self, entry: &Entry, stream: u32) -> Result<()> {
        let place = self.place();
        if self.streams.was_handed_on(stream, entry.time) {
            return self.transactions.commit_again(stream, entry, place);
        }
        if self.is_done(stream, entry.time) {
            return self.transactions.commit_behind(stream, entry, place);
        }
        let is_cluster = self.streams.is_cluster();
        let is_behind = self.streams.is_behind_cut(entry.time);
        match self.transactions.known(stream, entry) {
            // In the copy, and the other parts are, unless their commits come behind the cut.
            Known::HalfDone | Known::Unread(_) if is_behind => {
                return self.transactions.commit_behind(stream, entry, place);
            }
            Known::HalfDone => return Err(across_shards::cut_in_two()),
            Known::Unread(unread) | Known::Parted(unread) if is_cluster => {
                return Err(across_shards::unseen_start(unread));
            }
            // On a set the beginning is found by the end.
            Known::Whole | Known::Unread(_) | Known::Parted(_) => {}
        }
        self.transactions.note_early(entry, is_behind);
        let mut chains = self.transactions.commit(stream, entry, place.clone())?;
        if chains.len() > 1 {
            let whole_max = self.options.atomic_bytes.max(INLINE_BYTES_MAX);
            self.across = Some(Box::new(Across::new(entry.clone(), stream, chains, place, whole_max)?));
            return Ok(());
        }
        let Some(chain) = chains.pop() else { return Ok(()) };
        self.end(entry, stream, chain, place)
    }

    /// A small transaction that lies in memory is expanded in its place; any other one in steps. `place` is before its
    /// end.
    fn end(&mut self, entry: &Entry, stream: u32, mut chain: Chain, place: Position) -> Result<()> {
        if self.is_done(stream, entry.time) {
            return Ok(());
        }
        if self.streams.is_cluster() {
            chain.before = place;
        }
        let ending = Ending::new(entry.clone(), stream, chain, self.options.atomic_bytes);
        match ending.inline(INLINE_BYTES_MAX) {
            Ok(parts) => parts.iter().try_for_each(|operations| self.expand_inner(entry, operations)),
            Err(ending) => {
                self.ending = Some(ending);
                Ok(())
            }
        }
    }

    /// Goes on with the transaction that has ended; `None` when it needs nothing for now.
    pub(super) fn end_transaction(&mut self) -> Result<Option<Need>> {
        let Some(mut ending) = self.ending.take() else {
            return Ok(None);
        };
        let next = ending.next();
        let (time, stream) = (ending.commit().time, ending.stream());
        match next {
            Next::Need(need) => {
                self.ending = Some(ending);
                Ok(Some(need))
            }
            Next::Part { operations, permit, is_last } => {
                let (commit, whole) = (ending.commit().clone(), ending.is_whole());
                if is_last {
                    self.streams.read(stream, time)?;
                } else {
                    self.ending = Some(ending);
                }
                self.expand_inner(&commit, &operations).map_err(|e| e.context(format!("oplog entry {time}")))?;
                match permit {
                    Some(permit) if whole => self.pass_on_transaction(Arc::new(permit)),
                    Some(permit) => {
                        self.counts.split += u64::from(is_last && self.options.atomic_bytes > 0);
                        self.pass_on(self.safe_position(), &Arc::new(permit));
                    }
                    // More of it follows, for the same batch.
                    None => {}
                }
                Ok(None)
            }
        }
    }

    /// Goes on with a transaction across shards; `None` when it needs nothing for now.
    pub(super) fn end_across(&mut self) -> Result<Option<Need>> {
        let Some(mut across) = self.across.take() else { return Ok(None) };
        let mut piece = match across.next() {
            across_shards::Next::Need(need) => {
                self.across = Some(across);
                return Ok(Some(need));
            }
            across_shards::Next::Piece(piece) => piece,
        };
        let (commit, stream, whole) = (across.commit().clone(), across.stream(), across.is_whole());
        let counts = self.counts;
        let mut chosen = std::mem::take(&mut self.changes);
        let expanded = self.expand_inner(&commit, &piece.operations);
        expanded.map_err(|e| e.context(format!("oplog entry {}", commit.time)))?;
        across.choose(&piece, std::mem::take(&mut self.changes), &mut chosen)?;
        self.changes = chosen;
        if piece.turn != Turn::Rest {
            // Everything is gone through once more, and counted then.
            self.counts = counts;
        }
        if piece.is_last {
            self.streams.read(stream, commit.time)?;
        } else {
            self.across = Some(across);
        }
        match piece.permit.take() {
            Some(permit) if whole => self.pass_on_transaction(Arc::new(permit)),
            Some(permit) if piece.is_last || !self.changes.is_empty() => {
                self.counts.split += u64::from(piece.is_last && self.options.atomic_bytes > 0);
                self.pass_on(self.safe_position(), &Arc::new(permit));
            }
            // Nothing of it has its turn, or more of it follows for the same batch.
            Some(_) | None => {}
        }
        Ok(None)
    }

    /// Expands the operations of an `applyOps` array under the time of the entry that made them visible.
    pub(super) fn expand_inner(&mut self, commit: &Entry, operations: &Bytes) -> Result<()> {
        for element in Elements::new(operations)? {
            let element = element?;
            let inner = Entry::parse_inner(operations.slice(element.offset..element.end()), commit)?;
            let first = self.changes.len();
            // An operation inside is no transaction of its own: its stream is of no matter.
            self.expand(&inner, 0)?;
            if commit.session.is_none() {
                self.changes.iter_mut().skip(first).try_for_each(transaction::as_applied)?;
            }
        }
        Ok(())
    }
}
