//! Turns raw oplog replies into changes, reading the envelope only.
//!
//! The decoder is pure and synchronous. It walks each entry once, notes where the parts stand and hands out slices of
//! the reply; no document is built. It expands transactions and `applyOps`, gives every DDL a batch of its own (so
//! that a checkpoint can stand right before it), and refuses what it cannot express exactly: an entry is never
//! skipped without being counted under a reason. It does not filter namespaces; that is the chain's business.
//!
//! It is driven in steps ([`Decoder::begin`], [`Decoder::step`]), because the end of a transaction may need what the
//! reply does not hold: an older entry, bytes that were put on disk, memory for them. It says what it needs and goes on
//! when it has been given that.

mod across_shards;
pub mod change_event;
pub mod ddl;
mod ending;
mod internal;
pub mod oplog;
mod options;
pub mod stream;
mod streams;
pub mod transaction;
mod visible;

use std::sync::Arc;

use bytes::Bytes;

use crate::budget::Permit;
use crate::error::{Error, Kind, Result, Side};
use crate::model::ddl::is_capped;
use crate::model::raw::{Elements, kind};
use crate::model::{Change, ChangeBatch, Namespaces, OpTime, Operation, Position, RawBatch, Run};
use crate::spill::Stored;
use across_shards::Across;
use ending::Ending;
use internal::{is_local_copy, is_of_resharding, is_of_the_server, is_of_views, refuse_move, refuse_resharding};
use oplog::Entry;
pub use options::{BehindCut, DecodeCounts, DecodeOptions, MustStay};
pub use stream::StreamDecoder;
use streams::Streams;
use transaction::Transactions;

/// Turns the replies of one kind of source into batches, in order.
pub trait Decode: Send + std::fmt::Debug {
    /// Takes the next reply. The one before must be used up.
    fn begin(&mut self, raw: RawBatch);

    /// What comes next out of the reply.
    ///
    /// # Errors
    /// `Malformed`, `CannotApply` or `Exhausted`; the message names the entry's time.
    fn step(&mut self) -> Result<Step>;

    /// Takes what the last step needed.
    ///
    /// # Errors
    /// `Malformed` for an entry that is none; `Bug` for something that was not asked for.
    fn answer(&mut self, answer: Answer) -> Result<()>;

    /// What was seen since the start.
    fn counts(&self) -> DecodeCounts;

    /// The place to open the source at again when its cursor is lost. What was decoded stays valid.
    fn reopen(&mut self) -> Position;
}

/// What comes out of the decoder next.
#[derive(Debug)]
pub enum Step {
    /// Changes to pass on, in order.
    Batch(ChangeBatch),
    /// It goes on when it has been given this.
    Need(Need),
    /// The reply is used up.
    Done,
}

/// What the decoder cannot go on without.
#[derive(Debug)]
pub enum Need {
    /// Memory for that many bytes: [`Decoder::granted`].
    Memory { bytes: usize },
    /// The entry of exactly this time in a stream's oplog: [`Decoder::entry`].
    Entry { stream: u32, time: OpTime },
    /// These bytes put aside: [`Decoder::stored`].
    Store(Bytes),
    /// What was put aside: [`Decoder::loaded`].
    Load(Arc<Stored>),
}

/// What a [`Need`] was answered with.
#[derive(Debug)]
pub enum Answer {
    Memory(Permit),
    /// The raw entry.
    Entry(Bytes),
    Stored(Stored),
    Loaded(Bytes),
}

/// The reply that is being decoded.
#[derive(Debug)]
struct Reply {
    entries: Bytes,
    /// The streams of the entries that are left; empty = all of the first.
    runs: std::collections::VecDeque<Run>,
    /// End of the last element that was decoded.
    at: usize,
    /// `None` while the pieces of a large transaction go ahead: whoever waits for memory holds none.
    permit: Option<Arc<Permit>>,
    /// Whether a batch came out of it.
    passed_on: bool,
}

impl Reply {
    /// The stream of the next entry.
    fn next_stream(&mut self) -> u32 {
        let Some(run) = self.runs.front_mut() else { return 0 };
        let stream = u32::try_from(run.stream).unwrap_or(u32::MAX);
        run.entries = run.entries.saturating_sub(1);
        if run.entries == 0 {
            self.runs.pop_front();
        }
        stream
    }
}

/// Decodes one source's entries, in order.
#[derive(Debug)]
pub struct Decoder {
    namespaces: Arc<Namespaces>,
    options: DecodeOptions,
    transactions: Transactions,
    /// What was read. The entry to start from is delivered again as a proof of the history; it is not applied again.
    streams: Streams,
    next_seq: u64,
    counts: DecodeCounts,
    reply: Option<Reply>,
    /// Decoded, not passed on yet.
    changes: Vec<Change>,
    /// Batches that are to be passed on next.
    ready: std::collections::VecDeque<ChangeBatch>,
    /// A part of an open transaction that must be put aside before the next entry.
    excess: Option<Bytes>,
    /// The transaction whose end was read last, while it needs what the reply does not hold.
    ending: Option<Box<Ending>>,
    /// The same of one across shards.
    across: Option<Box<Across>>,
}

impl Decoder {
    /// A decoder for the entries of one oplog that follow `start`.
    #[must_use]
    pub fn new(namespaces: Arc<Namespaces>, options: DecodeOptions, start: OpTime) -> Self {
        Self::starting_at(namespaces, options, &Position::Oplog(start))
    }

    /// A decoder for the entries of a source that is opened at `start`.
    #[must_use]
    pub fn starting_at(namespaces: Arc<Namespaces>, options: DecodeOptions, start: &Position) -> Self {
        Self {
            namespaces,
            options,
            transactions: Transactions::default(),
            streams: Streams::at(start),
            next_seq: 0,
            counts: DecodeCounts::default(),
            reply: None,
            changes: Vec::new(),
            ready: std::collections::VecDeque::new(),
            excess: None,
            ending: None,
            across: None,
        }
    }

    /// Applies the entry to start from too: the position says only that what is before its time is done.
    #[must_use]
    pub fn repeating_the_start(mut self) -> Self {
        self.streams.repeat_nothing();
        self
    }

    /// What was seen since the start.
    #[must_use]
    pub fn counts(&self) -> DecodeCounts {
        self.counts
    }

    /// The place to open the source at again when its cursor is lost: the last entry that was read. The source will
    /// deliver that entry once more, and it will be passed over. What was decoded stays valid. Only between two replies.
    pub fn reopen(&mut self) -> Position {
        self.streams.reopen()
    }

    /// Takes the next reply. The one before is used up.
    pub fn begin(&mut self, raw: RawBatch) {
        let RawBatch { entries, reached: _, runs, permit } = raw;
        let permit = Some(Arc::new(permit));
        self.reply = Some(Reply { entries, runs: runs.into(), at: 0, permit, passed_on: false });
    }

    /// Goes on with the reply: one batch, or more when DDL or a large transaction stands in it, each with its own
    /// position.
    ///
    /// # Errors
    /// `Malformed` for bytes that are no oplog entries; `CannotApply` for an entry of a kind that cannot be applied
    /// exactly. The message names the entry's time.
    pub fn step(&mut self) -> Result<Step> {
        loop {
            if let Some(batch) = self.ready.pop_front() {
                return Ok(Step::Batch(batch));
            }
            if let Some(bytes) = &self.excess {
                return Ok(Step::Need(Need::Store(bytes.clone())));
            }
            if self.ending.is_some() || self.across.is_some() {
                let need = if self.across.is_some() { self.end_across()? } else { self.end_transaction()? };
                if let Some(need) = need {
                    return Ok(Step::Need(need));
                }
                continue;
            }
            let Some(mut reply) = self.reply.take() else {
                return Ok(Step::Done);
            };
            let rest = reply.entries.len() - reply.at.min(reply.entries.len());
            if reply.permit.is_none() && rest > 1 {
                self.reply = Some(reply);
                return Ok(Step::Need(Need::Memory { bytes: rest }));
            }
            if self.read_on(&mut reply)? {
                self.reply = Some(reply);
            } else if !self.changes.is_empty() || !reply.passed_on {
                let permit = reply.permit.unwrap_or_else(|| Arc::new(Permit::none()));
                self.pass_on(self.safe_position(), &permit);
            }
        }
    }

    /// Decodes a reply for which memory is no matter and nothing lies on disk or further back in the oplog.
    ///
    /// # Errors
    /// As [`Decoder::step`], and `CannotApply` when more is needed than the reply.
    pub fn decode(&mut self, raw: RawBatch) -> Result<Vec<ChangeBatch>> {
        self.begin(raw);
        let mut batches = Vec::with_capacity(1);
        loop {
            match self.step()? {
                Step::Batch(batch) => batches.push(batch),
                Step::Need(Need::Memory { .. }) => self.granted(Permit::none()),
                Step::Need(need) => {
                    return Err(Error::new(Side::Source, Kind::CannotApply, format!("{need:?} is out of reach here")));
                }
                Step::Done => return Ok(batches),
            }
        }
    }

    /// The answer to [`Need::Memory`].
    pub fn granted(&mut self, permit: Permit) {
        match (&mut self.across, &mut self.ending, &mut self.reply) {
            (Some(across), _, _) => across.granted(permit),
            (None, Some(ending), _) => ending.granted(permit),
            (None, None, Some(reply)) => reply.permit = Some(Arc::new(permit)),
            (None, None, None) => {}
        }
    }

    /// The answer to [`Need::Entry`]: the entry as it is logged.
    ///
    /// # Errors
    /// `Malformed` when it is no entry of the transaction that needs it.
    pub fn entry(&mut self, bytes: Bytes) -> Result<()> {
        let length = bytes.len();
        let entry = Entry::parse(bytes)?;
        match &mut self.ending {
            Some(ending) => ending.entry(&entry, length),
            None => Err(unasked()),
        }
    }

    /// The answer to [`Need::Store`].
    ///
    /// # Errors
    /// `Bug` when nothing was to be put aside.
    pub fn stored(&mut self, stored: Stored) -> Result<()> {
        self.excess = None;
        self.transactions.stored(stored)
    }

    /// The answer to [`Need::Load`].
    ///
    /// # Errors
    /// `Bug` when nothing was to be loaded.
    pub fn loaded(&mut self, operations: Bytes) -> Result<()> {
        match (&mut self.across, &mut self.ending) {
            (Some(across), _) => across.loaded(operations),
            (None, Some(ending)) => ending.loaded(operations),
            (None, None) => return Err(unasked()),
        }
        Ok(())
    }

    /// Decodes entries until the reply ends (`false`), or something must come before the next one (`true`).
    fn read_on(&mut self, reply: &mut Reply) -> Result<bool> {
        let entries = reply.entries.clone();
        for element in Elements::behind(&entries, reply.at)? {
            let element = element?;
            if element.kind != kind::DOCUMENT {
                return Err(Error::new(Side::Source, Kind::Malformed, "a reply holds something that is no document"));
            }
            self.counts.largest_bytes = self.counts.largest_bytes.max(element.value.len() as u64);
            reply.at = element.end();
            let entry = Entry::parse(entries.slice(element.offset..element.end()))?;
            let stream = reply.next_stream();
            if self.streams.is_repeated(stream, entry.time) {
                continue;
            }
            let first = self.changes.len();
            let before = self.safe_position();
            let is_done = self.is_done(stream, entry.time);
            match self.expand(&entry, stream) {
                // What is on the target already need not be expressed.
                Err(fault) if is_done && fault.kind() == Kind::CannotApply => self.counts.internal += 1,
                expanded => expanded.map_err(|e| e.context(format!("oplog entry {}", entry.time)))?,
            }
            if is_done {
                self.changes.truncate(first);
            }
            if self.ending.is_some() || self.across.is_some() {
                // What stood before it goes first, with its memory.
                self.part_from(reply, first, before);
                return Ok(true);
            }
            self.streams.read(stream, entry.time)?;
            self.set_apart(reply, first, before);
            if self.excess.is_some() || !self.ready.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether what became visible at an entry is on the target for certain.
    fn is_done(&self, stream: u32, time: OpTime) -> bool {
        let is_behind = match self.options.behind_cut {
            BehindCut::LeftOut => self.streams.is_behind_cut(time),
            BehindCut::Copied | BehindCut::Repeated => self.streams.is_long_behind_cut(time),
        };
        is_behind || self.streams.was_handed_on(stream, time)
    }

    /// A DDL stands alone, so that the position before it can be stored before it is executed; and so does a
    /// transaction that shall stay whole.
    fn set_apart(&mut self, reply: &mut Reply, first: usize, before: Position) {
        let own = self.changes.get(first..).unwrap_or_default();
        let atomic = own.len() > 1 && self.options.atomic_bytes > 0;
        if atomic || has_ddl(own) {
            let permit = reply.permit.clone().unwrap_or_else(|| Arc::new(Permit::none()));
            let tail = self.changes.split_off(first);
            if !self.changes.is_empty() {
                self.pass_on(before, &permit);
            }
            self.changes = tail;
            self.pass_on_transaction(permit);
            reply.passed_on = true;
        }
    }

    fn part_from(&mut self, reply: &mut Reply, first: usize, before: Position) {
        if first > 0
            && let Some(permit) = &reply.permit
        {
            self.pass_on(before, &Arc::clone(permit));
        }
        // A batch follows in any case: the transaction's.
        reply.passed_on = true;
        reply.permit = None;
    }

    /// Passes on the changes of one entry, whole where that is wanted and possible.
    fn pass_on_transaction(&mut self, permit: Arc<Permit>) {
        let bytes: usize = self.changes.iter().map(Change::bytes).sum();
        let wanted = self.options.atomic_bytes > 0 && self.changes.len() > 1;
        let atomic = wanted && bytes <= self.options.atomic_bytes && !has_ddl(&self.changes);
        self.counts.split += u64::from(wanted && !atomic);
        self.pass_on(self.safe_position(), &permit);
        if let Some(batch) = self.ready.back_mut() {
            batch.atomic = atomic;
        }
    }

    fn pass_on(&mut self, last: Position, permit: &Arc<Permit>) {
        let changes = std::mem::take(&mut self.changes);
        let seq = self.next_seq;
        self.next_seq += 1;
        self.counts.changes += changes.len() as u64;
        let permit = Arc::clone(permit);
        self.ready.push_back(ChangeBatch { seq, changes, last, atomic: false, permit });
    }

    /// The last entry, or the one before the first entry of the oldest transaction that is still open.
    fn safe_position(&self) -> Position {
        let floor = self.transactions.floor(self.streams.is_cluster());
        let ending = self.ending.as_ref().map(|ending| ending.before());
        let across = self.across.as_ref().map(|across| across.before());
        let held = [floor, ending, across].into_iter().flatten().min_by(|a, b| a.compare(b));
        held.cloned().unwrap_or_else(|| self.place())
    }

    /// The last entry that was read, and what of a cluster is open there.
    fn place(&self) -> Position {
        self.streams.position(self.transactions.needed())
    }

    fn expand(&mut self, entry: &Entry, stream: u32) -> Result<()> {
        self.counts.entries += 1;
        if entry.from_migrate && self.options.is_shard && !self.is_local_copy(entry) {
            self.counts.from_migrate += 1;
            // A copy has met the new collection, and leaves the changes of the old one out.
            let is_over = self.options.behind_cut == BehindCut::Copied && self.streams.is_behind_cut(entry.time);
            if is_over {
                return Ok(());
            }
            refuse_resharding(entry)?;
            let is_users = !is_of_the_server(entry) && !is_of_resharding(entry.ns());
            if let Some(must_stay) = self.options.must_stay.as_ref().filter(|_| is_users) {
                refuse_move(entry, must_stay)?;
            }
            return Ok(());
        }
        if is_of_resharding(entry.ns()) || is_of_the_server(entry) {
            self.counts.internal += 1;
            return Ok(());
        }
        if self.options.is_looped(entry) {
            self.counts.looped += 1;
            return Ok(());
        }
        match entry.op {
            b'n' => {
                self.counts.noop += 1;
                Ok(())
            }
            b'i' | b'u' | b'd' => {
                if self.options.is_own(entry) {
                    self.counts.own += 1;
                    return Ok(());
                }
                if is_of_views(entry.ns()) {
                    self.internal_or(ddl::decode_view(entry, &self.namespaces)?);
                    return Ok(());
                }
                self.changes.push(entry.to_change(&self.namespaces)?);
                Ok(())
            }
            b'c' => self.expand_command(entry, stream),
            other => Err(Error::new(
                Side::Source,
                Kind::CannotApply,
                format!("unknown operation {:?} on {}", char::from(other), entry.ns()),
            )),
        }
    }

    /// Whether a write that is marked as a migration is none.
    fn is_local_copy(&self, entry: &Entry) -> bool {
        let is_capped = || entry.collection.is_some_and(|uuid| self.options.capped.contains(&uuid));
        is_local_copy(entry.ns()) || (entry.op == b'i' && is_capped())
    }

    fn expand_command(&mut self, entry: &Entry, stream: u32) -> Result<()> {
        match entry.command_name()? {
            b"applyOps" => self.apply_ops(entry, stream),
            b"commitTransaction" => self.commit(entry, stream),
            b"abortTransaction" => {
                self.counts.aborted += 1;
                let place = self.place();
                self.transactions.abort(stream, entry, place)
            }
            // The last one compares the members of a set and changes nothing.
            b"startIndexBuild" | b"abortIndexBuild" | b"dbCheck" => {
                self.counts.internal += 1;
                Ok(())
            }
            name => {
                if self.options.is_own(entry) {
                    self.counts.own += 1;
                    return Ok(());
                }
                if name == b"create" && self.options.is_shard && is_capped(&entry.o) {
                    self.options.capped.extend(entry.collection);
                }
                self.internal_or(ddl::decode(entry, &self.namespaces)?);
                Ok(())
            }
        }
    }

    fn internal_or(&mut self, change: Option<Change>) {
        match change {
            Some(change) => self.changes.push(change),
            None => self.counts.internal += 1,
        }
    }
}

impl Decode for Decoder {
    fn begin(&mut self, raw: RawBatch) {
        Self::begin(self, raw);
    }

    fn step(&mut self) -> Result<Step> {
        Self::step(self)
    }

    fn answer(&mut self, answer: Answer) -> Result<()> {
        match answer {
            Answer::Memory(permit) => self.granted(permit),
            Answer::Entry(entry) => self.entry(entry)?,
            Answer::Stored(stored) => self.stored(stored)?,
            Answer::Loaded(operations) => self.loaded(operations)?,
        }
        Ok(())
    }

    fn counts(&self) -> DecodeCounts {
        Self::counts(self)
    }

    fn reopen(&mut self) -> Position {
        Self::reopen(self)
    }
}

fn has_ddl(changes: &[Change]) -> bool {
    changes.iter().any(|change| change.operation == Operation::Ddl)
}

fn unasked() -> Error {
    Error::new(Side::Internal, Kind::Bug, "the decoder was given something that it did not ask for")
}

#[cfg(test)]
mod tests;
