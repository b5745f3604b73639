//! Reads a target back and compares it with what it should hold, in pages, whatever there is of it. What differs is put right by
//! ordinary deliveries, as far as ownership goes.

mod read;
pub mod serve;
mod tally;

use std::collections::HashMap;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::connector::request::without_nulls;
use crate::connector::stream::{Listing, Table};
use crate::connector::{ObjectSpec, Shown, Strategy};
use crate::dispatch::Target;
use crate::dispatch::pace::Pace;
use crate::dispatch::plan::{Plan, own_id, plan, wanted};
use crate::dispatch::together::together;
use crate::event::{canonical_bytes, sha256_hex};
use crate::ledger::batch::{Batch, Lane};
use crate::ledger::entry::{EntryKind, NewEntry};
use crate::ledger::held::SeenWrite;
use crate::ledger::outbox::{Due, by_lanes};
use crate::ledger::reconcile::{Comparison, Difference, Kind, ReconcileWrite, expected, known, unseen};
use crate::ledger::standing::holders;
use crate::ledger::{Ledger, LedgerError};
use crate::mapping::scope::Scope;
use crate::source::poll::{Pass, Record};
use read::Reading;
use tally::{Tally, fields, laid_over};

/// Objects looked for at once that no page showed.
const UNSEEN: i64 = 200;

/// A comparison while it runs.
pub struct Reconciler<'a> {
    /// The ledger.
    pub ledger: &'a Ledger,
    /// The target.
    pub target: &'a Target,
    /// What was asked for.
    pub comparison: &'a Comparison,
    /// Shows that it goes on.
    pub beat: &'a (dyn Fn() + Sync),
    pace: Pace,
}

/// Objects of a connector that can be read back, each with its table.
#[must_use]
pub fn readable(target: &Target) -> Vec<(&ObjectSpec, &Shown, &Table, &Listing)> {
    let reading = &target.connector.reading;
    let objects = target.connector.objects.iter();
    let readable =
        |object: &'_ &ObjectSpec| !matches!(object.strategy, Strategy::Post { .. } | Strategy::Publish(_));
    let found = objects.filter(readable).filter_map(|object| {
        let shown = object.shown.as_ref()?;
        let table = reading.table(&shown.table)?;
        Some((object, shown, table, table.list.as_ref()?))
    });
    found.collect()
}

impl<'a> Reconciler<'a> {
    /// It has not begun.
    #[must_use]
    pub fn new(
        ledger: &'a Ledger,
        target: &'a Target,
        comparison: &'a Comparison,
        beat: &'a (dyn Fn() + Sync),
    ) -> Self {
        Self { ledger, target, comparison, beat, pace: Pace::default() }
    }

    /// Compares everything that was asked for, and writes down what came of it.
    pub async fn run(&self) -> Result<(), LedgerError> {
        let started_at = Timestamp::now();
        let mut report = serde_json::Map::new();
        for (object, shown, table, listing) in readable(self.target) {
            if !self.comparison.objects.is_empty() && !self.comparison.objects.contains(&object.name) {
                continue;
            }
            match self.compare(object, (shown, table, listing), started_at).await? {
                Ok(tally) => drop(report.insert(object.name.clone(), tally.report())),
                Err(reason) => {
                    tracing::warn!(target_name = %self.target.name, object = %object.name, reason, "the target cannot be read back");
                    return self.end(json!({"failed": object.name, "reason": reason}), false).await;
                }
            }
        }
        self.end(Value::Object(report), true).await
    }

    async fn end(&self, report: Value, is_done: bool) -> Result<(), LedgerError> {
        let Comparison { id, target, repair, requested_by, .. } = self.comparison;
        let mut batch = Batch::default();
        batch.entry(NewEntry::new(
            EntryKind::Reconcile,
            None,
            json!({"reconcile": id, "target": target, "repair": repair, "requested_by": requested_by, "report": report}),
        ));
        batch.reconciled.push(ReconcileWrite::End { id: *id, report, is_done });
        self.ledger.writer().write(batch).await.map(|_| ())
    }

    async fn compare(
        &self,
        object: &ObjectSpec,
        (shown, table, listing): (&Shown, &Table, &Listing),
        started_at: Timestamp,
    ) -> Result<Result<Tally, String>, LedgerError> {
        let name = &object.name;
        let mut tally = Tally {
            expected: expected(self.ledger.reader(), &self.target.name, name).await?,
            ..Tally::default()
        };
        let mut pass = Pass::new(0, started_at);
        loop {
            (self.beat)();
            let asked_at = Timestamp::now();
            let page = match self.page(table, listing, &mut pass).await? {
                Ok(page) => page,
                Err(reason) => return Ok(Err(reason)),
            };
            if let Err(reason) =
                self.take(object, (shown, table), &page.records, asked_at, &mut tally).await?
            {
                return Ok(Err(reason));
            }
            if !page.more {
                break;
            }
        }
        Ok(self.missing(object, table, started_at, &mut tally).await?.map(|()| tally))
    }

    /// Compares the objects of a page.
    async fn take(
        &self,
        object: &ObjectSpec,
        (shown, table): (&Shown, &Table),
        records: &[Record],
        asked_at: Timestamp,
        tally: &mut Tally,
    ) -> Result<Result<(), String>, LedgerError> {
        let (target, name, id) = (&self.target.name, &object.name, self.comparison.id);
        tally.listed += records.len() as u64;
        let keys: Vec<String> = records.iter().map(|record| record.key.clone()).collect();
        let ours: HashMap<String, String> =
            known(self.ledger.reader(), target, name, &keys).await?.into_iter().collect();
        let mut batch = Batch::default();
        let wanted = self.wanted(name, ours.values().cloned().collect()).await?;
        for record in records {
            let Some(canonical_id) = ours.get(&record.key) else {
                self.unknown(object, shown, record, tally, &mut batch).await?;
                continue;
            };
            tally.found += 1;
            let Some((due, body)) = wanted.get(canonical_id) else { continue };
            let lane =
                Lane { target: target.clone(), object: name.clone(), canonical_id: canonical_id.clone() };
            if fields(shown, body, &record.object).is_empty()
                || due.told_at.is_some_and(|told| told >= asked_at)
            {
                continue;
            }
            // As it is now, for something may have moved meanwhile.
            let now = match self.read(table, &record.key).await? {
                Ok(Reading::There(now)) => now,
                Ok(Reading::Gone) => continue,
                Ok(Reading::Refused) => {
                    tally.unread += 1;
                    continue;
                }
                Err(reason) => return Ok(Err(reason)),
            };
            let different = fields(shown, body, &now);
            if different.is_empty() {
                continue;
            }
            for (field, ..) in &different {
                *tally.fields.entry(field.clone()).or_default() += 1;
            }
            let fields = different
                .iter()
                .map(|(field, ours, theirs)| json!({"field": field, "ours": ours, "theirs": theirs}));
            let ids = (canonical_id.clone(), record.key.clone());
            let difference = self.difference(Kind::Different, name, ids, fields.collect());
            if self.comparison.repair {
                let body = laid_over(body, &shown.as_body(&now));
                let sha256 = sha256_hex(&canonical_bytes(&without_nulls(&body)));
                batch.seen.push(SeenWrite { lane: lane.clone(), body, sha256 });
                batch.checks.push(lane);
            }
            tally.note(&difference);
            batch.reconciled.push(ReconcileWrite::Found { id, difference });
        }
        let external_ids = ours.into_keys().collect();
        let (target, object) = (target.clone(), name.clone());
        batch.reconciled.push(ReconcileWrite::Seen { id, target, object, external_ids });
        self.ledger.writer().write(batch).await.map(|_| Ok(()))
    }

    fn difference(
        &self,
        kind: Kind,
        object: &str,
        (canonical_id, external_id): (String, String),
        fields: Value,
    ) -> Difference {
        // What is somebody else's, or one too many, is not ours to put right.
        let repaired = self.comparison.repair && kind == Kind::Different;
        Difference { kind, object: object.to_owned(), canonical_id, external_id, fields, repaired }
    }

    /// True when the object came from the target: what is gone there cannot be made again under its number.
    fn is_its_own(&self, lane: &Lane) -> bool {
        own_id(&self.target.connector, &Due::bare(lane.clone())).is_some()
    }

    /// An object that we know nothing of: somebody else's, or one that carries an id of ours.
    async fn unknown(
        &self,
        object: &ObjectSpec,
        shown: &Shown,
        record: &Record,
        tally: &mut Tally,
        batch: &mut Batch,
    ) -> Result<(), LedgerError> {
        let ours = shown.ours.as_ref().and_then(|ours| {
            let value = ours.evaluate(&Scope::new([("record", &record.object)])).ok()?;
            value.as_str().filter(|id| !id.is_empty()).map(str::to_owned)
        });
        let Some(canonical_id) = ours else {
            tally.others += 1;
            return Ok(());
        };
        let lane = (self.target.name.clone(), object.name.clone(), canonical_id.clone());
        let stands = by_lanes(self.ledger, (&lane.0, &lane.1), std::slice::from_ref(&lane.2)).await?;
        let kind = match stands.first() {
            // On its way, or just made.
            Some(due) if due.external_id.is_none() => return Ok(()),
            Some(_) => Kind::Doubled,
            None => Kind::Extra,
        };
        let ids = (canonical_id, record.key.clone());
        let difference = self.difference(kind, &object.name, ids, json!([]));
        tally.note(&difference);
        batch.reconciled.push(ReconcileWrite::Found { id: self.comparison.id, difference });
        Ok(())
    }

    /// What should stand there of these objects, without those that are on their way.
    async fn wanted(
        &self,
        object: &str,
        ids: Vec<String>,
    ) -> Result<HashMap<String, (Due, Value)>, LedgerError> {
        let target = self.target;
        let found = by_lanes(self.ledger, (&target.name, object), &ids).await?;
        let found = found.into_iter().filter(|due| !due.is_open && due.operation == "upsert").collect();
        let found = together(self.ledger.reader(), target, found).await?;
        let mut planned = Vec::with_capacity(found.len());
        let mut wants = Vec::new();
        for mut due in found {
            (due.applied_sha256, due.applied_body, due.uncertain) = (None, None, false);
            due.shown_body = None;
            if target.versions.lift(&target.connector.system, &mut due).is_err() {
                continue;
            }
            wants.extend(wanted(&target.connector, &due).unwrap_or_default());
            planned.push(due);
        }
        let held = holders(self.ledger.reader(), &target.name, &wants).await?;
        let holder = |want: &str| held.get(want).cloned();
        let mut bodies = HashMap::new();
        for due in planned {
            let plan = plan(&target.connector, false, &due, Timestamp::now(), &holder);
            if let Ok(Plan::Send { request, .. }) = plan
                && let Some(says) = request.says
            {
                bodies.insert(due.lane.canonical_id.clone(), (due, says));
            }
        }
        Ok(bodies)
    }

    /// Objects that should be there and that no page showed.
    async fn missing(
        &self,
        object: &ObjectSpec,
        table: &Table,
        started_at: Timestamp,
        tally: &mut Tally,
    ) -> Result<Result<(), String>, LedgerError> {
        let (target, name, id) = (&self.target.name, &object.name, self.comparison.id);
        let mut after = String::new();
        loop {
            (self.beat)();
            let of = (id, target.as_str(), name.as_str());
            let unseen = unseen(self.ledger.reader(), of, started_at, &after, UNSEEN).await?;
            let Some((_, last)) = unseen.last() else { return Ok(Ok(())) };
            after.clone_from(last);
            let mut batch = Batch::default();
            for (external_id, canonical_id) in unseen {
                match self.read(table, &external_id).await? {
                    Ok(Reading::Gone) => {}
                    Ok(Reading::There(_)) => {
                        tally.found += 1;
                        continue;
                    }
                    Ok(Reading::Refused) => {
                        tally.unread += 1;
                        continue;
                    }
                    Err(reason) => return Ok(Err(reason)),
                }
                let lane =
                    Lane { target: target.clone(), object: name.clone(), canonical_id: canonical_id.clone() };
                let repaired = self.comparison.repair && !self.is_its_own(&lane);
                if repaired {
                    batch.reconciled.push(ReconcileWrite::Gone(lane.clone()));
                    batch.checks.push(lane);
                }
                let ids = (canonical_id, external_id);
                let difference =
                    Difference { repaired, ..self.difference(Kind::Missing, name, ids, json!([])) };
                tally.note(&difference);
                batch.reconciled.push(ReconcileWrite::Found { id, difference });
            }
            self.ledger.writer().write(batch).await?;
        }
    }
}
