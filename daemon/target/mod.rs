//! One request, one answer. No retry, no sleep, no queue.

pub mod http;
pub mod nats;
pub mod redis_stream;

use std::collections::BTreeMap;

use serde_json::json;

pub use http::{HttpTarget, SendError};
pub use nats::NatsTarget;
pub use redis_stream::RedisStreamTarget;

use crate::connector::classify::Answer;
use crate::connector::request::Request;

/// The way to a target.
pub enum Way {
    /// HTTP.
    Http(HttpTarget),
    /// NATS JetStream.
    Nats(NatsTarget),
    /// A stream of Redis.
    RedisStream(RedisStreamTarget),
    /// Everything is accepted, and goes nowhere.
    Discard,
}

impl Way {
    /// Where it leads; nothing where requests have no address.
    #[must_use]
    pub fn base_url(&self) -> &str {
        match self {
            Self::Http(http) => http.base_url(),
            Self::Nats(_) | Self::RedisStream(_) | Self::Discard => "",
        }
    }

    /// Sends `request` once.
    pub async fn send(&self, request: &Request, idempotency_key: &str) -> Result<Answer, SendError> {
        match self {
            Self::Http(http) => http.send(request, idempotency_key).await,
            Self::Nats(nats) => nats.send(request, idempotency_key).await,
            Self::RedisStream(stream) => stream.send(request, idempotency_key).await,
            Self::Discard => {
                let body = json!({"id": idempotency_key});
                Ok(Answer { status: 200, headers: BTreeMap::new(), body, flaw: None })
            }
        }
    }
}
