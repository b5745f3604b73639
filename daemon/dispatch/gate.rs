//! Whether a target may be spoken to at all: pauses that it asked for, and a breaker for one that does not answer.
//!
//! Pure: `now` is a parameter.

use std::time::Duration;

use tokio::time::Instant;

/// Failures in a row after which the breaker opens.
const OPEN_AFTER: u32 = 3;
/// Longest time the breaker stays open between probes.
const MAX_OPEN: Duration = Duration::from_secs(15);
/// First time it stays open.
const FIRST_OPEN: Duration = Duration::from_millis(250);

/// See the module's text. Invariant: while `now < closed_until` nothing is sent. While probing, the dispatcher starts one
/// delivery at a time.
#[derive(Debug, Clone, Default)]
pub struct Gate {
    closed_until: Option<Instant>,
    failures: u32,
}

impl Gate {
    /// When the next request may leave; `None` means now.
    #[must_use]
    pub fn opens_at(&self, now: Instant) -> Option<Instant> {
        self.closed_until.filter(|until| *until > now)
    }

    /// True while the target has failed so often that one request at a time is enough to find out.
    #[must_use]
    pub fn probing(&self) -> bool {
        self.failures >= OPEN_AFTER
    }

    /// The target answered.
    pub fn answered(&mut self) {
        self.failures = 0;
    }

    /// The target asked for a pause.
    pub fn pause(&mut self, now: Instant, wait: Duration) {
        let until = now + wait;
        self.closed_until = Some(self.closed_until.map_or(until, |earlier| earlier.max(until)));
    }

    /// The target did not answer, or answered that it is broken. `draw` is uniform in 0..1.
    pub fn failed(&mut self, now: Instant, draw: f64) {
        self.failures = self.failures.saturating_add(1);
        if self.failures >= OPEN_AFTER {
            let doubled = FIRST_OPEN.saturating_mul(1 << (self.failures - OPEN_AFTER).min(10));
            self.pause(now, super::retry::jittered(doubled.min(MAX_OPEN), draw));
        }
    }
}
