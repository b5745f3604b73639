//! What all sources say of the objects of deliveries, together.

use serde_json::Value;
use tokio_postgres::Client;

use super::plan::own_id;
use super::target::Target;
use crate::event::words::merge;
use crate::ledger::LedgerError;
use crate::ledger::images::rows;
use crate::ledger::outbox::Due;
use crate::ledger::said::words;

/// Brings events of objects of which several sources speak to what all of them say, without what the target says itself.
pub async fn together(
    client: &Client,
    target: &Target,
    mut found: Vec<Due>,
) -> Result<Vec<Due>, LedgerError> {
    let text = |due: &Due, pointer: &str| {
        due.event.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let subject = |due: &Due| {
        let event_type = text(due, "/type");
        target.shared.contains(&event_type).then(|| (event_type, text(due, "/id")))
    };
    let subjects: Vec<_> = found.iter().filter_map(subject).collect();
    let known = words(client, &subjects).await?;
    for due in found.iter_mut().filter(|due| due.external_id.is_none()) {
        due.external_id = own_id(&target.connector, due);
    }
    show(client, target, &mut found).await?;
    for due in &mut found {
        let foreign = due.event.get("foreign").and_then(Value::as_array).into_iter().flatten();
        let foreign: Vec<String> = foreign.filter_map(Value::as_str).map(str::to_owned).collect();
        due.unknown.clone_from(&foreign);
        let Some(said) = subject(due).and_then(|subject| known.get(&subject)) else { continue };
        let source = text(due, "/source/name");
        if let Some(data) = due.event.get_mut("data").filter(|data| data.is_object()) {
            let merged = merge(data, &foreign, &source, said);
            due.unknown = merged.unknown;
            if due.external_id.is_some() {
                // A system is not told what it said itself: it may say something else by now.
                let own = merged.by.into_iter().filter(|(_, by)| Some(by) == target.twin.as_ref());
                due.unknown.extend(own.map(|(field, _)| field));
            }
        }
    }
    Ok(found)
}

/// What the source that is the same system shows of objects that the target was told nothing of yet.
async fn show(client: &Client, target: &Target, found: &mut [Due]) -> Result<(), LedgerError> {
    let Some(source) = &target.twin else { return Ok(()) };
    let shown = |due: &Due| {
        let fresh = due.applied_sha256.is_none() && due.applied_body.is_none();
        let key = due.external_id.clone().filter(|_| fresh)?;
        let shown = target.connector.object(&due.lane.object)?.shown.as_ref()?;
        Some((shown, (shown.table.clone(), key)))
    };
    let wanted: Vec<(String, String)> = found.iter().filter_map(shown).map(|(_, id)| id).collect();
    let rows = rows(client, source, &wanted).await?;
    for due in found {
        let Some((shown, id)) = shown(due) else { continue };
        let Some(row) = rows.get(&id) else { continue };
        due.shown_body = Some(shown.as_body(row));
    }
    Ok(())
}
