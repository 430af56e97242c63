//! Two collectors in opposite directions between two sets, each dropping what carries the mark of its target.
//!
//! Without the marks the first write would go round for ever. Clients write on both sides: to collections of their
//! own, and to one collection together, in documents of their own (two sides that change one document at once have
//! no common end). Both sides must become equal, also when both collectors are killed, and a change must arrive
//! exactly once: what a side receives is counted against what the other side's clients wrote.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bson::{Document, doc};
use mongodb::Client;
use oplogue_tests::collector::{Collector, PipelineConfig};
use oplogue_tests::compare::{Comparison, report};
use oplogue_tests::load::{Load, LoadOptions, seed};
use oplogue_tests::servers::{Options, ReplicaSet, User};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::crash::{kills, pause};
use super::rig::{PATIENCE, handed_over, until};

const SHARED: &str = "docs";

struct Pair {
    a: ReplicaSet,
    b: ReplicaSet,
}

impl Pair {
    /// Sets whose one user has the rights of both of the guide's.
    async fn start() -> Result<Self> {
        let roles = [("readWriteAnyDatabase", "admin"), ("read", "local"), ("readWrite", "mongoshake")];
        let options = |name: &str| Options {
            name: name.to_owned(),
            users: vec![User::new("both_ways", "both-ways-password", &roles)],
            ..Options::default()
        };
        let (a, b) = tokio::join!(ReplicaSet::start(options("a")), ReplicaSet::start(options("b")));
        Ok(Self { a: a?, b: b? })
    }

    fn config(from: &ReplicaSet, to: &ReplicaSet) -> Result<PipelineConfig> {
        Ok(PipelineConfig::between(from, to)?.by_oplog_only("a change stream does not show the marks of origins"))
    }

    /// From A to B: the full copy, DDL, then incremental.
    fn forward(&self) -> Result<PipelineConfig> {
        let config = Self::config(&self.a, &self.b)?.set("id", "forward").set("filter.ddl_enable", true);
        Ok(config.set("incr_sync.loop_prevention.origin", 1).set("incr_sync.loop_prevention.drop", vec!["2"]))
    }

    /// From B to A: incremental only, without DDL.
    fn backward(&self) -> Result<PipelineConfig> {
        let config = Self::config(&self.b, &self.a)?.set("id", "backward").set("sync_mode", "incr");
        Ok(config.set("incr_sync.loop_prevention.origin", 2).set("incr_sync.loop_prevention.drop", vec!["1"]))
    }

    /// Starts both collectors in the order in which nothing is missed: first the one that only follows.
    async fn join(&self) -> Result<(Collector, Collector)> {
        let mut backward = Collector::start(&self.backward()?)?;
        backward.wait_log("incremental starts", PATIENCE).await?;
        let mut forward = Collector::start(&self.forward()?)?;
        handed_over(&mut forward).await?;
        Ok((forward, backward))
    }

    /// Waits until both directions have delivered everything, and compares.
    async fn assert_equal(&self) -> Result<()> {
        // DDL goes one way only, so B's collections have no indexes on A.
        let comparison = |from: &ReplicaSet, to: &ReplicaSet| {
            Comparison::new(from.client(), to.client()).without_indexes().without_options()
        };
        comparison(&self.b, &self.a).wait("both.docs", PATIENCE).await.context("from B to A")?;
        comparison(&self.a, &self.b).wait("both.docs", PATIENCE).await.context("from A to B")?;
        let found = comparison(&self.b, &self.a).run().await?;
        anyhow::ensure!(found.is_empty(), "{}", report(&found));
        Ok(())
    }

    async fn end(&self, collectors: [Collector; 2]) -> Result<()> {
        for mut collector in collectors {
            let status = collector.terminate(PATIENCE).await?;
            anyhow::ensure!(status.success(), "exit {status}:\n{}", collector.log_end());
            collector.assert_no_unexpected_warnings(&[])?;
        }
        Ok(())
    }
}

/// Writes `operations` to the shared collection, in documents named after the side; inserts, updates in all forms,
/// replacements, deletes and transactions. Returns how many changes the oplog has of it.
async fn write(client: &Client, side: &str, rng: &mut StdRng, operations: u64) -> Result<u64> {
    let shared = client.database("both").collection::<Document>(SHARED);
    let mut changes = 0;
    for number in 0..operations {
        let id = doc! { "_id": format!("{side}-{number}") };
        let known = doc! { "_id": format!("{side}-{}", rng.random_range(0..=number)) };
        match rng.random_range(0..8) {
            0 => changes += shared.delete_one(known).await?.deleted_count,
            1 | 2 => changes += shared.update_one(known, doc! { "$inc": { "n": 1 } }).await?.modified_count,
            3 => {
                let stage = vec![doc! { "$set": { "list": [{ "$literal": { "a.b": number as i64 } }] } }];
                changes += shared.update_one(known, stage).await?.modified_count;
            }
            4 => {
                let whole = doc! { "whole": number as i64 };
                changes += shared.replace_one(known, whole).await?.modified_count;
            }
            5 => {
                let many: Vec<Document> =
                    (0..20).map(|at| doc! { "_id": format!("{side}-{number}-{at}"), "n": 0 }).collect();
                changes += shared.insert_many(many).await?.inserted_ids.len() as u64;
            }
            6 => {
                let mut session = client.start_session().await?;
                session.start_transaction().await?;
                shared.insert_one(id).session(&mut session).await?;
                changes += 1 + shared.delete_one(known).session(&mut session).await?.deleted_count;
                session.commit_transaction().await?;
            }
            _ => {
                shared.insert_one(doc! { "_id": format!("{side}-{number}"), "n": 0 }).await?;
                changes += 1;
            }
        }
    }
    Ok(changes)
}

/// The value of a series in the monitor's text; 0 where it has none.
fn series(metrics: &str, name: &str) -> u64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.trim().parse::<f64>().ok()).map_or(0, |value| value as u64)
}

#[tokio::test]
async fn every_change_arrives_once_and_none_goes_round() -> Result<()> {
    let pair = Pair::start().await?;
    pair.a.client().database("both").create_collection(SHARED).await?;
    let (forward, backward) = pair.join().await?;
    let seed = seed();
    let (mut at_a, mut at_b) = (StdRng::seed_from_u64(seed), StdRng::seed_from_u64(!seed));
    let (of_a, of_b) = (pair.a.client(), pair.b.client());
    let (of_a, of_b) = tokio::join!(write(&of_a, "a", &mut at_a, 600), write(&of_b, "b", &mut at_b, 600));
    let (of_a, of_b) = (of_a?, of_b?);
    pair.assert_equal().await.with_context(|| format!("seed {seed}\n{}", forward.log_end()))?;
    // The sentinels of the comparison were client writes too, one on each side.
    for (collector, written, from_other) in [(&forward, of_a + 1, of_b + 1), (&backward, of_b + 1, of_a + 1)] {
        let accepted = "oplogue_sink_accepted_changes_total";
        // Counted a moment after the target has it.
        let counted = async || Ok(series(&collector.get("/metrics").await?, accepted) >= written);
        until(collector, "the last change is counted", counted).await?;
        let metrics = collector.get("/metrics").await?;
        let arrived = series(&metrics, accepted);
        assert_eq!(arrived, written, "seed {seed}: changes that arrived and changes that clients wrote");
        let dropped = series(&metrics, "oplogue_decode_dropped_entries_total{reason=\"looped\"}");
        assert!(dropped > 0 && dropped <= from_other, "seed {seed}: {dropped} of {from_other} came back");
    }
    pair.end([forward, backward]).await
}

#[tokio::test]
async fn both_sides_end_equal_under_load_with_both_collectors_killed() -> Result<()> {
    let pair = Pair::start().await?;
    let seed = seed();
    let options = |namespaces: &[&str], unique_swaps| LoadOptions {
        seed,
        namespaces: namespaces.iter().map(|name| (*name).to_owned()).collect(),
        workers: 2,
        rate: Some(400.0),
        unique_swaps,
        ..LoadOptions::default()
    };
    let load_a = options(&["shop.c00", "shop.c01", "stock.s0"], true);
    let load_b = options(&["depot.c00", "depot.c01"], false);
    pair.a.client().database("both").create_collection(SHARED).await?;
    Load::prepare(&pair.a.client(), &load_a, 300).await?;
    let (mut forward, mut backward) = pair.join().await?;
    Load::prepare(&pair.b.client(), &load_b, 100).await?;
    let (on_a, on_b) = (Load::start(&pair.a.client(), &load_a), Load::start(&pair.b.client(), &load_b));
    let mut rng = StdRng::seed_from_u64(seed);
    for kill in 0..kills() {
        let (mut at_a, mut at_b) = (StdRng::seed_from_u64(rng.random()), StdRng::seed_from_u64(rng.random()));
        let (of_a, of_b) = (pair.a.client(), pair.b.client());
        let names = (format!("a{kill}"), format!("b{kill}"));
        let writing =
            async { tokio::join!(write(&of_a, &names.0, &mut at_a, 60), write(&of_b, &names.1, &mut at_b, 60)) };
        let killing = async {
            pause(&mut rng, 100..1_500).await;
            let which = kill % 3;
            for (collector, hit) in [(&mut forward, which != 1), (&mut backward, which != 0)] {
                if hit {
                    anyhow::ensure!(collector.is_running()?, "seed {seed}:\n{}", collector.log_end());
                    collector.kill9();
                    collector.run()?;
                }
            }
            Ok(())
        };
        let ((of_a, of_b), killed) = tokio::join!(writing, killing);
        of_a?;
        of_b?;
        killed?;
    }
    on_a.stop().await?;
    on_b.stop().await?;
    let logs = || format!("seed {seed}\nforward:\n{}\nbackward:\n{}", forward.log_end(), backward.log_end());
    pair.assert_equal().await.with_context(logs)?;
    assert_silent(&pair).await.with_context(|| format!("seed {seed}"))?;
    pair.end([forward, backward]).await
}

/// Nothing is being written any more on either side, beyond the servers' own and the collectors' bookkeeping. What still
/// waited for a mark, such as an index, may come; what goes round never ends.
async fn assert_silent(pair: &Pair) -> Result<()> {
    let started = Instant::now();
    loop {
        let before = (newest_write(&pair.a).await?, newest_write(&pair.b).await?);
        tokio::time::sleep(Duration::from_secs(5)).await;
        let after = (newest_write(&pair.a).await?, newest_write(&pair.b).await?);
        if before == after {
            return Ok(());
        }
        anyhow::ensure!(started.elapsed() < Duration::from_secs(60), "still written to: {after:?}");
    }
}

async fn newest_write(set: &ReplicaSet) -> Result<Option<Document>> {
    let filter = doc! { "op": { "$ne": "n" }, "ns": { "$not": { "$regex": "^(mongoshake|config|admin)" } } };
    let oplog = set.client().database("local").collection::<Document>("oplog.rs");
    Ok(oplog.find_one(filter).sort(doc! { "$natural": -1 }).await?)
}
