//! The full copy's progress on a terminal, and the console that it shares with the log.
//!
//! On a terminal a bar stands below the log lines and shows share, rate and time left; everywhere else the reporter
//! writes plain lines instead. [`Screen`] is the one door to the console, so that a line never tears the bar apart.
//! Nothing here counts: it draws what the run's status says.

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use oplogue_engine::error::Result;
use oplogue_engine::metrics::status::StatusSnapshot;
use oplogue_engine::metrics::{Status, SyncStage};
use tokio_util::sync::CancellationToken;

use crate::report::{Pace, Rate, bytes_text, duration_text};

const REDRAW: Duration = Duration::from_millis(250);
/// The bar takes what the facts leave, so that none of them falls off a narrow terminal.
const TEMPLATE: &str = "{prefix} [{wide_bar}] {msg}";
/// Length of the bar in steps; the share is computed here, since the estimate of the total may grow.
const STEPS: u64 = 10_000;

/// The console, shared by log and bar. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Screen {
    bar: Arc<Mutex<Option<ProgressBar>>>,
}

impl Screen {
    /// A writer for log lines that moves the bar out of the way of each line.
    pub fn over<W: Write>(&self, stream: fn() -> W) -> impl Fn() -> OverBar<W> + use<W> {
        let screen = self.clone();
        move || OverBar { screen: screen.clone(), stream: stream() }
    }

    fn set(&self, bar: Option<ProgressBar>) {
        *self.bar.lock().unwrap_or_else(PoisonError::into_inner) = bar;
    }

    fn current(&self) -> Option<ProgressBar> {
        self.bar.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Writes to a console stream above the bar.
#[derive(Debug)]
pub struct OverBar<W> {
    screen: Screen,
    stream: W,
}

impl<W: Write> Write for OverBar<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.screen.current() {
            Some(bar) => bar.suspend(|| self.stream.write(bytes)),
            None => self.stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// Whether a bar can be drawn: standard error is a terminal.
#[must_use]
pub fn can_draw() -> bool {
    io::stderr().is_terminal()
}

/// Draws the bar while the full copy runs; ends with it or with `stop`.
///
/// # Errors
/// Never; the type is that of every supervised task.
pub async fn draw(status: Status, screen: Screen, stop: CancellationToken) -> Result<()> {
    let mut pace = Pace::default();
    let mut bar = None;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            () = tokio::time::sleep(REDRAW) => {}
        }
        let snapshot = status.snapshot();
        match snapshot.stage {
            SyncStage::Starting => {}
            SyncStage::FullSync => {
                let bar = bar.get_or_insert_with(|| {
                    let bar = new_bar(&snapshot.replset);
                    screen.set(Some(bar.clone()));
                    bar
                });
                update(bar, &snapshot, &mut pace);
            }
            SyncStage::Incremental | SyncStage::Stopping | SyncStage::Fault => break,
        }
    }
    if let Some(bar) = bar {
        update(&bar, &status.snapshot(), &mut pace);
        screen.set(None);
        bar.abandon();
    }
    Ok(())
}

fn new_bar(replset: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(Some(STEPS), ProgressDrawTarget::stderr())
        .with_style(style)
        .with_prefix(format!("full sync {replset}"))
}

fn update(bar: &ProgressBar, snapshot: &StatusSnapshot, pace: &mut Pace) {
    bar.set_position((snapshot.copy.percent_of_bytes() / 100.0 * STEPS as f64) as u64);
    bar.set_message(bar_line(snapshot, pace));
}

/// What stands behind the bar, short enough for 80 columns: share, bytes, rate, time left.
fn bar_line(snapshot: &StatusSnapshot, pace: &mut Pace) -> String {
    let copy = &snapshot.copy;
    let rate = pace.observe(snapshot.now_ms, copy.documents_done, copy.bytes_done);
    let percent = copy.percent_of_bytes();
    let left = match time_left(snapshot, rate) {
        Some(left) => format!("{left} left"),
        None if percent >= 100.0 => "all read".to_owned(),
        None => "estimating".to_owned(),
    };
    format!(
        "{percent:.1}%  {} of {}  {}/s  {left}",
        bytes_text(copy.bytes_done as f64),
        bytes_text(copy.bytes_total as f64),
        bytes_text(rate.bytes_per_second),
    )
}

fn time_left(snapshot: &StatusSnapshot, rate: Rate) -> Option<String> {
    let left = snapshot.copy.bytes_total.saturating_sub(snapshot.copy.bytes_done) as f64;
    let known = rate.bytes_per_second > 0.0 && left > 0.0;
    known.then(|| duration_text((left / rate.bytes_per_second).ceil() as u64))
}

/// The copy's progress as one line of a log: share, collections, documents, bytes, rates, time left.
pub fn copy_line(snapshot: &StatusSnapshot, pace: &mut Pace) -> String {
    let copy = &snapshot.copy;
    let rate = pace.observe(snapshot.now_ms, copy.documents_done, copy.bytes_done);
    let eta = time_left(snapshot, rate).unwrap_or_else(|| "-".to_owned());
    format!(
        "{:.2}%, {}/{} collections, {}/{} documents, {} of {}, {:.0} documents/s, {}/s, time left {eta}",
        copy.percent_of_bytes(),
        copy.finished,
        copy.total(),
        copy.documents_done,
        copy.documents_total,
        bytes_text(copy.bytes_done as f64),
        bytes_text(copy.bytes_total as f64),
        rate.documents_per_second,
        bytes_text(rate.bytes_per_second),
    )
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use oplogue_engine::clock::Clock;

    use super::*;

    #[test]
    fn the_line_shows_share_rate_and_time_left() {
        let ms = Arc::new(AtomicI64::new(1_000_000));
        let status = Status::new("job", Clock::Manual(Arc::clone(&ms)));
        let a = status.copy().plan("db.a", 1000, 1024 * 1024);
        status.copy().plan("db.b", 10, 0);
        let mut pace = Pace::default();
        copy_line(&status.snapshot(), &mut pace);
        a.start();
        a.add(250, 256 * 1024);
        ms.fetch_add(2000, Ordering::SeqCst);
        let line = copy_line(&status.snapshot(), &mut pace);
        let wanted = "25.00%, 0/2 collections, 250/1010 documents, 256.00KB of 1.00MB, 125 documents/s, 128.00KB/s, time left 6s";
        assert_eq!(line, wanted);
        assert_eq!(bar_line(&status.snapshot(), &mut pace), "25.0%  256.00KB of 1.00MB  128.00KB/s  6s left");
    }

    #[tokio::test]
    async fn drawing_ends_with_the_copy() {
        let status = Status::new("job", Clock::System);
        status.set_stage(SyncStage::Incremental);
        draw(status, Screen::default(), CancellationToken::new()).await.unwrap();
    }
}
