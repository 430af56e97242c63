//! Primaries that go away: stepped down or killed, on either side, under load.
//!
//! A step-down breaks cursors and refuses writes for a second or two; a killed primary of a w:1 target also
//! takes back writes it had acknowledged, and one of a source takes back what it had shown to nobody else. The collector
//! must go on by itself, and the target must be equal in the end, the rolled-back writes included. Each test makes sure
//! that what it is about did happen.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bson::{Document, doc};
use mongodb::Collection;
use mongodb::options::ReadPreference;
use oplogue_tests::collector::{Collector, HAND_OVER};
use oplogue_tests::servers::ReplicaSet;

use super::rig::{PATIENCE, Rig, handed_over};

/// What a collector may warn of while it loses a primary: it says which side and that it retries.
const EXPECTED: [&str; 3] =
    ["going back to the last durable position", "still waiting", "the target's majority is late"];

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
    // The unique indexes of the overlap mark are built by all members, so none of them may stand still before.
    collector.wait_log("overlap is over", PATIENCE).await?;
    // The secondaries stop copying: what the primary acknowledges from here on exists only there.
    let primary = rig.target.primary().await?;
    let secondaries = secondaries(primary);
    rig.target.hold_back(&secondaries, true).await?;
    // Written by the collector, acknowledged by the primary, and never to be had by anybody else.
    let probe = doc! { "_id": "only on the primary" };
    shop(&rig.source).insert_one(probe.clone()).await?;
    seen(&shop(&rig.target), &probe).await.with_context(|| collector.log_end())?;
    let done = load.totals().done;
    load.reach(done + 600, PATIENCE).await?;
    for member in secondaries {
        let copied = on_member(&rig.target, member, &probe).await?;
        anyhow::ensure!(!copied, "member {member} has the write that is to be lost");
    }
    anyhow::ensure!(!collector.log().contains(EXPECTED[0]), "a rewind before its cause:\n{}", collector.log_end());
    rig.target.kill(primary)?;
    rig.target.hold_back(&secondaries, false).await?;
    rig.target.primary().await?;
    let done = load.totals().done;
    load.reach(done + 600, PATIENCE).await?;
    rig.target.restart(primary).await?;
    load.stop().await?;
    collector.wait_log(EXPECTED[0], PATIENCE).await.context("what was lost is not written again without a rewind")?;
    rig.finish(rig.comparison(), collector, &EXPECTED).await
}

/// The copy is over only when the majority of the target has it: the checkpoint is elsewhere, so nothing else would
/// notice that it is gone.
#[tokio::test]
async fn a_w1_target_loses_its_primary_with_the_whole_copy() -> Result<()> {
    let mut rig = Rig::with_members(1, 3).await?;
    // Without indexes: the build of one waits for the majority by itself.
    for name in ["c00", "c01", "c02"] {
        let things = rig.source.client().database("shop").collection(name);
        things.insert_many((0..500).map(|id| doc! { "_id": id, "n": id })).await?;
    }
    let primary = rig.target.primary().await?;
    let secondaries = secondaries(primary);
    rig.target.hold_back(&secondaries, true).await?;
    let mut collector = Collector::start(&rig.config()?)?;
    collector.wait_log("waiting until the target's majority has the copy", PATIENCE).await?;
    everything_copied(&rig).await.with_context(|| collector.log_end())?;
    anyhow::ensure!(!collector.log().contains(HAND_OVER), "done before it is durable:\n{}", collector.log_end());
    rig.target.kill(primary)?;
    rig.target.hold_back(&secondaries, false).await?;
    rig.target.primary().await?;
    rig.target.restart(primary).await?;
    handed_over(&mut collector).await?;
    rig.finish(rig.comparison(), collector, &EXPECTED).await
}

/// Waits until the target's primary has as many documents of each collection as the source.
async fn everything_copied(rig: &Rig) -> Result<()> {
    let (source, target) = (rig.source.client().database("shop"), rig.target.client().database("shop"));
    for name in source.list_collection_names().await? {
        let [from, to] = [&source, &target].map(|database| database.collection::<Document>(&name));
        let wanted = from.count_documents(doc! {}).await?;
        let started = Instant::now();
        while to.count_documents(doc! {}).await? != wanted {
            anyhow::ensure!(started.elapsed() < PATIENCE, "the copy of {name} does not come to its end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(())
}

/// What the lost primary of the source had alone is taken back by the source, so it must never reach the target: only
/// what the majority has is read.
#[tokio::test]
async fn a_source_loses_its_primary_with_writes_that_only_it_had() -> Result<()> {
    let mut rig = Rig::with_members(3, 1).await?;
    // Or the load would wait for the majority that it is to lose.
    let default = doc! { "setDefaultRWConcern": 1, "defaultWriteConcern": { "w": 1 } };
    rig.source.client().database("admin").run_command(default).await?;
    rig.fill(60).await?;
    let mut load = rig.start_load();
    let mut collector = Collector::start(&rig.config()?)?;
    handed_over(&mut collector).await?;
    let done = load.totals().done;
    load.reach(done + 300, PATIENCE).await?;
    let primary = rig.source.primary().await?;
    let secondaries = secondaries(primary);
    rig.source.hold_back(&secondaries, true).await?;
    let probe = doc! { "_id": "taken back" };
    shop(&rig.source).insert_one(probe.clone()).await?;
    let done = load.totals().done;
    load.reach(done + 600, PATIENCE).await?;
    for member in secondaries {
        anyhow::ensure!(!on_member(&rig.source, member, &probe).await?, "member {member} has the write too");
    }
    anyhow::ensure!(shop(&rig.target).find_one(probe.clone()).await?.is_none(), "it was read before it was safe");
    rig.source.kill(primary)?;
    rig.source.hold_back(&secondaries, false).await?;
    rig.source.primary().await?;
    let done = load.totals().done;
    load.reach(done + 600, PATIENCE).await?;
    rig.source.restart(primary).await?;
    load.stop().await?;
    anyhow::ensure!(shop(&rig.source).find_one(probe.clone()).await?.is_none(), "the source took nothing back");
    rig.finish(rig.comparison(), collector, &EXPECTED).await?;
    anyhow::ensure!(shop(&rig.target).find_one(probe).await?.is_none(), "the target has what the source took back");
    Ok(())
}

/// The other two of three members.
fn secondaries(primary: usize) -> [usize; 2] {
    [(primary + 1) % 3, (primary + 2) % 3]
}

fn shop(set: &ReplicaSet) -> Collection<Document> {
    set.client().database("shop").collection("c00")
}

/// Whether a member alone has a document, whatever the majority has.
async fn on_member(set: &ReplicaSet, member: usize, document: &Document) -> Result<bool> {
    let things = set.member_client(member).await?.database("shop").collection::<Document>("c00");
    let nearest = ReadPreference::Nearest { options: None };
    Ok(things.find_one(document.clone()).selection_criteria(nearest.into()).await?.is_some())
}

async fn seen(things: &Collection<Document>, document: &Document) -> Result<()> {
    let started = Instant::now();
    while things.find_one(document.clone()).await?.is_none() {
        anyhow::ensure!(started.elapsed() < PATIENCE, "{document} never came");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
