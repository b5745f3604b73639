//! `tailwater ledger migrate`: what a DBA does, so that the daemon does not own what it writes.

use std::path::Path;

use crate::app::{EX_CONFIG, EX_UNAVAILABLE};
use crate::config::ledger_at;
use crate::ledger::schema::{ROLES, apply_views, bring_up_to_date_alone};
use crate::ledger::{LedgerError, is_served};
use crate::operate::Refusal;
use crate::pg::describe;

/// Roles that people and the daemon log in with.
pub struct Logins<'a> {
    /// The daemon's.
    pub writer: &'a str,
    /// Auditors'.
    pub auditors: &'a [String],
}

impl Logins<'_> {
    /// Makes them if they are not there, and members of what they may do.
    fn sql(&self) -> String {
        let auditors = self.auditors.iter().map(|name| (name.as_str(), "tailwater_auditor"));
        let logins = std::iter::once((self.writer, "tailwater_writer")).chain(auditors);
        logins.map(|(name, role)| login(name, role)).collect()
    }
}

fn login(name: &str, role: &str) -> String {
    let (literal, name) =
        (postgres_protocol::escape::escape_literal(name), postgres_protocol::escape::escape_identifier(name));
    format!(
        "do $$ begin if not exists (select from pg_roles where rolname = {literal}) then create role {name} login; end if; end $$;\n\
         grant {role} to {name};\n"
    )
}

/// See the module's text.
pub async fn migrate(
    url: &str,
    passfile: Option<&Path>,
    logins: Logins<'_>,
    print: bool,
) -> Result<String, Refusal> {
    let roles = format!("{ROLES}\n-- Who logs in; their passwords are yours to set.\n{}", logins.sql());
    if print {
        return Ok(roles);
    }
    let database = ledger_at(url, passfile).map_err(|what| Refusal(EX_CONFIG, format!("--url: {what}")))?;
    let mut client = database.connect("tailwater-migrate").await?;
    let failed = |error: tokio_postgres::Error| {
        let next = "next: connect as a superuser, or as one with CREATEROLE who owns the database";
        Refusal(EX_UNAVAILABLE, format!("the roles could not be made: {}\n{next}", describe(&error)))
    };
    // With its owner its rights change: a daemon that runs would lose them in between.
    let known = client.query_one("select to_regclass('process') is not null", &[]).await.map_err(failed)?;
    if known.try_get::<_, bool>(0).map_err(failed)? && is_served(&client).await? {
        return Err(LedgerError::Locked.into());
    }
    client.batch_execute(&roles).await.map_err(failed)?;
    client.batch_execute("set role tailwater_owner").await.map_err(failed)?;
    bring_up_to_date_alone(&mut client).await?;
    apply_views(&mut client).await?;
    Ok(format!("the ledger in {} is up to date; {} writes it\n", database.dbname, logins.writer))
}
