//! The replication slot: created once, compared with the ledger at every connect.
//!
//! START_REPLICATION at a position the slot has passed skips ahead without a word, so a slot that stands anywhere but
//! where the ledger expects it is refused.

use std::time::Duration;

use tokio_postgres::Client;

use super::catalog::quote;
use super::connection::{ConnectionError, ReplicationConnection};
use crate::event::{Cluster, Lsn};
use crate::ledger::position::Position;

/// The slot does not fit the ledger: a person has to decide.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Discontinuity {
    /// Another cluster.
    #[error(
        "source \"{source_name}\" is another database cluster than the ledger was filled from (system identifier {found}, expected {expected})
next: point `url` at the right server; if this is the ERP now, restored from a dump: \
`tailwater recover --source {source_name} --accept-new-cluster`"
    )]
    OtherCluster {
        /// Source.
        source_name: String,
        /// Found.
        found: String,
        /// Expected.
        expected: String,
    },
    /// The server was promoted or recovered to a point in time.
    #[error(
        "source \"{source_name}\" is on timeline {found}, the ledger was filled from timeline {expected}
detail: after a failover or a point-in-time recovery the slot may have lost or repeat changes.
next: run `tailwater recover --source {source_name}`; it records the gap in the ledger and reads the tables again"
    )]
    OtherTimeline {
        /// Source.
        source_name: String,
        /// Found.
        found: u32,
        /// Expected.
        expected: u32,
    },
    /// The slot is gone.
    #[error(
        "replication slot \"{slot}\" does not exist any more
detail: the ledger stands at {end_lsn}; changes after it may be lost.
next: find out who dropped it; then run `tailwater recover --source {source_name}`, which records the gap in the ledger \
and reads the tables again"
    )]
    SlotMissing {
        /// Source.
        source_name: String,
        /// Slot.
        slot: String,
        /// Where the ledger stands.
        end_lsn: Lsn,
    },
    /// The slot was invalidated.
    #[error(
        "replication slot \"{slot}\" is lost: {cause}
detail: the ledger stands at {end_lsn}; changes after it are missing.
next: run `tailwater recover --source {source_name}`; it records the gap in the ledger and reads the tables again"
    )]
    SlotLost {
        /// Source.
        source_name: String,
        /// Why the server invalidated it.
        cause: String,
        /// Slot.
        slot: String,
        /// Where the ledger stands.
        end_lsn: Lsn,
    },
    /// The slot is ahead of the ledger.
    #[error(
        "replication slot \"{slot}\" stands at {confirmed}, ahead of the ledger at {end_lsn}
detail: somebody advanced the slot, or the ledger was restored from a backup; changes between are missing.
next: put the newer ledger back if there is one; else run `tailwater recover --source {source_name}`, which records the \
gap in the ledger and reads the tables again"
    )]
    SlotAhead {
        /// Source.
        source_name: String,
        /// Slot.
        slot: String,
        /// Where the slot stands.
        confirmed: Lsn,
        /// Where the ledger stands.
        end_lsn: Lsn,
    },
    /// The settings name another slot than the ledger was filled through.
    #[error(
        "source \"{source_name}\" was read through slot \"{expected}\", and the settings name \"{found}\"
detail: another slot stands elsewhere, and the old one would go on holding back WAL.
next: put the old name back; or run `tailwater recover --source {source_name}`, which drops slot \"{expected}\" and reads \
the tables again through a new one"
    )]
    OtherSlot {
        /// Source.
        source_name: String,
        /// Slot in the settings.
        found: String,
        /// Slot in the ledger.
        expected: String,
    },
    /// A slot of this name exists and the ledger knows nothing of it.
    #[error(
        "replication slot \"{slot}\" exists already, and this ledger has never used it
detail: the first load needs a slot of its own making, because only then is its snapshot known.
next: if nothing else uses it: select pg_drop_replication_slot('{slot}');  or name another `slot` in the settings"
    )]
    SlotForeign {
        /// Slot.
        slot: String,
    },
}

/// `IDENTIFY_SYSTEM`.
pub async fn identify(connection: &mut ReplicationConnection) -> Result<Cluster, ConnectionError> {
    let rows = connection.query("IDENTIFY_SYSTEM").await?;
    let cell = |index: usize| rows.first().and_then(|row| row.get(index)).and_then(Clone::clone);
    let timeline = cell(1).and_then(|text| text.parse().ok());
    match (cell(0), timeline) {
        (Some(system_identifier), Some(timeline)) => Ok(Cluster { system_identifier, timeline }),
        _ => Err(ConnectionError::Unsupported("IDENTIFY_SYSTEM gave no system identifier".into())),
    }
}

/// A slot becomes consistent when every transaction open at its creation has ended: an ERP's mass action takes a while.
const CREATION_PATIENCE: Duration = Duration::from_secs(3_600);

/// `CREATE_REPLICATION_SLOT` without a snapshot; with PostgreSQL 17 the slot follows a failover to a standby that
/// synchronizes slots. Gives its consistent point, from which the stream begins.
pub async fn create(
    client: &Client,
    connection: &mut ReplicationConnection,
    slot: &str,
) -> Result<Lsn, ConnectionError> {
    let sql = "select current_setting('server_version_num')::int";
    let version = client.query_one(sql, &[]).await.ok().and_then(|row| row.try_get::<_, i32>(0).ok());
    let options = match version {
        Some(170_000..) => "(SNAPSHOT 'nothing', FAILOVER true)",
        Some(150_000..) => "(SNAPSHOT 'nothing')",
        _ => "NOEXPORT_SNAPSHOT",
    };
    let sql = format!("CREATE_REPLICATION_SLOT {} LOGICAL pgoutput {options}", quote(slot));
    let rows = connection.query_within(&sql, CREATION_PATIENCE).await?;
    let cell = |index: usize| rows.first().and_then(|row| row.get(index)).and_then(Clone::clone);
    cell(1).and_then(|text| text.parse().ok()).ok_or_else(|| {
        ConnectionError::Unsupported("CREATE_REPLICATION_SLOT gave no consistent point".into())
    })
}

/// True when a slot of this name exists.
pub async fn exists(client: &Client, slot: &str) -> Result<bool, tokio_postgres::Error> {
    let sql = "select exists (select from pg_replication_slots where slot_name = $1)";
    client.query_one(sql, &[&slot]).await?.try_get(0)
}

/// Drops the slot.
pub async fn drop(client: &Client, slot: &str) -> Result<(), tokio_postgres::Error> {
    client.execute("select pg_drop_replication_slot($1)", &[&slot]).await.map(|_| ())
}

/// Compares cluster and slot with where the ledger stands.
pub async fn check_continuity(
    client: &Client,
    cluster: &Cluster,
    slot: &str,
    position: &Position,
) -> Result<Option<Discontinuity>, tokio_postgres::Error> {
    if slot != position.slot {
        return Ok(Some(Discontinuity::OtherSlot {
            source_name: position.source.clone(),
            found: slot.to_owned(),
            expected: position.slot.clone(),
        }));
    }
    if cluster.system_identifier != position.cluster.system_identifier {
        return Ok(Some(Discontinuity::OtherCluster {
            source_name: position.source.clone(),
            found: cluster.system_identifier.clone(),
            expected: position.cluster.system_identifier.clone(),
        }));
    }
    if cluster.timeline != position.cluster.timeline {
        return Ok(Some(Discontinuity::OtherTimeline {
            source_name: position.source.clone(),
            found: cluster.timeline,
            expected: position.cluster.timeline,
        }));
    }
    let (slot, end_lsn, source_name) = (position.slot.clone(), position.end_lsn, position.source.clone());
    // PostgreSQL 17 says why a slot was invalidated; before, there is one reason only.
    let sql = "select wal_status, confirmed_flush_lsn, to_jsonb(s) ->> 'invalidation_reason'
               from pg_replication_slots s where slot_name = $1";
    let Some(row) = client.query_opt(sql, &[&slot]).await? else {
        return Ok(Some(Discontinuity::SlotMissing { source_name, slot, end_lsn }));
    };
    if row.try_get::<_, Option<String>>(0)?.as_deref() == Some("lost") {
        let cause = match row.try_get::<_, Option<String>>(2)?.as_deref() {
            None | Some("wal_removed") => {
                "the server removed WAL it needed (max_slot_wal_keep_size)".to_owned()
            }
            Some("rows_removed") => "rows it needed were removed".to_owned(),
            Some("wal_level_insufficient") => "wal_level was lowered".to_owned(),
            Some("idle_timeout") => "nobody had read it for idle_replication_slot_timeout".to_owned(),
            Some(other) => other.to_owned(),
        };
        return Ok(Some(Discontinuity::SlotLost { source_name, cause, slot, end_lsn }));
    }
    let confirmed: Option<postgres_types::PgLsn> = row.try_get(1)?;
    let confirmed = confirmed.map(Lsn::from).unwrap_or_default();
    Ok((confirmed > end_lsn).then_some(Discontinuity::SlotAhead { source_name, slot, confirmed, end_lsn }))
}

impl Discontinuity {
    /// The slot is gone or useless, and the source is the one it was.
    #[must_use]
    pub fn is_slot_lost(&self) -> bool {
        matches!(self, Self::SlotMissing { .. } | Self::SlotLost { .. })
    }
}

/// True when the server was promoted to another timeline, and everything that the ledger holds was written before: then
/// nothing of it was undone, and the slot, if it was synchronized, goes on where it stood.
pub async fn follows(
    connection: &mut ReplicationConnection,
    cluster: &Cluster,
    position: &Position,
) -> Result<bool, ConnectionError> {
    let known = &position.cluster;
    if cluster.system_identifier != known.system_identifier || cluster.timeline <= known.timeline {
        return Ok(false);
    }
    let rows = connection.query(&format!("TIMELINE_HISTORY {}", cluster.timeline)).await?;
    let content = rows.first().and_then(|row| row.get(1)).and_then(Clone::clone).unwrap_or_default();
    let Some(switched_at) = switched_at(&content, known.timeline) else { return Ok(false) };
    // Of a transaction that is ledgered in part, the end must have come across as well.
    let whole = position.ordinal.is_none() || position.commit_lsn < switched_at;
    Ok(whole && position.end_lsn <= switched_at)
}

/// Where `timeline` ended, by a timeline history file: lines of timeline, LSN, reason.
#[must_use]
pub fn switched_at(history: &str, timeline: u32) -> Option<Lsn> {
    history.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let found: u32 = fields.next()?.parse().ok()?;
        if found == timeline { fields.next()?.parse().ok() } else { None }
    })
}

/// Cuts off whoever of ours still reads the slot: a process that has been taken for dead, and may only be asleep, keeps it from
/// the one that has taken over. Anybody else who reads it stays.
pub async fn take_over(client: &Client, slot: &str) -> Result<(), tokio_postgres::Error> {
    let sql = "select pg_terminate_backend(r.pid) from pg_replication_slots s join pg_stat_replication r on r.pid = s.active_pid
               where s.slot_name = $1 and r.usename = current_user and r.application_name = 'tailwater'";
    client.execute(sql, &[&slot]).await.map(|_| ())
}

/// `START_REPLICATION` of this slot and publication from `from`.
#[must_use]
pub fn start_statement(slot: &str, publication: &str, from: Lsn, binary: bool) -> String {
    // The list of publications is an identifier list inside a literal.
    let names = postgres_protocol::escape::escape_literal(&quote(publication));
    let binary = if binary { ", binary 'true'" } else { "" };
    format!(
        "START_REPLICATION SLOT {} LOGICAL {from} (proto_version '1', publication_names {names}, messages 'true'{binary})",
        quote(slot)
    )
}
