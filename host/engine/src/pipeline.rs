//! The loop that owns the state of incremental replication, in two halves.
//!
//! `state` is pure: events in, commands out; order, barriers, parking and acknowledgement live there and are tested
//! and simulated without I/O. `run` turns I/O into events and commands into I/O and holds no rule of its own. No
//! other module starts flushes or moves positions.

pub mod durable;
pub mod run;
pub mod state;

pub use run::{AtMark, Border, CopiedIn, Ended, Finished, Incremental, IncrementalOptions};
