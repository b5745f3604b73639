//! Reads a slot to a given point and keeps nothing: how fast this server can be read, and what decoding costs.
//!
//! Nothing is confirmed, so the slot stays where it is. The rows go through the daemon's own reader and assembler.

use std::time::Duration;

use super::connection::{ConnectionError, ReplicationConnection};
use super::slot::start_statement;
use super::stream::{Stream, StreamEnd};
use super::transaction::{Assembler, SliceLimits};
use super::types::Types;
use crate::event::Lsn;
use crate::mapping::SourceMapping;
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

/// Reads `slot` until everything before `until` has come.
pub async fn drain(
    database: &Database,
    slot: &str,
    publication: &str,
    mapping: std::sync::Arc<SourceMapping>,
    until: Lsn,
) -> Result<Drained, DrainError> {
    let client = database.connect("tailwater-drain").await.map_err(|error| DrainError::Catalogue(error.to_string()))?;
    let types = Types::load(&client).await.map_err(|error| DrainError::Catalogue(crate::pg::describe(&error)))?;
    drop(client);
    let connection = ReplicationConnection::open(database).await?;
    let (transport, buffer) =
        connection.start_streaming(&start_statement(slot, publication, Lsn::default())).await?;
    let assembler = Assembler::new(mapping, types, SliceLimits::default(), (Lsn::default(), None));
    let mut stream = Stream::start(transport, buffer, assembler, Lsn::default(), Duration::from_secs(5));
    let mut drained = Drained::default();
    loop {
        let delivered = stream.next().await?;
        for transaction in &delivered.transactions {
            drained.transactions += u64::from(transaction.complete);
            drained.row_changes += transaction.row_changes;
        }
        let reached = delivered.transactions.last().is_some_and(|last| last.complete && last.end_lsn >= until);
        if reached || delivered.idle_at.is_some_and(|at| at >= until) {
            return Ok(drained);
        }
    }
}
