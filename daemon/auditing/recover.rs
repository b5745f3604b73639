//! `tailwater recover --ledger`: goes on with an older copy of the ledger, where there is none newer.

use std::process::ExitCode;

use serde_json::json;

use crate::app::{EX_CONFIG, EX_USAGE};
use crate::config::Config;
use crate::ledger::Ledger;
use crate::ledger::batch::Batch;
use crate::ledger::entry::{EntryKind, NewEntry};
use crate::ledger::head::Head;
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
    let Some(published) = published.filter(|published| published.size > size) else {
        return Ok(format!(
            "nothing is missing: the ledger has {size} entries, and no checkpoint covers more\n"
        ));
    };
    let mut batch = Batch::default();
    let fields = json!({
        "ledger": "restored from an older copy", "from": size + 1, "to": published.size, "checkpoint": published.note,
        "requested_by": operator(),
    });
    batch.entry(NewEntry::new(EntryKind::Gap, None, fields));
    ledger.writer().write(batch).await?;
    let aside = checkpoints.directory.end(key.name(), published.size).map_err(|error| wrong(&error))?;
    Ok(format!(
        "entries {} to {} are missing; that is in the ledger, and the log of them is in {}\nnext: tailwater ledger key --name {}-2 --out \
         FILE; name FILE in [ledger.checkpoints]; then `tailwater recover --source …` for each source\n",
        size + 1,
        published.size,
        aside.display(),
        key.name()
    ))
}
