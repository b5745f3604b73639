//! `tailwater explain TABLE KEY`: from a row, through its look-ups and its events, to the exact requests. Nothing is sent, and
//! nothing is written: the ledger is only read.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;

use serde_json::Value;
use tokio_postgres::Client;

use super::redact::redacted;
use super::rehearsal::{printed, shown};
use crate::config::{Config, SourceConfig, TargetConfig};
use crate::event::{CanonicalEvent, Cause, Lsn};
use crate::image::{Images, Missing, Overlay, Part, Projection};
use crate::ledger::batch::Lane;
use crate::ledger::command::changes;
use crate::ledger::outbox::Due;
use crate::ledger::standing;
use crate::ledger::{LedgerError, images};
use crate::mapping::EventSpec;
use crate::mapping::route::Route;
use crate::trial::store::cluster as trial_cluster;

/// Objects shown; a row may be part of very many.
const MOST: usize = 20;
/// Rounds of loading, as for the daemon's own slices.
const MAX_ROUNDS: usize = 16;

/// What is asked.
pub struct Question<'a> {
    /// Table.
    pub table: &'a str,
    /// Key of the row.
    pub key: &'a str,
    /// Print personal values, too.
    pub values: bool,
}

/// An object that a row is, or is part of.
struct Answer {
    event: CanonicalEvent,
    fault: Option<String>,
    parts: Vec<Part>,
}

/// Explains a row of a source; `None` when the ledger knows no such row.
pub async fn explain(
    config: &Config,
    source: &SourceConfig,
    client: &Client,
    question: &Question<'_>,
) -> Result<Option<String>, LedgerError> {
    let Some(table) = source.mapping.table_named(question.table).map(|table| table.name.clone()) else {
        return Ok(None);
    };
    let mut seen = Images::new(&source.mapping.lookup_columns());
    let cluster = trial_cluster();
    let projection = Projection { mapping: &source.mapping, source: &source.name, cluster: &cluster };
    let mut answers = Vec::new();
    let mut found = false;
    for _ in 0..MAX_ROUNDS {
        let overlay = Overlay::new(&seen);
        let row = overlay.row(&table, question.key).flatten();
        found = row.is_some();
        let cause = Cause {
            table: table.clone(),
            key: question.key.to_owned(),
            before: row.clone(),
            after: row,
            by: None,
        };
        answers = source
            .mapping
            .events
            .iter()
            .flat_map(|spec| of_event(&projection, &overlay, spec, &cause))
            .collect();
        let (missing, _): (Missing, _) = overlay.finish();
        if missing.is_empty() {
            break;
        }
        images::load(client, &source.name, missing, &mut seen).await?;
    }
    if !found {
        return Ok(None);
    }
    let mut out = format!("{} {}: part of {} objects\n", question.table, question.key, answers.len());
    let moved = changes(client).await?.moved_waves;
    for answer in answers.iter().take(MOST) {
        describe(config, client, (&source.name, answer), &moved, question.values, &mut out).await?;
    }
    if answers.len() > MOST {
        let _ = writeln!(out, "\n… and {} more", answers.len() - MOST);
    }
    Ok(Some(out))
}

fn of_event(
    projection: &Projection<'_>,
    overlay: &Overlay<'_>,
    spec: &Arc<EventSpec>,
    cause: &Cause,
) -> Vec<Answer> {
    let keys: BTreeSet<String> = projection.objects_of(overlay, spec, cause);
    let explained = keys.iter().filter_map(|key| projection.explained(overlay, spec, key, Lsn(0)));
    explained.map(|(emitted, parts)| Answer { event: emitted.event, fault: emitted.fault, parts }).collect()
}

async fn describe(
    config: &Config,
    client: &Client,
    (source, answer): (&str, &Answer),
    moved: &BTreeSet<String>,
    values: bool,
    out: &mut String,
) -> Result<(), LedgerError> {
    let event = &answer.event;
    let _ = writeln!(out, "\n{} {}", event.event_type, event.id);
    for part in &answer.parts {
        let _ = writeln!(
            out,
            "  {}{}: {} {}",
            "  ".repeat(part.depth),
            part.alias,
            part.table,
            part.keys.join(", ")
        );
    }
    if let Some(fault) = &answer.fault {
        let _ = writeln!(out, "  HELD BACK: {fault}");
    }
    let data = if values { event.data.clone() } else { redacted(&event.data) };
    let _ = writeln!(out, "  data {}", indented(&data));
    let reaches = |route: &&Route| config.upcasters.reaches(&event.event_type, &route.event_type);
    let routes: Vec<_> = config.routes.iter().filter(reaches).collect();
    if routes.is_empty() {
        out.push_str("  no route: it stands in the ledger and goes nowhere\n");
    }
    for route in routes {
        let named = |name: &String| route.target.as_ref().is_none_or(|only| only == name);
        let targets = config.targets.iter().filter(|target| target.connector.system == route.system);
        // What a system says is never told to itself.
        let is_other = |target: &&TargetConfig| target.twin.as_ref().is_none_or(|(twin, _)| twin != source);
        for target in targets.filter(|target| named(&target.name)).filter(is_other) {
            let lane = Lane {
                target: target.name.clone(),
                object: route.object.clone(),
                canonical_id: route.lane_of(event).unwrap_or_else(|| event.id.clone()),
            };
            let owed = images::owed(client, std::slice::from_ref(&lane)).await?.contains(&lane);
            let _ = write!(out, "  -> {} {}: ", lane.target, lane.object);
            let lifted = config.upcasters.event(event, &route.event_type).unwrap_or(Ok(Cow::Borrowed(event)));
            let taken = lifted.and_then(|event| {
                Ok((route.takes(&event, (owed, false), moved)?, route.requirements(&event, false)?, event))
            });
            match taken {
                Err(error) => {
                    let _ = writeln!(out, "parked: {error}");
                }
                Ok((false, ..)) => {
                    let _ = writeln!(out, "not taken: {} does not hold", route.when.text());
                }
                Ok((true, requires, event)) => {
                    let due = due(client, lane, &event, requires).await?;
                    request(&target.connector, &due, values, out);
                }
            }
        }
    }
    Ok(())
}

fn request(connector: &crate::connector::Connector, due: &Due, values: bool, out: &mut String) {
    for requirement in &due.requires {
        let known = due.references.get(requirement).map_or("not there yet", String::as_str);
        let _ = write!(out, "needs {requirement} ({known}); ");
    }
    match shown(connector, due) {
        None => out.push_str("nothing to send: the target has it so\n"),
        Some(shown) => {
            let (line, body) = printed(&shown, values);
            let _ = writeln!(out, "{line}\n  {}", indented(&body));
        }
    }
}

/// The delivery as it would be found, had the event just been ledgered.
async fn due(
    client: &Client,
    lane: Lane,
    event: &CanonicalEvent,
    requires: Vec<String>,
) -> Result<Due, LedgerError> {
    let (external_id, applied_sha256) = standing::stands(client, &lane).await?;
    let references = standing::references(client, &lane.target, &requires).await?;
    Ok(Due { external_id, applied_sha256, references, ..Due::imagined(lane, event, requires) })
}

fn indented(value: &Value) -> String {
    format!("{value:#}").replace('\n', "\n  ")
}
