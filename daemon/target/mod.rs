//! One request, one answer. No retry, no sleep, no queue.

pub mod http;

use std::collections::BTreeMap;

use serde_json::json;

pub use http::{HttpTarget, SendError};

use crate::connector::classify::Answer;
use crate::connector::request::Request;

/// The way to a target.
#[derive(Debug)]
pub enum Way {
    /// HTTP.
    Http(HttpTarget),
    /// Everything is accepted, and goes nowhere.
    Discard,
}

impl Way {
    /// Sends `request` once.
    pub async fn send(&self, request: &Request, idempotency_key: &str) -> Result<Answer, SendError> {
        match self {
            Self::Http(http) => http.send(request, idempotency_key).await,
            Self::Discard => {
                Ok(Answer { status: 200, headers: BTreeMap::new(), body: json!({"id": idempotency_key}) })
            }
        }
    }
}
