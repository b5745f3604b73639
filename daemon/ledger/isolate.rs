//! What of a batch the database refuses for its content, and the batch without it. Pure: whether a part is taken is asked by the writer.
//!
//! INV-14: one bad item stops nothing. A batch is taken apart into its smallest parts; those that are refused by themselves are taken
//! out, and what stood for them is written instead: an entry that names them, a parked row, a delivery that waits for a person.

use serde_json::{Value, json};

use super::batch::{Batch, Cause, ClosedWrite, EntryIndex, QuietState, QuietWrite};
use super::command::Command;
use super::entry::{Content, EntryKind, NewEntry};
use super::parked::{Parked, ParkedKind};
use crate::bounds::shown;

/// The smallest part of a batch that can be left out: a field, and an index into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// An entry.
    Entry(usize),
    /// A row image.
    Image(usize),
    /// A row without events: which write, which of its rows.
    Quiet(usize, usize),
    /// An object to be worked out later.
    Spilled(usize),
    /// A delivery that is newly owed.
    Delivery(usize),
    /// What a source says of an object.
    Said(usize),
    /// What a target is seen to hold.
    Seen(usize),
    /// Unique values and wishes.
    Claim(usize),
    /// A command.
    Command(usize),
    /// How a target looks.
    State(usize),
    /// An attempt.
    Sending(usize),
    /// An end.
    Closed(usize),
    /// Another try.
    Retry(usize),
    /// What a target holds now.
    Applied(usize),
    /// A value that somebody else holds.
    Foreign(usize),
}

/// All parts of a batch.
#[must_use]
pub fn parts(batch: &Batch) -> Vec<Part> {
    let each = |count: usize, part: fn(usize) -> Part| (0..count).map(part);
    let quiet =
        |(write, quiet): (usize, &QuietWrite)| (0..quiet.rows.len()).map(move |row| Part::Quiet(write, row));
    let mut parts: Vec<Part> = Vec::new();
    parts.extend(each(batch.entries.len(), Part::Entry));
    parts.extend(each(batch.images.len(), Part::Image));
    parts.extend(batch.quiet.iter().enumerate().flat_map(quiet));
    parts.extend(each(batch.spilled.len(), Part::Spilled));
    parts.extend(each(batch.deliveries.len(), Part::Delivery));
    parts.extend(each(batch.said.len(), Part::Said));
    parts.extend(each(batch.seen.len(), Part::Seen));
    parts.extend(each(batch.claims.len(), Part::Claim));
    parts.extend(each(batch.commands.len(), Part::Command));
    parts.extend(each(batch.states.len(), Part::State));
    parts.extend(each(batch.sending.len(), Part::Sending));
    parts.extend(each(batch.closed.len(), Part::Closed));
    parts.extend(each(batch.retries.len(), Part::Retry));
    parts.extend(each(batch.applied.len(), Part::Applied));
    parts.extend(each(batch.foreign.len(), Part::Foreign));
    parts
}

/// A batch of these parts alone, to see whether the database takes them.
#[must_use]
pub fn only(batch: &Batch, parts: &[Part]) -> Batch {
    let mut some = Batch::default();
    for part in parts {
        match *part {
            Part::Entry(index) => some.entries.extend(batch.entries.get(index).cloned()),
            Part::Image(index) => some.images.extend(batch.images.get(index).cloned()),
            Part::Quiet(write, row) => some.quiet.extend(quiet_row(batch, write, row)),
            Part::Spilled(index) => some.spilled.extend(batch.spilled.get(index).cloned()),
            Part::Delivery(index) => some.deliveries.extend(batch.deliveries.get(index).cloned()),
            Part::Said(index) => some.said.extend(batch.said.get(index).cloned()),
            Part::Seen(index) => some.seen.extend(batch.seen.get(index).cloned()),
            Part::Claim(index) => some.claims.extend(batch.claims.get(index).cloned()),
            Part::Command(index) => some.commands.extend(batch.commands.get(index).cloned()),
            Part::State(index) => some.states.extend(batch.states.get(index).cloned()),
            Part::Sending(index) => some.sending.extend(batch.sending.get(index).cloned()),
            Part::Closed(index) => some.closed.extend(batch.closed.get(index).cloned()),
            Part::Retry(index) => some.retries.extend(batch.retries.get(index).cloned()),
            Part::Applied(index) => some.applied.extend(batch.applied.get(index).cloned()),
            Part::Foreign(index) => some.foreign.extend(batch.foreign.get(index).cloned()),
        }
    }
    some
}

fn quiet_row(batch: &Batch, write: usize, row: usize) -> Option<QuietWrite> {
    let write = batch.quiet.get(write)?;
    let rows = vec![write.rows.get(row)?.clone()];
    Some(QuietWrite { truncated: false, rows, ..write.clone() })
}

/// The batch without these parts, each with the reason, and with what stands for them.
#[must_use]
pub fn without(mut batch: Batch, refused: &[(Part, String)]) -> Batch {
    let mut out = Removal::default();
    for (part, reason) in refused {
        out.remove(&mut batch, *part, reason);
    }
    out.finish(&mut batch);
    batch
}

/// What is taken out of a batch, collected so that indexes stay good meanwhile.
#[derive(Default)]
struct Removal {
    images: Vec<usize>,
    quiet: Vec<(usize, usize)>,
    spilled: Vec<usize>,
    deliveries: Vec<usize>,
    said: Vec<usize>,
    seen: Vec<usize>,
    commands: Vec<(usize, String)>,
    states: Vec<usize>,
    /// Deliveries of which something could not be written: they wait for a person.
    waiting: Vec<(i64, String)>,
    parked: Vec<Parked>,
    noted: Vec<NewEntry>,
}

impl Removal {
    fn remove(&mut self, batch: &mut Batch, part: Part, reason: &str) {
        match part {
            Part::Entry(index) => self.entry(batch, index, reason),
            Part::Image(index) => {
                if let Some(image) = batch.images.get(index) {
                    self.row(&image.source, &image.relation, &image.key, reason);
                }
                self.images.push(index);
            }
            Part::Quiet(write, row) => {
                if let Some(quiet) = batch.quiet.get(write)
                    && let Some((key, state)) = quiet.rows.get(row)
                    && !matches!(state, QuietState::Gone)
                {
                    self.row(&quiet.source, &quiet.relation, key, reason);
                }
                self.quiet.push((write, row));
            }
            Part::Spilled(index) => {
                if let Some(write) = batch.spilled.get(index) {
                    self.row(&write.source, &write.root, &write.key, reason);
                }
                self.spilled.push(index);
            }
            Part::Delivery(index) => {
                if let Some(delivery) = batch.deliveries.get(index) {
                    let lane = &delivery.lane;
                    self.note(json!({"action": "not_owed", "target": shown(&lane.target), "object": shown(&lane.object),
                                     "canonical_id": shown(&lane.canonical_id), "reason": reason}));
                }
                self.deliveries.push(index);
            }
            Part::Said(index) => self.said.push(index),
            Part::Seen(index) => self.seen.push(index),
            Part::State(index) => self.states.push(index),
            Part::Command(index) => self.commands.push((index, reason.to_owned())),
            Part::Claim(index) => {
                let lane = batch.claims.get(index).map(|claim| claim.lane.clone());
                let of_lane = |write: &&super::batch::AppliedWrite| Some(&write.lane) == lane.as_ref();
                let applied = batch.applied.iter().find(of_lane).map(|write| write.delivery);
                let id = applied.or_else(|| batch.sending.first().map(|write| write.id));
                self.waiting.extend(id.map(|id| (id, reason.to_owned())));
            }
            Part::Sending(index) => self.wait(batch.sending.get(index).map(|write| write.id), reason),
            Part::Closed(index) => self.wait(batch.closed.get(index).map(|write| write.id), reason),
            Part::Retry(index) => self.wait(batch.retries.get(index).map(|write| write.id), reason),
            Part::Applied(index) => self.wait(batch.applied.get(index).map(|write| write.delivery), reason),
            Part::Foreign(index) => self.wait(batch.foreign.get(index).map(|(_, _, id)| *id), reason),
        }
    }

    fn wait(&mut self, delivery: Option<i64>, reason: &str) {
        self.waiting.extend(delivery.map(|id| (id, reason.to_owned())));
    }

    fn note(&mut self, fields: Value) {
        self.noted.push(NewEntry::new(EntryKind::Gap, None, fields));
    }

    fn row(&mut self, source: &str, table: &str, key: &str, reason: &str) {
        self.parked.push(Parked {
            kind: ParkedKind::Row,
            source: source.to_owned(),
            place: table.to_owned(),
            key: key.to_owned(),
            reason: reason.to_owned(),
            bytes: None,
        });
    }

    /// An entry keeps its place, so that what refers to it still does: what could not be written is named there. Deliveries of an event
    /// wait for a person; its row is read again when somebody asks for that.
    fn entry(&mut self, batch: &mut Batch, index: usize, reason: &str) {
        let Some(entry) = batch.entries.get_mut(index) else { return };
        let kind = entry.kind.as_str();
        let fields = match &entry.content {
            Content::Event(record) => {
                let event = &record.event;
                if let Some(cause) = event.causes.first() {
                    let (source, table, key) =
                        (record.origin.source.clone(), cause.table.to_string(), cause.key.clone());
                    self.row(&source, &table, &key, reason);
                }
                json!({"action": "refused", "entry": kind, "source": record.origin.source, "type": event.event_type,
                       "canonical_id": shown(&event.id), "reason": reason})
            }
            Content::Fields(fields) => {
                let text = |name: &str| fields.get(name).and_then(Value::as_str).map(shown);
                json!({"action": "refused", "entry": kind, "target": text("target"), "object": text("object"),
                       "canonical_id": text("id"), "delivery": fields.get("delivery").filter(|id| id.is_i64()),
                       "reason": reason})
            }
        };
        if let Some(id) = fields.get("delivery").and_then(Value::as_i64) {
            self.waiting.push((id, reason.to_owned()));
        }
        *entry = NewEntry::new(EntryKind::Gap, None, fields);
        let is_its = |event: EntryIndex| event == EntryIndex(index);
        for delivery in batch.deliveries.iter_mut().filter(|delivery| is_its(delivery.event)) {
            delivery.parked = Some(format!("its event could not be written: {reason}"));
        }
        batch.said.retain(|write| !is_its(write.event));
    }

    fn finish(self, batch: &mut Batch) {
        keep(&mut batch.images, &self.images);
        for (write, quiet) in batch.quiet.iter_mut().enumerate() {
            let rows: Vec<usize> =
                self.quiet.iter().filter(|(of, _)| *of == write).map(|(_, row)| *row).collect();
            keep(&mut quiet.rows, &rows);
        }
        keep(&mut batch.spilled, &self.spilled);
        keep(&mut batch.deliveries, &self.deliveries);
        keep(&mut batch.said, &self.said);
        keep(&mut batch.seen, &self.seen);
        keep(&mut batch.states, &self.states);
        for (index, reason) in &self.commands {
            if let Some(asked) = batch.commands.get(*index) {
                batch.refused.push((asked.id, reason.clone()));
                self.parked_command(asked.id, &asked.command, reason, &mut batch.parked);
            }
        }
        keep(&mut batch.commands, &self.commands.iter().map(|(index, _)| *index).collect::<Vec<_>>());
        for (id, reason) in &self.waiting {
            if *id == 0 || batch.closed.iter().any(|closed| closed.id == *id && closed.state == "parked") {
                continue;
            }
            batch.sending.retain(|write| write.id != *id);
            batch.retries.retain(|write| write.id != *id);
            batch.closed.retain(|write| write.id != *id);
            batch.applied.retain(|write| write.delivery != *id);
            batch.foreign.retain(|(_, _, delivery)| delivery != id);
            let reason = Some(format!("the ledger refuses what came of it: {reason}"));
            batch.closed.push(ClosedWrite { id: *id, state: "parked", reason, cause: Some(Cause::Ledger) });
        }
        if !self.waiting.is_empty() {
            batch.claims.clear();
        }
        for parked in self.parked {
            batch.park(parked);
        }
        batch.entries.extend(self.noted);
    }

    fn parked_command(&self, id: i64, command: &Command, reason: &str, out: &mut Vec<Parked>) {
        let kind = serde_json::to_value(command).unwrap_or_default();
        out.push(Parked {
            kind: ParkedKind::Command,
            source: String::new(),
            place: kind.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned(),
            key: id.to_string(),
            reason: reason.to_owned(),
            bytes: None,
        });
    }
}

/// All but those at `gone`.
fn keep<T>(items: &mut Vec<T>, gone: &[usize]) {
    if gone.is_empty() {
        return;
    }
    let mut index = 0;
    items.retain(|_| {
        index += 1;
        !gone.contains(&(index - 1))
    });
}
