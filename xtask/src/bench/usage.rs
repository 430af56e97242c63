//! What a process has used: processor time and the peak of its resident memory, from `/proc`.
//!
//! The kernel counts both for every process, so nothing has to be built into the product for the bench. A process
//! that ends takes its numbers with it, therefore a watcher reads them every few milliseconds and keeps the last.
//! Time is counted in ticks of 10 ms: enough for runs of seconds, and nothing shorter is measured here.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// Ticks a second of `/proc/<pid>/stat`: fixed by the kernel's interface on Linux.
const TICKS: f64 = 100.0;

/// Processor seconds (user and system) and peak resident memory.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Usage {
    pub(super) cpu_s: f64,
    pub(super) peak_mb: Option<f64>,
}

impl Usage {
    /// What was used since an earlier reading; the peak is that of the whole life.
    pub(super) fn since(self, earlier: Self) -> Self {
        Self { cpu_s: self.cpu_s - earlier.cpu_s, peak_mb: self.peak_mb }
    }
}

/// Reads a process's numbers now.
pub(super) fn of(pid: u32) -> Result<Usage> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("read process times")?;
    // The second field is the program's name in brackets and may contain anything.
    let fields = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
    let mut ticks = fields.split_whitespace().skip(11).take(2).filter_map(|text| text.parse::<f64>().ok());
    let cpu_s = (ticks.next().unwrap_or_default() + ticks.next().unwrap_or_default()) / TICKS;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak_mb = peak.and_then(|text| text.split_whitespace().next()?.parse::<f64>().ok()).map(|kb| kb / 1024.0);
    Ok(Usage { cpu_s, peak_mb })
}

/// Keeps the last reading of a process that may end any time.
pub(super) struct Watcher {
    last: Arc<Mutex<Usage>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    pub(super) fn start(pid: u32) -> Self {
        let last = Arc::new(Mutex::new(Usage::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let (kept, stopped) = (last.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let Ok(usage) = of(pid) else { break };
                // A process that has ended but was not waited for has no memory any more.
                if let (Ok(mut last), true) = (kept.lock(), usage.peak_mb.is_some()) {
                    *last = usage;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        Self { last, stop, thread: Some(thread) }
    }

    /// The last reading.
    pub(super) fn finish(mut self) -> Usage {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
        self.last.lock().map(|last| *last).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn our_own_numbers_are_there() {
        let usage = super::of(std::process::id()).unwrap();
        assert!(usage.peak_mb.unwrap() > 1.0);
    }
}
