//! Rows by COPY, in the text format.
//!
//! Format: <https://www.postgresql.org/docs/current/sql-copy.html#id-1.9.3.55.9.2>.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use serde_json::Value;

use super::value::{Form, ValueError};
use crate::event::{Columns, Row, row_key};
use crate::mapping::TableSpec;

/// A line that is not what COPY writes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CopyError {
    /// Wrong number of columns.
    #[error("table \"{table}\": a copied row has {found} columns instead of {expected}")]
    ColumnCount {
        /// Table.
        table: String,
        /// Columns in the line.
        found: usize,
        /// Columns asked for.
        expected: usize,
    },
    /// A value could not be decoded.
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

/// Cuts a COPY stream into rows.
#[derive(Debug)]
pub struct CopyReader<'a> {
    table: &'a TableSpec,
    columns: Columns,
    types: Vec<Form>,
    pending: BytesMut,
}

impl<'a> CopyReader<'a> {
    /// `types`: forms of the mapped columns, in their order.
    #[must_use]
    pub fn new(table: &'a TableSpec, types: Vec<Form>) -> Self {
        Self { table, columns: table.columns.as_slice().into(), types, pending: BytesMut::new() }
    }

    /// Takes a chunk; gives the rows that it completes, with their keys.
    pub fn push(&mut self, chunk: &Bytes) -> Result<Vec<(String, Row)>, CopyError> {
        self.pending.extend_from_slice(chunk);
        let mut rows = Vec::new();
        while let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
            let line = self.pending.split_to(end + 1);
            rows.push(self.row(line.get(..end).unwrap_or_default())?);
        }
        Ok(rows)
    }

    fn row(&self, line: &[u8]) -> Result<(String, Row), CopyError> {
        let cells: Vec<&[u8]> = line.split(|byte| *byte == b'\t').collect();
        if cells.len() != self.table.columns.len() {
            return Err(CopyError::ColumnCount {
                table: self.table.name.to_string(),
                found: cells.len(),
                expected: self.table.columns.len(),
            });
        }
        let mut values = Vec::with_capacity(cells.len());
        for ((column, form), cell) in self.table.columns.iter().zip(&self.types).zip(cells) {
            values.push(self.value(column, *form, cell)?);
        }
        let place = |column: &Arc<str>| self.columns.iter().position(|name| name == column);
        let key = self.table.key.iter().map(|column| values.get(place(column)?).cloned());
        let key: Vec<Value> = key.map(Option::unwrap_or_default).collect();
        self.table.protect(&self.columns, &mut values);
        Ok((row_key(&key), Row::new(self.columns.clone(), values)))
    }

    fn value(&self, column: &Arc<str>, form: Form, cell: &[u8]) -> Result<Value, CopyError> {
        if cell == b"\\N" {
            return Ok(Value::Null);
        }
        form.decode_text(&unescape(cell)).map_err(|error| CopyError::Value {
            table: self.table.name.to_string(),
            column: column.to_string(),
            error,
        })
    }
}

/// Backslash sequences of the text format. COPY itself writes no octal or hexadecimal ones.
fn unescape(cell: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(cell.len());
    let mut bytes = cell.iter().copied();
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        out.push(match bytes.next() {
            Some(b'b') => 8,
            Some(b'f') => 12,
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b't') => b'\t',
            Some(b'v') => 11,
            Some(other) => other,
            None => b'\\',
        });
    }
    out
}
