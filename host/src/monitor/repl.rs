//! `/repl` and `/progress` in MongoShake's JSON, field by field and in its order, since scripts and exporters parse it.
//!
//! Where MongoShake's number is misleading the name stays and the number is right: `lsn` and `lsn_ack` move with the
//! source's noops, so that `now - lsn_ack` means something on an idle source. `lag_seconds` is ours, at the end.

use axum::Json;
use axum::extract::State;
use oplogue_engine::metrics::copy::{CollectionNow, CopyNow};
use oplogue_engine::metrics::shards::ShardNow;
use oplogue_engine::metrics::status::StatusSnapshot;
use oplogue_engine::metrics::{CollectionState, SyncStage};
use oplogue_engine::model::OpTime;
use serde::{Deserialize, Serialize};
use serde_json::Map;

use super::Monitored;
use crate::report::{bytes_text, local_time};

/// The answer of `/repl`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Repl {
    pub who: String,
    pub tag: String,
    pub replset: String,
    pub logs_get: u64,
    pub logs_repl: u64,
    pub logs_success: u64,
    pub tps: u64,
    pub lsn: MongoTime,
    pub lsn_ack: MongoTime,
    pub lsn_ckpt: MongoTime,
    pub now: UnixTime,
    /// A size with its unit: `503.00B`.
    pub log_size_avg: String,
    pub log_size_max: String,
    /// `normal`, `degraded` (being retried) or `error`.
    #[serde(default)]
    pub fetcher_status: String,
    #[serde(default)]
    pub lag_seconds: f64,
    /// Of a sharded source: where each shard stands. Ours; absent for a replica set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shards: Vec<ReplShard>,
}

/// One shard in the answer of `/repl`, in the names of the whole.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReplShard {
    pub replset: String,
    pub lsn: MongoTime,
    /// Durable on the target.
    pub lsn_ack: MongoTime,
    pub lsn_ckpt: MongoTime,
    pub lag_seconds: f64,
}

/// A source time as MongoShake prints it; `ts` is `secs << 32 | inc`, as text.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MongoTime {
    pub unix: i64,
    pub time: String,
    pub ts: String,
}

/// A wall-clock time.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UnixTime {
    pub unix: i64,
    pub time: String,
}

impl From<OpTime> for MongoTime {
    fn from(time: OpTime) -> Self {
        let unix = i64::from(time.secs);
        Self { unix, time: local_time(unix), ts: time.ts().to_string() }
    }
}

pub(super) async fn repl(State(run): State<Monitored>) -> Json<Repl> {
    Json(repl_of(&run, &run.status.snapshot()))
}

fn repl_of(run: &Monitored, now: &StatusSnapshot) -> Repl {
    let (source, positions) = (&run.metrics.source, &now.positions);
    let unix = now.now_ms.div_euclid(1000);
    let average = source.bytes.get() as f64 / source.entries.get().max(1) as f64;
    Repl {
        who: now.name.clone(),
        tag: format!("oplogue {}", env!("CARGO_PKG_VERSION")),
        replset: now.replset.clone(),
        logs_get: source.entries.get(),
        logs_repl: run.metrics.schedule.queued.get(),
        logs_success: run.metrics.sink.changes.get(),
        tps: run.tps.get(),
        lsn: positions.read.into(),
        lsn_ack: positions.accepted.into(),
        lsn_ckpt: positions.checkpoint.into(),
        now: UnixTime { unix, time: local_time(unix) },
        log_size_avg: bytes_text(average),
        log_size_max: bytes_text(source.largest_bytes() as f64),
        fetcher_status: fetcher_status(now).to_owned(),
        lag_seconds: positions.lag_ms as f64 / 1000.0,
        shards: now.shards.iter().map(repl_shard).collect(),
    }
}

fn repl_shard(shard: &ShardNow) -> ReplShard {
    ReplShard {
        replset: shard.name.to_string(),
        lsn: shard.read.into(),
        lsn_ack: shard.durable.into(),
        lsn_ckpt: shard.checkpoint.into(),
        lag_seconds: shard.lag_seconds() as f64,
    }
}

fn fetcher_status(now: &StatusSnapshot) -> &'static str {
    match now.stage {
        SyncStage::Fault => "error",
        SyncStage::Starting | SyncStage::FullSync | SyncStage::Incremental | SyncStage::Stopping => {
            if now.trouble.is_some() { "degraded" } else { "normal" }
        }
    }
}

/// The answer of `/progress`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Progress {
    /// Share of finished collections: `12.34%`.
    pub progress: String,
    pub total_collection_number: u64,
    pub finished_collection_number: u64,
    pub processing_collection_number: u64,
    pub wait_collection_number: u64,
    /// By namespace: `-` while waiting, else `NN.NN% (done/total)` in documents.
    pub collection_metric: Map<String, serde_json::Value>,
}

pub(super) async fn progress(State(run): State<Monitored>) -> Json<Progress> {
    Json(progress_of(&run.status.copy().now()))
}

fn progress_of(copy: &CopyNow) -> Progress {
    // Before anything is planned 100 % of nothing would read as done.
    let percent = if copy.total() == 0 { 0.0 } else { copy.percent_of_collections() };
    Progress {
        progress: format!("{percent:.2}%"),
        total_collection_number: copy.total(),
        finished_collection_number: copy.finished,
        processing_collection_number: copy.processing,
        wait_collection_number: copy.waiting,
        collection_metric: copy.collections.iter().map(|(name, one)| (name.clone(), metric(one).into())).collect(),
    }
}

fn metric(one: &CollectionNow) -> String {
    match one.state {
        CollectionState::Waiting => "-".to_owned(),
        CollectionState::Processing | CollectionState::Finished => {
            format!("{:.2}% ({}/{})", one.percent(), one.documents_done, one.documents_total)
        }
    }
}
