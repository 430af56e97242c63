//! The full copy: every collection that the chain lets through, in parallel, in bytes that the budget allows.
//!
//! It plans first (route every namespace, prepare every target), then copies `_id` ranges of all collections through
//! the same plugin chain that incremental uses, and ends with the indexes that can stand on a fuzzy copy. It does not
//! decide where incremental starts: the caller noted that position before the first read.

pub mod copy;
mod persistent;
pub mod plan;

pub use copy::{CopySummary, FullSync, FullSyncOptions, IndexTiming};
pub use plan::{Plan, PlannedCollection};
