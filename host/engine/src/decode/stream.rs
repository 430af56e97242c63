//! Turns the replies of a change stream into changes.
//!
//! The counterpart of the oplog's decoder, with the same promises: nothing is skipped without being counted, every DDL has a
//! batch of its own, and the position that is handed on never stands inside a transaction, so that a restart meets all
//! of it again. A reply's `postBatchResumeToken` moves the position even when nothing happened that the stream shows.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use super::change_event::{Content, Event, Fragments, TransactionId};
use super::{Answer, Decode, DecodeCounts, DecodeOptions, Step, ddl};
use crate::budget::Permit;
use crate::error::{Error, Kind, Result, Side};
use crate::model::raw::{Elements, kind};
use crate::model::{Change, ChangeBatch, Ddl, NamespaceId, Namespaces, Operation, Position, RawBatch};

/// Decodes the events of one stream, in order.
#[derive(Debug)]
pub struct StreamDecoder {
    namespaces: Arc<Namespaces>,
    options: DecodeOptions,
    /// Names by the event's `ns` document: most events find theirs without making a string of it.
    names: HashMap<Bytes, Name>,
    fragments: Fragments,
    /// The transaction that the last event belongs to, as long as more of it may come.
    open: Option<TransactionId>,
    /// Behind the last whole event.
    last: Position,
    /// The newest position that a checkpoint may take.
    safe: Position,
    next_seq: u64,
    counts: DecodeCounts,
    /// The reply that comes next, and what came out of the last one.
    reply: Option<RawBatch>,
    ready: VecDeque<ChangeBatch>,
}

#[derive(Debug, Clone, Copy)]
struct Name {
    id: NamespaceId,
    is_own: bool,
}

/// Distinct names that are kept at most; a source with more pays a string an event for the others.
const NAMES_MAX: usize = 100_000;

impl StreamDecoder {
    /// A decoder for events that follow `start`. A stream opened at an oplog time shows the events of that time again.
    #[must_use]
    pub fn new(namespaces: Arc<Namespaces>, options: DecodeOptions, start: Position) -> Self {
        Self {
            namespaces,
            options,
            names: HashMap::new(),
            fragments: Fragments::default(),
            open: None,
            last: start.clone(),
            safe: start,
            next_seq: 0,
            counts: DecodeCounts::default(),
            reply: None,
            ready: VecDeque::new(),
        }
    }

    /// Decodes one reply into batches: one, or more when DDL stands in it, each with its own position.
    ///
    /// # Errors
    /// `Malformed` for bytes that are no events; `CannotApply` for an event that cannot be applied exactly. The message
    /// names the event's time.
    pub fn decode(&mut self, raw: RawBatch) -> Result<Vec<ChangeBatch>> {
        let RawBatch { entries, reached, runs: _, permit } = raw;
        let permit = Arc::new(permit);
        let mut batches = Vec::with_capacity(1);
        let mut changes = Vec::new();
        let mut was_empty = true;
        for element in Elements::new(&entries)? {
            let element = element?;
            if element.kind != kind::DOCUMENT {
                return Err(Error::new(Side::Source, Kind::Malformed, "a reply holds something that is no document"));
            }
            was_empty = false;
            let first = changes.len();
            let before = self.event(entries.slice(element.offset..element.end()), &mut changes)?;
            // A DDL stands alone, so that the position before it can be stored before it is executed.
            if changes.get(first..).unwrap_or_default().iter().any(|c| c.operation == Operation::Ddl) {
                let tail = changes.split_off(first);
                if !changes.is_empty() {
                    batches.push(self.batch(std::mem::take(&mut changes), before, &permit));
                }
                batches.push(self.batch(tail, self.safe.clone(), &permit));
            }
        }
        self.reach(reached, was_empty);
        if !changes.is_empty() || batches.is_empty() {
            let position = self.safe.clone();
            batches.push(self.batch(changes, position, &permit));
        }
        self.detach();
        Ok(batches)
    }

    /// Takes the next event, or a part of one. Returns the newest safe position before it.
    fn event(&mut self, bytes: Bytes, out: &mut Vec<Change>) -> Result<Position> {
        self.counts.largest_bytes = self.counts.largest_bytes.max(bytes.len() as u64);
        let Some(whole) = self.fragments.join(bytes)? else {
            return Ok(self.safe.clone());
        };
        let event = Event::parse(&whole)?;
        let position = Position::of_token(event.token.clone())?;
        let transaction = event.transaction();
        if transaction != self.open {
            self.safe = self.last.clone();
            self.open = transaction;
        }
        let before = self.safe.clone();
        let time = event.time;
        self.expand(event, out).map_err(|e| e.context(format!("change event {time}")))?;
        self.last = position;
        if self.open.is_none() {
            self.safe = self.last.clone();
        }
        Ok(before)
    }

    fn expand(&mut self, event: Event, out: &mut Vec<Change>) -> Result<()> {
        self.counts.entries += 1;
        let (operation, body) = match event.content()? {
            Content::Catalogue => return self.catalogue(&event, out),
            Content::Gone => {
                self.counts.gone += 1;
                return Ok(());
            }
            Content::Change(operation, body) => (operation, body),
        };
        let name = self.name(&event)?;
        if name.is_own {
            self.counts.own += 1;
            return Ok(());
        }
        self.counts.whole += u64::from(event.is_looked_up());
        out.push(event.into_change(operation, body, name.id));
        Ok(())
    }

    fn catalogue(&mut self, event: &Event, out: &mut Vec<Change>) -> Result<()> {
        let commands = event.commands()?;
        if commands.is_empty() {
            self.counts.noop += 1;
            tracing::info!(operation = event.operation(), time = %event.time, "an event that changes no collection");
        }
        for command in commands {
            if self.options.is_own(&command) {
                self.counts.own += 1;
                continue;
            }
            out.extend(ddl::decode(&command, &self.namespaces)?.map(of_view));
        }
        Ok(())
    }

    fn name(&mut self, event: &Event) -> Result<Name> {
        if let Some(known) = self.names.get(&event.ns) {
            return Ok(*known);
        }
        let text = event.name()?;
        let name = Name { id: self.namespaces.intern(&text), is_own: self.options.is_own_name(&text) };
        if self.names.len() < NAMES_MAX {
            // A copy: the event's bytes would keep the whole reply alive.
            self.names.insert(Bytes::copy_from_slice(&event.ns), name);
        }
        Ok(name)
    }

    /// The whole reply is read, which reaches this position.
    fn reach(&mut self, reached: Option<Position>, was_empty: bool) {
        let Some(reached) = reached else { return };
        // In the middle of a split event, the token is a fragment's.
        if self.fragments.is_open() {
            return;
        }
        // A reply ends where it is full; only an empty one, or a later place, says that the transaction is complete.
        if reached.time().ts() > self.last.time().ts() || was_empty {
            self.open = None;
        }
        self.last = reached;
        if self.open.is_none() {
            self.safe = self.last.clone();
        }
    }

    fn batch(&mut self, changes: Vec<Change>, last: Position, permit: &Arc<Permit>) -> ChangeBatch {
        let seq = self.next_seq;
        self.next_seq += 1;
        self.counts.changes += changes.len() as u64;
        ChangeBatch { seq, changes, last: last.detached(), atomic: false, permit: Arc::clone(permit) }
    }

    /// Lets go of the reply: positions outlive it.
    fn detach(&mut self) {
        self.last = self.last.clone().detached();
        self.safe = self.safe.clone().detached();
        self.open = self.open.take().map(TransactionId::detached);
    }
}

impl Decode for StreamDecoder {
    fn begin(&mut self, raw: RawBatch) {
        self.reply = Some(raw);
    }

    fn step(&mut self) -> Result<Step> {
        if let Some(raw) = self.reply.take() {
            self.ready = self.decode(raw)?.into();
        }
        Ok(self.ready.pop_front().map_or(Step::Done, Step::Batch))
    }

    /// An event is whole, and a transaction's events come one by one: nothing is ever needed.
    fn answer(&mut self, _: Answer) -> Result<()> {
        Err(super::unasked())
    }

    fn counts(&self) -> DecodeCounts {
        self.counts
    }

    fn reopen(&mut self) -> Position {
        self.fragments.clear();
        self.last.clone()
    }
}

/// A view is the only thing without an identity that servers show the drop of (DDL is followed from 6.0 on, where each
/// collection has one), and nothing that is none may be dropped for it.
fn of_view(mut change: Change) -> Change {
    if change.collection.is_none()
        && let Some(Ddl::Drop { namespace, .. }) = change.ddl.as_deref()
    {
        change.ddl = Some(Box::new(Ddl::DropView { namespace: *namespace }));
    }
    change
}

#[cfg(test)]
mod tests;
