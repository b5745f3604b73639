//! Deliveries as a list of work for people: what is open, what waits for somebody and why, and what they decide.
//!
//! Decisions go through in portions, each one ledger transaction that names its deliveries: a million of them need no more memory
//! than a thousand, and hold nobody up.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio_postgres::Client;

use super::LedgerError;
use super::batch::{AppliedWrite, Batch, EntryIndex, Lane};
use super::command::{Asked, Command};
use super::dispatch_statements::{rehead_lane, requeue};
use super::entry::{EntryKind, NewEntry};
use super::statements::{Prepared, parameters};

/// Deliveries that are decided on in one transaction.
const PORTION: i64 = 1_000;

/// Which deliveries; all that are given must be true of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// Numbers; any when empty.
    pub ids: Vec<i64>,
    /// Target.
    pub target: Option<String>,
    /// Object of its connector.
    pub object: Option<String>,
    /// Cause.
    pub cause: Option<String>,
}

/// What people decide about deliveries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Deliver again.
    Retry,
    /// Give up.
    Discard,
}

/// Deliveries alike.
#[derive(Debug, Clone)]
pub struct Group {
    /// Target.
    pub target: String,
    /// Object of its connector.
    pub object: String,
    /// State; `waiting` for one that waits for another object.
    pub state: String,
    /// Why it waits for a person.
    pub cause: Option<String>,
    /// In words, where that tells them apart.
    pub reason: Option<String>,
    /// How many.
    pub count: i64,
    /// When the oldest was recorded.
    pub oldest: Timestamp,
    /// The first numbers.
    pub first: Vec<i64>,
}

/// What is selected, by target, object, state and cause. What is done is not listed.
const GROUPS: &str = "
  select target, object, case when waits_for is not null then 'waiting' else state end, cause,
         case when cause in ('refused', 'mapping', 'unique') then reason
              when waits_for is not null then 'waits for another object' end,
         count(*), min(created_at), (array_agg(id order by id))[1:3]
  from delivery
  where (open or aside) and (cardinality($1::bigint[]) = 0 or id = any ($1))
    and ($2::text is null or target = $2) and ($3::text is null or object = $3) and ($4::text is null or cause = $4)
    and ($5::text is null or case when waits_for is not null then 'waiting' else state end = $5)
  group by 1, 2, 3, 4, 5 order by 6 desc, 1, 2, 3";

/// See [`Group`].
pub async fn groups(
    client: &Client,
    which: &Selection,
    state: Option<&str>,
) -> Result<Vec<Group>, LedgerError> {
    let Selection { ids, target, object, cause } = which;
    let rows = client.query(GROUPS, &[ids, target, object, cause, &state]).await?;
    let group = |row: &tokio_postgres::Row| {
        Ok(Group {
            target: row.try_get(0)?,
            object: row.try_get(1)?,
            state: row.try_get(2)?,
            cause: row.try_get(3)?,
            reason: row.try_get(4)?,
            count: row.try_get(5)?,
            oldest: row.try_get(6)?,
            first: row.try_get(7)?,
        })
    };
    rows.iter().map(group).collect()
}

/// One delivery as JSON, without what is personal.
pub async fn each(
    client: &Client,
    which: &Selection,
    state: Option<&str>,
    most: i64,
) -> Result<Vec<Value>, LedgerError> {
    let sql = "select jsonb_build_object('delivery', id, 'event_seq', event_seq, 'target', target, 'object', object,
                 'id', canonical_id, 'operation', operation, 'fact', fact,
                 'state', case when waits_for is not null then 'waiting' else state end, 'cause', cause,
                 'reason', reason, 'waits_for', waits_for, 'class', class, 'attempts', attempts, 'round', round,
                 'created_at', created_at, 'due_at', due_at, 'last_attempt_at', last_attempt_at,
                 'in_doubt', state = 'sending' or (state = 'parked' and request is not null))
               from delivery
               where (open or aside or cardinality($1::bigint[]) > 0) and (cardinality($1::bigint[]) = 0 or id = any ($1))
                 and ($2::text is null or target = $2) and ($3::text is null or object = $3)
                 and ($4::text is null or cause = $4)
                 and ($5::text is null or case when waits_for is not null then 'waiting' else state end = $5)
               order by id limit $6";
    let Selection { ids, target, object, cause } = which;
    let rows = client.query(sql, &[ids, target, object, cause, &state, &most]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// Bodies of the entries that are about a delivery, its event first.
pub async fn story(client: &Client, id: i64) -> Result<Vec<Value>, LedgerError> {
    // The attempts and outcomes of a delivery carry the correlation id of its event.
    let sql = "with d as (select d.id, d.event_seq, e.correlation_id from delivery d join entry e on e.seq = d.event_seq and e.month = d.event_month
                          where d.id = $1)
               select e.body from d join entry e on e.correlation_id = d.correlation_id
               where e.seq = d.event_seq or (e.kind in ('attempt', 'outcome')
                     and convert_from(e.body, 'UTF8')::jsonb ->> 'delivery' = d.id::text)
               order by e.seq";
    let mut bodies = Vec::new();
    for row in client.query(sql, &[&id]).await? {
        let body: Vec<u8> = row.try_get(0)?;
        let unreadable = || json!({"unreadable": "it is nested too deeply", "bytes": body.len()});
        bodies.push(serde_json::from_slice(&body).unwrap_or_else(|_| unreadable()));
    }
    Ok(bodies)
}

/// The last number there is.
pub async fn newest(client: &Client) -> Result<i64, LedgerError> {
    Ok(client.query_one("select coalesce(max(id), 0) from delivery", &[]).await?.try_get(0)?)
}

/// The next portion of what a command is about: of numbers after the first, up to the second.
async fn portion(
    client: &Client,
    verb: Verb,
    which: &Selection,
    (after, upto): (i64, i64),
) -> Result<Vec<i64>, LedgerError> {
    // A request that may have been carried out is neither repeated nor given up before somebody has said whether it was. What waits for
    // a time may go at once.
    let sql = "select id from (
                 (select id from delivery
                  where aside and not (state = 'parked' and request is not null) and id > $5 and id <= $8
                    and (state in ('parked', 'rejected') or ($6 and state in ('held', 'shadowed')))
                    and (cardinality($1::bigint[]) = 0 or id = any ($1)) and ($2::text is null or target = $2)
                    and ($3::text is null or object = $3) and ($4::text is null or cause = $4)
                  order by id limit $7)
                 union all
                 (select id from delivery
                  where not $6 and open and due_at > now() + interval '1 second' and id > $5 and id <= $8
                    and (cardinality($1::bigint[]) = 0 or id = any ($1)) and ($2::text is null or target = $2)
                    and ($3::text is null or object = $3) and $4::text is null
                  order by id limit $7)) w
               order by id limit $7";
    let Selection { ids, target, object, cause } = which;
    let discards = verb == Verb::Discard;
    let rows = client.query(sql, &[ids, target, object, cause, &after, &discards, &PORTION, &upto]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// The next ledger transaction of a command about deliveries, and the last number it is about: nothing when all of it has been
/// carried out. `range`: numbers after the first, up to the second.
pub async fn step(
    client: &Client,
    asked: &Asked,
    range: (i64, i64),
) -> Result<Option<(Batch, i64)>, LedgerError> {
    let (verb, which, reason) = match &asked.command {
        Command::Retry { which, reason } => (Verb::Retry, which, reason),
        Command::Discard { which, reason } => (Verb::Discard, which, reason),
        _ => return Ok(None),
    };
    let ids = portion(client, verb, which, range).await?;
    let Some(last) = ids.last().copied() else { return Ok(None) };
    let mut batch = Batch::default();
    let action = if verb == Verb::Retry { "retry" } else { "discard" };
    batch.entry(NewEntry::new(
        EntryKind::Operator,
        None,
        json!({"action": action, "requested_by": asked.requested_by, "peer_uid": asked.peer_uid, "role": asked.role, "reason": reason,
               "target": which.target, "object": which.object, "deliveries": ids}),
    ));
    batch.decided.push((verb, ids));
    Ok(Some((batch, last)))
}

/// Statements of a portion.
pub fn decide(verb: Verb, ids: Vec<i64>, out: &mut Vec<Prepared>) {
    if verb == Verb::Retry {
        // As the object is now: the newest state that is known of it, unless that has been or will be delivered anyway. A fact is
        // what it is. It goes to the end of its lane, under a new key.
        out.push((
            "insert into delivery (event_seq, target, object, canonical_id, operation, fact, requires, state, class, round, head,
                                   event_month)
             select d.event_seq, d.target, d.object, d.canonical_id, d.operation, d.fact, d.requires, 'pending', d.class,
                    d.round + 1,
                    row_number() over (partition by d.target, d.object, d.canonical_id order by d.id) = 1
                      and not exists (select from delivery h where h.target = d.target and h.object = d.object
                                      and h.canonical_id = d.canonical_id and h.head),
                    d.event_month
             from delivery d
             where d.id = any ($1) and d.state in ('parked', 'rejected')
               and (d.fact or not exists (
                 select from delivery n where n.target = d.target and n.object = d.object
                   and n.canonical_id = d.canonical_id and n.id > d.id and not n.fact))
             order by d.id",
            parameters![ids.clone()],
        ));
    }
    if verb == Verb::Retry {
        out.push((
            "update delivery set due_at = now() where id = any ($1) and open and due_at > now()",
            parameters![ids.clone()],
        ));
    }
    let reason =
        if verb == Verb::Retry { "delivered again by an operator" } else { "discarded by an operator" };
    out.push((
        "update delivery set state = 'superseded', reason = $2, head = false, waits_for = null where id = any ($1) and aside",
        parameters![ids.clone(), reason],
    ));
    requeue(ids, out);
}

/// Statements by which a person says whether a request in doubt was carried out.
pub fn resolve(lane: &Lane, id: i64, applied: bool, out: &mut Vec<Prepared>) {
    if applied {
        out.push((
            "update delivery set state = 'applied', reason = 'resolved by an operator', request = null, head = false
             where id = $1 and state = 'parked'",
            parameters![id],
        ));
    } else {
        out.push((
            "update delivery set state = 'pending', reason = 'resolved by an operator: it was not carried out', cause = null,
                    request = null, idempotency_key = null, round = round + 1, due_at = now()
             where id = $1 and state = 'parked'",
            parameters![id],
        ));
    }
    rehead_lane(lane, out);
}

/// What a target holds of an object whose request in doubt was carried out, once the entry that says so is known; `None` where
/// nobody knows under which id it stands there. `external_id`: the one that the person has seen.
pub async fn carried_out(
    client: &Client,
    id: i64,
    external_id: Option<String>,
) -> Result<Option<impl FnOnce(EntryIndex) -> AppliedWrite>, LedgerError> {
    let sql = "select d.target, d.object, d.canonical_id, d.request, i.external_id from delivery d
               left join identity i on i.system = d.target and i.object = d.object and i.canonical_id = d.canonical_id
               where d.id = $1 and d.state = 'parked' and d.request is not null";
    let Some(row) = client.query_opt(sql, &[&id]).await? else { return Ok(None) };
    let lane = Lane { target: row.try_get(0)?, object: row.try_get(1)?, canonical_id: row.try_get(2)? };
    let request: Value = row.try_get(3)?;
    let known = row.try_get::<_, Option<String>>(4)?;
    let deletes = request.get("step").and_then(Value::as_str) == Some("delete");
    let external_id = external_id.or(known).filter(|_| !deletes);
    if external_id.is_none() && !deletes {
        return Ok(None);
    }
    let held = request.get("holds").and_then(Value::as_array).into_iter().flatten();
    let holds = held.filter_map(Value::as_str).map(str::to_owned).collect();
    Ok(Some(move |outcome| AppliedWrite {
        body: None,
        lane,
        external_id,
        // How it looks there nobody has compared: what comes next is sent whatever it is.
        sha256: None,
        delivery: id,
        outcome,
        holds,
        grants: true,
    }))
}

/// The lane of a delivery whose request is in doubt and waits for a person, and whether it was to make the object, whose id at the
/// target nobody knows then; `None` when it does not wait for that.
pub async fn doubtful(client: &Client, id: i64) -> Result<Option<(Lane, bool)>, LedgerError> {
    let sql = "select d.target, d.object, d.canonical_id,
                      coalesce(d.request ->> 'step' = 'create', false) and i.external_id is null
               from delivery d
               left join identity i on i.system = d.target and i.object = d.object and i.canonical_id = d.canonical_id
               where d.id = $1 and d.state = 'parked' and d.request is not null";
    let row = client.query_opt(sql, &[&id]).await?;
    row.map(|row| {
        let lane = Lane { target: row.try_get(0)?, object: row.try_get(1)?, canonical_id: row.try_get(2)? };
        Ok((lane, row.try_get(3)?))
    })
    .transpose()
}
