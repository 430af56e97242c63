//! Primaries that go away: stepped down or killed, on either side, under load.
//!
//! A step-down breaks cursors and refuses writes for a second or two; a killed primary of a w:1 target also
//! takes back writes it had acknowledged. The collector must go on by itself, and the target must be equal in
//! the end, the rolled-back writes included.

use anyhow::Result;
use bson::doc;
use oplogue_tests::collector::Collector;

use super::rig::{PATIENCE, Rig, handed_over};

/// What a collector may warn of while it loses a primary: it says which side and that it retries.
const EXPECTED: [&str; 1] = ["going back to the last durable position"];

#[tokio::test]
async fn both_primaries_step_down_under_load() -> Result<()> {
    let rig = Rig::with_members(3, 3).await?;
    rig.fill(60).await?;
    let mut load = rig.start_load();
    let mut collector = Collector::start(&rig.config()?)?;
    handed_over(&mut collector).await?;
    for _ in 0..2 {
        let done = load.totals().done;
        rig.source.step_down().await?;
        load.reach(done + 600, PATIENCE).await?;
        let done = load.totals().done;
        rig.target.step_down().await?;
        load.reach(done + 600, PATIENCE).await?;
    }
    load.stop().await?;
    rig.finish(rig.comparison(), collector, &EXPECTED).await
}

#[tokio::test]
async fn a_w1_target_loses_its_primary_with_acknowledged_writes() -> Result<()> {
    let mut rig = Rig::with_members(1, 3).await?;
    rig.fill(60).await?;
    let mut load = rig.start_load();
    let mut collector = Collector::start(&rig.config()?)?;
    handed_over(&mut collector).await?;
    let done = load.totals().done;
    load.reach(done + 600, PATIENCE).await?;
    // The secondaries stop copying: what the primary acknowledges from here on exists only there.
    let primary = rig.target.primary().await?;
    let secondaries: Vec<usize> = (0..3).filter(|member| *member != primary).collect();
    for member in &secondaries {
        rig.target.fail_point(*member, "stopReplProducer", "alwaysOn", doc! {}).await?;
    }
    let done = load.totals().done;
    load.reach(done + 600, PATIENCE).await?;
    rig.target.kill(primary)?;
    for member in &secondaries {
        rig.target.fail_point(*member, "stopReplProducer", "off", doc! {}).await?;
    }
    rig.target.primary().await?;
    let done = load.totals().done;
    load.reach(done + 600, PATIENCE).await?;
    rig.target.restart(primary).await?;
    load.stop().await?;
    rig.finish(rig.comparison(), collector, &EXPECTED).await
}
