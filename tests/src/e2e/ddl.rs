//! DDL among the writes, with and without crashes: `filter.ddl_enable = true`.
//!
//! Collections are created, dropped, renamed and indexed while documents change, which is where a replay can destroy
//! data. The comparison covers documents, options and indexes. The load leaves `collMod` out, which the guide's
//! target user may not run; it works with the guide's two users. The lists of every DDL run with a target user who may
//! also run `collMod`, from sources of all versions.

mod adopted;
mod border;
mod refused;
mod shared;
mod views;

use anyhow::{Context as _, Result};
use bson::doc;
use oplogue_tests::collector::{Collector, PipelineConfig};
use oplogue_tests::servers::{Options, User};
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::chaos;
use super::crash::{kills, pause};
use super::rig::{LONG_PATIENCE, PATIENCE, Rig, SENTINEL, handed_over};
use crate::scripts;

/// A target user who may also run `collMod` and `dropDatabase`.
pub(super) fn target_admin() -> User {
    let roles = [("readWriteAnyDatabase", "admin"), ("dbAdminAnyDatabase", "admin")];
    User::new("target_admin", "target-password", &roles)
}

/// The version that the pass has for its sources.
fn source_version() -> String {
    Options::guide_source().version
}

/// A source of some version, and a target whose user may do everything that DDL needs.
async fn rig_of(version: &str) -> Result<Rig> {
    rig_with_members(version, 1).await
}

async fn rig_with_members(version: &str, members: usize) -> Result<Rig> {
    let source = Options { version: version.to_owned(), members, ..Options::guide_source() };
    let rig = Rig::of(source, Options { users: vec![target_admin()], ..Options::guide_target() }).await?;
    // The sentinel's collection, before the copy.
    rig.source.client().database("shop").collection("c00").insert_one(doc! { "_id": "first" }).await?;
    Ok(rig)
}

fn with_ddl(rig: &Rig) -> Result<PipelineConfig> {
    Ok(rig.config()?.set("filter.ddl_enable", true))
}

/// `kill -9` at random moments, so many times.
async fn kill_now_and_then(collector: &mut Collector, times: usize, ms: std::ops::Range<u64>, seed: u64) -> Result<()> {
    let mut rng = StdRng::seed_from_u64(seed);
    for _ in 0..times {
        pause(&mut rng, ms.clone()).await;
        anyhow::ensure!(collector.is_running()?, "seed {seed}:\n{}", collector.log_end());
        collector.kill9();
        collector.run()?;
    }
    Ok(())
}

/// Every DDL: a part of it before the copy, all of it after, with kills in the middle.
async fn everything_from(version: &str) -> Result<()> {
    let rig = rig_of(version).await?;
    let client = rig.source.client();
    let known =
        |prefix: &str| scripts::known(scripts::older(version, rig.target.version()), scripts::everything(prefix));
    scripts::run(&client, &known("a")).await?;
    let config = with_ddl(&rig)?;
    let config = match rig.source.has("DDL in change streams", (6, 0)) {
        true => config,
        false => config.by_oplog_only("change streams before 6.0 show no DDL"),
    };
    let mut collector = Collector::start(&config)?;
    handed_over(&mut collector).await?;
    let steps = known("b");
    let steps = scripts::run(&client, &steps);
    tokio::try_join!(steps, kill_now_and_then(&mut collector, kills().div_ceil(3), 300..2_500, rig.load.seed))?;
    let equal = rig.comparison().wait(SENTINEL, LONG_PATIENCE).await;
    if equal.is_err() {
        chaos::tell(&rig, &rig.comparison(), &collector).await?;
    }
    equal.with_context(|| format!("seed {}", rig.load.seed))?;
    rig.finish(rig.comparison(), collector, &[]).await.with_context(|| format!("a source of version {version}"))
}

#[tokio::test]
async fn everything_from_6_0() -> Result<()> {
    everything_from("6.0.27").await
}

#[tokio::test]
async fn everything_from_5_0() -> Result<()> {
    everything_from("5.0.4").await
}

#[tokio::test]
async fn everything_from_4_4() -> Result<()> {
    everything_from("4.4.2").await
}

/// Database and collection renames: views, time-series and databases that go follow them.
#[tokio::test]
async fn everything_under_other_names() -> Result<()> {
    let rig = rig_of(&source_version()).await?;
    let client = rig.source.client();
    let config =
        with_ddl(&rig)?.set("transform.namespace", "av:xv;bv:yv;bt.ts:bt.measures;aw.base:aw.ground;bd:zd;bs:zs");
    let version = scripts::older(rig.source.version(), rig.target.version());
    let known = |prefix: &str| scripts::known(version, scripts::everything(prefix));
    scripts::run(&client, &known("a")).await?;
    let mut collector = Collector::start(&config)?;
    handed_over(&mut collector).await?;
    scripts::run(&client, &known("b")).await?;
    let comparison = rig.comparison().rename("av", "xv").rename("bv", "yv").rename("bd", "zd").rename("bs", "zs");
    let comparison = comparison.rename("bt.ts", "bt.measures").rename("aw.base", "aw.ground");
    let comparison = comparison.rename("bt.system.buckets.ts", "bt.system.buckets.measures");
    let unfinished = comparison.wait(SENTINEL, LONG_PATIENCE).await;
    unfinished.with_context(|| collector.log_end())?;
    rig.finish(comparison, collector, &[]).await
}

async fn rig() -> Result<Rig> {
    let mut rig = Rig::start().await?;
    rig.load.ddl = true;
    rig.load.unique_swaps = false;
    rig.fill(40).await?;
    Ok(rig)
}

#[tokio::test]
async fn ddl_among_the_writes() -> Result<()> {
    let rig = rig().await?;
    let mut load = rig.start_load();
    let mut collector = Collector::start(&rig.config()?.set("filter.ddl_enable", true))?;
    handed_over(&mut collector).await?;
    let done = load.totals().done;
    load.reach(done + 3_000, PATIENCE).await?;
    load.stop().await?;
    // A collection may be renamed just when it is copied.
    rig.finish(rig.comparison(), collector, &["the source renamed it meanwhile"]).await
}

#[tokio::test]
async fn killed_among_ddl() -> Result<()> {
    killed(rig().await?).await
}

#[tokio::test]
async fn killed_among_ddl_by_change_stream() -> Result<()> {
    let rig = rig().await?;
    if !rig.source.has("DDL in change streams", (6, 0)) {
        return Ok(());
    }
    killed(rig.by_change_stream()).await
}

async fn killed(rig: Rig) -> Result<()> {
    let mut rng = StdRng::seed_from_u64(rig.load.seed);
    let mut collector = Collector::start(&rig.config()?.set("filter.ddl_enable", true))?;
    handed_over(&mut collector).await?;
    let load = rig.start_load();
    for _ in 0..kills().div_ceil(2) {
        pause(&mut rng, 100..1_500).await;
        anyhow::ensure!(collector.is_running()?, "seed {}:\n{}", rig.load.seed, collector.log_end());
        collector.kill9();
        collector.run()?;
    }
    load.stop().await?;
    rig.comparison().wait(SENTINEL, LONG_PATIENCE).await.with_context(|| format!("seed {}", rig.load.seed))?;
    rig.finish(rig.comparison(), collector, &[]).await
}
