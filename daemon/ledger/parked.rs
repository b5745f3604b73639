//! What waits by name and is no delivery: rows, records, streams and commands that the bounds, the mapping or the ledger itself refuse.
//! Each ends by its cure, or by a person: looked at again, resolved, or given up.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio_postgres::{Client, Row};

use super::LedgerError;
use super::statements::{Prepared, parameters};
use crate::bounds::{is_id, shown};

/// What it is that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ParkedKind {
    /// A row of a source.
    Row,
    /// A record of a polled source.
    Record,
    /// A stream or a list of a polled source.
    Stream,
    /// An image that cannot be read back.
    Image,
    /// Something that a person asked for.
    Command,
}

impl ParkedKind {
    /// In the ledger and on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Row => "row",
            Self::Record => "record",
            Self::Stream => "stream",
            Self::Image => "image",
            Self::Command => "command",
        }
    }
}

/// What is parked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parked {
    /// What it is.
    pub kind: ParkedKind,
    /// Source; empty for what is of none.
    pub source: String,
    /// Table, stream or kind of command.
    pub place: String,
    /// Its name there, of any length.
    pub key: String,
    /// Why.
    pub reason: String,
    /// How large it is, where that is why.
    pub bytes: Option<usize>,
}

/// The name of something that may be parked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ParkedName {
    /// What it is.
    pub kind: ParkedKind,
    /// Source.
    pub source: String,
    /// Table or stream.
    pub place: String,
    /// As it is kept: see [`shown`].
    pub key: String,
}

impl Parked {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> ParkedName {
        let Self { kind, source, place, key, .. } = self;
        ParkedName { kind: *kind, source: source.clone(), place: shown(place), key: shown(key) }
    }

    /// What the ledger's entry says of it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let ParkedName { kind, source, place, key } = self.name();
        json!({"action": "parked", "parked": kind.as_str(), "source": source, "place": place, "key": key,
               "reason": self.reason, "bytes": self.bytes})
    }
}

/// What a ledger transaction parks.
pub(super) fn park(parked: Vec<Parked>, out: &mut Vec<Prepared>) {
    for item in parked {
        let ParkedName { kind, source, place, key } = item.name();
        let rereads = is_id(&item.key) && item.key == key;
        let bytes = item.bytes.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
        out.push((
            "insert into parked (kind, source, place, key, rereads, reason, bytes) values ($1, $2, $3, $4, $5, $6, $7)
             on conflict (kind, source, place, md5(key)) where state in ('parked', 'retry')
             do update set reason = excluded.reason, bytes = excluded.bytes, seen_at = now(), times = parked.times + 1,
               state = 'parked'",
            parameters![kind.as_str(), source, place, key, rereads, item.reason, bytes],
        ));
    }
}

/// What has come right by itself.
pub(super) fn heal(names: Vec<ParkedName>, out: &mut Vec<Prepared>) {
    for ParkedName { kind, source, place, key } in names {
        out.push((
            "update parked set state = 'healed', ended_at = now()
             where kind = $1 and source = $2 and place = $3 and key = $4 and state in ('parked', 'retry')",
            parameters![kind.as_str(), source, place, key],
        ));
    }
}

/// What a person decides of parked things that are no deliveries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParkedVerb {
    /// It is read, or tried, again.
    Retry,
    /// It was seen to elsewhere.
    Resolve,
    /// It is given up.
    Discard,
}

/// Which; all that are given must be true of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParkedSelection {
    /// Numbers; any when empty.
    pub ids: Vec<i64>,
    /// Source.
    pub source: Option<String>,
    /// `row`, `record`, `stream`, `image`, `command`.
    pub kind: Option<String>,
}

const SELECTED: &str = "state in ('parked', 'retry') and (cardinality($1::bigint[]) = 0 or id = any ($1))
   and ($2::text is null or source = $2) and ($3::text is null or kind = $3)";

/// The statements of a decision. Rows of a table are read again by a load of their own, of one key where that is a whole number.
pub(super) fn decide((verb, which): (ParkedVerb, ParkedSelection), by: &str, out: &mut Vec<Prepared>) {
    let ParkedSelection { ids, source, kind } = which;
    if verb != ParkedVerb::Retry {
        let state = if verb == ParkedVerb::Resolve { "resolved" } else { "discarded" };
        out.push((
            "update parked set state = $4, ended_at = now(), ended_by = $5
             where state in ('parked', 'retry') and (cardinality($1::bigint[]) = 0 or id = any ($1))
               and ($2::text is null or source = $2) and ($3::text is null or kind = $3)",
            parameters![ids, source, kind, state, by.to_owned()],
        ));
        return;
    }
    out.push((
        "insert into load (source, kind, state, relations, lower, upper, reason, requested_by, look_first)
         select distinct source, 'reread', 'requested', array[place],
                case when one then (key::numeric - 1)::text end, case when one then key end,
                'parked rows are read again', $4::text, false
         from (select source, place, key, rereads and key ~ '^[0-9]{1,18}$' as one from parked
               where state in ('parked', 'retry') and (cardinality($1::bigint[]) = 0 or id = any ($1))
                 and ($2::text is null or source = $2) and ($3::text is null or kind = $3)
                 and kind in ('row', 'image') and exists (select from position p where p.source = parked.source)) p",
        parameters![ids.clone(), source.clone(), kind.clone(), by.to_owned()],
    ));
    out.push((
        "update command c set done_at = null, outcome = null from parked p
         where p.kind = 'command' and c.id::text = p.key and p.state in ('parked', 'retry')
           and (cardinality($1::bigint[]) = 0 or p.id = any ($1)) and ($2::text is null or p.source = $2)
           and ($3::text is null or p.kind = $3)",
        parameters![ids.clone(), source.clone(), kind.clone()],
    ));
    out.push((
        "update parked set state = case kind when 'command' then 'healed' else 'retry' end,
                ended_at = case kind when 'command' then now() end, ended_by = $4
         where state in ('parked', 'retry') and (cardinality($1::bigint[]) = 0 or id = any ($1))
           and ($2::text is null or source = $2) and ($3::text is null or kind = $3)",
        parameters![ids, source, kind, by.to_owned()],
    ));
}

/// Something parked, as it is listed.
#[derive(Debug, Clone, Serialize)]
pub struct ParkedItem {
    /// Number.
    pub id: i64,
    /// What it is.
    pub kind: String,
    /// Source.
    pub source: String,
    /// Table, stream or kind of command.
    pub place: String,
    /// Its name there.
    pub key: String,
    /// Why.
    pub reason: String,
    /// How large it is.
    pub bytes: Option<i64>,
    /// Since when.
    pub parked_at: Timestamp,
    /// When it was last found so, and how often.
    pub seen_at: Timestamp,
    /// See `seen_at`.
    pub times: i64,
    /// `parked`, or `retry` while it is to be looked at again.
    pub state: String,
}

/// What is parked, the newest first.
pub async fn parked(
    client: &Client,
    which: &ParkedSelection,
    most: i64,
) -> Result<Vec<ParkedItem>, LedgerError> {
    let sql = format!(
        "select id, kind, source, place, key, reason, bytes, parked_at, seen_at, times, state from parked
         where {SELECTED} order by id desc limit $4"
    );
    let ParkedSelection { ids, source, kind } = which;
    let read = |row: &Row| -> Result<ParkedItem, LedgerError> {
        Ok(ParkedItem {
            id: row.try_get(0)?,
            kind: row.try_get(1)?,
            source: row.try_get(2)?,
            place: row.try_get(3)?,
            key: row.try_get(4)?,
            reason: row.try_get(5)?,
            bytes: row.try_get(6)?,
            parked_at: row.try_get(7)?,
            seen_at: row.try_get(8)?,
            times: row.try_get(9)?,
            state: row.try_get(10)?,
        })
    };
    client.query(&sql, &[ids, source, kind, &most]).await?.iter().map(read).collect()
}

/// How many are parked.
pub async fn count(client: &Client, which: &ParkedSelection) -> Result<i64, LedgerError> {
    let ParkedSelection { ids, source, kind } = which;
    let sql = format!("select count(*) from parked where {SELECTED}");
    Ok(client.query_one(&sql, &[ids, source, kind]).await?.try_get(0)?)
}

/// Things of a source that may come right: their names, and whether they are to be looked at again now.
pub async fn open_of(
    client: &Client,
    source: &str,
    kinds: &[&str],
) -> Result<Vec<(ParkedName, bool)>, LedgerError> {
    let sql = "select kind, place, key, state = 'retry' from parked
               where source = $1 and kind = any ($2) and state in ('parked', 'retry') order by id limit 10000";
    let known =
        [ParkedKind::Row, ParkedKind::Record, ParkedKind::Stream, ParkedKind::Image, ParkedKind::Command];
    let mut found = Vec::new();
    for row in client.query(sql, &[&source, &kinds]).await? {
        let word: String = row.try_get(0)?;
        let Some(kind) = known.into_iter().find(|kind| kind.as_str() == word) else { continue };
        let name =
            ParkedName { kind, source: source.to_owned(), place: row.try_get(1)?, key: row.try_get(2)? };
        found.push((name, row.try_get(3)?));
    }
    Ok(found)
}
