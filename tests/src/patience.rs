//! How long the harness waits for what should come soon: equality, a line of the log, an end.
//!
//! Deadlines are generous, since machines are shared and no test measures speed. Where a test is expected to fail, as
//! `cargo xtask guards` expects it, nobody wants to wait for all of them, so the environment may shorten them. It never
//! makes one longer.

use std::time::Duration;

/// Names the environment's limit, in seconds.
pub const VARIABLE: &str = "OPLOGUE_PATIENCE";

/// The deadline, or the environment's where that is shorter.
#[must_use]
pub fn at_most(deadline: Duration) -> Duration {
    let given = std::env::var(VARIABLE).ok().and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
    given.map_or(deadline, |given| given.min(deadline))
}
