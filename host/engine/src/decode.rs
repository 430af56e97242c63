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
pub mod oplog;
pub mod stream;
mod streams;
pub mod transaction;

use std::sync::Arc;

use bytes::Bytes;

use crate::budget::Permit;
use crate::error::{Error, Kind, Result, Side};
use crate::model::raw::{Elements, kind};
use crate::model::{Change, ChangeBatch, Namespaces, OpTime, Operation, Origin, Position, RawBatch, Run};
use crate::spill::Stored;
use across_shards::{Across, Turn};
use ending::{Ending, Next};
use oplog::Entry;
pub use stream::StreamDecoder;
use streams::Streams;
use transaction::{Chain, Seen, Transactions};

/// A transaction of several entries that is larger than this is passed on in pieces with memory of their own.
const INLINE_BYTES_MAX: usize = 1 << 20;

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

/// What the decoder needs to know of the job.
#[derive(Debug, Clone, Default)]
pub struct DecodeOptions {
    /// Full names (`db.collection`) of Oplogue's own collections on the source: their entries are dropped.
    pub own_collections: Vec<String>,
    /// Databases that are Oplogue's own altogether (conflict records).
    pub own_databases: Vec<String>,
    /// Changes from these clusters are dropped: the target has them (`incr_sync.loop_prevention.drop`).
    pub drop_origins: Vec<Origin>,
    /// Entries with another global id than these, or with none, are dropped; empty: the id is not looked at
    /// (`incr_sync.oplog.gids`).
    pub global_ids: Vec<String>,
    /// Bytes that open transactions may hold in memory; what is more is put aside.
    pub transaction_bytes: usize,
    /// A transaction of up to so many bytes is one batch of its own, to become visible as one; 0 = its changes are
    /// spread like any others.
    pub atomic_bytes: usize,
    /// The source is a shard: what a chunk migration writes (`fromMigrate`) is another shard's change. On a replica
    /// set the flag stands on real changes only: `cloneCollectionAsCapped`, `convertToCapped` and renames across
    /// databases log the documents they copy with it (seen on 4.4.2, 5.0.4 and 6.0.27).
    pub is_shard: bool,
    /// What becomes of entries that lie behind the cut of a first start, which begins further back.
    pub behind_cut: BehindCut,
}

/// What the target has of a cluster's entries that were visible at the cut of a first start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BehindCut {
    /// A copy has just been made and has read them or something newer: they are applied once more, as after any restart.
    #[default]
    CaughtUpWith,
    /// A copy has them, and what followed was applied: they are left out. A transaction that other shards committed
    /// behind the cut is repeated whole, since its parts have an order.
    InCopy,
    /// Somebody else has brought the target to the cut: they are left out, and such a transaction is refused, since
    /// nothing may be applied again that is not followed by all that came after it.
    OnTarget,
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
    /// What came from a cluster that has it: dropped by its mark or its global id.
    pub looped: u64,
    /// What the server does for itself: `startIndexBuild` and `abortIndexBuild` (the index comes with
    /// `commitIndexBuild`), the making of `system.views`, the view of a time-series collection, the documents of a
    /// collection that is being resharded.
    pub internal: u64,
    /// Transactions that were aborted.
    pub aborted: u64,
    /// Updates that came as the whole document, since the server tells no exact form of them.
    pub whole: u64,
    /// Of such updates, those whose document was gone by then: its delete follows.
    pub gone: u64,
    /// Transactions that were to stay whole and do not: larger than that, or with DDL inside.
    pub split: u64,
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
            self.expand(&entry, stream).map_err(|e| e.context(format!("oplog entry {}", entry.time)))?;
            if self.is_behind(entry.time) {
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

    /// Whether what became visible at `time` is on the target for certain.
    fn is_behind(&self, time: OpTime) -> bool {
        self.options.behind_cut != BehindCut::CaughtUpWith && self.streams.is_behind_cut(time)
    }

    /// The same of a transaction that ends with the commit `entry`, and of all its parts.
    fn is_committed_behind(&self, entry: &Entry, stream: u32) -> bool {
        let is_whole = || self.options.behind_cut == BehindCut::OnTarget || !self.transactions.is_shared(stream, entry);
        self.is_behind(entry.time) && is_whole()
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
        let floor = self.transactions.floor();
        let ending = self.ending.as_ref().map(|ending| ending.before());
        let across = self.across.as_ref().map(|across| across.before());
        let held = [floor, ending, across].into_iter().flatten().min_by(|a, b| a.compare(b));
        held.cloned().unwrap_or_else(|| self.streams.position())
    }

    fn expand(&mut self, entry: &Entry, stream: u32) -> Result<()> {
        self.counts.entries += 1;
        if entry.from_migrate && self.options.is_shard && !is_local_copy(entry.ns()) {
            self.counts.from_migrate += 1;
            return refuse_resharding(entry);
        }
        if is_of_resharding(entry.ns()) {
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

    fn expand_command(&mut self, entry: &Entry, stream: u32) -> Result<()> {
        match entry.command_name()? {
            b"applyOps" => self.apply_ops(entry, stream),
            b"commitTransaction" => {
                if self.is_committed_behind(entry, stream) {
                    return self.transactions.commit_behind(stream, entry, self.streams.position());
                }
                let chains = self.transactions.commit(stream, entry, self.streams.position())?;
                self.commit(entry, stream, chains)
            }
            b"abortTransaction" => {
                self.counts.aborted += 1;
                self.transactions.abort(stream, entry, self.streams.position())
            }
            b"startIndexBuild" | b"abortIndexBuild" => {
                self.counts.internal += 1;
                Ok(())
            }
            _ => {
                if self.options.is_own(entry) {
                    self.counts.own += 1;
                    return Ok(());
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

    fn apply_ops(&mut self, entry: &Entry, stream: u32) -> Result<()> {
        let place = self.streams.position();
        match self.transactions.step(stream, entry, place, self.options.transaction_bytes)? {
            Seen::Visible(operations) => self.expand_inner(entry, &operations),
            Seen::Kept => Ok(()),
            Seen::Excess(operations) => {
                self.excess = Some(operations);
                Ok(())
            }
            Seen::Ended(chain) => self.end(entry, stream, chain),
        }
    }

    /// A prepared transaction was committed. Of a cluster, what began before everything that was read may have parts on
    /// other shards that nothing here knows of.
    fn commit(&mut self, entry: &Entry, stream: u32, mut chains: Vec<Chain>) -> Result<()> {
        if chains.first().is_some_and(Chain::is_half_done) {
            return Err(across_shards::cut_in_two());
        }
        if chains.len() > 1 {
            let whole_max = self.options.atomic_bytes.max(INLINE_BYTES_MAX);
            self.across = Some(Box::new(Across::new(entry.clone(), stream, chains, whole_max)?));
            return Ok(());
        }
        let Some(chain) = chains.pop() else { return Ok(()) };
        if self.streams.is_cluster() && chain.head.is_some() {
            return if self.streams.is_behind_cut(entry.time) { Ok(()) } else { Err(across_shards::unseen_start()) };
        }
        self.end(entry, stream, chain)
    }

    /// A small transaction that lies in memory is expanded in its place; any other one in steps.
    fn end(&mut self, entry: &Entry, stream: u32, chain: Chain) -> Result<()> {
        if self.is_behind(entry.time) {
            return Ok(());
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
    fn end_transaction(&mut self) -> Result<Option<Need>> {
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
    fn end_across(&mut self) -> Result<Option<Need>> {
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
    fn expand_inner(&mut self, commit: &Entry, operations: &Bytes) -> Result<()> {
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

impl DecodeOptions {
    /// Whether the target has it already, because it came from there. All entries of a transaction carry the mark, so
    /// none of a dropped one is ever kept open.
    fn is_looped(&self, entry: &Entry) -> bool {
        let Self { drop_origins, global_ids, .. } = self;
        if entry.origin.is_some_and(|origin| drop_origins.contains(&origin)) {
            return true;
        }
        !global_ids.is_empty()
            && entry.op != b'n'
            && !global_ids.iter().any(|id| entry.global_id.as_deref() == Some(id.as_bytes()))
    }

    fn is_own(&self, entry: &Entry) -> bool {
        let ns = entry.ns();
        let Some(database) = ns.strip_suffix(".$cmd") else {
            return self.is_own_name(ns);
        };
        let named = entry.command_collection();
        self.own_databases.iter().any(|own| own == database)
            || self.own_collections.iter().any(|own| {
                own.strip_prefix(database).and_then(|rest| rest.strip_prefix('.')) == named && named.is_some()
            })
    }

    fn is_own_name(&self, ns: &str) -> bool {
        self.own_collections.iter().any(|own| own == ns)
            || self.own_databases.iter().any(|own| ns.split('.').next() == Some(own))
    }
}

fn has_ddl(changes: &[Change]) -> bool {
    changes.iter().any(|change| change.operation == Operation::Ddl)
}

/// The collection that is filled while another is being resharded: the documents are those of the other one.
fn is_of_resharding(ns: &str) -> bool {
    ns.split_once('.').is_some_and(|(_, collection)| collection.starts_with("system.resharding."))
}

/// The new form of a resharded collection takes the place of the old one as another collection, which no entry that is
/// applied introduces: its later changes could not be told from those of a stranger.
fn refuse_resharding(entry: &Entry) -> Result<()> {
    if entry.op != b'c' || entry.command_name()? != b"renameCollection" {
        return Ok(());
    }
    match entry.command_collection().filter(|from| is_of_resharding(from)) {
        None => Ok(()),
        Some(_) => Err(Error::new(
            Side::Source,
            Kind::CannotApply,
            format!(
                "a collection of {} got a new shard key (reshardCollection), which is not followed; \
                 copy again after `oplogue checkpoint reset`",
                entry.database()
            ),
        )),
    }
}

fn unasked() -> Error {
    Error::new(Side::Internal, Kind::Bug, "the decoder was given something that it did not ask for")
}

/// Whether a namespace is where a database keeps its views. The server's own databases have none.
fn is_of_views(ns: &str) -> bool {
    ns.strip_suffix(ddl::VIEWS).and_then(|database| database.strip_suffix('.')).is_some_and(|name| !name.contains('.'))
}

/// Whether a namespace is the temporary collection of a command that copies documents within a shard.
fn is_local_copy(ns: &str) -> bool {
    let rest = ns.split_once('.').and_then(|(_, collection)| collection.strip_prefix("tmp"));
    rest.and_then(|rest| rest.split_once('.'))
        .is_some_and(|(_, what)| what == "renameCollection" || what.starts_with("convertToCapped."))
}

#[cfg(test)]
mod tests;
