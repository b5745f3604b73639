//! What people ask of the ledger's writer: a running daemon carries it out, or the command itself when none runs. Each is one
//! ledger transaction with an operator entry.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio_postgres::Client;

use super::LedgerError;
use super::batch::{Batch, EntryIndex};
use super::deliveries::{Selection, carried_out, newest, step};
use super::entry::{EntryKind, NewEntry};
use super::erase::{Erasure, held as holds};
use super::loads;
use super::parked::{ParkedSelection, ParkedVerb};
use super::writer::Writer;
use crate::bounds::{COMMAND_TEXT_BYTES, ID_BYTES, is_id, shown};

/// See the module's text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Command {
    /// Let a mass change go, or throw its deliveries away.
    Release {
        /// Only of this target.
        target: Option<String>,
        /// Only of this object.
        object: Option<String>,
        /// Do not deliver it.
        discard: bool,
    },
    /// An object stands at a target under this id.
    Link {
        /// Target.
        target: String,
        /// Object of its connector.
        object: String,
        /// Canonical id.
        id: String,
        /// The target's own id.
        external_id: String,
    },
    /// It is not known any more where an object stands at a target.
    Unlink {
        /// Target.
        target: String,
        /// Object of its connector.
        object: String,
        /// Canonical id.
        id: String,
    },
    /// Objects of these types are told again, as if they were read for the first time: for a target that is new to them.
    Backfill {
        /// Source.
        source: String,
        /// Types with version.
        events: Vec<String>,
    },
    /// A group of customers is moved to the other system, or back.
    Wave {
        /// Name in the route files.
        name: String,
        /// Moved.
        moved: bool,
    },
    /// Deliver again what was parked or refused.
    Retry {
        /// Which.
        which: Selection,
        /// Why.
        reason: String,
    },
    /// Give up what was parked, refused or held.
    Discard {
        /// Which.
        which: Selection,
        /// Why.
        reason: String,
    },
    /// What is decided of parked things that are no deliveries.
    Parked {
        /// What.
        verb: ParkedVerb,
        /// Of which.
        which: ParkedSelection,
        /// Why.
        reason: String,
    },
    /// A request in doubt was carried out, or was not.
    Resolve {
        /// Delivery.
        id: i64,
        /// Its lane.
        target: String,
        /// Object of the connector.
        object: String,
        /// Canonical id.
        canonical_id: String,
        /// It was.
        applied: bool,
        /// The target's own id, when there is a new one.
        external_id: Option<String>,
        /// How that is known.
        reason: String,
    },
    /// Forget a data subject.
    Erase(Erasure),
    /// Nothing but an entry: a month was written to a file, and is about to be taken out of the database.
    Archive {
        /// First day.
        month: jiff::civil::Date,
        /// First entry.
        first: u64,
        /// Last entry.
        last: u64,
        /// File.
        file: String,
        /// Its digest.
        sha256: String,
        /// It was put back instead.
        restored: bool,
    },
    /// Something must not be archived or erased.
    Hold {
        /// Name.
        name: String,
        /// Months.
        months: Vec<jiff::civil::Date>,
        /// Subjects, objects, rows.
        refs: Vec<String>,
        /// Why.
        reason: String,
    },
    /// It may be.
    Unhold {
        /// Name.
        name: String,
        /// Why.
        reason: String,
    },
    /// Nothing but an entry: somebody has read the ledger.
    Read {
        /// Which view or command.
        what: String,
        /// What was asked.
        details: Option<String>,
    },
    /// The same: somebody has taken a copy of a part of it.
    Export {
        /// Which command.
        what: String,
        /// Which part.
        details: Option<String>,
    },
    /// How fast a target may be spoken to, until it is taken back.
    Quota {
        /// Target.
        target: String,
        /// Limit of its connector.
        limit: String,
        /// Rates; as the settings have it when `None`.
        rates: Option<Vec<String>>,
    },
}

/// A command that waits.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Number.
    pub id: i64,
    /// What.
    pub command: Command,
    /// By whom, as they say.
    pub requested_by: String,
    /// User of the process that asked, as the kernel says; none where it asked through the database.
    pub peer_uid: Option<i64>,
    /// Role in the database by which it was noted.
    pub role: String,
}

/// Whatever people ask for, in one form.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Asking {
    /// A command.
    Command(Command),
    /// Tables are read again.
    Load(loads::Request),
    /// What a target holds is compared.
    Reconcile {
        /// Target.
        target: String,
        /// Objects of its connector; all when empty.
        objects: Vec<String>,
        /// What differs is put right.
        repair: bool,
    },
}

impl Asking {
    /// What of it nobody can go by; bounds are those of ids and of what people write.
    #[must_use]
    pub fn flaw(&self) -> Option<String> {
        let ids: Vec<&String> = match self {
            Self::Command(Command::Link { target, object, id, external_id }) => {
                vec![target, object, id, external_id]
            }
            Self::Command(Command::Unlink { target, object, id }) => vec![target, object, id],
            Self::Command(Command::Resolve { target, object, canonical_id, external_id, .. }) => {
                [target, object, canonical_id].into_iter().chain(external_id).collect()
            }
            Self::Command(Command::Hold { name, refs, .. }) => std::iter::once(name).chain(refs).collect(),
            Self::Command(_) | Self::Load(_) | Self::Reconcile { .. } => Vec::new(),
        };
        if let Some(id) = ids.into_iter().find(|id| !is_id(id)) {
            return Some(format!("`{}` is no id: 1 to {ID_BYTES} bytes, none of them NUL", shown(id)));
        }
        let value = serde_json::to_value(self).unwrap_or_default();
        let longest = longest_text(&value);
        (longest > COMMAND_TEXT_BYTES)
            .then(|| format!("a text has {longest} bytes; {COMMAND_TEXT_BYTES} is the most"))
    }
}

fn longest_text(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(longest_text).max().unwrap_or_default(),
        Value::Object(map) => map.values().map(longest_text).max().unwrap_or_default(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    }
}

/// Who asks: as they say, and as the kernel says.
#[derive(Debug, Clone)]
pub struct Asker {
    /// Name and uid.
    pub name: String,
    /// See [`Asked::peer_uid`].
    pub peer_uid: Option<i64>,
}

/// Notes what is asked for; gives its number among its kind.
pub async fn note(client: &Client, asking: &Asking, asker: &Asker) -> Result<i64, LedgerError> {
    if let Some(flaw) = asking.flaw() {
        return Err(LedgerError::Refused(flaw));
    }
    match asking {
        Asking::Command(command) => ask(client, command, asker).await,
        Asking::Load(request) => {
            let request = loads::Request { requested_by: asker.name.clone(), ..request.clone() };
            loads::request(client, &request).await
        }
        Asking::Reconcile { target, objects, repair } => {
            super::reconcile::request(client, target, objects, *repair, &asker.name).await
        }
    }
}

/// Notes a command for the daemon.
pub async fn ask(client: &Client, command: &Command, asker: &Asker) -> Result<i64, LedgerError> {
    let arguments = serde_json::to_value(command).unwrap_or_default();
    let kind = arguments.get("kind").and_then(Value::as_str).unwrap_or_default();
    let sql =
        "insert into command (kind, arguments, requested_by, peer_uid) values ($1, $2, $3, $4) returning id";
    Ok(client.query_one(sql, &[&kind, &arguments, &asker.name, &asker.peer_uid]).await?.try_get(0)?)
}

/// Commands that wait, oldest first.
pub async fn waiting(client: &Client) -> Result<Vec<Asked>, LedgerError> {
    let sql = "select id, arguments, requested_by, peer_uid, role from command where done_at is null order by id limit 100";
    let mut asked = Vec::new();
    for row in client.query(sql, &[]).await? {
        let id: i64 = row.try_get(0)?;
        match serde_json::from_value(row.try_get(1)?) {
            Ok(command) => asked.push(Asked {
                id,
                command,
                requested_by: row.try_get(2)?,
                peer_uid: row.try_get(3)?,
                role: row.try_get(4)?,
            }),
            Err(error) => {
                tracing::error!(command = id, %error, "a command cannot be read; it is not carried out");
                refuse(client, id, "it cannot be read").await?;
            }
        }
    }
    Ok(asked)
}

/// Ends a command that is not carried out.
async fn refuse(client: &Client, id: i64, why: &str) -> Result<(), LedgerError> {
    let sql = "update command set done_at = now(), outcome = $2 where id = $1";
    client.execute(sql, &[&id, &why]).await?;
    Ok(())
}

/// `None` until the command has ended; then why it was not carried out, if it was not.
pub async fn ended(client: &Client, id: i64) -> Result<Option<Option<String>>, LedgerError> {
    let sql = "select done_at is not null, outcome from command where id = $1";
    let row = client.query_one(sql, &[&id]).await?;
    Ok(if row.try_get(0)? { Some(row.try_get(1)?) } else { None })
}

/// The ledger transaction that carries a command out, and its entry.
#[must_use]
pub fn batch(asked: Asked) -> (Batch, EntryIndex) {
    let mut fields = serde_json::to_value(&asked.command).unwrap_or_default();
    if let Value::Object(map) = &mut fields {
        let kind = map.remove("kind").unwrap_or_default();
        map.insert("action".into(), kind);
        map.insert("requested_by".into(), asked.requested_by.clone().into());
        map.insert("role".into(), asked.role.clone().into());
        map.extend(asked.peer_uid.map(|uid| ("peer_uid".to_owned(), uid.into())));
    }
    let kind = match asked.command {
        Command::Read { .. } => EntryKind::Read,
        Command::Export { .. } => EntryKind::Export,
        Command::Erase(_) => EntryKind::Erase,
        Command::Archive { .. } => EntryKind::Archive,
        _ => EntryKind::Operator,
    };
    let mut batch = Batch::default();
    if let Command::Erase(erasure) = &asked.command {
        batch.erased.push(erasure.subject.clone());
        batch.erased.extend(erasure.also.iter().cloned());
    }
    let entry = batch.entry(NewEntry::new(kind, None, fields));
    batch.commands.push(asked);
    (batch, entry)
}

/// Carries a command out; `alive` is called at each step.
pub async fn carry_out(
    client: &Client,
    writer: &Writer,
    asked: Asked,
    alive: impl Fn(),
) -> Result<(), LedgerError> {
    if let Command::Erase(erasure) = &asked.command
        && !holds(client, &erasure.names()).await?.is_empty()
    {
        tracing::warn!(command = asked.id, "what is held is not erased");
        return refuse(client, asked.id, "it is held by now").await;
    }
    // What is refused again while this goes on is not taken up again.
    let newest = newest(client).await?;
    let mut after = 0;
    while let Some((batch, last)) = step(client, &asked, (after, newest)).await? {
        writer.write(batch).await?;
        after = last;
        alive();
    }
    let stands = match &asked.command {
        Command::Resolve { id, applied: true, external_id, .. } => {
            carried_out(client, *id, external_id.clone()).await?
        }
        _ => None,
    };
    let (mut batch, outcome) = batch(asked);
    batch.applied.extend(stands.map(|stands| stands(outcome)));
    writer.write(batch).await.map(|_| ())
}

/// Backfills of a source that wait.
pub async fn backfills(client: &Client, source: &str) -> Result<Vec<Asked>, LedgerError> {
    let of_source =
        |asked: &Asked| matches!(&asked.command, Command::Backfill { source: of, .. } if of == source);
    Ok(waiting(client).await?.into_iter().filter(of_source).collect())
}

/// All waves that were ever moved: name, whether it is, by whom, when.
pub async fn waves(client: &Client) -> Result<Vec<(String, bool, String, jiff::Timestamp)>, LedgerError> {
    let rows =
        client.query("select name, moved, changed_by, changed_at from wave order by name", &[]).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?))).collect()
}

/// A rate that an operator has set.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Tuning {
    /// Target.
    pub target: String,
    /// Limit of its connector.
    pub limit_name: String,
    /// Rates.
    pub rates: Vec<String>,
    /// Who has set them, and when.
    pub changed_by: String,
    /// When.
    pub changed_at: String,
}

/// What operators have changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Waves that have been moved.
    pub moved_waves: BTreeSet<String>,
    /// Rates that are set.
    pub tunings: Vec<Tuning>,
    /// The last command that let everything go that was held.
    pub released: i64,
    /// By target, the last command that took back every pause: one that took back what was set of its quotas, or that wants what waits
    /// for it delivered again.
    pub lifted: BTreeMap<String, i64>,
    /// Subjects that have been forgotten.
    pub erasures: i64,
}

/// Reads what operators have changed so far.
pub async fn changes(client: &Client) -> Result<Changes, LedgerError> {
    let sql = "select array(select name from wave where moved order by 1),
                      coalesce((select jsonb_agg(q order by target, limit_name) from quota q), '[]'),
                      coalesce((select max(id) from command where kind = 'release' and done_at is not null
                                and arguments ->> 'target' is null and arguments ->> 'object' is null), 0),
                      (select erasures from tree),
                      coalesce((select jsonb_object_agg(target, id) from (
                        select coalesce(arguments ->> 'target', arguments #>> '{which,target}') as target, max(id) as id
                        from command
                        where done_at is not null and (kind = 'quota' and arguments ->> 'rates' is null
                          or kind = 'retry' and arguments #>> '{which,target}' is not null)
                        group by 1) l), '{}')";
    let row = client.query_one(sql, &[]).await?;
    let tunings = serde_json::from_value(row.try_get(1)?);
    Ok(Changes {
        moved_waves: row.try_get::<_, Vec<String>>(0)?.into_iter().collect(),
        tunings: tunings.map_err(|_| LedgerError::Unreadable("what is set of quotas".into()))?,
        released: row.try_get(2)?,
        erasures: row.try_get(3)?,
        lifted: serde_json::from_value(row.try_get(4)?).unwrap_or_default(),
    })
}

/// Held deliveries of one target, object, operation and reason.
#[derive(Debug, Clone)]
pub struct Held {
    /// Target.
    pub target: String,
    /// Object of its connector.
    pub object: String,
    /// `upsert` or `delete`.
    pub operation: String,
    /// Why.
    pub reason: String,
    /// How many.
    pub count: i64,
    /// The first canonical ids.
    pub first: Vec<String>,
}

/// What is held, the most first.
pub async fn held(client: &Client) -> Result<Vec<Held>, LedgerError> {
    let sql = "select target, object, operation, coalesce(reason, ''), count(*),
                      (array_agg(canonical_id order by id))[1:5]
               from delivery where state = 'held' and aside group by 1, 2, 3, 4 order by 5 desc";
    let rows = client.query(sql, &[]).await?;
    let held = |row: &tokio_postgres::Row| {
        Ok(Held {
            target: row.try_get(0)?,
            object: row.try_get(1)?,
            operation: row.try_get(2)?,
            reason: row.try_get(3)?,
            count: row.try_get(4)?,
            first: row.try_get(5)?,
        })
    };
    rows.iter().map(held).collect()
}
