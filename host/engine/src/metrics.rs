//! What an operator sees of a run: counters that the stages move, and the state that explains them.
//!
//! [`Metrics`] is a handle of atomics that every stage clones and increments on the data path; [`Status`] holds what is
//! a fact and not a count: stage, positions, last fault, progress of the copy. Both stand here, below every stage, so
//! that no stage knows who reads them. This module never opens a socket and never formats a page: the binary's monitor
//! asks [`Metrics::encode`] and [`Status::snapshot`].

pub mod catalog;
pub mod conflicts;
pub mod copy;
pub mod families;
pub mod labels;
mod plugins;
pub mod positions;
pub mod shards;
pub mod status;

pub use conflicts::{ConflictNow, Conflicts};
pub use copy::{CollectionProgress, CollectionState, CopyProgress};
pub use families::{Labelled, Metrics};
pub use labels::{ConflictKind, DropReason, RulingKind, SyncStage, WriteKind};
pub use positions::Positions;
pub use status::{Status, StatusSnapshot, Trouble};
