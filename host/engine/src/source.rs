//! The contract of a source: raw batches in order, resumable by position, and the full copy's reader.
//!
//! A source owns its cursor and nothing else. It never retries in secret: a lost cursor or connection is an error
//! whose kind tells the pipeline to rewind, and the position that left the oplog is a fault that stops the run with
//! the window in the message.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;

use crate::budget::Permit;
use crate::error::{Error, Kind, Result, Side};
use crate::model::{CollectionUuid, Namespace, OpTime, Position, RawBatch};

/// How often the source is asked whether its majority has what the primary has.
const MAJORITY_POLL: Duration = Duration::from_millis(20);

/// Waits until the source's majority has what its primary had `written`; calls `waits` when it does not have it yet.
///
/// # Errors
/// Those of the source.
pub async fn majority_has(source: &dyn Source, written: OpTime, waits: impl FnOnce()) -> Result<()> {
    // Of a cluster this is the time that every shard's majority has come to.
    until_majority_has(written, waits, || async { Ok(source.now().await?.time()) }).await
}

/// The same by whoever knows what the majority has `now`.
///
/// # Errors
/// Those of `now`.
pub async fn until_majority_has<F: Future<Output = Result<OpTime>>>(
    written: OpTime,
    waits: impl FnOnce(),
    now: impl Fn() -> F,
) -> Result<()> {
    const SAID_EVERY: Duration = Duration::from_secs(30);
    let (mut waits, mut said) = (Some(waits), Instant::now());
    while now().await?.ts() < written.ts() {
        if let Some(waits) = waits.take() {
            waits();
        }
        if said.elapsed() >= SAID_EVERY {
            said = Instant::now();
            tracing::warn!(until = %written, "still waiting until the source's majority has what its primary has");
        }
        tokio::time::sleep(MAJORITY_POLL).await;
    }
    Ok(())
}

/// Reads the changes of one replica set.
#[async_trait]
pub trait Source: Send + Sync {
    /// Starts reading at `from`. The first entry that [`Source::next`] returns *is* the entry at `from` when the
    /// position is an oplog time of a known term (the proof that the history is the same); the decoder drops it.
    ///
    /// # Errors
    /// `HistoryLost` with the oplog window in the message when `from` is older than the oldest entry or the entry at
    /// `from` is another one; `Unavailable`, `Unauthorized`.
    async fn open(&mut self, from: &Position) -> Result<()>;

    /// The next reply, possibly without entries when the source is idle. Waits for memory first.
    ///
    /// Cancel safe: a dropped call loses nothing, since the pipeline reopens by position after any cancellation.
    async fn next(&mut self) -> Result<RawBatch>;

    /// The newest majority-committed position of the source now: start of a copy, lag. A new primary may learn last what
    /// its predecessor's majority had, so that this can lie before what was read earlier.
    async fn newest(&self) -> Result<OpTime>;

    /// The newest entry that the primary has itself: the overlap mark. Whatever was read or copied so far is not newer,
    /// since only a member that has everything that a majority holds is elected.
    async fn written(&self) -> Result<OpTime>;

    /// The position of this moment, for a copy: everything older is majority-committed and behind it.
    async fn now(&self) -> Result<Position> {
        Ok(Position::Oplog(self.newest().await?))
    }

    /// A stored position in the form that this source reads from.
    ///
    /// # Errors
    /// `Misconfigured` when it is one of another source.
    async fn resolve(&self, position: &Position) -> Result<Position> {
        Ok(position.clone())
    }

    /// The entry of exactly this time in the oplog of a stream, raw: a transaction that began before the position is completed by such reads.
    ///
    /// # Errors
    /// `HistoryLost` with the window when the oplog does not hold it any more; `Unavailable`; `Bug` from a source
    /// whose changes never need one.
    async fn entry_at(&mut self, _stream: u32, time: OpTime) -> Result<Bytes> {
        let text = format!("the entry at {time} was asked for, and this source reads no single entries");
        Err(Error::new(Side::Source, Kind::Bug, text))
    }

    /// The oldest and the newest entry of the oplog.
    async fn window(&self) -> Result<Window>;
}

/// What the source's oplog holds at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// The oldest entry.
    pub oldest: OpTime,
    /// The newest majority-committed entry.
    pub newest: OpTime,
}

/// A collection of the source as the full copy plans it.
#[derive(Debug, Clone)]
pub struct CollectionPlan {
    /// Name in the source.
    pub namespace: Namespace,
    /// `collection`, `view` or `timeseries` (`listCollections` `type`).
    pub kind: String,
    /// Raw `options` document of `listCollections`.
    pub options: Bytes,
    /// Identity on the source; views have none.
    pub uuid: Option<CollectionUuid>,
    /// Estimated documents and bytes, for progress and partitioning.
    pub documents: u64,
    /// Uncompressed data size in bytes.
    pub bytes: u64,
}

/// In which order a partition is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ScanOrder {
    /// By `_id`: a lost cursor goes on behind the last document.
    #[default]
    Id,
    /// As the documents were inserted: capped collections, whose order belongs to their content. Always one partition,
    /// and one writer.
    Natural,
}

/// Where a sharded source has a partition, and how to read no more than its owner's documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owned {
    /// Number of the shard.
    pub shard: usize,
    /// The shard owned the partition at this cluster time, so an older read could miss documents that had just come.
    pub after: OpTime,
    /// Key pattern (raw document) of the index whose bounds are the partition's; none = that of `_id`. A lost cursor
    /// starts the partition again, which repeats documents.
    pub index: Option<Bytes>,
    /// Instead of bounds: what the documents have in common (raw document).
    pub filter: Option<Bytes>,
}

/// One `_id` range of a collection. Bounds are raw documents `{_id: value}`; the lower one belongs to the range. Of a
/// sharded collection: one range of the shard key, with bounds of that index.
///
/// A partition without `min` starts at the index's beginning, one without `max` reads to its end: together they
/// cover every BSON type, `NaN`, `MinKey` and `MaxKey` (correctness.md §3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Where the documents are read: the collection itself, or the `system.buckets.*` behind a time-series.
    pub namespace: Namespace,
    pub min: Option<Bytes>,
    pub max: Option<Bytes>,
    pub order: ScanOrder,
    /// Identity of what is stored under `namespace`, so that a rename during the copy is noticed.
    pub uuid: Option<CollectionUuid>,
    /// Set for a sharded source.
    pub owned: Option<Owned>,
}

/// Reads documents for the full copy.
#[async_trait]
pub trait SnapshotReader: Send + Sync {
    /// Everything that could be copied: collections, views and time-series, of all databases but `local`.
    async fn collections(&self) -> Result<Vec<CollectionPlan>>;

    /// Splits one collection into ranges of about `partition_bytes`.
    async fn partition(&self, plan: &CollectionPlan, partition_bytes: u64) -> Result<Vec<Partition>>;

    /// The name that a planned collection has now: another one after a rename, none after a drop. Reads go by name, so
    /// what was read is the planned collection only if it still has the name that was read.
    async fn place(&self, plan: &CollectionPlan) -> Result<Option<Namespace>>;

    /// What must be read again of a collection whose partitions are all read, since it moved to another shard meanwhile.
    /// To be asked again after that, until nothing is left.
    async fn moved(&self, _plan: &CollectionPlan) -> Result<Vec<Partition>> {
        Ok(Vec::new())
    }

    /// Opens a cursor over a partition: majority reads not older than `after`.
    async fn open(&self, partition: &Partition, after: OpTime) -> Result<Box<dyn SnapshotCursor>>;

    /// Raw index specifications of `listIndexes`, the `_id` index included.
    async fn indexes(&self, namespace: &Namespace) -> Result<Vec<Bytes>>;
}

/// A cursor over one partition.
#[async_trait]
pub trait SnapshotCursor: Send {
    /// The next reply: a raw BSON array of documents in the partition's order, never empty, and its memory; `None` at
    /// the end. A lost cursor is opened again behind the last document in here.
    ///
    /// Cancel safe: a dropped call loses nothing and the next one goes on with the same request.
    ///
    /// # Errors
    /// After `Unavailable`, `FailedOver` or `CursorLost` the caller may call again (after its backoff): reading goes on behind the
    /// last document that was returned.
    async fn next(&mut self) -> Result<Option<(Bytes, Permit)>>;

    /// Whether the collection was found to have another name than the partition's at some time. What was read then may
    /// lack documents or hold another collection's, even if the name is back.
    fn moved(&self) -> bool {
        false
    }
}
