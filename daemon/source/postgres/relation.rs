//! A table as the server describes it, met with what the mapping wants of it.
//!
//! Columns are found by name in each Relation message, never by position or a compiled schema: an ERP's module
//! upgrade adds and drops columns while the stream runs.

use std::sync::Arc;

use serde_json::Value;

use super::value::{ValueError, decode_text};
use super::wire::{RelationMessage, Tuple, TupleValue};
use crate::event::{Field, row_key};
use crate::mapping::TableSpec;

/// Why rows of a table cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RelationError {
    /// The mapping names a column the table no longer has.
    #[error("table \"{table}\" has no column \"{column}\", which the mapping reads")]
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

#[derive(Debug, Clone)]
struct Column {
    name: Arc<str>,
    index: usize,
    type_oid: u32,
}

/// A mapped table as the stream describes it now.
#[derive(Debug, Clone)]
pub struct Relation {
    /// Table name as the mapping has it.
    pub table: Arc<str>,
    width: usize,
    columns: Vec<Column>,
    key: Vec<Column>,
}

impl Relation {
    /// Finds the mapped columns in a relation message.
    pub fn new(spec: &TableSpec, message: &RelationMessage) -> Result<Self, RelationError> {
        let find = |name: &Arc<str>| {
            let position = message.columns.iter().position(|column| column.name == **name);
            match position.and_then(|index| message.columns.get(index).map(|column| (index, column))) {
                Some((index, column)) => {
                    Ok((Column { name: name.clone(), index, type_oid: column.type_oid }, column.key))
                }
                None => Err(RelationError::MissingColumn {
                    table: spec.name.to_string(),
                    column: name.to_string(),
                }),
            }
        };
        let columns =
            spec.columns.iter().map(|name| find(name).map(|(column, _)| column)).collect::<Result<_, _>>()?;
        let mut key = Vec::new();
        for name in &spec.key {
            let (column, in_identity) = find(name)?;
            if !in_identity {
                return Err(RelationError::KeyNotInIdentity {
                    table: spec.name.to_string(),
                    column: name.to_string(),
                });
            }
            key.push(column);
        }
        Ok(Self { table: spec.name.clone(), width: message.columns.len(), columns, key })
    }

    /// The key of the row that `tuple` is an image of.
    pub fn key_of(&self, tuple: &Tuple) -> Result<String, RelationError> {
        self.check_width(tuple)?;
        let mut values = Vec::with_capacity(self.key.len());
        for column in &self.key {
            match self.decode(column, tuple)? {
                Field::Value(value) if !value.is_null() => values.push(value),
                _ => {
                    return Err(RelationError::MissingKey {
                        table: self.table.to_string(),
                        column: column.name.to_string(),
                    });
                }
            }
        }
        Ok(row_key(&values))
    }

    /// The mapped columns of a row image.
    pub fn fields_of(&self, tuple: &Tuple) -> Result<Vec<(Arc<str>, Field)>, RelationError> {
        self.check_width(tuple)?;
        self.columns.iter().map(|column| Ok((column.name.clone(), self.decode(column, tuple)?))).collect()
    }

    fn check_width(&self, tuple: &Tuple) -> Result<(), RelationError> {
        if tuple.len() == self.width {
            return Ok(());
        }
        Err(RelationError::ColumnCount {
            table: self.table.to_string(),
            found: tuple.len(),
            expected: self.width,
        })
    }

    fn decode(&self, column: &Column, tuple: &Tuple) -> Result<Field, RelationError> {
        let failed = |error| RelationError::Value {
            table: self.table.to_string(),
            column: column.name.to_string(),
            error,
        };
        Ok(match tuple.get(column.index) {
            Some(TupleValue::Text(bytes)) => {
                Field::Value(decode_text(column.type_oid, bytes).map_err(failed)?)
            }
            Some(TupleValue::Unchanged) => Field::Unchanged,
            Some(TupleValue::Binary(_)) => return Err(failed(ValueError::WrongForm(column.type_oid))),
            Some(TupleValue::Null) | None => Field::Value(Value::Null),
        })
    }
}
