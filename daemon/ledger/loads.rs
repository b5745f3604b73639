//! Loads and their key ranges, as the ledger keeps them: asked for by anybody, worked off by the source's follower.

use std::collections::HashMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio_postgres::{Client, Row};

use super::LedgerError;

/// Why tables are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoadKind {
    /// The source is new.
    First,
    /// Changes were lost.
    Recover,
    /// Somebody asked, or the mapping reads more than it did.
    Reread,
}

impl LoadKind {
    /// The word in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Recover => "recover",
            Self::Reread => "reread",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::First, Self::Recover, Self::Reread].into_iter().find(|kind| kind.as_str() == text)
    }
}

/// A load.
#[derive(Debug, Clone)]
pub struct Load {
    /// Its number.
    pub id: i64,
    /// Why.
    pub kind: LoadKind,
    /// Tables.
    pub relations: Vec<String>,
    /// Keys after this one only.
    pub lower: Option<String>,
    /// Keys up to this one only.
    pub upper: Option<String>,
    /// Who asked.
    pub requested_by: String,
    /// When reading began.
    pub started_at: Option<Timestamp>,
}

impl Load {
    /// True when only a range of keys is read.
    #[must_use]
    pub fn is_ranged(&self) -> bool {
        self.lower.is_some() || self.upper.is_some()
    }
}

/// What is asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Request {
    /// Source.
    pub source: String,
    /// Why.
    pub kind: LoadKind,
    /// Tables.
    pub relations: Vec<String>,
    /// Keys after this one only.
    pub lower: Option<String>,
    /// Keys up to this one only.
    pub upper: Option<String>,
    /// In words.
    pub reason: String,
    /// Targets may know objects that the ledger has forgotten: they are looked up before they are created.
    pub look_first: bool,
    /// Who asks.
    pub requested_by: String,
}

/// A key range of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Load.
    pub load: i64,
    /// Table.
    pub relation: String,
    /// Number within the table.
    pub part: i32,
    /// Rows after this key.
    pub lower: Option<Vec<String>>,
    /// Rows up to this key.
    pub upper: Option<Vec<String>>,
    /// Everything up to this key is in the images.
    pub cursor: Option<Vec<String>>,
    /// Rows read.
    pub rows: i64,
    /// Rows expected.
    pub estimated: i64,
    /// Nothing is left of it.
    pub done: bool,
}

const COLUMNS: &str = "id, kind, relations, lower, upper, requested_by, started_at";

fn load_of(row: &Row) -> Result<Load, LedgerError> {
    let kind: String = row.try_get(1)?;
    Ok(Load {
        id: row.try_get(0)?,
        kind: LoadKind::parse(&kind).ok_or_else(|| LedgerError::Unreadable("a load".into()))?,
        relations: row.try_get(2)?,
        lower: row.try_get(3)?,
        upper: row.try_get(4)?,
        requested_by: row.try_get(5)?,
        started_at: row.try_get(6)?,
    })
}

/// The load that is being read, else the oldest one asked for: with whether it has begun. `quiet`: re-reads wait until the
/// source has been read as a whole.
pub async fn current(
    client: &Client,
    source: &str,
    quiet: bool,
) -> Result<Option<(Load, bool)>, LedgerError> {
    let sql = format!(
        "select {COLUMNS}, state = 'reading' from load
         where source = $1 and state in ('requested', 'reading') and not ($2 and kind = 'reread')
         order by state, id limit 1"
    );
    match client.query_opt(&sql, &[&source, &quiet]).await? {
        Some(row) => Ok(Some((load_of(&row)?, row.try_get(7)?))),
        None => Ok(None),
    }
}

/// Tables of each load that was asked for and has not begun.
pub async fn waiting(client: &Client, source: &str) -> Result<Vec<Vec<String>>, LedgerError> {
    let sql = "select relations from load where source = $1 and state = 'requested' order by id";
    let rows = client.query(sql, &[&source]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// When a source was first read.
pub async fn began(client: &Client, source: &str) -> Result<Option<Timestamp>, LedgerError> {
    let sql = "select min(requested_at) from load where source = $1 and kind = 'first'";
    Ok(client.query_one(sql, &[&source]).await?.try_get(0)?)
}

/// True when objects of the last load are to be looked up before they are created.
pub async fn looks_first(client: &Client, source: &str) -> Result<bool, LedgerError> {
    let sql = "select look_first from load where source = $1 and state = 'done' order by id desc limit 1";
    match client.query_opt(sql, &[&source]).await? {
        Some(row) => Ok(row.try_get(0)?),
        None => Ok(false),
    }
}

/// Key ranges of a load.
pub async fn parts(client: &Client, load: i64) -> Result<Vec<Part>, LedgerError> {
    let sql = "select load, relation, part, lower, upper, cursor, rows, estimated, done from load_part
               where load = $1 order by relation, part";
    let read = |row: &Row| -> Result<Part, LedgerError> {
        Ok(Part {
            load: row.try_get(0)?,
            relation: row.try_get(1)?,
            part: row.try_get(2)?,
            lower: row.try_get(3)?,
            upper: row.try_get(4)?,
            cursor: row.try_get(5)?,
            rows: row.try_get(6)?,
            estimated: row.try_get(7)?,
            done: row.try_get(8)?,
        })
    };
    client.query(sql, &[&load]).await?.iter().map(read).collect()
}

/// Asks for a load.
pub(super) const REQUEST: &str =
    "insert into load (source, kind, state, relations, lower, upper, reason, requested_by, look_first)
     values ($1, $2, 'requested', $3, $4, $5, $6, $7, $8) returning id";

/// Asks for a load; gives its number.
pub async fn request(client: &Client, request: &Request) -> Result<i64, LedgerError> {
    let kind = request.kind.as_str();
    let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 8] = [
        &request.source,
        &kind,
        &request.relations,
        &request.lower,
        &request.upper,
        &request.reason,
        &request.requested_by,
        &request.look_first,
    ];
    Ok(client.query_one(REQUEST, &parameters).await?.try_get(0)?)
}

/// Rows of a table that a whole load did not see, in the order of their keys.
pub async fn unseen(
    client: &Client,
    source: &str,
    relation: &str,
    load: i64,
    limit: i64,
) -> Result<Vec<String>, LedgerError> {
    let sql = "select key from image where source = $1 and relation = $2 and row is not null
               and load is distinct from $3 order by key limit $4";
    let rows = client.query(sql, &[&source, &relation, &load, &limit]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// A table as it was when it was loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedRelation {
    /// OID of the table.
    pub oid: i64,
    /// OID of its membership in the publication.
    pub member: i64,
    /// Columns in the images.
    pub columns: Vec<String>,
    /// What they and the partitions were; `None` when an earlier version did not note it.
    pub shape: Option<String>,
}

/// The tables of a source as they were loaded.
pub async fn relations(
    client: &Client,
    source: &str,
) -> Result<HashMap<String, LoadedRelation>, LedgerError> {
    let sql = "select relation, oid, member, columns, shape from relation where source = $1";
    let rows = client.query(sql, &[&source]).await?;
    let read = |row: &Row| -> Result<(String, LoadedRelation), LedgerError> {
        let loaded = LoadedRelation {
            oid: row.try_get(1)?,
            member: row.try_get(2)?,
            columns: row.try_get(3)?,
            shape: row.try_get(4)?,
        };
        Ok((row.try_get(0)?, loaded))
    };
    rows.iter().map(read).collect()
}
