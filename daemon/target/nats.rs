//! Messages into a stream of NATS JetStream, each acknowledged by the server once it is stored. The server drops a message that
//! comes again with the same id within its duplicate window. <https://docs.nats.io/nats-concepts/jetstream/headers>

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::Context;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::{ConnectErrorKind, ConnectOptions, HeaderMap};
use serde_json::json;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::SendError;
use crate::config::secret::Secret;
use crate::connector::classify::Answer;
use crate::connector::request::Request;

/// Until a connection stands.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// How often a lost connection tries to come back.
const RECONNECTS: usize = 3;
/// Until a message is stored.
const PATIENCE: Duration = Duration::from_secs(10);

/// See the module's text.
pub struct NatsTarget {
    url: String,
    user: Option<String>,
    /// Password of the user, or a token when there is none.
    secret: Option<Secret>,
    connected: Mutex<Option<Context>>,
}

impl NatsTarget {
    /// Nothing is connected until the first message.
    #[must_use]
    pub fn new(url: &str, user: Option<&str>, secret: Option<Secret>) -> Self {
        Self { url: url.to_owned(), user: user.map(str::to_owned), secret, connected: Mutex::default() }
    }

    /// A connection that stands. One that does not is made anew, with the secret as it is now: what is published on a lost one
    /// would leave whenever it comes back.
    async fn context(&self) -> Result<Result<Context, Answer>, SendError> {
        let mut connected = self.connected.lock().await;
        if let Some(context) = connected.as_ref()
            && context.client().connection_state() == State::Connected
        {
            return Ok(Ok(context.clone()));
        }
        *connected = None;
        let not_sent = |reason: String| SendError::NotSent(reason);
        let secret =
            self.secret.as_ref().map(Secret::read).transpose().map_err(|e| not_sent(e.to_string()))?;
        let secret = secret.map(|secret| secret.expose().to_owned());
        let mut options = ConnectOptions::new().name("tailwater").connection_timeout(CONNECT_PATIENCE);
        // One that is lost for longer is made anew here, and must not go on by itself.
        options = options.max_reconnects(RECONNECTS);
        options = match (&self.user, secret) {
            (Some(user), secret) => options.user_and_password(user.clone(), secret.unwrap_or_default()),
            (None, Some(token)) => options.token(token),
            (None, None) => options,
        };
        let client = match options.connect(&self.url).await {
            Ok(client) => client,
            Err(error) if error.kind() == ConnectErrorKind::AuthorizationViolation => {
                return Ok(Err(answer(401, refusal("authorization_violation"))));
            }
            Err(error) => return Err(not_sent(error.to_string())),
        };
        let context = async_nats::jetstream::new(client);
        *connected = Some(context.clone());
        Ok(Ok(context))
    }

    /// Sends one message; the path is its subject.
    pub async fn send(&self, request: &Request, key: &str) -> Result<Answer, SendError> {
        let subject = request.path.trim_start_matches('/').to_owned();
        if !is_subject(&subject) {
            return Ok(answer(400, refusal("invalid_subject")));
        }
        let context = timeout(2 * CONNECT_PATIENCE, self.context()).await;
        let context = context.unwrap_or_else(|_| Err(SendError::NotSent("no connection in time".into())));
        let context = match context? {
            Ok(context) => context,
            Err(refused) => return Ok(refused),
        };
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", key);
        headers.insert("Content-Type", "application/cloudevents+json");
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
                Ok(answer(404, refusal("no_stream_takes_this_subject")))
            }
            // The client knows the server's limit, and sends nothing.
            Ok(Err(error)) if error.kind() == PublishErrorKind::MaxPayloadExceeded => {
                Ok(answer(413, refusal("max_payload_exceeded")))
            }
            Ok(Err(error)) => Err(SendError::NoAnswer(error.to_string())),
            Err(_) => Err(SendError::NoAnswer("not stored in time".into())),
        }
    }
}

/// Tokens without spaces and wildcards, with dots between them: <https://docs.nats.io/nats-concepts/subjects>.
fn is_subject(subject: &str) -> bool {
    let is_token = |token: &str| {
        !token.is_empty()
            && !token.contains(|c: char| c.is_whitespace() || c.is_control() || "*>".contains(c))
    };
    subject.split('.').all(is_token)
}

fn refusal(code: &str) -> serde_json::Value {
    json!({"error": {"code": code}})
}

fn answer(status: u16, body: serde_json::Value) -> Answer {
    Answer { status, headers: BTreeMap::new(), body, flaw: None }
}
