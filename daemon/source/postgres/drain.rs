//! Reads a slot to a given point and keeps nothing: how fast this server can be read, and what decoding costs.
//!
//! Nothing is confirmed, so the slot stays where it is. The bytes go through the daemon's own reader and decoder; every
//! column of every row is cut out and checked against its type.

use std::collections::HashMap;
use std::time::Duration;

use super::connection::{ConnectionError, ReplicationConnection};
use super::slot::start_statement;
use super::stream::{Stream, StreamEnd};
use super::transaction::{Consumer, StreamError, begun};
use super::types::Types;
use super::value::Form;
use super::wire::{LogicalMessage, Tuple, TupleValue, pgoutput};
use crate::event::{Lsn, Transaction};
use crate::pg::Database;

/// What was read.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Transactions.
    pub transactions: u64,
    /// Row changes.
    pub row_changes: u64,
}

/// Why it ended early.
#[derive(Debug, thiserror::Error)]
pub enum DrainError {
    /// No stream.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The stream broke.
    #[error(transparent)]
    End(#[from] StreamEnd),
    /// The catalogue could not be read.
    #[error("{0}")]
    Catalogue(String),
}

/// Counts and checks.
struct Checker {
    types: Types,
    /// Forms of the columns of each relation.
    relations: HashMap<u32, Vec<Form>>,
    open: Option<Transaction>,
}

impl Checker {
    fn row(&mut self, relation_oid: u32, tuple: Tuple<'_>) -> Result<(), StreamError> {
        let forms = self.relations.get(&relation_oid).ok_or(StreamError::UnknownRelation(relation_oid))?;
        for (form, value) in forms.iter().zip(tuple.values()) {
            match value {
                TupleValue::Text(bytes) => form.check_text(bytes)?,
                TupleValue::Binary(bytes) => form.decode_binary(bytes).map(|_| ())?,
                TupleValue::Null | TupleValue::Unchanged | TupleValue::LeftOut(_) => {}
            }
        }
        if let Some(open) = &mut self.open {
            open.row_changes += 1;
        }
        Ok(())
    }
}

impl Consumer for Checker {
    fn push(&mut self, payload: &[u8]) -> Result<Option<Transaction>, StreamError> {
        match pgoutput::decode(payload)? {
            LogicalMessage::Begin { commit_lsn, committed_at_us, xid } => {
                self.open = Some(begun(commit_lsn, committed_at_us, xid)?);
            }
            LogicalMessage::Commit { end_lsn, .. } => {
                let open = self.open.take().ok_or(StreamError::OutOfPlace("Commit"))?;
                return Ok(Some(Transaction { end_lsn, complete: true, ..open }));
            }
            LogicalMessage::Relation(message) => {
                let forms = message.columns.iter().map(|column| self.types.form(column.type_oid));
                self.relations.insert(message.oid, forms.collect());
            }
            LogicalMessage::Insert { relation_oid, new }
            | LogicalMessage::Update { relation_oid, new, .. } => {
                self.row(relation_oid, new)?;
            }
            LogicalMessage::Delete { relation_oid, old } => self.row(relation_oid, old.tuple())?,
            _ => {}
        }
        Ok(None)
    }

    fn in_transaction(&self) -> bool {
        self.open.is_some()
    }
}

/// Reads `slot` until everything before `until` has come.
pub async fn drain(
    database: &Database,
    slot: &str,
    publication: &str,
    until: Lsn,
) -> Result<Drained, DrainError> {
    let client = database
        .connect("tailwater-drain")
        .await
        .map_err(|error| DrainError::Catalogue(error.to_string()))?;
    let types =
        Types::load(&client).await.map_err(|error| DrainError::Catalogue(crate::pg::describe(&error)))?;
    drop(client);
    let connection = ReplicationConnection::open(database).await?;
    let streaming =
        connection.start_streaming(&start_statement(slot, publication, Lsn::default(), false)).await?;
    let checker = Checker { types, relations: HashMap::new(), open: None };
    let mut stream = Stream::start(streaming, checker, Lsn::default(), Duration::from_secs(5));
    let mut drained = Drained::default();
    loop {
        let delivered = stream.next().await?;
        for transaction in &delivered.transactions {
            drained.transactions += u64::from(transaction.complete);
            drained.row_changes += transaction.row_changes;
        }
        let reached =
            delivered.transactions.last().is_some_and(|last| last.complete && last.end_lsn >= until);
        if reached || delivered.idle_at.is_some_and(|at| at >= until) {
            return Ok(drained);
        }
    }
}
