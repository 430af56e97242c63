//! Catching up on the same oplog: the collector against a native secondary of the source.
//!
//! Both are held while the writes happen, the secondary by the server's own fail point, the collector by its `Pause`,
//! so neither is measured while the source is busy with them. Then one after the other is let go. Rounds
//! alternate, and the secondary's own spread is the noise. The secondary writes a journal and an oplog of its own,
//! as the target of the collector does. In each round the bare driver reads the same entries too and drops them: what
//! the collector uses beyond that is its own.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bson::{Document, Timestamp, doc};
use futures_util::TryStreamExt as _;
use mongodb::Client;
use mongodb::options::RunCursorCommandOptions;
use oplogue_tests::collector::{Collector, HAND_OVER, PipelineConfig, http_post};
use oplogue_tests::compare::Comparison;
use oplogue_tests::servers::{Options as SetOptions, ReplicaSet, free_port};

use super::profile;
use super::table::{self, Row};
use super::usage;
use super::writes::{self, Writer};

const PATIENCE: Duration = Duration::from_secs(600);

/// Entries of a reply that the bare driver asks for: the collector's default.
const REPLY_ENTRIES: u32 = 1_024;

/// The member that follows natively.
const SECONDARY: usize = 1;

pub(super) async fn run(options: &super::Options, program: &Path, collections: u32) -> Result<()> {
    let parameters = vec![("enableFlowControl".to_owned(), "false".to_owned())];
    let source = SetOptions { members: 2, non_voting: 1, cache_gb: 0.5, parameters, ..SetOptions::default() };
    let target = SetOptions { cache_gb: 0.5, ..SetOptions::default() };
    let (source, target) = tokio::join!(ReplicaSet::start(source), ReplicaSet::start(target));
    let (source, target) = (source?, target?);
    let mut writer = Writer::start(&source.client(), collections).await?;
    let profile_port = if options.profile { Some(free_port()?) } else { None };
    let (collector, port) = started_with(program, &source, &target, profile_port).await?;
    let mut race = Race { source, target, collector, port, profile_port, serial: 0 };
    race.pass_sentinel().await?;
    let mut rows = Vec::new();
    for round in 1..=options.rounds {
        race.hold().await?;
        let from = last_applied(&race.source.client()).await?;
        let items = writer.write(options.operations).await?;
        race.write_sentinel().await?;
        rows.push(race.native(items, round).await?);
        rows.push(race.driver(from, items, round).await?);
        rows.push(race.collector(items, round).await?);
    }
    table::print(&rows);
    let comparison = Comparison::new(race.source.client(), race.target.client());
    comparison.wait(&format!("{}.c0", writes::DB), PATIENCE).await?;
    race.collector.assert_no_unexpected_warnings(&["retry", "reconnect", "connection"])
}

/// Starts a collector in `sync_mode = all` and waits for the hand-over.
pub(super) async fn started(program: &Path, source: &ReplicaSet, target: &ReplicaSet) -> Result<(Collector, u16)> {
    started_with(program, source, target, None).await
}

async fn started_with(
    program: &Path,
    source: &ReplicaSet,
    target: &ReplicaSet,
    profile_port: Option<u16>,
) -> Result<(Collector, u16)> {
    let config = PipelineConfig::between(source, target)?;
    let config = config.set("system_profile_port", i64::from(profile_port.unwrap_or_default()));
    let port = config.incr_port().context("the status server has a port")?;
    let mut collector = Collector::start_program(program, &config)?;
    collector.wait_log(HAND_OVER, PATIENCE).await?;
    Ok((collector, port))
}

struct Race {
    source: ReplicaSet,
    target: ReplicaSet,
    collector: Collector,
    /// The collector's status server.
    port: u16,
    /// The collector's profiler, where it is to be asked.
    profile_port: Option<u16>,
    serial: i64,
}

impl Race {
    async fn hold(&self) -> Result<()> {
        self.source.fail_point(SECONDARY, "stopReplProducer", "alwaysOn", doc! {}).await?;
        self.pause(true).await
    }

    async fn pause(&self, pause: bool) -> Result<()> {
        let body = format!("{{\"Pause\": {pause}}}");
        http_post(self.port, "/sentinel/options", &body).await.map(|_| ())
    }

    async fn write_sentinel(&mut self) -> Result<()> {
        self.serial += 1;
        let sentinel = doc! { "_id": format!("sentinel {}", self.serial) };
        self.source.client().database(writes::DB).collection("c0").insert_one(sentinel).await?;
        Ok(())
    }

    async fn pass_sentinel(&mut self) -> Result<()> {
        self.write_sentinel().await?;
        self.wait_sentinel().await
    }

    async fn wait_sentinel(&self) -> Result<()> {
        let target = self.target.client().database(writes::DB).collection::<Document>("c0");
        let filter = doc! { "_id": format!("sentinel {}", self.serial) };
        let started = Instant::now();
        while target.find_one(filter.clone()).await?.is_none() {
            anyhow::ensure!(started.elapsed() < PATIENCE, "no catch-up:\n{}", self.collector.log_end());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    async fn native(&self, items: u32, round: u32) -> Result<Row> {
        let goal = last_applied(&self.source.client()).await?;
        let secondary = self.source.member_client(SECONDARY).await?;
        let before = last_applied(&secondary).await?;
        let pid = self.source.pid(SECONDARY).context("the secondary runs")?;
        let earlier = usage::of(pid)?;
        self.source.fail_point(SECONDARY, "stopReplProducer", "off", doc! {}).await?;
        // The producer sleeps up to a second under its fail point: count from its first progress.
        let mut started = Instant::now();
        let patience = Instant::now() + PATIENCE;
        let mut moved = false;
        loop {
            let now = last_applied(&secondary).await?;
            if !moved && now == before {
                started = Instant::now();
            }
            moved |= now != before;
            if now >= goal {
                break;
            }
            anyhow::ensure!(Instant::now() < patience, "the secondary does not catch up");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let used = usage::Usage { peak_mb: None, ..usage::of(pid)?.since(earlier) };
        let name = format!("native secondary, round {round}");
        // The secondary is both at once: what reads, and the server that is written to.
        let took = started.elapsed();
        Ok(Row { name, items, took, bytes: None, usage: Some(used), target: Some(used) })
    }

    /// Reads what the collector is about to read, as it reads it, and does nothing with it.
    async fn driver(&self, from: Timestamp, items: u32, round: u32) -> Result<Row> {
        let local = self.source.client().database("local");
        let find = doc! { "find": "oplog.rs", "filter": { "ts": { "$gte": from } }, "batchSize": REPLY_ENTRIES };
        let options = RunCursorCommandOptions::builder().batch_size(REPLY_ENTRIES).build();
        let (started, earlier) = (Instant::now(), usage::of(std::process::id())?);
        let mut cursor = local.run_cursor_command(find).with_options(options).batch().await?;
        while cursor.try_next().await?.is_some() {}
        let took = started.elapsed();
        let usage = usage::Usage { peak_mb: None, ..usage::of(std::process::id())?.since(earlier) };
        let name = format!("bare driver reads, round {round}");
        Ok(Row { name, items, took, bytes: None, usage: Some(usage), target: None })
    }

    async fn collector(&self, items: u32, round: u32) -> Result<Row> {
        let pid = self.collector.pid().context("the collector runs")?;
        let target = self.target.pid(0).context("the target runs")?;
        let (earlier, target_earlier) = (usage::of(pid)?, usage::of(target)?);
        let profiled = tokio::time::timeout(PATIENCE, profile::take(self.profile_port));
        let started = Instant::now();
        let caught_up = async {
            self.pause(false).await?;
            self.wait_sentinel().await?;
            anyhow::Ok(started.elapsed())
        };
        let (took, profiled) = tokio::join!(caught_up, profiled);
        let took = took?;
        profiled.context("the profiler does not answer")??;
        let used = usage::of(pid)?.since(earlier);
        let target = Some(usage::of(target)?.since(target_earlier));
        Ok(Row { name: format!("oplogue, round {round}"), items, took, bytes: None, usage: Some(used), target })
    }
}

async fn last_applied(client: &Client) -> Result<Timestamp> {
    let hello = client.database("admin").run_command(doc! { "hello": 1 }).await?;
    let time = hello.get_document("lastWrite")?.get_document("opTime")?.get_timestamp("ts")?;
    Ok(time)
}
