//! MongoDB: reading it, writing it, and keeping checkpoints in it.
//!
//! Read in the order below: how a client is made and what a driver's error means, what stands behind the
//! address, then the readers, the writers and the store. Documents pass through as raw bytes; the driver's typed
//! documents appear only where a reply is small.

pub mod alone;
pub mod classify;
pub mod client;
pub mod patience;
pub(crate) mod primary;
pub mod privileges;
pub mod topology;
mod transaction;

pub mod change_stream;
pub mod mark;
pub mod oplog;
pub mod reply;
pub mod shards;
pub mod snapshot;
mod tail;

pub(crate) mod command;
pub mod conflict;
pub mod copy;
pub(crate) mod ddl;
pub(crate) mod identity;
pub mod literal;
pub mod originals;
pub mod patch;
pub(crate) mod settle;
pub(crate) mod shard_key;
pub mod sink;
pub(crate) mod writer;

pub mod store;
