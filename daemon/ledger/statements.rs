//! The SQL of a batch. Rows go in as arrays (`unnest`): one statement for any number of rows, as fast as COPY.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use jiff::civil::Date;
use postgres_types::PgLsn;
use tokio_postgres::types::ToSql;

use super::batch::{Batch, DeliveryWrite, EntryIndex, ImageWrite};
use super::held::{check, seen};
use super::load_statements::{load, quiet};
use super::parked::{heal, park};
use super::polls::poll;
use super::position::Position;
use super::reconcile::reconcile;
use super::said::said;
use super::spill::spill;
use crate::image::{Emission, Image};

/// Parameters of a statement.
pub type Parameters = Vec<Box<dyn ToSql + Sync + Send>>;
/// SQL and its parameters.
pub type Prepared = (&'static str, Parameters);

macro_rules! parameters {
    ($($value:expr),* $(,)?) => {
        vec![$(Box::new($value) as Box<dyn tokio_postgres::types::ToSql + Sync + Send>),*]
    };
}
pub(super) use parameters;

/// What a source slice changes.
pub fn source_statements(
    batch: &mut Batch,
    (seq_of, month): (&dyn Fn(EntryIndex) -> i64, Date),
    out: &mut Vec<Prepared>,
) {
    for source in batch.forget.drain(..) {
        out.push(("delete from image where source = $1", parameters![source]));
    }
    images(batch, out);
    batch.quiet.drain(..).for_each(|write| quiet(write, out));
    spill(batch, out);
    batch.loads.drain(..).for_each(|write| load(write, out));
    if !batch.healed.is_empty() {
        healed(batch, seq_of, out);
    }
    if !batch.deliveries.is_empty() {
        deliveries(std::mem::take(&mut batch.deliveries), (seq_of, month), out);
    }
    said(std::mem::take(&mut batch.said), seq_of, out);
    seen(std::mem::take(&mut batch.seen), out);
    batch.reconciled.drain(..).for_each(|write| reconcile(write, out));
    check(std::mem::take(&mut batch.checks), out);
    heal(std::mem::take(&mut batch.healed_parked), out);
    park(std::mem::take(&mut batch.parked), out);
    for position in batch.positions.drain(..) {
        out.push(position_statement(position));
    }
    batch.polls.drain(..).for_each(|write| poll(write, out));
}

fn images(batch: &mut Batch, out: &mut Vec<Prepared>) {
    let mut tables: BTreeMap<(Arc<str>, Arc<str>), TableWrites> = BTreeMap::new();
    for write in last_of_each_row(batch.images.drain(..)) {
        let table = tables.entry((write.source.clone(), write.relation.clone())).or_default();
        match (write.image.is_nothing(), write.row_changed) {
            (true, _) => table.gone.push(write.key),
            (false, true) => table.kept.push(write),
            (false, false) => table.marked.push(write),
        }
    }
    for ((source, relation), TableWrites { kept, marked, gone }) in tables {
        let (source, relation) = (source.to_string(), relation.to_string());
        if !kept.keys.is_empty() {
            out.push((
                "insert into image (source, relation, key, row, emitted)
                 select $1, $2, key, row::jsonb, emitted from unnest($3::text[], $4::text[], $5::text[]) w(key, row, emitted)
                 on conflict (source, relation, key) do update set row = excluded.row, emitted = excluded.emitted",
                parameters![source.clone(), relation.clone(), kept.keys, kept.rows, kept.emitted],
            ));
        }
        if !marked.keys.is_empty() {
            out.push((
                "update image i set emitted = w.emitted from unnest($3::text[], $4::text[]) w(key, emitted)
                 where i.source = $1 and i.relation = $2 and i.key = w.key",
                parameters![source.clone(), relation.clone(), marked.keys, marked.emitted],
            ));
        }
        if !gone.is_empty() {
            out.push((
                "delete from image where source = $1 and relation = $2 and key = any ($3)",
                parameters![source, relation, gone],
            ));
        }
    }
}

/// Several slices may have been gathered into the batch: of each row the last one counts.
fn last_of_each_row(writes: impl Iterator<Item = ImageWrite>) -> Vec<ImageWrite> {
    let mut writes: Vec<ImageWrite> = writes.collect();
    let mut last: HashMap<(&str, &str, &str), (usize, bool)> = HashMap::with_capacity(writes.len());
    for (index, write) in writes.iter().enumerate() {
        let place = last.entry((&write.source, &write.relation, &write.key)).or_default();
        *place = (index, place.1 || write.row_changed);
    }
    if last.len() < writes.len() {
        let mut kept: Vec<Option<bool>> = vec![None; writes.len()];
        for (index, row_changed) in last.into_values() {
            if let Some(kept) = kept.get_mut(index) {
                *kept = Some(row_changed);
            }
        }
        let mut kept = kept.into_iter();
        writes.retain_mut(|write| match kept.next().flatten() {
            Some(row_changed) => {
                write.row_changed = row_changed;
                true
            }
            None => false,
        });
    }
    writes
}

/// What is written of one table's images.
#[derive(Default)]
struct TableWrites {
    kept: Columns,
    marked: Columns,
    gone: Vec<String>,
}

#[derive(Default)]
struct Columns {
    keys: Vec<String>,
    rows: Vec<Option<String>>,
    emitted: Vec<Option<String>>,
}

impl Columns {
    fn push(&mut self, write: ImageWrite) {
        self.keys.push(write.key);
        self.emitted.push(emitted_text(&write.image));
        // A row of JSON values always has a text.
        self.rows.push(write.image.row.and_then(|row| serde_json::to_string(&*row).ok()));
    }
}

/// How emissions are kept with an image: `[[event type, canonical id, SHA-256], …]`, with `held` behind those held
/// back, and what the source says of fields it does not own.
fn emitted_text(image: &Image) -> Option<String> {
    // Lists of texts always have a text.
    let text = || serde_json::to_string(&image.emitted.iter().map(texts).collect::<Vec<_>>()).ok();
    if image.emitted.is_empty() { None } else { text() }
}

fn texts(emission: &Emission) -> Vec<&str> {
    let mut texts: Vec<&str> = vec![&emission.event_type, &emission.id, &emission.sha256];
    if emission.held || !emission.foreign.is_empty() {
        texts.push(if emission.held { "held" } else { "" });
    }
    if !emission.foreign.is_empty() {
        texts.push(&emission.foreign);
    }
    texts
}

/// Closes what was parked of an object before it could be sent: a request in doubt stays.
fn healed(batch: &mut Batch, seq_of: &dyn Fn(EntryIndex) -> i64, out: &mut Vec<Prepared>) {
    let (mut targets, mut objects, mut ids, mut seqs) = (vec![], vec![], vec![], vec![]);
    for (lane, entry) in std::mem::take(&mut batch.healed) {
        targets.push(lane.target);
        objects.push(lane.object);
        ids.push(lane.canonical_id);
        seqs.push(seq_of(entry));
    }
    out.push((
        "update delivery d set state = 'superseded', head = false, reason = 'replaced by entry ' || w.seq
         from unnest($1::text[], $2::text[], $3::text[], $4::bigint[]) as w(target, object, id, seq)
         where d.target = w.target and d.object = w.object and d.canonical_id = w.id and d.event_seq < w.seq
           and d.state = 'parked' and d.request is null",
        parameters![targets, objects, ids, seqs],
    ));
}

fn deliveries(
    writes: Vec<DeliveryWrite>,
    (seq_of, month): (&dyn Fn(EntryIndex) -> i64, Date),
    out: &mut Vec<Prepared>,
) {
    let (mut seqs, mut targets, mut objects, mut ids) = (vec![], vec![], vec![], vec![]);
    let (mut operations, mut facts, mut requires, mut states, mut reasons, mut looks, mut classes) =
        (vec![], vec![], vec![], vec![], vec![], vec![], vec![]);
    let mut causes = vec![];
    for write in writes {
        seqs.push(seq_of(write.event));
        targets.push(write.lane.target);
        objects.push(write.lane.object);
        ids.push(write.lane.canonical_id);
        operations.push(write.operation);
        facts.push(write.fact);
        requires.push(write.requires.join("\n"));
        // In doubt: whatever was sent is older than any key, and perhaps too new for a look-up to show it yet.
        looks.push(write.look_first && write.parked.is_none() && write.held.is_none());
        states.push(match (&write.parked, &write.held) {
            (Some(_), _) => "parked",
            (None, Some(_)) => "held",
            (None, None) => "pending",
        });
        causes.push(match (&write.parked, &write.held) {
            (Some(_), _) => Some("mapping"),
            (None, held) => held.as_ref().map(|_| "mass"),
        });
        reasons.push(write.parked.or(write.held));
        classes.push(write.priority.number());
    }
    // A lane goes as fast as the most urgent of its deliveries, and waits for nothing that only an older state required.
    out.push((
        "update delivery h set class = least(h.class, w.class), waits_for = null
         from (select target, object, canonical_id, min(class) as class
               from unnest($1::text[], $2::text[], $3::text[], $4::smallint[]) as w(target, object, canonical_id, class)
               group by 1, 2, 3) w
         where h.target = w.target and h.object = w.object and h.canonical_id = w.canonical_id and h.head
           and (h.class > w.class or h.waits_for is not null)",
        parameters![targets.clone(), objects.clone(), ids.clone(), classes.clone()],
    ));
    out.push((
        "insert into delivery (event_seq, target, object, canonical_id, operation, fact, requires, state, reason, cause, class,
                               attempted_at, last_attempt_at, head, event_month)
         select event_seq, target, object, canonical_id, operation, fact,
                case when requires = '' then '{}' else string_to_array(requires, E'\\n') end,
                case when look then 'sending' else state end, reason, cause, class,
                case when look then 'epoch'::timestamptz end, case when look then now() end,
                state <> 'parked'
                  and row_number() over (partition by target, object, canonical_id, state = 'parked' order by n) = 1
                  and not exists (select from delivery h where h.target = w.target and h.object = w.object
                                  and h.canonical_id = w.canonical_id and h.head), $13
         from unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::boolean[], $7::text[],
                     $8::text[], $9::text[], $10::boolean[], $11::smallint[], $12::text[])
           with ordinality as w(event_seq, target, object, canonical_id, operation, fact, requires, state, reason, look,
                                class, cause, n)
         order by n",
        parameters![
            seqs, targets, objects, ids, operations, facts, requires, states, reasons, looks, classes, causes, month
        ],
    ));
}

fn position_statement(position: Position) -> Prepared {
    (
        "insert into position (source, system_identifier, timeline, slot, phase, commit_lsn, ordinal, end_lsn,
                               mapped, committed_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
         on conflict (source) do update set
           system_identifier = excluded.system_identifier, timeline = excluded.timeline, slot = excluded.slot,
           phase = excluded.phase, commit_lsn = excluded.commit_lsn, ordinal = excluded.ordinal,
           end_lsn = excluded.end_lsn, mapped = excluded.mapped,
           committed_at = coalesce(excluded.committed_at, position.committed_at), updated_at = now()",
        parameters![
            position.source,
            position.cluster.system_identifier,
            i32::try_from(position.cluster.timeline).unwrap_or(i32::MAX),
            position.slot,
            position.phase.as_str(),
            PgLsn::from(position.commit_lsn),
            position.ordinal.map(|ordinal| i64::try_from(ordinal).unwrap_or(i64::MAX)),
            PgLsn::from(position.end_lsn),
            position.mapped,
            position.committed_at,
        ],
    )
}

/// The time as the ledger stores it: microseconds, as PostgreSQL keeps them.
#[must_use]
pub fn to_microseconds(now: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now)
}
