//! From folded row changes to canonical events, over an [`Overlay`]. Pure.
//!
//! A row that changes nothing mapped ends here. A row that does leads to its *roots*: the rows an event is made of,
//! found through the mapping's joins. Each root is worked out once per transaction and compared with what was last
//! emitted for that object; equal data makes no event.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::overlay::{Emission, Overlay};
use crate::event::{
    CanonicalEvent, Cause, Change, ChangePosition, Cluster, Field, Operation, Row, RowState, SentRow,
    Transaction, canonical_bytes, event_id, key_text, sha256_hex,
};
use crate::mapping::{EventSpec, Join, JoinKind, Joined, SourceMapping};

/// An event, or why the object could not be worked out: then it is parked, not skipped (INV-7).
#[derive(Debug, Clone, PartialEq)]
pub struct Emitted {
    /// The event.
    pub event: CanonicalEvent,
    /// Why it must not be delivered.
    pub fault: Option<String>,
}

/// What the projection needs to know of the source.
#[derive(Debug)]
pub struct Projection<'a> {
    /// Mapping files.
    pub mapping: &'a SourceMapping,
    /// Source name of the configuration.
    pub source: &'a str,
    /// Cluster the changes come from.
    pub cluster: &'a Cluster,
}

/// Where and when events come from.
#[derive(Debug, Clone)]
struct Stamp {
    position: ChangePosition,
    committed_at: jiff::Timestamp,
    xid: Option<u32>,
    snapshot: bool,
}

/// Roots of one event type touched by a transaction: key to (last ordinal, causes).
type Roots = BTreeMap<String, (u64, Vec<Cause>)>;

impl Projection<'_> {
    /// Applies a transaction to `overlay` and gives its events, deletes first, then in the order of the mapping.
    ///
    /// While the overlay misses anything the result is incomplete and must be thrown away.
    pub fn transaction(&self, overlay: &mut Overlay<'_>, transaction: &Transaction) -> Vec<Emitted> {
        let changed = self.apply(overlay, transaction);
        let mut emitted = Vec::new();
        for spec in &self.mapping.events {
            for (key, (ordinal, causes)) in self.roots(overlay, spec, &changed) {
                let stamp = Stamp {
                    position: transaction.position(ordinal),
                    committed_at: transaction.committed_at,
                    xid: (!transaction.snapshot).then_some(transaction.xid),
                    snapshot: transaction.snapshot,
                };
                emitted.extend(self.object(overlay, spec, &key, causes, &stamp));
            }
        }
        emitted.sort_by_key(|emitted| emitted.event.operation != Operation::Delete);
        emitted
    }

    /// The events of the first load for these root rows.
    pub fn snapshot(
        &self,
        overlay: &mut Overlay<'_>,
        spec: &EventSpec,
        keys: &[String],
        consistent_point: crate::event::Lsn,
        taken_at: jiff::Timestamp,
    ) -> Vec<Emitted> {
        let stamp = Stamp {
            position: ChangePosition { commit_lsn: consistent_point, ordinal: 0 },
            committed_at: taken_at,
            xid: None,
            snapshot: true,
        };
        keys.iter().flat_map(|key| self.object(overlay, spec, key, Vec::new(), &stamp)).collect()
    }

    /// Applies the row changes; gives those that changed a mapped column.
    fn apply(&self, overlay: &mut Overlay<'_>, transaction: &Transaction) -> Vec<(u64, Cause)> {
        let mut changed = Vec::new();
        for (table, ordinal) in &transaction.truncated {
            for key in overlay.keys_where(table, &Arc::from(""), "").unwrap_or_default() {
                let change = Change::new(table, &key, *ordinal, RowState::Absent);
                changed.extend(apply_one(overlay, &change, None));
            }
        }
        // Rows that changed their key lend what was not sent; they are looked up before anything moves.
        let moved: Vec<Option<Arc<Row>>> = transaction
            .changes
            .iter()
            .map(|change| {
                change.moved_from.as_ref().and_then(|key| overlay.row(&change.table, key).flatten())
            })
            .collect();
        for (change, moved) in transaction.changes.iter().zip(moved) {
            changed.extend(apply_one(overlay, change, moved));
        }
        changed
    }

    fn roots(&self, overlay: &Overlay<'_>, spec: &EventSpec, changed: &[(u64, Cause)]) -> Roots {
        let mut roots = Roots::new();
        for (ordinal, cause) in changed {
            let mut keys = BTreeSet::new();
            if *cause.table == *spec.table {
                keys.insert(cause.key.clone());
            }
            for join in spec.joins.iter().filter(|join| *join.table == *cause.table) {
                keys.extend(roots_through(overlay, spec, join, cause));
            }
            for key in keys {
                let (last, causes) = roots.entry(key).or_default();
                *last = (*last).max(*ordinal);
                causes.push(cause.clone());
            }
        }
        roots
    }

    /// The events of the object that a row is, when its data is not what was last emitted: one as a rule, two when the
    /// row has become another object.
    fn object(
        &self,
        overlay: &mut Overlay<'_>,
        spec: &EventSpec,
        key: &str,
        causes: Vec<Cause>,
        stamp: &Stamp,
    ) -> Vec<Emitted> {
        let Some(image) = overlay.image(&spec.table, key) else { return Vec::new() };
        let (row, known) = (image.row.clone(), image.emission(&spec.event_type).cloned());
        let (now, fault) = match row {
            Some(row) => match self.evaluated(overlay, spec, key, &row) {
                Some(evaluated) => evaluated,
                None => return Vec::new(),
            },
            None => (None, None),
        };
        let emission = now.as_ref().map(|(id, data)| Emission {
            event_type: spec.event_type.clone(),
            id: id.clone(),
            sha256: sha256_hex(&canonical_bytes(data)),
        });
        if emission == known {
            return Vec::new();
        }
        let mut emitted = Vec::new();
        let mut emit = |operation, id: String, data, fault: Option<String>, causes| {
            let event_id = event_id(self.source, self.cluster, &stamp.position, &spec.event_type, &id);
            let event = CanonicalEvent {
                event_id,
                event_type: spec.event_type.clone(),
                operation,
                id,
                data,
                position: stamp.position.clone(),
                committed_at: stamp.committed_at,
                xid: stamp.xid,
                snapshot: stamp.snapshot,
                causes,
            };
            emitted.push(Emitted { event, fault });
        };
        let stays = known.as_ref().is_some_and(|known| now.as_ref().is_some_and(|(id, _)| *id == known.id));
        if let Some(known) = known.filter(|_| !stays) {
            emit(Operation::Delete, known.id, Value::Null, None, causes.clone());
        }
        if let Some((id, data)) = now {
            let fault = fault.or_else(|| spec.schema.violation(&data));
            let operation = if stays { Operation::Update } else { Operation::Create };
            emit(operation, id, data, fault, causes);
        }
        overlay.set_emission(&spec.table, key, &spec.event_type, emission);
        emitted
    }

    /// Canonical id and data of the object that `row` is, if it is one, and why they could not be worked out; `None` when
    /// something has to be loaded first.
    #[allow(clippy::type_complexity)] // A name for this pair would say no more than its parts.
    fn evaluated(
        &self,
        overlay: &Overlay<'_>,
        spec: &EventSpec,
        key: &str,
        row: &Row,
    ) -> Option<(Option<(String, Value)>, Option<String>)> {
        let source = Value::String(self.source.to_uppercase());
        let id = match spec.canonical_id(&source, row) {
            Ok(id) => id,
            // A row without a canonical id cannot be told apart from others; it is reported under its key.
            Err(error) => {
                let id = format!("{}-{}-{key}", self.source.to_uppercase(), spec.table);
                return Some((Some((id.clone(), with_id(Value::Null, &id))), Some(error.to_string())));
            }
        };
        let joined = joined(overlay, spec, key, row)?;
        Some(match spec.evaluate(&source, row, &joined) {
            Ok(data) => (
                data.map(|data| {
                    let data = with_id(data, &id);
                    (id, data)
                }),
                None,
            ),
            Err(error) => (Some((id.clone(), with_id(Value::Null, &id))), Some(error.to_string())),
        })
    }
}

fn with_id(data: Value, id: &str) -> Value {
    let mut map = match data {
        Value::Object(map) => map,
        _ => Map::new(),
    };
    map.insert("id".into(), Value::String(id.to_owned()));
    Value::Object(map)
}

/// Applies one change; `None` when it changed no mapped column, or something has to be loaded first.
fn apply_one(overlay: &mut Overlay<'_>, change: &Change, moved: Option<Arc<Row>>) -> Option<(u64, Cause)> {
    // An inserted row has no image: it need not be looked for.
    let before = if change.inserted { None } else { overlay.row(&change.table, &change.key)? };
    // What a row that changed its key did not send is never that of the row that had the key before.
    let known = if change.moved_from.is_some() { moved.as_deref() } else { before.as_deref() };
    let after = match &change.state {
        RowState::Absent => None,
        RowState::Present(sent) => Some(filled(overlay, change, sent, known)?),
    };
    if before == after {
        return None;
    }
    overlay.set_row(&change.table, &change.key, after.clone());
    let cause = Cause { table: change.table.clone(), key: change.key.clone(), before, after };
    Some((change.ordinal, cause))
}

/// The whole row: what was not sent is kept from the image, or read from the source where no image has it. `None` when it
/// has to be read first, or when the row is gone by now: then its own change is on the way.
fn filled(overlay: &Overlay<'_>, change: &Change, sent: &SentRow, known: Option<&Row>) -> Option<Arc<Row>> {
    if let Some(row) = sent.whole() {
        return Some(row.clone());
    }
    let mut filled = Vec::new();
    for (name, field) in sent.iter() {
        let value = match field {
            Field::Value(value) => Some(value),
            Field::Unchanged => match known.and_then(|row| row.get(name)) {
                Some(value) => Some(value),
                // A column that the source has no more is left out: what reads it is parked.
                None => overlay.read_back(&change.table, &change.key)??.get(name),
            },
        };
        if let Some(value) = value {
            filled.push((name.clone(), value.clone()));
        }
    }
    Some(Arc::new(filled.into_iter().collect()))
}

/// Root keys that a changed joined row belongs to, now or before.
fn roots_through(overlay: &Overlay<'_>, spec: &EventSpec, join: &Join, cause: &Cause) -> BTreeSet<String> {
    let versions = || [cause.before.as_deref(), cause.after.as_deref()].into_iter().flatten();
    match &join.kind {
        JoinKind::By(column) => overlay.keys_where(&spec.table, column, &cause.key).unwrap_or_default(),
        JoinKind::Children(column) => versions().filter_map(|row| reference_in(row, column)).collect(),
        JoinKind::Through { alias, column } => {
            let Some(links) = spec.join(alias) else { return BTreeSet::new() };
            let JoinKind::Children(back) = &links.kind else { return BTreeSet::new() };
            let keys = overlay.keys_where(&links.table, column, &cause.key).unwrap_or_default();
            let rows = keys.iter().filter_map(|key| overlay.row(&links.table, key).flatten());
            rows.filter_map(|row| reference_in(&row, back)).collect()
        }
    }
}

fn reference_in(row: &Row, column: &str) -> Option<String> {
    row.get(column).filter(|value| !value.is_null()).map(key_text)
}

/// The rows of all joins; `None` when something has to be loaded first. Every join is asked, so that one batch loads all
/// that is missing.
fn joined(overlay: &Overlay<'_>, spec: &EventSpec, key: &str, row: &Row) -> Option<Vec<(Arc<str>, Joined)>> {
    let mut values: Vec<(Arc<str>, Joined)> = Vec::with_capacity(spec.joins.len());
    let mut complete = true;
    for join in &spec.joins {
        let value = match &join.kind {
            JoinKind::By(column) => by(overlay, join, row, column),
            JoinKind::Children(column) => {
                overlay.keys_where(&join.table, column, key).and_then(|keys| rows(overlay, join, &keys))
            }
            JoinKind::Through { alias, column } => match values.iter().find(|(name, _)| name == alias) {
                Some((_, Joined::Many(links))) => {
                    let keys: BTreeSet<String> =
                        links.iter().filter_map(|link| reference_in(link, column)).collect();
                    rows(overlay, join, &keys)
                }
                _ => None,
            },
        };
        match value {
            Some(value) => values.push((join.alias.clone(), value)),
            None => complete = false,
        }
    }
    complete.then_some(values)
}

/// The row a column points to; when it points nowhere a row of nulls, so that `country.code` is null.
fn by(overlay: &Overlay<'_>, join: &Join, row: &Row, column: &str) -> Option<Joined> {
    let found = match reference_in(row, column) {
        Some(key) => overlay.row(&join.table, &key)?,
        None => None,
    };
    let nulls = || Arc::new(Row::new(join.columns.as_slice().into(), Vec::new()));
    Some(Joined::One(found.unwrap_or_else(nulls)))
}

fn rows(overlay: &Overlay<'_>, join: &Join, keys: &BTreeSet<String>) -> Option<Joined> {
    let found: Vec<Option<Option<Arc<Row>>>> = keys.iter().map(|key| overlay.row(&join.table, key)).collect();
    let loaded = found.into_iter().collect::<Option<Vec<_>>>()?;
    Some(Joined::Many(loaded.into_iter().flatten().collect()))
}
