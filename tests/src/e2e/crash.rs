//! kill -9 at random moments, and equality after it.
//!
//! A crash must cost nothing but repeated work, wherever it falls: in the copy, at the hand-over, in the
//! incremental phase. The moments come from the seed. `OPLOGUE_KILLS` says how often (8 by default, 50 in the
//! long run). The collector is restarted with the same configuration and no help.

use std::time::Duration;

use anyhow::Result;
use oplogue_tests::collector::{Collector, HAND_OVER};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::rig::{PATIENCE, Rig};

/// How often this run kills.
pub(super) fn kills() -> usize {
    std::env::var("OPLOGUE_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(8)
}

#[tokio::test]
async fn killed_in_the_copy_at_the_hand_over_and_after() -> Result<()> {
    let rig = Rig::start().await?;
    rig.fill(1_500).await?;
    let mut rng = StdRng::seed_from_u64(rig.load.seed);
    let load = rig.start_load();
    let mut collector = Collector::start(&rig.config()?)?;
    for kill in 0..kills() {
        // Thirds: early in a start, close to the hand-over when there is one to come, any time later.
        match kill % 3 {
            0 => pause(&mut rng, 20..400).await,
            1 if !collector.log().contains(HAND_OVER) => {
                collector.wait_log(HAND_OVER, PATIENCE).await?;
                pause(&mut rng, 0..60).await;
            }
            _ => pause(&mut rng, 300..2_000).await,
        }
        anyhow::ensure!(collector.is_running()?, "seed {}:\n{}", rig.load.seed, collector.log_end());
        collector.kill9();
        collector.run()?;
    }
    load.stop().await?;
    rig.finish(rig.comparison(), collector, &[]).await
}

/// A random moment is what the test is about; nothing is synchronised by this.
pub(super) async fn pause(rng: &mut StdRng, millis: std::ops::Range<u64>) {
    tokio::time::sleep(Duration::from_millis(rng.random_range(millis))).await;
}
