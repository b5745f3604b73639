//! `tailwater ledger erase`.

use std::collections::BTreeSet;

use tokio_postgres::Client;

use crate::app::{EX_CONFIG, EX_TEMPORARY};
use crate::config::Config;
use crate::event::{Columns, Row};
use crate::ledger::command::Command;
use crate::ledger::erase::{ErasedRow, Erasure, held, owed, rows_about};
use crate::ledger::{images, standing};
use crate::mapping::{SourceMapping, TableSpec};
use crate::operate::{Refusal, down};
use crate::orders::order;

/// Images looked at at once.
const PAGE: i64 = 1_000;

/// See the module's text.
pub async fn erase(config: &Config, subject: String, reason: String, now: bool) -> Result<String, Refusal> {
    if !config.master.is_set() {
        let next = "next: sealing_key in [ledger]; what was written without it cannot be erased";
        return Err(Refusal(
            EX_CONFIG,
            format!("the settings have no sealing_key: nothing is sealed\n{next}"),
        ));
    }
    let client = config.ledger.connect("tailwater-erase").await.map_err(down)?;
    let held = held(&client, &subject).await?;
    if !held.is_empty() {
        let next = "next: tailwater ledger hold list";
        return Err(Refusal(EX_CONFIG, format!("{subject} is held ({})\n{next}", held.join(", "))));
    }
    let owed = owed(&client, &subject).await?;
    if owed > 0 && !now {
        let next =
            "next: wait for them, perhaps they make the targets forget, too; or --now, which gives them up";
        return Err(Refusal(EX_TEMPORARY, format!("{owed} deliveries of {subject} are still owed\n{next}")));
    }
    let followed = config.sources.iter().map(|source| (&source.name, &source.mapping));
    let polled = config.polls.iter().map(|poll| (&poll.name, &poll.mapping));
    let (mut rows, mut fields, mut still) = (Vec::new(), BTreeSet::new(), 0);
    for (name, mapping) in followed.chain(polled) {
        let (found, filled) = rows_of(&client, (name, mapping), &subject).await?;
        rows.extend(found);
        still += filled;
        for spec in mapping.events.iter().filter(|spec| !spec.personal.seal.is_empty()) {
            let names: Vec<String> = spec.personal.seal.iter().map(ToString::to_string).collect();
            fields.insert((spec.event_type.clone(), names));
        }
    }
    let count = rows.len();
    let erasure = Erasure { subject: subject.clone(), reason, rows, fields: fields.into_iter().collect() };
    order(config, &client, Command::Erase(erasure)).await?;
    let mut text = format!(
        "{subject} is forgotten: the key is destroyed; {count} rows, and what was owed of them, are emptied\n"
    );
    if still > 0 {
        text.push_str(&format!(
            "the source still had {still} personal values: they come back with the next change there, unless they are erased there, too\n"
        ));
    }
    for (_, target, object, external_id, state) in standing::identities(&client, &subject).await? {
        text.push_str(&format!("{target} holds it as {object} {external_id} ({state})\n"));
    }
    Ok(text)
}

/// Rows of a source that are the subject's, and how many personal values they have.
async fn rows_of(
    client: &Client,
    (source, mapping): (&str, &SourceMapping),
    subject: &str,
) -> Result<(Vec<ErasedRow>, usize), Refusal> {
    let (mut found, mut filled) = (Vec::new(), 0);
    let personal = |table: &&TableSpec| !table.personal.seal.is_empty();
    // Whose these rows are only their events tell.
    let named = rows_about(client, subject).await?;
    for table in mapping.tables.iter().filter(personal).filter(|table| table.personal.subject.is_none()) {
        let keys = named.iter().filter_map(|row| row.strip_prefix(&*table.name)?.strip_prefix('/'));
        for key in keys {
            let columns = table.personal.seal.iter().map(ToString::to_string).collect();
            let (source, relation) = (source.to_owned(), table.name.to_string());
            found.push(ErasedRow { source, relation, key: key.to_owned(), columns });
        }
    }
    for table in mapping.tables.iter().filter(personal).filter(|table| table.personal.subject.is_some()) {
        let mut after: Option<String> = None;
        loop {
            let keys = images::keys_after(client, source, &table.name, after.as_deref(), PAGE).await?;
            let Some(last) = keys.last() else { break };
            after = Some(last.clone());
            let wanted: Vec<(String, String)> =
                keys.into_iter().map(|key| (table.name.to_string(), key)).collect();
            for ((relation, key), row) in images::rows(client, source, &wanted).await? {
                let serde_json::Value::Object(row) = row else { continue };
                let row = Row::from_map(row, &mut Columns::default());
                if mapping.subject_of(table, &row).as_deref() != Some(subject) {
                    continue;
                }
                filled += table
                    .personal
                    .seal
                    .iter()
                    .filter(|name| row.get(name).is_some_and(|v| !v.is_null()))
                    .count();
                let columns = table.personal.seal.iter().map(ToString::to_string).collect();
                found.push(ErasedRow { source: source.to_owned(), relation, key, columns });
            }
        }
    }
    Ok((found, filled))
}
