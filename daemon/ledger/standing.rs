//! How objects stand at the targets: ids, unique values, what was applied.

use std::collections::HashMap;

use jiff::Timestamp;
use serde_json::Value;
use tokio_postgres::Client;

use super::LedgerError;
use super::batch::Lane;

/// Where an object stands, by its canonical id or by a target's own: canonical id, target, object, the target's id, state.
pub async fn identities(
    client: &Client,
    id: &str,
) -> Result<Vec<(String, String, String, String, String)>, LedgerError> {
    let sql = "select i.canonical_id, i.system, i.object, i.external_id, coalesce(a.state, 'linked') from identity i
               left join applied a on a.target = i.system and a.object = i.object and a.canonical_id = i.canonical_id
               where i.canonical_id = $1 or i.external_id = $1 order by 1, 2, 3";
    let rows = client.query(sql, &[&id]).await?;
    rows.iter()
        .map(|row| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?, row.try_get(4)?)))
        .collect()
}

/// The target's own id of an object, and the digest of the body it accepted last.
pub async fn stands(client: &Client, lane: &Lane) -> Result<(Option<String>, Option<String>), LedgerError> {
    let sql = "select i.external_id, a.sha256 from (select $1::text as target, $2::text as object, $3::text as id) w
               left join identity i on i.system = w.target and i.object = w.object and i.canonical_id = w.id
               left join applied a on a.target = w.target and a.object = w.object and a.canonical_id = w.id";
    let row = client.query_one(sql, &[&lane.target, &lane.object, &lane.canonical_id]).await?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}

/// Which of these objects at a target stand for another object of ours than that of the lane.
pub async fn taken(client: &Client, lane: &Lane, ids: &[String]) -> Result<Vec<String>, LedgerError> {
    let sql = "select external_id from identity
               where system = $1 and object = $2 and external_id = any ($3) and canonical_id <> $4";
    let rows = client.query(sql, &[&lane.target, &lane.object, &ids, &lane.canonical_id]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// The target's ids of these references (`object/canonical id`), as far as they are there.
pub async fn references(
    client: &Client,
    target: &str,
    references: &[String],
) -> Result<HashMap<String, String>, LedgerError> {
    let sql = "select distinct r, i.external_id from unnest($2::text[]) r join identity i
               on i.system = $1 and i.object = split_part(r, '/', 1) and i.canonical_id = substr(r, strpos(r, '/') + 1)";
    let rows = client.query(sql, &[&target, &references]).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// The time of the event that was last owed in each of these lanes.
pub async fn latest(client: &Client, lanes: &[Lane]) -> Result<HashMap<Lane, Timestamp>, LedgerError> {
    if lanes.is_empty() {
        return Ok(HashMap::new());
    }
    let targets: Vec<&str> = lanes.iter().map(|lane| lane.target.as_str()).collect();
    let objects: Vec<&str> = lanes.iter().map(|lane| lane.object.as_str()).collect();
    let ids: Vec<&str> = lanes.iter().map(|lane| lane.canonical_id.as_str()).collect();
    let sql = "select w.target, w.object, w.canonical_id, e.body
               from (select distinct * from unnest($1::text[], $2::text[], $3::text[])) as w(target, object, canonical_id)
               cross join lateral (
                 select d.event_seq, d.event_month from delivery d
                 where d.target = w.target and d.object = w.object and d.canonical_id = w.canonical_id
                 order by d.id desc limit 1) d
               cross join lateral (select x.body from entry x where x.seq = d.event_seq and x.month = d.event_month
                                   union all select k.body from kept_event k where k.seq = d.event_seq) e";
    let mut latest = HashMap::new();
    for row in client.query(sql, &[&targets, &objects, &ids]).await? {
        // Of an event that was erased nothing is known any more.
        let body: Value = serde_json::from_slice(row.try_get(3)?).unwrap_or_default();
        let at = body.pointer("/source/committed_at").and_then(Value::as_str);
        let Some(at) = at.and_then(|at| at.parse().ok()) else { continue };
        let lane = Lane { target: row.try_get(0)?, object: row.try_get(1)?, canonical_id: row.try_get(2)? };
        latest.insert(lane, at);
    }
    Ok(latest)
}

/// Who holds these unique values at `target`.
pub async fn holders(
    client: &Client,
    target: &str,
    wants: &[String],
) -> Result<HashMap<String, Lane>, LedgerError> {
    if wants.is_empty() {
        return Ok(HashMap::new());
    }
    let sql = "select want, target, object, canonical_id from reservation
               where target = $1 and want_md5 = any (select md5(w) from unnest($2::text[]) w)";
    let mut found = HashMap::new();
    for row in client.query(sql, &[&target, &wants]).await? {
        let lane = Lane { target: row.try_get(1)?, object: row.try_get(2)?, canonical_id: row.try_get(3)? };
        found.insert(row.try_get(0)?, lane);
    }
    Ok(found)
}

/// True when `lane` has an open delivery older than `before`.
pub async fn has_older_open(client: &Client, lane: &Lane, before: i64) -> Result<bool, LedgerError> {
    let sql = "select exists (select from delivery where target = $1 and object = $2 and canonical_id = $3
               and state in ('pending', 'sending') and id < $4)";
    let row = client.query_one(sql, &[&lane.target, &lane.object, &lane.canonical_id, &before]).await?;
    Ok(row.try_get(0)?)
}

/// True when the delivery was applied according to the ledger: confirms a hint of the deduplication cache (INV-2).
pub async fn is_applied(client: &Client, id: i64) -> Result<bool, LedgerError> {
    let sql = "select exists (select from delivery where id = $1 and state in ('applied', 'duplicate'))";
    Ok(client.query_one(sql, &[&id]).await?.try_get(0)?)
}

/// Unique values that `lane` holds at its target, as [`crate::ledger::batch::Batch`] names them.
pub async fn held_by(client: &Client, lane: &Lane) -> Result<Vec<String>, LedgerError> {
    let sql =
        "select want from reservation where target = $1 and object = $2 and canonical_id = $3 order by want";
    let rows = client.query(sql, &[&lane.target, &lane.object, &lane.canonical_id]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// Unique values that objects hold at their target, by object.
pub async fn held_by_each(
    client: &Client,
    lanes: &[&Lane],
) -> Result<HashMap<Lane, Vec<String>>, LedgerError> {
    if lanes.is_empty() {
        return Ok(HashMap::new());
    }
    let column = |of: fn(&Lane) -> &String| lanes.iter().map(|lane| of(lane).clone()).collect::<Vec<_>>();
    let (targets, objects) = (column(|lane| &lane.target), column(|lane| &lane.object));
    let ids = column(|lane| &lane.canonical_id);
    let sql = "select r.target, r.object, r.canonical_id, r.want
               from unnest($1::text[], $2::text[], $3::text[]) as w(target, object, canonical_id)
               join reservation r using (target, object, canonical_id)";
    let mut held: HashMap<Lane, Vec<String>> = HashMap::new();
    for row in client.query(sql, &[&targets, &objects, &ids]).await? {
        let lane = Lane { target: row.try_get(0)?, object: row.try_get(1)?, canonical_id: row.try_get(2)? };
        held.entry(lane).or_default().push(row.try_get(3)?);
    }
    Ok(held)
}
