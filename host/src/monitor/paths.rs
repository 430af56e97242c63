//! The other paths: health and metrics for machines, and truthful equivalents of MongoShake's inner views.
//!
//! MongoShake's `/worker`, `/queue`, `/executor` and `/persist` show queues that Oplogue does not have; their fields
//! are answered with what stands in that place, and a field without a counterpart is left out rather than invented. No
//! path here changes the run.

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use oplogue_engine::metrics::families::CONTENT_TYPE;
use oplogue_engine::metrics::labels::Label as _;
use oplogue_engine::metrics::{RulingKind, SyncStage, WriteKind};
use serde_json::{Value, json};

use super::Monitored;
use crate::logging::redact::redact;

/// Every path with what it answers, for `/` and the docs' test.
pub const PATHS: &[(&str, &str)] = &[
    ("/healthz", "200 while the run works, 503 with the reason otherwise"),
    ("/metrics", "all metrics, for Prometheus"),
    ("/status", "a page for people"),
    ("/repl", "incremental: counts, positions, rate (MongoShake's JSON)"),
    ("/progress", "the full copy, by collection (MongoShake's JSON)"),
    ("/worker", "lanes"),
    ("/queue", "memory held between source and acknowledgement"),
    ("/executor", "statements by kind"),
    ("/conflicts", "changes that the target refused for good: counts, and the last ones"),
    ("/persist", "stage of the fetcher"),
    ("/conf", "the configuration, secrets masked"),
    ("/sentinel", "run-time options"),
];

pub(super) async fn list() -> Json<Value> {
    Json(PATHS.iter().map(|(path, what)| json!({ "path": path, "what": what })).collect())
}

pub(super) async fn unknown() -> (StatusCode, Json<Value>) {
    (StatusCode::NOT_FOUND, Json(json!({ "error": "no such path; GET / lists all paths" })))
}

pub(super) async fn healthz(State(run): State<Monitored>) -> (StatusCode, Json<Value>) {
    let now = run.status.snapshot();
    let reason = now.unhealthy();
    let code = if reason.is_some() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    let fault = now.last_fault.as_ref().map(|fault| json!({ "at_ms": fault.at_ms, "text": redact(&fault.text) }));
    let body = json!({
        "status": if reason.is_some() { "unhealthy" } else { "ok" },
        "reason": reason.map(|text| redact(&text).into_owned()),
        "stage": now.stage.text(),
        "lag_seconds": now.positions.lag_ms as f64 / 1000.0,
        "source_silent_seconds": now.positions.silent_ms.map(|ms| ms as f64 / 1000.0),
        "last_fault": fault,
    });
    (code, Json(body))
}

pub(super) async fn metrics(State(run): State<Monitored>) -> Response {
    match run.metrics.encode(&run.status) {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

pub(super) async fn worker(State(run): State<Monitored>) -> Json<Value> {
    let (schedule, positions) = (&run.metrics.schedule, run.status.positions().now());
    Json(json!({
        "busy_lanes": schedule.busy_lanes.get(),
        "jobs_unack_buffer": schedule.queued.get().saturating_sub(run.metrics.sink.changes.get()),
        "last_unack": positions.read.ts(),
        "last_ack": positions.accepted.ts(),
        "count": schedule.queued.get(),
        "coalesced": schedule.coalesced.get(),
        "parked": schedule.parked.get(),
        "barriers": schedule.barriers.get(),
    }))
}

pub(super) async fn queue(State(run): State<Monitored>) -> Json<Value> {
    let now = run.status.snapshot();
    let (held, limit) = now.budget.unwrap_or_default();
    Json(json!({
        "syncer_replica_set_name": now.replset,
        "budget_held_bytes": held,
        "budget_limit_bytes": limit,
    }))
}

pub(super) async fn executor(State(run): State<Monitored>) -> Json<Value> {
    let sink = &run.metrics.sink;
    let of = |kind| sink.statements.of(kind).get();
    Json(json!({
        "insert": of(WriteKind::Insert),
        "replace": of(WriteKind::Replace),
        "update": of(WriteKind::Update),
        "delete": of(WriteKind::Delete),
        "ddl": sink.ddl_executed.get(),
        "error": sink.refused.get(),
        "conflicts": sink.conflicts.sum(),
        "missing": sink.missing.get(),
        "refetched": sink.refetched.get(),
    }))
}

pub(super) async fn conflicts(State(run): State<Monitored>) -> Json<Value> {
    let conflicts = &run.metrics.sink.recent_conflicts;
    let counts = conflicts.counts().into_iter();
    let last = conflicts.last().into_iter();
    Json(json!({
        "counts": counts
            .map(|(kind, namespace, count)| json!({ "kind": kind, "namespace": namespace, "count": count }))
            .collect::<Vec<_>>(),
        "last": last
            .map(|one| json!({
                "kind": one.kind.text(),
                "namespace": one.namespace,
                "id": one.id,
                "operation": one.operation,
                "time": { "unix": one.time.0, "increment": one.time.1 },
                "code": one.code,
                "error": redact(&one.message),
                "ruling": one.ruling.text(),
                "recorded": one.ruling == RulingKind::Record,
            }))
            .collect::<Vec<_>>(),
    }))
}

pub(super) async fn persist(State(run): State<Monitored>) -> Json<Value> {
    let fetch_stage = match run.status.stage() {
        SyncStage::Starting | SyncStage::FullSync => "full-sync",
        SyncStage::Incremental => "store-memory-apply",
        SyncStage::Stopping | SyncStage::Fault => "stopped",
    };
    Json(json!({ "enable_disk_persist": false, "fetch_stage": fetch_stage }))
}

pub(super) async fn conf(State(run): State<Monitored>) -> Json<Value> {
    Json(run.conf)
}

pub(super) async fn sentinel(State(run): State<Monitored>) -> Json<Value> {
    Json(json!({ "Pause": run.status.is_paused() }))
}

/// MongoShake's options of incremental that are not built: they are named, so that nobody waits for an effect.
const NOT_BUILT: [&str; 6] = ["OplogDump", "DuplicatedDump", "TPS", "TargetDelay", "ExitPoint", "Shutdown"];

/// Sets run-time options: all of the body or nothing.
pub(super) async fn sentinel_options(
    State(run): State<Monitored>,
    body: Result<Json<serde_json::Map<String, Value>>, JsonRejection>,
) -> (StatusCode, Json<Value>) {
    let refuse = |code, text: String| (code, Json(json!({ "error": text })));
    let Ok(Json(options)) = body else {
        let text = "the body must be a JSON object with content-type application/json, such as {\"Pause\": true}";
        return refuse(StatusCode::BAD_REQUEST, text.to_owned());
    };
    for (name, value) in &options {
        if NOT_BUILT.contains(&name.as_str()) {
            let text =
                format!("{name} cannot be changed at run time: set its key in the configuration and start again");
            return refuse(StatusCode::NOT_IMPLEMENTED, text);
        }
        if name != "Pause" {
            return refuse(StatusCode::BAD_REQUEST, format!("unknown option {name}; known: Pause"));
        }
        if !value.is_boolean() {
            return refuse(StatusCode::BAD_REQUEST, format!("Pause must be true or false, not {value}"));
        }
    }
    if let Some(pause) = options.get("Pause").and_then(Value::as_bool) {
        tracing::info!(pause, "reading the source is paused or resumed on request");
        run.status.set_paused(pause);
    }
    (StatusCode::OK, sentinel(State(run)).await)
}
