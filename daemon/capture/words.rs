//! Objects that several sources speak of: each event is seen as what all of them say together, and what each says is kept.

use std::collections::HashMap;

use jiff::Timestamp;
use serde_json::json;

use super::flow::Flow;
use crate::event::words::{Conflict, Word, Words, conflicts, merge};
use crate::event::{CanonicalEvent, Operation, PersonalPart};
use crate::image::{Drift, Emitted};
use crate::ledger::batch::{Batch, EntryIndex};
use crate::ledger::entry::{EntryKind, NewEntry};
use crate::ledger::said::{SaidWrite, Subject, words};
use crate::ledger::{Ledger, LedgerError};

/// An event as all sources together say it.
pub(super) struct Together {
    /// With the newest word of each field.
    pub event: CanonicalEvent,
    /// Not all of it is known: nobody who has a say has spoken of some fields, and it is for others to say that it is there.
    pub partial: bool,
    /// What this source says now.
    word: Option<Word>,
    conflicts: Vec<Conflict>,
}

/// Objects among these events of which several sources speak.
pub(super) fn subjects(flow: &Flow, emitted: &[Emitted]) -> Vec<Subject> {
    let shared = emitted.iter().filter(|emitted| flow.ways.shared.contains(&emitted.event.event_type));
    shared.map(|emitted| (emitted.event.event_type.clone(), emitted.event.id.clone())).collect()
}

/// How each event is seen; `None` where its source is the only one.
pub(super) async fn together(
    flow: &Flow,
    ledger: &Ledger,
    emitted: &[Emitted],
) -> Result<Vec<Option<Together>>, LedgerError> {
    let mut known = words(ledger.reader(), &subjects(flow, emitted)).await?;
    let seen = |emitted: &Emitted| {
        let shared = flow.ways.shared.contains(&emitted.event.event_type) && emitted.fault.is_none();
        shared.then(|| one(flow, &emitted.event, &mut known))
    };
    Ok(emitted.iter().map(seen).collect())
}

fn one(flow: &Flow, event: &CanonicalEvent, known: &mut HashMap<Subject, Words>) -> Together {
    let said = known.entry((event.event_type.clone(), event.id.clone())).or_default();
    let mut event = event.clone();
    if event.operation == Operation::Delete {
        said.remove(&flow.name);
        return Together { event, partial: false, word: None, conflicts: Vec::new() };
    }
    let since = (event.committed_at.as_millisecond(), event.snapshot);
    let mut word = Word::now(&event.data, &event.foreign, since, said.get(&flow.name));
    let conflicts = conflicts(&flow.name, &word, said);
    for conflict in conflicts.iter().filter(|conflict| parks(flow, &event, &conflict.field)) {
        word.dispute(&conflict.field);
    }
    said.insert(flow.name.clone(), word.clone());
    let merged = merge(&mut event.data, &event.foreign, &flow.name, said);
    let partial = !merged.unknown.is_empty() && !flow.leads(&event.event_type);
    Together { event, partial, word: Some(word), conflicts }
}

/// True when nobody's word may count for a field that two sources changed without knowing of each other.
fn parks(flow: &Flow, event: &CanonicalEvent, field: &str) -> bool {
    let object = event.event_type.rsplit_once(".v").map_or("", |(object, _)| object);
    flow.mapping.ownership.parks(object, field)
}

/// Writes down what the source of the event `entry` says from now on, and what two sources changed without knowing of each other.
pub(super) fn note(flow: &Flow, seen: &Together, entry: EntryIndex, batch: &mut Batch) {
    let event = &seen.event;
    batch.said.push(SaidWrite {
        subject: (event.event_type.clone(), event.id.clone()),
        source: flow.name.clone(),
        event: entry,
        word: seen.word.clone(),
    });
    for Conflict { field, said, by_other: (other, theirs), kept } in &seen.conflicts {
        tracing::warn!(id = %event.id, field, "two systems changed a field, each without knowing of the other");
        let parked = parks(flow, event, field);
        let rule = if parked { "park" } else { "newest" };
        let kept = Some(kept).filter(|_| !parked);
        let fields = json!({
            "type": event.event_type, "id": event.id, "field": field, "rule": rule, "kept": kept,
            "values": {flow.name.as_str(): said, other.as_str(): theirs}, "noticed_at": Timestamp::now(),
        });
        let part = personal(flow, (&event.event_type, &event.id), std::iter::once(field.as_str()));
        let entry = NewEntry::new(EntryKind::Conflict, Some(event.event_id.clone()), fields);
        batch.entry(NewEntry { personal: part, ..entry });
    }
}

/// What of an entry with `values` is personal, when one of these fields is.
fn personal<'a>(
    flow: &Flow,
    (event_type, id): (&str, &str),
    mut fields: impl Iterator<Item = &'a str>,
) -> Option<PersonalPart> {
    let spec = flow.mapping.events.iter().find(|spec| spec.event_type == event_type)?;
    let is_personal = fields.any(|field| spec.personal.seal.iter().any(|sealed| **sealed == *field));
    is_personal.then(|| PersonalPart { subject: id.to_owned(), fields: ["values".into()].into() })
}

/// Writes down what the source has changed without owning it, beside what those say whose word counts.
pub(super) async fn overrule(
    flow: &Flow,
    ledger: &Ledger,
    drifts: &[&Drift],
    batch: &mut Batch,
) -> Result<(), LedgerError> {
    let subjects: Vec<Subject> =
        drifts.iter().map(|drift| (drift.event_type.clone(), drift.id.clone())).collect();
    let known = words(ledger.reader(), &subjects).await?;
    for (drift, subject) in drifts.iter().zip(&subjects) {
        let all = known.get(subject).into_iter().flatten().filter(|(source, _)| **source != flow.name);
        let mut values = serde_json::Map::new();
        for (field, theirs) in &drift.fields {
            let kept = all.clone().find_map(|(source, word)| Some((source, word.data.get(field)?)));
            if kept.is_some_and(|(_, ours)| ours == theirs) {
                continue;
            }
            let mut sides = serde_json::Map::from_iter([(flow.name.clone(), theirs.clone())]);
            sides.extend(kept.map(|(source, ours)| (source.clone(), ours.clone())));
            values.insert(field.clone(), sides.into());
        }
        if values.is_empty() {
            continue;
        }
        let names: Vec<&str> = values.keys().map(String::as_str).collect();
        tracing::warn!(id = %drift.id, fields = names.join(", "), "the source changed what it does not own");
        let fields = json!({
            "source": flow.name, "type": drift.event_type, "id": drift.id, "fields": names, "rule": "owner", "values": values,
        });
        let part = personal(flow, (&drift.event_type, &drift.id), values.keys().map(String::as_str));
        batch.entry(NewEntry { personal: part, ..NewEntry::new(EntryKind::Drift, None, fields) });
    }
    Ok(())
}
