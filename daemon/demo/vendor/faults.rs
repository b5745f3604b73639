//! What can go wrong between us and a vendor, by probability.

use std::time::Duration;

/// All off by default. Probabilities are 0 to 1.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// The request is carried out, the connection closed without an answer.
    pub swallow: f64,
    /// The connection is closed before the request is carried out.
    pub reset: f64,
    /// 500 without carrying it out.
    pub error: f64,
    /// 429 with `Retry-After: 1`, whatever the rate.
    pub throttle: f64,
    /// Every request is cut off until this is false again.
    pub down: bool,
    /// Time each request takes.
    pub latency: Duration,
}

/// What happens to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Nothing unusual.
    Normal,
    /// See [`Faults::swallow`].
    Swallow,
    /// See [`Faults::reset`].
    Reset,
    /// See [`Faults::error`].
    Error,
    /// See [`Faults::throttle`].
    Throttle,
}

impl Faults {
    /// Decides by one draw in 0..1.
    #[must_use]
    pub fn fate(&self, draw: f64) -> Fate {
        if self.down {
            return Fate::Reset;
        }
        let mut bound = 0.0;
        let chances = [
            (self.swallow, Fate::Swallow),
            (self.reset, Fate::Reset),
            (self.error, Fate::Error),
            (self.throttle, Fate::Throttle),
        ];
        for (chance, fate) in chances {
            bound += chance;
            if draw < bound {
                return fate;
            }
        }
        Fate::Normal
    }
}
