//! The shards of a cluster as one source: their oplogs in one order, and what the config servers know of them.
//!
//! Behind this module a sharded source looks like a replica set: one stream of entries, one position, one reader for
//! the full copy. It reads the shards and the config servers directly and needs no `mongos`. It never writes to them,
//! except that a quiet shard is made to write a no-op of its own (see [`merged`]).

pub mod merged;
mod moment;
mod order;
pub mod reader;
pub mod routing;

/// The name that a sharded source has in the checkpoint and on the status pages, where a replica set has its own.
pub const CLUSTER_NAME: &str = "cluster";
