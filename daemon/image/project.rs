//! From folded row changes to canonical events, over an [`Overlay`]. Pure.
//!
//! A row that changes nothing mapped ends here. A row that does leads to its *roots*: the rows an event is made of,
//! found through the mapping's joins. Each root is worked out once per transaction and compared with what was last
//! emitted for that object; equal data makes no event.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::document::parents;
use super::overlay::Overlay;
use crate::event::{
    CanonicalEvent, Cause, Change, ChangePosition, Cluster, Field, LEFT_OUT, Operation, Row, RowState,
    SentRow, Transaction,
};
use crate::mapping::{EventSpec, SourceMapping};
use serde_json::Value;

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
pub(super) struct Stamp {
    pub(super) position: ChangePosition,
    pub(super) committed_at: jiff::Timestamp,
    pub(super) xid: Option<u32>,
    pub(super) snapshot: bool,
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
            // PostgreSQL gives no transaction the number 0; what was polled has none.
            xid: (!transaction.snapshot && transaction.xid != 0).then_some(transaction.xid),
            snapshot: transaction.snapshot,
        };
        if spec.on_delete {
            return self.departure(overlay, spec, key, touch.causes, &stamp).into_iter().collect();
        }
        self.object(overlay, spec, key, touch.causes, &stamp)
    }

    /// The events of the first load for these root rows, or of a later round in which they are told again at the same place.
    pub fn snapshot(
        &self,
        overlay: &mut Overlay<'_>,
        spec: &EventSpec,
        keys: &[String],
        (consistent_point, round): (crate::event::Lsn, u64),
        taken_at: jiff::Timestamp,
    ) -> Vec<Emitted> {
        let stamp = Stamp {
            position: ChangePosition { commit_lsn: consistent_point, ordinal: round },
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
    let by = change.by.clone();
    let cause = Cause { table: change.table.clone(), key: change.key.clone(), before, after, by };
    Some((change.ordinal, cause))
}

/// The whole row: what was not sent is kept from the image, or read from the source where no image has it. `None` when it
/// has to be read first, or when the row is gone by now: then its own change is on the way.
fn filled(overlay: &Overlay<'_>, change: &Change, sent: &SentRow, known: Option<&Row>) -> Option<Arc<Row>> {
    if let Some(row) = sent.whole() {
        return Some(row.clone());
    }
    let mut filled = Vec::new();
    let mut note = None;
    for (name, field) in sent.iter() {
        let value = match field {
            Field::Value(value) => Some(value),
            // A null is never left out for its size: where the image has one, it was forgotten.
            Field::Unchanged => match known.and_then(|row| row.get(name)).filter(|value| !value.is_null()) {
                Some(value) => Some(value),
                // It was too large when it was sent, and has not changed.
                None if known.is_some_and(|row| row.get(name).is_none() && row.left_out().is_some()) => {
                    note = known;
                    None
                }
                // A column that the source has no more is left out: what reads it is parked.
                None => {
                    let read = overlay.read_back(&change.table, &change.key)??;
                    note = Some(read);
                    read.get(name)
                }
            },
        };
        if let Some(value) = value {
            filled.push((name.clone(), value.clone()));
        }
    }
    let noted = filled.iter().any(|(name, _)| **name == *LEFT_OUT);
    if let Some(why) = note.and_then(Row::left_out).filter(|_| !noted) {
        filled.push((LEFT_OUT.into(), Value::from(why)));
    }
    Some(Arc::new(filled.into_iter().collect()))
}
