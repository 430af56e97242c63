//! The faults of the chaos tests, one at a time, drawn from the test's random numbers.
//!
//! The collector dies, primaries step down or freeze, commands fail in every way the servers' own fail point knows,
//! cursors are killed, the network stalls, breaks, or loses the answer to work that was done. What fails is limited
//! to the collector by its application name, so that the workload itself goes on.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use bson::{Document, doc};
use oplogue_tests::collector::Collector;
use oplogue_tests::proxy::Weather;
use oplogue_tests::servers::ReplicaSet;
use rand::Rng as _;
use rand::rngs::StdRng;

use super::super::crash::pause;
use super::super::rig::{Rig, handed_over};

/// What the collector may warn of under these faults.
pub(super) const EXPECTED: [&str; 8] = [
    "the start is tried again",
    "going back to the last durable position",
    "an earlier full sync did not finish",
    "still waiting",
    "an earlier run of this job",
    "the target's majority is late",
    // Transactions that stay whole, but for those with DDL inside and those that meet what stood there.
    "written in parts although incr_sync.transaction = atomic",
    "the target did not take transactions as one",
];

const ON_SOURCE: [&str; 8] =
    ["find", "getMore", "aggregate", "listCollections", "listIndexes", "update", "findAndModify", "hello"];

const ON_TARGET: [&str; 13] = [
    "insert",
    "update",
    "delete",
    "commitTransaction",
    "createIndexes",
    "dropIndexes",
    "create",
    "drop",
    "renameCollection",
    "collMod",
    "listCollections",
    "find",
    "hello",
];

/// Elections, shutdowns, networks, time-outs, interruptions: what passes.
const CODES: [i32; 14] = [6, 7, 89, 91, 112, 189, 262, 9001, 10107, 11600, 11601, 11602, 13435, 13436];

pub(super) struct Faults {
    rig: Rig,
    collector: Collector,
    told: BTreeMap<&'static str, u32>,
}

impl Faults {
    pub(super) fn new(rig: Rig, collector: Collector) -> Self {
        Self { rig, collector, told: BTreeMap::new() }
    }

    /// Waits for the end of the copy.
    pub(super) async fn handed_over(&mut self) -> Result<()> {
        handed_over(&mut self.collector).await
    }

    /// What happened how often.
    pub(super) fn told(&self) -> String {
        format!("{:?}", self.told)
    }

    /// Heals everything and gives back what it worked on.
    pub(super) async fn end(self) -> Result<(Rig, Collector)> {
        self.rig.source.heal_commands().await?;
        self.rig.target.heal_commands().await?;
        Ok((self.rig, self.collector))
    }

    /// One random fault. Most of them last a moment and are over when this returns.
    pub(super) async fn inject(&mut self, rng: &mut StdRng) -> Result<()> {
        anyhow::ensure!(self.collector.is_running()?, "the collector has ended:\n{}", self.collector.log_end());
        let on_source = rng.random::<bool>();
        let name = match rng.random_range(0..100) {
            0..22 => {
                self.collector.kill9();
                pause(rng, 0..300).await;
                self.collector.run()?;
                "kill -9"
            }
            22..32 => {
                self.side(on_source).step_down().await?;
                "step-down"
            }
            32..70 => {
                let commands: &[&str] = if on_source { &ON_SOURCE } else { &ON_TARGET };
                let mode = doc! { "times": rng.random_range(1..4) };
                let data = failure(rng, commands);
                self.side(on_source).fail_command(mode, data).await?;
                "failing command"
            }
            70..76 => {
                let side = if on_source { &mut self.rig.source } else { &mut self.rig.target };
                side.pause(0)?;
                pause(rng, 500..3_000).await;
                side.resume(0)?;
                "frozen primary"
            }
            76..82 => {
                self.rig.source.admin(0, doc! { "killAllSessions": [] }).await?;
                "killed cursors"
            }
            _ => self.network(on_source, rng).await?,
        };
        *self.told.entry(name).or_default() += 1;
        Ok(())
    }

    async fn network(&self, on_source: bool, rng: &mut StdRng) -> Result<&'static str> {
        let proxy = self.side(on_source).proxy(0)?;
        let weather = [Weather::Stalled, Weather::Deaf, Weather::Slow(Duration::from_millis(15))];
        proxy.weather(weather[rng.random_range(0..weather.len())]);
        pause(rng, 100..1_500).await;
        // Deaf and then cut: the work was done and its answer lost.
        let cut = rng.random_ratio(2, 3);
        if cut {
            proxy.cut();
        }
        proxy.weather(Weather::Fair);
        Ok(if cut { "broken network" } else { "bad network" })
    }

    fn side(&self, source: bool) -> &ReplicaSet {
        if source { &self.rig.source } else { &self.rig.target }
    }
}

fn failure(rng: &mut StdRng, commands: &[&str]) -> Document {
    let count = rng.random_range(1..4);
    let commands: Vec<&str> = (0..count).map(|_| commands[rng.random_range(0..commands.len())]).collect();
    let mut data = doc! { "failCommands": commands, "appName": "oplogue" };
    match rng.random_range(0..4) {
        0 => data.extend(doc! { "closeConnection": true }),
        // The work is done, and said to be in doubt.
        1 => data.extend(doc! { "writeConcernError": { "code": 91, "errmsg": "in doubt" } }),
        _ => data.extend(doc! { "errorCode": CODES[rng.random_range(0..CODES.len())] }),
    }
    data
}
