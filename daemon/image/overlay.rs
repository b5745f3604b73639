//! Row images: what the ledger knows, and a transaction's changes laid over it.
//!
//! [`Images`] is a cache of the ledger's image table: rows, look-ups by column value, and what was last emitted for each
//! object. An [`Overlay`] applies changes on top without touching it. Whatever an overlay is asked for and the cache
//! does not hold is noted in [`Missing`]; the caller loads that in one batch and runs again. So a slice of any number
//! of transactions costs a handful of round trips, and every answer is as of the right transaction.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use crate::event::{Row, key_text};

/// A row of a table: (table, key).
pub type RowId = (Arc<str>, String);
/// A look-up: (table, column, value as text). An empty column asks for all keys of the table.
pub type IndexId = (Arc<str>, Arc<str>, String);
/// An object: (event type, canonical id).
pub type DocumentId = (String, String);

/// Row keys by the text of a column.
pub type KeysByValue = HashMap<String, BTreeSet<String>>;

/// What the ledger holds, as far as it was asked for.
#[derive(Debug, Default)]
pub struct Images {
    /// Rows by id; `None` is a row that does not exist.
    pub rows: HashMap<RowId, Option<Arc<Row>>>,
    /// Keys by table and column, then by value.
    pub index: HashMap<(Arc<str>, Arc<str>), KeysByValue>,
    /// SHA-256 of the data last emitted; `None` for an object that was never emitted or is gone.
    pub documents: HashMap<DocumentId, Option<String>>,
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
    /// Objects.
    pub documents: HashSet<DocumentId>,
}

impl Missing {
    /// True when nothing has to be loaded.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.index.is_empty() && self.documents.is_empty()
    }
}

/// Entries after which the cache starts anew: about 200 MB of wide rows (INV-8).
const MAX_CACHED_ROWS: usize = 100_000;

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

    /// Takes over what a committed slice changed.
    pub fn absorb(&mut self, changes: OverlayChanges) {
        if self.rows.len() > MAX_CACHED_ROWS || self.index.len() > MAX_CACHED_ROWS {
            *self = Self { lookups: std::mem::take(&mut self.lookups), ..Self::default() };
            return;
        }
        for (id, after) in changes.rows {
            let before = self.rows.get(&id).and_then(Clone::clone);
            self.reindex(&id, before.as_deref(), after.as_deref());
            self.rows.insert(id, after);
        }
        self.documents.extend(changes.documents);
    }

    /// Keys of the rows whose `column` had this text when it was loaded.
    fn keys_where(&self, table: &Arc<str>, column: &Arc<str>, value: &str) -> Option<&BTreeSet<String>> {
        self.index.get(&(table.clone(), column.clone()))?.get(value)
    }

    fn reindex(&mut self, id: &RowId, before: Option<&Row>, after: Option<&Row>) {
        let (table, key) = id;
        for ((indexed, column), by_value) in &mut self.index {
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

/// What a slice changed, to be absorbed once it is committed.
#[derive(Debug, Default)]
pub struct OverlayChanges {
    rows: HashMap<RowId, Option<Arc<Row>>>,
    documents: HashMap<DocumentId, Option<String>>,
}

impl OverlayChanges {
    /// The rows as they stand after the slice.
    pub fn rows(&self) -> impl Iterator<Item = (&RowId, Option<&Arc<Row>>)> {
        self.rows.iter().map(|(id, row)| (id, row.as_ref()))
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

    /// The row as it stands now; `None` when it has to be loaded first.
    #[must_use]
    pub fn row(&self, table: &Arc<str>, key: &str) -> Option<Option<Arc<Row>>> {
        let id = (table.clone(), key.to_owned());
        let found = self.changed.rows.get(&id).or_else(|| self.base.rows.get(&id));
        if found.is_none() {
            self.missing.borrow_mut().rows.insert(id);
        }
        found.cloned()
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
            Some(row) => row.as_deref().and_then(|row| index_value(row, column)).as_deref() == Some(value),
        };
        let added = self.changed_index.get(&id);
        Some(known.iter().chain(added.into_iter().flatten()).filter(stands).cloned().collect())
    }

    /// What was last emitted for an object; `None` when it has to be loaded first.
    #[must_use]
    pub fn document(&self, id: &DocumentId) -> Option<Option<String>> {
        let found = self.changed.documents.get(id).or_else(|| self.base.documents.get(id));
        if found.is_none() {
            self.missing.borrow_mut().documents.insert(id.clone());
        }
        found.cloned()
    }

    /// Sets a row.
    pub fn set_row(&mut self, table: &Arc<str>, key: &str, row: Option<Arc<Row>>) {
        if let Some(row) = &row {
            for column in self.base.lookups.get(table).into_iter().flatten() {
                if let Some(value) = index_value(row, column) {
                    let id = (table.clone(), column.clone(), value);
                    self.changed_index.entry(id).or_default().insert(key.to_owned());
                }
            }
        }
        self.changed.rows.insert((table.clone(), key.to_owned()), row);
    }

    /// Notes what was emitted for an object.
    pub fn set_document(&mut self, id: DocumentId, sha256: Option<String>) {
        self.changed.documents.insert(id, sha256);
    }

    /// What has to be loaded, and what changed.
    #[must_use]
    pub fn finish(self) -> (Missing, OverlayChanges) {
        (self.missing.into_inner(), self.changed)
    }
}
