//! Where a PostgreSQL database is, and how the way there is secured.

use std::path::PathBuf;
use std::str::FromStr;

use super::node::{Fields, Problems};
use super::secret::Secret;
use super::settings::read_secret;
use crate::pg::{Database, is_local};
use crate::pg_tls::{ClientCertificate, TlsMode};

/// Reads `url` and `password` of a database.
pub(super) fn read_database(fields: &mut Fields, example: &str, problems: &mut Problems) -> Option<Database> {
    let url = fields.required("url", &format!("\"{example}\""), problems);
    let password = fields.optional("password").and_then(|node| read_secret(&node, problems));
    let passfile = fields.optional("passfile").and_then(|node| node.string(problems)).map(PathBuf::from);
    let url = url?;
    let text = url.string(problems)?;
    match parse_url(&text) {
        Ok(database) => {
            let from_passfile = passfile.map(|path| pass_file(path, &database));
            Some(Database { password: password.or(from_passfile), ..database })
        }
        Err(what) => {
            problems.add(&url.at, what, example);
            None
        }
    }
}

/// A ledger whose address is not in the settings. `passfile`: left out, that of the user, if there is one.
pub fn ledger_at(url: &str, passfile: Option<&std::path::Path>) -> Result<Database, String> {
    let database = parse_url(url)?;
    let named = passfile.map(|path| pass_file(path.to_path_buf(), &database));
    // The user's own may be about other servers only.
    let own = std::env::var_os("HOME").map(|home| pass_file(PathBuf::from(home).join(".pgpass"), &database));
    let password = named.or(own.filter(|own| own.read().is_ok()));
    Ok(Database { schema: crate::ledger::SCHEMA, password, ..database })
}

fn pass_file(path: PathBuf, database: &Database) -> Secret {
    let parts = [&database.host, &database.port.to_string(), &database.dbname, &database.user];
    Secret::PassFile { path, parts: parts.map(String::clone) }
}

/// Parses a PostgreSQL URL, with `host`, `sslmode`, `sslrootcert`, `sslcert` and `sslkey` as libpq knows them.
fn parse_url(text: &str) -> Result<Database, String> {
    let (base, query) = text.split_once('?').unwrap_or((text, ""));
    let (mut host_parameter, mut tls, mut root_certificates) = (None, None, None);
    let (mut sslcert, mut sslkey) = (None, None);
    for (key, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        match (key, value) {
            ("host", directory) => host_parameter = Some(directory.replace("%2F", "/").replace("%2f", "/")),
            ("sslmode", mode) => match TlsMode::parse(mode) {
                Some(mode) => tls = Some(mode),
                None => {
                    return Err(format!(
                        "sslmode={mode} is none of disable, prefer, require, verify-ca, verify-full"
                    ));
                }
            },
            ("sslcert", path) => sslcert = Some(PathBuf::from(path)),
            ("sslkey", path) => sslkey = Some(PathBuf::from(path)),
            ("sslrootcert", path) => root_certificates = Some(PathBuf::from(path)),
            (other, _) => return Err(format!("URL parameter `{other}` is not known here")),
        }
    }
    let parsed =
        tokio_postgres::Config::from_str(base).map_err(|error| format!("not a PostgreSQL URL: {error}"))?;
    if parsed.get_password().is_some() {
        return Err("a password does not belong into the settings: use password = { file = \"…\" }".into());
    }
    let host = host_parameter.or_else(|| {
        parsed.get_hosts().first().map(|host| match host {
            tokio_postgres::config::Host::Tcp(name) => name.clone(),
            tokio_postgres::config::Host::Unix(path) => path.display().to_string(),
        })
    });
    let host = host.ok_or("the URL names no host")?;
    let tls = tls.unwrap_or(if is_local(&host) { TlsMode::Disable } else { TlsMode::VerifyFull });
    if !tls.insists() && !is_local(&host) {
        return Err(
            "sslmode=disable and prefer are for local servers only: anybody in between could read along"
                .into(),
        );
    }
    let certificate = match (sslcert, sslkey) {
        (None, None) => None,
        (Some(certificate), Some(key)) => Some(ClientCertificate { certificate, key }),
        _ => return Err("sslcert and sslkey go together".into()),
    };
    Ok(Database {
        host,
        port: parsed.get_ports().first().copied().unwrap_or(5432),
        user: parsed.get_user().ok_or("the URL names no user")?.to_owned(),
        dbname: parsed.get_dbname().ok_or("the URL names no database")?.to_owned(),
        password: None,
        tls,
        root_certificates,
        certificate,
        schema: "",
    })
}
