//! TLS to the ERP: verified with the host name, SCRAM bound to the channel, nothing less accepted.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tailwater::config::secret::Secret;
use tailwater::demo::private::{PrivatePostgres, TemporaryDirectory, write_secret};
use tailwater::pg::Database;
use tailwater::pg_tls::{ClientCertificate, TlsMode};
use tailwater::source::postgres::connection::ReplicationConnection;
use tailwater::source::postgres::slot::identify;

fn openssl(directory: &Path, arguments: &[&str]) {
    let output = Command::new("openssl").args(arguments).current_dir(directory).output().unwrap();
    assert!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

pub fn certificate(directory: &Path, name: &str, host: &str) {
    let (key, csr, crt, ext) =
        (format!("{name}.key"), format!("{name}.csr"), format!("{name}.crt"), format!("{name}.ext"));
    std::fs::write(directory.join(&ext), format!("subjectAltName=DNS:{host}\n")).unwrap();
    let subject = format!("/CN={host}");
    openssl(
        directory,
        &["req", "-newkey", "rsa:2048", "-nodes", "-keyout", &key, "-out", &csr, "-subj", &subject],
    );
    let sign =
        ["x509", "-req", "-in", &csr, "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2"];
    openssl(directory, &[&sign[..], &["-out", &crt, "-extfile", &ext, "-sha256"]].concat());
}

pub fn authority(directory: &Path, name: &str) {
    let (key, crt) = (format!("{name}.key"), format!("{name}.crt"));
    let request = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=Test CA"];
    openssl(directory, &[&request[..], &["-keyout", &key, "-out", &crt, "-sha256"]].concat());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stream_is_opened_over_verified_tls_with_scram_and_channel_binding_only() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let directory = TemporaryDirectory::new("tailwater-tls").unwrap();
    let path = directory.path();
    authority(path, "ca");
    authority(path, "other");
    certificate(path, "server", "localhost");
    let server =
        PrivatePostgres::start(path, "pg", &["password_encryption = 'scram-sha-256'"]).await.unwrap();
    let data = path.join("pg/data");
    let admin = server.client("postgres").await.unwrap();
    admin.batch_execute("create role repl login replication password 'right horse'").await.unwrap();
    // The server wants its key for itself alone, so it writes the files with its own hands.
    for name in ["server.key", "server.crt"] {
        let text = std::fs::read_to_string(path.join(name)).unwrap();
        let copied = format!(
            "copy (select {}) to program 'umask 077; base64 -d > {}'",
            postgres_protocol::escape::escape_literal(&base64(&text)),
            data.join(name).display()
        );
        admin.batch_execute(&copied).await.unwrap();
    }
    let hba = "hostssl all repl all scram-sha-256\nhost all repl all reject\nlocal all all trust\nhost all all all trust\n";
    std::fs::write(data.join("pg_hba.conf"), hba).unwrap();
    admin.batch_execute("alter system set ssl = on").await.unwrap();
    admin.batch_execute("select pg_reload_conf()").await.unwrap();
    write_secret(path.join("right"), "right horse\n").unwrap();
    write_secret(path.join("wrong"), "wrong horse\n").unwrap();
    let database = |password: &str, ca: &str| Database {
        host: "localhost".into(),
        port: server.port,
        user: "repl".into(),
        dbname: "postgres".into(),
        password: Some(Secret::File(path.join(password))),
        tls: TlsMode::VerifyFull,
        root_certificates: Some(path.join(ca)),
        certificate: None,
        schema: "",
    };
    let good = database("right", "ca.crt");
    crate::support::eventually(Duration::from_secs(20), "TLS to be on", async || {
        ReplicationConnection::open(&good).await.map(|_| ()).map_err(|error| error.to_string())
    })
    .await;
    let mut connection = ReplicationConnection::open(&good).await.unwrap();
    assert_eq!(identify(&mut connection).await.unwrap().timeline, 1);
    let client = good.connect("test").await.unwrap();
    let sql = "select ssl, version from pg_stat_ssl where pid = pg_backend_pid()";
    assert!(client.query_one(sql, &[]).await.unwrap().get::<_, bool>(0));

    let refused = async |database: Database, expected: &str| {
        let error = ReplicationConnection::open(&database).await.err().expect(expected).to_string();
        assert!(error.contains(expected), "{error}");
    };
    refused(database("wrong", "ca.crt"), "password authentication failed").await;
    refused(database("right", "other.crt"), "invalid peer certificate").await;
    refused(Database { host: "127.0.0.1".into(), ..database("right", "ca.crt") }, "not valid for name").await;
    refused(Database { tls: TlsMode::Disable, ..database("right", "ca.crt") }, "pg_hba.conf").await;
    // What each mode verifies.
    let named = |host: &str, tls, ca: &str| Database { host: host.into(), tls, ..database("right", ca) };
    let opens = async |database: Database| {
        let mut connection = ReplicationConnection::open(&database).await.unwrap();
        assert_eq!(identify(&mut connection).await.unwrap().timeline, 1);
        database.connect("test").await.unwrap();
    };
    opens(named("127.0.0.1", TlsMode::VerifyCa, "ca.crt")).await;
    refused(named("127.0.0.1", TlsMode::VerifyCa, "other.crt"), "invalid peer certificate").await;
    opens(named("127.0.0.1", TlsMode::Require, "other.crt")).await;
    opens(named("127.0.0.1", TlsMode::Prefer, "other.crt")).await;
    // A certificate in place of the password, and a password file.
    certificate(path, "repl", "repl");
    let own = ClientCertificate { certificate: path.join("repl.crt"), key: path.join("repl.key") };
    let passfile = path.join("pgpass");
    write_secret(&passfile, "# ours\nelsewhere:*:*:*:no\nlocal\\host:*:postgres:repl:right horse\n").unwrap();
    let parts = ["localhost".into(), server.port.to_string(), "postgres".into(), "repl".into()];
    let by_file = Database { password: Some(Secret::PassFile { path: passfile, parts }), ..good.clone() };
    opens(by_file).await;
    let authority = std::fs::read_to_string(path.join("ca.crt")).unwrap();
    let copied = format!(
        "copy (select {}) to program 'umask 077; base64 -d > {}'",
        postgres_protocol::escape::escape_literal(&base64(&authority)),
        data.join("ca.crt").display()
    );
    admin.batch_execute(&copied).await.unwrap();
    std::fs::write(
        data.join("pg_hba.conf"),
        hba.replace("hostssl all repl all scram-sha-256", "hostssl all repl all cert"),
    )
    .unwrap();
    admin.batch_execute("alter system set ssl_ca_file = 'ca.crt'").await.unwrap();
    admin.batch_execute("select pg_reload_conf()").await.unwrap();
    let certified = Database { password: None, certificate: Some(own), ..good.clone() };
    crate::support::eventually(Duration::from_secs(20), "certificates to be asked for", async || {
        ReplicationConnection::open(&certified).await.map(|_| ()).map_err(|error| error.to_string())
    })
    .await;
    opens(certified).await;
    refused(Database { password: None, ..good.clone() }, "certificate").await;
    // A server that has no TLS, to whoever insists on it.
    admin.batch_execute("alter system set ssl = off").await.unwrap();
    admin.batch_execute("select pg_reload_conf()").await.unwrap();
    for mode in [TlsMode::Require, TlsMode::VerifyCa, TlsMode::VerifyFull] {
        crate::support::eventually(Duration::from_secs(20), "a refusal", async || {
            let error = ReplicationConnection::open(&named("localhost", mode, "ca.crt")).await.err();
            let error = error.map(|error| error.to_string()).unwrap_or_default();
            if error.contains("does not offer TLS") { Ok(()) } else { Err(error) }
        })
        .await;
        assert!(named("localhost", mode, "ca.crt").connect("test").await.is_err());
    }
    // Somebody in between with a valid certificate who leaves the channel binding out of the offer.
    let port = downgrading_server(path).await;
    refused(Database { port, ..database("right", "ca.crt") }, "does not offer channel binding").await;
}

/// Speaks TLS, then offers SCRAM-SHA-256 without the PLUS.
async fn downgrading_server(path: &Path) -> u16 {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let chain = vec![CertificateDer::from_pem_file(path.join("server.crt")).unwrap()];
    let key = PrivateKeyDer::from_pem_file(path.join("server.key")).unwrap();
    let config = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 8];
        stream.read_exact(&mut request).await.unwrap();
        stream.write_all(b"S").await.unwrap();
        let mut stream = acceptor.accept(stream).await.unwrap();
        let offer = b"SCRAM-SHA-256\0\0";
        let mut message = b"R".to_vec();
        message.extend((8 + offer.len() as u32).to_be_bytes());
        message.extend(10_u32.to_be_bytes());
        message.extend(offer);
        stream.write_all(&message).await.unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    });
    port
}

fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}
