//! One line a second: what the source takes, what the collector reads and writes, how far behind it is.
//!
//! The numbers come from the collector's own `/metrics`, so that the demo shows what an operator sees. A page
//! that does not answer yet gives a dash, never an error: the demo judges the result, not the display.

use std::time::{Duration, Instant};

use oplogue_tests::collector::Collector;
use oplogue_tests::load::Load;

use crate::console;

#[derive(Default)]
pub(crate) struct Gauge {
    last: Option<Reading>,
}

struct Reading {
    at: Instant,
    written: u64,
    read: Option<f64>,
    applied: Option<f64>,
}

impl Gauge {
    /// Waits a second and prints the line.
    pub(crate) async fn tick(&mut self, load: &Load, collector: &Collector) {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let page = collector.get("/metrics").await.unwrap_or_default();
        let now = Reading {
            at: Instant::now(),
            written: load.totals().done,
            read: metric(&page, "oplogue_source_read_entries_total"),
            applied: metric(&page, "oplogue_sink_accepted_changes_total"),
        };
        if let Some(last) = &self.last {
            let seconds = now.at.duration_since(last.at).as_secs_f64();
            let rate = |now: Option<f64>, last: Option<f64>| {
                now.map_or("-".to_owned(), |now| format!("{:.0}", (now - last.unwrap_or(0.0)) / seconds))
            };
            let lag = metric(&page, "oplogue_pipeline_lag_seconds");
            console::say(&format!(
                "  source {:>6}/s   read {:>6}/s   applied {:>6}/s   lag {:>7}",
                rate(Some(now.written as f64), Some(last.written as f64)),
                rate(now.read, last.read),
                rate(now.applied, last.applied),
                lag.map_or("-".to_owned(), |lag| format!("{lag:.3} s")),
            ));
        }
        self.last = Some(now);
    }
}

/// The sum of a metric over its labels; none when the page lacks it.
pub(crate) fn metric(page: &str, name: &str) -> Option<f64> {
    let lines = page.lines().filter_map(|line| line.strip_prefix(name));
    let own = lines.filter(|rest| rest.starts_with([' ', '{']));
    let values: Vec<f64> = own.filter_map(|rest| rest.split_whitespace().last()?.parse().ok()).collect();
    (!values.is_empty()).then(|| values.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::metric;

    #[test]
    fn labels_are_summed_and_longer_names_are_others() {
        let page = "# HELP a_total x\na_total{op=\"i\"} 2\na_total{op=\"u\"} 3.5\na_total_more 9\n";
        assert_eq!(metric(page, "a_total"), Some(5.5));
        assert_eq!(metric(page, "b"), None);
    }
}
