//! Thousands of random writes, transactions and DDL, with random faults on both sides and in the network.
//!
//! The workload and the faults come from one seed, which every run prints; `OPLOGUE_SEED` repeats it, and
//! `OPLOGUE_CHAOS` says how many operations there are (2,000 by default, 20,000 in the long run), so that a failure
//! is narrowed down by running fewer. At the end documents, options and indexes are equal. The target's user is root
//! here: `collMod` and `dropDatabase` are part of the workload.

use std::time::Duration;

use anyhow::{Context as _, Result};
use bson::{Document, doc};
use futures_util::TryStreamExt as _;
use oplogue_tests::collector::{Collector, PipelineConfig, by_change_stream};
use oplogue_tests::compare::Comparison;
use oplogue_tests::load::chaos::{Chaos, ChaosOptions, namespaces};
use oplogue_tests::servers::{Options, ReplicaSet};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::crash::pause;
use super::rig::{LONG_PATIENCE, PATIENCE, Rig};

mod faults;

use faults::{EXPECTED, Faults};

/// Replicated in every variant and touched by no operation.
const CALM: &str = "calm.end";

/// One fault comes after about so many operations.
const OPERATIONS_PER_FAULT: u32 = 130;

/// While the collector works off what the operations left.
const FAULTS_AT_THE_END: usize = 4;

/// Between two operations: slow enough to be followed.
const PACE: Duration = Duration::from_millis(5);

fn operations() -> u64 {
    std::env::var("OPLOGUE_CHAOS").ok().and_then(|text| text.parse().ok()).unwrap_or(2_000)
}

#[tokio::test]
async fn chaos_without_a_filter() -> Result<()> {
    let rig = rig().await?;
    let options = ChaosOptions { seed: rig.load.seed, drop_database: true, border: namespaces().len() };
    let config = transactions(&rig, config(&rig)?);
    run(rig, options, config, |comparison| comparison).await
}

#[tokio::test]
async fn chaos_from_a_change_stream() -> Result<()> {
    let rig = rig().await?;
    if !rig.source.has("DDL in change streams", (6, 0)) {
        return Ok(());
    }
    let options = ChaosOptions { seed: rig.load.seed, drop_database: true, border: namespaces().len() };
    let config = config(&rig)?.set("incr_sync.mongo_fetch_method", "change_stream");
    run(rig, options, config, |comparison| comparison).await
}

#[tokio::test]
async fn chaos_behind_a_white_list_and_a_rename() -> Result<()> {
    let rig = rig().await?;
    // The first thirteen namespaces pass: one database, and three collections of another.
    let options = ChaosOptions { seed: rig.load.seed, drop_database: false, border: 13 };
    let config = transactions(&rig, config(&rig)?).set("filter.namespace.white", "north;west.n0;west.n1;west.n2;calm");
    let config = config.set("transform.namespace", "north:polar;west.n1:west.first");
    let passes = |name: &str| {
        name.starts_with("north.") || name.starts_with("calm.") || ["west.n0", "west.n1", "west.n2"].contains(&name)
    };
    run(rig, options, config, move |comparison| {
        comparison.only(passes).rename("north", "polar").rename("west.n1", "west.first")
    })
    .await
}

/// Prints how two sides came to differ: what a failed run leaves to look at.
pub(super) async fn tell(rig: &Rig, comparison: &Comparison, collector: &Collector) -> Result<()> {
    for difference in comparison.run().await?.iter().take(2) {
        println!("{difference}\nsource's oplog of it:");
        history(&rig.source, &difference.namespace).await?;
        println!("target's oplog of it:");
        history(&rig.target, &difference.namespace).await?;
    }
    println!("{}", collector.log());
    Ok(())
}

/// What a server has logged of a namespace.
async fn history(set: &ReplicaSet, namespace: &str) -> Result<()> {
    let oplog = set.client().database("local").collection::<Document>("oplog.rs");
    let database = namespace.split('.').next().unwrap_or_default();
    let commands = doc! { "ns": format!("{database}.$cmd") };
    let ours = doc! { "$or": [{ "ns": namespace }, { "o.applyOps.ns": namespace }, commands] };
    let mut entries = oplog.find(ours).await?;
    while let Some(entry) = entries.try_next().await? {
        let text: String = entry.to_string().chars().take(260).collect();
        println!("  {text}");
    }
    Ok(())
}

async fn rig() -> Result<Rig> {
    Rig::of(Options::guide_source().behind_proxies(), Options::guide_target().behind_proxies()).await
}

fn config(rig: &Rig) -> Result<PipelineConfig> {
    let config = rig.config()?.set("tunnel.address", rig.target.uri());
    Ok(config.set("filter.ddl_enable", true).set("checkpoint.interval", 500))
}

/// The seed also says how transactions are written, where the source shows their ends and the target can write them
/// whole.
fn transactions(rig: &Rig, config: PipelineConfig) -> PipelineConfig {
    let can = || rig.target.has("reads of one moment outside of transactions", (5, 0)) && !by_change_stream();
    let how = if rig.load.seed.is_multiple_of(2) && can() { "atomic" } else { "split" };
    println!("chaos: incr_sync.transaction = {how}");
    config.set("incr_sync.transaction", how)
}

async fn run(
    rig: Rig,
    options: ChaosOptions,
    config: PipelineConfig,
    expected: impl FnOnce(Comparison) -> Comparison,
) -> Result<()> {
    let (seed, operations) = (options.seed, operations());
    println!("chaos: OPLOGUE_SEED={seed} OPLOGUE_CHAOS={operations}");
    let mut chaos = Chaos::new(&rig.source.client(), options, &rig.load);
    // Some of it stands there before the copy, most of it comes while it is replicated.
    while chaos.position() < operations / 10 {
        chaos.one().await;
    }
    let collector = Collector::start(&config)?;
    let mut rng = StdRng::seed_from_u64(seed ^ 0xfa17);
    let mut faults = Faults::new(rig, collector);
    // A part of the faults falls on the copy, most of them on the stream, some on what is left to do at the end.
    while chaos.position() < operations {
        if chaos.position() == operations / 4 {
            faults.handed_over().await?;
        }
        chaos.one().await;
        tokio::time::sleep(PACE).await;
        if rng.random_ratio(1, OPERATIONS_PER_FAULT) {
            faults.inject(&mut rng).await.with_context(|| chaos.told())?;
        }
    }
    for _ in 0..FAULTS_AT_THE_END {
        faults.inject(&mut rng).await.with_context(|| chaos.told())?;
        pause(&mut rng, 0..1_500).await;
    }
    let totals = chaos.totals();
    println!("chaos: {totals:?}, faults: {}", faults.told());
    anyhow::ensure!(totals.done * 2 > operations, "the source refused most of it (seed {seed}): {totals:?}");
    let (rig, mut collector) = faults.end().await?;
    let comparison = expected(rig.comparison());
    let equal = comparison.wait(CALM, LONG_PATIENCE).await;
    if equal.is_err() {
        tell(&rig, &comparison, &collector).await?;
    }
    equal.with_context(|| format!("OPLOGUE_SEED={seed}:\n{}", collector.log_end()))?;
    let status = collector.terminate(PATIENCE).await?;
    anyhow::ensure!(status.success(), "OPLOGUE_SEED={seed}; exit {status}:\n{}", collector.log_end());
    collector.assert_no_unexpected_warnings(&EXPECTED).with_context(|| format!("OPLOGUE_SEED={seed}"))
}
