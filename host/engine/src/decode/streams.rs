//! How far each stream of the source was read: one oplog, or the oplogs of all shards handed on as one.
//!
//! The position of a sharded source is a cut through all oplogs at one cluster time, so the decoder notes the last
//! entry of every stream as the entries go by. It also knows which entry each stream repeats as a proof of its history
//! and must not be applied again. Order is not made here: the source hands entries on in the order of cluster time.
//!
//! A first start reads from some time *before* the cut, so that transactions that were open at the cut are seen from
//! their beginning on all shards. Behind a copy, what is read of that time is applied once more, as after any restart,
//! except for its first third: there a transaction may have begun on one shard before reading did, and would be known by
//! half. What is known by half later is left out too. That is safe: its documents are locked on every shard from a time
//! before the first third's end to that shard's commit, so nothing that is repeated is about them. Where somebody else
//! brought the target to the cut all of it is left out. The position stays where it is until the cut is passed.
//!
//! A later start knows which transactions were open at its cut, and where their oldest entries stand on each shard. What
//! lies between these and the cut is read once more to know the transactions, and nothing of it is handed on: it was.

use std::sync::Arc;

use crate::error::{Error, Kind, Result, Side};
use crate::model::{OpTime, Position, ShardPosition, ShardPositions};

/// The streams of one source.
#[derive(Debug)]
pub(super) struct Streams {
    /// Of a sharded source: one a shard. Empty for a single oplog.
    shards: Vec<ShardPosition>,
    /// The entry that each stream delivers again, to prove its history.
    skip: Vec<Option<OpTime>>,
    /// The newest entry of all.
    last: OpTime,
    /// The position of the start, while what is read lies behind its cut.
    behind: Option<Position>,
    /// The start, until something is read.
    unread: Option<Position>,
}

impl Streams {
    /// Streams that are opened at `start`.
    pub(super) fn at(start: &Position) -> Self {
        let shards = start.shards().to_vec();
        let skip = if shards.is_empty() { vec![Some(start.time())] } else { repeated(&shards) };
        let first = start.needed_since();
        let is_behind = first.ts() < start.time().ts() || shards.iter().any(|shard| shard.open_since.is_some());
        let behind = is_behind.then(|| start.clone());
        Self { shards, skip, last: first, behind, unread: Some(start.clone()) }
    }

    /// Has the entry at the start read like any other.
    pub(super) fn repeat_nothing(&mut self) {
        self.skip.fill(None);
    }

    /// Whether this is the entry that a stream was opened at: it was handed on before.
    pub(super) fn is_repeated(&mut self, stream: u32, time: OpTime) -> bool {
        self.unread = None;
        self.skip.get_mut(stream as usize).is_some_and(|skip| skip.take_if(|start| start.ts() == time.ts()).is_some())
    }

    /// Whether these are the oplogs of a cluster.
    pub(super) fn is_cluster(&self) -> bool {
        !self.shards.is_empty()
    }

    /// Whether what ended at `time` lies behind the cut of a first start, whenever it began.
    pub(super) fn is_behind_cut(&self, time: OpTime) -> bool {
        self.first_cut().is_some_and(|(_, cut)| time.ts() <= cut)
    }

    /// The same so early that transactions are not known as a whole.
    pub(super) fn is_long_behind_cut(&self, time: OpTime) -> bool {
        self.first_cut().is_some_and(|(from, cut)| time.ts() <= from + (cut - from) / 3)
    }

    /// From when on is read before the cut of a first start, and when that is.
    fn first_cut(&self) -> Option<(u64, u64)> {
        let start = self.behind.as_ref()?;
        // A later position may have a moment too, of a shard that had nothing yet.
        let is_first = start.shards().iter().all(|shard| shard.at.term < 0);
        let (from, cut) = (start.oldest().ts(), start.time().ts());
        (is_first && from < cut).then_some((from, cut))
    }

    /// Whether an entry was handed on before the start: it is read again for the transactions that were open there.
    pub(super) fn was_handed_on(&self, stream: u32, time: OpTime) -> bool {
        let start = self.behind.as_ref().and_then(|start| start.shards().get(stream as usize));
        start.is_some_and(|start| start.at.term >= 0 && time.ts() <= start.at.ts())
    }

    /// Notes an entry.
    ///
    /// # Errors
    /// `Bug` for a stream that was not announced, and for entries of several shards that come out of their order.
    pub(super) fn read(&mut self, stream: u32, time: OpTime) -> Result<()> {
        if !self.shards.is_empty() {
            let bug = |text: String| Error::new(Side::Internal, Kind::Bug, text);
            let shard =
                self.shards.get_mut(stream as usize).ok_or_else(|| bug(format!("no shard has number {stream}")))?;
            if time.ts() < self.last.ts() {
                return Err(bug(format!("the entry {time} of {} came after {}", shard.name, self.last)));
            }
            (shard.at, shard.open_since) = (time, None);
            if !self.is_behind_cut(time) && !self.was_handed_on(stream, time) {
                self.behind = None;
            }
        }
        self.last = time;
        Ok(())
    }

    /// Everything that was noted lies behind this position. `open` tells the entries of open transactions that must be
    /// read again from there, each with its stream.
    pub(super) fn position(&self, open: impl Iterator<Item = (u32, OpTime)>) -> Position {
        self.behind.clone().unwrap_or_else(|| self.cut(open))
    }

    /// The place to open all streams at again: each will deliver its last entry once more.
    pub(super) fn reopen(&mut self) -> Position {
        if let Some(start) = &self.unread {
            return start.clone();
        }
        self.skip = if self.shards.is_empty() { vec![Some(self.last)] } else { repeated(&self.shards) };
        self.cut(std::iter::empty())
    }

    fn cut(&self, open: impl Iterator<Item = (u32, OpTime)>) -> Position {
        if self.shards.is_empty() {
            return Position::Oplog(self.last);
        }
        let mut shards = self.shards.clone();
        for (stream, since) in open {
            if let Some(shard) = shards.get_mut(stream as usize) {
                shard.open_since = Some(shard.open_since.map_or(since, |other| earlier(other, since)));
            }
        }
        Position::Shards(Arc::new(ShardPositions { time: self.last, shards }))
    }
}

/// A shard repeats nothing that starts at a moment, or at an entry that was not the last.
fn repeated(shards: &[ShardPosition]) -> Vec<Option<OpTime>> {
    let repeats = |shard: &ShardPosition| shard.at.term >= 0 && shard.open_since.is_none();
    shards.iter().map(|shard| repeats(shard).then_some(shard.at)).collect()
}

fn earlier(a: OpTime, b: OpTime) -> OpTime {
    if b.ts() < a.ts() { b } else { a }
}
