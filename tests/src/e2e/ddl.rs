//! DDL among the writes, with and without crashes: `filter.ddl_enable = true`.
//!
//! Collections are created, dropped, renamed and indexed while documents change, which is where a replay can destroy
//! data. The comparison covers documents, options and indexes. The load leaves `collMod` out, which the guide's
//! target user may not run; everything else here works with the guide's two users.

use anyhow::Result;
use oplogue_tests::collector::Collector;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::crash::{kills, pause};
use super::rig::{PATIENCE, Rig, handed_over};

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
    rig.finish(rig.comparison(), collector, &[]).await
}

#[tokio::test]
async fn killed_among_ddl() -> Result<()> {
    killed(rig().await?).await
}

#[tokio::test]
async fn killed_among_ddl_by_change_stream() -> Result<()> {
    killed(rig().await?.by_change_stream()).await
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
    rig.finish(rig.comparison(), collector, &[]).await
}
