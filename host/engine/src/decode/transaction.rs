//! Transactions and `applyOps`: which inner operations become visible at which entry.
//!
//! The server writes a small transaction as one `applyOps` entry, a large one as a chain of entries linked by
//! `prevOpTime` (all but the last marked `partialTxn`), and a prepared one as a chain whose last entry is marked
//! `prepare` and whose operations count from the later `commitTransaction` on, which links back to it too (seen on
//! 4.4.2, 5.0.4 and 6.0.27). An open chain is known by the time of its last entry, for that is what the next one
//! names; the session is compared as a proof. This module keeps what chains hold; it reads nothing.
//!
//! **What was open at the start.** Reading begins behind a position at which transactions may be open, whether a copy
//! noted it, a date names it, or MongoShake stored it. What becomes visible after the position is applied, whenever it
//! was written, and what became visible before it is in the copy (which reads not older than the position) or was
//! applied by whoever stored the position:
//! * began before and committed after: the end names an entry that was not read, and the chain is completed backwards
//!   from there, by `prevOpTime`. Its writes may be in the copy already; they are in overlap then like any others;
//! * began before and aborted after: nothing is asked for, nothing happened;
//! * committed before or at the position: its end is not read, and nothing else of it counts;
//! * the position stands inside a chain, or on its first entry: the next entry names one that was not read, which is
//!   the first case. Nothing is fetched before the end comes, since the chain may be aborted yet;
//! * its entries left the oplog: a fault with the window. The server keeps the entries of a prepared transaction until
//!   it ends; those of an unprepared one stand side by side, so this means a start at the oplog's very edge.
//!
//! **Across shards** a transaction has one session and a chain on each shard. The shards log their commits each at a time
//! of its own, and the document that one chain deletes another may insert, so all chains become visible together with
//! the first commit. By then every shard has prepared its own, since the decision to commit comes after that.
//!
//! **What is open at a checkpoint** of one oplog holds it back: the position never passes the entry before the first
//! one of an open chain that was read. It may stand between another transaction's first entry and its end, which is then
//! walked back to again.
//!
//! In a cluster there is no walk, since the end of one chain does not tell where the others are, and holding back would
//! not do: behind the entry before one transaction there is always another one's commit. So the position goes on, and
//! says of each shard from which entry on it must be read again to know all transactions that are open there, or that
//! are visible with one shard's commit while another shard's is to come ([`Transactions::needed`]).

use std::collections::{HashMap, HashSet, VecDeque};

use bytes::Bytes;

use super::oplog::{Entry, missing};
use crate::error::{Error, Kind, Result, Side};
use crate::model::key::selector;
use crate::model::raw::{self, Elements, kind};
use crate::model::{Change, OpTime, Operation, Position};
use crate::spill::Stored;

/// One entry's array of operations, wherever it is now.
#[derive(Debug)]
pub(super) enum Part {
    Memory(Bytes),
    /// Put aside on disk.
    Stored(Stored),
    /// In the oplog only, found by walking back; the size is that of the whole entry.
    Oplog {
        time: OpTime,
        bytes: usize,
    },
}

impl Part {
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Memory(bytes) => bytes.len(),
            Self::Stored(stored) => stored.bytes(),
            Self::Oplog { bytes, .. } => *bytes,
        }
    }
}

/// A transaction that has begun and not ended.
#[derive(Debug)]
pub(super) struct Chain {
    /// The place before the first entry that was read.
    pub(super) before: Position,
    /// The first entry that was read.
    first: OpTime,
    /// The newest entry that was not read, when reading began behind the chain's first.
    pub(super) head: Option<OpTime>,
    pub(super) parts: VecDeque<Part>,
    session: Option<(Bytes, i64)>,
    /// It became visible with this commit on another shard, and stays open until its own is read.
    committed: Option<(u32, OpTime)>,
    /// Another shard's part of it was visible at the cut of a first start, and was left out for that.
    half_done: bool,
}

impl Chain {
    fn new(entry: &Entry, before: Position) -> Self {
        let session = session(entry);
        let (first, head) = (entry.time, entry.previous);
        Self { before, first, head, parts: VecDeque::new(), session, committed: None, half_done: false }
    }

    /// Bytes of all operations.
    pub(super) fn bytes(&self) -> usize {
        self.parts.iter().map(Part::bytes).sum()
    }

    fn memory(&self) -> usize {
        let held = self.parts.iter().filter(|part| matches!(part, Part::Memory(_)));
        held.map(Part::bytes).sum()
    }

    /// Takes an entry that the walk back has found. One of up to `keep_bytes` is kept, a larger one is read again when
    /// its turn comes: how many there are is not known yet.
    pub(super) fn prepend(&mut self, entry: &Entry, bytes: usize, keep_bytes: usize) -> Result<()> {
        self.check(entry)?;
        let array = operations(entry)?;
        self.parts.push_front(if array.len() <= keep_bytes {
            Part::Memory(Bytes::copy_from_slice(&array))
        } else {
            Part::Oplog { time: entry.time, bytes }
        });
        self.head = entry.previous;
        Ok(())
    }

    fn check(&self, entry: &Entry) -> Result<()> {
        if entry.session == self.session {
            return Ok(());
        }
        let text = format!("the transaction's entry {} belongs to another session", entry.time);
        Err(Error::new(Side::Source, Kind::Malformed, text))
    }
}

/// What an entry did to a transaction.
#[derive(Debug)]
pub(super) enum Seen {
    /// These operations are visible now, and they are all.
    Visible(Bytes),
    /// The transaction stays open.
    Kept,
    /// It stays open and its newest part does not fit into memory: put it aside and give it to [`Transactions::stored`].
    Excess(Bytes),
    /// It has ended well: its parts are visible now, in order.
    Ended(Chain),
}

/// What is known of a transaction of a cluster, when a commit of it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// All of it, or all of it was visible with another shard's commit.
    Whole,
    /// One shard had committed at the cut of a first start.
    HalfDone,
    /// The beginning of a part was not read.
    Unread(OpTime),
    /// The same, and what was known was taken for the whole.
    Parted(OpTime),
}

/// An open chain's name: the stream it was read from and the `ts` of its last entry.
///
/// The stream tells shards apart, whose oplogs count their own time.
type Key = (u32, u64);

/// Transactions that began and are neither committed nor aborted.
#[derive(Debug, Default)]
pub(super) struct Transactions {
    open: HashMap<Key, Chain>,
    memory: usize,
    storing: Option<Key>,
    /// Those of a cluster that were prepared and handed on while parts of them could be unknown.
    early: HashSet<(Bytes, i64)>,
}

impl Transactions {
    /// The newest position that a checkpoint may take while transactions are open; `None` when none is. In a cluster only
    /// such hold it back as stop the run when they are committed.
    pub(super) fn floor(&self, is_cluster: bool) -> Option<&Position> {
        let holding = self.open.values().filter(|chain| !is_cluster || chain.half_done);
        holding.map(|chain| &chain.before).min_by(|a, b| a.compare(b))
    }

    /// Entries from which on the streams must be read again to know what is open.
    pub(super) fn needed(&self) -> impl Iterator<Item = (u32, OpTime)> {
        self.open.iter().flat_map(|((stream, _), chain)| chain.committed.into_iter().chain([(*stream, chain.first)]))
    }

    /// Takes an `applyOps` entry. `last` is the place before this one, `memory_max` what open transactions may hold.
    pub(super) fn step(&mut self, stream: u32, entry: &Entry, last: Position, memory_max: usize) -> Result<Seen> {
        let array = operations(entry)?;
        let open = flag(entry, "partialTxn")? || flag(entry, "prepare")?;
        if entry.groups_writes || (!open && entry.previous.is_none()) {
            return Ok(Seen::Visible(array));
        }
        let mut chain = self.take(stream, entry, last)?;
        if !open {
            chain.parts.push_back(Part::Memory(array));
            return Ok(Seen::Ended(chain));
        }
        let key = (stream, entry.time.ts());
        if self.memory + chain.memory() + array.len() > memory_max {
            self.keep(key, chain);
            self.storing = Some(key);
            return Ok(Seen::Excess(array));
        }
        // A copy: the slice would keep the whole reply alive, and a prepared transaction may wait for hours.
        chain.parts.push_back(Part::Memory(Bytes::copy_from_slice(&array)));
        self.keep(key, chain);
        Ok(Seen::Kept)
    }

    /// The part that [`Seen::Excess`] gave out is on disk.
    pub(super) fn stored(&mut self, stored: Stored) -> Result<()> {
        let chain = self.storing.take().and_then(|key| self.open.get_mut(&key));
        let chain = chain.ok_or_else(|| Error::new(Side::Internal, Kind::Bug, "no part was to be put aside"))?;
        chain.parts.push_back(Part::Stored(stored));
        Ok(())
    }

    /// Looks at a transaction of a cluster whose commit is read next.
    pub(super) fn known(&self, stream: u32, commit: &Entry) -> Known {
        let Some(previous) = commit.previous else { return Known::Whole };
        let Some(own) = self.open.get(&(stream, previous.ts())) else {
            let is_parted = commit.session.as_ref().is_some_and(|session| self.early.contains(session));
            return if is_parted { Known::Parted(previous) } else { Known::Unread(previous) };
        };
        if own.half_done {
            return Known::HalfDone;
        }
        let parts = self.open.values().filter(|chain| own.session.is_some() && chain.session == own.session);
        match parts.chain([own]).find_map(|chain| chain.head) {
            Some(unread) if own.committed.is_none() => Known::Unread(unread),
            Some(_) | None => Known::Whole,
        }
    }

    /// Notes a transaction of which other parts may turn up; none do behind the cut of a first start.
    pub(super) fn note_early(&mut self, commit: &Entry, is_behind_cut: bool) {
        if is_behind_cut {
            self.early.extend(session(commit));
        } else if !self.early.is_empty() {
            self.early = HashSet::new();
        }
    }

    /// Takes a `commitTransaction` of a prepared transaction: its chains, this shard's first. None are left when
    /// another shard's commit was read before.
    pub(super) fn commit(&mut self, stream: u32, entry: &Entry, last: Position) -> Result<Vec<Chain>> {
        if entry.previous.is_none() {
            return Err(missing("prevOpTime"));
        }
        let own = self.take(stream, entry, last)?;
        if own.committed.is_some() {
            return Ok(Vec::new());
        }
        let mut chains = self.visible_with(stream, entry, &own);
        chains.insert(0, own);
        Ok(chains)
    }

    /// The same for one that was handed on before the start, and all its parts with it.
    pub(super) fn commit_again(&mut self, stream: u32, entry: &Entry, last: Position) -> Result<()> {
        let own = self.take(stream, entry, last)?;
        self.visible_with(stream, entry, &own);
        Ok(())
    }

    /// The same for one that is on the target already, as the cut of a first start says. Other shards' parts stay open:
    /// theirs may be behind the cut too.
    pub(super) fn commit_behind(&mut self, stream: u32, entry: &Entry, last: Position) -> Result<()> {
        let own = self.take(stream, entry, last)?;
        let mut freed = 0;
        for (_, chain) in self.others(stream, &own) {
            freed += chain.memory();
            chain.parts.clear();
            chain.half_done = true;
        }
        self.memory -= freed;
        Ok(())
    }

    /// The parts on other shards, which a commit makes visible with its own, in the shards' order.
    fn visible_with(&mut self, stream: u32, commit: &Entry, own: &Chain) -> Vec<Chain> {
        let mut freed = 0;
        let mut chains = Vec::with_capacity(1);
        for (other, chain) in self.others(stream, own) {
            freed += chain.memory();
            chain.committed = Some((stream, commit.time));
            let (parts, session) = (std::mem::take(&mut chain.parts), None);
            let Chain { first, head, committed, half_done, .. } = *chain;
            let before = chain.before.clone();
            chains.push((other, Chain { before, first, head, parts, session, committed, half_done }));
        }
        self.memory -= freed;
        chains.sort_unstable_by_key(|(other, _)| *other);
        chains.into_iter().map(|(_, chain)| chain).collect()
    }

    /// What other streams have of a transaction.
    fn others(&mut self, stream: u32, own: &Chain) -> impl Iterator<Item = (u32, &mut Chain)> {
        let session = own.session.clone();
        let open = self.open.iter_mut().map(|((other, _), chain)| (*other, chain));
        open.filter(move |(other, chain)| *other != stream && session.is_some() && chain.session == session)
    }

    /// Takes an `abortTransaction`: what was kept never happened.
    pub(super) fn abort(&mut self, stream: u32, entry: &Entry, last: Position) -> Result<()> {
        self.take(stream, entry, last).map(|_| ())
    }

    /// The chain that `entry` goes on with, taken out; a new one when there is none.
    fn take(&mut self, stream: u32, entry: &Entry, last: Position) -> Result<Chain> {
        let known = entry.previous.and_then(|previous| self.open.remove(&(stream, previous.ts())));
        let Some(chain) = known else {
            return Ok(Chain::new(entry, last));
        };
        chain.check(entry)?;
        self.memory -= chain.memory();
        Ok(chain)
    }

    fn keep(&mut self, key: Key, chain: Chain) {
        self.memory += chain.memory();
        self.open.insert(key, chain);
    }
}

/// The array of an `applyOps` entry.
pub(super) fn operations(entry: &Entry) -> Result<Bytes> {
    let array =
        raw::find(&entry.o, "applyOps")?.filter(|e| e.kind == kind::ARRAY).ok_or_else(|| missing("applyOps"))?;
    Ok(entry.o.slice(array.offset..array.end()))
}

/// Makes of an operation of the *command* `applyOps` what the server made of it. It is logged as the client wrote it
/// and not as it took effect (seen on 5.0.4 and 6.0.27): an insert replaces a document that stands there, and of a
/// selector only the `_id` counts.
///
/// # Errors
/// `CannotApply` for operators whose effect depends on the document: it is not in the log.
pub(super) fn as_applied(change: &mut Change) -> Result<()> {
    match change.operation {
        Operation::Insert => {
            change.operation = Operation::Replace;
            change.key = selector(&change.body)?;
        }
        Operation::Delete => change.key = selector(&change.key)?,
        Operation::Replace => {
            change.key = selector(&change.key)?;
            refuse_operators(&change.body, &[])?;
            change.body = with_id(&change.key, &change.body)?;
        }
        Operation::UpdateDiff => {
            change.key = selector(&change.key)?;
            refuse_operators(&change.body, &[])?;
            change.creates = true;
        }
        Operation::UpdateModifiers => {
            change.key = selector(&change.key)?;
            refuse_operators(&change.body, &[b"$set", b"$unset"])?;
            change.creates = true;
        }
        Operation::Snapshot | Operation::Ddl => {}
    }
    Ok(())
}

/// A replacement as it stands in the collection: logged as it was written, it may lack the `_id`.
fn with_id(key: &Bytes, body: &Bytes) -> Result<Bytes> {
    let (None, Some(id)) = (raw::find(body, "_id")?, raw::find(key, "_id")?) else { return Ok(body.clone()) };
    let (id, rest) = (key.get(4..id.end()).unwrap_or_default(), body.get(4..).unwrap_or_default());
    let length = i32::try_from(4 + id.len() + rest.len()).unwrap_or(i32::MAX);
    Ok([&length.to_le_bytes()[..], id, rest].concat().into())
}

fn refuse_operators(update: &[u8], known: &[&[u8]]) -> Result<()> {
    for element in Elements::new(update)? {
        let name = element?.name;
        if name.first() == Some(&b'$') && !known.contains(&name) {
            let text = format!(
                "an applyOps command of a client updates by {}: what came of it is not in the oplog",
                String::from_utf8_lossy(name)
            );
            return Err(Error::new(Side::Source, Kind::CannotApply, text));
        }
    }
    Ok(())
}

/// A copy: the slice would keep the whole reply alive.
fn session(entry: &Entry) -> Option<(Bytes, i64)> {
    entry.session.as_ref().map(|(id, number)| (Bytes::copy_from_slice(id), *number))
}

fn flag(entry: &Entry, name: &str) -> Result<bool> {
    Ok(raw::find(&entry.o, name)?.is_some_and(|e| e.kind == kind::BOOLEAN && e.value == [1]))
}
