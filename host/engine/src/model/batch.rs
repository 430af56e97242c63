//! Batches: the unit in which changes travel between stages.
//!
//! A [`RawBatch`] is what a source read in one reply; a [`ChangeBatch`] is what the decoder made of it. Both carry
//! the byte permit of the memory budget, which is given back when the last holder of the batch lets go of it.

use std::sync::Arc;

use bytes::Bytes;

use super::change::Change;
use super::position::Position;
use crate::budget::Permit;

/// One reply of the source, undecoded.
#[derive(Debug)]
pub struct RawBatch {
    /// A raw BSON *array* of entries: `firstBatch` or `nextBatch` of the reply, possibly empty (a heartbeat).
    pub entries: Bytes,
    /// A position that the whole reply reaches even if it holds no entry (a change stream's
    /// `postBatchResumeToken`); `None` = the last entry's own.
    pub reached: Option<Position>,
    /// Which stream of the source the entries are of, in their order; empty = all of the first. A source of several
    /// shards hands their entries on in one order.
    pub runs: Vec<Run>,
    /// The memory this batch holds.
    pub permit: Permit,
}

/// Consecutive entries of one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The stream's number: its place in [`super::position::ShardPositions::shards`].
    pub stream: usize,
    /// Number of entries.
    pub entries: usize,
}

/// Changes in source order, decoded from one raw batch.
#[derive(Debug)]
pub struct ChangeBatch {
    /// Number of the batch since the pipeline started, without gaps: 0, 1, 2…
    pub seq: u64,
    /// The changes, in source order. May be empty: the position still counts.
    pub changes: Vec<Change>,
    /// When every change of this and all earlier batches is durable, reading may go on from here.
    pub last: Position,
    /// The changes are one transaction of the source, and shall become visible together.
    pub atomic: bool,
    /// Held by every change's holder until the last one is done. Shared, since lanes split a batch.
    pub permit: Arc<Permit>,
}
