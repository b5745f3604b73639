//! Transactions as row images without events, while tables are being read. Pure.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::event::{RowState, SentRow, Transaction};
use crate::ledger::batch::{QuietState, QuietWrite};

/// A row whose old key had what was not sent: it has to be read from the source.
pub type Moved = (Arc<str>, String);

/// What was sent of each row, by key; `None` for one that is gone.
type Rows = HashMap<String, Option<SentRow>>;

/// The writes of some transactions, the last state of each row; and the rows that have to be read from the source.
#[must_use]
pub fn quiet_writes(
    source: &str,
    load: i64,
    transactions: &[Transaction],
) -> (Vec<QuietWrite>, HashSet<Moved>) {
    let mut tables: HashMap<Arc<str>, (bool, Rows)> = HashMap::new();
    let mut moved = HashSet::new();
    for transaction in transactions {
        for (table, _) in &transaction.truncated {
            tables.insert(table.clone(), (true, HashMap::new()));
            moved.retain(|(known, _)| known != table);
        }
        for change in &transaction.changes {
            let rows = &mut tables.entry(change.table.clone()).or_default().1;
            let state = match &change.state {
                RowState::Absent => None,
                RowState::Present(sent) => {
                    let mut sent = sent.clone();
                    if let (Some(Some(earlier)), None) = (rows.get(&change.key), &change.moved_from) {
                        sent.fill_from(earlier);
                    }
                    if change.moved_from.is_some() && sent.is_partial() {
                        moved.insert((change.table.clone(), change.key.clone()));
                    }
                    Some(sent)
                }
            };
            rows.insert(change.key.clone(), state);
        }
    }
    let writes = tables.into_iter().map(|(table, (truncated, rows))| QuietWrite {
        source: source.to_owned(),
        relation: table.to_string(),
        load,
        truncated,
        rows: rows.into_iter().map(|(key, sent)| (key, state_of(sent))).collect(),
    });
    (writes.collect(), moved)
}

fn state_of(sent: Option<SentRow>) -> QuietState {
    let Some(sent) = sent else { return QuietState::Gone };
    match sent.whole() {
        Some(row) => QuietState::Whole(row.clone()),
        None => QuietState::Part(sent.sent()),
    }
}
