//! What all sources say of the objects of deliveries, together.

use serde_json::Value;
use tokio_postgres::Client;

use super::plan::own_id;
use super::target::Target;
use crate::event::words::merge;
use crate::ledger::LedgerError;
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
    for due in &mut found {
        if due.external_id.is_none() {
            due.external_id = own_id(&target.connector, due);
        }
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
