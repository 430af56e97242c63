//! Many documents that pass unique values round without a pause, under every kind of unique index.
//!
//! Whatever order the lanes write in, some of these writes collide on the target though they never did on the source:
//! in the overlap after every kill, and after the mark, where two lanes meet. They must be settled again and again
//! without standing in each other's way, other collections must go on meanwhile, and both sides must be equal at the
//! end. That the values collided at all is counted, or the test would show nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context as _, Result};
use bson::{Bson, Document, doc};
use mongodb::options::{Collation, CollationStrength, IndexOptions};
use mongodb::{Client, Collection, IndexModel};
use oplogue_tests::collector::Collector;
use rand::rngs::StdRng;
use rand::seq::index::sample;
use rand::{Rng as _, SeedableRng as _};
use tokio::task::JoinSet;

use super::crash::{kills, pause};
use super::rig::{PATIENCE, Rig, handed_over, until};

/// Documents of a collection; few, so that they meet often.
const DOCUMENTS: i32 = 24;

/// The kinds of unique indexes; the name is the collection's.
const KINDS: [&str; 6] = ["plain", "compound", "partial", "sparse", "collated", "array"];

fn index(kind: &str) -> IndexModel {
    let unique = IndexOptions::builder().unique(true).build();
    let (keys, options) = match kind {
        "compound" => (doc! { "a": 1, "u": -1 }, unique),
        "partial" => {
            let active = doc! { "active": true };
            (doc! { "u": 1 }, IndexOptions::builder().unique(true).partial_filter_expression(active).build())
        }
        "sparse" => (doc! { "u": 1 }, IndexOptions::builder().unique(true).sparse(true).build()),
        "collated" => {
            let blind = Collation::builder().locale("en").strength(CollationStrength::Secondary).build();
            (doc! { "u": 1 }, IndexOptions::builder().unique(true).collation(blind).build())
        }
        _ => (doc! { "u": 1 }, unique),
    };
    IndexModel::builder().keys(keys).options(options).build()
}

/// A value of the index that no other number gives.
fn value(kind: &str, number: i64) -> Bson {
    match kind {
        "collated" if number % 2 == 0 => Bson::String(format!("Value {number}")),
        "collated" => Bson::String(format!("vALUE {number}")),
        "array" => Bson::Array(vec![Bson::Int64(number), Bson::Int64(-number - 1)]),
        _ => Bson::Int64(number),
    }
}

fn collection(client: &Client, kind: &str) -> Collection<Document> {
    client.database("swap").collection(kind)
}

async fn prepare(client: &Client) -> Result<()> {
    for kind in KINDS {
        let collection = collection(client, kind);
        collection.create_index(index(kind)).await?;
        let document = |n: i32| doc! { "_id": n, "a": 1, "u": value(kind, i64::from(n)), "active": true, "v": 0 };
        collection.insert_many((0..DOCUMENTS).map(document)).await?;
    }
    Ok(())
}

/// Passes the values of two or three documents round, one update after the other: the first steps aside, so that the
/// source never has a value twice.
async fn rotate(client: &Client, kind: &str, rng: &mut StdRng, serial: i64) -> Result<u64> {
    let collection = collection(client, kind);
    let length = rng.random_range(2..4);
    let ids = sample(rng, DOCUMENTS as usize, length).into_vec();
    let mut values = Vec::new();
    for id in &ids {
        let found = collection.find_one(doc! { "_id": *id as i32 }).await?;
        values.push(found.and_then(|document| document.get("u").cloned()).unwrap_or(value(kind, 1_000_000 + serial)));
    }
    values.rotate_left(1);
    let set = |id: usize, u: Bson| {
        (doc! { "_id": id as i32 }, doc! { "$set": { "a": 1, "u": u, "active": true }, "$inc": { "v": 1 } })
    };
    let mut steps = vec![set(ids[0], value(kind, 2_000_000 + serial))];
    match (kind, serial % 5) {
        // A document may also leave its value by leaving the index, or by going.
        ("partial", 0) => steps[0].1 = doc! { "$set": { "active": false } },
        ("sparse", 0) => steps[0].1 = doc! { "$unset": { "u": "" } },
        _ => {}
    }
    // Each takes what the one after it has just given up.
    for (id, u) in ids.iter().zip(&values).skip(1).rev() {
        steps.push(set(*id, u.clone()));
    }
    steps.push(set(ids[0], values[0].clone()));
    let count = steps.len() as u64;
    if serial % 7 == 0 {
        collection.delete_one(doc! { "_id": ids[0] as i32 }).await?;
        steps.remove(0);
    }
    if serial % 3 == 0 {
        let mut session = client.start_session().await?;
        session.start_transaction().await?;
        for (filter, update) in steps {
            collection.update_one(filter, update).upsert(true).session(&mut session).await?;
        }
        session.commit_transaction().await?;
    } else {
        for (filter, update) in steps {
            collection.update_one(filter, update).upsert(true).await?;
        }
    }
    Ok(count)
}

/// One writer a collection, until told to stop.
struct Swaps {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    tasks: JoinSet<Result<()>>,
}

impl Swaps {
    fn start(client: &Client, seed: u64) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut tasks = JoinSet::new();
        for (at, kind) in KINDS.into_iter().enumerate() {
            let (client, stop, done) = (client.clone(), Arc::clone(&stop), Arc::clone(&done));
            let mut rng = StdRng::seed_from_u64(seed.wrapping_add(at as u64));
            tasks.spawn(async move {
                let mut serial = 0;
                while !stop.load(Ordering::Relaxed) {
                    serial += 1;
                    let steps = rotate(&client, kind, &mut rng, serial).await.with_context(|| kind.to_owned())?;
                    done.fetch_add(steps, Ordering::Relaxed);
                }
                Ok(())
            });
        }
        Self { stop, done, tasks }
    }

    async fn reach(&mut self, more: u64) -> Result<()> {
        let (started, goal) = (std::time::Instant::now(), self.done.load(Ordering::Relaxed) + more);
        while self.done.load(Ordering::Relaxed) < goal {
            if let Some(ended) = self.tasks.try_join_next() {
                ended??;
            }
            anyhow::ensure!(started.elapsed() < PATIENCE, "the swaps stand still");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        Ok(())
    }

    async fn stop(mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended??;
        }
        Ok(())
    }
}

/// The value of a counter in the monitor's text.
async fn counter(collector: &Collector, name: &str) -> Result<u64> {
    let text = collector.get("/metrics").await?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
    Ok(line.trim().parse()?)
}

/// A write to another collection arrives while the swaps go on.
async fn others_go_on(rig: &Rig, collector: &Collector) -> Result<()> {
    let of = |client: Client| client.database("shop").collection::<Document>("beside");
    let marker = doc! { "_id": bson::oid::ObjectId::new() };
    of(rig.source.client()).insert_one(marker.clone()).await?;
    let target = of(rig.target.client());
    until(collector, "others go on", async || Ok(target.find_one(marker.clone()).await?.is_some())).await
}

#[tokio::test]
async fn values_that_go_round_are_settled_while_everything_else_goes_on() -> Result<()> {
    let mut rig = Rig::start().await?;
    rig.load.rate = Some(300.0);
    rig.load.unique_swaps = false;
    prepare(&rig.source.client()).await?;
    rig.fill(60).await?;
    let load = rig.start_load();
    let mut swaps = Swaps::start(&rig.source.client(), rig.load.seed);
    let mut collector = Collector::start(&rig.config()?)?;
    handed_over(&mut collector).await?;
    swaps.reach(1_500).await?;
    others_go_on(&rig, &collector).await?;
    let mut rng = StdRng::seed_from_u64(rig.load.seed);
    for _ in 0..kills().div_ceil(2) {
        pause(&mut rng, 300..2_500).await;
        anyhow::ensure!(collector.is_running()?, "seed {}:\n{}", rig.load.seed, collector.log_end());
        collector.kill9();
        collector.run()?;
    }
    collector.wait_log("overlap is over", PATIENCE).await?;
    others_go_on(&rig, &collector).await?;
    swaps.reach(1_500).await?;
    others_go_on(&rig, &collector).await?;
    load.stop().await?;
    swaps.stop().await?;
    let parked = counter(&collector, "oplogue_schedule_parked_changes_total").await?;
    assert!(parked > 0, "seed {}: nothing collided", rig.load.seed);
    rig.finish(rig.comparison(), collector, &[]).await
}

#[tokio::test]
async fn with_auto_a_collection_that_collides_too_often_goes_on_in_one_lane() -> Result<()> {
    let rig = Rig::start().await?;
    prepare(&rig.source.client()).await?;
    rig.source.client().database("shop").create_collection("c00").await?;
    let mut collector = Collector::start(&rig.config()?.set("incr_sync.shard_key", "auto"))?;
    handed_over(&mut collector).await?;
    collector.wait_log("overlap is over", PATIENCE).await?;
    let mut swaps = Swaps::start(&rig.source.client(), rig.load.seed);
    collector.wait_log_times("written in one lane from now on", 1, PATIENCE).await?;
    swaps.reach(500).await?;
    swaps.stop().await?;
    rig.finish(rig.comparison(), collector, &[]).await
}
