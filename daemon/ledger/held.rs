//! What targets hold of what we write: as they were told, and as they have been seen since then.

use std::collections::HashMap;

use jiff::Timestamp;
use serde_json::Value;
use tokio_postgres::Client;

use super::LedgerError;
use super::batch::Lane;
use super::statements::{Prepared, parameters};

/// What a target holds of an object.
#[derive(Debug, Clone)]
pub struct Held {
    /// Our name of it.
    pub canonical_id: String,
    /// The body that would make it what it is.
    pub body: Value,
    /// When it last took something of ours.
    pub told_at: Option<Timestamp>,
    /// When what it took last had left.
    pub attempted_at: Option<Timestamp>,
    /// It is being told something.
    pub is_on_its_way: bool,
}

/// An object at a target is seen to be something else than we made it.
#[derive(Debug, Clone)]
pub struct SeenWrite {
    /// Whom and what.
    pub lane: Lane,
    /// The body that would make it what it is.
    pub body: Value,
    /// Digest of that.
    pub sha256: String,
}

/// What `target` holds of these objects of its own, by object of the connector and id there.
pub async fn held(
    client: &Client,
    target: &str,
    ids: &[(String, String)],
) -> Result<HashMap<(String, String), Held>, LedgerError> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let (objects, external): (Vec<&str>, Vec<&str>) =
        ids.iter().map(|(object, id)| (object.as_str(), id.as_str())).unzip();
    let sql = "select i.object, i.external_id, i.canonical_id, a.body, a.told_at,
                 exists (select from delivery d where d.target = $1 and d.object = i.object and d.canonical_id = i.canonical_id
                         and d.open and d.state = 'sending'),
                 (select max(d.last_attempt_at) from delivery d
                  where d.target = $1 and d.object = i.object and d.canonical_id = i.canonical_id and d.state = 'applied')
               from unnest($2::text[], $3::text[]) as w(object, external_id)
               join identity i on i.system = $1 and i.object = w.object and i.external_id = w.external_id
               join applied a on a.target = $1 and a.object = i.object and a.canonical_id = i.canonical_id
               where a.body is not null";
    let rows = client.query(sql, &[&target, &objects, &external]).await?;
    rows.iter()
        .map(|row| {
            let held = Held {
                canonical_id: row.try_get(2)?,
                body: row.try_get(3)?,
                told_at: row.try_get(4)?,
                is_on_its_way: row.try_get(5)?,
                attempted_at: row.try_get(6)?,
            };
            Ok(((row.try_get(0)?, row.try_get(1)?), held))
        })
        .collect()
}

pub(super) fn seen(writes: Vec<SeenWrite>, out: &mut Vec<Prepared>) {
    for SeenWrite { lane, body, sha256 } in writes {
        out.push((
            "update applied set body = $4::text::json, sha256 = $5
             where target = $1 and object = $2 and canonical_id = $3 and state = 'present'",
            parameters![lane.target, lane.object, lane.canonical_id, body.to_string(), sha256],
        ));
    }
}

/// Looks whether what these objects should be is what they are: their last event is delivered once more, which changes nothing where
/// nothing has to be changed.
pub(super) fn check(lanes: Vec<Lane>, out: &mut Vec<Prepared>) {
    for lane in lanes {
        out.push((
            "insert into delivery (event_seq, target, object, canonical_id, operation, fact, requires, state, reason, class, round, head,
                                   event_month)
             select d.event_seq, d.target, d.object, d.canonical_id, d.operation, false, d.requires, 'pending', 'looked at again', d.class,
                    d.round + 1, true, d.event_month
             from delivery d
             where d.id = (select n.id from delivery n where n.target = $1 and n.object = $2 and n.canonical_id = $3
                           order by n.event_seq desc, n.round desc, n.id desc limit 1)
               and d.operation = 'upsert'
               and not exists (select from delivery h where h.target = $1 and h.object = $2 and h.canonical_id = $3 and h.occupies)",
            parameters![lane.target, lane.object, lane.canonical_id],
        ));
    }
}
