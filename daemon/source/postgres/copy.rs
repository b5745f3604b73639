//! Rows by COPY, in the text format.
//!
//! Format: <https://www.postgresql.org/docs/current/sql-copy.html#id-1.9.3.55.9.2>.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use serde_json::Value;

use super::relation::{left_out, too_large, too_long};
use super::value::Form;
use crate::bounds::{is_id, shown};
use crate::event::{Columns, Row, Unreadable, key_text, row_key};
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
}

/// Rows that were copied.
#[derive(Debug, Default)]
pub struct Rows {
    /// Rows with their keys.
    pub rows: Vec<(String, Row)>,
    /// Rows that nobody can go by.
    pub unreadable: Vec<Unreadable>,
    /// How many were copied, readable or not.
    pub seen: usize,
    /// Key columns of the last one.
    pub last: Option<Vec<String>>,
    /// Bytes of their lines.
    pub bytes: usize,
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
    /// `types`: forms of the mapped columns, in their order. Behind them each line has a cell that says which of them are left out
    /// for their size: `column|bytes`, divided by line breaks.
    #[must_use]
    pub fn new(table: &'a TableSpec, types: Vec<Form>) -> Self {
        Self { table, columns: table.columns.as_slice().into(), types, pending: BytesMut::new() }
    }

    /// Takes a chunk; adds the rows that it completes to `rows`.
    pub fn push(&mut self, chunk: &Bytes, rows: &mut Rows) -> Result<(), CopyError> {
        let mut from = self.pending.len();
        self.pending.extend_from_slice(chunk);
        while let Some(end) = self.pending.iter().skip(from).position(|byte| *byte == b'\n') {
            let line = self.pending.split_to(from + end + 1);
            from = 0;
            self.row(line.get(..line.len() - 1).unwrap_or_default(), rows)?;
        }
        Ok(())
    }

    fn row(&self, line: &[u8], rows: &mut Rows) -> Result<(), CopyError> {
        let cells: Vec<&[u8]> = line.split(|byte| *byte == b'\t').collect();
        let expected = self.table.columns.len() + 1;
        if cells.len() != expected {
            let table = self.table.name.to_string();
            return Err(CopyError::ColumnCount { table, found: cells.len(), expected });
        }
        let (mut values, mut places, mut why) = (Vec::with_capacity(cells.len()), Vec::new(), Vec::new());
        let sizes = cells.last().map(|cell| String::from_utf8_lossy(&unescape(cell)).into_owned());
        for said in sizes.iter().flat_map(|sizes| sizes.split('\n')).filter(|said| !said.is_empty()) {
            let Some((name, bytes)) = said.rsplit_once('|') else { continue };
            let Some(place) = self.columns.iter().position(|column| **column == *name) else { continue };
            let most = self.columns.get(place).map_or(0, |column| self.table.most_bytes(column));
            places.push(place);
            why.push(too_large(name, bytes.parse().unwrap_or_default(), most));
        }
        for (place, (form, cell)) in self.types.iter().zip(cells).enumerate() {
            let value = if cell == b"\\N" { Ok(Value::Null) } else { form.decode_text(&unescape(cell)) };
            values.push(value.unwrap_or_else(|error| {
                let column = self.columns.get(place).map(|name| &**name).unwrap_or_default();
                places.push(place);
                why.push(format!("column \"{column}\": {error}"));
                Value::Null
            }));
        }
        let place = |column: &Arc<str>| self.columns.iter().position(|name| name == column);
        let key = self.table.key.iter().map(|column| values.get(place(column)?).cloned());
        let key: Vec<Value> = key.map(Option::unwrap_or_default).collect();
        rows.seen += 1;
        rows.bytes += line.len();
        rows.last = Some(key.iter().map(key_text).collect());
        let key = row_key(&key);
        if !is_id(&key) {
            let (reason, bytes) = (too_long(key.len()), key.len());
            let (table, key) = (self.table.name.clone(), shown(&key));
            rows.unreadable.push(Unreadable { table, key, reason, bytes, gone: false });
            return Ok(());
        }
        self.table.protect(&self.columns, &mut values);
        let row = Row::new(self.columns.clone(), values);
        let row = match why.as_slice() {
            [] => row,
            why => row.without(&places, &left_out(&self.table.name, &key, why)),
        };
        rows.rows.push((key, row));
        Ok(())
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
