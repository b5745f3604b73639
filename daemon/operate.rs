//! Commands that act on a source: recover, reread, and reading a slot for measurement.

use std::io::{IsTerminal, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::app::{EX_CONFIG, EX_SOFTWARE, EX_TEMPORARY, EX_UNAVAILABLE, EX_USAGE, fail, say};
use crate::auditing::recover_ledger;
use crate::capture::Source;
use crate::capture::recover::Recovery;
use crate::config::{Config, SourceConfig, TargetConfig};
use crate::event::Lsn;
use crate::ledger::command::{Asker, Asking, note};
use crate::ledger::loads::{LoadKind, Request};
use crate::ledger::position::Position;
use crate::ledger::{Ledger, LedgerError, is_served};
use crate::ops::admin;
use crate::ops::commands::Waves;
use crate::ops::progress::{Progress, progress};
use crate::source::postgres::connection::ReplicationConnection;
use crate::source::postgres::drain::drain;
use crate::source::postgres::slot::{self, Discontinuity};

/// How often the progress of a load is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// Why a command did not do what it was asked: exit code and message.
pub struct Refusal(pub u8, pub String);

impl From<LedgerError> for Refusal {
    fn from(error: LedgerError) -> Self {
        match error {
            LedgerError::Locked => Self(
                EX_TEMPORARY,
                "the daemon is running\nnext: stop it first (systemctl stop tailwater)".into(),
            ),
            other => Self(EX_UNAVAILABLE, other.to_string()),
        }
    }
}

/// The refusal of a service that is down.
pub fn down(error: impl ToString) -> Refusal {
    Refusal(EX_UNAVAILABLE, error.to_string())
}

/// The ledger for this process alone, unless it is not the one of which checkpoints were published.
pub async fn open_alone(config: &Config) -> Result<Ledger, Refusal> {
    let ledger = Ledger::open(&config.ledger, &config.master).await?;
    if let Some(checkpoints) = &config.checkpoints {
        let guarded = checkpoints.guard(ledger.reader()).await;
        guarded.map_err(|error| Refusal(EX_CONFIG, error.to_string()))?;
    }
    Ok(ledger)
}

/// Prints the answer or the refusal.
#[must_use]
pub fn finish(result: Result<String, Refusal>) -> ExitCode {
    match result {
        Ok(text) => {
            say(&text);
            ExitCode::SUCCESS
        }
        Err(Refusal(code, message)) => fail(code, &message),
    }
}

/// The source of that name, or the only one.
pub fn source_named<'a>(
    sources: &'a [SourceConfig],
    name: Option<&str>,
) -> Result<&'a SourceConfig, ExitCode> {
    let only = sources.len() == 1;
    let found = sources.iter().find(|source| name.map_or(only, |name| source.name == name));
    found.ok_or_else(|| {
        let names: Vec<&str> = sources.iter().map(|source| source.name.as_str()).collect();
        fail(EX_USAGE, &format!("name one source: --source {}", names.join(" | ")))
    })
}

/// The target of that name.
pub fn target_named<'a>(targets: &'a [TargetConfig], name: &str) -> Result<&'a TargetConfig, ExitCode> {
    targets.iter().find(|target| target.name == name).ok_or_else(|| {
        let names: Vec<&str> = targets.iter().map(|target| target.name.as_str()).collect();
        fail(EX_USAGE, &format!("there is no target \"{name}\"\nnext: one of {}", names.join(", ")))
    })
}

/// Has something noted for the running daemon: by its socket, so that it knows who asks, or where there is none in the ledger.
pub async fn ask(
    socket: Option<&Path>,
    client: &tokio_postgres::Client,
    asking: &Asking,
) -> Result<i64, Refusal> {
    if let Some(socket) = socket
        && let Some(answer) = admin::ask(socket, asking).await
    {
        return answer.map_err(|reason| Refusal(EX_UNAVAILABLE, reason));
    }
    Ok(note(client, asking, &Asker { name: operator(), peer_uid: None }).await?)
}

/// Who gives a command, by their own account, for the ledger.
#[must_use]
pub fn operator() -> String {
    let uid = std::fs::metadata("/proc/self").map(|meta| std::os::unix::fs::MetadataExt::uid(&meta));
    let name = std::env::var("SUDO_USER").or_else(|_| std::env::var("USER")).unwrap_or_default();
    format!("{name} (uid {})", uid.map_or_else(|_| "unknown".to_owned(), |uid| uid.to_string()))
}

/// `tailwater recover`.
pub async fn recover(config: Config, name: Option<String>, accept_new_cluster: bool) -> ExitCode {
    let Some(name) = name.as_deref() else { return recover_ledger(&config).await };
    let source = match source_named(&config.sources, Some(name)) {
        Ok(source) => Source::new(source.clone(), Arc::default(), None, Waves::default()),
        Err(code) => return code,
    };
    let work = async {
        let ledger = open_alone(&config).await?;
        let position = Position::load(ledger.reader(), &source.flow.name).await?;
        let position = position.ok_or_else(|| {
            Refusal(EX_USAGE, format!("source \"{name}\" was never read\nnext: tailwater run"))
        })?;
        let client = source.database.connect("tailwater-recover").await.map_err(down)?;
        let mut connection = ReplicationConnection::open(&source.database).await.map_err(down)?;
        let cluster = slot::identify(&mut connection).await.map_err(down)?;
        drop(connection);
        let problem = slot::check_continuity(&client, &cluster, &source.slot, &position).await;
        let problem = problem.map_err(|error| down(crate::pg::describe(&error)))?;
        let problem = match problem {
            None => {
                let text = format!(
                    "nothing is lost: the slot goes on where the ledger stands ({})\nnext: tailwater run; or \
                     `tailwater source reread --table …` to compare tables\n",
                    position.end_lsn
                );
                return Ok(text);
            }
            Some(problem @ Discontinuity::OtherCluster { .. }) if !accept_new_cluster => {
                return Err(Refusal(EX_CONFIG, problem.to_string()));
            }
            Some(problem) => problem,
        };
        let from = position.end_lsn;
        let who = operator();
        let recovery = Recovery { source: &source, ledger: &ledger, requested_by: &who, problem: &problem };
        recovery.begin(&client, cluster, position).await.map_err(down)?;
        Ok(format!(
            "the gap after {from} is in the ledger; the old slot is gone\nnext: tailwater run  (makes a new slot, reads \
             all tables again, delivers what differs)\n"
        ))
    };
    finish(work.await)
}

/// What `tailwater source reread` reads.
pub struct Reread {
    /// Tables.
    pub tables: Vec<String>,
    /// Keys after this one.
    pub after: Option<String>,
    /// Keys up to this one.
    pub to: Option<String>,
    /// Show the progress until it is done.
    pub wait: bool,
}

/// `tailwater source reread`.
pub async fn reread(config: Config, name: Option<String>, what: Reread) -> ExitCode {
    let polled = config.polls.iter().find(|poll| Some(&poll.name) == name.as_ref());
    let (source, mapping) = match polled {
        Some(poll) => (&poll.name, &poll.mapping),
        None => match source_named(&config.sources, name.as_deref()) {
            Ok(source) => (&source.name, &source.mapping),
            Err(code) => return code,
        },
    };
    let known: Vec<String> = mapping.tables.iter().map(|table| table.name.to_string()).collect();
    if let Some(unknown) = what.tables.iter().find(|table| !known.contains(table)) {
        let message = format!("the mapping reads no table \"{unknown}\"\nnext: one of {}", known.join(", "));
        return fail(EX_USAGE, &message);
    }
    if polled.is_some() && (what.after.is_some() || what.to.is_some()) {
        return fail(EX_USAGE, "what is polled is read as a whole: there are no key ranges");
    }
    let ranged = what.after.is_some() || what.to.is_some();
    let single = |name: &String| mapping.table_named(name).is_some_and(|table| table.key.len() == 1);
    if ranged && (what.tables.len() != 1 || !what.tables.iter().all(single)) {
        return fail(EX_USAGE, "a key range is for one table whose key is one column");
    }
    let work = async {
        let client = config.ledger.connect("tailwater-reread").await.map_err(down)?;
        let asked = Request {
            source: source.clone(),
            kind: LoadKind::Reread,
            relations: what.tables,
            lower: what.after,
            upper: what.to,
            reason: "asked for".into(),
            look_first: false,
            requested_by: operator(),
        };
        let load = ask(config.admin_socket.as_deref(), &client, &Asking::Load(asked)).await?;
        if !is_served(&client).await? {
            return Ok(format!(
                "load {load} is asked for; the daemon is not running, it begins with the next start\n"
            ));
        }
        if !what.wait {
            return Ok(format!("load {load} is asked for\n"));
        }
        watch(&client, load).await
    };
    finish(work.await)
}

/// Shows the progress of a load until it is over.
async fn watch(client: &tokio_postgres::Client, load: i64) -> Result<String, Refusal> {
    let terminal = std::io::stderr().is_terminal();
    loop {
        let Some(Progress { state, line, .. }) = progress(client, load).await? else {
            return Err(Refusal(EX_SOFTWARE, format!("load {load} is not in the ledger")));
        };
        if terminal {
            // A terminal that went away is no reason to stop looking.
            let _ = write!(std::io::stderr(), "\r\x1b[K{line}");
        }
        match state.as_str() {
            "requested" | "reading" => sleep(LOOK).await,
            "done" => return Ok(format!("{}{line}\n", if terminal { "\n" } else { "" })),
            _ => return Err(Refusal(EX_USAGE, format!("load {load} was refused; the log says why"))),
        }
    }
}

/// `tailwater source drain`.
pub async fn drain_slot(config: Config, name: Option<String>, slot: String, until: Lsn) -> ExitCode {
    let source = match source_named(&config.sources, name.as_deref()) {
        Ok(source) => source,
        Err(code) => return code,
    };
    let drained = drain(&source.database, &slot, &source.publication, until).await;
    finish(drained.map_err(down).map(|drained| {
        let figures =
            serde_json::json!({"transactions": drained.transactions, "row_changes": drained.row_changes});
        format!("{figures}\n")
    }))
}
