//! Rows in memory in the ledger's place: a mapping can be tried out without any database.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;

use crate::event::{Change, Cluster, Columns, Lsn, Row, RowState, Transaction, row_key};
use crate::image::{Emitted, Image, Images, KeysByValue, Missing, Overlay, Projection, RowId, Touch};
use crate::mapping::SourceMapping;

/// The cluster that trials pretend to read.
#[must_use]
pub fn cluster() -> Cluster {
    Cluster { system_identifier: "0".into(), timeline: 1 }
}

/// See the module's text.
#[derive(Debug)]
pub struct Store<'a> {
    mapping: &'a SourceMapping,
    source: String,
    cluster: Cluster,
    rows: BTreeMap<RowId, Image>,
    next_lsn: u64,
}

impl<'a> Store<'a> {
    /// No rows yet.
    #[must_use]
    pub fn new(mapping: &'a SourceMapping, source: &str) -> Self {
        Self { mapping, source: source.to_owned(), cluster: cluster(), rows: BTreeMap::new(), next_lsn: 1 }
    }

    /// A change of one row: `None` deletes it. Columns that are not given keep what they have, or are null. `None` when the
    /// table is not mapped.
    #[must_use]
    pub fn change(
        &self,
        table: &str,
        columns: &serde_json::Map<String, Value>,
        delete: bool,
    ) -> Option<Change> {
        let spec = self.mapping.table_named(table)?;
        let given = |column: &Arc<str>| columns.get(&**column).cloned();
        let key: Vec<Value> = spec.key.iter().map(|column| given(column).unwrap_or_default()).collect();
        let key = row_key(&key);
        if delete {
            return Some(Change::new(&spec.name, &key, 0, RowState::Absent));
        }
        let known = self.rows.get(&(spec.name.clone(), key.clone())).and_then(|image| image.row.clone());
        let kept = |column: &Arc<str>| known.as_ref().and_then(|row| row.get(column).cloned());
        let value = |column| given(column).or_else(|| kept(column)).unwrap_or_default();
        let row = Row::new(Columns::from(spec.columns.as_slice()), spec.columns.iter().map(value).collect());
        Some(Change::new(&spec.name, &key, 0, RowState::Present(row.into())))
    }

    /// The transaction of these changes.
    pub fn transaction(&mut self, changes: Vec<Change>) -> Transaction {
        let lsn = Lsn(self.next_lsn);
        self.next_lsn += 1;
        let count = u64::try_from(changes.len()).unwrap_or_default();
        let numbered = (0..).zip(changes).map(|(ordinal, change)| Change { ordinal, ..change });
        Transaction {
            commit_lsn: lsn,
            end_lsn: lsn,
            committed_at: jiff::Timestamp::UNIX_EPOCH,
            xid: 1,
            changes: numbered.collect(),
            truncated: Vec::new(),
            row_changes: count,
            last_ordinal: count.saturating_sub(1),
            complete: true,
            marks: Vec::new(),
            snapshot: false,
            unreadable: Vec::new(),
        }
    }

    /// Events of a transaction that is worked out at once.
    pub fn commit(&mut self, transaction: &Transaction) -> Vec<Emitted> {
        self.work(|projection, overlay| {
            projection.transaction(overlay, transaction, usize::MAX).unwrap_or_default()
        })
    }

    /// Events of a transaction that comes in slices and is worked out at its end.
    pub fn commit_in_slices(&mut self, transaction: &Transaction, rows: usize) -> Vec<Emitted> {
        let mut spilled: Vec<BTreeMap<String, Touch>> = vec![BTreeMap::new(); self.mapping.events.len()];
        for changes in transaction.changes.chunks(rows.max(1)) {
            let slice = Transaction { changes: changes.to_vec(), ..transaction.clone() };
            let touched = self.work(|projection, overlay| projection.touched(overlay, &slice));
            for (known, touched) in spilled.iter_mut().zip(touched) {
                for (key, touch) in touched {
                    let spilled = known.entry(key).or_default();
                    spilled.ordinal = spilled.ordinal.max(touch.ordinal);
                    spilled.causes.extend(touch.causes);
                }
            }
        }
        let mapping = self.mapping;
        let mut emitted = Vec::new();
        for (spec, roots) in mapping.events.iter().zip(spilled) {
            for (key, touch) in roots {
                emitted.extend(self.work(|projection, overlay| {
                    projection.of_touched(overlay, spec, &key, touch.clone(), transaction)
                }));
            }
        }
        emitted
    }

    /// Everything as if it were read for the first time.
    pub fn from_scratch(&mut self) -> Vec<Emitted> {
        self.rows.values_mut().for_each(|image| image.emitted.clear());
        let mapping = self.mapping;
        let mut emitted = Vec::new();
        for spec in &mapping.events {
            let keys: Vec<String> = self
                .rows
                .keys()
                .filter(|(table, _)| *table == spec.table)
                .map(|(_, key)| key.clone())
                .collect();
            emitted.extend(self.work(|projection, overlay| {
                projection.snapshot(overlay, spec, &keys, (Lsn(0), 0), jiff::Timestamp::UNIX_EPOCH)
            }));
        }
        emitted
    }

    /// Works something out as often as it finds that rows are missing, and keeps what it changed.
    fn work<T>(&mut self, work: impl Fn(&Projection<'_>, &mut Overlay<'_>) -> T) -> T {
        let projection = Projection { mapping: self.mapping, source: &self.source, cluster: &self.cluster };
        let mut images = Images::new(&self.mapping.lookup_columns());
        loop {
            let mut overlay = Overlay::new(&images);
            let done = work(&projection, &mut overlay);
            let (missing, changes) = overlay.finish();
            if missing.is_empty() {
                for (id, changed) in changes.rows() {
                    if changed.image.is_nothing() {
                        self.rows.remove(id);
                    } else {
                        self.rows.insert(id.clone(), changed.image.clone());
                    }
                }
                return done;
            }
            self.answer(missing, &mut images);
        }
    }

    fn answer(&self, missing: Missing, images: &mut Images) {
        for id in missing.rows {
            images.insert(id.clone(), self.rows.get(&id).cloned().unwrap_or_default());
        }
        for (table, column, value) in missing.index {
            let is_under = |row: &Row| {
                column.is_empty()
                    || row.get(&column).is_some_and(|found| {
                        !found.is_null() && row_key(std::slice::from_ref(found)) == value
                    })
            };
            let rows = self.rows.iter().filter(|((of, _), _)| *of == table);
            let keys = rows.filter(|(_, image)| image.row.as_deref().is_some_and(is_under));
            let keys: BTreeSet<String> = keys.map(|((_, key), _)| key.clone()).collect();
            images.insert_keys(table, column, KeysByValue::from_iter([(value, keys)]));
        }
        for id in missing.unsent {
            images.insert_read_back(id, None);
        }
    }
}
