//! `cargo xtask demo`: the whole thing in a minute, on real servers.
//!
//! Two replica sets, a live load of every kind of write, the collector with its default chain and an example
//! plugin that masks a field; in the middle the plugin's file is replaced. At the end the load stops, the
//! collector catches up, and source and target are compared byte for byte. Exit code 0 means equal. Everything
//! started is stopped, whatever happens.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use oplogue_tests::collector::{Collector, HAND_OVER, PipelineConfig};
use oplogue_tests::compare::Comparison;
use oplogue_tests::example::{self, FIELD, MaskField};
use oplogue_tests::load::{Load, LoadOptions};
use oplogue_tests::servers::{self as sets, ReplicaSet};

use crate::{console, servers, steps};

mod gauge;

use gauge::Gauge;

const PATIENCE: Duration = Duration::from_secs(180);

/// What the collector logs when a new version has taken over.
const SWAPPED: &str = "plugin swapped";

/// How long and how hard.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Seconds of load after the full copy; the plugin is swapped in the middle
    #[arg(long, default_value_t = 20)]
    seconds: u32,
    /// Writes a second
    #[arg(long, default_value_t = 2_000)]
    rate: u32,
    /// Documents in each of the twenty collections before the copy begins
    #[arg(long, default_value_t = 1_000)]
    documents: usize,
    /// Build and run the optimised collector
    #[arg(long)]
    release: bool,
}

/// Runs the demo.
pub(crate) fn run(options: &Options) -> Result<()> {
    servers::ensure(sets::DEFAULT_VERSION)?;
    console::title("build");
    let program = build(options.release)?;
    tokio::runtime::Runtime::new()?.block_on(Box::pin(show(options, &program)))
}

/// Builds the collector, in the dev profile unless asked, and says where it is.
pub(crate) fn build(release: bool) -> Result<std::path::PathBuf> {
    let mut arguments = vec!["build", "--quiet", "--workspace", "--bins"];
    arguments.extend(release.then_some("--release"));
    steps::run(&mut steps::cargo(&arguments))?;
    let profile = if release { "release" } else { "debug" };
    Ok(oplogue_tests::paths::target().join(profile).join("oplogue"))
}

async fn show(options: &Options, program: &std::path::Path) -> Result<()> {
    console::title("two replica sets");
    let source = ReplicaSet::start(sets::Options::guide_source());
    let target = ReplicaSet::start(sets::Options::guide_target());
    let (source, target) = tokio::join!(source, target);
    let (source, target) = (source?, target?);
    console::say(&format!("source 127.0.0.1:{}   target 127.0.0.1:{}", source.port(0), target.port(0)));

    let load = LoadOptions { rate: Some(f64::from(options.rate)), ..LoadOptions::default() };
    console::title(&format!("load, seed {}", load.seed));
    Load::prepare(&source.client(), &load, options.documents).await?;
    let running = Load::start(&source.client(), &load);
    let plugin = MaskField::install(source.dir())?;
    let config = plugin.join(PipelineConfig::between(&source, &target)?);
    let mut collector = Collector::start_program(program, &config)?;
    console::say(&format!("collector: pid {}, log {}", pid(&collector), collector.log_path().display()));

    let watched = watch(options, &running, &mut collector, &plugin).await;
    let stopped = running.stop().await;
    watched.with_context(|| format!("the collector's log ends with:\n{}", collector.log_end()))?;
    console::say(&format!("the source took {} writes", stopped?.done));

    console::title("catch up and compare");
    let started = Instant::now();
    let comparison = Comparison::new(source.client(), target.client()).ignoring_field(FIELD);
    let equal = comparison.wait("shop.c00", PATIENCE).await;
    equal.with_context(|| format!("the collector's log ends with:\n{}", collector.log_end()))?;
    for namespace in &load.namespaces {
        let unmasked = example::unmasked(&target.client(), namespace).await?;
        anyhow::ensure!(unmasked == 0, "{unmasked} unmasked documents in {namespace}");
    }
    console::say(&format!(
        "equal after {:.1} s: documents byte for byte, options, indexes",
        started.elapsed().as_secs_f64()
    ));
    console::say(&format!("field {FIELD:?} of every document is masked on the target"));
    let status = collector.terminate(PATIENCE).await?;
    anyhow::ensure!(status.success(), "the collector ended with {status}:\n{}", collector.log_end());
    collector.assert_no_unexpected_warnings(&[])
}

fn pid(collector: &Collector) -> u32 {
    collector.pid().unwrap_or_default()
}

/// Prints a line a second: through the copy, then for the time of the load, with the swap in the middle.
async fn watch(options: &Options, load: &Load, collector: &mut Collector, plugin: &MaskField) -> Result<()> {
    console::title("full copy under load");
    let mut gauge = Gauge::default();
    let started = Instant::now();
    while !collector.log().contains(HAND_OVER) {
        anyhow::ensure!(collector.is_running()?, "the collector ended during the copy");
        anyhow::ensure!(started.elapsed() < PATIENCE, "the copy takes too long");
        gauge.tick(load, collector).await;
    }
    console::title("incremental under load");
    for second in 0..options.seconds {
        if second == options.seconds / 2 {
            plugin.put(2)?;
            console::say("  the plugin's file is replaced by version 2");
        }
        anyhow::ensure!(collector.is_running()?, "the collector ended");
        gauge.tick(load, collector).await;
    }
    collector.wait_log(SWAPPED, PATIENCE).await?;
    let log = collector.log();
    let line = log.lines().find(|line| line.contains(SWAPPED)).unwrap_or_default();
    console::say(&format!("  {line}"));
    Ok(())
}
