//! The contract of a sink: writes with distinct keys in, one outcome for each write out.
//!
//! The scheduler has already ordered, coalesced and separated what a lane flushes, so a sink may send the writes of
//! one flush in any order and in parallel. It reads every per-statement result; an error it cannot place on a
//! statement is an error of the whole flush. What is written is *accepted*; [`Sink::durability`] says when it is
//! *durable* (correctness.md §7).

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::Result;
use crate::model::{Change, CollectionUuid, NamespaceId, OpTime, Origin};

/// An update's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Patch {
    /// The server's `$v: 2` diff tree, raw.
    Diff(Bytes),
    /// `$v: 1` modifiers, raw.
    Modifiers(Bytes),
}

impl Patch {
    /// Bytes of its document.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.document().len()
    }

    /// Its document, raw.
    #[must_use]
    pub fn document(&self) -> &Bytes {
        match self {
            Self::Diff(bytes) | Self::Modifiers(bytes) => bytes,
        }
    }
}

/// What the target's document shall become. All forms are idempotent: writing the same content again over its own
/// result changes nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A new document. A duplicate `_id` is the sink's duplicate policy's business.
    Insert(Bytes),
    /// The whole document; the target's is replaced or, when absent, created.
    Replace(Bytes),
    /// Changes to the document that stands there, applied one after the other, as one atomic write.
    Patch(Vec<Patch>),
    /// `base`, then `patches` over it, as one atomic write.
    Patched {
        base: Bytes,
        patches: Vec<Patch>,
        /// The base is a new document: all is an insert. Otherwise the target's is replaced or, when absent, created.
        inserted: bool,
    },
    /// The document goes; absence is success.
    Delete,
}

/// One statement: one key of one target namespace.
#[derive(Debug, Clone)]
pub struct Write {
    pub target: NamespaceId,
    /// The source's name of it, for a refetch.
    pub source: NamespaceId,
    /// Raw selector document (`{_id: …}` plus shard-key fields).
    pub key: Bytes,
    pub content: Content,
    /// Whether the target's document may already contain this change or later ones.
    pub overlap: bool,
    /// Source time of the newest change inside.
    pub time: OpTime,
    /// The source collection's identity, when the entry carried one. In overlap a sink that keeps identities goes
    /// by it and not by the name: a later DDL may have moved or dropped the collection already, and something else may
    /// stand under that name now (correctness.md §6).
    pub collection: Option<CollectionUuid>,
    /// The cluster that the change came to the source from; `None`: it was made at the source.
    pub origin: Option<Origin>,
    /// A plugin has moved it: it is no part of what its collection became.
    pub moved: bool,
    /// An update among it makes the document where there is none: what came of it only the source can say.
    pub creates: bool,
    /// It must not be written before those that stand before it in its flush.
    pub in_order: bool,
}

impl Write {
    /// The source collection whose copy it is written to.
    #[must_use]
    pub fn belongs_to(&self) -> Option<CollectionUuid> {
        self.collection.filter(|_| !self.moved)
    }
}

/// Why one statement was not applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// A unique index other than `_id` has this value in another document.
    UniqueKey { index: String, message: String },
    /// Anything else, already found to be permanent.
    Refused { code: i32, message: String },
}

/// What became of a flush. Statements without a refusal are accepted.
#[derive(Debug, Clone, Default)]
pub struct FlushReport {
    /// (index into the flushed writes, reason), ascending.
    pub refused: Vec<(usize, Refusal)>,
    /// The target's `operationTime` of the last command of the flush.
    pub operation_time: Option<OpTime>,
}

/// The term of a time that two primaries have a part in. It is no primary's, so writes of that time are never taken
/// for writes of the one that leads.
const TERM_OF_TWO: i64 = i64::MAX;

/// The time by which both writes are there: the later one, under a term that hides neither's.
#[must_use]
pub fn newest_write(one: Option<OpTime>, other: Option<OpTime>) -> Option<OpTime> {
    let (Some(one), Some(other)) = (one, other) else {
        return one.or(other);
    };
    let term = match (one.term, other.term) {
        // A reply that names no term says nothing against the other's.
        (-1, term) | (term, -1) => term,
        (term, same) if term == same => term,
        (_, _) => TERM_OF_TWO,
    };
    Some(OpTime { term, ..one.max(other) })
}

/// What became of a DDL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DdlOutcome {
    /// It ran, at this operation time of the target (`None` where the target named none).
    Done(Option<OpTime>),
    /// It turned out to be done already: nothing was changed.
    Already,
    /// The target does not take it, and the settings let it be left out. It was logged.
    Refused,
    /// It cannot stand before the overlap mark (a unique index) and will be done there. Its entry is not
    /// acknowledged until then.
    Postponed,
}

/// What became of transactions that were to become visible at once.
#[derive(Debug, Default)]
pub struct WholeReport {
    /// As of a flush; indices count through all waves.
    pub report: FlushReport,
    /// Whether they did: one transaction of the target holds all of it.
    pub at_once: bool,
}

/// How far the target's majority has come, and who leads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Durability {
    /// `lastWrite.majorityOpTime`: every write at or before it survives any fail-over.
    pub majority: OpTime,
    /// `lastWrite.opTime`: the newest write that the primary has, of whomever.
    pub newest: OpTime,
    /// Term of the target's primary; accepted writes of an older term may be gone.
    pub term: i64,
}

/// Writes to the target.
#[async_trait]
pub trait Sink: Send + Sync {
    /// Writes the statements of one flush. Keys are distinct within it, so the order is the sink's.
    ///
    /// # Errors
    /// `Unavailable`/`FailedOver` when the outcome of any statement is unknown: the pipeline rewinds to the last
    /// durable position and replays, in overlap. Permanent refusals of single statements are in the report instead.
    async fn write(&self, writes: &[Write]) -> Result<FlushReport>;

    /// Executes one DDL whose scope is drained, at most once by collection identity (correctness.md §6).
    async fn ddl(&self, change: &Change, overlap: bool) -> Result<DdlOutcome>;

    /// Asks the target how far it is majority-committed.
    async fn durability(&self) -> Result<Durability>;

    /// A checkpoint at `position` is stored: what only a replay of earlier changes needs may be forgotten.
    async fn stored(&self, _position: OpTime) -> Result<()> {
        Ok(())
    }

    /// Writes transactions of the source so that they become visible at once where the target can do that. The keys of
    /// one wave are distinct; waves go one after the other. The caller has drained everything, and nothing is in overlap.
    ///
    /// # Errors
    /// As [`Sink::write`].
    async fn write_whole(&self, waves: &[Vec<Write>]) -> Result<WholeReport> {
        let mut all = FlushReport::default();
        let mut offset = 0;
        for wave in waves {
            let part = self.write(wave).await?;
            all.refused.extend(part.refused.into_iter().map(|(at, refusal)| (at + offset, refusal)));
            all.operation_time = newest_write(all.operation_time, part.operation_time);
            offset += wave.len();
        }
        Ok(WholeReport { report: all, at_once: false })
    }

    /// Settles a group of changes that collided on unique keys: writes the final state of all of them together,
    /// in one transaction on the target (correctness.md §4). The caller has drained the collection. Unlike in
    /// [`Sink::write`], a document may occur more than once; its writes then stand in source order.
    ///
    /// Returns the writes that collide even so. `last_word`: the target stands where the source stood, so these are
    /// true conflicts; a sink that records conflicts records them and returns none.
    async fn settle(&self, writes: &[Write], last_word: bool) -> Result<FlushReport>;
}

/// Prepares the target for the full copy and finishes it.
#[async_trait]
pub trait CopyTarget: Send + Sync {
    /// Makes `target` ready to take the documents of a source collection: drops or keeps what is there, creates it
    /// with the source's options, and records the identity pair. Returns a time of the target not before that.
    async fn prepare(&self, plan: &crate::source::CollectionPlan, target: NamespaceId) -> Result<Option<OpTime>>;

    /// Empties a collection that was prepared in this run: what it took in came from another source collection.
    async fn prepare_again(&self, plan: &crate::source::CollectionPlan, target: NamespaceId) -> Result<Option<OpTime>>;

    /// Inserts raw documents (slices of a reply). Duplicates are replaced.
    async fn insert(&self, target: NamespaceId, documents: &[Bytes]) -> Result<Option<OpTime>>;

    /// Builds these indexes (raw specifications of the source).
    async fn create_indexes(&self, target: NamespaceId, specs: &[Bytes]) -> Result<Option<OpTime>>;
}
