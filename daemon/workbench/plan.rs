//! `tailwater plan`: what is owed, as the next run would send it: how much, to whom, how long it will take, and the first
//! requests. The ledger is only read.

use std::fmt::Write as _;
use std::time::Duration;

use tokio_postgres::Client;

use super::rehearsal::{printed, shown};
use crate::config::{Config, TargetConfig};
use crate::dispatch::target::lift;
use crate::event::Priority;
use crate::ledger::LedgerError;
use crate::ledger::command::{self, Held};
use crate::ledger::erasures::Erasures;
use crate::ledger::outbox::{Outbox, SHARDS, Wanted, open_deliveries};

/// Describes what is owed, to all or `only` one; `first`: requests shown for each target.
pub async fn plan(
    config: &Config,
    client: &Client,
    only: Option<&str>,
    first: i64,
    values: bool,
) -> Result<String, LedgerError> {
    let outbox = Outbox::prepare(client, &config.master, &Erasures::default()).await?;
    let shards: Vec<i16> = (0..SHARDS).collect();
    let held = command::held(client).await?;
    let mut out = String::new();
    for target in config.targets.iter().filter(|target| only.is_none_or(|only| only == target.name)) {
        let owed = open_deliveries(client, &target.name).await?;
        let total: i64 = owed.iter().map(|owed| owed.lanes).sum();
        let mode = if target.shadow { ", shadow: nothing is sent" } else { "" };
        let _ = writeln!(out, "{} ({}{mode}): {}", target.name, target.quota_text(), summary(target, total));
        for owed in &owed {
            let _ = writeln!(
                out,
                "  {} {}: {} objects, {} deliveries",
                owed.operation, owed.object, owed.lanes, owed.deliveries
            );
        }
        for Held { object, operation, reason, count, .. } in
            held.iter().filter(|held| held.target == target.name)
        {
            let _ = writeln!(out, "  held: {operation} {object}: {count} deliveries: {reason}");
        }
        let objects: Vec<&str> = owed.iter().map(|owed| owed.object.as_str()).collect();
        let wanted = Wanted {
            target: &target.name,
            objects: &objects,
            shards: &shards,
            classes: &Priority::ALL,
            most: usize::try_from(first).unwrap_or_default(),
            busy: &[],
        };
        for mut due in outbox.due(client, &wanted).await? {
            let id = due.lane.canonical_id.clone();
            if let Err(error) = lift(&config.routes, &config.upcasters, &target.connector.system, &mut due) {
                let _ = writeln!(out, "  {id}: parked: {error}");
                continue;
            }
            if let Some(shown) = shown(&target.connector, &due) {
                let (line, body) = printed(&shown, values);
                let _ = writeln!(out, "  {id}: {line} {body}");
            }
        }
    }
    Ok(out)
}

/// States of one object are coalesced, so each object is one request.
fn summary(target: &TargetConfig, requests: i64) -> String {
    if requests == 0 {
        return "nothing is owed".to_owned();
    }
    let slowest = target.rates().into_iter().map(|rate| rate.bucket().1).max();
    let interval = slowest.unwrap_or_default();
    let count = u32::try_from(requests).unwrap_or(u32::MAX);
    let requests = if requests == 1 { "1 request".to_owned() } else { format!("{requests} requests") };
    format!("{requests}, about {}", spoken(interval.saturating_mul(count)))
}

fn spoken(time: Duration) -> String {
    match time.as_secs() {
        0 => "a second".to_owned(),
        seconds @ 1..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3_600),
    }
}
