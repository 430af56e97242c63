//! The repository's own tools: `cargo xtask <command>`.
//!
//! A bare clone with Rust and Python on the machine is enough: each command installs what it needs below
//! `target/` first. The commands share the harness of `tests/`, so that what the demo and the bench start is what
//! the tests start. Nothing here is part of the product, and nothing outside the repository is changed.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod console;
mod steps;

mod servers;

mod plugins;
mod wasm_std;

mod tidy;

mod test;

mod guards;

mod demo;

mod bench;

/// The repository's own tools.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Fetches MongoDB servers for the tests into target/servers
    Servers {
        /// Versions; 6.0.27 when none is given
        versions: Vec<String>,
    },
    /// Runs every check and test; `--long` adds the slow ones
    Test(test::Options),
    /// Takes each guard against silent loss out of a copy and demands that its tests fail (tests/guards.toml)
    Guards(guards::Options),
    /// Shows a whole run: two replica sets, load, a plugin swapped mid-stream, comparison
    Demo(demo::Options),
    /// Measures copy, catch-up and latency against a bare loader and a native secondary
    Bench(bench::Options),
    /// Makes sure that guests can be built: the standard library for wasm32-unknown-unknown
    WasmStd,
    /// Builds every guest and puts the files beside their sources
    Plugins(plugins::Options),
    /// Checks the rules of docs/STYLE.md that can be checked
    Tidy,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Servers { versions } => servers::run(&versions),
        Command::Test(options) => test::run(&options),
        Command::Guards(options) => guards::run(&options),
        Command::Demo(options) => demo::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::WasmStd => wasm_std::run(),
        Command::Plugins(options) => plugins::run(options),
        Command::Tidy => tidy::run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            console::complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}
