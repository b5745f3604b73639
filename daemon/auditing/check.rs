//! What of the ledger is worth mending: `tailwater check`.

use tokio_postgres::Client;

use crate::config::Config;
use crate::source::postgres::catalog::{Finding, Severity};

/// What is missing for the ledger to prove itself to others, and to forget.
pub async fn findings(config: &Config, client: &Client) -> Vec<Finding> {
    let mut found = Vec::new();
    if config.checkpoints.is_none() {
        let what = "nothing outside its database shows what it was: its owner could rewrite it";
        found.push(warning(
            what,
            "tailwater ledger key --name YOUR.DOMAIN/ledger --out FILE, and [ledger.checkpoints]",
        ));
    }
    let sql = "select pg_is_in_recovery() or current_setting('transaction_read_only')::bool";
    if let Ok(row) = client.query_one(sql, &[]).await
        && row.try_get(0).unwrap_or(false)
    {
        let what = "takes nothing: its server is a standby, or the role's sessions are read-only";
        let remedy =
            "point `url` in [ledger] at the primary; alter role … set default_transaction_read_only = off";
        found.push(Finding { severity: Severity::Error, ..warning(what, remedy) });
    }
    if let Some(checkpoints) = &config.checkpoints {
        let entries = client.query_one("select exists (select from entry)", &[]).await;
        let has_entries = entries.is_ok_and(|row| row.try_get(0).unwrap_or(false));
        if has_entries && !checkpoints.directory.is_published() {
            let what = "has entries, and no checkpoint of it is published in its directory";
            found.push(warning(
                what,
                "look for `checkpoint` in the daemon's log; may it write the directory?",
            ));
        }
    }
    let sealed = config.sources.iter().map(|source| &source.mapping);
    let sealed = sealed.chain(config.polls.iter().map(|poll| &poll.mapping));
    let is_personal = |mapping: &&crate::mapping::SourceMapping| {
        mapping.tables.iter().any(|table| !table.personal.seal.is_empty())
            || mapping.events.iter().any(|event| !event.personal.seal.is_empty())
    };
    if !config.master.is_set() && sealed.into_iter().any(|mapping| is_personal(&mapping)) {
        let what =
            "personal data stands in it in clear, for ever: the mapping seals, and there is no sealing_key";
        found.push(warning(
            what,
            "sealing_key = { file = \"…\" } in [ledger], of 32 random bytes: `openssl rand -base64 32`",
        ));
    }
    let sql = "select pg_has_role(relowner, 'usage') from pg_class where oid = to_regclass('entry')";
    if let Ok(Some(row)) = client.query_opt(sql, &[]).await
        && row.try_get(0).unwrap_or(false)
    {
        let what = "the daemon's role owns its tables, so it could change what is written";
        found.push(warning(
            what,
            "tailwater ledger migrate --url postgres://postgres@…: makes an owner of its own",
        ));
    }
    found
}

fn warning(what: &str, remedy: &str) -> Finding {
    Finding {
        severity: Severity::Warning,
        subject: "ledger".into(),
        what: what.into(),
        remedy: remedy.into(),
        parks: false,
    }
}
