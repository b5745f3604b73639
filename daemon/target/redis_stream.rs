//! Messages into a stream of Redis. A message and the note that it is there are written by one script, so that one that comes
//! again is known for as long as the note is kept.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::SendError;
use crate::cache::{CacheSettings, Connection, connect};
use crate::connector::classify::Answer;
use crate::connector::request::Request;

/// Until a connection stands.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// Until a message is stored.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a message is known.
const KNOWN_S: u64 = 7 * 86_400;

/// KEYS: the stream, the note. ARGV: the message, its type, how long the note is kept.
const SCRIPT: &str = "
local known = redis.call('GET', KEYS[2])
if known then return {known, 1} end
local id = redis.call('XADD', KEYS[1], '*', 'content-type', ARGV[2], 'event', ARGV[1])
redis.call('SET', KEYS[2], id, 'EX', ARGV[3])
return {id, 0}";

/// See the module's text.
pub struct RedisStreamTarget {
    settings: CacheSettings,
    script: redis::Script,
    connection: Mutex<Option<Connection>>,
}

impl RedisStreamTarget {
    /// Nothing is connected until the first message.
    #[must_use]
    pub fn new(settings: CacheSettings) -> Self {
        Self { settings, script: redis::Script::new(SCRIPT), connection: Mutex::default() }
    }

    async fn connection(&self) -> Result<Connection, SendError> {
        let mut known = self.connection.lock().await;
        if let Some(connection) = known.as_ref() {
            return Ok(connection.clone());
        }
        let made = timeout(CONNECT_PATIENCE, connect(&self.settings)).await;
        let made = made.unwrap_or_else(|_| Err("no connection in time".into()));
        Ok(known.insert(made.map_err(SendError::NotSent)?).clone())
    }

    /// Sends one message; the path is the key of its stream.
    pub async fn send(&self, request: &Request, key: &str) -> Result<Answer, SendError> {
        let mut connection = self.connection().await?;
        let stream = request.path.trim_start_matches('/');
        let mut call = self.script.prepare_invoke();
        // Both on one node of a cluster.
        call.key(stream).key(format!("tailwater:sent:{{{stream}}}:{key}"));
        call.arg(request.body.as_deref().unwrap_or_default())
            .arg("application/cloudevents+json")
            .arg(KNOWN_S);
        match timeout(PATIENCE, call.invoke_async::<(String, i64)>(&mut connection)).await {
            Ok(Ok((id, known))) => Ok(answer(200, json!({"id": id, "duplicate": known == 1}))),
            Ok(Err(error)) if error.is_io_error() || error.is_timeout() || error.is_connection_dropped() => {
                *self.connection.lock().await = None;
                Err(SendError::NoAnswer(error.to_string()))
            }
            // Redis says no: full, read-only, no right to.
            Ok(Err(error)) => {
                Ok(answer(503, json!({"error": {"code": error.code().unwrap_or("error").to_lowercase()}})))
            }
            Err(_) => {
                *self.connection.lock().await = None;
                Err(SendError::NoAnswer("no answer in time".into()))
            }
        }
    }
}

fn answer(status: u16, body: serde_json::Value) -> Answer {
    Answer { status, headers: BTreeMap::new(), body, flaw: None }
}
