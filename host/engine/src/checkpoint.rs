//! What survives a crash: the position that is safe to go on from, and who may move it.
//!
//! A checkpoint is written by one instance at a time: it takes a lease (an epoch number) when it starts, and every
//! store operation carries that epoch, so that a paused instance that wakes up late cannot overwrite its successor's
//! position. Positions only move forward, except by an operator's `oplogue checkpoint set`.

use async_trait::async_trait;

use crate::error::Result;
use crate::model::{CollectionUuid, Namespace, OpTime, Position};
use crate::plugin::GenerationInfo;

/// The stage a job is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The full copy runs; the position is the one noted before its first read.
    FullSync,
    /// The copy is done, the changes that happened meanwhile are being applied over it. Unique indexes are not built
    /// yet: they cannot stand on a fuzzy copy (correctness.md §3) and follow at the overlap mark.
    CatchUp,
    /// Copy, overlap and indexes are done, or there was no copy.
    Incremental,
}

/// One job's stored state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    pub stage: Stage,
    /// Everything up to here is durable on the target.
    pub position: Position,
    /// Plugin generations that were active at `position`.
    pub plugins: Vec<GenerationInfo>,
    /// SHA-256 of the checked configuration, hexadecimal.
    pub configuration: String,
}

/// What a store holds when a run starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Nothing: a first run.
    Nothing,
    /// Our own document.
    Ours(Checkpoint),
    /// A MongoShake document: its time, without a term.
    MongoShake(Position),
}

/// Pairs a source collection's identity with the target's (correctness.md §6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The source collection.
    pub source: CollectionUuid,
    /// What it became on the target.
    pub target: CollectionUuid,
    /// Set where that is a copy: of the source collection as it was at this time of the source, or later. Whatever
    /// happened to it earlier is in the copy. To record `None` leaves what was recorded before.
    pub copied: Option<OpTime>,
}

/// A view of the source and what it became on the target. A view has no identity but its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ViewPair {
    /// Its name on the source.
    pub source: Namespace,
    /// The name of the target's view.
    pub target: Namespace,
}

/// Keeps checkpoints. One store object = one holder of the lease.
#[async_trait]
pub trait CheckpointStore: Send + Sync {
    /// Takes the lease (raises the epoch) and returns what is stored. Later calls of older holders fail `Fenced`.
    async fn acquire(&self) -> Result<Found>;

    /// Stores a checkpoint with majority concern.
    ///
    /// # Errors
    /// `Fenced` when another instance holds the lease.
    async fn save(&self, checkpoint: &Checkpoint) -> Result<()>;

    /// Succeeds while nobody else has taken the lease. It may rely on an answer that is some seconds old, but asks
    /// again after a longer silence, such as a pause of the whole process. Called before every flush.
    ///
    /// # Errors
    /// `Fenced` when another instance holds the lease.
    async fn still_held(&self) -> Result<()>;

    /// All identity pairs.
    async fn identities(&self) -> Result<Vec<Identity>>;

    /// Records or replaces the target identity of a source collection, with majority concern.
    async fn record_identity(&self, identity: Identity) -> Result<()>;

    /// Forgets a source collection that was dropped.
    async fn forget_identity(&self, source: CollectionUuid) -> Result<()>;

    /// All pairs of views, in no order.
    async fn views(&self) -> Result<Vec<ViewPair>>;

    /// Records or replaces what a view of the source became, with majority concern.
    async fn record_view(&self, pair: &ViewPair) -> Result<()>;

    /// Forgets a view of the source that the target has no more.
    async fn forget_view(&self, source: &Namespace) -> Result<()>;
}
