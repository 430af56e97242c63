//! Turns raw oplog replies into changes, reading the envelope only.
//!
//! The decoder is pure and synchronous. It walks each entry once, notes where the parts stand and hands out slices of
//! the reply; no document is built. It expands transactions and `applyOps`, gives every DDL a batch of its own (so
//! that a checkpoint can stand right before it), and refuses what it cannot express exactly: an entry is never
//! skipped without being counted under a reason. It does not filter namespaces; that is the chain's business.

pub mod ddl;
pub mod oplog;
pub mod transaction;

use std::sync::Arc;

use crate::error::{Error, Kind, Result, Side};
use crate::model::raw::{Elements, kind};
use crate::model::{Change, ChangeBatch, Namespaces, OpTime, Operation, Position, RawBatch};
use oplog::Entry;
use transaction::Transactions;

/// What the decoder needs to know of the job.
#[derive(Debug, Clone, Default)]
pub struct DecodeOptions {
    /// Full names (`db.collection`) of Oplogue's own collections on the source: their entries are dropped.
    pub own_collections: Vec<String>,
    /// Databases that are Oplogue's own altogether (conflict records).
    pub own_databases: Vec<String>,
    /// Bytes that open transactions may hold before the run stops; 0 = no limit.
    pub transaction_bytes_max: usize,
}

/// Entries seen, by what became of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DecodeCounts {
    pub entries: u64,
    /// Size of the largest entry, in bytes.
    pub largest_bytes: u64,
    pub changes: u64,
    pub noop: u64,
    pub from_migrate: u64,
    pub own: u64,
    /// `startIndexBuild` and `abortIndexBuild`: the index comes with `commitIndexBuild`.
    pub index_build_steps: u64,
    /// Transactions that were aborted.
    pub aborted: u64,
}

/// Decodes one source's entries, in order.
#[derive(Debug)]
pub struct Decoder {
    namespaces: Arc<Namespaces>,
    options: DecodeOptions,
    transactions: Transactions,
    /// The entry to start from is delivered again by the source as a proof of the history; it is not applied again.
    skip: Option<OpTime>,
    /// The last entry seen, and the position that is safe to store.
    last: OpTime,
    next_seq: u64,
    counts: DecodeCounts,
}

impl Decoder {
    /// A decoder for entries that follow `start`.
    #[must_use]
    pub fn new(namespaces: Arc<Namespaces>, options: DecodeOptions, start: OpTime) -> Self {
        Self {
            namespaces,
            options,
            transactions: Transactions::default(),
            skip: Some(start),
            last: start,
            next_seq: 0,
            counts: DecodeCounts::default(),
        }
    }

    /// What was seen since the start.
    #[must_use]
    pub fn counts(&self) -> DecodeCounts {
        self.counts
    }

    /// The place to open the source at again when its cursor is lost: the last entry that was read. The source will
    /// deliver that entry once more, and it will be passed over. What was decoded stays valid.
    pub fn reopen(&mut self) -> Position {
        self.skip = Some(self.last);
        Position::Oplog(self.last)
    }

    /// Decodes one reply into batches: one, or more when DDL stands in it, each with its own position.
    ///
    /// # Errors
    /// `Malformed` for bytes that are no oplog entries; `CannotApply` for an entry of a kind that cannot be applied
    /// exactly; `Exhausted` when open transactions exceed their limit. The message names the entry's time.
    pub fn decode(&mut self, raw: RawBatch) -> Result<Vec<ChangeBatch>> {
        let RawBatch { entries, reached: _, permit } = raw;
        let permit = Arc::new(permit);
        let mut batches = Vec::with_capacity(1);
        let mut changes = Vec::new();
        for element in Elements::new(&entries)? {
            let element = element?;
            if element.kind != kind::DOCUMENT {
                return Err(Error::new(Side::Source, Kind::Malformed, "a reply holds something that is no document"));
            }
            self.counts.largest_bytes = self.counts.largest_bytes.max(element.value.len() as u64);
            let entry = Entry::parse(entries.slice(element.offset..element.end()))?;
            if self.skip.take_if(|start| start.ts() == entry.time.ts()).is_some() {
                continue;
            }
            let first = changes.len();
            let before = self.safe_position();
            self.expand(&entry, &mut changes).map_err(|e| e.context(format!("oplog entry {}", entry.time)))?;
            self.last = entry.time;
            // A DDL stands alone, so that the position before it can be stored before it is executed.
            if changes.get(first..).unwrap_or_default().iter().any(|c| c.operation == Operation::Ddl) {
                let tail = changes.split_off(first);
                if !changes.is_empty() {
                    batches.push(self.batch(std::mem::take(&mut changes), before, &permit));
                }
                batches.push(self.batch(tail, self.safe_position(), &permit));
            }
        }
        if !changes.is_empty() || batches.is_empty() {
            let position = self.safe_position();
            batches.push(self.batch(changes, position, &permit));
        }
        Ok(batches)
    }

    fn batch(&mut self, changes: Vec<Change>, last: OpTime, permit: &Arc<crate::budget::Permit>) -> ChangeBatch {
        let seq = self.next_seq;
        self.next_seq += 1;
        self.counts.changes += changes.len() as u64;
        ChangeBatch { seq, changes, last: Position::Oplog(last), permit: Arc::clone(permit) }
    }

    /// The last entry, or the one before the first entry of the oldest transaction that is still open.
    fn safe_position(&self) -> OpTime {
        self.transactions.floor().unwrap_or(self.last)
    }

    fn expand(&mut self, entry: &Entry, out: &mut Vec<Change>) -> Result<()> {
        self.counts.entries += 1;
        if entry.from_migrate {
            self.counts.from_migrate += 1;
            return Ok(());
        }
        match entry.op {
            b'n' => {
                self.counts.noop += 1;
                Ok(())
            }
            b'i' | b'u' | b'd' => {
                if self.is_own(entry) {
                    self.counts.own += 1;
                    return Ok(());
                }
                out.push(entry.to_change(&self.namespaces)?);
                Ok(())
            }
            b'c' => self.expand_command(entry, out),
            other => Err(Error::new(
                Side::Source,
                Kind::CannotApply,
                format!("unknown operation {:?} on {}", char::from(other), entry.ns()),
            )),
        }
    }

    fn expand_command(&mut self, entry: &Entry, out: &mut Vec<Change>) -> Result<()> {
        match entry.command_name()? {
            b"applyOps" => self.transactions_step(entry, out),
            b"commitTransaction" => {
                let ready = self.transactions.commit(entry)?;
                self.expand_inner(entry, &ready, out)
            }
            b"abortTransaction" => {
                self.counts.aborted += 1;
                self.transactions.abort(entry);
                Ok(())
            }
            b"startIndexBuild" | b"abortIndexBuild" => {
                self.counts.index_build_steps += 1;
                Ok(())
            }
            _ => {
                if self.is_own(entry) {
                    self.counts.own += 1;
                    return Ok(());
                }
                out.extend(ddl::decode(entry, &self.namespaces)?);
                Ok(())
            }
        }
    }

    fn transactions_step(&mut self, entry: &Entry, out: &mut Vec<Change>) -> Result<()> {
        let limit = self.options.transaction_bytes_max;
        match self.transactions.step(entry, self.last, limit)? {
            Some(ready) => self.expand_inner(entry, &ready, out),
            None => Ok(()),
        }
    }

    /// Expands the operations of `applyOps` arrays under the time of the entry that made them visible.
    fn expand_inner(&mut self, commit: &Entry, arrays: &[bytes::Bytes], out: &mut Vec<Change>) -> Result<()> {
        for array in arrays {
            for element in Elements::new(array)? {
                let element = element?;
                let inner = Entry::parse_inner(array.slice(element.offset..element.end()), commit)?;
                self.expand(&inner, out)?;
            }
        }
        Ok(())
    }

    fn is_own(&self, entry: &Entry) -> bool {
        let ns = entry.ns();
        if ns.ends_with(".$cmd") {
            let database = ns.trim_end_matches(".$cmd");
            let named = entry.command_collection();
            return self.options.own_databases.iter().any(|own| own == database)
                || self.options.own_collections.iter().any(|own| {
                    own.strip_prefix(database).and_then(|rest| rest.strip_prefix('.')) == named && named.is_some()
                });
        }
        self.options.own_collections.iter().any(|own| own == ns)
            || self.options.own_databases.iter().any(|own| ns.split('.').next() == Some(own))
    }
}

#[cfg(test)]
mod tests;
