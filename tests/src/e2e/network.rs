//! Networks that stall, break without a reset, and deliver late.
//!
//! A proxy of ours stands between the collector and a server. What a server's fail point cannot show is shown here:
//! a stall is noticed and survived on either side, and a write that was given up and arrives after its replay, or
//! after newer writes, does no harm. Nothing here measures how long the noticing takes.

use std::time::{Duration, Instant};

use anyhow::Result;
use bson::{Document, doc};
use oplogue_tests::collector::{Collector, by_change_stream};
use oplogue_tests::proxy::Weather;
use oplogue_tests::servers::{Options, ReplicaSet};

use super::rig::{PATIENCE, Rig, SENTINEL, handed_over, until};

/// What a collector may warn of here.
const EXPECTED: [&str; 4] = [
    "going back to the last durable position",
    "an earlier run of this job",
    "still waiting",
    "the target's majority is late",
];

/// Said while a run waits for the connections of an earlier one.
const WAITS: &str = "waiting for the end of an earlier run's connections";

#[tokio::test]
async fn a_stalled_source_is_noticed_and_read_on() -> Result<()> {
    let rig = Rig::of(Options::guide_source().behind_proxies(), Options::guide_target()).await?;
    stalls(&rig, &rig.source).await
}

#[tokio::test]
async fn a_stalled_target_is_noticed_and_written_on() -> Result<()> {
    let rig = Rig::of(Options::guide_source(), Options::guide_target().behind_proxies()).await?;
    stalls(&rig, &rig.target).await
}

async fn stalls(rig: &Rig, side: &ReplicaSet) -> Result<()> {
    rig.fill(60).await?;
    let proxy = side.proxy(0)?;
    let mut load = rig.start_load();
    let mut collector = Collector::start(&rig.config()?)?;
    handed_over(&mut collector).await?;
    // Short ones are sat out, a long one is not, and a cut comes without warning.
    for weather in [Weather::Stalled, Weather::Deaf, Weather::Slow(Duration::from_millis(20))] {
        proxy.weather(weather);
        tokio::time::sleep(Duration::from_secs(2)).await;
        proxy.weather(Weather::Fair);
        load.reach(load.totals().done + 300, PATIENCE).await?;
    }
    proxy.weather(Weather::Stalled);
    // At the latest when a request is given up that was on its way when the network stalled (`limits.answer_time`).
    collector.wait_log("going back to the last durable position", PATIENCE).await?;
    proxy.weather(Weather::Fair);
    load.reach(load.totals().done + 300, PATIENCE).await?;
    proxy.cut();
    load.reach(load.totals().done + 300, PATIENCE).await?;
    load.stop().await?;
    rig.finish(rig.comparison(), collector, &EXPECTED).await
}

/// What the collector meets while a write of it is held back in the network.
enum Meanwhile {
    /// Its connection breaks, and it goes on by itself.
    Broken,
    /// It is killed and started again.
    Killed,
}

#[tokio::test]
async fn a_write_given_up_that_arrives_late_does_no_harm() -> Result<()> {
    arrives_late(Meanwhile::Broken).await
}

#[tokio::test]
async fn a_write_of_a_killed_collector_that_arrives_late_does_no_harm() -> Result<()> {
    arrives_late(Meanwhile::Killed).await
}

async fn arrives_late(meanwhile: Meanwhile) -> Result<()> {
    let rig = Rig::of(Options::guide_source(), Options::guide_target().behind_proxies()).await?;
    let source = rig.source.client().database("shop").collection::<Document>("c00");
    source.insert_one(doc! { "_id": 1, "v": "first" }).await?;
    let mut collector = Collector::start(&rig.config()?)?;
    handed_over(&mut collector).await?;
    rig.comparison().wait(SENTINEL, PATIENCE).await?;
    let proxy = rig.target.proxy(0)?;
    proxy.trap(b"the-late-one");
    source.update_one(doc! { "_id": 1 }, doc! { "$set": { "v": "the-late-one" } }).await?;
    proxy.caught(PATIENCE).await?;
    if matches!(meanwhile, Meanwhile::Killed) {
        collector.kill9();
    }
    proxy.abandon();
    if matches!(meanwhile, Meanwhile::Killed) {
        collector.run()?;
    }
    source.update_one(doc! { "_id": 1 }, doc! { "$set": { "v": "newest" } }).await?;
    // A collector that does not wait for the late one has written the newest by then.
    overtaken_or_waiting(&rig, &collector).await?;
    proxy.release();
    source.insert_one(doc! { "_id": "after" }).await?;
    rig.finish(rig.comparison(), collector, &EXPECTED).await
}

async fn overtaken_or_waiting(rig: &Rig, collector: &Collector) -> Result<()> {
    let target = rig.target.client().database("shop").collection::<Document>("c00");
    let started = Instant::now();
    while !collector.log().contains(WAITS) {
        let newest = target.find_one(doc! { "_id": 1, "v": "newest" }).await?;
        if newest.is_some() {
            return Ok(());
        }
        anyhow::ensure!(started.elapsed() < PATIENCE, "neither written nor waited:\n{}", collector.log_end());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// One connection loses its network and the others do not, so that the driver's monitor sees nothing: under a request
/// for more of the oplog, a write, a commit, and a command that may rightly take long.
#[tokio::test]
async fn a_single_silent_connection_is_given_up() -> Result<()> {
    let source = Options::guide_source().behind_proxies();
    let rig = Rig::of(source, Options::guide_target().behind_proxies()).await?;
    rig.fill(60).await?;
    let mut load = rig.start_load();
    let config = rig.config()?.set("limits.answer_time", 5).set("filter.ddl_enable", true);
    let mut collector = Collector::start(&config)?;
    handed_over(&mut collector).await?;
    let bulk = rig.source.client().database("shop").collection::<Document>("bulk");
    // The collection that a request for more names.
    let stream = if by_change_stream() { "$cmd.aggregate" } else { "oplog.rs" };
    let silent = [
        (&rig.source, stream, "read the "),
        (&rig.target, "updates", "write to"),
        (&rig.target, "commitTransaction", "commit a transaction"),
        (&rig.target, "createIndexes", "run a DDL"),
    ];
    for (round, (side, bytes, doing)) in (0..).zip(silent) {
        let log = collector.log().len();
        side.proxy(0)?.trap(bytes.as_bytes());
        // What is written at once goes to the target in one transaction.
        bulk.insert_many((0..3_000).map(|n| doc! { "_id": round * 10_000 + n })).await?;
        let index = mongodb::IndexModel::builder().keys(doc! { format!("x{round}"): 1 }).build();
        bulk.create_index(index).await?;
        side.proxy(0)?.caught(PATIENCE).await?;
        let given_up = |log: &str| log.lines().any(|line| line.contains(doing) && line.contains("no answer for"));
        let said = async || Ok(given_up(collector.log().get(log..).unwrap_or_default()));
        until(&collector, &format!("{doing} is given up"), said).await?;
        side.proxy(0)?.release();
        load.reach(load.totals().done + 300, PATIENCE).await?;
    }
    load.stop().await?;
    rig.finish(rig.comparison(), collector, &EXPECTED).await
}

/// A target whose disk is full stops the run with a clear fault; with room again it goes on from where it stood.
#[tokio::test]
async fn a_full_disk_of_the_target_stops_the_run_and_loses_nothing() -> Result<()> {
    let rig = Rig::start().await?;
    rig.fill(60).await?;
    let mut load = rig.start_load();
    let mut collector = Collector::start(&rig.config()?)?;
    handed_over(&mut collector).await?;
    load.reach(load.totals().done + 300, PATIENCE).await?;
    let writes = ["insert", "update", "delete", "commitTransaction"];
    let full = doc! { "failCommands": &writes[..], "errorCode": 14031, "appName": "oplogue" };
    rig.target.fail_command("alwaysOn", full).await?;
    let status = collector.wait(PATIENCE).await?;
    anyhow::ensure!(!status.success() && collector.log_end().contains("free space"), "{}", collector.log_end());
    load.reach(load.totals().done + 300, PATIENCE).await?;
    rig.target.heal_commands().await?;
    collector.run()?;
    load.stop().await?;
    rig.finish(rig.comparison(), collector, &["OutOfDiskSpace"]).await
}
