//! PostgreSQL connections: where, as whom, and how they are secured. Used for the ledger and for the source.
//!
//! Policy: over a Unix socket or loopback TLS is off unless asked for; anywhere else it is `verify-full` unless something
//! else that insists on TLS is asked for, with channel binding wherever there is a password. A URL never holds one.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_postgres::config::SslMode;
use tokio_postgres::{AsyncMessage, Client, Config, Connection, NoTls, SimpleQueryMessage};
use tokio_postgres_rustls_improved::MakeRustlsConnect;

use crate::config::secret::Secret;
use crate::pg_tls::{ClientCertificate, TlsMode, client_config};

/// Settings of every session, so that values always have the same text form whatever the role's defaults are. A statement of a few
/// milliseconds is not worth compiling, however dear a planner without statistics takes it to be. Timeouts of the role are for people:
/// one that ends our waiting makes us begin again, for ever.
pub const SESSION_OPTIONS: &str = "-c client_encoding=UTF8 -c datestyle=ISO -c intervalstyle=postgres \
     -c extra_float_digits=3 -c timezone=UTC -c bytea_output=hex -c row_security=off -c jit=off \
     -c statement_timeout=0 -c lock_timeout=0 -c idle_session_timeout=0 -c idle_in_transaction_session_timeout=0";

/// Until a session stands, authentication included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// Where a database is and how to reach it.
#[derive(Debug, Clone)]
pub struct Database {
    /// Host name, address, or directory of the Unix socket.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Role.
    pub user: String,
    /// Database name.
    pub dbname: String,
    /// Password, when the server asks for one.
    pub password: Option<Secret>,
    /// How the connection is secured.
    pub tls: TlsMode,
    /// Certificate authorities to trust instead of the system's.
    pub root_certificates: Option<PathBuf>,
    /// A certificate of our own, when the server asks for one.
    pub certificate: Option<ClientCertificate>,
    /// Schema that unqualified names are looked up in; the server's default when empty.
    pub schema: &'static str,
}

/// A connection could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// PostgreSQL said no, or nobody answered.
    #[error("{user}@{host}:{port}/{dbname}: {}", describe(.error))]
    Postgres {
        /// Role.
        user: String,
        /// Host.
        host: String,
        /// Port.
        port: u16,
        /// Database.
        dbname: String,
        /// Why.
        error: tokio_postgres::Error,
    },
    /// Somebody answers, but not as PostgreSQL does.
    #[error("{host}:{port}: no session within {} s", CONNECT_TIMEOUT.as_secs())]
    Silent {
        /// Host.
        host: String,
        /// Port.
        port: u16,
    },
    /// What the session was asked for is not in force.
    #[error(
        "{host}:{port}: setting `{setting}` of the session is not in force: a pooler stands between, which leaves it out \
         (`ignore_startup_parameters` of pgbouncer); connect to PostgreSQL itself"
    )]
    Settings {
        /// Host.
        host: String,
        /// Port.
        port: u16,
        /// Name of a setting.
        setting: &'static str,
    },
    /// Certificates could not be read.
    #[error("certificates: {0}")]
    Certificates(String),
    /// The password file could not be read.
    #[error(transparent)]
    Secret(#[from] crate::config::secret::SecretError),
}

/// An error of PostgreSQL in its own words; the driver alone says only "db error".
#[must_use]
pub fn describe(error: &tokio_postgres::Error) -> String {
    use std::error::Error as _;
    if let Some(db) = error.as_db_error() {
        return format!("{} (SQLSTATE {})", db.message(), db.code().code());
    }
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

/// True for Unix sockets and loopback addresses.
#[must_use]
pub fn is_local(host: &str) -> bool {
    host.starts_with('/')
        || host == "localhost"
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

impl Database {
    /// Opens an SQL session; its connection runs in a task of its own until the client is dropped.
    pub async fn connect(&self, application_name: &str) -> Result<Client, ConnectError> {
        self.connect_and_hear(application_name, || ()).await
    }

    /// The same; `heard` is called for each notification of what the session listens to.
    pub async fn connect_and_hear(
        &self,
        application_name: &str,
        heard: impl Fn() + Send + 'static,
    ) -> Result<Client, ConnectError> {
        let session = tokio::time::timeout(CONNECT_TIMEOUT, self.session(application_name, heard));
        session
            .await
            .unwrap_or_else(|_| Err(ConnectError::Silent { host: self.host.clone(), port: self.port }))
    }

    async fn session(
        &self,
        application_name: &str,
        heard: impl Fn() + Send + 'static,
    ) -> Result<Client, ConnectError> {
        let mut config = Config::new();
        config.host(&self.host).port(self.port).user(&self.user).dbname(&self.dbname);
        config.application_name(application_name).options(self.session_options());
        config.connect_timeout(Duration::from_secs(10));
        config.keepalives_idle(Duration::from_secs(15));
        config.tcp_user_timeout(Duration::from_secs(30));
        if let Some(secret) = &self.password {
            config.password(secret.read()?.expose());
        }
        let failed = |error| self.failed(error);
        if self.tls == TlsMode::Disable {
            config.ssl_mode(SslMode::Disable);
            let (client, connection) = config.connect(NoTls).await.map_err(failed)?;
            tokio::spawn(drive(connection, heard));
            return self.in_force(client).await;
        }
        config.ssl_mode(if self.tls.insists() { SslMode::Require } else { SslMode::Prefer });
        if self.tls.insists() && self.password.is_some() {
            config.channel_binding(tokio_postgres::config::ChannelBinding::Require);
        }
        let (client, connection) =
            config.connect(MakeRustlsConnect::new(self.tls_config()?)).await.map_err(failed)?;
        tokio::spawn(drive(connection, heard));
        self.in_force(client).await
    }

    /// The session, once what was asked for is in force: a pooler may have left it out, and then values have other forms, names mean
    /// other tables, and the role's timeouts end what we wait for.
    async fn in_force(&self, client: Client) -> Result<Client, ConnectError> {
        let failed = |error| self.failed(error);
        let sql = "select current_setting('search_path'), current_setting('statement_timeout'),
                   current_setting('extra_float_digits'), current_setting('server_version_num')";
        let answered = client.simple_query(sql).await.map_err(failed)?;
        let row = answered.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        let value = |index| row.and_then(|row| row.get(index)).unwrap_or_default();
        let wanted = [
            ("search_path", value(0) == self.schema || self.schema.is_empty()),
            ("statement_timeout", value(1) == "0"),
            ("extra_float_digits", value(2) == "3"),
        ];
        if let Some((setting, _)) = wanted.into_iter().find(|(_, holds)| !holds) {
            return Err(ConnectError::Settings { host: self.host.clone(), port: self.port, setting });
        }
        // Older servers refuse a setting that they do not know.
        if value(3).parse::<u32>().is_ok_and(|version| version >= 170_000) {
            client.batch_execute("set transaction_timeout = 0").await.map_err(failed)?;
        }
        Ok(client)
    }

    fn failed(&self, error: tokio_postgres::Error) -> ConnectError {
        ConnectError::Postgres {
            user: self.user.clone(),
            host: self.host.clone(),
            port: self.port,
            dbname: self.dbname.clone(),
            error,
        }
    }

    fn session_options(&self) -> String {
        match self.schema {
            "" => SESSION_OPTIONS.to_owned(),
            schema => format!("{SESSION_OPTIONS} -c search_path={schema}"),
        }
    }

    /// What TLS verifies.
    pub fn tls_config(&self) -> Result<ClientConfig, ConnectError> {
        client_config(self.tls, self.root_certificates.as_deref(), self.certificate.as_ref())
    }
}

/// Runs a connection until it ends; that it has, its client finds out.
async fn drive<S, T>(mut connection: Connection<S, T>, heard: impl Fn())
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(Ok(message)) = std::future::poll_fn(|context| connection.poll_message(context)).await {
        if matches!(message, AsyncMessage::Notification(_)) {
            heard();
        }
    }
}
