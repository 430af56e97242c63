//! Backoff: how long to wait before the next try, growing and with jitter.
//!
//! It stands here so that every caller that tries again does so in the same rhythm. It never sleeps and never judges an
//! error; it only counts and computes, and the caller decides when a success resets it.

use std::time::Duration;

/// Exponential backoff between `first` and `longest`.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    tries: u32,
}

impl Backoff {
    /// A backoff that starts at `first` and doubles up to `longest`.
    #[must_use]
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, tries: 0 }
    }

    /// The pause before the next try: doubled each time, between half and all of the step, so that instances that
    /// failed together do not come back together.
    pub fn pause(&mut self) -> Duration {
        let step = self.first.saturating_mul(1 << self.tries.min(20)).min(self.longest);
        self.tries = self.tries.saturating_add(1);
        step.mul_f64(rand::random_range(0.5..=1.0))
    }

    /// Tries since the last success.
    #[must_use]
    pub fn tries(&self) -> u32 {
        self.tries
    }

    /// Starts over after a success.
    pub fn reset(&mut self) {
        self.tries = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_the_limit_and_starts_over() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let pauses: Vec<_> = (0..8).map(|_| backoff.pause()).collect();
        assert!(pauses[0] <= Duration::from_millis(100) && pauses[0] >= Duration::from_millis(50));
        assert!(pauses[7] <= Duration::from_secs(1) && pauses[7] >= Duration::from_millis(500));
        backoff.reset();
        assert!(backoff.pause() <= Duration::from_millis(100));
    }
}
