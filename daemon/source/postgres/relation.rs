//! A table as the server describes it, met with what the mapping wants of it.
//!
//! Columns are found by name in each Relation message, never by position or a compiled schema: an ERP's module
//! upgrade adds and drops columns while the stream runs.

use std::sync::Arc;

use serde_json::Value;

use super::types::Types;
use super::value::{Form, ValueError};
use super::wire::{RelationMessage, Tuple, TupleValue};
use crate::event::{Columns, Row, SentRow, key_text, row_key};
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
    /// A value could not be decoded (INV-7: the stream stops, nothing is skipped).
    #[error("table \"{table}\", column \"{column}\": {error}")]
    Value {
        /// Table.
        table: String,
        /// Column.
        column: String,
        /// Why.
        error: ValueError,
    },
}

/// What is wanted of one column of the table.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    /// Position among the columns sent.
    index: usize,
    /// Place among the columns kept.
    place: usize,
    form: Form,
}

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
            Some(Wanted { index, place, form })
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
        let (table, width) = (spec.name.clone(), message.columns.len());
        let author = author.map(|(place, _)| place);
        let protects = spec.protects().then(|| Arc::new(spec.clone()));
        Ok(Self { table, vanished, width, columns: columns.into(), wanted, key, author, protects })
    }

    /// Key, mapped columns and author of a row image.
    pub fn row(&self, tuple: Tuple<'_>) -> Result<ReadRow, RelationError> {
        let (mut values, unsent) = self.values(tuple)?;
        let key = self.key(&values)?;
        let author = self.author.and_then(|place| values.get(place)).filter(|author| !author.is_null());
        let author = author.map(|author| key_text(author).into());
        values.truncate(self.columns.len());
        if let Some(spec) = &self.protects {
            spec.protect(&self.columns, &mut values);
        }
        Ok((key, SentRow::new(Row::new(self.columns.clone(), values), unsent), author))
    }

    /// The key of the row that `tuple` is an old image of; its other columns may be missing.
    pub fn key_of(&self, tuple: Tuple<'_>) -> Result<String, RelationError> {
        let (values, _) = self.values(tuple)?;
        self.key(&values)
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

    /// Values of the columns, null where they were not sent, and the places of those.
    fn values(&self, tuple: Tuple<'_>) -> Result<(Vec<Value>, Vec<usize>), RelationError> {
        if tuple.len() != self.width {
            return Err(RelationError::ColumnCount {
                table: self.table.to_string(),
                found: tuple.len(),
                expected: self.width,
            });
        }
        let mut values = vec![Value::Null; self.columns.len() + 1];
        let mut unsent = Vec::new();
        let mut sent = tuple.values();
        let mut next = 0;
        for Wanted { index, place, form } in &self.wanted {
            let value = match sent.nth(index - next).unwrap_or(TupleValue::Null) {
                TupleValue::Null => Ok(Value::Null),
                TupleValue::Unchanged => {
                    // Who wrote it is no part of the row.
                    unsent.extend(Some(*place).filter(|place| *place < self.columns.len()));
                    Ok(Value::Null)
                }
                TupleValue::Text(bytes) => form.decode_text(bytes),
                TupleValue::Binary(bytes) => form.decode_binary(bytes),
            };
            next = index + 1;
            if let Some(slot) = values.get_mut(*place) {
                *slot = value.map_err(|error| self.failed(*place, error))?;
            }
        }
        Ok((values, unsent))
    }

    fn failed(&self, place: usize, error: ValueError) -> RelationError {
        RelationError::Value {
            table: self.table.to_string(),
            column: self.columns.get(place).map(ToString::to_string).unwrap_or_default(),
            error,
        }
    }
}

/// Where the author of a row stands among its values, and the column's name.
fn author_place<'a>(spec: &'a TableSpec, columns: &[Arc<str>]) -> Option<(usize, &'a Arc<str>)> {
    let name = spec.author.as_ref()?;
    Some((columns.iter().position(|column| column == name).unwrap_or(columns.len()), name))
}
