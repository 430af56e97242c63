//! A transaction that is larger than the memory for it.
//!
//! The peak of the process is read from the kernel, first after a transaction of 50 MB and then after one of four times
//! the size: what grows with it would show. Both go through the disk, since little memory is allowed. It measures no time.

use anyhow::{Context as _, Result};
use oplogue_tests::collector::Collector;
use oplogue_tests::prepared::Transaction;
use oplogue_tests::servers::Options;

use super::super::rig::{PATIENCE, Rig, SENTINEL, handed_over};
use super::{rig, seed};

const MIB: usize = 1 << 20;

/// The server takes no transaction that would fill about a seventh of its cache, its oplog entries included.
const CACHE_GB: f32 = 5.0;

#[tokio::test]
async fn two_hundred_megabytes_in_bounded_memory() -> Result<()> {
    let rig = rig(&Options::guide_source().version, CACHE_GB).await?;
    // 4.4.2 ends the commit with a write conflict where it has to share the machine.
    if !rig.source.has("a transaction of 200 MB at the first try", (5, 0)) {
        return Ok(());
    }
    seed(&rig, &["c00", "c01"]).await?;
    let config = rig.config()?.by_oplog_only("a change stream shows no open transaction that could be put aside");
    let config = config.set("limits.memory_bytes", "64MB").set("limits.transaction_bytes", "16MB");
    let folder = rig.source.dir().join("spill");
    std::fs::create_dir_all(&folder)?;
    let config = config.set("limits.spill_dir", folder.to_string_lossy().into_owned());
    let mut collector = Collector::start(&config)?;
    handed_over(&mut collector).await?;
    // Measured first with 50 MB: what a large transaction costs at all.
    write(&rig, "small", 50).await?;
    rig.comparison().wait(SENTINEL, PATIENCE).await?;
    let before = peak_memory(&collector)?;
    write(&rig, "large", 200).await?;
    rig.comparison().wait(SENTINEL, PATIENCE).await?;
    let after = peak_memory(&collector)?;
    println!("peak memory: {} MiB after 50 MB, {} MiB after 200 MB", before / MIB, after / MIB);
    // The budget fills up meanwhile, some 120 MiB; kept in memory, 150 MB would come on top of that.
    anyhow::ensure!(after < before + 170 * MIB, "{} MiB, then {} MiB", before / MIB, after / MIB);
    anyhow::ensure!(std::fs::read_dir(&folder)?.count() == 1, "nothing was put aside");
    rig.finish(rig.comparison(), collector, &[]).await
}

async fn write(rig: &Rig, prefix: &str, megabytes: usize) -> Result<()> {
    let mut transaction = Transaction::begin(&rig.source.client()).await?;
    transaction.insert("c01", prefix, megabytes, MIB).await?;
    transaction.commit().await
}

fn peak_memory(collector: &Collector) -> Result<usize> {
    let pid = collector.pid().context("the collector does not run")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kilobytes: usize = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes * 1024)
}
