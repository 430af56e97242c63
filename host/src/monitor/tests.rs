//! The server as a script sees it: a real listener on a free port, a status filled by hand.
//!
//! Scripts written for MongoShake read these answers, so their shape is held key by key. No run stands behind them:
//! that the numbers are right is tested with a whole job.

use std::collections::BTreeSet;

use oplogue_engine::clock::Clock;
use oplogue_engine::error::Error;
use oplogue_engine::metrics::catalog;
use oplogue_engine::metrics::{SyncStage, WriteKind};
use oplogue_engine::model::OpTime;
use oplogue_engine::plugin::PluginStats;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

fn monitored() -> Monitored {
    let status = Status::new("job-1", Clock::System);
    status.set_replset("rs0");
    status.set_stage(SyncStage::Incremental);
    status.positions().set_newest(OpTime::new(1_707_334_793, 3, 1));
    status.positions().set_read(OpTime::new(1_707_334_793, 3, 1));
    status.positions().set_accepted(OpTime::new(1_707_334_793, 2, 1));
    status.positions().set_durable(OpTime::new(1_707_334_793, 1, 1));
    status.positions().set_checkpoint(OpTime::new(1_707_334_656, 2, 1));
    let custom = [("masked".to_owned(), 7)].into();
    let mask = PluginStats { plugin: "mask".into(), version: "1.0.0".into(), custom, ..PluginStats::default() };
    status.add_plugins(move || {
        vec![PluginStats { generation: 1, calls: 3, nanos: 2_000_000, faults: 1, ..mask.clone() }]
    });
    let metrics = Metrics::new();
    metrics.source.read(4, 2012, 12_585);
    metrics.schedule.queued.inc_by(3);
    metrics.sink.changes.inc_by(2);
    metrics.sink.statements.of(WriteKind::Replace).inc();
    let tps = Tps::default();
    tps.set(17);
    Monitored { metrics, status, tps, conf: serde_json::json!({ "mongo_urls": "mongodb://u:***@h" }) }
}

/// One request against a fresh server: status code, head and body.
async fn ask(run: &Monitored, method: &str, path: &str) -> (u16, String, String) {
    send(run, method, path, "").await
}

async fn send(run: &Monitored, method: &str, path: &str, body: &str) -> (u16, String, String) {
    exchange(router(run.clone()), method, path, body).await
}

async fn exchange(pages: axum::Router, method: &str, path: &str, body: &str) -> (u16, String, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let mut tasks = oplogue_engine::supervise::Supervisor::new(&stop);
    tasks.spawn("status server", serve(listener, pages, stop.clone()));
    let mut stream = TcpStream::connect(address).await.unwrap();
    let length = body.len();
    let request =
        format!("{method} {path} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    stop.cancel();
    let (_, ended) = tasks.next_end().await.unwrap();
    ended.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), head.to_owned(), body.to_owned())
}

async fn json(run: &Monitored, path: &str) -> Value {
    let (code, _, body) = ask(run, "GET", path).await;
    assert_eq!(code, 200, "{path}: {body}");
    serde_json::from_str(&body).unwrap()
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[tokio::test]
async fn repl_has_mongoshakes_shape() {
    let value = json(&monitored(), "/repl").await;
    let wanted = [
        "who",
        "tag",
        "replset",
        "logs_get",
        "logs_repl",
        "logs_success",
        "tps",
        "lsn",
        "lsn_ack",
        "lsn_ckpt",
        "now",
        "log_size_avg",
        "log_size_max",
        "fetcher_status",
        "lag_seconds",
    ];
    assert_eq!(keys(&value), wanted);
    for lsn in ["lsn", "lsn_ack", "lsn_ckpt"] {
        assert_eq!(keys(&value[lsn]), ["unix", "time", "ts"]);
    }
    assert_eq!(keys(&value["now"]), ["unix", "time"]);
    assert_eq!(value["who"], "job-1");
    assert_eq!(value["replset"], "rs0");
    assert_eq!((&value["logs_get"], &value["logs_repl"], &value["logs_success"]), (&4.into(), &3.into(), &2.into()));
    assert_eq!(value["tps"], 17);
    // A position is text in `ts` and a number in `unix`, as MongoShake answers them.
    assert_eq!(value["lsn_ckpt"]["ts"], "7332946510847410178");
    assert_eq!(value["lsn_ckpt"]["unix"], 1_707_334_656);
    let time = value["lsn_ckpt"]["time"].as_str().unwrap();
    assert!(jiff::civil::DateTime::strptime("%Y-%m-%d %H:%M:%S", time).is_ok(), "{time}");
    assert_eq!((&value["log_size_avg"], &value["log_size_max"]), (&"503.00B".into(), &"12.29KB".into()));
    assert_eq!(value["fetcher_status"], "normal");
}

#[tokio::test]
async fn progress_has_mongoshakes_shape() {
    let run = monitored();
    let empty = json(&run, "/progress").await;
    assert_eq!((&empty["progress"], &empty["total_collection_number"]), (&"0.00%".into(), &0.into()));
    run.status.copy().plan("db.waiting", 10, 100);
    let b = run.status.copy().plan("db.processing", 3, 100);
    b.start();
    b.add(1, 30);
    let c = run.status.copy().plan("db.finished", 0, 0);
    c.start();
    c.finish();
    let value = json(&run, "/progress").await;
    let wanted = serde_json::json!({
        "progress": "33.33%",
        "total_collection_number": 3,
        "finished_collection_number": 1,
        "processing_collection_number": 1,
        "wait_collection_number": 1,
        "collection_metric": {
            "db.finished": "100.00% (0/0)",
            "db.processing": "33.33% (1/3)",
            "db.waiting": "-",
        },
    });
    assert_eq!(value, wanted);
    assert_eq!(keys(&value), keys(&wanted));
}

#[tokio::test]
async fn health_follows_the_run() {
    let run = monitored();
    assert_eq!(json(&run, "/healthz").await["status"], "ok");
    let lost = Error::new(Side::Sink, Kind::Unavailable, "write a flush: mongodb://u:s3cret@h is gone");
    run.status.trouble(&lost);
    let (code, _, body) = ask(&run, "GET", "/healthz").await;
    assert_eq!(code, 503);
    assert!(body.contains("being retried") && !body.contains("s3cret"), "{body}");
    assert_eq!(json(&run, "/repl").await["fetcher_status"], "degraded");
    run.status.recovered();
    assert_eq!(ask(&run, "GET", "/healthz").await.0, 200);
    run.status.fault(&lost);
    let (code, _, body) = ask(&run, "GET", "/healthz").await;
    assert_eq!((code, body.contains("\"stage\":\"fault\"")), (503, true));
}

/// A strict reader of the exposition: every sample has a number and belongs to a family announced before it.
fn families(text: &str) -> BTreeSet<String> {
    let mut families = BTreeSet::new();
    for line in text.lines().filter(|line| *line != "# EOF") {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            families.insert(rest.split(' ').next().unwrap().to_owned());
        } else if !line.starts_with("# HELP ") {
            let (series, number) = line.rsplit_once(' ').unwrap();
            number.parse::<f64>().unwrap_or_else(|_| panic!("{line}"));
            let name = series.split('{').next().unwrap();
            assert!(families.iter().any(|family| name.starts_with(family.as_str())), "{line} has no TYPE");
        }
    }
    families
}

/// The one family that only a sharded source fills.
const SHARD_LAG: &str = "oplogue_source_shard_lag_seconds";

#[tokio::test]
async fn metrics_parse_and_are_the_documented_set() {
    let (code, head, text) = ask(&monitored(), "GET", "/metrics").await;
    assert_eq!(code, 200);
    assert!(head.contains("application/openmetrics-text"), "{head}");
    let wanted: BTreeSet<_> = catalog::ALL.iter().map(|d| d.registered_name().to_owned()).collect();
    // A replica set has no shards, and a family without a series is not shown.
    assert_eq!(wanted.iter().filter(|name| !families(&text).contains(*name)).collect::<Vec<_>>(), [SHARD_LAG]);
    assert!(families(&text).is_subset(&wanted));
    let manual = include_str!("../../../docs/OPERATIONS.md");
    for description in catalog::ALL {
        let row = format!("| `{}` |", description.name);
        assert!(manual.contains(&row), "docs/OPERATIONS.md lacks {row}");
        assert!(manual.contains(description.help), "docs/OPERATIONS.md lacks: {}", description.help);
    }
}

#[tokio::test]
async fn every_listed_path_answers_and_is_documented() {
    let run = monitored();
    let manual = include_str!("../../../docs/OPERATIONS.md");
    for entry in json(&run, "/").await.as_array().unwrap() {
        let path = entry["path"].as_str().unwrap();
        assert_eq!(ask(&run, "GET", path).await.0, 200, "{path}");
        assert!(manual.contains(&format!("`{path}`")), "docs/OPERATIONS.md lacks {path}");
    }
    assert_eq!(ask(&run, "GET", "/nothing").await.0, 404);
}

#[tokio::test]
async fn reading_is_paused_and_resumed_and_nothing_else_is_taken() {
    let run = monitored();
    let post = |body: &'static str| {
        let run = run.clone();
        async move { send(&run, "POST", "/sentinel/options", body).await.0 }
    };
    assert_eq!(post(r#"{"Pause": true}"#).await, 200);
    assert!(run.status.is_paused());
    assert_eq!(post(r#"{"Pause": false, "TPS": 5}"#).await, 501);
    assert_eq!(post(r#"{"Pause": false, "Paus": true}"#).await, 400);
    assert_eq!(post("no json").await, 400);
    assert!(run.status.is_paused(), "a refused request changes nothing");
    assert_eq!(post(r#"{"Pause": false}"#).await, 200);
    assert!(!run.status.is_paused());
}

#[tokio::test]
async fn the_page_escapes_what_it_shows() {
    let run = monitored();
    run.status.copy().plan("db.<script>", 1, 1).start();
    let (code, head, body) = ask(&run, "GET", "/status").await;
    assert_eq!((code, head.contains("text/html")), (200, true));
    assert!(body.contains("db.&lt;script&gt;") && !body.contains("<script>"), "{body}");
}

#[tokio::test]
async fn a_taken_port_names_its_key_and_off_is_off() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut settings = Settings {
        listen: "127.0.0.1".parse().unwrap(),
        full_http_port: None,
        incr_http_port: Some(port),
        profile_port: Some(port),
    };
    let error = bind(&settings).await.unwrap_err().to_string();
    assert!(error.contains("incr_sync.http_port") && error.contains(&port.to_string()), "{error}");
    let error = bind_profiler(&settings).await.unwrap_err().to_string();
    assert!(error.contains("system_profile_port") && error.contains(&port.to_string()), "{error}");
    (settings.incr_http_port, settings.profile_port) = (None, None);
    assert!(bind(&settings).await.unwrap().is_empty());
    assert!(bind_profiler(&settings).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_profiler_names_threads_and_stacks() {
    let (code, _, threads) = exchange(profile::router(), "GET", "/debug/threads", "").await;
    assert_eq!(code, 200);
    assert!(threads.lines().any(|line| line.ends_with(" s")), "{threads}");

    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let busy = std::thread::Builder::new().name("busy".to_owned());
    let busy = busy.spawn(move || {
        let mut n = 0_u64;
        while !stopped.is_cancelled() {
            n = std::hint::black_box(n.wrapping_add(1));
        }
    });
    let (code, _, stacks) = exchange(profile::router(), "GET", "/debug/pprof/profile?seconds=1", "").await;
    stop.cancel();
    busy.unwrap().join().unwrap();
    assert_eq!(code, 200, "{stacks}");
    let of_busy = stacks.lines().find(|line| line.starts_with("busy;")).unwrap_or_else(|| panic!("{stacks}"));
    let (_, count) = of_busy.rsplit_once(' ').unwrap();
    assert!(count.parse::<u32>().unwrap() > 0, "{of_busy}");

    let (code, _, body) = exchange(profile::router(), "GET", "/debug/profile?seconds=0", "").await;
    assert_eq!((code, body.as_str()), (400, "seconds must be from 1 to 120\n"));
}
