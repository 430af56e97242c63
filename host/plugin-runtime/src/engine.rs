//! The wasmtime engine and its clock: one for the whole process.
//!
//! A thread raises the epoch every five milliseconds; each call into a guest sets a deadline in those ticks, so a
//! guest that loops for ever is stopped without counting its instructions. Floating point is made deterministic, so
//! that a replay yields the same bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use wasmtime::{Config, Engine};

use crate::error::LoadError;

/// Length of an epoch.
pub(crate) const TICK: Duration = Duration::from_millis(5);

/// A wasmtime engine whose epochs pass.
pub(crate) struct Runtime {
    pub(crate) engine: Engine,
    stop: Arc<AtomicBool>,
    ticker: Option<JoinHandle<()>>,
}

impl Runtime {
    pub(crate) fn new() -> Result<Self, LoadError> {
        let mut config = Config::new();
        config.epoch_interruption(true);
        config.cranelift_nan_canonicalization(true);
        config.wasm_backtrace_max_frames(std::num::NonZeroUsize::new(20));
        let start = |e: String| LoadError::Start(e);
        let engine = Engine::new(&config).map_err(|e| start(format!("{e:#}")))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (ticking, stopped) = (engine.clone(), Arc::clone(&stop));
        let ticker = std::thread::Builder::new()
            .name("plugin-epochs".to_owned())
            .spawn(move || {
                while !stopped.load(Ordering::Relaxed) {
                    std::thread::sleep(TICK);
                    ticking.increment_epoch();
                }
            })
            .map_err(|e| start(e.to_string()))?;
        Ok(Self { engine, stop, ticker: Some(ticker) })
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(ticker) = self.ticker.take()
            && ticker.join().is_err()
        {
            tracing::error!("the epoch thread of the plugin runtime panicked");
        }
    }
}
