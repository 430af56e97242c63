//! `cargo xtask bench`: speed as ratios, measured against what the machine can do at all.
//!
//! Absolute numbers say more about the machine than about the program, so each scenario measures two ceilings in
//! the same run: a bare bulk loader for the copy, a native secondary for the catch-up. The ceiling is measured
//! before and after (A/A), and the difference between the two is the noise to read the rest with. Plugins are measured
//! beside native code that does the same. The optimised build is measured; nothing here is a test, and no number
//! fails anything.

use std::path::Path;

use anyhow::Result;
use oplogue_tests::servers::DEFAULT_VERSION;

use crate::{console, demo, servers};

mod copy;
mod follow;
mod latency;
mod loader;
mod paths;
mod plugins;
mod profile;
mod table;
mod usage;
mod writes;

/// What to measure and how much.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Documents of the full copy
    #[arg(long, default_value_t = 300_000)]
    documents: u32,
    /// Size of a document in bytes
    #[arg(long, default_value_t = 950)]
    document_bytes: usize,
    /// Operations of each catch-up
    #[arg(long, default_value_t = 60_000)]
    operations: u32,
    /// Rounds of each catch-up
    #[arg(long, default_value_t = 2)]
    rounds: u32,
    /// Writes whose latency is measured
    #[arg(long, default_value_t = 300)]
    latency_writes: u32,
    /// Measure only these
    #[arg(long, value_enum)]
    only: Option<Scenario>,
    /// Sample the collector's stacks in each catch-up and print where its time goes (best with many operations)
    #[arg(long)]
    profile: bool,
    /// Measure the dev build: for trying the bench itself
    #[arg(long)]
    debug: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Scenario {
    /// The full copy
    Copy,
    /// Catching up, mixed writes over eight collections
    Mixed,
    /// Catching up, the same writes on one collection
    Hot,
    /// From source commit to visible on the target
    Latency,
    /// An update on the fast and on the exact path; decoding, an entry
    Paths,
    /// Routes, envelopes and bodies, in WebAssembly and natively; needs no server
    Plugins,
}

impl Options {
    fn wants(&self, scenario: Scenario) -> bool {
        self.only.is_none_or(|only| only == scenario)
    }
}

/// Measures.
pub(crate) fn run(options: &Options) -> Result<()> {
    if options.only != Some(Scenario::Plugins) {
        servers::ensure(DEFAULT_VERSION)?;
        console::title("build");
        let program = demo::build(!options.debug)?;
        tokio::runtime::Runtime::new()?.block_on(Box::pin(measure(options, &program)))?;
    }
    if options.wants(Scenario::Plugins) {
        console::title("plugins, each kind of work beside native code");
        plugins::run(options.debug)?;
    }
    Ok(())
}

async fn measure(options: &Options, program: &Path) -> Result<()> {
    if options.wants(Scenario::Copy) {
        console::title(&format!("full copy, {} documents of {} bytes", options.documents, options.document_bytes));
        Box::pin(copy::run(options, program)).await?;
    }
    for (scenario, collections) in [(Scenario::Mixed, 8), (Scenario::Hot, 1)] {
        if options.wants(scenario) {
            console::title(&format!("catch-up, {} operations on {collections} collections", options.operations));
            Box::pin(follow::run(options, program, collections)).await?;
        }
    }
    if options.wants(Scenario::Paths) {
        console::title("updates on the fast and on the exact path, and decoding");
        paths::run(options.debug).await?;
    }
    if options.wants(Scenario::Latency) {
        console::title("latency, source commit to visible on the target");
        Box::pin(latency::run(options, program)).await?;
    }
    Ok(())
}
