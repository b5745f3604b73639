//! Deduplication hints in Redis: which keys were delivered. A hit is confirmed by the ledger, a miss is decided by it,
//! and losing all of it costs time only (INV-2).

use std::time::Duration;

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

/// Hints older than this are of no use: the lane has moved on.
const KEPT_SECONDS: u64 = 7 * 86_400;
/// A slower answer is no answer.
const PATIENCE: Duration = Duration::from_millis(100);
/// After a failure Redis is left alone for so long.
const REST: Duration = Duration::from_secs(2);

/// See the module's text.
pub struct Dedup {
    url: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    connection: Option<ConnectionManager>,
    rests_until: Option<Instant>,
}

impl Dedup {
    /// Nothing is connected until the first use.
    #[must_use]
    pub fn new(url: &str) -> Self {
        Self { url: url.to_owned(), state: Mutex::default() }
    }

    /// True when the key may have been delivered: the ledger has to confirm it. Without Redis: false.
    pub async fn may_be_delivered(&self, key: &str) -> bool {
        let mut pipe = redis::pipe();
        pipe.cmd("EXISTS").arg(name(key));
        self.run::<(bool,)>(&pipe).await.is_some_and(|(known,)| known)
    }

    /// Notes that a key was delivered; called after the ledger has it.
    pub async fn delivered(&self, key: &str, seq: i64) {
        let mut pipe = redis::pipe();
        pipe.cmd("SET").arg(name(key)).arg(seq).arg("EX").arg(KEPT_SECONDS).ignore();
        self.run::<()>(&pipe).await;
    }

    /// True when Redis answers now.
    pub async fn is_up(&self) -> bool {
        let mut pipe = redis::pipe();
        pipe.cmd("PING").ignore();
        self.run::<()>(&pipe).await.is_some()
    }

    async fn run<T: redis::FromRedisValue>(&self, pipe: &redis::Pipeline) -> Option<T> {
        let mut connection = self.connection().await?;
        match timeout(PATIENCE, pipe.query_async(&mut connection)).await {
            Ok(Ok(value)) => Some(value),
            Ok(Err(error)) => {
                self.rest(&error.to_string()).await;
                None
            }
            Err(_) => {
                self.rest("no answer in time").await;
                None
            }
        }
    }

    async fn connection(&self) -> Option<ConnectionManager> {
        let mut state = self.state.lock().await;
        if state.rests_until.is_some_and(|until| until > Instant::now()) {
            return None;
        }
        if state.connection.is_none() {
            let config = ConnectionManagerConfig::new()
                .set_number_of_retries(0)
                .set_connection_timeout(Some(PATIENCE))
                .set_response_timeout(Some(PATIENCE));
            let client = redis::Client::open(self.url.as_str()).ok()?;
            match timeout(PATIENCE, client.get_connection_manager_with_config(config)).await {
                Ok(Ok(connection)) => state.connection = Some(connection),
                _ => {
                    drop(state);
                    self.rest("cannot be reached").await;
                    return None;
                }
            }
        }
        state.connection.clone()
    }

    async fn rest(&self, why: &str) {
        let mut state = self.state.lock().await;
        let first = state.rests_until.is_none_or(|until| until + REST < Instant::now());
        state.connection = None;
        state.rests_until = Some(Instant::now() + REST);
        if first {
            tracing::warn!(reason = why, "Redis is not available; the ledger decides alone");
        }
    }
}

fn name(key: &str) -> String {
    format!("tailwater:delivered:{key}")
}
