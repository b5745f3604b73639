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
