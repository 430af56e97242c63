//! The profiler behind `system_profile_port`: where a running job spends its time, asked from outside.
//!
//! MongoShake serves Go's profiler there. Here the stacks of all threads are sampled for as long as a request says, and
//! answered as collapsed stacks, one a line with its count, which flame graph tools and speedscope.app read. Nothing is
//! sampled without a request, one request is served at a time, and no page changes the run.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Router;
use axum::extract::Query;
use axum::http::StatusCode;
use axum::routing::get;
use oplogue_engine::supervise::off_thread;
use serde::Deserialize;
use tokio::sync::Semaphore;

/// Samples a second, an odd number so that they do not beat with periodic work.
const FREQUENCY_HZ: i32 = 99;

/// What one request may ask for.
const SECONDS: std::ops::RangeInclusive<u64> = 1..=120;
const SECONDS_DEFAULT: u64 = 10;

/// The sampler is one a process.
static SAMPLER: Semaphore = Semaphore::const_new(1);

/// The profiler's pages.
pub fn router() -> Router {
    Router::new()
        .route("/", get(list))
        .route("/debug/threads", get(threads))
        .route("/debug/profile", get(profile))
        // Where MongoShake has it.
        .route("/debug/pprof/profile", get(profile))
}

async fn list() -> &'static str {
    "/debug/threads                 name, state and processor time of each thread\n\
     /debug/profile?seconds=10      samples all threads; collapsed stacks for flame graphs\n"
}

#[derive(Debug, Deserialize)]
struct Span {
    seconds: Option<u64>,
}

type Answer = (StatusCode, String);

async fn profile(Query(span): Query<Span>) -> Answer {
    let seconds = span.seconds.unwrap_or(SECONDS_DEFAULT);
    if !SECONDS.contains(&seconds) {
        let text = format!("seconds must be from {} to {}\n", SECONDS.start(), SECONDS.end());
        return (StatusCode::BAD_REQUEST, text);
    }
    let Ok(_only) = SAMPLER.try_acquire() else {
        return (StatusCode::CONFLICT, "another request is being served\n".to_owned());
    };
    match sample(Duration::from_secs(seconds)).await {
        Ok(stacks) => (StatusCode::OK, stacks),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

async fn sample(span: Duration) -> Result<String, String> {
    // Frames of these are walked by no handler: they may hold the locks that walking needs.
    let builder = pprof::ProfilerGuardBuilder::default().frequency(FREQUENCY_HZ);
    let guard = builder.blocklist(&["libc", "libgcc", "pthread", "vdso"]).build().map_err(|e| e.to_string())?;
    tokio::time::sleep(span).await;
    // Names are looked up in the debug information, which takes a while.
    let named = off_thread("profiler", move || guard.report().build().map(|report| collapsed(&report)));
    named.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
}

/// One line a stack, from the outermost frame to the innermost, behind the thread's name.
fn collapsed(report: &pprof::Report) -> String {
    let mut lines: BTreeMap<String, isize> = BTreeMap::new();
    for (stack, count) in &report.data {
        let frames = stack.frames.iter().rev().flat_map(|frame| frame.iter().rev());
        let names = frames.map(|symbol| symbol.name().replace([';', ' ', '\n'], "_"));
        let line: Vec<String> = std::iter::once(stack.thread_name.clone()).chain(names).collect();
        *lines.entry(line.join(";")).or_default() += count;
    }
    lines.into_iter().map(|(stack, count)| format!("{stack} {count}\n")).collect()
}

async fn threads() -> Answer {
    match off_thread("thread list", read_threads).await {
        Ok(Ok(text)) => (StatusCode::OK, text),
        Ok(Err(error)) => (StatusCode::NOT_IMPLEMENTED, format!("read /proc/self/task: {error}\n")),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

/// The threads as Linux has them; the other systems have no such folder.
fn read_threads() -> std::io::Result<String> {
    /// Ticks a second of `/proc/<pid>/stat`: fixed by the kernel's interface.
    const TICKS: f64 = 100.0;
    let mut lines = Vec::new();
    for entry in std::fs::read_dir("/proc/self/task")? {
        // A thread may end between the listing and the look.
        let Ok(stat) = std::fs::read_to_string(entry?.path().join("stat")) else { continue };
        // The name stands in brackets and may contain anything.
        let Some(((id, name), rest)) =
            stat.rsplit_once(')').and_then(|(head, rest)| Some((head.split_once(" (")?, rest)))
        else {
            continue;
        };
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok()).unwrap_or_default();
        let state = fields.first().copied().unwrap_or("?");
        lines.push(format!("{id:>8} {name:<20} {state} {:>10.2} s", (ticks(11) + ticks(12)) / TICKS));
    }
    lines.sort();
    Ok(lines.join("\n") + "\n")
}
