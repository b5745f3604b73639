//! Records into the ledger: newer than what is known or not, and what they make.

use jiff::Timestamp;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::PollSource;
use crate::bounds::{LIST_ITEMS, VALUES_IN_ROW, shown, size};
use crate::capture::error::CaptureError;
use crate::capture::intake::{Intake, IntakeError, Prepared};
use crate::capture::seen::AsOf;
use crate::connector::classify::Class;
use crate::event::{Change, Cluster, Lsn, Row, RowState, Transaction, canonical_bytes};
use crate::image::{Emitted, Overlay, Projection, RowId};
use crate::ledger::batch::{Batch, LoadWrite};
use crate::ledger::loads::{began, unseen};
use crate::ledger::parked::ParkedName;
use crate::ledger::{Ledger, LedgerError};
use crate::mapping::TableSpec;
use crate::source::poll::Record;
use crate::source::poll::page::read_record;

/// Records in one ledger transaction.
const RECORDS: usize = 200;
/// Column of an image in which it stands when the object was changed, by the vendor's clock; no mapping can name it.
const AT: &str = "@at";

/// Works records out, one batch after the other.
pub(super) struct Records {
    source: PollSource,
    ledger: Ledger,
    intake: Intake,
}

/// What is known of an object, against what a record says.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    /// It is news, or the same.
    Counts,
    /// Something newer is known.
    Old,
    /// Two things are said of the same instant, and nobody can tell which of them was last.
    Unclear,
}

/// What looking at an object gave.
enum Look {
    Now(Record),
    Gone,
    /// Nobody can say.
    Nothing,
}

/// How much a record is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    /// A stream told it.
    Told,
    /// It was read just now.
    Read,
}

impl Records {
    pub(super) fn new(source: &PollSource, ledger: &Ledger) -> Self {
        // There is one system behind an address, and it has one history.
        let cluster = Cluster { system_identifier: format!("poll:{}", source.target.name), timeline: 0 };
        let intake = Intake::new(source.flow.clone(), None, cluster, ledger.clone());
        Self { source: source.clone(), ledger: ledger.clone(), intake }
    }

    /// Takes the records of a page, and then what `last` says; `sweep`: the table of a load that is read to its end. Gives how many
    /// events were made.
    pub(super) async fn take(
        &mut self,
        (records, asked_at): (Vec<Record>, Timestamp),
        sweep: Option<(i64, String)>,
        mut last: Batch,
    ) -> Result<usize, CaptureError> {
        let mut made = 0;
        let listed = !last.loads.is_empty();
        let said = if listed { Said::Read } else { Said::Told };
        let records: Vec<Record> = records
            .into_iter()
            .filter(|record| self.source.flow.mapping.table_named(&record.table).is_some())
            .collect();
        let mut chunks = records.chunks(RECORDS).peekable();
        // A load's marks are set once the rows stand.
        while let Some(chunk) = chunks.next() {
            let (mut batch, unclear) = self.batch((chunk, asked_at), said, listed).await?;
            made += batch.entries.len();
            if chunks.peek().is_none() && unclear.is_empty() && sweep.is_none() {
                batch.append(std::mem::take(&mut last));
            }
            self.write(batch).await?;
            made += self.read_again(unclear).await?;
        }
        let ends = std::mem::take(&mut last);
        if let Some((load, relation)) = sweep {
            let (seen, end) = split(ends);
            self.write(seen).await?;
            made += self.sweep(load, &relation).await?;
            self.write(end).await?;
        } else {
            self.write(ends).await?;
        }
        Ok(made)
    }

    async fn write(&self, batch: Batch) -> Result<(), LedgerError> {
        if batch.is_empty() {
            return Ok(());
        }
        self.ledger.writer().write(batch).await.map(|_| ())
    }

    /// The batch of some records, and those of which it is not clear whether they are news.
    async fn batch(
        &mut self,
        (records, asked_at): (&[Record], Timestamp),
        said: Said,
        snapshot: bool,
    ) -> Result<(Batch, Vec<Record>), CaptureError> {
        if self.intake.is_full() {
            self.intake.age();
        }
        let source = self.source.clone();
        if self.intake.began.is_none() {
            self.intake.began = began(self.ledger.reader(), &source.flow.name).await?;
        }
        loop {
            self.intake.as_of = AsOf::Asked(asked_at);
            let mut unclear = Vec::new();
            let prepared = self.intake.prepare(true, |projection, overlay| {
                Some(emitted(&source, projection, overlay, (records, said, snapshot), &mut unclear))
            });
            match prepared.await? {
                Prepared::Batch(batch) => {
                    let outdated = std::mem::take(&mut self.intake.outdated);
                    let is_outdated = |record: &&Record| {
                        let of_record = |(table, key): &RowId| **table == *record.table && *key == record.key;
                        outdated.iter().any(of_record)
                    };
                    unclear.extend(records.iter().filter(is_outdated).cloned());
                    return Ok((*batch, unclear));
                }
                Prepared::Needs(missing) => self.intake.load(missing).await?,
                Prepared::TooLarge(_) => return Err(IntakeError::Endless.into()),
            }
        }
    }

    /// Reads objects as they are now, once more when the system is told something of them meanwhile.
    async fn read_again(&mut self, unclear: Vec<Record>) -> Result<usize, CaptureError> {
        let mut made = 0;
        let mut known = std::collections::BTreeSet::new();
        for record in unclear {
            if !known.insert((record.table.clone(), record.key.clone())) {
                continue;
            }
            loop {
                let asked_at = Timestamp::now();
                let Some(now) = self.read(&record).await? else {
                    let batch = self.gone(&record.table, &[record.key], record.at_ms).await?;
                    made += batch.entries.len();
                    self.write(batch).await?;
                    break;
                };
                let (batch, again) = self.batch((&[now], asked_at), Said::Read, false).await?;
                made += batch.entries.len();
                self.write(batch).await?;
                // It was told something while it was read.
                if again.is_empty() {
                    break;
                }
            }
        }
        Ok(made)
    }

    /// Reads a parked record again; gives how many events that made, or why it stays parked.
    pub(super) async fn read_parked(
        &mut self,
        name: &ParkedName,
    ) -> Result<Result<usize, String>, CaptureError> {
        let asked_at = Timestamp::now();
        let (table, key) = (&name.place, &name.key);
        match self.look(table, key).await? {
            Look::Now(now) => {
                let (batch, again) = self.batch((&[now], asked_at), Said::Read, false).await?;
                let made = batch.entries.len();
                self.write(batch).await?;
                Ok(Ok(made + self.read_again(again).await?))
            }
            Look::Gone => {
                let at_ms = asked_at.as_millisecond();
                let batch = self.gone(table, std::slice::from_ref(key), at_ms).await?;
                let made = batch.entries.len();
                self.write(batch).await?;
                Ok(Ok(made))
            }
            Look::Nothing => {
                Ok(Err("it cannot be read by itself either; it comes with its next change".to_owned()))
            }
        }
    }

    /// One object as it is now; `None` when it is gone.
    async fn read(&self, record: &Record) -> Result<Option<Record>, LedgerError> {
        Ok(match self.look(&record.table, &record.key).await? {
            // What it says of itself may be of the same instant again; it is the newest there is.
            Look::Now(now) => Some(Record { at_ms: now.at_ms.max(record.at_ms), ..now }),
            Look::Gone => None,
            Look::Nothing => Some(record.clone()),
        })
    }

    /// Looks at one object.
    async fn look(&self, table: &str, key: &str) -> Result<Look, LedgerError> {
        let target = &self.source.target;
        let Some(table) = target.connector.reading.table(table) else { return Ok(Look::Nothing) };
        let Some(Ok(request)) = target.connector.read(table, key) else { return Ok(Look::Nothing) };
        let mut failures = 0;
        loop {
            match target.ask("poll", &request, self.ledger.tenure()).await? {
                Some((Class::Applied, answer)) => {
                    let clock = answer.clock_ms(Timestamp::now());
                    return Ok(read_record(table, &answer, clock).map_or_else(
                        |reason| {
                            tracing::error!(table = %table.name, reason, "an object cannot be read");
                            Look::Nothing
                        },
                        Look::Now,
                    ));
                }
                Some((Class::Missing, _)) => return Ok(Look::Gone),
                Some((Class::Rejected | Class::Conflict, _)) => return Ok(Look::Nothing),
                _ => {
                    failures += 1;
                    let wait = crate::dispatch::retry::backoff(failures, rand::random());
                    tokio::time::sleep(wait.min(std::time::Duration::from_secs(30))).await;
                }
            }
        }
    }

    /// Objects that a list of all of them did not show are gone, unless they can be looked at: one that was made or has moved while
    /// the list was read is still there.
    async fn sweep(&mut self, load: i64, relation: &str) -> Result<usize, CaptureError> {
        let mut made = 0;
        loop {
            let most = i64::try_from(RECORDS).unwrap_or(i64::MAX);
            let unseen = unseen(self.ledger.reader(), &self.source.flow.name, relation, load, most).await?;
            if unseen.is_empty() {
                return Ok(made);
            }
            let asked_at = Timestamp::now();
            let (mut gone, mut there, mut keys) = (Vec::new(), Vec::new(), Vec::new());
            let table = self.source.target.connector.reading.table(relation);
            let is_readable = table.is_some_and(|table| table.read.is_some());
            for key in unseen {
                match if is_readable { self.look(relation, &key).await? } else { Look::Gone } {
                    Look::Gone => gone.push(key),
                    Look::Nothing => keys.push(key),
                    Look::Now(now) => {
                        keys.push(key);
                        there.push(now);
                    }
                }
            }
            let batch = self.gone(relation, &gone, Timestamp::now().as_millisecond()).await?;
            made += batch.entries.len();
            self.write(batch).await?;
            let (mut batch, again) = self.batch((&there, asked_at), Said::Read, true).await?;
            made += batch.entries.len();
            let (source, relation) = (self.source.flow.name.clone(), relation.to_owned());
            batch.loads.push(LoadWrite::Seen { load, source, relation, keys });
            self.write(batch).await?;
            made += self.read_again(again).await?;
        }
    }

    async fn gone(&mut self, table: &str, keys: &[String], at_ms: i64) -> Result<Batch, CaptureError> {
        let source = self.source.clone();
        loop {
            let prepared = self.intake.prepare(true, |projection, overlay| {
                let table = &source.flow.mapping.table_named(table)?.name;
                let gone = |key: &String| {
                    let change = Change::new(table, key, digest(key.as_bytes()), RowState::Absent);
                    projection.transaction(overlay, &transaction(change, at_ms, true), usize::MAX)
                };
                Some(keys.iter().filter_map(gone).flatten().collect())
            });
            match prepared.await? {
                Prepared::Batch(batch) => return Ok(*batch),
                Prepared::Needs(missing) => self.intake.load(missing).await?,
                Prepared::TooLarge(_) => return Err(IntakeError::Endless.into()),
            }
        }
    }
}

/// What marks rows as seen, and what comes when all that was not seen is gone.
fn split(mut batch: Batch) -> (Batch, Batch) {
    let (ends, seen) = std::mem::take(&mut batch.loads)
        .into_iter()
        .partition(|write| matches!(write, LoadWrite::End { .. }));
    let first = Batch { loads: seen, ..Batch::default() };
    batch.loads = ends;
    (first, batch)
}

/// The events of records, in their order.
fn emitted(
    source: &PollSource,
    projection: &Projection<'_>,
    overlay: &mut Overlay<'_>,
    (records, said, snapshot): (&[Record], Said, bool),
    unclear: &mut Vec<Record>,
) -> Vec<Emitted> {
    let mut found = Vec::new();
    for record in records {
        let Some(table) = source.flow.mapping.table_named(&record.table) else { continue };
        let Some(known) = overlay.row(&table.name, &record.key) else { continue };
        let row = row_of(table, record);
        let readable =
            source.target.connector.reading.table(&record.table).is_some_and(|table| table.read.is_some());
        match standing(known.as_deref(), &row, record.at_ms, said) {
            Standing::Old => continue,
            Standing::Unclear if readable => {
                unclear.push(record.clone());
                continue;
            }
            Standing::Unclear | Standing::Counts => {}
        }
        let ordinal = digest(&canonical_bytes(&Value::Object(
            row.iter().map(|(name, value)| (name.to_string(), value.clone())).collect(),
        )));
        let change = Change::new(&table.name, &record.key, ordinal, RowState::Present(row.into()));
        let transaction = transaction(change, record.since_ms, snapshot);
        found.extend(projection.transaction(overlay, &transaction, usize::MAX).unwrap_or_default());
    }
    found
}

fn standing(known: Option<&Row>, row: &Row, at_ms: i64, said: Said) -> Standing {
    let Some(known) = known else { return Standing::Counts };
    let known_ms = known.get(AT).and_then(Value::as_i64).unwrap_or(i64::MIN);
    match at_ms.cmp(&known_ms) {
        std::cmp::Ordering::Less => Standing::Old,
        std::cmp::Ordering::Greater => Standing::Counts,
        std::cmp::Ordering::Equal if said == Said::Read || known == row => Standing::Counts,
        std::cmp::Ordering::Equal => Standing::Unclear,
    }
}

/// The mapped members of an object; what it does not have is null, and what is larger than its bound is left out.
fn row_of(table: &TableSpec, record: &Record) -> Row {
    let (mut values, mut places, mut why) = (Vec::with_capacity(table.columns.len()), Vec::new(), Vec::new());
    let mut left = table.bounds.value_bytes.saturating_mul(VALUES_IN_ROW);
    for (place, name) in table.columns.iter().enumerate() {
        let Some(value) = record.object.get(&**name) else {
            values.push(Value::Null);
            continue;
        };
        let most = table.most_bytes(name).min(left);
        match weight(value) {
            Ok(bytes) if bytes <= most => {
                left -= bytes;
                values.push(storable(value));
            }
            Ok(bytes) => {
                places.push(place);
                why.push(format!("`{name}` has {} and is left out; {} is the most", size(bytes), size(most)));
                values.push(Value::Null);
            }
            Err(items) => {
                places.push(place);
                why.push(format!("`{name}` has {items} items and is left out; {LIST_ITEMS} are the most"));
                values.push(Value::Null);
            }
        }
    }
    table.protect(&table.columns, &mut values);
    let row = Row::new(table.columns.as_slice().into(), values);
    let row = if places.is_empty() {
        row
    } else {
        let key = shown(&record.key);
        row.without(&places, &format!("`{}` {key}: {}", record.table, why.join("; ")))
    };
    let at = (AT.into(), Value::from(record.at_ms));
    row.iter().map(|(name, value)| (name.clone(), value.clone())).chain([at]).collect()
}

/// Bytes of a value, about; or how many items a list of it has, when they are too many.
fn weight(value: &Value) -> Result<usize, usize> {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(8),
        Value::String(text) => Ok(text.len()),
        Value::Array(items) if items.len() > LIST_ITEMS => Err(items.len()),
        Value::Array(items) => items.iter().try_fold(2, |sum, item| Ok(sum + weight(item)?)),
        Value::Object(map) => {
            map.iter().try_fold(2, |sum, (name, item)| Ok(sum + name.len() + weight(item)?))
        }
    }
}

/// PostgreSQL's jsonb holds no NUL.
fn storable(value: &Value) -> Value {
    match value {
        Value::String(text) if text.contains('\0') => Value::String(text.replace('\0', "\u{FFFD}")),
        Value::Array(items) => Value::Array(items.iter().map(storable).collect()),
        Value::Object(map) => Value::Object(
            map.iter().map(|(key, value)| (key.replace('\0', "\u{FFFD}"), storable(value))).collect(),
        ),
        other => other.clone(),
    }
}

/// What a record says, as if a transaction had written it: its place is the time of the change, and a digest of what it says
/// (INV-4), so that it has the same identity whenever it is read.
fn transaction(change: Change, at_ms: i64, snapshot: bool) -> Transaction {
    let place = Lsn(u64::try_from(at_ms).unwrap_or_default());
    let last_ordinal = change.ordinal;
    Transaction {
        commit_lsn: place,
        end_lsn: place,
        committed_at: Timestamp::from_millisecond(at_ms).unwrap_or(Timestamp::UNIX_EPOCH),
        xid: 0,
        changes: vec![change],
        truncated: Vec::new(),
        row_changes: 1,
        last_ordinal,
        complete: true,
        marks: Vec::new(),
        snapshot,
        unreadable: Vec::new(),
    }
}

/// The first 52 bits of a SHA-256: a number that JSON holds exactly.
fn digest(bytes: &[u8]) -> u64 {
    let digest = Sha256::digest(bytes);
    let head = digest.iter().take(8).fold(0_u64, |number, byte| (number << 8) | u64::from(*byte));
    head >> 12
}
