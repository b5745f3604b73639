//! Assembles logical messages into folded transactions. Pure: no socket, no clock.
//!
//! Within a transaction the last image of a row wins: an ORM inserts a row and then updates it several times, and the
//! states between are not facts. A transaction that outgrows [`SliceLimits`] is handed on in slices, each marked with
//! its last ordinal, so memory stays bounded (INV-8) and a re-read skips what is already ledgered.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashTable};
use jiff::Timestamp;

use super::relation::{Relation, RelationError};
use super::types::Types;
use super::wire::pgoutput::RelationColumn;
use super::wire::{DecodeError, LogicalMessage, OldTuple, RelationMessage, Tuple, pgoutput};
use crate::event::{Change, Lsn, RowState, Transaction, Unreadable};
use crate::mapping::SourceMapping;

/// Bytes for which a column counts that was not sent: it is in memory all the same once its row is worked out.
const UNSENT_BYTES: u64 = 8 << 10;

/// Prefix of the logical messages that are ours.
pub const MESSAGE_PREFIX: &str = "tailwater";

/// Microseconds between the Unix epoch and PostgreSQL's (2000-01-01 UTC).
pub const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

/// Why the stream cannot go on. All of these halt it: going on would lose rows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// Malformed bytes.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A value that does not fit its type.
    #[error(transparent)]
    Value(#[from] super::value::ValueError),
    /// A table or row that does not fit the mapping.
    #[error(transparent)]
    Relation(#[from] RelationError),
    /// A row of a table that was never described.
    #[error("a row refers to relation {0}, which the server has not described")]
    UnknownRelation(u32),
    /// A message in the wrong place.
    #[error("{0} outside a transaction, or a transaction inside another")]
    OutOfPlace(&'static str),
    /// A type that was made since the types were read: they are read again.
    #[error("a column of table \"{0}\" has a type that is new; the types are read again")]
    NewType(String),
    /// A time outside what a timestamp can hold.
    #[error("commit time {0} is out of range")]
    BadTime(i64),
}

/// When a slice is handed on inside a transaction.
#[derive(Debug, Clone, Copy)]
pub struct SliceLimits {
    /// Row changes per slice.
    pub rows: u64,
    /// Bytes of decoded messages per slice.
    pub bytes: u64,
}

impl Default for SliceLimits {
    fn default() -> Self {
        Self { rows: 400, bytes: 512 << 10 }
    }
}

/// Where each row stands among the changes of a slice; the keys themselves are the changes'.
#[derive(Debug, Default)]
struct Places {
    hasher: DefaultHashBuilder,
    table: HashTable<usize>,
}

impl Places {
    fn hash(hasher: &DefaultHashBuilder, table: &str, key: &str) -> u64 {
        hasher.hash_one((table, key))
    }

    fn find(&self, changes: &[Change], table: &str, key: &str) -> Option<usize> {
        let is = |index: &usize| {
            changes.get(*index).is_some_and(|known| known.key == key && *known.table == *table)
        };
        self.table.find(Self::hash(&self.hasher, table, key), is).copied()
    }

    /// Notes the change at `index`, whose row has no place yet.
    fn add(&mut self, changes: &[Change], index: usize) {
        let hasher = &self.hasher;
        let hash = |index: &usize| {
            changes.get(*index).map_or(0, |change| Self::hash(hasher, &change.table, &change.key))
        };
        self.table.insert_unique(hash(&index), index, hash);
    }

    fn renew(&mut self, changes: &[Change]) {
        self.table.clear();
        (0..changes.len()).for_each(|index| self.add(changes, index));
    }
}

/// What becomes of the messages of a stream.
pub trait Consumer: Send + 'static {
    /// Takes one pgoutput message; gives a transaction, or a slice of one, when it is whole.
    fn push(&mut self, payload: &[u8]) -> Result<Option<Transaction>, StreamError>;

    /// Bytes that a column of a relation has at the most, and those of a row together; what is larger is not even gathered.
    fn most_bytes(&self, _relation_oid: u32, _column: usize) -> (usize, usize) {
        (usize::MAX, usize::MAX)
    }

    /// True between Begin and Commit: then no keepalive position may be confirmed.
    fn in_transaction(&self) -> bool;
}

#[derive(Debug)]
struct Open {
    transaction: Transaction,
    places: Places,
    next_ordinal: u64,
    bytes: u64,
}

/// Turns messages into transactions; see the module's text.
#[derive(Debug)]
pub struct Assembler {
    mapping: Arc<SourceMapping>,
    types: Types,
    limits: SliceLimits,
    /// `None` for tables that the mapping does not read.
    relations: HashMap<u32, Option<Relation>>,
    open: Option<Open>,
    /// What the ledger already holds: commit LSN and the last ordinal of it, `None` when it holds all of it.
    ledgered: (Lsn, Option<u64>),
}

impl Consumer for Assembler {
    fn push(&mut self, payload: &[u8]) -> Result<Option<Transaction>, StreamError> {
        match pgoutput::decode(payload)? {
            LogicalMessage::Begin { commit_lsn, committed_at_us, xid } => {
                self.begin(commit_lsn, committed_at_us, xid)?;
                return Ok(None);
            }
            LogicalMessage::Commit { end_lsn, .. } => return self.commit(end_lsn).map(Some),
            LogicalMessage::Relation(message) => {
                self.describe(&message)?;
                return Ok(None);
            }
            LogicalMessage::Insert { relation_oid, new } => self.upsert(relation_oid, None, new, true)?,
            LogicalMessage::Update { relation_oid, old, new } => {
                self.upsert(relation_oid, old.as_ref().map(OldTuple::tuple), new, false)?;
            }
            LogicalMessage::Delete { relation_oid, old } => self.delete(relation_oid, old.tuple())?,
            LogicalMessage::Truncate { relation_oids } => self.truncate(&relation_oids)?,
            LogicalMessage::Message { transactional: true, prefix, content } if prefix == MESSAGE_PREFIX => {
                if let (Some(open), Ok(text)) = (&mut self.open, std::str::from_utf8(content)) {
                    open.transaction.marks.push(text.to_owned());
                }
                return Ok(None);
            }
            LogicalMessage::Origin { .. } | LogicalMessage::Type { .. } | LogicalMessage::Message { .. } => {
                return Ok(None);
            }
        }
        Ok(self.cut(payload.len()))
    }

    fn most_bytes(&self, relation_oid: u32, column: usize) -> (usize, usize) {
        match self.relations.get(&relation_oid) {
            Some(Some(relation)) => relation.most_bytes(column),
            // No mapping reads it, or it was never described.
            Some(None) | None => (0, 0),
        }
    }

    fn in_transaction(&self) -> bool {
        self.open.is_some()
    }
}

impl Assembler {
    /// `ledgered`: the commit LSN up to which the ledger has everything, and, for a transaction that it holds in part,
    /// the last ordinal it holds.
    #[must_use]
    pub fn new(
        mapping: Arc<SourceMapping>,
        types: Types,
        limits: SliceLimits,
        ledgered: (Lsn, Option<u64>),
    ) -> Self {
        Self { mapping, types, limits, relations: HashMap::new(), open: None, ledgered }
    }

    fn begin(&mut self, commit_lsn: Lsn, committed_at_us: i64, xid: u32) -> Result<(), StreamError> {
        if self.open.is_some() {
            return Err(StreamError::OutOfPlace("Begin"));
        }
        let transaction = begun(commit_lsn, committed_at_us, xid)?;
        self.open = Some(Open { transaction, places: Places::default(), next_ordinal: 0, bytes: 0 });
        Ok(())
    }

    fn commit(&mut self, end_lsn: Lsn) -> Result<Transaction, StreamError> {
        let mut open = self.open.take().ok_or(StreamError::OutOfPlace("Commit"))?;
        open.transaction.end_lsn = end_lsn;
        open.transaction.complete = true;
        Ok(open.transaction)
    }

    fn describe(&mut self, message: &RelationMessage) -> Result<(), StreamError> {
        let is_new = |column: &RelationColumn| !self.types.knows(column.type_oid);
        let reads = self.mapping.table(&message.schema, &message.name);
        let reads =
            |name: &str| reads.is_some_and(|table| table.columns.iter().any(|column| **column == *name));
        if message.columns.iter().any(|column| reads(&column.name) && is_new(column)) {
            return Err(StreamError::NewType(message.name.clone()));
        }
        let relation = match self.mapping.table(&message.schema, &message.name) {
            Some(spec) => Some(Relation::new(spec, message, &self.types)?),
            None => None,
        };
        for column in relation.iter().flat_map(|relation| &relation.vanished) {
            tracing::error!(
                table = %message.name, %column,
                "a mapped column is gone; events that read it are parked, all others go on"
            );
        }
        self.relations.insert(message.oid, relation);
        Ok(())
    }

    fn relation(&self, oid: u32) -> Result<Option<&Relation>, StreamError> {
        self.relations.get(&oid).map(Option::as_ref).ok_or(StreamError::UnknownRelation(oid))
    }

    fn upsert(
        &mut self,
        oid: u32,
        old: Option<Tuple<'_>>,
        new: Tuple<'_>,
        inserted: bool,
    ) -> Result<(), StreamError> {
        let Some(ordinal) = self.count()? else { return Ok(()) };
        let Some(relation) = self.relation(oid)? else { return Ok(()) };
        let (key, mut row, by) = match relation.row(new) {
            Err(RelationError::Unreadable(row)) => return self.unreadable(row),
            read => read?,
        };
        let old_key = match old.map(|tuple| relation.key_of(tuple)).transpose() {
            Err(RelationError::Unreadable(row)) => {
                self.unreadable(row)?;
                None
            }
            read => read?.filter(|old_key| *old_key != key),
        };
        let table = self.relation(oid)?.map(|relation| relation.table.clone()).unwrap_or_default();
        if let Some(old_key) = &old_key {
            // What was not sent belongs to the row under its old key, perhaps as this very transaction left it.
            if let Some(RowState::Present(earlier)) = self.state_of(&table, old_key) {
                row.fill_from(earlier);
            }
            self.record(Change::new(&table, old_key, ordinal, RowState::Absent))?;
        }
        // It may have moved before.
        let moved_from = old_key.map(|old_key| self.origin_of(&table, &old_key).unwrap_or(old_key));
        let unsent = row.unsent();
        if let Some(open) = self.open.as_mut().filter(|_| unsent > 0) {
            open.bytes += (unsent as u64).saturating_mul(UNSENT_BYTES);
        }
        let change = Change::new(&table, &key, ordinal, RowState::Present(row));
        self.record(Change { moved_from, inserted, by, ..change })
    }

    fn delete(&mut self, oid: u32, old: Tuple<'_>) -> Result<(), StreamError> {
        let Some(ordinal) = self.count()? else { return Ok(()) };
        let Some(relation) = self.relation(oid)? else { return Ok(()) };
        let table = relation.table.clone();
        let key = match relation.key_of(old) {
            Err(RelationError::Unreadable(row)) => return self.unreadable(row),
            read => read?,
        };
        self.record(Change::new(&table, &key, ordinal, RowState::Absent))
    }

    fn truncate(&mut self, oids: &[u32]) -> Result<(), StreamError> {
        for oid in oids {
            let table = self.relation(*oid)?.map(|relation| relation.table.clone());
            let Some(ordinal) = self.count()? else { continue };
            let (Some(table), Some(open)) = (table, self.open.as_mut()) else { continue };
            open.transaction.changes.retain(|change| change.table != table);
            open.transaction.truncated.push((table, ordinal));
            open.places.renew(&open.transaction.changes);
        }
        Ok(())
    }

    /// Notes a row that nobody can go by; the others go on.
    fn unreadable(&mut self, row: Unreadable) -> Result<(), StreamError> {
        let open = self.open.as_mut().ok_or(StreamError::OutOfPlace("a row"))?;
        open.transaction.unreadable.push(row);
        Ok(())
    }

    /// Takes the next ordinal; `None` when the ledger already holds that change.
    fn count(&mut self) -> Result<Option<u64>, StreamError> {
        let open = self.open.as_mut().ok_or(StreamError::OutOfPlace("a row"))?;
        let ordinal = open.next_ordinal;
        open.next_ordinal += 1;
        open.transaction.row_changes += 1;
        let (ledgered_lsn, last_ordinal) = self.ledgered;
        // While what is held is read again, the position must not move back.
        let held_to =
            last_ordinal.filter(|_| open.transaction.commit_lsn == ledgered_lsn).unwrap_or_default();
        open.transaction.last_ordinal = ordinal.max(held_to);
        let held = open.transaction.commit_lsn < ledgered_lsn
            || (open.transaction.commit_lsn == ledgered_lsn
                && last_ordinal.is_none_or(|last| ordinal <= last));
        Ok((!held).then_some(ordinal))
    }

    /// The key that the row at `key` had before this transaction, if it moved there.
    fn origin_of(&self, table: &str, key: &str) -> Option<String> {
        let open = self.open.as_ref()?;
        let index = open.places.find(&open.transaction.changes, table, key)?;
        open.transaction.changes.get(index)?.moved_from.clone()
    }

    fn state_of(&self, table: &str, key: &str) -> Option<&RowState> {
        let open = self.open.as_ref()?;
        let index = open.places.find(&open.transaction.changes, table, key)?;
        open.transaction.changes.get(index).map(|change| &change.state)
    }

    /// The last change of a row wins; that it was inserted here stays true of it.
    fn record(&mut self, change: Change) -> Result<(), StreamError> {
        let open = self.open.as_mut().ok_or(StreamError::OutOfPlace("a row"))?;
        let changes = &mut open.transaction.changes;
        let place = open.places.find(changes, &change.table, &change.key);
        match place.and_then(|index| changes.get_mut(index)) {
            Some(earlier) => {
                earlier.state = fold(std::mem::replace(&mut earlier.state, RowState::Absent), change.state);
                earlier.ordinal = change.ordinal;
                earlier.by = change.by;
                earlier.moved_from = change.moved_from.or(earlier.moved_from.take());
            }
            None => {
                changes.push(change);
                open.places.add(changes, changes.len() - 1);
            }
        }
        Ok(())
    }

    /// Hands on a slice once the open transaction is large enough.
    fn cut(&mut self, size: usize) -> Option<Transaction> {
        let open = self.open.as_mut()?;
        open.bytes += u64::try_from(size).unwrap_or(u64::MAX);
        if open.transaction.row_changes < self.limits.rows && open.bytes < self.limits.bytes {
            return None;
        }
        open.bytes = 0;
        open.places.table.clear();
        let head = &open.transaction;
        let rest = Transaction {
            changes: Vec::new(),
            truncated: Vec::new(),
            marks: Vec::new(),
            unreadable: Vec::new(),
            row_changes: 0,
            ..*head
        };
        Some(std::mem::replace(&mut open.transaction, rest))
    }
}

/// A transaction that has just begun.
pub fn begun(commit_lsn: Lsn, committed_at_us: i64, xid: u32) -> Result<Transaction, StreamError> {
    let unix_us = committed_at_us.checked_add(POSTGRES_EPOCH_US);
    let committed_at = unix_us.and_then(|us| Timestamp::from_microsecond(us).ok());
    Ok(Transaction {
        commit_lsn,
        end_lsn: commit_lsn,
        committed_at: committed_at.ok_or(StreamError::BadTime(committed_at_us))?,
        xid,
        changes: Vec::new(),
        truncated: Vec::new(),
        row_changes: 0,
        last_ordinal: 0,
        complete: false,
        marks: Vec::new(),
        snapshot: false,
        unreadable: Vec::new(),
    })
}

/// The later state wins; a column it does not carry keeps what the earlier one said.
fn fold(earlier: RowState, later: RowState) -> RowState {
    match (earlier, later) {
        (RowState::Present(old), RowState::Present(mut new)) => {
            new.fill_from(&old);
            RowState::Present(new)
        }
        (_, later) => later,
    }
}
