//! Where a source stands, as far as the ledger has it.

use jiff::Timestamp;
use postgres_types::PgLsn;
use serde_json::Value;
use tokio_postgres::Client;

use super::LedgerError;
use crate::event::{Cluster, Lsn};

/// How far the first load is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The slot is about to be created.
    Creating,
    /// Rows are read in chunks while the stream runs; images only, no events. A restart goes on where it stopped.
    Copying,
    /// All rows are here; events are made of them. A restart goes on where it stopped.
    Mapping,
    /// The stream is followed.
    Streaming,
}

impl Phase {
    /// The word in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Copying => "copying",
            Self::Mapping => "mapping",
            Self::Streaming => "streaming",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Creating, Self::Copying, Self::Mapping, Self::Streaming]
            .into_iter()
            .find(|phase| phase.as_str() == text)
    }
}

/// See the module's text.
#[derive(Debug, Clone)]
pub struct Position {
    /// Source name.
    pub source: String,
    /// Cluster it was read from.
    pub cluster: Cluster,
    /// Replication slot.
    pub slot: String,
    /// How far the first load is.
    pub phase: Phase,
    /// Commit LSN of the last transaction ledgered.
    pub commit_lsn: Lsn,
    /// Last ordinal ledgered of that transaction; `None` when all of it is.
    pub ordinal: Option<u64>,
    /// What may be confirmed to the source.
    pub end_lsn: Lsn,
    /// How far the events of a load have been made.
    pub mapped: Option<Value>,
    /// When the last transaction was committed at the source.
    pub committed_at: Option<Timestamp>,
}

impl Position {
    /// Reads where `source` stands; `None` when it was never read.
    pub async fn load(client: &Client, source: &str) -> Result<Option<Self>, LedgerError> {
        let sql = "select system_identifier, timeline, slot, phase, commit_lsn, ordinal, end_lsn, mapped, \
                   committed_at from position where source = $1";
        let Some(row) = client.query_opt(sql, &[&source]).await? else { return Ok(None) };
        let timeline: i32 = row.try_get(1)?;
        let phase: String = row.try_get(3)?;
        let ordinal: Option<i64> = row.try_get(5)?;
        let unreadable = || LedgerError::Unreadable(format!("position of source \"{source}\""));
        Ok(Some(Self {
            source: source.to_owned(),
            cluster: Cluster {
                system_identifier: row.try_get(0)?,
                timeline: u32::try_from(timeline).map_err(|_| unreadable())?,
            },
            slot: row.try_get(2)?,
            phase: Phase::parse(&phase).ok_or_else(unreadable)?,
            commit_lsn: row.try_get::<_, PgLsn>(4)?.into(),
            ordinal: ordinal.map(u64::try_from).transpose().map_err(|_| unreadable())?,
            end_lsn: row.try_get::<_, PgLsn>(6)?.into(),
            mapped: row.try_get(7)?,
            committed_at: row.try_get(8)?,
        }))
    }
}
