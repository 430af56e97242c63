//! The periodic lines of the log, and the rates that log, `/repl` and bar show.
//!
//! Every five seconds one line says what MongoShake's says, with the same names: `[name=…, stage=incr, get=…, …]`. Rates
//! are differences of counters over measured time, never an average since the start. It only reads counters.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::tz::TimeZone;
use oplogue_engine::error::Result;
use oplogue_engine::metrics::status::StatusSnapshot;
use oplogue_engine::metrics::{Metrics, Status, SyncStage};
use oplogue_engine::model::OpTime;
use tokio_util::sync::CancellationToken;

use crate::progress::copy_line;

const TICK: Duration = Duration::from_secs(1);
/// A line every this many ticks while following, and while copying.
const INCR_LINE_TICKS: u64 = 5;
const COPY_LINE_TICKS: u64 = 10;

/// The rate of accepted changes over the last second, shared by the reporter with `/repl`. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Tps(Arc<AtomicU64>);

impl Tps {
    /// Changes a second, whole.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn set(&self, changes_per_second: u64) {
        self.0.store(changes_per_second, Ordering::Relaxed);
    }
}

/// Whether the reporter writes the copy's lines: not where a bar on the same console shows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyLines {
    Write,
    LeaveToBar,
}

/// What the reporter reads and feeds.
#[derive(Debug, Clone)]
pub struct Reporter {
    pub metrics: Metrics,
    pub status: Status,
    pub tps: Tps,
    pub copy_lines: CopyLines,
}

impl Reporter {
    /// Samples rates each second and writes the lines, until `stop`.
    ///
    /// # Errors
    /// Never; the type is that of every supervised task.
    pub async fn run(self, stop: CancellationToken) -> Result<()> {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut pace, mut shown, mut tick) = (Pace::default(), Pace::default(), 0_u64);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                _ = ticks.tick() => {}
            }
            tick += 1;
            let snapshot = self.status.snapshot();
            let rate = pace.observe(snapshot.now_ms, self.metrics.sink.changes.get(), 0);
            self.tps.set(rate.documents_per_second.round() as u64);
            self.write_line(&snapshot, &mut shown, tick);
        }
    }

    fn write_line(&self, snapshot: &StatusSnapshot, shown: &mut Pace, tick: u64) {
        match snapshot.stage {
            SyncStage::Incremental if tick.is_multiple_of(INCR_LINE_TICKS) => {
                tracing::info!("{}", incr_line(&self.metrics, snapshot, self.tps.get()));
            }
            SyncStage::FullSync if tick.is_multiple_of(COPY_LINE_TICKS) && self.copy_lines == CopyLines::Write => {
                tracing::info!("[name={}, stage=full] {}", snapshot.replset, copy_line(snapshot, shown));
            }
            SyncStage::Incremental
            | SyncStage::FullSync
            | SyncStage::Starting
            | SyncStage::Stopping
            | SyncStage::Fault => {}
        }
    }
}

/// The line of incremental, in MongoShake's shape.
#[must_use]
pub fn incr_line(metrics: &Metrics, snapshot: &StatusSnapshot, tps: u64) -> String {
    let positions = &snapshot.positions;
    format!(
        "[name={}, stage=incr, get={}, filter={}, write_success={}, tps={tps}, ckpt_times={}, lsn_ckpt={{{}}}, \
         lsn_ack={{{}}}, lag={:.1}s]",
        snapshot.replset,
        metrics.source.entries.get(),
        metrics.decode.dropped.sum() + metrics.plugin.dropped.get(),
        metrics.sink.changes.get(),
        metrics.pipeline.checkpoint_saves.get(),
        position_text(positions.checkpoint),
        position_text(positions.accepted),
        positions.lag_ms as f64 / 1000.0,
    )
}

/// `1704067200[1704067200, 3], 2024-01-01 00:00:00`: the packed value is left to `/repl`.
fn position_text(time: OpTime) -> String {
    format!("{}[{}, {}], {}", time.ts(), time.secs, time.inc, local_time(i64::from(time.secs)))
}

/// Unix seconds as MongoShake prints them: `2006-01-02 15:04:05` in this host's zone.
#[must_use]
pub fn local_time(unix: i64) -> String {
    let stamp = jiff::Timestamp::from_second(unix).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    stamp.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// Rates of two counters, over at least the last half second.
#[derive(Debug, Default)]
pub struct Pace {
    last: Option<(i64, u64, u64)>,
    rate: Rate,
}

/// Rates a second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Rate {
    pub documents_per_second: f64,
    pub bytes_per_second: f64,
}

impl Pace {
    /// Takes the counters of this moment. Smoothed by half, so that a pause of one tick does not show as a stop.
    pub fn observe(&mut self, now_ms: i64, documents: u64, bytes: u64) -> Rate {
        let Some((then_ms, documents_then, bytes_then)) = self.last else {
            self.last = Some((now_ms, documents, bytes));
            return self.rate;
        };
        let elapsed_ms = now_ms - then_ms;
        if elapsed_ms < 500 {
            return self.rate;
        }
        let per_second = |now: u64, then: u64| now.saturating_sub(then) as f64 * 1000.0 / elapsed_ms as f64;
        let now = Rate {
            documents_per_second: per_second(documents, documents_then),
            bytes_per_second: per_second(bytes, bytes_then),
        };
        self.rate = if self.rate == Rate::default() { now } else { self.rate.halfway_to(now) };
        self.last = Some((now_ms, documents, bytes));
        self.rate
    }
}

impl Rate {
    fn halfway_to(self, now: Self) -> Self {
        // Below one hundredth a second a rate is over, not small: otherwise it would halve for ever.
        let halfway = |from: f64, to: f64| if to == 0.0 && from < 0.01 { 0.0 } else { f64::midpoint(from, to) };
        Self {
            documents_per_second: halfway(self.documents_per_second, now.documents_per_second),
            bytes_per_second: halfway(self.bytes_per_second, now.bytes_per_second),
        }
    }
}

/// Bytes as MongoShake prints sizes: `332.00B`, `4.21KB`, `1.50MB`, in steps of 1024.
#[must_use]
pub fn bytes_text(bytes: f64) -> String {
    let (mut value, mut unit) = (bytes, "B");
    for larger in ["KB", "MB", "GB", "TB", "PB"] {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, larger);
    }
    format!("{value:.2}{unit}")
}

/// Seconds for a reader: `6s`, `4m 05s`, `3h 07m`, `2d 04h`.
#[must_use]
pub fn duration_text(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m {:02}s", seconds % 60),
        3600..86_400 => format!("{hours}h {:02}m", minutes % 60),
        _ => format!("{days}d {:02}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use oplogue_engine::clock::Clock;

    use super::*;

    #[test]
    fn the_line_has_the_names_that_scripts_look_for() {
        let metrics = Metrics::new();
        metrics.source.read(12, 1200, 200);
        metrics.sink.changes.inc_by(9);
        metrics.plugin.dropped.inc_by(2);
        metrics.pipeline.checkpoint_saves.inc();
        let status = Status::new("job", Clock::System);
        status.set_replset("rs0");
        status.positions().set_checkpoint(OpTime::new(1_700_000_000, 3, 1));
        let line = incr_line(&metrics, &status.snapshot(), 7);
        let wanted = "[name=rs0, stage=incr, get=12, filter=2, write_success=9, tps=7, ckpt_times=1, lsn_ckpt={7301444403200000003[1700000000, 3], ";
        assert!(line.starts_with(wanted), "{line}");
        assert!(line.contains("lsn_ack={0[0, 0], 1970-"), "{line}");
    }

    #[test]
    fn a_rate_is_a_difference_over_time_and_ends_at_nothing() {
        let mut pace = Pace::default();
        assert_eq!(pace.observe(0, 500, 0), Rate::default());
        assert!((pace.observe(2000, 700, 0).documents_per_second - 100.0).abs() < 1e-9);
        for second in 3..40 {
            pace.observe(second * 1000, 700, 0);
        }
        assert_eq!(pace.observe(40_000, 700, 0), Rate::default());
    }

    #[test]
    fn sizes_and_durations_read_well() {
        assert_eq!(bytes_text(332.0), "332.00B");
        assert_eq!(bytes_text(12.29 * 1024.0), "12.29KB");
        assert_eq!(duration_text(245), "4m 05s");
        assert_eq!(duration_text(187_200), "2d 04h");
    }
}
