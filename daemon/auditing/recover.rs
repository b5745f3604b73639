//! `tailwater recover --ledger`: goes on with an older copy of the ledger, where there is none newer.

use std::process::ExitCode;

use serde_json::json;

use tokio_postgres::Client;

use crate::app::{EX_CONFIG, EX_USAGE};
use crate::audit::checkpoint::SignedHead;
use crate::audit::publish::published as known_as_published;
use crate::config::Config;
use crate::ledger::batch::Batch;
use crate::ledger::entry::{EntryKind, NewEntry};
use crate::ledger::head::Head;
use crate::ledger::{Ledger, LedgerError};
use crate::operate::{Refusal, finish, operator};

/// See the module's text.
pub async fn recover_ledger(config: &Config) -> ExitCode {
    finish(recovered(config).await)
}

async fn recovered(config: &Config) -> Result<String, Refusal> {
    let Some(checkpoints) = &config.checkpoints else {
        let message = "the settings have no [ledger.checkpoints]: nothing says what the ledger was\nnext: tailwater recover --source …";
        return Err(Refusal(EX_USAGE, message.into()));
    };
    let wrong = |error: &dyn ToString| Refusal(EX_CONFIG, error.to_string());
    let (_, key) = checkpoints.read_key().map_err(|error| wrong(&error))?;
    let published = checkpoints.directory.newest(&key).map_err(|error| wrong(&error))?;
    let ledger = Ledger::open(&config.ledger, &config.master).await?;
    let size = Head::load(ledger.reader()).await?.tree.size();
    let nothing =
        || format!("nothing is missing: the ledger has {size} entries, and no checkpoint covers more\n");
    let Some(published) = published else {
        return match known_as_published(ledger.reader(), &key).await? {
            0 => Ok(nothing()),
            size => Err(wrong(&checkpoints.directory.away(&key, size))),
        };
    };
    let first = match noted(ledger.reader(), &published.note).await? {
        Some(first) => first,
        None if published.size > size => note(&ledger, size + 1, &published).await?,
        None => return Ok(nothing()),
    };
    let aside = checkpoints.directory.end(key.name(), published.size).map_err(|error| wrong(&error))?;
    Ok(format!(
        "entries {} to {} are missing; that is in the ledger, and the log of them is in {}\nnext: tailwater ledger key --name {}-2 --out \
         FILE; name FILE in [ledger.checkpoints]; then `tailwater recover --source …` for each source\n",
        first,
        published.size,
        aside.display(),
        key.name()
    ))
}

/// The first entry that an earlier run noted as missing, and came no further. What is new since the loss is little.
async fn noted(client: &Client, note: &str) -> Result<Option<u64>, LedgerError> {
    let sql = "select (body ->> 'from')::bigint
               from (select kind, convert_from(body, 'UTF8')::jsonb as body from entry order by seq desc limit 1000) e
               where kind = 'gap' and body ->> 'checkpoint' = $1";
    let first: Option<i64> = client.query_opt(sql, &[&note]).await?.map(|row| row.try_get(0)).transpose()?;
    Ok(first.and_then(|first| u64::try_from(first).ok()))
}

/// Writes that everything from entry `first` on is missing.
async fn note(ledger: &Ledger, first: u64, published: &SignedHead) -> Result<u64, LedgerError> {
    let mut batch = Batch::default();
    let fields = json!({
        "ledger": "restored from an older copy", "from": first, "to": published.size, "checkpoint": published.note,
        "requested_by": operator(),
    });
    batch.entry(NewEntry::new(EntryKind::Gap, None, fields));
    ledger.writer().write(batch).await?;
    Ok(first)
}
