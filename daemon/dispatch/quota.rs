//! Allowed request rates.

use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::DefaultClock;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota as Cells, RateLimiter};

/// `80/s`, `600/min`, `5000/h`, `100000/d`: at most so many requests in any window of that length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Requests per window, at least 1.
    pub requests: NonZeroU32,
    /// Window length.
    pub window: Duration,
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.window.as_secs() {
            1 => write!(f, "{}/s", self.requests),
            60 => write!(f, "{}/min", self.requests),
            3_600 => write!(f, "{}/h", self.requests),
            _ => write!(f, "{}/d", self.requests),
        }
    }
}

impl Quota {
    /// Parses the form of the settings file.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (count, unit) = text.split_once('/')?;
        let seconds = match unit.trim() {
            "s" => 1,
            "min" | "m" => 60,
            "h" => 3_600,
            "d" => 86_400,
            _ => return None,
        };
        let requests = count.trim().parse::<u32>().ok().and_then(NonZeroU32::new)?;
        Some(Self { requests, window: Duration::from_secs(seconds) })
    }

    /// How many deliveries may be on their way to their permit: what leaves within a tenth of a second, and one.
    #[must_use]
    pub fn ahead(&self) -> usize {
        let tenths = self.window.as_millis().div_ceil(100).max(1);
        1 + usize::try_from(u128::from(self.requests.get()) / tenths).unwrap_or(usize::MAX)
    }

    /// Burst and refill interval of a bucket that never lets more than `requests` pass in any window.
    ///
    /// A bucket of burst b refilled at rate r lets b + r·w pass in a window w, so r = (requests − b) / w. A twentieth
    /// of the quota is left as burst; where the network bunches requests up, one more is held back.
    #[must_use]
    pub fn bucket(&self) -> (NonZeroU32, Duration) {
        let burst = (self.requests.get() / 20).clamp(1, 50);
        let refill = self.requests.get().saturating_sub(burst + 1).max(1);
        (NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN), self.window / refill + ROUNDED_UP)
    }
}

/// Division of durations rounds down, which would let one request too many pass at high rates.
const ROUNDED_UP: Duration = Duration::from_nanos(1);

/// Paces the requests of one target.
#[derive(Debug)]
pub struct Pacer {
    limiter: RateLimiter<NotKeyed, InMemoryState, DefaultClock>,
}

impl Pacer {
    /// A pacer that starts empty: what an earlier process sent within the window is not known here, so the burst has
    /// to be earned first.
    #[must_use]
    pub fn new(quota: Quota) -> Self {
        let (burst, interval) = quota.bucket();
        let cells =
            Cells::with_period(interval).unwrap_or(Cells::per_second(NonZeroU32::MIN)).allow_burst(burst);
        let limiter = RateLimiter::direct(cells);
        // A burst never exceeds the bucket, so it is always granted.
        let _ = limiter.check_n(burst);
        Self { limiter }
    }

    /// Waits for a permit.
    pub async fn permit(&self) {
        self.limiter.until_ready().await;
    }
}
