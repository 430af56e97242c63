//! More colliding writes in a replay than the memory budget holds.
//!
//! A crash between two checkpoints replays values of a unique index that have moved to other documents since, so the
//! writes collide until the replay has come to the overlap mark. What waits must not use up the memory that the reading
//! needs to get there: here it is more than twice the smallest budget. The collector is killed once, on purpose at the
//! worst moment.

use anyhow::Result;
use bson::spec::BinarySubtype;
use bson::{Binary, Document, doc};
use mongodb::Collection;
use mongodb::options::IndexOptions;
use oplogue_tests::collector::Collector;
use oplogue_tests::servers::Options;

use super::rig::{PATIENCE, Rig, handed_over, until};

const PAIRS: i32 = 300;
const DOCUMENT_BYTES: usize = 64 << 10;
const OVERLAP_OVER: &str = "overlap is over";

#[tokio::test]
async fn more_is_parked_than_the_budget_holds() -> Result<()> {
    // All of it is settled in one transaction, which must fit into the target's cache.
    let target = Options { cache_gb: 1.0, ..Options::guide_target() };
    let rig = Rig::of(Options::guide_source(), target).await?;
    let source = rig.source.client().database("shop").collection::<Document>("swapped");
    let unique = IndexOptions::builder().unique(true).build();
    source.create_index(mongodb::IndexModel::builder().keys(doc! { "u": 1 }).options(unique).build()).await?;
    for pair in 0..PAIRS {
        source
            .insert_many([
                doc! { "_id": id("a", pair), "u": -pair },
                doc! { "_id": id("b", pair) , "u": 1_000_000 + pair },
            ])
            .await?;
    }
    // After the first one no checkpoint is due before the crash.
    let config = rig.config()?.set("limits.memory_bytes", "16MB").set("checkpoint.interval", 3_600_000);
    let mut collector = Collector::start(&config)?;
    handed_over(&mut collector).await?;
    collector.wait_log(OVERLAP_OVER, PATIENCE).await?;
    let saves = "oplogue_checkpoint_saves_total 1\n";
    until(&collector, "the first checkpoint", async || Ok(collector.get("/metrics").await?.contains(saves))).await?;
    // Each a takes a value, gives it up again, and its b takes it.
    for pair in 0..PAIRS {
        set(&source, "a", pair, pair + 1).await?;
    }
    for pair in 0..PAIRS {
        set(&source, "a", pair, 2_000_000 + pair).await?;
        set(&source, "b", pair, pair + 1).await?;
    }
    applied(&rig, id("b", PAIRS - 1)).await?;
    collector.kill9();
    collector.run()?;
    collector.wait_log_times(OVERLAP_OVER, 2, PATIENCE).await?;
    let page = collector.get("/metrics").await?;
    let parked = page.lines().find_map(|line| line.strip_prefix("oplogue_schedule_parked_changes_total "));
    let parked: i32 = parked.unwrap_or_default().trim().parse()?;
    anyhow::ensure!(parked > PAIRS / 2, "only {parked} writes collided: the test shows nothing");
    // 4.4 rolls back a transaction of this size when its cache is busy just then, and the run tries again.
    let at_once = rig.target.has("a settlement of this size at the first try", (5, 0));
    let allowed: &[&str] = if at_once { &[] } else { &["settle unique keys in a transaction"] };
    rig.finish_at(rig.comparison(), "shop.c00", collector, allowed).await
}

fn id(side: &str, pair: i32) -> String {
    format!("{side}{pair}")
}

async fn set(source: &Collection<Document>, side: &str, pair: i32, u: i32) -> Result<()> {
    let bytes = (0..DOCUMENT_BYTES).map(|at| (at as i32).wrapping_mul(u) as u8).collect();
    let pad = Binary { subtype: BinarySubtype::Generic, bytes };
    source.replace_one(doc! { "_id": id(side, pair) }, doc! { "u": u, "pad": pad }).await?;
    Ok(())
}

/// Waits until the target has the last replacement of a document.
async fn applied(rig: &Rig, id: String) -> Result<()> {
    let target = rig.target.client().database("shop").collection::<Document>("swapped");
    let filter = doc! { "_id": id, "pad": { "$exists": true } };
    let deadline = std::time::Instant::now() + PATIENCE;
    while target.find_one(filter.clone()).await?.is_none() {
        anyhow::ensure!(std::time::Instant::now() < deadline, "the last change never came");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    Ok(())
}
