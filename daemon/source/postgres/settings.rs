//! Settings of the ERP's server and rights of the role in use, checked by catalogue queries.

use tokio_postgres::Client;

use super::catalog::{Finding, Severity, finding};

/// Minor releases that a server should at least have, by major version: those before have known faults in logical
/// decoding (<https://www.postgresql.org/docs/release/>), and PostgreSQL 13 and older get no corrections any more.
const OLDEST_MINOR: [(i32, i32); 5] = [(14, 13), (15, 8), (16, 4), (17, 1), (18, 0)];

/// Everything that is asked of the server as a whole.
const SETTINGS: &str = "select current_setting('wal_level'), current_setting('server_version_num')::int,
  current_setting('max_slot_wal_keep_size'),
  current_setting('max_replication_slots')::int - (select count(*)::int from pg_replication_slots),
  exists (select from pg_replication_slots where slot_name = $1),
  (select rolreplication or rolsuper from pg_roles where rolname = current_user),
  current_setting('max_wal_senders')::int
    - (select count(*)::int from pg_stat_activity where backend_type = 'walsender'),
  (select active from pg_replication_slots where slot_name = $1),
  (select rolsuper from pg_roles where rolname = current_user),
  (select rolbypassrls or rolcreaterole or rolcreatedb from pg_roles where rolname = current_user),
  coalesce(current_setting('output_plugin_libraries', true), ''),
  (select ssl from pg_stat_ssl where pid = pg_backend_pid()), inet_server_addr() is null or inet_server_addr() <<= '127.0.0.0/8'
    or inet_server_addr() = '::1',
  (select string_agg(g.rolname, ', ') from pg_auth_members m join pg_roles g on g.oid = m.roleid
    join pg_roles r on r.oid = m.member where r.rolname = current_user),
  pg_is_in_recovery(), (select wal_status from pg_replication_slots where slot_name = $1),
  (select pg_encoding_to_char(encoding)::text from pg_database where datname = current_database())";

/// Checks them. `slot`: ours, which needs no room if it exists.
pub async fn check(client: &Client, slot: &str) -> Result<Vec<Finding>, tokio_postgres::Error> {
    let row = client.query_one(SETTINGS, &[&slot]).await?;
    let mut findings = Vec::new();
    let mut add = |severity, subject: &str, what: String, remedy: &str| {
        findings.push(finding(severity, subject, what, remedy));
    };
    let wal_level: String = row.try_get(0)?;
    if wal_level != "logical" {
        let remedy = "alter system set wal_level = 'logical'; then restart PostgreSQL";
        add(Severity::Error, "wal_level", format!("is `{wal_level}`: nothing can be decoded"), remedy);
    }
    if row.try_get::<_, bool>(14)? {
        let what =
            "is a standby: watermarks cannot be written there, and a slot on it is lost with a conflict";
        add(Severity::Error, "server", what.into(), "point `url` at the primary");
    }
    if row.try_get::<_, Option<String>>(16)?.as_deref() == Some("SQL_ASCII") {
        let what = "has encoding SQL_ASCII: what its bytes mean is known to nobody, and the first that are no ASCII end the stream";
        let remedy =
            "dump it, create it anew with encoding UTF8 (or the one that its clients use), and restore it";
        add(Severity::Error, "database", what.into(), remedy);
    }
    version(row.try_get(1)?, &mut add);
    let keep: String = row.try_get(2)?;
    if keep == "-1" {
        let remedy = "alter system set max_slot_wal_keep_size = '50GB'; select pg_reload_conf()  -- a share of the disk";
        let what = "is unlimited: if tailwater stays stopped, its slot can fill the disk";
        add(Severity::Warning, "max_slot_wal_keep_size", what.into(), remedy);
    }
    let has_slot: bool = row.try_get(4)?;
    if row.try_get::<_, i32>(3)? < 1 && !has_slot {
        let remedy = "alter system set max_replication_slots = 10; then restart PostgreSQL";
        add(Severity::Error, "max_replication_slots", "no slot is left".into(), remedy);
    }
    let connected = row.try_get::<_, Option<bool>>(7)? == Some(true);
    if row.try_get::<_, i32>(6)? < 1 && !connected {
        let remedy = "alter system set max_wal_senders = 10; then restart PostgreSQL";
        add(Severity::Error, "max_wal_senders", "no WAL sender is left".into(), remedy);
    }
    if row.try_get::<_, Option<bool>>(5)? != Some(true) {
        let remedy = "alter role tailwater_src replication  -- with the name of the role in use";
        add(Severity::Error, "role", "may not replicate".into(), remedy);
    }
    rights(&row, &mut add)?;
    if row.try_get::<_, Option<String>>(15)?.as_deref() == Some("lost") {
        let what = "is lost: the server removed WAL that was still needed";
        let finding =
            finding(Severity::Error, &format!("slot \"{slot}\""), what, "tailwater recover --source NAME");
        // The stream is refused, or recovered, with more to say about it.
        findings.push(Finding { parks: true, ..finding });
    }
    Ok(findings)
}

type Add<'a> = dyn FnMut(Severity, &str, String, &str) + 'a;

fn version(number: i32, add: &mut Add<'_>) {
    let (major, minor) = (number / 10_000, number % 10_000);
    match OLDEST_MINOR.iter().find(|(known, _)| *known == major) {
        None if major < 14 => {
            let what = format!("is PostgreSQL {major}, which is not supported (14 to 18 are)");
            add(Severity::Error, "server", what, "upgrade the server");
        }
        None => {
            let what = format!("is PostgreSQL {major}, which this version was not tested with");
            add(Severity::Warning, "server", what, "upgrade tailwater");
        }
        Some((_, oldest)) if minor < *oldest => {
            let what =
                format!("is PostgreSQL {major}.{minor}: faults of logical decoding were corrected since");
            add(Severity::Warning, "server", what, "install the newest minor release");
        }
        Some(_) => {}
    }
}

/// What the role could read beyond what it must.
fn rights(row: &tokio_postgres::Row, add: &mut Add<'_>) -> Result<(), tokio_postgres::Error> {
    if row.try_get::<_, Option<bool>>(8)? == Some(true) {
        let what = "is a superuser: it could read and change everything";
        add(Severity::Warning, "role", what.into(), "use a role of its own: tailwater source sql");
    } else if row.try_get::<_, Option<bool>>(9)? == Some(true) {
        let what = "has BYPASSRLS, CREATEROLE or CREATEDB, none of which is needed";
        let remedy = "alter role tailwater_src nobypassrls nocreaterole nocreatedb  -- with the name of the role in use";
        add(Severity::Warning, "role", what.into(), remedy);
    }
    if let Some(groups) = row.try_get::<_, Option<String>>(13)? {
        let what = format!("is a member of {groups}, whose rights it has as well");
        add(
            Severity::Warning,
            "role",
            what,
            "revoke the membership, and grant what `tailwater source sql` prints",
        );
    }
    let plugins: String = row.try_get(10)?;
    if plugins.split(',').any(|plugin| plugin.trim() == "test_decoding") {
        let what = "allows test_decoding, by which a role that may replicate reads unpublished tables";
        let remedy = "alter system set output_plugin_libraries = 'pgoutput'; select pg_reload_conf()";
        add(Severity::Warning, "output_plugin_libraries", what.into(), remedy);
    }
    let encrypted = row.try_get::<_, Option<bool>>(11)? == Some(true);
    if !encrypted && !row.try_get::<_, bool>(12)? {
        let what = "is not encrypted: whoever listens reads the ERP's rows";
        add(
            Severity::Warning,
            "connection",
            what.into(),
            "sslmode=verify-full in `url`, and hostssl in pg_hba.conf",
        );
    }
    Ok(())
}
