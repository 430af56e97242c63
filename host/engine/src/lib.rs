//! The engine of Oplogue: its vocabulary, the contracts of the stages, and the pipeline that joins them.
//!
//! Read the modules in the order below: it is the order in which a change travels from the source to the
//! checkpoint. The engine links no database driver, no WebAssembly runtime and no HTTP server: everything
//! that speaks to the outside stands behind [`source::Source`], [`plugin::PluginChain`], [`sink::Sink`] and
//! [`checkpoint::CheckpointStore`] and is joined to the engine in the binary's `assemble.rs`.

pub mod model;

pub mod config;

pub mod budget;
pub mod clock;
pub mod error;
pub mod metrics;
pub mod retry;
pub mod spill;
pub mod supervise;

pub mod source;

pub mod decode;

pub mod plugin;

pub mod conflict;

pub mod schedule;

pub mod sink;

pub mod ack;

pub mod checkpoint;

pub mod full_sync;

pub mod pipeline;

#[cfg(test)]
#[path = "../../../tests/src/seed.rs"]
pub mod seed;
