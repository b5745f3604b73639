//! The newest events of a source, for what has to be known of them after a start.

use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;
use tokio_postgres::Client;

use super::LedgerError;
use crate::event::Operation;

/// Entries looked at in one go.
const PAGE: i64 = 5_000;

/// Entries looked at in all: behind a backlog, a window of the commits' time may be long in the ledger.
const MAX_ENTRIES: i64 = 100_000;

/// An event, as far as it matters here.
#[derive(Debug)]
pub struct RecentEvent {
    /// Type with version.
    pub event_type: String,
    /// Canonical id.
    pub id: String,
    /// What happened.
    pub operation: Operation,
    /// When the source committed it.
    pub committed_at: Timestamp,
    /// True when it came from a first load.
    pub snapshot: bool,
    /// Of its data.
    pub status: Option<Value>,
    /// Of its data.
    pub active: Option<Value>,
}

#[derive(Deserialize)]
struct Body {
    #[serde(default)]
    action: Option<String>,
    #[serde(default)]
    data: Option<Data>,
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    op: Option<String>,
    #[serde(default)]
    source: Value,
    #[serde(default, rename = "type")]
    event_type: Option<String>,
}

#[derive(Deserialize)]
struct Data {
    status: Option<Value>,
    active: Option<Value>,
}

/// Events of `source` committed within `window` before its newest one, back to the last time that a person released or discarded
/// what was held.
pub async fn events(
    client: &Client,
    source: &str,
    window: Duration,
) -> Result<Vec<RecentEvent>, LedgerError> {
    let mut found: Vec<RecentEvent> = Vec::new();
    let (mut before, mut looked_at) = (i64::MAX, 0);
    let sql = "select seq, recorded_at, body from entry where seq < $1 order by seq desc limit $2";
    while looked_at < MAX_ENTRIES {
        let rows = client.query(sql, &[&before, &PAGE]).await?;
        for row in &rows {
            before = row.try_get(0)?;
            let recorded_at: Timestamp = row.try_get(1)?;
            let start = found.first().and_then(|newest| newest.committed_at.checked_sub(window).ok());
            // It was recorded after it was committed.
            if start.is_some_and(|start| recorded_at < start) {
                return Ok(found);
            }
            let Ok(body) = serde_json::from_slice::<Body>(row.try_get(2)?) else { continue };
            if body.action.as_deref() == Some("release") {
                return Ok(found);
            }
            let event = read(body, source);
            found.extend(event.filter(|event| start.is_none_or(|start| event.committed_at >= start)));
        }
        looked_at += PAGE;
        if rows.is_empty() {
            break;
        }
    }
    Ok(found)
}

fn read(body: Body, source: &str) -> Option<RecentEvent> {
    if body.source.get("name")?.as_str()? != source {
        return None;
    }
    let committed_at = body.source.get("committed_at")?.as_str()?.parse().ok()?;
    let snapshot = body.source.get("snapshot").and_then(Value::as_bool).unwrap_or_default();
    let data = body.data.unwrap_or(Data { status: None, active: None });
    Some(RecentEvent {
        event_type: body.event_type?,
        id: body.id?,
        operation: Operation::parse(&body.op?)?,
        committed_at,
        snapshot,
        status: data.status,
        active: data.active,
    })
}
