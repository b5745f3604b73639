//! Figures for `tailwater status` and the demo: what is owed, what was done.

use std::collections::BTreeMap;

use jiff::Timestamp;
use tokio_postgres::Client;

use super::LedgerError;

/// Deliveries of one target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TargetFigures {
    /// Count by state.
    pub deliveries: BTreeMap<String, i64>,
    /// When the oldest open one was recorded.
    pub oldest_open_at: Option<Timestamp>,
}

/// The ledger as a whole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LedgerFigures {
    /// Entries by kind.
    pub entries: BTreeMap<String, i64>,
    /// Last entry.
    pub last_seq: i64,
    /// Deliveries by target.
    pub targets: BTreeMap<String, TargetFigures>,
}

/// Reads the figures.
pub async fn figures(client: &Client) -> Result<LedgerFigures, LedgerError> {
    let mut figures = LedgerFigures::default();
    for row in client.query("select kind, count(*), max(seq) from entry group by kind", &[]).await? {
        figures.entries.insert(row.try_get(0)?, row.try_get(1)?);
        figures.last_seq = figures.last_seq.max(row.try_get(2)?);
    }
    let sql = "select target, state, count(*), min(created_at) filter (where state in ('pending', 'sending'))
               from delivery group by target, state";
    for row in client.query(sql, &[]).await? {
        let target = figures.targets.entry(row.try_get(0)?).or_default();
        target.deliveries.insert(row.try_get(1)?, row.try_get(2)?);
        let oldest: Option<Timestamp> = row.try_get(3)?;
        target.oldest_open_at = [target.oldest_open_at, oldest].into_iter().flatten().min();
    }
    Ok(figures)
}

/// Deliveries that wait for a person: parked and rejected ones, newest first.
pub async fn held(
    client: &Client,
    limit: i64,
) -> Result<Vec<(i64, String, String, String, String)>, LedgerError> {
    let sql = "select id, target, canonical_id, state, coalesce(reason, '') from delivery
               where aside and state in ('parked', 'rejected') order by id desc limit $1";
    let rows = client.query(sql, &[&limit]).await?;
    let read = |row: &tokio_postgres::Row| -> Result<_, LedgerError> {
        Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?, row.try_get(4)?))
    };
    rows.iter().map(read).collect()
}

/// How a target looks to a process that lives.
#[derive(Debug, Clone)]
pub struct TargetState {
    /// Target.
    pub target: String,
    /// Process.
    pub epoch: i64,
    /// Rates in force, pauses.
    pub state: serde_json::Value,
}

/// See [`TargetState`].
pub async fn target_states(client: &Client) -> Result<Vec<TargetState>, LedgerError> {
    let sql = "select s.target, s.epoch, s.state from target_state s join process p using (epoch)
               where p.ended_at is null and p.expires_at > now() order by 1, 2";
    let rows = client.query(sql, &[]).await?;
    let state = |row: &tokio_postgres::Row| {
        Ok(TargetState { target: row.try_get(0)?, epoch: row.try_get(1)?, state: row.try_get(2)? })
    };
    rows.iter().map(state).collect()
}
