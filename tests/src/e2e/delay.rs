//! A delay that holds back more than the memory budget: reading pauses, and what the pause breaks is mended.
//!
//! The budget is the smallest that is allowed and the source is ahead by three times as much, so the reading must stop
//! until the first changes are old enough. Meanwhile the server's cursor is taken away, as a server does with one that is
//! idle for long, and the collector is killed. That no change comes before its time is watched on the target all the while;
//! nothing is measured with a stop-watch but the age of documents, by the one clock of this machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bson::spec::BinarySubtype;
use bson::{Binary, Bson, DateTime, Document, doc};
use futures_util::TryStreamExt as _;
use mongodb::{Client, Collection};
use oplogue_tests::collector::Collector;
use tokio::task::JoinSet;

use super::rig::{PATIENCE, Rig, handed_over};

const DELAY_S: i64 = 60;
const BUDGET: u64 = 16 << 20;
const DOCUMENTS: i32 = 1_500;
const DOCUMENT_BYTES: usize = 64 << 10;

/// What the process may have held at most: the budget, and generously what it needs without any data.
const PEAK_MAX: u64 = BUDGET + (160 << 20);

const REOPENED: &str = "the source's cursor is opened again";

#[tokio::test]
async fn a_delay_beyond_the_budget_loses_its_cursor_and_its_process() -> Result<()> {
    let rig = Rig::start().await?;
    let source = rig.source.client().database("shop").collection::<Document>("late");
    source.insert_one(doc! { "_id": -1, "at": DateTime::from_millis(0) }).await?;
    let config = rig.config()?.by_oplog_only("the cursors that are taken away are the ones on the oplog");
    let config = config.set("limits.memory_bytes", "16MB").set("incr_sync.target_delay", DELAY_S);
    let mut collector = Collector::start(&config)?;
    handed_over(&mut collector).await?;
    let watch = Watch::start(&rig.target.client());
    write_ahead(&source).await?;

    paused(&collector).await?;
    kill_oplog_cursors(&rig.source.client()).await?;
    anyhow::ensure!(peak_bytes(&collector)? < PEAK_MAX, "{} bytes", peak_bytes(&collector)?);
    collector.kill9();
    collector.run()?;
    paused(&collector).await?;
    kill_oplog_cursors(&rig.source.client()).await?;
    collector.wait_log(REOPENED, PATIENCE).await?;

    let last = doc! { "_id": DOCUMENTS - 1 };
    let target = rig.target.client().database("shop").collection::<Document>("late");
    let deadline = Instant::now() + PATIENCE;
    while target.find_one(last.clone()).await?.is_none() {
        anyhow::ensure!(Instant::now() < deadline, "the last change never came:\n{}", collector.log_end());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let peak = peak_bytes(&collector)?;
    anyhow::ensure!(peak < PEAK_MAX, "the process held {peak} bytes");
    watch.stop().await?;
    rig.finish_at(rig.comparison(), "shop.late", collector, &[]).await
}

/// Writes more than the budget holds, each document with the time before its write.
async fn write_ahead(source: &Collection<Document>) -> Result<()> {
    let pad = |n: i32| {
        let bytes = (0..DOCUMENT_BYTES).map(|at| (at as i32).wrapping_mul(n) as u8).collect();
        Binary { subtype: BinarySubtype::Generic, bytes }
    };
    for from in (0..DOCUMENTS).step_by(20) {
        let at = DateTime::now();
        let documents = (from..from + 20).map(|n| doc! { "_id": n, "at": at, "pad": pad(n) });
        source.insert_many(documents).await?;
    }
    Ok(())
}

/// Waits until the collector has read what the budget holds and not more, although there is more.
async fn paused(collector: &Collector) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(DELAY_S.unsigned_abs());
    let written = DOCUMENTS as u64 * DOCUMENT_BYTES as u64;
    let mut before = 0;
    loop {
        // The port may not listen yet.
        let page = collector.get("/metrics").await.unwrap_or_default();
        let read = metric(&page, "oplogue_source_read_bytes_total").unwrap_or_default();
        let held = metric(&page, "oplogue_budget_held_bytes").unwrap_or_default();
        if read == before && held > BUDGET / 2 {
            anyhow::ensure!(read < written, "all {read} bytes were read");
            return Ok(());
        }
        before = read;
        anyhow::ensure!(Instant::now() < deadline, "no pause; read {read}, held {held}:\n{}", collector.log_end());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

fn metric(page: &str, name: &str) -> Option<u64> {
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    Some(line.trim().parse::<f64>().ok()? as u64)
}

/// Takes the cursors on the oplog away, as the server does with a cursor that nobody asks for ten minutes.
async fn kill_oplog_cursors(source: &Client) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    // The one that reads may just be at work, and idle in a moment.
    let ids = loop {
        let ids = idle_oplog_cursors(source).await?;
        if !ids.is_empty() {
            break ids;
        }
        anyhow::ensure!(Instant::now() < deadline, "the source has no idle cursor on its oplog");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let reply = source.database("local").run_command(doc! { "killCursors": "oplog.rs", "cursors": &ids }).await?;
    anyhow::ensure!(reply.get_array("cursorsKilled")?.len() == ids.len(), "{reply}");
    Ok(())
}

async fn idle_oplog_cursors(source: &Client) -> Result<Vec<Bson>> {
    let idle = doc! { "$match": { "type": "idleCursor", "ns": "local.oplog.rs" } };
    let stages = [doc! { "$currentOp": { "allUsers": true, "idleCursors": true } }, idle];
    let found: Vec<Document> = source.database("admin").aggregate(stages).await?.try_collect().await?;
    Ok(found.iter().filter_map(|op| op.get_document("cursor").ok()?.get("cursorId").cloned()).collect())
}

/// The most memory that the process had so far.
fn peak_bytes(collector: &Collector) -> Result<u64> {
    let pid = collector.pid().context("the collector does not run")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? << 10)
}

/// Looks at the newest document of the target, over and over: none may be younger than the delay.
struct Watch {
    stop: Arc<AtomicBool>,
    task: JoinSet<Result<u32>>,
}

impl Watch {
    fn start(target: &Client) -> Self {
        let late = target.database("shop").collection::<Document>("late");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut seen = 0;
            while !stopped.load(Ordering::Relaxed) {
                let newest = late.find_one(doc! {}).sort(doc! { "_id": -1 }).projection(doc! { "at": 1 }).await?;
                if let Some(newest) = newest {
                    let age_ms = DateTime::now().timestamp_millis() - newest.get_datetime("at")?.timestamp_millis();
                    anyhow::ensure!(age_ms >= DELAY_S * 1_000, "{newest} came after {age_ms} ms");
                    seen += 1;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Ok(seen)
        });
        Self { stop, task }
    }

    async fn stop(mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let seen = self.task.join_next().await.context("the watch runs until it is stopped")???;
        anyhow::ensure!(seen > 0, "the target was never looked at");
        Ok(())
    }
}
