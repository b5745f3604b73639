//! The newest events of a source, for what has to be known of them after a start.

use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;
use tokio_postgres::Client;

use super::LedgerError;
use crate::event::Operation;

/// Entries read at once: they come with everything that is in them.
const PAGE: i64 = 200;

/// Events looked at in all. Behind a backlog, a window of the commits' time may be long in the ledger.
const MAX_EVENTS: usize = 50_000;

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
    action: Option<String>,
    target: Option<Value>,
    object: Option<Value>,
    data: Option<Data>,
    id: Option<String>,
    op: Option<String>,
    #[serde(default)]
    source: Value,
    #[serde(rename = "type")]
    event_type: Option<String>,
}

#[derive(Deserialize)]
struct Data {
    status: Option<Value>,
    active: Option<Value>,
}

/// Events of `source` committed within `window` before its newest one, back to the last time that a person released or discarded
/// all that was held; newest first.
pub async fn events(
    client: &Client,
    source: &str,
    window: Duration,
) -> Result<Vec<RecentEvent>, LedgerError> {
    let mut found: Vec<RecentEvent> = Vec::new();
    let mut before = i64::MAX;
    let sql = "select seq, recorded_at, body from entry where seq < $1 and kind in ('event', 'operator')
               order by seq desc limit $2";
    let sql = client.prepare(sql).await?;
    while found.len() < MAX_EVENTS {
        let rows = client.query(&sql, &[&before, &PAGE]).await?;
        if rows.is_empty() {
            break;
        }
        for row in &rows {
            before = row.try_get(0)?;
            let recorded_at: Timestamp = row.try_get(1)?;
            let start = found.first().and_then(|newest| newest.committed_at.checked_sub(window).ok());
            // It was recorded after it was committed.
            if start.is_some_and(|start| recorded_at < start) {
                return Ok(found);
            }
            let Ok(body) = serde_json::from_slice::<Body>(row.try_get(2)?) else { continue };
            if body.action.as_deref() == Some("release") && body.target.is_none() && body.object.is_none() {
                return Ok(found);
            }
            let event = read(body, source);
            found.extend(event.filter(|event| start.is_none_or(|start| event.committed_at >= start)));
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
