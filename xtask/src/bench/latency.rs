//! From the source's majority acknowledgement of a write to the moment a reader of the target sees it.
//!
//! Measured from outside, as a user would: the write is acknowledged, then the target is asked again and again
//! until it has the document. First with nothing else to do, one write at a time, then with a thousand other
//! writes a second. The probes are written with majority: a w:1 write of a one-member set waits for the journal's
//! interval of 100 ms before a majority reader may see it at all. The resolution is one round trip to the target, some tenths of a millisecond.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use bson::{Document, doc};
use mongodb::options::WriteConcern;
use oplogue_tests::load::{Load, LoadOptions};
use oplogue_tests::servers::ReplicaSet;

use super::{follow, writes};
use crate::console;

pub(super) async fn run(options: &super::Options, program: &Path) -> Result<()> {
    let (source, target) = tokio::join!(ReplicaSet::single(), ReplicaSet::single());
    let (source, target) = (source?, target?);
    let load = LoadOptions { rate: Some(1_000.0), unique_swaps: false, ..LoadOptions::default() };
    Load::prepare(&source.client(), &load, 50).await?;
    let (_collector, _port) = follow::started(program, &source, &target).await?;
    let alone = probe(&source, &target, options.latency_writes, "alone").await?;
    report("one write at a time", alone);
    let running = Load::start(&source.client(), &load);
    let busy = probe(&source, &target, options.latency_writes, "busy").await?;
    running.stop().await?;
    report("beside 1,000 writes/s", busy);
    Ok(())
}

async fn probe(source: &ReplicaSet, target: &ReplicaSet, writes: u32, label: &str) -> Result<Vec<Duration>> {
    let source = source.client().database(writes::DB).collection("probes");
    let target = target.client().database(writes::DB).collection::<Document>("probes");
    let mut taken = Vec::new();
    for number in 0..writes {
        let id = format!("{label} {number}");
        source.insert_one(doc! { "_id": &id }).write_concern(WriteConcern::majority()).await?;
        let committed = Instant::now();
        while target.find_one(doc! { "_id": &id }).await?.is_none() {
            anyhow::ensure!(committed.elapsed() < Duration::from_secs(60), "a write never arrived");
        }
        taken.push(committed.elapsed());
    }
    Ok(taken)
}

fn report(name: &str, mut taken: Vec<Duration>) {
    taken.sort_unstable();
    let at = |percent: usize| {
        let index = taken.len().saturating_sub(1) * percent / 100;
        taken.get(index).map_or(0.0, |value| value.as_secs_f64() * 1_000.0)
    };
    let line = format!("{name:<28} p50 {:>7.2} ms   p99 {:>7.2} ms   max {:>7.2} ms", at(50), at(99), at(100));
    console::say(&line);
}
