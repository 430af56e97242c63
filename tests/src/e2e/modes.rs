//! `sync_mode` all, full and incr: the three ways in which a copy comes about.
//!
//! `all` under a mixed load is the main promise. `full` copies a still source and ends by itself. `incr` follows
//! from a start position into an empty target. None of them uses more rights than the guide's users have.

use anyhow::{Context as _, Result};
use bson::doc;
use mongodb::options::WriteConcern;
use oplogue_tests::collector::{Collector, HAND_OVER};

use super::rig::{PATIENCE, Rig, handed_over};

#[tokio::test]
async fn all_copies_and_follows_a_mixed_load() -> Result<()> {
    copies_and_follows(Rig::start().await?).await
}

#[tokio::test]
async fn all_copies_and_follows_a_mixed_load_by_change_stream() -> Result<()> {
    copies_and_follows(Rig::start().await?.by_change_stream()).await
}

/// Servers of 6.0 that were not told yet to do without 5.0.
async fn of_former_compatibility() -> Result<Rig> {
    let mut rig = Rig::start().await?;
    // An older server has a former one anyway.
    for set in [&rig.source, &rig.target].into_iter().filter(|set| set.series() >= (5, 0)) {
        set.admin(0, doc! { "setFeatureCompatibilityVersion": "5.0" }).await?;
    }
    rig.load.series = rig.load.series.min((5, 0));
    Ok(rig)
}

#[tokio::test]
async fn servers_that_keep_a_former_compatibility() -> Result<()> {
    copies_and_follows(of_former_compatibility().await?).await
}

#[tokio::test]
async fn servers_that_keep_a_former_compatibility_by_change_stream() -> Result<()> {
    copies_and_follows(of_former_compatibility().await?.by_change_stream()).await
}

async fn copies_and_follows(rig: Rig) -> Result<()> {
    rig.fill(300).await?;
    let mut load = rig.start_load();
    load.reach(300, PATIENCE).await?;
    let mut collector = Collector::start(&rig.config()?)?;
    handed_over(&mut collector).await?;
    let at_hand_over = load.totals().done;
    load.reach(at_hand_over + 6_000, PATIENCE).await?;
    load.stop().await?;
    let (begin, finish) = span_of_the_copy(&collector.log())?;
    anyhow::ensure!(1_700_000_000 < begin && begin <= finish, "from {begin} to {finish}");
    rig.finish(rig.comparison(), collector, &[]).await
}

/// What MongoShake's users read off the line of the hand-over, in seconds.
fn span_of_the_copy(log: &str) -> Result<(u64, u64)> {
    let (_, rest) = log.split_once(HAND_OVER).context("the copy did not end")?;
    let rest = rest.strip_prefix(" with timestamp: fullBeginTs[").context("no begin")?;
    let (begin, rest) = rest.split_once("], fullFinishTs[").context("no finish")?;
    let (finish, _) = rest.split_once(']').context("no end")?;
    Ok((begin.parse()?, finish.parse()?))
}

#[tokio::test]
async fn full_copies_a_still_source_and_ends() -> Result<()> {
    let rig = Rig::start().await?;
    rig.fill(500).await?;
    let client = rig.source.client();
    client.database("shop").create_collection("empty").await?;
    let shop = client.database("shop");
    shop.create_collection("ring").capped(true).size(1 << 20).await?;
    let ring = client.database("shop").collection("ring");
    // The copy reads what the majority has, and nothing brings what came later.
    let numbers = (0..100).rev().map(|number| doc! { "_id": number });
    ring.insert_many(numbers).write_concern(WriteConcern::majority()).await?;
    let mut collector = Collector::start(&rig.config()?.set("sync_mode", "full"))?;
    let status = collector.wait(PATIENCE).await?;
    assert!(status.success(), "exit {status}:\n{}", collector.log_end());
    let found = rig.comparison().run().await?;
    assert!(found.is_empty(), "seed {}\n{}", rig.load.seed, oplogue_tests::compare::report(&found));
    collector.assert_no_unexpected_warnings(&[])
}

#[tokio::test]
async fn incr_follows_from_the_start_position() -> Result<()> {
    let rig = Rig::start().await?;
    let before = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    // The oplog must not begin after the position: the sets were initiated before this second, wait it out.
    while jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string() == before {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    rig.fill(50).await?;
    let config = rig.config()?.set("sync_mode", "incr").set("checkpoint.start_position", before);
    let config = config.set("filter.ddl_enable", true);
    let mut load = rig.start_load();
    let collector = Collector::start(&config)?;
    load.reach(3_000, PATIENCE).await?;
    load.stop().await?;
    rig.finish(rig.comparison(), collector, &[]).await
}
