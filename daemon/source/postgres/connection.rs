//! A replication connection: start-up, TLS, authentication, simple queries, and the switch to streaming.
//!
//! Sources: <https://www.postgresql.org/docs/current/protocol-flow.html> and
//! <https://www.postgresql.org/docs/current/protocol-replication.html>. Framing and SCRAM are `postgres-protocol`'s.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{
    ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};
use postgres_protocol::message::frontend;
use rustls::pki_types::ServerName;
use sha2::{Digest, Sha256, Sha384, Sha512};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use x509_cert::Certificate;
use x509_cert::der::Decode;

use super::thread::ReaderThread;
use super::wire::reader::FieldReader;
use super::wire::{DecodeError, Frame, take_frame};
use crate::pg::{ConnectError, Database, SESSION_OPTIONS};
use crate::pg_tls::TlsMode;

/// Longest wait for an answer outside streaming.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Any transport.
pub trait Transport: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Transport for T {}

/// What can go wrong on the connection, by remedy.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The network.
    #[error("replication connection: {0}")]
    Io(#[from] io::Error),
    /// Malformed bytes.
    #[error("replication connection: {0}")]
    Decode(#[from] DecodeError),
    /// The server said no.
    #[error("replication connection: {message} (SQLSTATE {code})")]
    Server {
        /// SQLSTATE.
        code: String,
        /// Primary message.
        message: String,
    },
    /// The server asked for what we do not do.
    #[error("replication connection: {0}")]
    Unsupported(String),
    /// Certificates or secrets.
    #[error(transparent)]
    Setup(#[from] ConnectError),
    /// Nothing came for too long although the server was asked.
    #[error("replication connection: no word from the server for {seconds} s")]
    Silent {
        /// How long.
        seconds: u64,
    },
    /// The server ended the stream, as it does when it shuts down.
    #[error("replication connection: closed by the server")]
    Closed,
}

impl ConnectionError {
    /// SQLSTATE of the server's refusal.
    #[must_use]
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Server { code, .. } => Some(code),
            _ => None,
        }
    }
}

/// See the module's text.
pub struct ReplicationConnection {
    transport: Box<dyn Transport>,
    buffer: BytesMut,
    /// The server has proven that it knows the password, over this very channel where there is TLS.
    bound: bool,
    thread: ReaderThread,
}

/// A connection in streaming mode, and the bytes that have come already.
pub struct Streaming {
    /// The connection.
    pub transport: Box<dyn Transport>,
    /// Read, and not yet looked at.
    pub buffer: BytesMut,
    /// Where it is to be read.
    pub thread: ReaderThread,
}

/// A row of a simple query, columns as text.
pub type TextRow = Vec<Option<String>>;

impl ReplicationConnection {
    /// Connects and authenticates with `replication=database`.
    pub async fn open(database: &Database) -> Result<Self, ConnectionError> {
        Self::open_for("database", database).await
    }

    /// True when the role is let in for physical replication: then it can copy the whole cluster (`pg_basebackup`).
    pub async fn may_copy_the_cluster(database: &Database) -> bool {
        Self::open_for("true", database).await.is_ok()
    }

    async fn open_for(kind: &'static str, database: &Database) -> Result<Self, ConnectionError> {
        let thread = ReaderThread::start()?;
        let database = database.clone();
        let handle = thread.handle().clone();
        let opened = handle.spawn(async move {
            let (transport, binding) = connect(&database).await?;
            let mut connection =
                Self { transport, buffer: BytesMut::with_capacity(64 << 10), bound: false, thread };
            connection.start_up(kind, &database, binding).await?;
            Ok(connection)
        });
        match timeout(ANSWER_TIMEOUT, opened).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(_)) => Err(ConnectionError::Closed),
            Err(_) => Err(timed_out()),
        }
    }

    async fn start_up(
        &mut self,
        kind: &str,
        database: &Database,
        binding: Option<Vec<u8>>,
    ) -> Result<(), ConnectionError> {
        let mut out = BytesMut::new();
        let parameters = [
            ("user", database.user.as_str()),
            ("database", database.dbname.as_str()),
            ("replication", kind),
            ("application_name", "tailwater"),
            ("options", SESSION_OPTIONS),
        ];
        frontend::startup_message(parameters, &mut out)?;
        self.write(&out).await?;
        loop {
            let frame = self.frame().await?;
            match frame.tag {
                b'R' => self.authenticate(database, frame.body, binding.as_deref()).await?,
                b'Z' => return Ok(()),
                b'E' => return Err(server_error(&frame.body)),
                _ => {}
            }
        }
    }

    async fn authenticate(
        &mut self,
        database: &Database,
        body: Bytes,
        binding: Option<&[u8]>,
    ) -> Result<(), ConnectionError> {
        let mut fields = FieldReader::new("Authentication", &body);
        let kind = fields.i32("kind")?;
        if kind != 10 && !self.bound && binding.is_some() && database.password.is_some() {
            // Whoever can leave the binding out can also ask for the password itself.
            return Err(ConnectionError::Unsupported(
                "the server does not insist on SCRAM with channel binding on a TLS connection".into(),
            ));
        }
        let mut out = BytesMut::new();
        match kind {
            0 => return Ok(()),
            3 => frontend::password_message(password(database)?.as_bytes(), &mut out)?,
            5 => {
                let salt = fields.bytes("salt", 4)?;
                let salt = <[u8; 4]>::try_from(salt).unwrap_or_default();
                let hash = md5_hash(database.user.as_bytes(), password(database)?.as_bytes(), salt);
                frontend::password_message(hash.as_bytes(), &mut out)?;
            }
            10 => return self.scram(database, fields, binding).await,
            other => {
                return Err(ConnectionError::Unsupported(format!(
                    "authentication method {other} is not supported"
                )));
            }
        }
        if kind == 3 && !database.tls.insists() && !crate::pg::is_local(&database.host) {
            return Err(ConnectionError::Unsupported(
                "the server wants the password in clear text without TLS".into(),
            ));
        }
        self.write(&out).await
    }

    /// SCRAM-SHA-256, bound to the TLS channel whenever there is one: then a server that does not offer the binding is
    /// not the one we verified, or somebody stands between.
    async fn scram(
        &mut self,
        database: &Database,
        mut fields: FieldReader<'_>,
        binding: Option<&[u8]>,
    ) -> Result<(), ConnectionError> {
        let mut offered = Vec::new();
        while fields.peek("mechanism")? != 0 {
            offered.push(fields.string("mechanism")?);
        }
        let plus = offered.iter().any(|name| name == SCRAM_SHA_256_PLUS);
        let (mechanism, channel) = match binding {
            Some(hash) if plus => (SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(hash.to_vec())),
            Some(_) => {
                return Err(ConnectionError::Unsupported(
                    "the server does not offer channel binding (SCRAM-SHA-256-PLUS) on a TLS connection"
                        .into(),
                ));
            }
            None => (SCRAM_SHA_256, ChannelBinding::unsupported()),
        };
        let mut scram = ScramSha256::new(password(database)?.as_bytes(), channel);
        let mut out = BytesMut::new();
        frontend::sasl_initial_response(mechanism, scram.message(), &mut out)?;
        self.write(&out).await?;
        scram.update(&self.sasl_step(11).await?)?;
        let mut out = BytesMut::new();
        frontend::sasl_response(scram.message(), &mut out)?;
        self.write(&out).await?;
        scram.finish(&self.sasl_step(12).await?)?;
        self.bound = true;
        Ok(())
    }

    async fn sasl_step(&mut self, expected: i32) -> Result<Bytes, ConnectionError> {
        let frame = self.frame().await?;
        if frame.tag == b'E' {
            return Err(server_error(&frame.body));
        }
        let mut fields = FieldReader::new("Authentication", &frame.body);
        match fields.i32("kind")? {
            kind if kind == expected && frame.tag == b'R' => Ok(frame.body.slice_ref(fields.rest())),
            other => Err(ConnectionError::Unsupported(format!("unexpected authentication step {other}"))),
        }
    }

    /// Runs a replication command or a query; gives its rows as text.
    pub async fn query(&mut self, sql: &str) -> Result<Vec<TextRow>, ConnectionError> {
        self.query_within(sql, ANSWER_TIMEOUT).await
    }

    /// [`Self::query`] with a patience of its own.
    pub async fn query_within(
        &mut self,
        sql: &str,
        patience: Duration,
    ) -> Result<Vec<TextRow>, ConnectionError> {
        let mut out = BytesMut::new();
        frontend::query(sql, &mut out)?;
        self.write(&out).await?;
        let (mut rows, mut failure) = (Vec::new(), None);
        loop {
            let frame = timeout(patience, self.frame()).await.map_err(|_| timed_out())??;
            match frame.tag {
                b'D' => rows.push(data_row(frame.body)?),
                b'E' => failure = Some(server_error(&frame.body)),
                b'Z' => return failure.map_or(Ok(rows), Err),
                _ => {}
            }
        }
    }

    /// Switches to streaming; afterwards only the raw parts are of use.
    pub async fn start_streaming(mut self, sql: &str) -> Result<Streaming, ConnectionError> {
        let mut out = BytesMut::new();
        frontend::query(sql, &mut out)?;
        self.write(&out).await?;
        loop {
            let frame = timeout(ANSWER_TIMEOUT, self.frame()).await.map_err(|_| timed_out())??;
            match frame.tag {
                b'W' => {
                    let Self { transport, buffer, thread, .. } = self;
                    return Ok(Streaming { transport, buffer, thread });
                }
                b'E' => return Err(server_error(&frame.body)),
                b'N' | b'S' => {}
                tag => return Err(ConnectionError::Unsupported(format!("unexpected message {tag:#04x}"))),
            }
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), ConnectionError> {
        self.transport.write_all(bytes).await?;
        Ok(self.transport.flush().await?)
    }

    async fn frame(&mut self) -> Result<Frame, ConnectionError> {
        loop {
            if let Some(frame) = take_frame(&mut self.buffer)? {
                return Ok(frame);
            }
            if self.transport.read_buf(&mut self.buffer).await? == 0 {
                return Err(ConnectionError::Closed);
            }
        }
    }
}

/// Opens the transport; with TLS also gives the `tls-server-end-point` binding (RFC 5929 section 4.1).
async fn connect(database: &Database) -> Result<(Box<dyn Transport>, Option<Vec<u8>>), ConnectionError> {
    if database.host.starts_with('/') {
        let path = format!("{}/.s.PGSQL.{}", database.host.trim_end_matches('/'), database.port);
        return Ok((Box::new(UnixStream::connect(path).await?), None));
    }
    let mut stream = TcpStream::connect((database.host.as_str(), database.port)).await?;
    stream.set_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new().with_time(Duration::from_secs(15));
    socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    if database.tls == TlsMode::Disable {
        return Ok((Box::new(stream), None));
    }
    let mut out = BytesMut::new();
    frontend::ssl_request(&mut out);
    stream.write_all(&out).await?;
    if stream.read_u8().await? != b'S' {
        if !database.tls.insists() {
            return Ok((Box::new(stream), None));
        }
        return Err(ConnectionError::Unsupported("the server does not offer TLS".into()));
    }
    let name = ServerName::try_from(database.host.clone()).map_err(|_| {
        ConnectionError::Unsupported(format!("`{}` cannot be verified as a host name", database.host))
    })?;
    let connector = TlsConnector::from(Arc::new(database.tls_config()?));
    let stream = connector.connect(name, stream).await?;
    let binding =
        stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).and_then(|der| end_point(der));
    Ok((Box::new(stream), binding))
}

/// Hash of the server's certificate with the hash of its signature; MD5 and SHA-1 count as SHA-256. `None` for
/// signatures without one (Ed25519), which cannot be bound.
fn end_point(der: &[u8]) -> Option<Vec<u8>> {
    let certificate = Certificate::from_der(der).ok()?;
    match certificate.signature_algorithm().oid.to_string().as_str() {
        // sha384WithRSAEncryption, ecdsa-with-SHA384
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => Some(Sha384::digest(der).to_vec()),
        // sha512WithRSAEncryption, ecdsa-with-SHA512
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => Some(Sha512::digest(der).to_vec()),
        // Ed25519, Ed448
        "1.3.101.112" | "1.3.101.113" => None,
        _ => Some(Sha256::digest(der).to_vec()),
    }
}

fn password(database: &Database) -> Result<String, ConnectionError> {
    match &database.password {
        Some(secret) => Ok(secret.read().map_err(ConnectError::from)?.expose().to_owned()),
        None => {
            Err(ConnectionError::Unsupported("the server asks for a password and none is configured".into()))
        }
    }
}

fn timed_out() -> ConnectionError {
    ConnectionError::Io(io::Error::new(io::ErrorKind::TimedOut, "no answer in time"))
}

fn data_row(body: Bytes) -> Result<TextRow, DecodeError> {
    let mut fields = FieldReader::new("DataRow", &body);
    let count = fields.u16("columnCount")?;
    let mut row = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        let length = fields.i32("length")?;
        row.push(match usize::try_from(length) {
            Ok(length) => Some(String::from_utf8_lossy(fields.bytes("value", length)?).into_owned()),
            Err(_) => None,
        });
    }
    Ok(row)
}

/// An ErrorResponse: SQLSTATE and primary message; details may quote data and are left out (INV-12).
#[must_use]
pub fn server_error(body: &[u8]) -> ConnectionError {
    let mut fields = FieldReader::new("ErrorResponse", body);
    let (mut code, mut message) = (String::new(), String::new());
    while let Ok(kind) = fields.u8("field") {
        let Ok(text) = fields.string("text") else { break };
        match kind {
            b'C' => code = text,
            b'M' => message = text,
            _ => {}
        }
    }
    ConnectionError::Server { code, message }
}
