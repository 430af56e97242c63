//! Time, behind one door: production reads the system clock, tests and the simulation set it.
//!
//! Nothing else in the engine asks the system for the time, so that delays, back-offs and lag can be tested by
//! moving a number instead of sleeping. It never waits; who must wait does so in the loop that owns the state.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A source of wall-clock time. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub enum Clock {
    /// The system's clock.
    #[default]
    System,
    /// A clock that stands still until it is set: milliseconds since the Unix epoch.
    Manual(Arc<AtomicI64>),
}

impl Clock {
    /// Milliseconds since the Unix epoch.
    #[must_use]
    pub fn now_ms(&self) -> i64 {
        match self {
            Self::System => {
                let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
                i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX)
            }
            Self::Manual(ms) => ms.load(Ordering::SeqCst),
        }
    }
}
