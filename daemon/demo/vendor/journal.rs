//! What a vendor saw: every request, every side effect.

use std::collections::BTreeMap;

/// One request.
#[derive(Debug, Clone)]
pub struct Call {
    /// Seconds since the vendor started.
    pub at_s: f64,
    /// `POST /v1/customers`.
    pub line: String,
    /// Status answered, also when the answer was then swallowed; 0 when it was cut off before.
    pub status: u16,
    /// Idempotency key.
    pub key: Option<String>,
    /// External id of the object it changed.
    pub changed: Option<String>,
    /// It was carried out and changed nothing.
    pub nil: bool,
    /// Digest of line, query and body: the same for a request that is sent again.
    pub digest: String,
    /// Its answer was swallowed.
    pub swallowed: bool,
}

/// See the module's text.
#[derive(Debug, Clone, Default)]
pub struct Journal {
    /// All requests, in order.
    pub calls: Vec<Call>,
}

impl Journal {
    /// Requests that were carried out and changed nothing.
    #[must_use]
    pub fn nil_effects(&self) -> usize {
        self.calls.iter().filter(|call| call.nil).count()
    }

    /// Requests that were carried out, changed nothing, and had no reason to be sent: they are no repetition of one whose answer was
    /// swallowed, or which was sent less than `before_s` before one of these instants.
    #[must_use]
    pub fn echoes(&self, kills: &[f64], before_s: f64) -> Vec<&Call> {
        let in_doubt = |call: &Call| {
            call.swallowed
                || call.status == 0
                || kills.iter().any(|kill| (kill - before_s..=*kill).contains(&call.at_s))
        };
        let nil = self.calls.iter().enumerate().filter(|(_, call)| call.nil);
        let echo = |(index, call): &(usize, &Call)| {
            !self.calls.iter().take(*index).any(|earlier| earlier.digest == call.digest && in_doubt(earlier))
        };
        nil.filter(echo).map(|(_, call)| call).collect()
    }

    /// Requests that changed something.
    #[must_use]
    pub fn effects(&self) -> usize {
        self.calls.iter().filter(|call| call.changed.is_some()).count()
    }

    /// The most requests in any window of `window_s` seconds.
    #[must_use]
    pub fn busiest(&self, window_s: f64) -> usize {
        let times: Vec<f64> = self.calls.iter().map(|call| call.at_s).collect();
        let mut start = 0;
        let mut most = 0;
        for (end, at) in times.iter().enumerate() {
            while times.get(start).is_some_and(|first| at - first >= window_s) {
                start += 1;
            }
            most = most.max(end + 1 - start);
        }
        most
    }

    /// Calls by status.
    #[must_use]
    pub fn by_status(&self) -> BTreeMap<u16, usize> {
        let mut counts = BTreeMap::new();
        for call in &self.calls {
            *counts.entry(call.status).or_default() += 1;
        }
        counts
    }
}
