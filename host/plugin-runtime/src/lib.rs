//! Runs WebAssembly plugins: the only package that links wasmtime.
//!
//! [`Chain::build`] loads every plugin of the configuration and gives the engine a
//! [`oplogue_engine::plugin::PluginChain`]. Routes are asked once and remembered, so a filter costs an array lookup;
//! entries reach a guest only when its route asked for them. Guests get no WASI, no clock and no file: what a file
//! imports is what it may do. A guest can never stop the stream silently: every fault ends in its policy or in an
//! error that names the plugin, its generation and the entry.
//!
//! Reading order: `load` (file → verified module), `instance` (one running guest), `chain` (a batch's way through
//! all of them), `edits` (what a guest answered, checked), `reload` (new generations while the stream runs).
//! A plugin that rules over conflicts stands beside the chain (`judge`), and is loaded and swapped like one of it.

mod bson;
mod chain;
mod columns;
mod conflict;
mod dead_letter;
mod edits;
mod engine;
mod error;
mod generation;
mod instance;
mod judge;
mod load;
mod manifest;
mod reload;
mod spec;
mod wrap;

pub use chain::Chain;
pub use dead_letter::DeadLetter;
pub use error::LoadError;
pub use judge::ConflictPlugin;
pub use manifest::{Kind as PluginKind, Manifest, Wants};
pub use reload::{ReloadEvent, ReloadOutcome};
pub use spec::{ChainOptions, Handles, Limits, OnError, PluginSource, PluginSpec};
