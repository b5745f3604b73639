//! A table as the server describes it, met with what the mapping wants of it.
//!
//! Columns are found by name in each Relation message, never by position or a compiled schema: an ERP's module
//! upgrade adds and drops columns while the stream runs.

use std::sync::Arc;

use serde_json::Value;

use super::types::Types;
use super::value::{Form, ValueError};
use super::wire::{RelationMessage, Tuple, TupleValue};
use crate::bounds::{ID_BYTES, VALUES_IN_ROW, is_id, shown, size};
use crate::event::{Columns, Row, SentRow, Unreadable, key_text, row_key};
use crate::mapping::TableSpec;

/// Why rows of a table cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RelationError {
    /// The key of the mapping names a column the table no longer has.
    #[error("table \"{table}\" has no column \"{column}\", which is the mapping's key")]
    MissingColumn {
        /// Table.
        table: String,
        /// Column.
        column: String,
    },
    /// The replica identity does not carry the mapping's key.
    #[error("the replica identity of table \"{table}\" does not contain key column \"{column}\"")]
    KeyNotInIdentity {
        /// Table.
        table: String,
        /// Column.
        column: String,
    },
    /// A tuple has another number of columns than its relation message.
    #[error("a row of table \"{table}\" has {found} columns where its description has {expected}")]
    ColumnCount {
        /// Table.
        table: String,
        /// Columns in the tuple.
        found: usize,
        /// Columns in the description.
        expected: usize,
    },
    /// A key column was not sent.
    #[error("a row of table \"{table}\" came without a value in key column \"{column}\"")]
    MissingKey {
        /// Table.
        table: String,
        /// Column.
        column: String,
    },
    /// Its key cannot be decoded, or is too long to be one: the row is parked (INV-14).
    #[error("table \"{}\", row {}: {}", .0.table, .0.key, .0.reason)]
    Unreadable(Unreadable),
}

/// What is wanted of one column of the table.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    /// Position among the columns sent.
    index: usize,
    /// Place among the columns kept.
    place: usize,
    form: Form,
    /// Bytes at the most.
    most: usize,
}

/// What is wrong with a value that is left out of its row.
#[derive(Debug)]
struct Flaw {
    place: usize,
    bytes: u64,
    error: Option<ValueError>,
    /// The beginning of what was sent.
    start: Vec<u8>,
}

/// Values of the columns, null where they were not sent; the places of those; and what is left out.
type Values = (Vec<Value>, Vec<usize>, Vec<Flaw>);

/// A mapped table as the stream describes it now.
#[derive(Debug, Clone)]
pub struct Relation {
    /// Table name as the mapping has it.
    pub table: Arc<str>,
    /// Mapped columns that the table no longer has. Rows come without them, so that whatever reads them is parked.
    pub vanished: Vec<Arc<str>>,
    width: usize,
    columns: Columns,
    /// In the order in which they are sent.
    wanted: Vec<Wanted>,
    /// Places of the key among `columns`, in the order of the mapping.
    key: Vec<usize>,
    /// Place of the column that says who wrote the row; behind the last of `columns` where it is not one of these.
    author: Option<usize>,
    /// What nobody shall see of it, if there is anything.
    protects: Option<Arc<TableSpec>>,
    /// Bytes of all its values together.
    most: usize,
}

/// A row: its key, its mapped columns, who wrote it.
pub type ReadRow = (String, SentRow, Option<Box<str>>);

impl Relation {
    /// Finds the mapped columns in a relation message.
    pub fn new(spec: &TableSpec, message: &RelationMessage, types: &Types) -> Result<Self, RelationError> {
        let sent = |name: &Arc<str>| message.columns.iter().position(|column| *column.name == **name);
        let (columns, vanished): (Vec<_>, Vec<_>) =
            spec.columns.iter().cloned().partition(|name| sent(name).is_some());
        let of = |(place, name)| {
            let index = sent(name)?;
            let form = types.form(message.columns.get(index)?.type_oid);
            Some(Wanted { index, place, form, most: spec.most_bytes(name) })
        };
        let mut wanted: Vec<Wanted> = columns.iter().enumerate().filter_map(of).collect();
        let author = author_place(spec, &columns).filter(|(_, name)| sent(name).is_some());
        if let Some((place, name)) = author.filter(|(place, _)| *place == columns.len()) {
            wanted.extend(of((place, name)));
        }
        wanted.sort_by_key(|wanted| wanted.index);
        let mut key = Vec::with_capacity(spec.key.len());
        for name in &spec.key {
            let place = columns.iter().position(|column| column == name);
            let sent = message.columns.iter().find(|column| column.name == **name);
            let (table, column) = (spec.name.to_string(), name.to_string());
            match (place, sent) {
                (Some(place), Some(sent)) if sent.key => key.push(place),
                (Some(_), _) => return Err(RelationError::KeyNotInIdentity { table, column }),
                (None, _) => return Err(RelationError::MissingColumn { table, column }),
            }
        }
        let most = spec.bounds.value_bytes.saturating_mul(VALUES_IN_ROW);
        let (table, width) = (spec.name.clone(), message.columns.len());
        let author = author.map(|(place, _)| place);
        let protects = spec.protects().then(|| Arc::new(spec.clone()));
        Ok(Self { table, vanished, width, columns: columns.into(), wanted, key, author, protects, most })
    }

    /// Key, mapped columns and author of a row image. Values that are too large, or no values of their type, are left out of it.
    pub fn row(&self, tuple: Tuple<'_>) -> Result<ReadRow, RelationError> {
        let (mut values, unsent, flaws) = self.values(tuple)?;
        let key = self.checked_key(&values, &flaws, false)?;
        let author = self.author.and_then(|place| values.get(place)).filter(|author| !author.is_null());
        let author = author.map(key_text).filter(|author| is_id(author)).map(Into::into);
        values.truncate(self.columns.len());
        if let Some(spec) = &self.protects {
            spec.protect(&self.columns, &mut values);
        }
        let row = SentRow::new(Row::new(self.columns.clone(), values), unsent);
        if flaws.is_empty() {
            return Ok((key, row, author));
        }
        let why: Vec<String> = flaws.iter().map(|flaw| self.described(flaw)).collect();
        let why = left_out(&self.table, &key, &why);
        let places: Vec<usize> = flaws.iter().map(|flaw| flaw.place).collect();
        Ok((key, row.without(&places, &why), author))
    }

    /// Bytes that the column sent at this position has at the most, and all that are kept together.
    #[must_use]
    pub fn most_bytes(&self, index: usize) -> (usize, usize) {
        let wanted = self.wanted.iter().find(|wanted| wanted.index == index);
        (wanted.map_or(0, |wanted| wanted.most), self.most)
    }

    /// The key of the row that `tuple` is an old image of; its other columns may be missing.
    pub fn key_of(&self, tuple: Tuple<'_>) -> Result<String, RelationError> {
        let (values, _, flaws) = self.values(tuple)?;
        self.checked_key(&values, &flaws, true)
    }

    fn checked_key(&self, values: &[Value], flaws: &[Flaw], gone: bool) -> Result<String, RelationError> {
        let unreadable = |key: String, reason: String, bytes: usize| {
            let table = self.table.clone();
            Err(RelationError::Unreadable(Unreadable { table, key, reason, bytes, gone }))
        };
        if let Some(flaw) = flaws.iter().find(|flaw| self.key.contains(&flaw.place)) {
            let start = String::from_utf8_lossy(&flaw.start).replace('\0', "");
            let bytes = usize::try_from(flaw.bytes).unwrap_or(usize::MAX);
            return unreadable(format!("{start}…"), format!("its key: {}", self.described(flaw)), bytes);
        }
        let key = self.key(values)?;
        if !is_id(&key) {
            return unreadable(shown(&key), too_long(key.len()), key.len());
        }
        Ok(key)
    }

    fn described(&self, flaw: &Flaw) -> String {
        let column = self.columns.get(flaw.place).map(|name| &**name).unwrap_or_default();
        match &flaw.error {
            Some(error) => format!("column \"{column}\": {error}"),
            None => {
                let own = self.wanted.iter().find(|wanted| wanted.place == flaw.place);
                let own = own.map(|wanted| wanted.most).filter(|most| flaw.bytes > *most as u64);
                too_large(column, flaw.bytes, own.unwrap_or(self.most))
            }
        }
    }

    fn key(&self, values: &[Value]) -> Result<String, RelationError> {
        // A key column that was not sent is null here.
        let value = |place: &usize| match values.get(*place) {
            Some(value) if !value.is_null() => Ok(value),
            _ => Err(RelationError::MissingKey {
                table: self.table.to_string(),
                column: self.columns.get(*place).map(ToString::to_string).unwrap_or_default(),
            }),
        };
        match self.key.as_slice() {
            [single] => value(single).map(key_text),
            several => {
                let values: Vec<Value> =
                    several.iter().map(|place| value(place).cloned()).collect::<Result<_, _>>()?;
                Ok(row_key(&values))
            }
        }
    }

    /// What a tuple says of the columns. Who wrote the row is no part of it.
    fn values(&self, tuple: Tuple<'_>) -> Result<Values, RelationError> {
        if tuple.len() != self.width {
            return Err(RelationError::ColumnCount {
                table: self.table.to_string(),
                found: tuple.len(),
                expected: self.width,
            });
        }
        let mut values = vec![Value::Null; self.columns.len() + 1];
        let (mut unsent, mut flaws, mut total) = (Vec::new(), Vec::new(), 0_usize);
        let mut sent = tuple.values();
        let mut next = 0;
        for Wanted { index, place, form, most } in &self.wanted {
            let sent = sent.nth(index - next).unwrap_or(TupleValue::Null);
            next = index + 1;
            let is_part = *place < self.columns.len();
            let (TupleValue::Text(raw) | TupleValue::Binary(raw)) = sent else {
                match sent {
                    TupleValue::Unchanged if is_part => unsent.push(*place),
                    TupleValue::LeftOut(bytes) if is_part => {
                        flaws.push(Flaw { place: *place, bytes, error: None, start: Vec::new() });
                    }
                    _ => {}
                }
                continue;
            };
            let too_large = raw.len() > *most || total + raw.len() > self.most;
            total += if too_large { 0 } else { raw.len() };
            let decoded = match sent {
                _ if too_large => Err(None),
                TupleValue::Binary(raw) => form.decode_binary(raw).map_err(Some),
                _ => form.decode_text(raw).map_err(Some),
            };
            match (decoded, values.get_mut(*place)) {
                (Ok(value), Some(slot)) => *slot = value,
                (Err(error), _) if is_part => {
                    let start = raw.get(..raw.len().min(KEY_START)).unwrap_or_default().to_vec();
                    flaws.push(Flaw { place: *place, bytes: raw.len() as u64, error, start });
                }
                _ => {}
            }
        }
        Ok((values, unsent, flaws))
    }
}

/// Bytes of an unreadable key that are shown.
const KEY_START: usize = 40;

/// Of which row columns are left out, and why.
#[must_use]
pub(super) fn left_out(table: &str, key: &str, why: &[String]) -> String {
    format!("table \"{table}\", row {}: {}", shown(key), why.join("; "))
}

/// That a value is larger than what is kept.
#[must_use]
pub(super) fn too_large(column: &str, bytes: u64, most: usize) -> String {
    let bytes = size(usize::try_from(bytes).unwrap_or(usize::MAX));
    format!("column \"{column}\" has {bytes} and is left out; {} is the most", size(most))
}

/// That a key is no id.
#[must_use]
pub(super) fn too_long(bytes: usize) -> String {
    format!("its key has {}; {ID_BYTES} bytes is the most", size(bytes))
}

/// Where the author of a row stands among its values, and the column's name.
fn author_place<'a>(spec: &'a TableSpec, columns: &[Arc<str>]) -> Option<(usize, &'a Arc<str>)> {
    let name = spec.author.as_ref()?;
    Some((columns.iter().position(|column| column == name).unwrap_or(columns.len()), name))
}
