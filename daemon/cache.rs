//! Redis: what processes share to be fast, never the truth. Whatever happens to it, the worst is that an answer is missing
//! (INV-2).
//!
//! One server, a master that Sentinels name, or a cluster; over TLS where the URL says `rediss`; as an ACL user.

use std::path::PathBuf;
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::ClusterClientBuilder;
use redis::cluster_async::ClusterConnection;
use redis::sentinel::{SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, Cmd, FromRedisValue, IntoConnectionInfo, Pipeline, RedisFuture,
    RedisResult, TlsCertificates, Value,
};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use crate::config::secret::Secret;

/// A slower answer is no answer.
const PATIENCE: Duration = Duration::from_millis(100);
/// A connection may take longer: it is made once.
const CONNECT_PATIENCE: Duration = Duration::from_millis(500);
/// The driver's own limits: ours are shorter.
const LONGEST: Duration = Duration::from_secs(30);
/// After a failure Redis is left alone for so long.
const REST: Duration = Duration::from_secs(2);

/// How the servers stand together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shape {
    /// One server.
    Single,
    /// Sentinels that know the master of this name.
    Sentinel(String),
    /// Nodes of a cluster.
    Cluster,
}

/// Where Redis is and as whom it is spoken to.
#[derive(Debug, Clone)]
pub struct CacheSettings {
    /// URLs: of the server, of the Sentinels, or of some nodes of the cluster.
    pub urls: Vec<String>,
    /// How they stand together.
    pub shape: Shape,
    /// ACL user; `default` when `None`.
    pub user: Option<String>,
    /// Its password.
    pub password: Option<Secret>,
    /// Certificate authorities to trust instead of the system's.
    pub root_certificates: Option<PathBuf>,
}

impl CacheSettings {
    /// One server.
    #[must_use]
    pub fn single(url: &str) -> Self {
        Self {
            urls: vec![url.to_owned()],
            shape: Shape::Single,
            user: None,
            password: None,
            root_certificates: None,
        }
    }
}

/// A connection, whatever the servers' shape.
#[derive(Clone)]
pub enum Connection {
    /// To one server.
    Single(MultiplexedConnection),
    /// To all nodes.
    Cluster(ClusterConnection),
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Single(connection) => connection.req_packed_command(command),
            Self::Cluster(connection) => connection.req_packed_command(command),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        commands: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Single(connection) => connection.req_packed_commands(commands, offset, count),
            Self::Cluster(connection) => connection.req_packed_commands(commands, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Single(connection) => connection.get_db(),
            Self::Cluster(connection) => connection.get_db(),
        }
    }
}

/// See the module's text.
pub struct Cache {
    settings: CacheSettings,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    connection: Option<Connection>,
    rests_until: Option<Instant>,
}

impl Cache {
    /// Nothing is connected until the first use.
    #[must_use]
    pub fn new(settings: CacheSettings) -> Self {
        Self { settings, state: Mutex::default() }
    }

    /// The answer to a command, or nothing.
    pub async fn query<T: FromRedisValue>(&self, command: &Cmd) -> Option<T> {
        let mut connection = self.connection().await?;
        self.in_time(command.query_async(&mut connection)).await
    }

    /// The answer of a script, or nothing.
    pub async fn script<T: FromRedisValue>(&self, call: &redis::ScriptInvocation<'_>) -> Option<T> {
        let mut connection = self.connection().await?;
        self.in_time(call.invoke_async(&mut connection)).await
    }

    /// True when Redis answers now.
    pub async fn is_up(&self) -> bool {
        let mut ping = redis::cmd("EXISTS");
        ping.arg("tailwater:ping");
        self.query::<i64>(&ping).await.is_some()
    }

    /// What Redis does when its memory is full: `noeviction` and so on; nothing when it does not say.
    pub async fn eviction_policy(&self) -> Option<String> {
        let mut info = redis::cmd("INFO");
        info.arg("memory");
        let mut connection = self.connection().await?;
        // Each node of a cluster says it for itself; one of them is asked.
        let text = timeout(CONNECT_PATIENCE, info.query_async::<String>(&mut connection)).await;
        let text = text.ok()?.ok()?;
        text.lines()
            .find_map(|line| line.strip_prefix("maxmemory_policy:"))
            .map(|policy| policy.trim().to_owned())
    }

    async fn in_time<T>(&self, answer: impl Future<Output = RedisResult<T>>) -> Option<T> {
        match timeout(PATIENCE, answer).await {
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

    async fn connection(&self) -> Option<Connection> {
        let mut state = self.state.lock().await;
        if state.rests_until.is_some_and(|until| until > Instant::now()) {
            return None;
        }
        if state.connection.is_none() {
            match timeout(CONNECT_PATIENCE, connect(&self.settings)).await {
                Ok(Ok(connection)) => state.connection = Some(connection),
                failed => {
                    drop(state);
                    let why = failed.map_or_else(
                        |_| "cannot be reached".to_owned(),
                        |result| match result {
                            Err(why) => why,
                            Ok(_) => String::new(),
                        },
                    );
                    self.rest(&why).await;
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

/// Connects; limits of time are the caller's.
pub async fn connect(settings: &CacheSettings) -> Result<Connection, String> {
    let CacheSettings { urls, shape, user, password, root_certificates } = settings;
    let password = password.as_ref().map(Secret::read).transpose().map_err(|error| error.to_string())?;
    let password = password.as_ref().map(|password| password.expose());
    let root_cert =
        root_certificates.as_ref().map(std::fs::read).transpose().map_err(|error| error.to_string())?;
    let certificates = root_cert.map(|pem| TlsCertificates { client_tls: None, root_cert: Some(pem) });
    let said = |error: redis::RedisError| error.to_string();
    match shape {
        Shape::Single => {
            let url = urls.first().ok_or("no address")?;
            let mut info = url.as_str().into_connection_info().map_err(said)?;
            let mut as_whom = info.redis_settings().clone();
            if let Some(user) = user {
                as_whom = as_whom.set_username(user);
            }
            if let Some(password) = password {
                as_whom = as_whom.set_password(password);
            }
            info = info.set_redis_settings(as_whom);
            let client = match certificates {
                Some(certificates) => Client::build_with_tls(info, certificates),
                None => Client::open(info),
            };
            let limits = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
            let client = client.map_err(said)?;
            let connection = client.get_multiplexed_async_connection_with_config(&limits).await;
            connection.map(Connection::Single).map_err(said)
        }
        Shape::Sentinel(master) => sentinel(urls, master, user.as_deref(), password, certificates).await,
        Shape::Cluster => {
            let mut builder = ClusterClientBuilder::new(urls.iter().map(String::as_str))
                .retries(0)
                .connection_timeout(LONGEST)
                .response_timeout(LONGEST);
            if let Some(user) = user {
                builder = builder.username(user);
            }
            if let Some(password) = password {
                builder = builder.password(password);
            }
            if let Some(certificates) = certificates {
                builder = builder.certs(certificates);
            }
            let client = builder.build().map_err(said)?;
            client.get_async_connection().await.map(Connection::Cluster).map_err(said)
        }
    }
}

/// The master is asked for anew with each connection: after a failover the old one's connections break.
async fn sentinel(
    urls: &[String],
    master: &str,
    user: Option<&str>,
    password: Option<&str>,
    certificates: Option<TlsCertificates>,
) -> Result<Connection, String> {
    let said = |error: redis::RedisError| error.to_string();
    let addresses = urls.iter().map(|url| Ok(url.as_str().into_connection_info()?.addr().clone()));
    let addresses: Vec<_> = addresses.collect::<RedisResult<_>>().map_err(said)?;
    let encrypted = urls.iter().any(|url| url.starts_with("rediss://"));
    let mut builder =
        SentinelClientBuilder::new(addresses, master, SentinelServerType::Master).map_err(said)?;
    if let Some(user) = user {
        builder = builder.set_client_to_redis_username(user);
    }
    if let Some(password) = password {
        builder = builder.set_client_to_redis_password(password);
    }
    if encrypted {
        builder = builder
            .set_client_to_redis_tls_mode(redis::TlsMode::Secure)
            .set_client_to_sentinel_tls_mode(redis::TlsMode::Secure);
    }
    if let Some(certificates) = certificates {
        builder = builder
            .set_client_to_redis_certificates(certificates.clone())
            .set_client_to_sentinel_certificates(certificates);
    }
    let mut client = builder.build().map_err(said)?;
    client.get_async_connection().await.map(Connection::Single).map_err(said)
}
