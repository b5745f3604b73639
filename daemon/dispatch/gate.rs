//! Whether a target may be spoken to: pauses that it asked for, and a breaker that opens when it does not answer, or, for one
//! kind of object alone, when it answers that it is broken.
//!
//! Pure: `now` is a parameter.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::retry::jittered;

/// Failures in a row after which the breaker opens.
const OPEN_AFTER: u32 = 3;
/// Longest time the breaker stays open between probes, at first; then it is a part of the time that the target has been away, so that
/// an hour without it costs some 260 requests, and the end of ten minutes is still seen within fifteen seconds.
const MAX_OPEN: Duration = Duration::from_secs(5);
/// One of so many parts of it.
const PART_OF_OUTAGE: u32 = 40;
/// Longest time between probes, however long it has been away.
const MAX_OPEN_EVER: Duration = Duration::from_secs(30);
/// First time it stays open.
const FIRST_OPEN: Duration = Duration::from_millis(250);
/// First pause after a 429 that does not say how long; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest one.
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// First pause after our credentials were refused, and the longest: then one request finds out whether that has changed.
const FIRST_UNAUTHORISED: Duration = Duration::from_secs(30);
const MAX_UNAUTHORISED: Duration = Duration::from_secs(300);

/// What a gate is closed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// The target asked for a pause.
    Throttled,
    /// It refuses our credentials.
    Unauthorised,
    /// It does not answer, or answers that it is broken.
    Failing,
}

impl Closed {
    /// For people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Throttled => "throttled",
            Self::Unauthorised => "unauthorised",
            Self::Failing => "failing",
        }
    }
}

/// Invariant: while `now < until` nothing passes. While it is closed for something, one request at a time does, to find out.
#[derive(Debug, Clone, Default)]
struct Gate {
    until: Option<Instant>,
    why: Option<Closed>,
    failures: u32,
    /// Since when it has been failing without a break.
    failing_since: Option<Instant>,
}

impl Gate {
    fn opens_at(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|until| *until > now)
    }

    fn close(&mut self, why: Closed, until: Instant) {
        self.why = Some(why);
        self.until = Some(self.until.map_or(until, |earlier| earlier.max(until)));
    }

    fn is_well(&mut self) {
        self.why = None;
        self.failures = 0;
        self.failing_since = None;
    }

    /// How often it has failed so, this time included.
    fn count(&mut self, why: Closed) -> u32 {
        if self.why.is_some_and(|before| before != why) {
            self.failures = 0;
            self.failing_since = None;
        }
        self.failures = self.failures.saturating_add(1);
        self.failures
    }

    fn failed(&mut self, now: Instant, draw: f64) {
        let failures = self.count(Closed::Failing);
        let since = *self.failing_since.get_or_insert(now);
        if failures >= OPEN_AFTER {
            let away = now.saturating_duration_since(since);
            let most = (away / PART_OF_OUTAGE).clamp(MAX_OPEN, MAX_OPEN_EVER);
            let open = doubled(FIRST_OPEN, failures - OPEN_AFTER, most);
            self.close(Closed::Failing, now + jittered(open, draw));
        }
    }
}

fn doubled(first: Duration, times: u32, most: Duration) -> Duration {
    first.saturating_mul(1 << times.min(12)).min(most)
}

/// The gates of a target: of all of it, and of each kind of object.
#[derive(Debug, Default)]
pub struct Gates(Mutex<(Gate, HashMap<String, Gate>)>);

impl Gates {
    fn lock(&self) -> MutexGuard<'_, (Gate, HashMap<String, Gate>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the next request about `object` may leave; `None` means now.
    #[must_use]
    pub fn opens_at(&self, object: &str, now: Instant) -> Option<Instant> {
        let gates = self.lock();
        let of_object = gates.1.get(object).and_then(|gate| gate.opens_at(now));
        gates.0.opens_at(now).max(of_object)
    }

    /// When the target as a whole may be spoken to again; `None` means now.
    #[must_use]
    pub fn all_open_at(&self, now: Instant) -> Option<Instant> {
        self.lock().0.opens_at(now)
    }

    /// When the first of the objects that wait may be spoken of again.
    #[must_use]
    pub fn next_opens_at(&self, now: Instant) -> Option<Instant> {
        let gates = self.lock();
        gates.0.opens_at(now).or_else(|| gates.1.values().filter_map(|gate| gate.opens_at(now)).min())
    }

    /// Why one request at a time is enough for the target as a whole.
    #[must_use]
    pub fn probing(&self) -> Option<Closed> {
        self.lock().0.why
    }

    /// True when one request at a time is enough for this kind of object.
    #[must_use]
    pub fn probing_object(&self, object: &str) -> bool {
        self.lock().1.get(object).is_some_and(|gate| gate.why.is_some())
    }

    /// Lets everything pass again, as an operator orders: what is wrong shows by itself.
    pub fn lift(&self) {
        *self.lock() = (Gate::default(), HashMap::new());
    }

    /// Objects that the target answers it is broken for.
    #[must_use]
    pub fn closed_objects(&self) -> Vec<String> {
        let gates = self.lock();
        let mut closed: Vec<String> =
            gates.1.iter().filter(|(_, gate)| gate.why.is_some()).map(|(object, _)| object.clone()).collect();
        closed.sort_unstable();
        closed
    }

    /// The target answered.
    pub fn answered(&self, object: &str) {
        let mut gates = self.lock();
        gates.0.is_well();
        gates.1.remove(object);
    }

    /// The target asked for a pause.
    pub fn throttled(&self, now: Instant, wait: Option<Duration>) {
        let gate = &mut self.lock().0;
        if gate.opens_at(now).is_some() {
            // It was on its way when another one was refused.
            gate.close(Closed::Throttled, now + wait.unwrap_or_default());
            return;
        }
        let failures = gate.count(Closed::Throttled);
        let pause = wait.unwrap_or(doubled(FIRST_PAUSE, failures - 1, MAX_PAUSE));
        gate.close(Closed::Throttled, now + pause);
    }

    /// Our credentials were refused.
    pub fn unauthorised(&self, now: Instant) {
        let gate = &mut self.lock().0;
        if gate.opens_at(now).is_none() {
            let failures = gate.count(Closed::Unauthorised);
            gate.close(
                Closed::Unauthorised,
                now + doubled(FIRST_UNAUTHORISED, failures - 1, MAX_UNAUTHORISED),
            );
        }
    }

    /// The target did not answer. `draw` is uniform in 0..1.
    pub fn silent(&self, now: Instant, draw: f64) {
        self.lock().0.failed(now, draw);
    }

    /// The target answered that it is broken, to a request about `object`.
    pub fn failed(&self, object: &str, now: Instant, draw: f64) {
        let mut gates = self.lock();
        // Whoever says so is there, and knows us.
        gates.0.is_well();
        gates.1.entry(object.to_owned()).or_default().failed(now, draw);
    }
}
