//! How far each stream of the source was read: one oplog, or the oplogs of all shards handed on as one.
//!
//! The position of a sharded source is a cut through all oplogs at one cluster time, so the decoder notes the last
//! entry of every stream as the entries go by. It also knows which entry each stream repeats as a proof of its history
//! and must not be applied again. Order is not made here: the source hands entries on in the order of cluster time.
//!
//! A first start reads from some time *before* the cut, so that transactions that were open at the cut are seen from
//! their beginning on all shards. Behind a copy, what is read of that time is applied once more, as after any restart;
//! where somebody else brought the target to the cut it is left out. The position stays where it is until the cut is
//! passed.

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
    /// The position of the start, while reading has not come to its cut.
    before_cut: Option<Position>,
}

impl Streams {
    /// Streams that are opened at `start`.
    pub(super) fn at(start: &Position) -> Self {
        let shards = start.shards().to_vec();
        let skip = if shards.is_empty() { vec![Some(start.time())] } else { repeated(&shards) };
        let first = start.oldest();
        let before_cut = (first.ts() < start.time().ts()).then(|| start.clone());
        Self { shards, skip, last: first, before_cut }
    }

    /// Has the entry at the start read like any other.
    pub(super) fn repeat_nothing(&mut self) {
        self.skip.fill(None);
    }

    /// Whether this is the entry that a stream was opened at: it was handed on before.
    pub(super) fn is_repeated(&mut self, stream: u32, time: OpTime) -> bool {
        self.skip.get_mut(stream as usize).is_some_and(|skip| skip.take_if(|start| start.ts() == time.ts()).is_some())
    }

    /// Whether these are the oplogs of a cluster.
    pub(super) fn is_cluster(&self) -> bool {
        !self.shards.is_empty()
    }

    /// Whether what ended at `time` is on the target already, whenever it began: the cut of a first start says so.
    pub(super) fn is_behind_cut(&self, time: OpTime) -> bool {
        self.before_cut.as_ref().is_some_and(|start| time.ts() <= start.time().ts())
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
            shard.at = time;
            self.before_cut.take_if(|start| time.ts() > start.time().ts());
        }
        self.last = time;
        Ok(())
    }

    /// Everything that was noted lies behind this position.
    pub(super) fn position(&self) -> Position {
        self.before_cut.clone().unwrap_or_else(|| self.cut())
    }

    /// The place to open all streams at again: each will deliver its last entry once more.
    pub(super) fn reopen(&mut self) -> Position {
        self.skip = if self.shards.is_empty() { vec![Some(self.last)] } else { repeated(&self.shards) };
        self.cut()
    }

    fn cut(&self) -> Position {
        if self.shards.is_empty() {
            return Position::Oplog(self.last);
        }
        Position::Shards(Arc::new(ShardPositions { time: self.last, shards: self.shards.clone() }))
    }
}

/// A shard that starts at a moment repeats nothing.
fn repeated(shards: &[ShardPosition]) -> Vec<Option<OpTime>> {
    shards.iter().map(|shard| (shard.at.term >= 0).then_some(shard.at)).collect()
}
