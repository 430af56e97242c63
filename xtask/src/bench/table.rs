//! The rows that the bench prints: one measurement each, with its ratio to the ceiling.
//!
//! All scenarios print the same columns, so that runs can be laid side by side. A value that was not measured is
//! a dash. The module formats and compares; it measures nothing.

use std::time::Duration;

use super::usage::Usage;
use crate::console;

/// One measurement.
pub(super) struct Row {
    pub(super) name: String,
    pub(super) items: u32,
    pub(super) took: Duration,
    pub(super) bytes: Option<u64>,
    pub(super) usage: Option<Usage>,
    /// Of the server that is written to.
    pub(super) target: Option<Usage>,
}

impl Row {
    fn rate(&self) -> f64 {
        f64::from(self.items) / self.took.as_secs_f64().max(1e-9)
    }
}

/// Prints the rows; the first is the ceiling that the others are compared with.
pub(super) fn print(rows: &[Row]) {
    console::say(&format!(
        "{:<28}{:>9}{:>11}{:>9}{:>9}{:>10}{:>10}{:>11}{:>8}",
        "", "seconds", "per s", "MB/s", "CPU s", "µs/item", "peak MB", "target µs", "ratio"
    ));
    let ceiling = rows.first().map_or(1.0, Row::rate);
    for row in rows {
        let seconds = row.took.as_secs_f64();
        let dash = || "-".to_owned();
        let megabytes = row.bytes.map_or_else(dash, |bytes| format!("{:.1}", bytes as f64 / 1e6 / seconds));
        let cpu = row.usage.map_or_else(dash, |usage| format!("{:.2}", usage.cpu_s));
        let per_item = |usage: Option<Usage>| {
            usage.map_or_else(dash, |usage| format!("{:.2}", usage.cpu_s * 1e6 / f64::from(row.items)))
        };
        let (each, target) = (per_item(row.usage), per_item(row.target));
        let peak = row.usage.and_then(|usage| usage.peak_mb).map_or_else(dash, |peak| format!("{peak:.0}"));
        console::say(&format!(
            "{:<28}{seconds:>9.2}{:>11.0}{megabytes:>9}{cpu:>9}{each:>10}{peak:>10}{target:>11}{:>8.2}",
            row.name,
            row.rate(),
            row.rate() / ceiling,
        ));
    }
}
