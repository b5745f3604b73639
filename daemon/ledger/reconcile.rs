//! Comparisons of what targets hold with what they should: asked for, worked off, reported.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use tokio_postgres::{Client, Row};

use super::LedgerError;
use super::batch::Lane;
use super::statements::{Prepared, parameters};

/// A comparison.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// Its number.
    pub id: i64,
    /// Target.
    pub target: String,
    /// Objects of the connector.
    pub objects: Vec<String>,
    /// Put right what may be put right.
    pub repair: bool,
    /// Who asked.
    pub requested_by: String,
}

/// What is wrong with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It should be there.
    Missing,
    /// It carries an id of ours, and we know nothing of it.
    Extra,
    /// Some of it is something else.
    Different,
    /// Another one carries the same id of ours.
    Doubled,
}

impl Kind {
    /// The word in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Extra => "extra",
            Self::Different => "different",
            Self::Doubled => "doubled",
        }
    }
}

/// An object that is not as it should be.
#[derive(Debug, Clone)]
pub struct Difference {
    /// What is wrong.
    pub kind: Kind,
    /// Object of the connector.
    pub object: String,
    /// Our name of it; empty for what we do not know.
    pub canonical_id: String,
    /// The target's.
    pub external_id: String,
    /// `[{field, ours, theirs}, …]`.
    pub fields: Value,
    /// It is being put right.
    pub repaired: bool,
}

/// A step of a comparison.
#[derive(Debug, Clone)]
pub enum ReconcileWrite {
    /// These objects are there.
    Seen {
        /// Comparison.
        id: i64,
        /// Target.
        target: String,
        /// Object of the connector.
        object: String,
        /// The target's ids.
        external_ids: Vec<String>,
    },
    /// Something is wrong.
    Found {
        /// Comparison.
        id: i64,
        /// What.
        difference: Difference,
    },
    /// The target has lost an object: it is made again.
    Gone(Lane),
    /// It is over.
    End {
        /// Comparison.
        id: i64,
        /// What came of it, or why it could not be brought to its end.
        report: Value,
        /// It could.
        is_done: bool,
    },
}

/// Asks for a comparison; gives its number.
pub async fn request(
    client: &Client,
    target: &str,
    objects: &[String],
    repair: bool,
    requested_by: &str,
) -> Result<i64, LedgerError> {
    let sql = "insert into reconcile (target, objects, repair, state, requested_by) values ($1, $2, $3, 'requested', $4) returning id";
    Ok(client.query_one(sql, &[&target, &objects, &repair, &requested_by]).await?.try_get(0)?)
}

/// The comparison that is to be worked off next. One that was interrupted begins anew.
pub async fn next(client: &Client) -> Result<Option<Comparison>, LedgerError> {
    let sql = "update reconcile set state = 'reading', started_at = now()
               where id = (select id from reconcile where state in ('requested', 'reading') order by id limit 1)
               returning id, target, objects, repair, requested_by";
    let Some(row) = client.query_opt(sql, &[]).await? else { return Ok(None) };
    Ok(Some(Comparison {
        id: row.try_get(0)?,
        target: row.try_get(1)?,
        objects: row.try_get(2)?,
        repair: row.try_get(3)?,
        requested_by: row.try_get(4)?,
    }))
}

/// How a comparison stands: state and report.
pub async fn state(client: &Client, id: i64) -> Result<(String, Option<Value>), LedgerError> {
    let row = client.query_one("select state, report from reconcile where id = $1", &[&id]).await?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}

/// True when the last comparison of a target is older than `every`, or there is none.
pub async fn is_due(client: &Client, target: &str, every: Duration) -> Result<bool, LedgerError> {
    let sql = "select coalesce(max(requested_at) < now() - make_interval(secs => $2), true) from reconcile where target = $1";
    Ok(client.query_one(sql, &[&target, &every.as_secs_f64()]).await?.try_get(0)?)
}

/// What a comparison found, in order.
pub async fn differences(client: &Client, id: i64) -> Result<Vec<(String, Difference)>, LedgerError> {
    let sql = "select kind, object, canonical_id, external_id, fields, repaired from difference where reconcile = $1
               order by object, kind, canonical_id, external_id";
    let read = |row: &Row| -> Result<(String, Difference), LedgerError> {
        let word: String = row.try_get(0)?;
        let kinds = [Kind::Missing, Kind::Extra, Kind::Different, Kind::Doubled];
        let kind = kinds.into_iter().find(|kind| kind.as_str() == word).unwrap_or(Kind::Different);
        let difference = Difference {
            kind,
            object: row.try_get(1)?,
            canonical_id: row.try_get(2)?,
            external_id: row.try_get(3)?,
            fields: row.try_get(4)?,
            repaired: row.try_get(5)?,
        };
        Ok((word, difference))
    };
    client.query(sql, &[&id]).await?.iter().map(read).collect()
}

/// Which of these ids of a target stand for which objects of ours.
pub async fn known(
    client: &Client,
    target: &str,
    object: &str,
    external_ids: &[String],
) -> Result<Vec<(String, String)>, LedgerError> {
    let sql = "select i.external_id, i.canonical_id from identity i
               where i.system = $1 and i.object = $2 and i.external_id = any ($3)";
    let rows = client.query(sql, &[&target, &object, &external_ids]).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// Objects that stand at a target as far as we know, and were told before `since`, and that a comparison has not seen: id there and ours.
pub async fn unseen(
    client: &Client,
    (id, target, object): (i64, &str, &str),
    since: Timestamp,
    after: &str,
    most: i64,
) -> Result<Vec<(String, String)>, LedgerError> {
    let sql = "select i.external_id, i.canonical_id from identity i
               join applied a on a.target = i.system and a.object = i.object and a.canonical_id = i.canonical_id
               where i.system = $2 and i.object = $3 and a.state = 'present' and i.seen is distinct from $1
                 and coalesce(a.told_at < $4, true) and i.canonical_id > $5
                 and not exists (select from delivery d where d.target = $2 and d.object = $3 and d.canonical_id = i.canonical_id and d.occupies)
               order by i.canonical_id limit $6";
    let rows = client.query(sql, &[&id, &target, &object, &since, &after, &most]).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// How many objects stand at a target as far as we know.
pub async fn expected(client: &Client, target: &str, object: &str) -> Result<i64, LedgerError> {
    let sql = "select count(*) from applied where target = $1 and object = $2 and state = 'present'";
    Ok(client.query_one(sql, &[&target, &object]).await?.try_get(0)?)
}

pub(super) fn reconcile(write: ReconcileWrite, out: &mut Vec<Prepared>) {
    match write {
        ReconcileWrite::Seen { id, target, object, external_ids } => out.push((
            "update identity set seen = $1 where system = $2 and object = $3 and external_id = any ($4)",
            parameters![id, target, object, external_ids],
        )),
        ReconcileWrite::Found { id, difference } => out.push((
            "insert into difference (reconcile, object, kind, canonical_id, external_id, fields, repaired)
             values ($1, $2, $3, $4, $5, $6, $7) on conflict do nothing",
            parameters![
                id,
                difference.object,
                difference.kind.as_str(),
                difference.canonical_id,
                difference.external_id,
                difference.fields,
                difference.repaired
            ],
        )),
        ReconcileWrite::Gone(Lane { target, object, canonical_id }) => {
            out.push((
                "update applied set state = 'absent', sha256 = null, body = null
                 where target = $1 and object = $2 and canonical_id = $3",
                parameters![target.clone(), object.clone(), canonical_id.clone()],
            ));
            out.push((
                "delete from identity where system = $1 and object = $2 and canonical_id = $3",
                parameters![target, object, canonical_id],
            ));
        }
        ReconcileWrite::End { id, report, is_done } => out.push((
            "update reconcile set state = case when $3 then 'done' else 'failed' end, ended_at = now(), report = $2
             where id = $1",
            parameters![id, report, is_done],
        )),
    }
}
