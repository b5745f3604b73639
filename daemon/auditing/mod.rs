//! What auditors and DBAs do with a ledger.

mod archive;
mod bundle;
pub mod check;
mod erase;
mod export;
mod keys;
mod migrate;
mod parquet;
mod proof;
mod read;
mod recover;
mod times;
mod verify;

use std::process::ExitCode;

use crate::app::{EX_CONFIG, EX_UNAVAILABLE, fail, with_config};
use crate::audit::checkpoint::PublicKey;
use crate::audit::directory::LogDirectory;
use crate::cli::{EvidenceArgs, LedgerArgs, LedgerCommand, ProofCommand, ReadingArgs};
use crate::config::{Config, ledger_at, load};
use crate::ledger::keyring::Master;
use crate::ledger::{LedgerError, VIEWS};
use crate::operate::{Refusal, down, finish, operator};
use crate::pg::Database;
use tokio_postgres::Client;

pub use recover::recover_ledger;

/// `tailwater ledger …`.
pub async fn ledger(command: LedgerCommand) -> ExitCode {
    match command {
        LedgerCommand::Verify { ledger, evidence, from, to, json } => {
            verify::verify(ledger, evidence, (from, to), json).await
        }
        LedgerCommand::Proof(ProofCommand::Inclusion { ledger, evidence, seq, size }) => {
            finish(proof::inclusion(&ledger, &evidence, seq, size).await)
        }
        LedgerCommand::Proof(ProofCommand::Consistency { ledger, evidence, old, new }) => {
            finish(proof::consistency(&ledger, &evidence, old, new).await)
        }
        LedgerCommand::Show { reading, seq } => finish(read::show(&reading, seq).await),
        LedgerCommand::History { reading, table, key } => finish(read::history(&reading, &table, &key).await),
        LedgerCommand::AsOf { reading, table, key, time, source } => {
            finish(read::as_of(&reading, (&table, &key), source, &time).await)
        }
        LedgerCommand::Diff { reading, from, to, table } => {
            finish(read::diff(&reading, (&from, &to), table.as_deref()).await)
        }
        LedgerCommand::Trace { reading, id, last } => finish(read::trace(&reading, &id, last).await),
        LedgerCommand::Export { reading, evidence, from, to, format, with_proofs, out } => {
            let what = export::Export { from: &from, to: to.as_deref(), format, with_proofs, out };
            finish(export::export(&reading, &evidence, &what).await)
        }
        LedgerCommand::Archive { config, args } => {
            with_config(&config, |config| async move { finish(archive::archive(&config, &args).await) }).await
        }
        LedgerCommand::Restore { config, owner, month, file } => {
            let restored =
                |config: Config| async move { finish(archive::restore(&config, &owner, &month, file).await) };
            with_config(&config, restored).await
        }
        LedgerCommand::Hold(command) => {
            let args = command.config().clone();
            with_config(&args, |config| async move { finish(archive::hold(&config, command).await) }).await
        }
        LedgerCommand::Erase { config, subject, reason, now } => {
            with_config(
                &config,
                |config| async move { finish(erase::erase(&config, subject, reason, now).await) },
            )
            .await
        }
        LedgerCommand::Migrate { url, passfile, writer, auditors, print } => {
            let logins = migrate::Logins { writer: &writer, auditors: &auditors };
            finish(migrate::migrate(&url, passfile.as_deref(), logins, print).await)
        }
        LedgerCommand::Key { name, out } => finish(keys::generate(&name, &out)),
    }
}

/// Where the ledger is, and what its settings say, if there are any. `schema`: where its tables or views are looked for.
fn place(args: &LedgerArgs, schema: &'static str) -> Result<(Database, Option<Config>), Refusal> {
    if let Some(url) = &args.url {
        let database = ledger_at(url, args.passfile.as_deref());
        let database = database.map_err(|what| Refusal(EX_CONFIG, format!("--url: {what}")))?;
        return Ok((Database { schema, ..database }, None));
    }
    let config = load(&args.config, std::env::vars()).map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        let next = "next: correct them, or say --url postgres://USER@HOST/DATABASE";
        Refusal(EX_CONFIG, format!("the settings have mistakes:\n{}\n{next}", lines.join("\n")))
    })?;
    Ok((Database { schema, ..config.ledger.clone() }, Some(config)))
}

/// A session of somebody who reads.
async fn reader(args: &ReadingArgs) -> Result<(Client, Master), Refusal> {
    let (database, config) = place(&args.ledger, VIEWS)?;
    let master = config.filter(|_| args.unseal).map(|config| config.master);
    if args.unseal && master.is_none() {
        return Err(Refusal(EX_CONFIG, "--unseal needs the settings, which name the sealing_key".into()));
    }
    // By this the reading is noted.
    let name = format!("tailwater-ledger of {}", operator());
    Ok((database.connect(&name).await?, master.unwrap_or_default()))
}

/// What is published outside, and whose it must be. Without a key there is no telling what was signed by whom.
struct Outside {
    key: Option<PublicKey>,
    directory: Option<LogDirectory>,
}

impl Outside {
    fn find(args: &EvidenceArgs, config: Option<&Config>) -> Result<Self, Refusal> {
        let wrong = |error: &dyn ToString| Refusal(EX_CONFIG, error.to_string());
        let settings = config.and_then(|config| config.checkpoints.as_ref());
        let key = match (&args.pubkey, settings) {
            (Some(text), _) => {
                let text = std::fs::read_to_string(text).unwrap_or_else(|_| text.clone());
                Some(PublicKey::parse(&text).map_err(|error| wrong(&error))?)
            }
            (None, Some(settings)) => Some(settings.read_key().map_err(|error| wrong(&error))?.1),
            (None, None) => None,
        };
        let directory = args.log.as_deref().map(LogDirectory::new);
        let directory = directory.or_else(|| settings.map(|settings| settings.directory.clone()));
        if key.is_none() && (directory.is_some() || !args.checkpoints.is_empty()) {
            return Err(Refusal(EX_CONFIG, "whose checkpoints are they?\nnext: --pubkey NAME+ID+KEY".into()));
        }
        Ok(Self { key, directory })
    }

    /// The newest checkpoint that was published: its size, and the note.
    fn newest_note(&self) -> Result<Option<(u64, String)>, Refusal> {
        let Some((directory, key)) = self.directory.as_ref().zip(self.key.as_ref()) else { return Ok(None) };
        let newest = directory.newest(key).map_err(|error| Refusal(EX_CONFIG, error.to_string()))?;
        Ok(newest.map(|head| (head.size, head.note)))
    }
}

impl From<crate::pg::ConnectError> for Refusal {
    fn from(error: crate::pg::ConnectError) -> Self {
        down(error)
    }
}

/// The exit code of a ledger that cannot be read.
fn unreadable(error: &LedgerError) -> ExitCode {
    match error {
        LedgerError::Tree(_) => fail(1, &error.to_string()),
        other => fail(EX_UNAVAILABLE, &other.to_string()),
    }
}
