//! Row images: what the ledger knows, and a transaction's changes laid over it.
//!
//! [`Images`] is a cache of the ledger's image table: rows, what was last emitted for the objects they are, and look-ups by
//! column value. An [`Overlay`] applies changes on top without touching it. Whatever an overlay is asked for and the cache
//! does not hold is noted in [`Missing`]; the caller loads that in one batch and runs again. So a slice of any number
//! of transactions costs a handful of round trips, and every answer is as of the right transaction.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::event::{Row, key_text};

/// A row of a table: (table, key).
pub type RowId = (Arc<str>, String);
/// A look-up: (table, column, value as text). An empty column asks for all keys of the table.
pub type IndexId = (Arc<str>, Arc<str>, String);
/// What was last emitted for the object that a row is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Emission {
    /// Type with version.
    pub event_type: String,
    /// Canonical id.
    pub id: String,
    /// SHA-256 of its data, in hexadecimal.
    pub sha256: String,
    /// It was held back: something is wrong with it.
    pub held: bool,
    /// What the source says of fields that it does not own: `field=digest`, separated by blanks.
    pub foreign: String,
}

/// A source has changed fields that it does not own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drift {
    /// Type with version.
    pub event_type: String,
    /// Canonical id.
    pub id: String,
    /// The fields, and what it says of them.
    pub fields: Map<String, Value>,
}

/// What is kept of a row.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Image {
    /// Its mapped columns; `None` when it does not exist (any more).
    pub row: Option<Arc<Row>>,
    /// One for each event type that the row makes.
    pub emitted: Vec<Emission>,
}

impl Image {
    /// True when nothing of the row has to be kept.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.row.is_none() && self.emitted.is_empty()
    }

    /// What was emitted for this event type.
    #[must_use]
    pub fn emission(&self, event_type: &str) -> Option<&Emission> {
        self.emitted.iter().find(|emission| emission.event_type == event_type)
    }
}

/// Row keys by the text of a column.
pub type KeysByValue = HashMap<String, BTreeSet<String>>;

/// Part of what the ledger holds.
#[derive(Debug, Default)]
struct Generation {
    rows: HashMap<RowId, Image>,
    /// Keys by table and column, then by value.
    index: HashMap<(Arc<str>, Arc<str>), KeysByValue>,
    /// Rows and looked-up keys.
    weight: usize,
}

/// What the ledger holds, as far as it was asked for: a young generation and the one before it. What is needed is found in
/// either; when the young one is full the old one is forgotten.
#[derive(Debug, Default)]
pub struct Images {
    young: Generation,
    old: Generation,
    /// Rows as the source has them now, for columns that were not sent; `None` when it has them no more.
    read_back: HashMap<RowId, Option<Row>>,
    /// Columns by which each table is looked up; the empty column, which finds every row, is among them.
    lookups: HashMap<Arc<str>, Vec<Arc<str>>>,
}

/// What has to be loaded before a slice can be worked out.
#[derive(Debug, Default)]
pub struct Missing {
    /// Rows.
    pub rows: HashSet<RowId>,
    /// Look-ups.
    pub index: HashSet<IndexId>,
    /// Rows of which a column was not sent and is in no image: only the source has it.
    pub unsent: HashSet<RowId>,
}

impl Missing {
    /// True when nothing has to be loaded.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.index.is_empty() && self.unsent.is_empty()
    }
}

/// Rows and looked-up keys of a generation: some 4 MB of wide rows (INV-8).
const MAX_GENERATION: usize = 1_500;

impl Images {
    /// An empty cache for tables looked up by these (table, column) pairs.
    #[must_use]
    pub fn new(lookup_columns: &[(Arc<str>, Arc<str>)]) -> Self {
        let mut lookups: HashMap<Arc<str>, Vec<Arc<str>>> = HashMap::new();
        for (table, column) in lookup_columns {
            lookups.entry(table.clone()).or_insert_with(|| vec!["".into()]).push(column.clone());
        }
        Self { lookups, ..Self::default() }
    }

    /// Notes what the ledger holds of a row.
    pub fn insert(&mut self, id: RowId, image: Image) {
        self.young.weight += 1;
        self.young.rows.insert(id, image);
    }

    /// Notes which rows the ledger finds under each of these values.
    pub fn insert_keys(&mut self, table: Arc<str>, column: Arc<str>, found: KeysByValue) {
        self.young.weight += found.values().map(|keys| 1 + keys.len()).sum::<usize>();
        self.young.index.entry((table, column)).or_default().extend(found);
    }

    /// Notes a row as the source has it now, until the next slice.
    pub fn insert_read_back(&mut self, id: RowId, row: Option<Row>) {
        self.read_back.insert(id, row);
    }

    /// True when the old generation should be forgotten.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.young.weight > MAX_GENERATION
    }

    /// Forgets the old generation. Only between slices, and only once everything in it is in the ledger.
    pub fn age(&mut self) {
        self.old = std::mem::take(&mut self.young);
    }

    /// Takes over what a slice changed.
    pub fn absorb(&mut self, changes: OverlayChanges) {
        self.read_back.clear();
        for (id, Changed { image, .. }) in changes.rows {
            let before = self.image(&id).and_then(|image| image.row.clone());
            self.reindex(&id, before.as_deref(), image.row.as_deref());
            self.insert(id, image);
        }
    }

    /// A row as it was before what has not been absorbed yet; `None` when there is none, or it was never asked for.
    #[must_use]
    pub fn row(&self, id: &RowId) -> Option<Arc<Row>> {
        self.image(id)?.row.clone()
    }

    fn image(&self, id: &RowId) -> Option<&Image> {
        self.young.rows.get(id).or_else(|| self.old.rows.get(id))
    }

    /// Keys of the rows whose `column` had this text when it was loaded.
    fn keys_where(&self, table: &Arc<str>, column: &Arc<str>, value: &str) -> Option<&BTreeSet<String>> {
        let id = (table.clone(), column.clone());
        let young = self.young.index.get(&id).and_then(|by_value| by_value.get(value));
        young.or_else(|| self.old.index.get(&id)?.get(value))
    }

    fn reindex(&mut self, id: &RowId, before: Option<&Row>, after: Option<&Row>) {
        let (table, key) = id;
        for ((indexed, column), by_value) in self.young.index.iter_mut().chain(&mut self.old.index) {
            if indexed != table {
                continue;
            }
            if let Some(keys) =
                before.and_then(|row| index_value(row, column)).and_then(|value| by_value.get_mut(&value))
            {
                keys.remove(key);
            }
            if let Some(keys) =
                after.and_then(|row| index_value(row, column)).and_then(|value| by_value.get_mut(&value))
            {
                keys.insert(key.clone());
            }
        }
    }
}

/// The text a row is found under; null is found under nothing, the empty column under the empty text.
fn index_value(row: &Row, column: &str) -> Option<String> {
    if column.is_empty() {
        return Some(String::new());
    }
    row.get(column).filter(|value| !value.is_null()).map(key_text)
}

/// A row after a slice.
#[derive(Debug)]
pub struct Changed {
    /// As it stands now.
    pub image: Image,
    /// The columns changed, not only what was emitted for it.
    pub row: bool,
}

/// What a slice changed.
#[derive(Debug, Default)]
pub struct OverlayChanges {
    rows: HashMap<RowId, Changed>,
    /// Changes that go nowhere.
    pub drifts: Vec<Drift>,
}

impl OverlayChanges {
    /// The rows as they stand after the slice.
    pub fn rows(&self) -> impl Iterator<Item = (&RowId, &Changed)> {
        self.rows.iter()
    }
}

/// Changes laid over [`Images`].
#[derive(Debug)]
pub struct Overlay<'a> {
    base: &'a Images,
    changed: OverlayChanges,
    /// Keys of changed rows by table, column and value; may name rows that have changed again since.
    changed_index: HashMap<IndexId, BTreeSet<String>>,
    missing: RefCell<Missing>,
}

impl<'a> Overlay<'a> {
    /// Nothing changed yet.
    #[must_use]
    pub fn new(base: &'a Images) -> Self {
        Self {
            base,
            changed: OverlayChanges::default(),
            changed_index: HashMap::new(),
            missing: RefCell::default(),
        }
    }

    /// What is kept of a row now; `None` when it has to be loaded first.
    #[must_use]
    pub fn image(&self, table: &Arc<str>, key: &str) -> Option<&Image> {
        let id = (table.clone(), key.to_owned());
        let changed = self.changed.rows.get(&id).map(|changed| &changed.image);
        let found = changed.or_else(|| self.base.image(&id));
        if found.is_none() {
            self.missing.borrow_mut().rows.insert(id);
        }
        found
    }

    /// The row as the source has it, for a column that was not sent; `None` when it has to be read first.
    #[must_use]
    pub fn read_back(&self, table: &Arc<str>, key: &str) -> Option<Option<&Row>> {
        let id = (table.clone(), key.to_owned());
        let found = self.base.read_back.get(&id);
        if found.is_none() {
            self.missing.borrow_mut().unsent.insert(id);
        }
        found.map(Option::as_ref)
    }

    /// The row as it stands now; `None` when it has to be loaded first.
    #[must_use]
    pub fn row(&self, table: &Arc<str>, key: &str) -> Option<Option<Arc<Row>>> {
        self.image(table, key).map(|image| image.row.clone())
    }

    /// Keys of the rows whose `column` has this text now; `None` when they have to be loaded first.
    #[must_use]
    pub fn keys_where(&self, table: &Arc<str>, column: &Arc<str>, value: &str) -> Option<BTreeSet<String>> {
        let id = (table.clone(), column.clone(), value.to_owned());
        let Some(known) = self.base.keys_where(table, column, value) else {
            self.missing.borrow_mut().index.insert(id);
            return None;
        };
        let stands = |key: &&String| match self.changed.rows.get(&(table.clone(), (*key).clone())) {
            None => true,
            Some(changed) => {
                let row = changed.image.row.as_deref();
                row.and_then(|row| index_value(row, column)).as_deref() == Some(value)
            }
        };
        let added = self.changed_index.get(&id);
        let found = known.iter().chain(added.into_iter().flatten());
        let mut keys: BTreeSet<String> = found.filter(stands).cloned().collect();
        if column.is_empty() {
            // Rows of tables that are looked up by nothing are in no index.
            let of_table = self
                .changed
                .rows
                .iter()
                .filter(|((of, _), changed)| of == table && changed.image.row.is_some());
            keys.extend(of_table.map(|((_, key), _)| key.clone()));
        }
        Some(keys)
    }

    /// Sets a row; what was emitted for it stays.
    pub fn set_row(&mut self, table: &Arc<str>, key: &str, row: Option<Arc<Row>>) {
        if let Some(row) = &row {
            for column in self.base.lookups.get(table).into_iter().flatten() {
                if let Some(value) = index_value(row, column) {
                    let id = (table.clone(), column.clone(), value);
                    self.changed_index.entry(id).or_default().insert(key.to_owned());
                }
            }
        }
        let changed = self.change((table.clone(), key.to_owned()));
        changed.image.row = row;
        changed.row = true;
    }

    /// Notes what was emitted for the object that a row is; `None` when it has left.
    pub fn set_emission(
        &mut self,
        table: &Arc<str>,
        key: &str,
        event_type: &str,
        emission: Option<Emission>,
    ) {
        let changed = self.change((table.clone(), key.to_owned()));
        changed.image.emitted.retain(|known| known.event_type != event_type);
        changed.image.emitted.extend(emission);
    }

    /// Notes that a source has changed fields that it does not own.
    pub fn note_drift(&mut self, drift: Drift) {
        self.changed.drifts.push(drift);
    }

    fn change(&mut self, id: RowId) -> &mut Changed {
        let base = self.base;
        self.changed.rows.entry(id).or_insert_with_key(|id| {
            let image = base.image(id).cloned().unwrap_or_default();
            Changed { image, row: false }
        })
    }

    /// What has to be loaded, and what changed.
    #[must_use]
    pub fn finish(self) -> (Missing, OverlayChanges) {
        (self.missing.into_inner(), self.changed)
    }
}
