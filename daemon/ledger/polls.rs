//! Where the streams of polled systems stand.

use std::collections::HashMap;

use jiff::Timestamp;
use serde_json::Value;
use tokio_postgres::Client;

use super::LedgerError;
use super::statements::{Prepared, parameters};

/// A stream of a source has come this far.
#[derive(Debug, Clone)]
pub struct PollWrite {
    /// Source name.
    pub source: String,
    /// Stream.
    pub stream: String,
    /// What it goes on by.
    pub cursor: Value,
}

/// How a stream stands.
#[derive(Debug, Clone)]
pub struct Polled {
    /// What it goes on by.
    pub cursor: Value,
    /// Since when.
    pub updated_at: Timestamp,
}

/// The streams of a source by name.
pub async fn cursors(client: &Client, source: &str) -> Result<HashMap<String, Polled>, LedgerError> {
    let sql = "select stream, cursor, updated_at from poll where source = $1";
    let rows = client.query(sql, &[&source]).await?;
    let read = |row: &tokio_postgres::Row| -> Result<(String, Polled), LedgerError> {
        Ok((row.try_get(0)?, Polled { cursor: row.try_get(1)?, updated_at: row.try_get(2)? }))
    };
    rows.iter().map(read).collect()
}

pub(super) fn poll(write: PollWrite, out: &mut Vec<Prepared>) {
    out.push((
        "insert into poll (source, stream, cursor) values ($1, $2, $3)
         on conflict (source, stream) do update set cursor = excluded.cursor, updated_at = now()",
        parameters![write.source, write.stream, write.cursor],
    ));
}
