//! `tailwater status`: read from the ledger and the ERP, so that it also works while the daemon is down.

use std::fmt::Write as _;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::progress::progress;
use crate::config::Config;
use crate::ledger::loads::current;
use crate::ledger::parked::{self, ParkedSelection};
use crate::ledger::position::Position;
use crate::ledger::{LedgerError, is_served, polls, status};

/// Deliveries listed that wait for a person.
const HELD_LISTED: i64 = 20;

/// Gathers everything as JSON.
pub async fn gather(config: &Config, now: Timestamp) -> Result<Value, LedgerError> {
    let client = config.ledger.connect("tailwater-status").await?;
    let figures = status::figures(&client).await?;
    let mut sources = Vec::new();
    for source in &config.sources {
        let position = Position::load(&client, &source.name).await?;
        sources.push(json!({
            "name": source.name,
            "phase": position.as_ref().map_or("new", |position| position.phase.as_str()),
            "ledgered_to": position.as_ref().map(|position| position.end_lsn.to_string()),
            "last_commit_at": position.as_ref().and_then(|position| position.committed_at).map(|at| at.to_string()),
            "slot": slot(source).await,
            "load": load(&client, &source.name).await?,
        }));
    }
    for source in &config.polls {
        let cursors = polls::cursors(&client, &source.name).await?;
        let streams = cursors.iter().filter(|(stream, _)| !stream.starts_with("list "));
        let streams = streams.map(|(stream, polled)| (stream.clone(), stream_of(polled, now)));
        sources.push(json!({
            "name": source.name, "target": source.target, "phase": if cursors.is_empty() { "new" } else { "polling" },
            "streams": streams.collect::<serde_json::Map<_, _>>(),
            "load": load(&client, &source.name).await?,
        }));
    }
    let states = status::target_states(&client).await?;
    let targets = config.targets.iter().map(|target| {
        let figures = figures.targets.get(&target.name).cloned().unwrap_or_default();
        let oldest: Option<f64> = figures.oldest_open_at.map(|at| now.duration_since(at).as_secs_f64());
        json!({
            "name": target.name, "quota": target.quota_text(), "deliveries": figures.deliveries,
            "oldest_open_seconds": oldest,
            "paused": paused(&states, &target.name),
        })
    });
    let targets: Vec<Value> = targets.collect();
    let held = status::held(&client, HELD_LISTED).await?;
    let held: Vec<Value> = held
        .into_iter()
        .map(|(id, target, canonical_id, state, reason)| {
            json!({"delivery": id, "target": target, "id": canonical_id, "state": state, "reason": reason})
        })
        .collect();
    Ok(json!({
        "daemon": if is_served(&client).await? { "running" } else { "not running" },
        "sources": sources,
        "targets": targets,
        "ledger": {"last_seq": figures.last_seq, "entries": figures.entries},
        "held": held,
        "parked": parked::parked(&client, &ParkedSelection::default(), HELD_LISTED).await?,
    }))
}

/// How far a stream has been read, and how long ago that was.
fn stream_of(polled: &polls::Polled, now: Timestamp) -> Value {
    let read_to = polled.cursor.get("high_ms").and_then(Value::as_i64);
    let read_to = read_to.and_then(|ms| Timestamp::from_millisecond(ms).ok()).map(|at| at.to_string());
    json!({"read_to": read_to, "seconds_ago": now.duration_since(polled.updated_at).as_secs()})
}

/// Why a process that lives does not speak to a target.
fn paused(states: &[status::TargetState], target: &str) -> Value {
    let of_target = states.iter().filter(|state| state.target == target);
    let why = |state: &status::TargetState| {
        let text = |key: &str| state.state.get(key).and_then(Value::as_str);
        let until = |until: Option<&str>| until.map(|until| format!(" until {until}")).unwrap_or_default();
        if let Some(why) = text("closed") {
            return Some(format!("{why}{}", until(text("closed_until"))));
        }
        let limits = state.state.get("limits").and_then(Value::as_array).into_iter().flatten();
        let mut pauses = limits
            .filter_map(|limit| Some((limit.get("name")?.as_str()?, limit.get("paused_until")?.as_str()?)));
        pauses.next().map(|(name, at)| format!("limit {name}{}", until(Some(at))))
    };
    of_target.filter_map(why).next().map_or(Value::Null, Value::String)
}

/// The load that is going on or asked for.
async fn load(client: &tokio_postgres::Client, source: &str) -> Result<Value, LedgerError> {
    let Some((load, _)) = current(client, source, false).await? else { return Ok(Value::Null) };
    let found = progress(client, load.id).await?;
    Ok(found.map_or(Value::Null, |progress| {
        json!({
            "load": load.id, "kind": load.kind.as_str(), "state": progress.state, "rows": progress.rows,
            "estimated_rows": progress.estimated, "seconds_left": progress.seconds_left, "line": progress.line,
        })
    }))
}

/// What the slot holds back on the ERP.
async fn slot(source: &crate::config::SourceConfig) -> Value {
    let client = match source.database.connect("tailwater-status").await {
        Ok(client) => client,
        Err(error) => return json!({"error": error.to_string()}),
    };
    // Later versions know more of a slot: it is asked for by name, and null where there is no such column.
    let sql = "select active, wal_status, safe_wal_size,
                      pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint,
                      pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::bigint,
                      to_jsonb(s) ->> 'inactive_since', to_jsonb(s) ->> 'invalidation_reason'
               from pg_replication_slots s where slot_name = $1";
    match client.query_opt(sql, &[&source.slot]).await {
        Ok(Some(row)) => json!({
            "active": row.try_get::<_, bool>(0).ok(),
            "wal_status": row.try_get::<_, Option<String>>(1).ok().flatten(),
            "safe_wal_bytes": row.try_get::<_, Option<i64>>(2).ok().flatten(),
            "retained_wal_bytes": row.try_get::<_, Option<i64>>(3).ok().flatten(),
            "unconfirmed_bytes": row.try_get::<_, Option<i64>>(4).ok().flatten(),
            "inactive_since": row.try_get::<_, Option<String>>(5).ok().flatten(),
            "invalidation_reason": row.try_get::<_, Option<String>>(6).ok().flatten(),
        }),
        Ok(None) => json!({"error": "the slot does not exist"}),
        Err(error) => json!({"error": crate::pg::describe(&error)}),
    }
}

/// The same for people.
#[must_use]
pub fn render(status: &Value) -> String {
    let mut out = String::new();
    let list = |key: &str| status.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    let _ = writeln!(out, "daemon   {}", text(status, "daemon"));
    for source in list("sources") {
        let _ = writeln!(out, "{}", source_line(&source));
    }
    for source in list("sources") {
        if let Some(load) = source.get("load").filter(|load| load.is_object()) {
            let _ = writeln!(out, "load     {}: {}", text(&source, "name"), text(load, "line"));
        }
    }
    for target in list("targets") {
        let _ = writeln!(
            out,
            "target   {} ({}): {}, oldest open {} s{}",
            text(&target, "name"),
            text(&target, "quota"),
            text(&target, "deliveries"),
            text(&target, "oldest_open_seconds"),
            target
                .get("paused")
                .and_then(Value::as_str)
                .map(|why| format!("; paused: {why}"))
                .unwrap_or_default(),
        );
    }
    let ledger = status.get("ledger").cloned().unwrap_or_default();
    let _ = writeln!(out, "ledger   {} entries: {}", text(&ledger, "last_seq"), text(&ledger, "entries"));
    for held in list("held") {
        let _ = writeln!(
            out,
            "held     delivery {} to {} for {}: {}: {}",
            text(&held, "delivery"),
            text(&held, "target"),
            text(&held, "id"),
            text(&held, "state"),
            text(&held, "reason"),
        );
    }
    for parked in list("parked") {
        let _ = writeln!(
            out,
            "parked   {} {} {} of {}, since {}: {}",
            text(&parked, "kind"),
            text(&parked, "place"),
            text(&parked, "key"),
            text(&parked, "source"),
            text(&parked, "parked_at"),
            text(&parked, "reason"),
        );
    }
    out
}

fn text(value: &Value, key: &str) -> String {
    match value.get(key) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => "-".to_owned(),
        Some(other) => other.to_string(),
    }
}

/// A source that is polled, by its streams; one that is tailed, by its slot.
fn source_line(source: &Value) -> String {
    let (name, phase) = (text(source, "name"), text(source, "phase"));
    if let Some(streams) = source.get("streams").and_then(Value::as_object) {
        let line = |(name, stream): (&String, &Value)| {
            format!("{name} to {}, {} s ago", text(stream, "read_to"), text(stream, "seconds_ago"))
        };
        return format!(
            "source   {name}: {phase}; {}",
            streams.iter().map(line).collect::<Vec<_>>().join("; ")
        );
    }
    let slot = source.get("slot").cloned().unwrap_or_default();
    format!(
        "source   {name}: {phase}, ledgered to {}, last commit {}; slot {}, retains {} bytes",
        text(source, "ledgered_to"),
        text(source, "last_commit_at"),
        if slot.get("error").is_some() { text(&slot, "error") } else { text(&slot, "wal_status") },
        text(&slot, "retained_wal_bytes"),
    )
}
