//! From folded row changes to canonical events, over an [`Overlay`]. Pure.
//!
//! A row that changes nothing mapped ends here. A row that does leads to its *roots*: the rows an event is made of,
//! found through the mapping's joins. Each root is worked out once per transaction and compared with what was last
//! emitted for that object; equal data makes no event.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::document::{Part, joined, parents, parts};
use super::overlay::{Emission, Overlay};
use crate::event::{
    CanonicalEvent, Cause, Change, ChangePosition, Cluster, Field, Operation, Row, RowState, SentRow,
    Transaction, canonical_bytes, event_id, sha256_hex,
};
use crate::mapping::{EventSpec, SourceMapping};

/// An event, or why the object could not be worked out: then it is parked, not skipped (INV-7).
#[derive(Debug, Clone, PartialEq)]
pub struct Emitted {
    /// The event.
    pub event: CanonicalEvent,
    /// Why it must not be delivered.
    pub fault: Option<String>,
    /// The one before it was held back: whatever waits of it is replaced by this one.
    pub heals: bool,
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

/// Objects of one event type touched by a transaction, by the key of their root row.
pub type Roots = BTreeMap<String, Touch>;

/// What touched an object.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Touch {
    /// Ordinal of the last change.
    pub ordinal: u64,
    /// The row changes.
    pub causes: Vec<Cause>,
}

impl Projection<'_> {
    /// Applies a transaction to `overlay` and gives its events, deletes first, then in the order of the mapping; `None` when
    /// it touches more than `most` objects.
    ///
    /// While the overlay misses anything the result is incomplete and must be thrown away.
    pub fn transaction(
        &self,
        overlay: &mut Overlay<'_>,
        transaction: &Transaction,
        most: usize,
    ) -> Option<Vec<Emitted>> {
        let touched = self.touched(overlay, transaction);
        if touched.iter().map(BTreeMap::len).sum::<usize>() > most {
            return None;
        }
        let mut emitted = Vec::new();
        for (spec, roots) in self.mapping.events.iter().zip(touched) {
            for (key, touch) in roots {
                emitted.extend(self.of_touched(overlay, spec, &key, touch, transaction));
            }
        }
        emitted.sort_by_key(|emitted| emitted.event.operation != Operation::Delete);
        Some(emitted)
    }

    /// Applies a transaction, or a slice of one, and gives the objects that it touches, for each event of the mapping.
    pub fn touched(&self, overlay: &mut Overlay<'_>, transaction: &Transaction) -> Vec<Roots> {
        let changed = self.apply(overlay, transaction);
        self.mapping.events.iter().map(|spec| roots(overlay, spec, &changed)).collect()
    }

    /// The events of an object that `transaction` touched.
    pub fn of_touched(
        &self,
        overlay: &mut Overlay<'_>,
        spec: &EventSpec,
        key: &str,
        touch: Touch,
        transaction: &Transaction,
    ) -> Vec<Emitted> {
        let stamp = Stamp {
            position: transaction.position(touch.ordinal),
            committed_at: transaction.committed_at,
            xid: (!transaction.snapshot).then_some(transaction.xid),
            snapshot: transaction.snapshot,
        };
        if spec.on_delete {
            return self.departure(overlay, spec, key, touch.causes, &stamp).into_iter().collect();
        }
        self.object(overlay, spec, key, touch.causes, &stamp)
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
        if spec.on_delete {
            return Vec::new();
        }
        keys.iter().flat_map(|key| self.object(overlay, spec, key, Vec::new(), &stamp)).collect()
    }

    /// Keys of the objects of one event that a row is, or is part of.
    #[must_use]
    pub fn objects_of(&self, overlay: &Overlay<'_>, spec: &EventSpec, cause: &Cause) -> BTreeSet<String> {
        roots(overlay, spec, &[(0, cause.clone())]).into_keys().collect()
    }

    /// What an object is now, whether or not it was emitted so, and the rows it is made of; `None` when the row is no such
    /// object.
    #[must_use]
    pub fn explained(
        &self,
        overlay: &Overlay<'_>,
        spec: &EventSpec,
        key: &str,
        at: crate::event::Lsn,
    ) -> Option<(Emitted, Vec<Part>)> {
        let image = overlay.image(&spec.table, key)?;
        let (row, known) = (image.row.clone()?, image.emission(&spec.event_type).is_some());
        let (id, data, fault) = match self.evaluated(overlay, spec, key, &row)? {
            Evaluated::Nothing => return None,
            Evaluated::Object(id, data) => {
                let fault = spec.schema.violation(&data);
                (id, data, fault)
            }
            Evaluated::Fault(id, reason) => (id.clone(), with_id(Value::Null, &id), Some(reason)),
        };
        let position = ChangePosition { commit_lsn: at, ordinal: 0 };
        let stamp = Stamp { position, committed_at: jiff::Timestamp::UNIX_EPOCH, xid: None, snapshot: false };
        let operation = if known { Operation::Update } else { Operation::Create };
        let event = self.event(spec, &stamp, (operation, id, data), Vec::new());
        let parts = parts(overlay, &spec.joins, &[(key.to_owned(), row)], 0);
        Some((Emitted { event, fault, heals: false }, parts))
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
        let Some(now) = row.map_or(Some(Evaluated::Nothing), |row| self.evaluated(overlay, spec, key, &row))
        else {
            return Vec::new();
        };
        let (now, fault) = match now {
            Evaluated::Nothing => (None, None),
            Evaluated::Object(id, data) => {
                let fault = spec.schema.violation(&data);
                (Some((id, data)), fault)
            }
            Evaluated::Fault(id, reason) => (Some((id.clone(), with_id(Value::Null, &id))), Some(reason)),
        };
        let emission = now.as_ref().map(|(id, data)| Emission {
            event_type: spec.event_type.clone(),
            id: id.clone(),
            sha256: digest(data, fault.as_deref()),
            held: fault.is_some(),
        });
        if emission == known {
            return Vec::new();
        }
        let heals = known.as_ref().is_some_and(|known| known.held);
        let stays = known.as_ref().is_some_and(|known| now.as_ref().is_some_and(|(id, _)| *id == known.id));
        let mut emitted = Vec::new();
        if let Some(known) = known.filter(|_| !stays) {
            let event = self.event(spec, stamp, (Operation::Delete, known.id, Value::Null), causes.clone());
            emitted.push(Emitted { event, fault: None, heals });
        }
        if let Some((id, data)) = now {
            let operation = if stays { Operation::Update } else { Operation::Create };
            let event = self.event(spec, stamp, (operation, id, data), causes);
            emitted.push(Emitted { event, fault, heals: heals && stays });
        }
        overlay.set_emission(&spec.table, key, &spec.event_type, emission);
        emitted
    }

    /// The event of a row that has gone.
    fn departure(
        &self,
        overlay: &Overlay<'_>,
        spec: &EventSpec,
        key: &str,
        causes: Vec<Cause>,
        stamp: &Stamp,
    ) -> Option<Emitted> {
        let gone = causes.iter().find(|cause| cause.table == spec.table && cause.after.is_none())?;
        let row = gone.before.clone()?;
        let (id, data, fault) = match self.evaluated(overlay, spec, key, &row)? {
            Evaluated::Nothing => return None,
            Evaluated::Object(id, data) => {
                let fault = spec.schema.violation(&data);
                (id, data, fault)
            }
            Evaluated::Fault(id, reason) => (id.clone(), with_id(Value::Null, &id), Some(reason)),
        };
        let event = self.event(spec, stamp, (Operation::Create, id, data), causes);
        Some(Emitted { event, fault, heals: false })
    }

    fn event(
        &self,
        spec: &EventSpec,
        stamp: &Stamp,
        (operation, id, data): (Operation, String, Value),
        causes: Vec<Cause>,
    ) -> CanonicalEvent {
        CanonicalEvent {
            event_id: event_id(self.source, self.cluster, &stamp.position, &spec.event_type, &id),
            event_type: spec.event_type.clone(),
            operation,
            id,
            data,
            position: stamp.position.clone(),
            committed_at: stamp.committed_at,
            xid: stamp.xid,
            snapshot: stamp.snapshot,
            causes,
        }
    }

    /// What the row is; `None` when something has to be loaded first.
    fn evaluated(&self, overlay: &Overlay<'_>, spec: &EventSpec, key: &str, row: &Row) -> Option<Evaluated> {
        let constants = &self.mapping.constants;
        if !spec.may_be(constants, row) {
            return Some(Evaluated::Nothing);
        }
        let id = match spec.canonical_id(constants, row) {
            Ok(id) => id,
            // A row without a canonical id cannot be told apart from others; it is reported under its key.
            Err(error) => {
                let id = format!("{}-{}-{key}", self.source.to_uppercase(), spec.table);
                return Some(Evaluated::Fault(id, error.to_string()));
            }
        };
        let joined = joined(overlay, &spec.joins, key, row)?;
        Some(match spec.evaluate(constants, row, &joined) {
            Ok(Some(data)) => {
                let data = with_id(data, &id);
                Evaluated::Object(id, data)
            }
            Ok(None) => Evaluated::Nothing,
            Err(error) => Evaluated::Fault(id, error.to_string()),
        })
    }
}

/// The objects that changed rows belong to.
fn roots(overlay: &Overlay<'_>, spec: &EventSpec, changed: &[(u64, Cause)]) -> Roots {
    let mut roots = Roots::new();
    for (ordinal, cause) in changed {
        let mut keys = BTreeSet::new();
        if *cause.table == *spec.table {
            keys.insert(cause.key.clone());
        }
        if !spec.on_delete {
            keys.extend(parents(overlay, &spec.table, &spec.joins, cause));
        }
        for key in keys {
            let touch = roots.entry(key).or_default();
            touch.ordinal = touch.ordinal.max(*ordinal);
            touch.causes.push(cause.clone());
        }
    }
    roots
}

/// What a row is.
enum Evaluated {
    /// No such object.
    Nothing,
    /// An object: canonical id and data.
    Object(String, Value),
    /// It may be one, but could not be worked out: canonical id and reason.
    Fault(String, String),
}

/// What tells an emission from the one before it: the data, and what is wrong with it.
fn digest(data: &Value, fault: Option<&str>) -> String {
    let mut bytes = canonical_bytes(data);
    bytes.extend(fault.into_iter().flat_map(str::bytes));
    sha256_hex(&bytes)
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
