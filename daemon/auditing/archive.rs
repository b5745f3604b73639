//! `tailwater ledger archive`, `restore` and `hold`.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use jiff::civil::Date;
use tokio_postgres::Client;

use super::Outside;
use super::bundle::{Bundle, digest};
use crate::app::{EX_CONFIG, EX_UNAVAILABLE, EX_USAGE};
use crate::audit::bundle::{Finding, bodies, verify};
use crate::cli::{ArchiveArgs, EvidenceArgs, ExportFormat, HoldCommand, OwnerArgs};
use crate::config::{Config, ledger_at};
use crate::ledger::archive::{
    Hold, Month, archived, begin_restore, end_restore, held, holds, months, owed, restore as put_back,
    take_away,
};
use crate::ledger::command::Command;
use crate::operate::{Refusal, down};
use crate::orders::order;
use crate::pg::Database;

/// Entries that are put back at once.
const PORTION: usize = 1_000;

/// A session of the owner of the tables: nobody else may take a month away.
async fn owner(config: &Config, args: &OwnerArgs) -> Result<Client, Refusal> {
    let database = match &args.url {
        Some(url) => ledger_at(url, args.passfile.as_deref())
            .map_err(|what| Refusal(EX_CONFIG, format!("--url: {what}")))?,
        None => Database { schema: crate::ledger::SCHEMA, ..config.ledger.clone() },
    };
    let client = database.connect("tailwater-archive").await?;
    let sql = "select exists (select from pg_roles where rolname = 'tailwater_owner')
                 and pg_has_role(current_user, 'tailwater_owner', 'member')";
    if client.query_one(sql, &[]).await.map_err(|error| down(crate::pg::describe(&error)))?.get(0) {
        let set = client.batch_execute("set role tailwater_owner").await;
        set.map_err(|error| down(crate::pg::describe(&error)))?;
    }
    // Whoever reads is waited for, but not for long: meanwhile nothing can be written.
    client
        .batch_execute("set lock_timeout = '5s'")
        .await
        .map_err(|error| down(crate::pg::describe(&error)))?;
    Ok(client)
}

fn month_of(text: &str) -> Result<Date, Refusal> {
    let month: Result<Date, _> = format!("{text}-01").parse();
    month.map_err(|_| Refusal(EX_USAGE, format!("`{text}` is not a month, such as 2026-01")))
}

/// `tailwater ledger archive`.
pub async fn archive(config: &Config, args: &ArchiveArgs) -> Result<String, Refusal> {
    let before = month_of(&args.before)?;
    let evidence = EvidenceArgs { log: None, checkpoints: Vec::new(), pubkey: None };
    let outside = Outside::find(&evidence, Some(config))?;
    let mut client = owner(config, &args.owner).await?;
    let mut text = String::new();
    for month in months(&client).await?.into_iter().filter(|month| month.month < before) {
        text.push_str(&one(config, &outside, &mut client, &month, &args.out).await?);
    }
    if text.is_empty() {
        text = format!("there is nothing before {} but what is archived already\n", args.before);
    }
    Ok(text)
}

async fn one(
    config: &Config,
    outside: &Outside,
    client: &mut Client,
    month: &Month,
    directory: &Path,
) -> Result<String, Refusal> {
    let name = month.month.strftime("%Y-%m").to_string();
    let refused = |what: String| Refusal(EX_CONFIG, format!("{name} stays: {what}"));
    let held = held(client, month.month).await?;
    if !held.is_empty() {
        return Err(refused(format!("it is held ({})\nnext: tailwater ledger hold list", held.join(", "))));
    }
    let owed = owed(client, month.month).await?;
    if owed > 0 {
        return Err(refused(format!(
            "{owed} deliveries of its events are still owed\nnext: tailwater deliveries list"
        )));
    }
    let checkpoint = outside.newest_note()?.filter(|(size, _)| *size >= month.last);
    let Some(checkpoint) = checkpoint else {
        return Err(refused(
            "no published checkpoint covers it\nnext: [ledger.checkpoints] in the settings".into(),
        ));
    };
    let path = directory.join(format!("tailwater-{name}.tar"));
    let reading = client.transaction().await.map_err(|error| down(crate::pg::describe(&error)))?;
    let bundle = Bundle {
        span: (month.first, month.last),
        format: ExportFormat::Jsonl,
        compressed: true,
        out: &path,
        checkpoint: Some(checkpoint),
    };
    bundle.write(&reading).await?;
    reading.commit().await.map_err(|error| down(crate::pg::describe(&error)))?;
    let sha256 = proven(&path, outside)?;
    let file = path.display().to_string();
    let noted = Command::Archive {
        month: month.month,
        first: month.first,
        last: month.last,
        file: file.clone(),
        sha256: sha256.clone(),
        restored: false,
    };
    note(config, noted).await?;
    let taking = client.transaction().await.map_err(|error| down(crate::pg::describe(&error)))?;
    take_away(&taking, month, (&file, &sha256)).await?;
    taking.commit().await.map_err(|error| down(crate::pg::describe(&error)))?;
    Ok(format!("{name}: entries {} to {} are in {file} (SHA-256 {sha256})\n", month.first, month.last))
}

/// Has it written into the ledger, as the daemon's role: the owner does not see who serves it.
async fn note(config: &Config, command: Command) -> Result<(), Refusal> {
    let client = config.ledger.connect("tailwater-archive").await?;
    order(config, &client, command).await
}

/// The digest of a bundle that proves itself.
fn proven(path: &Path, outside: &Outside) -> Result<String, Refusal> {
    let failed = |error: std::io::Error| Refusal(EX_UNAVAILABLE, format!("{}: {error}", path.display()));
    let finding = File::open(path).and_then(|file| verify(BufReader::new(file), outside.key.as_ref()));
    match finding.map_err(failed)? {
        Finding::Sound { .. } => {
            File::open(path).and_then(|mut file| digest(&mut file, false)).map_err(failed)
        }
        Finding::Tampered(what) | Finding::Incomplete(what) => {
            let next = "next: tailwater ledger verify";
            Err(Refusal(EX_CONFIG, format!("{} does not prove itself: {what}\n{next}", path.display())))
        }
    }
}

/// `tailwater ledger restore`.
pub async fn restore(
    config: &Config,
    args: &OwnerArgs,
    month: &str,
    file: Option<PathBuf>,
) -> Result<String, Refusal> {
    let (date, sql) = (month_of(month)?, |error| down(crate::pg::describe(&error)));
    let mut client = owner(config, args).await?;
    let Some((month, known, sha256)) = archived(&client, date).await? else {
        return Err(Refusal(EX_USAGE, format!("{month} is not archived")));
    };
    let path = file.unwrap_or_else(|| PathBuf::from(known));
    let failed = |error: std::io::Error| Refusal(EX_UNAVAILABLE, format!("{}: {error}", path.display()));
    if File::open(&path).and_then(|mut file| digest(&mut file, false)).map_err(failed)? != sha256 {
        return Err(Refusal(
            EX_CONFIG,
            format!("{} is not the file that was written (SHA-256 {sha256})", path.display()),
        ));
    }
    let transaction = client.transaction().await.map_err(sql)?;
    begin_restore(&transaction, date).await?;
    let (send, mut receive) = tokio::sync::mpsc::channel(4);
    let reader = path.clone();
    let reading = tokio::task::spawn_blocking(move || {
        let mut portion = Vec::new();
        let gone = |_| std::io::Error::other("nobody takes them");
        bodies(BufReader::new(File::open(&reader)?), |body| {
            portion.push(body);
            if portion.len() < PORTION {
                return Ok(());
            }
            send.blocking_send(std::mem::take(&mut portion)).map_err(gone)
        })?;
        send.blocking_send(portion).map_err(gone)
    });
    while let Some(portion) = receive.recv().await {
        put_back(&transaction, date, &portion).await?;
    }
    let read = reading.await.map_err(|error| Refusal(EX_UNAVAILABLE, error.to_string()))?;
    read.map_err(failed)?;
    if !end_restore(&transaction, &month).await? {
        return Err(Refusal(
            EX_CONFIG,
            format!("what {} holds is not what the ledger was: nothing was restored", path.display()),
        ));
    }
    transaction.commit().await.map_err(sql)?;
    let file = path.display().to_string();
    let noted =
        Command::Archive { month: date, first: month.first, last: month.last, file, sha256, restored: true };
    note(config, noted).await?;
    Ok(format!("entries {} to {} are in the database again\n", month.first, month.last))
}

/// `tailwater ledger hold`.
pub async fn hold(config: &Config, command: HoldCommand) -> Result<String, Refusal> {
    let client = config.ledger.connect("tailwater-hold").await?;
    match command {
        HoldCommand::Add { name, months, about, reason, .. } => {
            let months = months.iter().map(|month| month_of(month)).collect::<Result<Vec<_>, _>>()?;
            if months.is_empty() && about.is_empty() {
                return Err(Refusal(EX_USAGE, "what is held? --month 2026-01, or --about ERP-P-8".into()));
            }
            order(config, &client, Command::Hold { name, months, refs: about, reason }).await?;
        }
        HoldCommand::Release { name, reason, .. } => {
            if !holds(&client).await?.iter().any(|hold| hold.name == name) {
                return Err(Refusal(
                    EX_USAGE,
                    format!("there is no hold \"{name}\"\nnext: tailwater ledger hold list"),
                ));
            }
            order(config, &client, Command::Unhold { name, reason }).await?;
        }
        HoldCommand::List { .. } => {}
    }
    let line = |Hold { name, months, refs, reason, held_by }: Hold| {
        let months = months.iter().map(|month| month.strftime("%Y-%m").to_string());
        let what: Vec<String> = months.chain(refs).collect();
        format!("{name}: {} ({reason}; {held_by})\n", what.join(", "))
    };
    let text: String = holds(&client).await?.into_iter().map(line).collect();
    Ok(if text.is_empty() { "nothing is held\n".into() } else { text })
}
