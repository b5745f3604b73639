//! What is owed and due: the reading side of dispatching.

use std::collections::HashMap;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio_postgres::{Client, Statement};

use super::batch::Lane;
use super::erasures::Erasures;
use super::keyring::Master;
use super::standing::references;
use super::{Ledger, LedgerError};
use crate::event::sealing::SEALED;
use crate::event::{CanonicalEvent, Operation, Priority};

/// A delivery at the head of its lane, due now.
#[derive(Debug, Clone)]
pub struct Due {
    /// Delivery.
    pub id: i64,
    /// Whom and what.
    pub lane: Lane,
    /// Entry of the event.
    pub event_seq: i64,
    /// Body of that entry.
    pub event: Value,
    /// `upsert` or `delete`.
    pub operation: String,
    /// Its last request has no outcome (INV-3).
    pub uncertain: bool,
    /// Counts deliberate new requests.
    pub round: i32,
    /// Attempts so far, over all rounds.
    pub attempts: i32,
    /// What was sent last.
    pub request: Option<Value>,
    /// Its key.
    pub idempotency_key: Option<String>,
    /// First attempt with this key.
    pub attempted_at: Option<Timestamp>,
    /// Last attempt that may have been carried out.
    pub last_attempt_at: Option<Timestamp>,
    /// What the last attempt came to.
    pub reason: Option<String>,
    /// References that must stand at the target first.
    pub requires: Vec<String>,
    /// Older pending states of the same lane that this one replaces.
    pub supersedes: Vec<i64>,
    /// The target's own id.
    pub external_id: Option<String>,
    /// Digest of the body the target accepted last.
    pub applied_sha256: Option<String>,
    /// The body that would make the object what the target holds, where that is known.
    pub applied_body: Option<Value>,
    /// What the source that is the same system shows of it, in the form of a body, where the target was told nothing yet.
    pub shown_body: Option<Value>,
    /// The target's ids of what this delivery refers to; absent when it is not there.
    pub references: HashMap<String, String>,
    /// Its lane is in this shard.
    pub shard: i16,
    /// How urgent its lane is.
    pub priority: Priority,
    /// Since when it may be sent.
    pub due_at: Timestamp,
    /// It does not go with others in one request.
    pub alone: bool,
    /// What it requires that is still on its way to the target.
    pub waits_for: Option<String>,
    /// When the target last took something of the object.
    pub told_at: Option<Timestamp>,
    /// It has not come to an end.
    pub is_open: bool,
    /// Fields of the event of which nobody who has a say has spoken.
    pub unknown: Vec<String>,
    /// Subjects that had been forgotten when it was read.
    pub erasures: i64,
    /// Its event, or what was sent, cannot be read back.
    pub unreadable: bool,
}

impl Due {
    /// Why nothing could be made of what the event came from. A deletion needs nothing of it.
    #[must_use]
    pub fn fault(&self) -> Option<&str> {
        self.event.get("fault").and_then(Value::as_str).filter(|_| self.operation != "delete")
    }

    /// A delivery as it would be, had this event just been ledgered: nothing stands at the target yet.
    #[must_use]
    pub fn imagined(lane: Lane, event: &CanonicalEvent, requires: Vec<String>) -> Self {
        let operation = if event.operation == Operation::Delete { "delete" } else { "upsert" };
        Self {
            event: json!({"data": event.data, "event_id": event.event_id}),
            operation: operation.to_owned(),
            requires,
            ..Self::bare(lane)
        }
    }

    /// A delivery of nothing yet.
    #[must_use]
    pub fn bare(lane: Lane) -> Self {
        Self {
            id: 0,
            lane,
            event_seq: 0,
            event: Value::Null,
            operation: String::new(),
            uncertain: false,
            round: 0,
            attempts: 0,
            request: None,
            idempotency_key: None,
            attempted_at: None,
            last_attempt_at: None,
            reason: None,
            requires: Vec::new(),
            supersedes: Vec::new(),
            external_id: None,
            applied_sha256: None,
            applied_body: None,
            shown_body: None,
            references: HashMap::new(),
            shard: 0,
            priority: Priority::Profile,
            due_at: Timestamp::UNIX_EPOCH,
            alone: false,
            waits_for: None,
            told_at: None,
            is_open: true,
            unknown: Vec::new(),
            erasures: 0,
            unreadable: false,
        }
    }
}

impl Due {
    /// True when there was no key any more to open what is personal. A deletion goes without it.
    pub fn is_sealed(&mut self) -> bool {
        let data = self.event.get_mut("data").and_then(Value::as_object_mut);
        match (data, self.operation.as_str()) {
            (Some(data), "delete") => {
                data.remove(SEALED);
                false
            }
            (data, _) => data.is_some_and(|data| data.contains_key(SEALED)),
        }
    }
}

/// Heads of lanes that may be sent, by class and oldest first.
///
/// Order is kept because only heads are looked at (INV-5); behind one that is held for a person its lane waits. A pending state
/// is replaced by the newest pending state behind it, up to the next fact (INV-6) or to what is in doubt or held. What is required and still on its way is
/// named, for the delivery to be left alone until then.
///
/// However large the backlog is, only its beginning is read: of each shard and class a few.
const DUE: &str = "
  with picked as (
    select p.id
    from unnest($2::smallint[]) as s(shard)
    cross join unnest($3::smallint[]) as c(class)
    cross join unnest($7::text[]) as o(object)
    cross join lateral (
      select d.id, d.due_at from delivery d
      where d.target = $1 and d.ready and d.object = o.object and d.shard = s.shard and d.class = c.class
        and d.due_at <= now() and d.id not in (select unnest($5::bigint[]))
      order by d.due_at, d.id limit $4) p
    order by c.class, p.due_at, p.id limit $6),
  head as (
    select h.*, coalesce(n.id, h.id) as newest
    from picked p join delivery h on h.id = p.id
    left join lateral (
      select n.id from delivery n
      where h.state = 'pending' and not h.fact and n.target = h.target and n.object = h.object
        and n.canonical_id = h.canonical_id and n.state = 'pending' and not n.fact and n.id > h.id
        and n.id < coalesce((select f.id from delivery f
                             where f.target = h.target and f.object = h.object and f.canonical_id = h.canonical_id
                               and f.id > h.id and f.occupies and (f.fact or f.state <> 'pending')
                             order by f.id limit 1), 9223372036854775807)
      order by n.id desc limit 1) n on true)
  select n.id, n.target, n.object, n.canonical_id, n.event_seq, e.body, n.operation, h.state = 'sending', n.round,
         n.attempts, n.requires, n.request, n.idempotency_key, n.attempted_at,
         (select array_agg(o.id) from delivery o
          where o.target = h.target and o.object = h.object and o.canonical_id = h.canonical_id
            and o.state = 'pending' and o.id >= h.id and o.id < n.id),
         i.external_id, a.sha256, n.last_attempt_at, n.reason, h.class, h.due_at, h.shard,
         (select r from unnest(n.requires) r where is_on_its_way(n.target, r) limit 1), n.alone, a.body, a.told_at, true
  from head h
  join delivery n on n.id = h.newest
  cross join lateral (select x.body from entry x where x.seq = n.event_seq and x.month = n.event_month
                      union all select k.body from kept_event k where k.seq = n.event_seq) e
  left join identity i on i.system = h.target and i.object = h.object and i.canonical_id = h.canonical_id
  left join applied a on a.target = h.target and a.object = h.object and a.canonical_id = h.canonical_id";

/// The same of certain deliveries, whatever may be sent.
const BY_IDS: &str = "
  select n.id, n.target, n.object, n.canonical_id, n.event_seq, e.body, n.operation, n.state = 'sending', n.round,
         n.attempts, n.requires, n.request, n.idempotency_key, n.attempted_at, null::bigint[],
         i.external_id, a.sha256, n.last_attempt_at, n.reason, n.class, n.due_at, n.shard, null::text, n.alone, a.body, a.told_at, n.occupies
  from delivery n
  cross join lateral (select x.body from entry x where x.seq = n.event_seq and x.month = n.event_month
                      union all select k.body from kept_event k where k.seq = n.event_seq) e
  left join identity i on i.system = n.target and i.object = n.object and i.canonical_id = n.canonical_id
  left join applied a on a.target = n.target and a.object = n.object and a.canonical_id = n.canonical_id
  where n.id = any ($1)";

/// The newest of each lane.
const BY_LANES: &str = "
  select n.id, n.target, n.object, n.canonical_id, n.event_seq, e.body, n.operation, n.state = 'sending', n.round,
         n.attempts, n.requires, n.request, n.idempotency_key, n.attempted_at, null::bigint[],
         i.external_id, a.sha256, n.last_attempt_at, n.reason, n.class, n.due_at, n.shard, null::text, n.alone, a.body, a.told_at,
         n.occupies
  from unnest($3::text[]) as w(id)
  cross join lateral (select * from delivery d where d.target = $1 and d.object = $2 and d.canonical_id = w.id
                      order by d.id desc limit 1) n
  cross join lateral (select x.body from entry x where x.seq = n.event_seq and x.month = n.event_month
                      union all select k.body from kept_event k where k.seq = n.event_seq) e
  left join identity i on i.system = n.target and i.object = n.object and i.canonical_id = n.canonical_id
  left join applied a on a.target = n.target and a.object = n.object and a.canonical_id = n.canonical_id";

const NEXT_DUE_AT: &str = "
  select min(d.due_at) from unnest($2::smallint[]) as s(shard) cross join generate_series(0, 3) as c(class)
  cross join unnest($3::text[]) as o(object)
  cross join lateral (
    select d.due_at from delivery d
    where d.target = $1 and d.ready and d.object = o.object and d.shard = s.shard and d.class = c.class
      and d.due_at > now()
    order by d.due_at limit 1) d";

/// Shards into which the lanes of a target are divided: the ledger's column `shard`.
pub const SHARDS: i16 = 8;

/// What is asked for when something may have become due.
#[derive(Debug, Clone)]
pub struct Wanted<'a> {
    /// Target.
    pub target: &'a str,
    /// Which objects.
    pub objects: &'a [&'a str],
    /// Whose lanes.
    pub shards: &'a [i16],
    /// Of which classes.
    pub classes: &'a [Priority],
    /// How many.
    pub most: usize,
    /// Not these: they are in hand.
    pub busy: &'a [i64],
}

/// What is asked whenever something may have become due: prepared, since planning costs more than answering.
pub struct Outbox {
    master: Master,
    erasures: Erasures,
    due: Statement,
    next_due_at: Statement,
}

impl Outbox {
    /// Prepares the statements.
    pub async fn prepare(client: &Client, master: &Master, erasures: &Erasures) -> Result<Self, LedgerError> {
        let (due, next_due_at) = tokio::try_join!(client.prepare(DUE), client.prepare(NEXT_DUE_AT))?;
        Ok(Self { master: master.clone(), erasures: erasures.clone(), due, next_due_at })
    }

    /// Heads of lanes that are due, by class and oldest first.
    pub async fn due(&self, client: &Client, wanted: &Wanted<'_>) -> Result<Vec<Due>, LedgerError> {
        let Wanted { target, objects, shards, classes, most, busy } = wanted;
        let classes: Vec<i16> = classes.iter().map(|class| class.number()).collect();
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        // Lanes are spread evenly over the shards: a little more than its part of each is enough.
        let part = number(2 * most / shards.len().max(1) + 4);
        let erasures = self.erasures.count();
        let rows = client
            .query(&self.due, &[target, shards, &classes, &part, busy, &number(*most), objects])
            .await?;
        read_due((client, &self.master, erasures), target, &rows).await
    }

    /// When the next delivery of `target` becomes due that is not due now.
    pub async fn next_due_at(
        &self,
        client: &Client,
        target: &str,
        objects: &[String],
        shards: &[i16],
    ) -> Result<Option<Timestamp>, LedgerError> {
        Ok(client.query_one(&self.next_due_at, &[&target, &shards, &objects]).await?.try_get(0)?)
    }
}

/// These deliveries, by number.
pub async fn by_ids(ledger: &Ledger, ids: &[i64]) -> Result<HashMap<i64, Due>, LedgerError> {
    let (client, erasures) = (ledger.reader(), ledger.erasures().count());
    let rows = client.query(BY_IDS, &[&ids]).await?;
    let target = rows.first().map_or(Ok(String::new()), |row| row.try_get::<_, String>(1))?;
    Ok(read_due((client, ledger.master(), erasures), &target, &rows)
        .await?
        .into_iter()
        .map(|due| (due.id, due))
        .collect())
}

/// The newest deliveries of these objects at a target, whatever became of them.
pub async fn by_lanes(
    ledger: &Ledger,
    (target, object): (&str, &str),
    ids: &[String],
) -> Result<Vec<Due>, LedgerError> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let erasures = ledger.erasures().count();
    let rows = ledger.reader().query(BY_LANES, &[&target, &object, &ids]).await?;
    read_due((ledger.reader(), ledger.master(), erasures), target, &rows).await
}

/// Objects of which something is owed to `target`; each is found by one look into the index.
pub async fn owed_objects(client: &Client, target: &str) -> Result<Vec<String>, LedgerError> {
    let sql = "with recursive found(object) as (
                 select min(object) from delivery where target = $1 and ready
                 union all
                 select (select min(d.object) from delivery d where d.target = $1 and d.ready and d.object > f.object)
                 from found f where f.object is not null)
               select object from found where object is not null";
    let rows = client.query(sql, &[&target]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

async fn read_due(
    (client, master, erasures): (&Client, &Master, i64),
    target: &str,
    rows: &[tokio_postgres::Row],
) -> Result<Vec<Due>, LedgerError> {
    let mut found = Vec::with_capacity(rows.len());
    let mut required: Vec<(usize, String)> = Vec::new();
    for row in rows {
        let body: Vec<u8> = row.try_get(5)?;
        let requires: Vec<String> = row.try_get(10)?;
        required.extend(requires.iter().map(|reference| (found.len(), reference.clone())));
        let event: Option<Value> = serde_json::from_slice(&body).ok();
        // JSON that is too deep for the reader is no outage of the ledger.
        let (request, applied_body) = (row.try_get(11), row.try_get(24));
        let unreadable = event.is_none() || request.is_err();
        found.push(Due {
            id: row.try_get(0)?,
            lane: Lane { target: row.try_get(1)?, object: row.try_get(2)?, canonical_id: row.try_get(3)? },
            event_seq: row.try_get(4)?,
            event: event.unwrap_or_default(),
            operation: row.try_get(6)?,
            uncertain: row.try_get(7)?,
            round: row.try_get(8)?,
            attempts: row.try_get(9)?,
            request: request.unwrap_or_default(),
            idempotency_key: row.try_get(12)?,
            attempted_at: row.try_get(13)?,
            last_attempt_at: row.try_get(17)?,
            reason: row.try_get(18)?,
            requires,
            supersedes: row.try_get::<_, Option<Vec<i64>>>(14)?.unwrap_or_default(),
            external_id: row.try_get(15)?,
            applied_sha256: row.try_get(16)?,
            applied_body: applied_body.unwrap_or_default(),
            shown_body: None,
            references: HashMap::new(),
            priority: Priority::of_number(row.try_get(19)?),
            due_at: row.try_get(20)?,
            shard: row.try_get(21)?,
            waits_for: row.try_get(22)?,
            alone: row.try_get(23)?,
            told_at: row.try_get(25)?,
            is_open: row.try_get(26)?,
            unknown: Vec::new(),
            erasures,
            unreadable,
        });
    }
    resolve_references(client, target, required, &mut found).await?;
    // The last moment: what is personal is in clear from here to the request.
    let mut events: Vec<&mut Value> = found.iter_mut().map(|due| &mut due.event).collect();
    master.unseal(client, &mut events).await?;
    found.sort_by_key(|due| (due.priority, due.due_at, due.id));
    Ok(found)
}

async fn resolve_references(
    client: &Client,
    target: &str,
    required: Vec<(usize, String)>,
    found: &mut [Due],
) -> Result<(), LedgerError> {
    if required.is_empty() {
        return Ok(());
    }
    let wanted: Vec<String> = required.iter().map(|(_, reference)| reference.clone()).collect();
    let known = references(client, target, &wanted).await?;
    for (index, reference) in required {
        if let (Some(due), Some(external_id)) = (found.get_mut(index), known.get(&reference)) {
            due.references.insert(reference, external_id.clone());
        }
    }
    Ok(())
}

/// How many deliveries were worked out and not sent, because the target was in shadow mode.
pub async fn shadowed(client: &Client, target: &str) -> Result<i64, LedgerError> {
    let sql = "select count(*) from delivery where target = $1 and aside and state = 'shadowed'";
    Ok(client.query_one(sql, &[&target]).await?.try_get(0)?)
}

/// What is owed of one kind.
#[derive(Debug, Clone)]
pub struct Owed {
    /// Object of the connector.
    pub object: String,
    /// `upsert` or `delete`.
    pub operation: String,
    /// Objects.
    pub lanes: i64,
    /// Deliveries of them.
    pub deliveries: i64,
}

/// What is owed to a target, by object and operation.
pub async fn open_deliveries(client: &Client, target: &str) -> Result<Vec<Owed>, LedgerError> {
    let sql = "select object, operation, count(distinct canonical_id), count(*) from delivery
               where target = $1 and open group by 1, 2 order by 1, 2";
    let rows = client.query(sql, &[&target]).await?;
    let owed = |row: &tokio_postgres::Row| {
        Ok(Owed {
            object: row.try_get(0)?,
            operation: row.try_get(1)?,
            lanes: row.try_get(2)?,
            deliveries: row.try_get(3)?,
        })
    };
    rows.iter().map(owed).collect()
}
