//! What plugins cost: the native and the WebAssembly way of the same work, entry by entry.
//!
//! The measurement is an example of the plugin runtime, run as a program of its own, so that xtask need not link
//! wasmtime and wait for it at every build. It needs no server, has its own control, and prints its own table and
//! one line of JSON a case; nothing is computed here.

use anyhow::Result;

use crate::steps;

const EXAMPLE: [&str; 6] = ["run", "--quiet", "-p", "oplogue-plugin-runtime", "--example", "cost"];

/// Builds and runs the measurement, optimised unless the bench itself is being tried.
pub(super) fn run(debug: bool) -> Result<()> {
    let mut arguments = EXAMPLE.to_vec();
    arguments.extend((!debug).then_some("--release"));
    steps::run(&mut steps::cargo(&arguments))
}
