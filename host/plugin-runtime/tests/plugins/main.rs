//! The plugin runtime with real WebAssembly files and hand-made batches: no server.
//!
//! The guests of `tests/guests` misbehave on purpose; every one of them, and every misbehaviour that it offers, has a
//! test here. The default plugins and the examples run as the committed files that users get.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::large_futures,
    reason = "a test"
)]

mod files;
mod fixtures;

mod broken;
mod ddl;
mod defaults;
mod judge;
mod lies;
mod mask;
mod reload;
mod traps;
