//! End to end: the real collector between two real replica sets, under load, compared byte for byte.
//!
//! Every test has the same shape: a pipeline is set up, a seeded load runs, something happens, the load stops,
//! and source and target must become equal with no warning in the log that the test did not expect. The seed
//! is part of every failure. The guide's two users are used throughout.

mod chaos;
mod conflicts;
mod crash;
mod ddl;
mod delay;
mod failover;
mod filters;
mod indexes;
mod missing;
mod mistakes;
mod modes;
mod mongos;
mod mongoshake;
mod network;
mod parking;
mod plugins;
mod progress;
mod rig;
mod rulings;
mod settings;
mod sharded;
mod shutdown;
mod silent_loss;
mod stream;
mod swap;
mod tls;
mod transactions;
mod two_way;
mod unique;
