//! Messages into a stream of NATS JetStream, each acknowledged by the server once it is stored. The server drops a message that
//! comes again with the same id within its duplicate window. <https://docs.nats.io/nats-concepts/jetstream/headers>

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::{ConnectOptions, HeaderMap};
use serde_json::json;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::SendError;
use crate::config::secret::Secret;
use crate::connector::classify::Answer;
use crate::connector::request::Request;

/// Until a connection stands.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// Until a message is stored.
const PATIENCE: Duration = Duration::from_secs(10);

/// See the module's text.
pub struct NatsTarget {
    url: String,
    user: Option<String>,
    /// Password of the user, or a token when there is none.
    secret: Option<Secret>,
    context: Mutex<Option<Context>>,
}

impl NatsTarget {
    /// Nothing is connected until the first message.
    #[must_use]
    pub fn new(url: &str, user: Option<&str>, secret: Option<Secret>) -> Self {
        Self { url: url.to_owned(), user: user.map(str::to_owned), secret, context: Mutex::default() }
    }

    async fn context(&self) -> Result<Context, SendError> {
        let mut known = self.context.lock().await;
        if let Some(context) = known.as_ref() {
            return Ok(context.clone());
        }
        let not_sent = |reason: String| SendError::NotSent(reason);
        let secret =
            self.secret.as_ref().map(Secret::read).transpose().map_err(|e| not_sent(e.to_string()))?;
        let secret = secret.map(|secret| secret.expose().to_owned());
        let mut options = ConnectOptions::new().name("tailwater").connection_timeout(CONNECT_PATIENCE);
        options = match (&self.user, secret) {
            (Some(user), secret) => options.user_and_password(user.clone(), secret.unwrap_or_default()),
            (None, Some(token)) => options.token(token),
            (None, None) => options,
        };
        let client = options.connect(&self.url).await.map_err(|error| not_sent(error.to_string()))?;
        let context = async_nats::jetstream::new(client);
        Ok(known.insert(context).clone())
    }

    /// Sends one message; the path is its subject.
    pub async fn send(&self, request: &Request, key: &str) -> Result<Answer, SendError> {
        let context = self.context().await?;
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", key);
        headers.insert("Content-Type", "application/cloudevents+json");
        let subject = request.path.trim_start_matches('/').to_owned();
        let body = request.body.clone().unwrap_or_default();
        let published = timeout(PATIENCE, async {
            context.publish_with_headers(subject, headers, body.into()).await?.await
        });
        match published.await {
            Ok(Ok(ack)) => {
                let id = format!("{}:{}", ack.stream, ack.sequence);
                Ok(answer(200, json!({"id": id, "duplicate": ack.duplicate})))
            }
            Ok(Err(error)) if error.kind() == PublishErrorKind::StreamNotFound => {
                Ok(answer(404, json!({"error": {"code": "no_stream_takes_this_subject"}})))
            }
            Ok(Err(error)) => Err(SendError::NoAnswer(error.to_string())),
            Err(_) => Err(SendError::NoAnswer("not stored in time".into())),
        }
    }
}

fn answer(status: u16, body: serde_json::Value) -> Answer {
    Answer { status, headers: BTreeMap::new(), body }
}
