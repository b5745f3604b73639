//! What the stream brought while a chunk was read. Pure.
//!
//! A chunk is laid into the images at its high watermark. Rows that the stream changed since the low one are newer there;
//! a column that the stream did not send (unchanged TOAST) is the same in the chunk.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use crate::event::{Change, Row, RowState, SentRow, Transaction};
use crate::source::postgres::chunk::Snapshot;

/// Transactions remembered. One that was committed so long ago is visible to everybody, short of synchronous replication
/// that has stalled for as many transactions.
const MAX_REMEMBERED: usize = 100_000;
/// Changed rows remembered for a chunk (INV-8).
const MAX_CHANGED: usize = 20_000;

#[derive(Debug)]
struct Window {
    chunk: u64,
    table: Arc<str>,
    /// Rows changed meanwhile, with what was sent where some of it was not.
    changed: HashMap<String, Option<SentRow>>,
    truncated: bool,
    /// More rows changed than are remembered.
    overflowed: bool,
    /// Transactions that had come when the low watermark did.
    before: u64,
}

/// See the module's text.
#[derive(Debug, Default)]
pub struct Windows {
    open: Vec<Window>,
    /// Ids of the last transactions, and how many there were in all.
    recent: VecDeque<u32>,
    count: u64,
}

/// What is left of a chunk.
#[derive(Debug, Default, PartialEq)]
pub struct Remainder {
    /// Rows that nothing newer is known of.
    pub rows: Vec<(String, Row)>,
    /// Rows of which the stream brought a part; here they are whole.
    pub completed: Vec<(String, Row)>,
}

impl Window {
    fn changed(&mut self, change: &Change) {
        if self.changed.len() >= MAX_CHANGED {
            self.overflowed = true;
            return;
        }
        let earlier = self.changed.get(&change.key);
        let part = match (&change.state, earlier) {
            // What the stream once brought whole, or under another key, is newer in the images than in the chunk.
            (_, Some(None)) => None,
            (RowState::Present(sent), earlier) if sent.is_partial() && change.moved_from.is_none() => {
                let mut sent = sent.clone();
                if let Some(Some(earlier)) = earlier {
                    sent.fill_from(earlier);
                }
                Some(sent)
            }
            _ => None,
        };
        self.changed.insert(change.key.clone(), part);
    }
}

impl Windows {
    /// The low watermark of a chunk.
    pub fn open(&mut self, chunk: u64, table: Arc<str>) {
        let before = self.count;
        self.open.push(Window {
            chunk,
            table,
            changed: HashMap::new(),
            truncated: false,
            overflowed: false,
            before,
        });
    }

    /// A transaction, or a slice of one.
    pub fn note(&mut self, transaction: &Transaction) {
        for window in &mut self.open {
            window.truncated |= transaction.truncated.iter().any(|(table, _)| *table == window.table);
            let table = window.table.clone();
            transaction
                .changes
                .iter()
                .filter(|change| change.table == table)
                .for_each(|change| window.changed(change));
        }
        if transaction.complete {
            self.count += 1;
            self.recent.push_back(transaction.xid);
            if self.recent.len() > MAX_REMEMBERED {
                self.recent.pop_front();
            }
        }
    }

    /// The high watermark of a chunk: what is left of it. `None` when it has to be read again, because its low watermark
    /// was not seen, because it could not see a transaction that had come before, or because too much changed meanwhile.
    pub fn close(&mut self, chunk: u64, snapshot: &Snapshot, rows: Vec<(String, Row)>) -> Option<Remainder> {
        let place = self.open.iter().position(|window| window.chunk == chunk)?;
        let window = self.open.swap_remove(place);
        let since = usize::try_from(self.count - window.before).unwrap_or(usize::MAX);
        let mut before = self.recent.iter().rev().skip(since);
        if window.overflowed || before.any(|xid| !snapshot.sees(*xid)) {
            return None;
        }
        if window.truncated {
            return Some(Remainder::default());
        }
        let mut remainder = Remainder::default();
        for (key, row) in rows {
            match window.changed.get(&key) {
                None => remainder.rows.push((key, row)),
                Some(Some(part)) => remainder.completed.push((key, completed(part, &row))),
                Some(None) => {}
            }
        }
        Some(remainder)
    }

    /// Keys of `table` that the stream brought since any chunk of it was begun are never missing from it.
    #[must_use]
    pub fn present(transaction: &Transaction, table: &str) -> HashSet<String> {
        let of_table = transaction.changes.iter().filter(|change| *change.table == *table);
        let present = of_table.filter(|change| matches!(change.state, RowState::Present(_)));
        present.map(|change| change.key.clone()).collect()
    }
}

/// What was sent, with the rest from the chunk.
fn completed(part: &SentRow, row: &Row) -> Row {
    let sent = part.sent();
    let rest = row.iter().filter(|(column, _)| sent.get(column).is_none());
    rest.chain(sent.iter()).map(|(column, value)| (column.clone(), value.clone())).collect()
}
