//! Source-native row changes, after the fold: at most one per row and transaction.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::position::{ChangePosition, Lsn};
use super::row::SentRow;

/// What a transaction left of a row.
#[derive(Debug, Clone, PartialEq)]
pub enum RowState {
    /// The row stands with these columns.
    Present(SentRow),
    /// The row is gone.
    Absent,
}

/// One row change of a folded transaction.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Table name as the mapping has it.
    pub table: Arc<str>,
    /// Key of the row, see [`row_key`].
    pub key: String,
    /// Ordinal of the last change to this row in the transaction.
    pub ordinal: u64,
    /// What the transaction left.
    pub state: RowState,
    /// The transaction inserted the row: there is no earlier image of it.
    pub inserted: bool,
    /// Who wrote the row, as its own column says (`author` of the mapping); nobody can be told of a row that is gone.
    pub by: Option<Box<str>>,
    /// The key this row had before, when the transaction changed it: columns not sent are to be found there.
    pub moved_from: Option<String>,
}

impl Change {
    /// A change of a row that kept its key.
    #[must_use]
    pub fn new(table: &Arc<str>, key: &str, ordinal: u64, state: RowState) -> Self {
        Self {
            table: table.clone(),
            key: key.to_owned(),
            ordinal,
            state,
            inserted: false,
            by: None,
            moved_from: None,
        }
    }
}

/// A committed transaction, or one slice of a large one (INV-8).
#[derive(Debug, Clone, PartialEq)]
pub struct Transaction {
    /// LSN of the commit record.
    pub commit_lsn: Lsn,
    /// Just after the commit record: what is confirmed once all of it is ledgered.
    pub end_lsn: Lsn,
    /// When it was committed.
    pub committed_at: Timestamp,
    /// Transaction id at the source.
    pub xid: u32,
    /// Folded changes, in the order of their ordinals.
    pub changes: Vec<Change>,
    /// Tables emptied by TRUNCATE, each with the ordinal of the message, before `changes` apply.
    pub truncated: Vec<(Arc<str>, u64)>,
    /// Row changes before the fold.
    pub row_changes: u64,
    /// Ordinal of the last row change contained.
    pub last_ordinal: u64,
    /// False for all but the last slice of a large transaction.
    pub complete: bool,
    /// Messages of ours (`pg_logical_emit_message`), which it carries instead of changes.
    pub marks: Vec<String>,
    /// Its rows were read, not streamed.
    pub snapshot: bool,
    /// Rows that cannot be told from others: their keys are too long, or no keys.
    pub unreadable: Vec<Unreadable>,
}

/// A row whose key nobody can go by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// Table name as the mapping has it.
    pub table: Arc<str>,
    /// Its key, as far as it can be shown.
    pub key: String,
    /// What is wrong with it.
    pub reason: String,
    /// Bytes of the key.
    pub bytes: usize,
    /// It is gone.
    pub gone: bool,
}

impl Transaction {
    /// Position of a change in this transaction.
    #[must_use]
    pub fn position(&self, ordinal: u64) -> ChangePosition {
        ChangePosition { commit_lsn: self.commit_lsn, ordinal }
    }
}

/// The key of a row as text: the value itself for one column, a JSON array of texts for several.
#[must_use]
pub fn row_key(values: &[Value]) -> String {
    match values {
        [single] => key_text(single),
        several => {
            let texts = several.iter().map(|value| Value::String(key_text(value))).collect();
            Value::Array(texts).to_string()
        }
    }
}

/// A single key value as text.
#[must_use]
pub fn key_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
