//! When to try again, and what to do about a request whose outcome is not known. Pure.

use std::time::Duration;

/// First wait after a failure.
const FIRST: Duration = Duration::from_millis(200);
/// Longest wait between attempts.
const LONGEST: Duration = Duration::from_secs(60);
/// Every so many attempts of a create that is answered with server errors, the object is looked for instead: a vendor
/// that stored the error for the key would replay it for as long as it keeps the key.
const LOOK_EVERY: i32 = 5;

/// `full` shortened by up to half. `draw` is uniform in 0..1.
#[must_use]
pub fn jittered(full: Duration, draw: f64) -> Duration {
    full.mul_f64(1.0 - 0.5 * draw.clamp(0.0, 1.0))
}

/// The wait after `attempts` attempts.
#[must_use]
pub fn backoff(attempts: i32, draw: f64) -> Duration {
    let doublings = u32::try_from(attempts.saturating_sub(1)).unwrap_or_default().min(16);
    jittered(FIRST.saturating_mul(1 << doublings).min(LONGEST), draw)
}

/// What is known about a request in doubt.
#[derive(Debug, Clone, Copy)]
pub struct Doubt {
    /// Sending it twice is the same as sending it once, whatever the key: an upsert, an update, a delete.
    pub repeatable: bool,
    /// How long the vendor recognises the key; `None` when there is no key.
    pub key_window: Option<Duration>,
    /// Age of the first attempt with this key.
    pub age: Duration,
    /// Attempts so far.
    pub attempts: i32,
    /// The last one was answered with a server error.
    pub server_error: bool,
    /// The connector can look the object up.
    pub can_find: bool,
}

/// The way out of a doubt (INV-3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolution {
    /// Send the very same bytes with the same key.
    Resend,
    /// Look the object up by our id.
    Find,
    /// Nothing is safe: a person decides.
    Park,
}

/// The ladder: repeatable, then key inside its window, then look-up, then park.
#[must_use]
pub fn resolve(doubt: &Doubt) -> Resolution {
    if doubt.repeatable {
        return Resolution::Resend;
    }
    let in_window = doubt.key_window.is_some_and(|window| doubt.age < window);
    let look_now = doubt.server_error && doubt.attempts > 0 && doubt.attempts % LOOK_EVERY == 0;
    match (in_window, doubt.can_find) {
        (true, true) if look_now => Resolution::Find,
        (true, _) => Resolution::Resend,
        (false, true) => Resolution::Find,
        (false, false) => Resolution::Park,
    }
}
