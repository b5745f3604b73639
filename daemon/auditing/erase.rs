//! `tailwater ledger erase`.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio_postgres::Client;

use crate::app::{EX_CONFIG, EX_TEMPORARY};
use crate::config::Config;
use crate::event::sealing::row_subject;
use crate::event::{Columns, Row};
use crate::ledger::command::Command;
use crate::ledger::erase::{ErasedRow, Erasure, UnderWay, held, names_before, owed, rows_about};
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
    let mut found = Found::default();
    found.look(&client, config, &subject).await?;
    for name in found.names.clone() {
        found.look(&client, config, &name).await?;
    }
    let Found { rows, fields, filled, names, also } = found;
    let count = rows.len();
    let also = also.into_iter().chain(names.iter().cloned()).collect();
    let erasure =
        Erasure { subject: subject.clone(), reason, also, rows, fields: fields.into_iter().collect() };
    let held = held(&client, &erasure.names()).await?;
    if !held.is_empty() {
        let next = "next: tailwater ledger hold list";
        return Err(Refusal(EX_CONFIG, format!("{subject} is held ({})\n{next}", held.join(", "))));
    }
    let (owed, under_way) = owed(&client, &erasure.names()).await?;
    if owed > 0 && !now {
        let next =
            "next: wait for them, perhaps they make the targets forget, too; or --now, which gives them up";
        return Err(Refusal(EX_TEMPORARY, format!("{owed} deliveries of {subject} are still owed\n{next}")));
    }
    order(config, &client, Command::Erase(erasure)).await?;
    let mut text = format!(
        "{subject} is forgotten: the key is destroyed; {count} rows, and what was owed of them, are emptied\n"
    );
    if !names.is_empty() {
        text.push_str(&format!(
            "so is what it was called before: {}\n",
            names.into_iter().collect::<Vec<_>>().join(", ")
        ));
    }
    if filled > 0 {
        text.push_str(&format!(
            "the source still had {filled} personal values: they come back with the next change there, unless they are erased there, too\n"
        ));
    }
    for UnderWay { target, object, id } in under_way {
        text.push_str(&format!(
            "{target} may hold {id} as {object}: a request was on its way, and nobody looks any more what became of it\n"
        ));
    }
    for (_, target, object, external_id, state) in standing::identities(&client, &subject).await? {
        text.push_str(&format!("{target} holds it as {object} {external_id} ({state})\n"));
    }
    Ok(text)
}

/// What there is of a subject.
#[derive(Default)]
struct Found {
    rows: Vec<ErasedRow>,
    /// Personal fields of events, by type.
    fields: BTreeSet<(String, Vec<String>)>,
    /// Personal values that the rows have.
    filled: usize,
    /// What it was called before.
    names: BTreeSet<String>,
    /// Rows that are nobody's own, as subjects.
    also: BTreeSet<String>,
}

/// Names of columns.
fn texts(names: &[Arc<str>]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

/// True when objects of a target are rows of that table where it is polled.
fn shows(config: &Config, target: &str, object: &str, table: &str) -> bool {
    let target = config.targets.iter().find(|known| known.name == target);
    let object = target.and_then(|target| target.connector.object(object));
    object.and_then(|object| object.shown.as_ref()).is_some_and(|shown| shown.table == table)
}

/// Types of what rows of a table are.
fn types_of(mapping: &SourceMapping, table: &TableSpec) -> Vec<String> {
    let of_table = mapping.events.iter().filter(|spec| spec.table == table.name);
    of_table.map(|spec| spec.event_type.clone()).collect()
}

impl Found {
    /// Looks at all sources.
    async fn look(&mut self, client: &Client, config: &Config, subject: &str) -> Result<(), Refusal> {
        let followed = config.sources.iter().map(|source| (source.name.as_str(), None, &source.mapping));
        let polled = config.polls.iter();
        let polled = polled.map(|poll| (poll.name.as_str(), Some(&poll.target), &poll.mapping));
        let held = standing::identities(client, subject).await?;
        for (source, target, mapping) in followed.chain(polled) {
            let personal = || mapping.tables.iter().filter(|table| !table.personal.seal.is_empty());
            let about = rows_about(client, source, subject).await?;
            for (relation, key) in about {
                // Whose these are only their events tell, and perhaps did not from the beginning.
                let nobodys =
                    |table: &&TableSpec| table.personal.subject.is_none() && *table.name == *relation;
                if let Some(table) = personal().find(nobodys) {
                    let there = (source, relation.as_str(), key.as_str());
                    self.also.extend(names_before(client, there, &types_of(mapping, table), subject).await?);
                    self.also.insert(row_subject(source, &relation, &key));
                    let columns = texts(&table.personal.seal);
                    self.rows.push(ErasedRow { source: source.to_owned(), relation, key, columns });
                }
            }
            for table in personal().filter(|table| table.personal.subject.is_some()) {
                self.own_rows(client, (source, mapping, table), subject).await?;
                let types = types_of(mapping, table);
                for (id, system, object, external_id, _) in &held {
                    let is_table = || shows(config, system, object, &table.name);
                    if id == subject && Some(system) == target && is_table() {
                        let there = (source, &*table.name, external_id.as_str());
                        self.names.extend(names_before(client, there, &types, subject).await?);
                    }
                }
            }
            for spec in mapping.events.iter().filter(|spec| !spec.personal.seal.is_empty()) {
                self.fields.insert((spec.event_type.clone(), texts(&spec.personal.seal)));
            }
        }
        Ok(())
    }

    /// Rows of a table that are the subject's own.
    async fn own_rows(
        &mut self,
        client: &Client,
        (source, mapping, table): (&str, &SourceMapping, &TableSpec),
        subject: &str,
    ) -> Result<(), Refusal> {
        let seal = &table.personal.seal;
        let mut after: Option<String> = None;
        loop {
            let keys = images::keys_after(client, source, &table.name, after.as_deref(), PAGE).await?;
            let Some(last) = keys.last() else { return Ok(()) };
            after = Some(last.clone());
            let wanted: Vec<(String, String)> =
                keys.into_iter().map(|key| (table.name.to_string(), key)).collect();
            for ((relation, key), row) in images::rows(client, source, &wanted).await? {
                let serde_json::Value::Object(row) = row else { continue };
                let row = Row::from_map(row, &mut Columns::default());
                if mapping.subject_of(table, &row).as_deref() != Some(subject) {
                    continue;
                }
                self.filled += seal.iter().filter(|name| row.get(name).is_some_and(|v| !v.is_null())).count();
                // Whose it is was perhaps not known from the beginning.
                self.also.insert(row_subject(source, &relation, &key));
                self.rows.push(ErasedRow { source: source.to_owned(), relation, key, columns: texts(seal) });
            }
        }
    }
}
