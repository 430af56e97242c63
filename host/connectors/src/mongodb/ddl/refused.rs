//! What becomes of a command that the target does not take: `incr_sync.ddl_refused`.
//!
//! By default the run stops, because everything after it may rest on it. An operator who knows better lets such
//! commands be skipped; each is then named in the log and counted, never passed over in silence. A fault that may pass,
//! and one of Oplogue itself, is no refusal.

use oplogue_engine::error::{Action, Error, Kind, Result, Side};
use oplogue_engine::model::{Namespace, OpTime};

use super::MongoSink;

/// What to do with a DDL that the target refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DdlRefused {
    /// Stop the run before the entry.
    #[default]
    Stop,
    /// Log it, count it and go on without it.
    Skip,
}

impl MongoSink {
    /// Weighs an error of a DDL: hands it back, or notes that the command is left out.
    pub(super) fn refused(&self, command: &str, namespace: &Namespace, time: OpTime, error: Error) -> Result<()> {
        if !is_refusal(&error) {
            return Err(error.context(format!("entry at {time}")));
        }
        if self.options.ddl_refused == DdlRefused::Stop {
            let what =
                "correct the target and start again, or set incr_sync.ddl_refused = \"skip\" to go on without it";
            return Err(error.context(format!("entry at {time}: the target does not take a DDL ({what})")));
        }
        self.counters.one_refused_ddl();
        tracing::warn!(command, %namespace, position = %time, %error, "a DDL that the target refuses is skipped");
        Ok(())
    }
}

/// Whether the target said no for good.
fn is_refusal(error: &Error) -> bool {
    error.side() == Side::Sink
        && error.action() == Action::Stop
        && match error.kind() {
            Kind::Unauthorized | Kind::Unsupported | Kind::CannotApply | Kind::Conflict | Kind::Misconfigured => true,
            Kind::Unavailable
            | Kind::FailedOver
            | Kind::CursorLost
            | Kind::HistoryLost
            | Kind::Malformed
            | Kind::Fenced
            | Kind::PluginFault
            | Kind::Exhausted
            | Kind::Bug => false,
        }
}
