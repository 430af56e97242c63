//! What a signal means to a run: the first asks for an ordered end, the second ends at once, SIGHUP looks at plugins.
//!
//! Only tokens and the shown stage are touched here; the run decides how to end. A second signal never waits for anything.

use std::sync::Arc;

use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::metrics::{Status, SyncStage};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Where signals go.
#[derive(Debug, Clone)]
pub struct Wishes {
    /// Cancelled by the first SIGTERM or SIGINT.
    pub stop: CancellationToken,
    /// Cancelled by the second.
    pub abort: CancellationToken,
    /// Shows that the shutdown is under way.
    pub status: Status,
    /// Notified by SIGHUP.
    pub reload: Arc<Notify>,
}

/// The installed handlers. From their making on, no signal kills the process any more.
#[derive(Debug)]
pub struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
}

impl Signals {
    /// Installs the handlers.
    ///
    /// # Errors
    /// When the system refuses, which it does not in practice.
    pub fn install() -> Result<Self> {
        let on = |kind| {
            signal(kind).map_err(|e| Error::new(Side::Internal, Kind::Bug, "install signal handlers").caused_by(e))
        };
        Ok(Self {
            term: on(SignalKind::terminate())?,
            int: on(SignalKind::interrupt())?,
            hup: on(SignalKind::hangup())?,
        })
    }

    /// Passes signals on until `end`.
    ///
    /// # Errors
    /// Never; the type is that of every supervised task.
    pub async fn watch(mut self, wishes: Wishes, end: CancellationToken) -> Result<()> {
        loop {
            let name = tokio::select! {
                biased;
                () = end.cancelled() => return Ok(()),
                Some(()) = self.term.recv() => "SIGTERM",
                Some(()) = self.int.recv() => "SIGINT",
                Some(()) = self.hup.recv() => {
                    tracing::info!("SIGHUP: looking at the plugins again");
                    wishes.reload.notify_one();
                    continue;
                }
            };
            if wishes.stop.is_cancelled() {
                wishes.abort.cancel();
                return Ok(());
            }
            tracing::info!("{name}: shutting down in order; a second signal ends at once");
            wishes.status.set_stage(SyncStage::Stopping);
            wishes.stop.cancel();
        }
    }
}
