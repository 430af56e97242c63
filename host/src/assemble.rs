//! Builds a run from source to checkpoint.
//!
//! (The signature that the command line calls; the assembly itself stands on another branch.)

use std::sync::Arc;

use oplogue_engine::config::Config;
use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::metrics::{Metrics, Status};
use oplogue_engine::model::Position;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// What the surroundings of a run give it and read from it.
#[derive(Debug, Clone)]
pub struct Hooks {
    pub metrics: Metrics,
    pub status: Status,
    /// Cancelled by the first SIGTERM or SIGINT: shut down in order.
    pub stop: CancellationToken,
    /// Notified by SIGHUP: look at the plugins again.
    pub reload: Arc<Notify>,
}

/// How a run ended without a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Everything that was read is durable and the last checkpoint is stored.
    Clean,
    /// `limits.shutdown_time` passed first; the last stored checkpoint is the safe position.
    DeadlinePassed,
}

/// What is left to say after a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitReport {
    pub ended: Ended,
    /// Position of the last stored checkpoint.
    pub checkpoint: Option<Position>,
}

/// Runs until the end of the copy (`sync_mode = full`), a fault, or `hooks.stop`.
///
/// # Errors
/// The fault that stopped the run.
pub async fn run(_config: Config, hooks: Hooks) -> Result<ExitReport> {
    hooks.stop.cancelled().await;
    Err(Error::new(Side::Internal, Kind::Unsupported, "assemble the run: not in this build"))
}
