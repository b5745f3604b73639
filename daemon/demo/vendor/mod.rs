//! Simulated vendors: they keep the documented contract (authentication, limits, idempotency, uniqueness, error bodies)
//! and count every request and every side effect. The demo and the tests use the same ones; what is lost or doubled is
//! counted here, not in our own logs.

pub mod event_log;
pub mod faults;
pub mod form;
pub mod journal;
pub mod odoo;
pub mod server;
pub mod stripe;
pub mod stripe_books;
pub mod zendesk;
pub mod zendesk_export;
mod zendesk_jobs;

use std::collections::BTreeMap;

use serde_json::Value;

/// A request as the vendor sees it.
#[derive(Debug, Clone)]
pub struct Incoming {
    /// HTTP method.
    pub method: String,
    /// Path without query.
    pub path: String,
    /// Query parameters, decoded.
    pub query: BTreeMap<String, String>,
    /// Headers, names in lower case.
    pub headers: BTreeMap<String, String>,
    /// Body.
    pub body: Vec<u8>,
}

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Headers beside the usual ones.
    pub headers: Vec<(String, String)>,
    /// JSON body; null for none.
    pub body: Value,
    /// What it changed.
    pub effect: Effect,
}

/// What a request changed at the vendor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// It was not carried out (a read, a refusal, a replay).
    None,
    /// It was carried out and changed nothing.
    Nil(String),
    /// It changed the object with this external id.
    Changed(String),
}

impl Reply {
    /// An answer that changed nothing.
    #[must_use]
    pub fn plain(status: u16, body: Value) -> Self {
        Self { status, headers: Vec::new(), body, effect: Effect::None }
    }
}

/// A vendor's behaviour.
pub trait Vendor: Send + 'static {
    /// An answer waits for something outside, such as a row that a caller of the runtime holds.
    const WAITS: bool = false;

    /// Answers a request that passed the limits; `now_s` is the vendor's clock.
    fn handle(&mut self, request: &Incoming, now_s: f64) -> Reply;
    /// What an answer says of the limit: allowed per window, left of it, seconds until all of it is there again.
    fn limit_headers(&self, _allowed: usize, _left: usize, _reset_s: f64) -> Vec<(String, String)> {
        Vec::new()
    }
    /// The body of a 429.
    fn throttled(&self) -> Value;
    /// Refuses credentials; `None` when they are right.
    fn refuse(&self, request: &Incoming) -> Option<Reply>;
}
