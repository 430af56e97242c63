//! `/status`: the state of a run on one page, for a person with a browser and nothing else.
//!
//! Plain HTML made here, without scripts and without anything fetched from elsewhere; it reloads itself. Every text that
//! comes from outside is escaped.

use axum::extract::State;
use axum::response::Html;
use oplogue_engine::metrics::SyncStage;
use oplogue_engine::metrics::labels::Label as _;
use oplogue_engine::metrics::shards::ShardNow;
use oplogue_engine::metrics::status::StatusSnapshot;
use oplogue_engine::model::OpTime;
use oplogue_engine::plugin::PluginStats;

use super::Monitored;
use crate::logging::redact::redact;
use crate::report::{bytes_text, duration_text, local_time};

const HEAD: &str = "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
<meta http-equiv=\"refresh\" content=\"2\"><title>Oplogue</title><style>\
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;color:#222;background:#fff}\
table{border-collapse:collapse;width:100%;margin:1rem 0}\
td,th{text-align:left;padding:.25rem .75rem .25rem 0;border-bottom:1px solid #ddd;font-variant-numeric:tabular-nums}\
.bad{color:#a11}@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}td,th{border-color:#444}.bad{color:#f88}}\
</style></head><body>";

pub(super) async fn status(State(run): State<Monitored>) -> Html<String> {
    Html(page(&run, &run.status.snapshot()))
}

fn page(run: &Monitored, now: &StatusSnapshot) -> String {
    let mut html = String::from(HEAD);
    html.push_str(&format!("<h1>{}</h1>", escaped(&now.name)));
    if let Some(reason) = now.unhealthy() {
        html.push_str(&format!("<p class=\"bad\">{}</p>", escaped(&redact(&reason))));
    }
    table(&mut html, &["", ""], summary(run, now));
    if now.stage == SyncStage::FullSync || now.copy.total() > 0 {
        html.push_str("<h2>Full copy</h2>");
        table(&mut html, &["collection", "state", "documents", "bytes"], copy_rows(now));
    }
    if !now.shards.is_empty() {
        let head = ["shard", "read up to", "durable up to", "checkpoint", "lag"];
        table(&mut html, &head, now.shards.iter().map(shard_row).collect());
    }
    html.push_str("<h2>Plugins</h2>");
    let head = ["plugin", "version", "generation", "calls", "entries shown", "time in calls", "faults", "rolled back"];
    table(&mut html, &head, now.plugins.iter().map(plugin_row).collect());
    html.push_str("</body></html>");
    html
}

/// What a filter decides by namespace alone is asked once and costs no call.
fn plugin_row(plugin: &PluginStats) -> Vec<String> {
    let seconds = format!("{:.1} s", plugin.nanos as f64 / 1e9);
    let counts = [plugin.generation, plugin.calls, plugin.entries].map(|count| count.to_string());
    let [generation, calls, entries] = counts;
    let (faults, back) = (plugin.faults.to_string(), plugin.rollbacks.to_string());
    vec![plugin.plugin.clone(), plugin.version.clone(), generation, calls, entries, seconds, faults, back]
}

fn summary(run: &Monitored, now: &StatusSnapshot) -> Vec<Vec<String>> {
    let up = now.now_ms.saturating_sub(now.start_ms).max(0).unsigned_abs() / 1000;
    let (held, limit) = now.budget.unwrap_or_default();
    let at = |secs: u32| if secs == 0 { "-".to_owned() } else { local_time(i64::from(secs)) };
    let positions = &now.positions;
    let rows = [
        ("stage", now.stage.text().to_owned()),
        ("replica set", now.replset.clone()),
        ("running for", duration_text(up)),
        ("lag", format!("{:.1} s", positions.lag_ms as f64 / 1000.0)),
        ("changes a second", run.tps.get().to_string()),
        ("entries read", run.metrics.source.entries.get().to_string()),
        ("changes written", run.metrics.sink.changes.get().to_string()),
        ("changes dropped by plugins", run.metrics.plugin.dropped.get().to_string()),
        ("read up to", at(positions.read.secs)),
        ("accepted up to", at(positions.accepted.secs)),
        ("durable up to", at(positions.durable.secs)),
        ("checkpoint", at(positions.checkpoint.secs)),
        ("memory held", format!("{} of {}", bytes_text(held as f64), bytes_text(limit as f64))),
        ("last fault", now.last_fault.as_ref().map_or("-".to_owned(), |f| redact(&f.text).into_owned())),
    ];
    rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect()
}

fn shard_row(shard: &ShardNow) -> Vec<String> {
    let at = |time: OpTime| if time.secs == 0 { "-".to_owned() } else { local_time(i64::from(time.secs)) };
    let lag = format!("{} s", shard.lag_seconds());
    vec![shard.name.to_string(), at(shard.read), at(shard.durable), at(shard.checkpoint), lag]
}

fn copy_rows(now: &StatusSnapshot) -> Vec<Vec<String>> {
    let row = |name: &str, state: &str, documents: (u64, u64), bytes: (u64, u64)| {
        let bytes = format!("{} of {}", bytes_text(bytes.0 as f64), bytes_text(bytes.1 as f64));
        vec![name.to_owned(), state.to_owned(), format!("{} of {}", documents.0, documents.1), bytes]
    };
    let copy = &now.copy;
    let state = format!("{} of {} finished", copy.finished, copy.total());
    let all = row("all", &state, (copy.documents_done, copy.documents_total), (copy.bytes_done, copy.bytes_total));
    let each = copy.collections.iter().map(|(name, one)| {
        row(name, one.state.name(), (one.documents_done, one.documents_total), (one.bytes_done, one.bytes_total))
    });
    std::iter::once(all).chain(each).collect()
}

fn table(html: &mut String, head: &[&str], rows: Vec<Vec<String>>) {
    html.push_str("<table><tr>");
    for cell in head {
        html.push_str(&format!("<th>{cell}</th>"));
    }
    html.push_str("</tr>");
    for row in rows {
        html.push_str("<tr>");
        for cell in row {
            html.push_str(&format!("<td>{}</td>", escaped(&cell)));
        }
        html.push_str("</tr>");
    }
    html.push_str("</table>");
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
