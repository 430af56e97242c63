//! A sharded source: copied and followed while chunks move, documents change their shard and primaries go.
//!
//! The cluster is real except for its router, whose part [`oplogue_tests::servers::cluster::Router`] plays. The target
//! is a replica set; it must hold exactly what the shards own, byte for byte.

mod changes;
mod copy;
mod load;
mod older;
mod rig;
mod stops;
mod target;
mod transactions;
