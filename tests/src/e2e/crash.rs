//! kill -9 in every phase of a job, and equality after it.
//!
//! A crash must cost nothing but repeated work, wherever it falls. A job passes each phase once, so every round has
//! servers of its own and kills once in each: in the copy, at the hand-over, in the incremental phase and while a plugin
//! is swapped. Where inside a phase is drawn from the seed; which phase it was is told by the stored checkpoint, printed
//! and asserted. `OPLOGUE_KILLS` says how often (8 by default, 50 in the long run). The collector is restarted with the
//! same configuration and no help.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bson::{Document, doc};
use oplogue_tests::collector::Collector;
use oplogue_tests::example::MaskField;
use oplogue_tests::load::Load;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::rig::{PATIENCE, Rig, handed_over};
use super::swap;

/// Reads of the copy take that long, so that a moment can be chosen in it.
const SLOW_READ_MS: i32 = 40;

/// Kills of one round: one in each phase.
const PHASES: usize = 4;

/// How often this run kills.
pub(super) fn kills() -> usize {
    std::env::var("OPLOGUE_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(8)
}

#[tokio::test]
async fn killed_in_the_copy_at_the_hand_over_after_it_and_in_a_swap() -> Result<()> {
    let seed = oplogue_tests::seed::seed();
    let mut rng = StdRng::seed_from_u64(seed);
    for round in 0..kills().div_ceil(PHASES) {
        one_round(round, &mut rng).await.with_context(|| format!("seed {seed}, round {round}"))?;
    }
    Ok(())
}

/// A job from its first start on, killed once in each phase.
async fn one_round(round: usize, rng: &mut StdRng) -> Result<()> {
    let mut rig = Rig::start().await?;
    rig.load.seed = rng.random();
    rig.fill(500).await?;
    let plugin = MaskField::install(rig.source.dir())?;
    let mut load = rig.start_load();
    slow_reads(&rig, "alwaysOn").await?;
    let mut job = Job { collector: Collector::start(&plugin.join(rig.config()?))?, rig: &rig, round, overlaps: 0 };

    job.collector.wait_log("full sync is planned", PATIENCE).await?;
    pause(rng, 0..600).await;
    job.kill("in the copy", "full-sync").await?;
    job.collector.wait_log("an earlier full sync did not finish", PATIENCE).await?;
    job.collector.wait_log_times("full sync is planned", 2, PATIENCE).await?;
    // Incremental begins with the question who else writes to the target, and that is not answered before the kill.
    let unanswered =
        doc! { "failCommands": ["aggregate"], "blockConnection": true, "blockTimeMS": 2_000, "appName": "oplogue" };
    rig.target.fail_command("alwaysOn", unanswered).await?;
    slow_reads(&rig, "off").await?;

    handed_over(&mut job.collector).await?;
    pause(rng, 0..60).await;
    job.kill("at the hand-over", "catch-up").await?;
    rig.target.heal_commands().await?;

    job.reach_incremental(&mut load).await?;
    pause(rng, 0..1_500).await;
    job.kill("in the incremental phase", "incremental").await?;

    job.reach_incremental(&mut load).await?;
    let swapped = job.swaps();
    plugin.put(2)?;
    // The file is looked at some time after it has changed; every other kill comes when the new version just runs.
    if round.is_multiple_of(2) {
        pause(rng, 0..300).await;
    } else {
        job.collector.wait_log_times(SWAPPED, swapped + 1, PATIENCE).await?;
    }
    let when = if job.swaps() > swapped { "just after a swap" } else { "in a swap" };
    job.kill(when, "incremental").await?;

    let done = load.totals().done;
    load.reach(done + 300, PATIENCE).await?;
    load.stop().await?;
    let Job { collector, .. } = job;
    swap::finish(&rig, collector, &["an earlier full sync did not finish"]).await
}

const OVERLAP_OVER: &str = "overlap is over";

const SWAPPED: &str = "plugin swapped";

struct Job<'a> {
    collector: Collector,
    rig: &'a Rig,
    round: usize,
    /// How often an overlap had come to its end when the job was started last.
    overlaps: usize,
}

impl Job<'_> {
    /// Kills, makes sure that it came in the phase that was meant, and starts again.
    async fn kill(&mut self, phase: &str, expected: &str) -> Result<()> {
        anyhow::ensure!(self.collector.is_running()?, "it ended by itself:\n{}", self.collector.log_end());
        self.collector.kill9();
        let stage = self.stage().await?;
        println!("round {}: killed {phase}, the stored stage is {stage}", self.round);
        anyhow::ensure!(stage == expected, "not killed {phase}: {stage}\n{}", self.collector.log_end());
        self.overlaps = self.collector.log().matches(OVERLAP_OVER).count();
        self.collector.run()
    }

    /// The phase that a restart would find.
    async fn stage(&self) -> Result<String> {
        let stored = self.rig.source.client().database("mongoshake").collection::<Document>("ckpt_default");
        let stored = stored.find_one(doc! { "format": "oplogue" }).await?;
        let stage = stored.as_ref().and_then(|stored| stored.get_str("stage").ok());
        Ok(stage.unwrap_or("none").to_owned())
    }

    /// Waits until the present run has left the overlap behind and the stored phase says so, with the load going on.
    async fn reach_incremental(&mut self, load: &mut Load) -> Result<()> {
        self.collector.wait_log_times(OVERLAP_OVER, self.overlaps + 1, PATIENCE).await?;
        let started = Instant::now();
        while self.stage().await? != "incremental" {
            anyhow::ensure!(started.elapsed() < PATIENCE, "no checkpoint:\n{}", self.collector.log_end());
            anyhow::ensure!(self.collector.is_running()?, "it ended by itself:\n{}", self.collector.log_end());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let done = load.totals().done;
        load.reach(done + 200, PATIENCE).await
    }

    fn swaps(&self) -> usize {
        self.collector.log().matches(SWAPPED).count()
    }
}

async fn slow_reads(rig: &Rig, mode: &str) -> Result<()> {
    let data = doc! {
        "failCommands": ["find", "getMore"],
        "blockConnection": true,
        "blockTimeMS": SLOW_READ_MS,
        "appName": "oplogue",
    };
    rig.source.fail_command(mode, data).await
}

/// A random moment is what the test is about; nothing is synchronised by this.
pub(super) async fn pause(rng: &mut StdRng, millis: std::ops::Range<u64>) {
    tokio::time::sleep(Duration::from_millis(rng.random_range(millis))).await;
}
