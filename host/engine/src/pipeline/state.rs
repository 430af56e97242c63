//! The pure half of the pipeline: where every change waits, what may be written now, and which position is safe.
//!
//! Events come in (a batch, a finished flush, a finished fence), commands go out. Between the two stand the lanes, the
//! barriers that DDL and unique-key conflicts put up, the changes held behind them, and the tracker of positions.
//! Nothing here waits, does I/O or reads a clock, so an event sequence replays exactly.

mod drain;
mod fence;
mod parking;
mod whole;

use std::collections::HashSet;
use std::sync::Arc;

use crate::ack::{AckTracker, SlotId};
use crate::budget::Permit;
use crate::error::{Error, Kind, Result, Side};
use crate::model::ddl::is_capped;
use crate::model::key::{id_alone, selector};
use crate::model::{Change, ChangeBatch, CollectionUuid, DocumentKey, NamespaceId, Namespaces, OpTime, Position, raw};
use crate::schedule::coalesce::content;
use crate::schedule::lane::Acks;
use crate::schedule::{Contention, Lane, Pending, Scope, Spread};
use crate::sink::{FlushReport, Refusal, Write};

pub use drain::Left;
pub use fence::FenceId;
use fence::{Fence, Held, Purpose};
use parking::Parked;

/// What the loop must do next.
#[derive(Debug)]
pub enum Command {
    /// Write these on `lane`; answer with [`Core::flushed`].
    Flush { lane: usize, writes: Vec<Write> },
    /// Execute the DDL; everything in its scope is drained. Answer with [`Core::fence_done`].
    Ddl { fence: FenceId, change: Box<Change>, overlap: bool },
    /// Settle colliding writes; their collections are drained. Answer with [`Core::settled`]. `last_word`: what
    /// collides even so is a true conflict.
    Settle { fence: FenceId, writes: Vec<Write>, last_word: bool },
    /// Write these so that all of them become visible at once: waves of distinct documents, one after the other.
    /// Everything before them is written. Answer with [`Core::whole_done`].
    Whole { fence: FenceId, waves: Vec<Vec<Write>> },
    /// The overlap mark is reached and everything before it is written. Answer with [`Core::fence_done`].
    Mark { fence: FenceId },
}

/// What the core must know of the job.
#[derive(Debug, Clone)]
pub struct CoreOptions {
    /// Number of lanes, at least 1.
    pub lanes: usize,
    /// Changes at or before this source time are in overlap.
    pub overlap_until: OpTime,
    /// Target collections whose changes must keep their order as a whole: capped ones, and ones with a collation,
    /// under which different `_id`s may be one key.
    pub single_lane: HashSet<NamespaceId>,
    /// A collection whose unique keys collide again and again goes on in one lane (`incr_sync.shard_key = auto`).
    pub auto: bool,
    /// The same by the identity of the source collection, since a replayed change has the name of its time.
    pub single_lane_collections: HashSet<CollectionUuid>,
}

/// Counts for the status page and the tests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CoreCounts {
    /// Changes that the target has accepted.
    pub accepted: u64,
    pub coalesced: u64,
    pub parked: u64,
    pub fences: u64,
    /// Collections that went on in one lane because their unique keys collided too often.
    pub one_lane: u64,
    /// Transactions that were to stay whole and were spread, because they are in overlap.
    pub split: u64,
}

/// The state machine.
#[derive(Debug)]
pub struct Core {
    namespaces: Arc<Namespaces>,
    options: CoreOptions,
    lanes: Vec<Lane>,
    tracker: AckTracker,
    /// Which lanes a collection uses, and how much of it is pending or in flight.
    spread: Spread,
    contention: Contention,
    /// Collections that are to go on in one lane as soon as they are drained.
    to_one_lane: HashSet<NamespaceId>,
    /// A collection that would gain from more lanes.
    crowded: Option<NamespaceId>,
    fences: Vec<Fence>,
    held: Held,
    parked: Parked,
    passed_mark: bool,
    /// The source has stopped: nothing long is begun any more.
    draining: bool,
    /// DDL entries that wait for the mark: not acknowledged, so that a restart meets them again.
    postponed: Vec<SlotId>,
    next_fence: u64,
    commands: Vec<Command>,
    counts: CoreCounts,
}

impl Core {
    /// A core with nothing in it.
    #[must_use]
    pub fn new(namespaces: Arc<Namespaces>, options: CoreOptions) -> Self {
        let lane_count = options.lanes.max(1);
        let lanes = (0..lane_count).map(|_| Lane::default()).collect();
        Self {
            namespaces,
            options,
            lanes,
            tracker: AckTracker::default(),
            spread: Spread::new(lane_count),
            contention: Contention::default(),
            to_one_lane: HashSet::new(),
            crowded: None,
            fences: Vec::new(),
            held: Held::default(),
            parked: Parked::default(),
            passed_mark: false,
            draining: false,
            postponed: Vec::new(),
            next_fence: 0,
            commands: Vec::new(),
            counts: CoreCounts::default(),
        }
    }

    /// A batch has come from the chain, and all of it may be written now.
    ///
    /// # Errors
    /// `Malformed` for a change without a usable `_id`; `Bug`.
    pub fn batch(&mut self, batch: ChangeBatch) -> Result<()> {
        let reached = batch.last.time();
        let slot = self.open(batch.seq, batch.changes.len(), batch.last, batch.permit)?;
        if batch.atomic && batch.changes.len() > 1 {
            self.offer_whole(slot, batch.changes)?;
        } else {
            batch.changes.into_iter().try_for_each(|change| self.offer(slot, change))?;
        }
        self.close(reached)
    }

    /// Opens a batch whose changes come one by one, as their time comes: [`Core::offer`] each, then [`Core::close`].
    ///
    /// # Errors
    /// `Bug` when a batch is missing.
    pub fn open(&mut self, seq: u64, changes: usize, last: Position, permit: Arc<Permit>) -> Result<SlotId> {
        self.tracker.open(seq, changes, last, permit)
    }

    /// The next change of an open batch. Call [`Core::pump`] when no more come for now.
    ///
    /// # Errors
    /// As [`Core::batch`].
    pub fn offer(&mut self, slot: SlotId, change: Change) -> Result<()> {
        if change.time.ts() > self.options.overlap_until.ts() {
            self.reach_mark();
        }
        self.admit(slot, change)
    }

    /// The source has been read up to `reached`: the open batch is complete.
    ///
    /// # Errors
    /// As [`Core::batch`].
    pub fn close(&mut self, reached: OpTime) -> Result<()> {
        if reached.ts() >= self.options.overlap_until.ts() {
            self.reach_mark();
        }
        self.pump()
    }

    /// The mark's work cannot be finished yet: overlap goes on until `until`.
    ///
    /// # Errors
    /// `Bug` for an unknown fence.
    pub fn mark_again(&mut self, id: FenceId, until: OpTime) -> Result<()> {
        self.lower(id)?;
        self.options.overlap_until = until;
        self.release()?;
        self.pump()
    }

    /// A lane's flush has come back; `report` speaks of the writes in the order in which they were sent.
    ///
    /// # Errors
    /// `CannotApply` when the target refuses a write for good.
    pub fn flushed(&mut self, lane: usize, writes: Vec<Write>, report: &FlushReport) -> Result<()> {
        let notes = self.lanes.get_mut(lane).map(Lane::finish_flush).unwrap_or_default();
        if notes.len() != writes.len() {
            return Err(bug(format!("lane {lane} returned {} of {} writes", writes.len(), notes.len())));
        }
        let mut refused = report.refused.iter().peekable();
        for (at, ((address, acks), write)) in notes.into_iter().zip(writes).enumerate() {
            self.settle_count(address.0)?;
            let refusal = refused.next_if(|(index, _)| *index == at).map(|(_, refusal)| refusal);
            match refusal {
                None => self.acknowledge(&acks)?,
                Some(Refusal::UniqueKey { .. }) => self.park(lane, Pending { address, write, acks })?,
                Some(Refusal::Refused { code, message }) => {
                    return Err(self.refused(
                        address.0,
                        &write,
                        &format!("error {code}: {message}"),
                        Kind::CannotApply,
                    ));
                }
            }
        }
        if let Some((index, _)) = refused.peek() {
            return Err(bug(format!("lane {lane}: a refusal of write {index} stands out of its order")));
        }
        self.pump()
    }

    /// A DDL was put off until the mark: its scope is free again, its position is not.
    ///
    /// # Errors
    /// `Bug` for an unknown fence.
    pub fn ddl_postponed(&mut self, id: FenceId) -> Result<()> {
        if let Purpose::Ddl { slot, .. } = self.lower(id)?.purpose {
            self.postponed.push(slot);
            self.tracker.park(&Acks::one(slot), true)?;
        }
        self.release()?;
        self.pump()
    }

    /// A DDL or the mark's work is done.
    ///
    /// # Errors
    /// `Bug` for an unknown fence.
    pub fn fence_done(&mut self, id: FenceId) -> Result<()> {
        let fence = self.lower(id)?;
        match fence.purpose {
            Purpose::Ddl { slot, .. } => self.tracker.resolve(slot, 1)?,
            Purpose::Mark => {
                self.passed_mark = true;
                for slot in std::mem::take(&mut self.postponed) {
                    self.tracker.park(&Acks::one(slot), false)?;
                    self.tracker.resolve(slot, 1)?;
                }
            }
            Purpose::Settle | Purpose::Whole(_) => {}
        }
        self.release()?;
        self.pump()
    }

    /// What to do now, since the last call.
    pub fn take_commands(&mut self) -> Vec<Command> {
        std::mem::take(&mut self.commands)
    }

    /// The position up to which everything is accepted, if it moved.
    pub fn take_watermark(&mut self) -> Option<Position> {
        self.tracker.take_watermark()
    }

    /// Whether nothing is pending, in flight, held or parked.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.tracker.outstanding() == 0 && self.fences.is_empty() && self.held.changes.is_empty()
    }

    /// Batches that wait for their last acknowledgement.
    #[must_use]
    pub fn outstanding_batches(&self) -> usize {
        self.tracker.outstanding()
    }

    /// Whether the overlap is over.
    #[must_use]
    pub fn passed_mark(&self) -> bool {
        self.passed_mark
    }

    /// Counters.
    #[must_use]
    pub fn counts(&self) -> CoreCounts {
        self.counts
    }

    /// Sends a change to its lane, or holds it when a barrier or an earlier held change stands before it.
    fn admit(&mut self, slot: SlotId, change: Change) -> Result<()> {
        if self.must_wait(&change) {
            if let Some(change) = self.join_whole(slot, change) {
                self.held.push(slot, change);
            }
            return Ok(());
        }
        self.dispatch(slot, change)
    }

    fn dispatch(&mut self, slot: SlotId, change: Change) -> Result<()> {
        if let Some(ddl) = &change.ddl {
            self.learn(ddl, change.collection);
            let scope = Scope::of(ddl);
            self.raise(scope, Purpose::Ddl { change: Some(Box::new(change)), slot });
            return Ok(());
        }
        let pending = self.pending(slot, change)?;
        if let Some(free) = self.join_parked(pending)? {
            self.enqueue(free);
        }
        Ok(())
    }

    fn pending(&self, slot: SlotId, change: Change) -> Result<Pending> {
        let overlap = change.time.ts() <= self.options.overlap_until.ts();
        let Some(content) = content(&change) else {
            return Err(bug("a DDL without its command".into()));
        };
        let key = if change.key.is_empty() { selector(&change.body)? } else { id_alone(change.key)? };
        let document = DocumentKey::of_document(&key)?;
        let address = (change.target, document);
        let write = Write {
            target: change.target,
            source: change.source,
            key,
            content,
            overlap,
            time: change.time,
            collection: change.collection,
            origin: change.origin,
            moved: change.moved,
            creates: change.creates,
            in_order: false,
        };
        Ok(Pending { address, write, acks: Acks::one(slot) })
    }

    /// Whether all changes of a collection, known by its name on the target or by its identity, go in one order.
    fn keeps_order(&self, target: NamespaceId, collection: Option<CollectionUuid>) -> bool {
        let of_ordered = |source| self.options.single_lane_collections.contains(&source);
        self.options.single_lane.contains(&target) || collection.is_some_and(of_ordered)
    }

    fn enqueue(&mut self, mut pending: Pending) {
        let address = pending.address;
        let keep_order = self.keeps_order(address.0, pending.write.collection);
        pending.write.in_order = keep_order;
        let lane = self.spread.lane(address, keep_order);
        if self.lanes.get_mut(lane).is_some_and(|lane| lane.push(pending, keep_order)) {
            self.counts.coalesced += 1;
        } else if self.spread.enter(address.0) && !keep_order {
            self.crowded = Some(address.0);
        }
    }

    /// Puts a write before everything that waits in the lane of its collection.
    fn enqueue_first(&mut self, pending: Pending) {
        let address = pending.address;
        let lane = self.spread.lane(address, true);
        if let Some(lane) = self.lanes.get_mut(lane) {
            lane.push_first(pending);
            self.spread.enter(address.0);
        }
    }

    /// A collection created now may be one that must keep its order as a whole.
    fn learn(&mut self, ddl: &crate::model::Ddl, source: Option<CollectionUuid>) {
        if let crate::model::Ddl::Create { namespace, options } = ddl
            && keeps_order(options)
        {
            self.options.single_lane.insert(namespace.target);
            self.options.single_lane_collections.extend(source);
        }
        if let crate::model::Ddl::Rename { from, to, .. } = ddl
            && self.options.single_lane.contains(&from.target)
        {
            self.options.single_lane.insert(to.target);
        }
    }

    /// A collection came in as a copy of the source's present state: its changes up to `until` may meet documents
    /// that contain them, so all are in overlap again, and another mark ends that.
    pub fn copied_in(&mut self, source: Option<CollectionUuid>, ordered: bool, until: OpTime) {
        if ordered {
            self.options.single_lane_collections.extend(source);
        }
        self.fences.retain(|fence| !matches!(fence.purpose, Purpose::Mark));
        self.options.overlap_until = self.options.overlap_until.max(until);
        self.passed_mark = false;
    }

    /// Starts what can be started: flushes of idle lanes, and barriers whose scope is drained.
    ///
    /// # Errors
    /// `Bug`.
    pub fn pump(&mut self) -> Result<()> {
        for (number, lane) in self.lanes.iter_mut().enumerate() {
            if let Some(writes) = lane.start_flush() {
                self.commands.push(Command::Flush { lane: number, writes });
            }
        }
        // Drained, a collection gets a share of the lanes that fits what is active now.
        if let Some(namespace) = self.crowded.take()
            && self.fences.is_empty()
        {
            self.raise(Scope::Collection(namespace), Purpose::Settle);
        }
        for at in 0..self.fences.len() {
            self.fire(at)?;
        }
        Ok(())
    }

    fn settle_count(&mut self, namespace: NamespaceId) -> Result<()> {
        if self.spread.leave(namespace) { Ok(()) } else { Err(bug("more writes came back than went out".into())) }
    }

    fn acknowledge(&mut self, acks: &Acks) -> Result<()> {
        acks.iter().try_for_each(|(slot, count)| {
            self.counts.accepted += count as u64;
            self.tracker.resolve(slot, count)
        })
    }

    fn refused(&self, namespace: NamespaceId, write: &Write, why: &str, kind: Kind) -> Error {
        let key = bson::RawDocument::from_bytes(&write.key)
            .map_or_else(|_| "an unreadable key".to_owned(), |key| format!("{key:?}"));
        Error::new(
            Side::Sink,
            kind,
            format!("write to {} at {} for {key}: {why}", self.namespaces.name(namespace), write.time),
        )
    }
}

/// Whether a collection with these `create` options keeps its order as a whole.
#[must_use]
pub fn keeps_order(options: &[u8]) -> bool {
    is_capped(options) || raw::find(options, "collation").ok().flatten().is_some()
}

fn bug(message: String) -> Error {
    Error::new(Side::Internal, Kind::Bug, message)
}

#[cfg(test)]
mod order;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
