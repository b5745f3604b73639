//! Reads a target back and compares it with what it should hold, in pages, whatever there is of it. What differs is put right by
//! ordinary deliveries, as far as ownership goes.

pub mod serve;
mod tally;

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::connector::classify::{Answer, Class};
use crate::connector::request::{Request, without_nulls};
use crate::connector::stream::{Listing, Table};
use crate::connector::{ObjectSpec, Shown, Strategy};
use crate::dispatch::Target;
use crate::dispatch::pace::Pace;
use crate::dispatch::plan::{Plan, plan, wanted};
use crate::dispatch::retry::backoff;
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
use crate::source::poll::page::read_record;
use crate::source::poll::{Pass, Record};
use tally::{Tally, fields, is_gone, laid_over};

/// Objects looked for at once that no page showed.
const UNSEEN: i64 = 200;
/// Part of the target's quota that a comparison takes at the most.
const SHARE: f64 = 0.1;
/// A page that cannot be had is given up after so many tries.
const TRIES: i32 = 10;

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

    /// Asks the target within the share of its quota that is for this.
    async fn ask(&self, request: &Request) -> Result<Option<(Class, Answer)>, LedgerError> {
        self.pace.wait(self.target, SHARE).await;
        (self.beat)();
        self.target.ask("reconcile", request, self.ledger.tenure()).await
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
                Err(reason) => return self.end(None, json!({"failed": object.name, "reason": reason})).await,
            }
        }
        let report = Value::Object(report);
        self.end(Some(report.clone()), report).await
    }

    async fn end(&self, report: Option<Value>, said: Value) -> Result<(), LedgerError> {
        let Comparison { id, target, repair, requested_by, .. } = self.comparison;
        let mut batch = Batch::default();
        batch.entry(NewEntry::new(
            EntryKind::Reconcile,
            None,
            json!({"reconcile": id, "target": target, "repair": repair, "requested_by": requested_by, "report": said}),
        ));
        batch.reconciled.push(ReconcileWrite::End { id: *id, report });
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
            self.take(object, (shown, table), &page.records, asked_at, &mut tally).await?;
            if !page.more {
                break;
            }
        }
        self.missing(object, table, started_at, &mut tally).await?;
        Ok(Ok(tally))
    }

    async fn page(
        &self,
        table: &Table,
        listing: &Listing,
        pass: &mut Pass,
    ) -> Result<Result<crate::source::poll::Page, String>, LedgerError> {
        let request = match pass.request("reconcile", listing, self.target.connector.encoding) {
            Ok(request) => request,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let mut tries = 0;
        loop {
            let asked = self.ask(&request).await?;
            if let Some((Class::Applied, answer)) = asked {
                let clock = answer.clock_ms(Timestamp::now());
                let place = (clock, self.target.way.base_url());
                return Ok(pass
                    .take_listed(table, listing, &answer, place)
                    .map_err(|error| error.to_string()));
            }
            tries += 1;
            if tries >= TRIES {
                return Ok(Err("the target does not answer with a page".into()));
            }
            sleep(backoff(tries, rand::random()).min(Duration::from_secs(30))).await;
        }
    }

    /// Compares the objects of a page.
    async fn take(
        &self,
        object: &ObjectSpec,
        (shown, table): (&Shown, &Table),
        records: &[Record],
        asked_at: Timestamp,
        tally: &mut Tally,
    ) -> Result<(), LedgerError> {
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
            let Some(now) = self.read(table, &record.key).await? else { continue };
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
            let difference = Difference {
                kind: Kind::Different,
                object: name.clone(),
                canonical_id: canonical_id.clone(),
                external_id: record.key.clone(),
                fields: fields.collect(),
                repaired: self.comparison.repair,
            };
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
        self.ledger.writer().write(batch).await.map(|_| ())
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
        let stands =
            by_lanes(self.ledger.reader(), (&lane.0, &lane.1), std::slice::from_ref(&lane.2)).await?;
        let kind = match stands.first() {
            // On its way, or just made.
            Some(due) if due.external_id.is_none() => return Ok(()),
            Some(_) => Kind::Doubled,
            None => Kind::Extra,
        };
        let difference = Difference {
            kind,
            object: object.name.clone(),
            canonical_id,
            external_id: record.key.clone(),
            fields: json!([]),
            repaired: false,
        };
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
        let found = by_lanes(self.ledger.reader(), (&target.name, object), &ids).await?;
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
    ) -> Result<(), LedgerError> {
        let (target, name, id) = (&self.target.name, &object.name, self.comparison.id);
        let mut after = String::new();
        loop {
            (self.beat)();
            let of = (id, target.as_str(), name.as_str());
            let unseen = unseen(self.ledger.reader(), of, started_at, &after, UNSEEN).await?;
            let Some((_, last)) = unseen.last() else { return Ok(()) };
            after.clone_from(last);
            let mut batch = Batch::default();
            for (external_id, canonical_id) in unseen {
                if self.read(table, &external_id).await?.is_some() {
                    tally.found += 1;
                    continue;
                }
                let lane =
                    Lane { target: target.clone(), object: name.clone(), canonical_id: canonical_id.clone() };
                if self.comparison.repair {
                    batch.reconciled.push(ReconcileWrite::Gone(lane.clone()));
                    batch.checks.push(lane);
                }
                let difference = Difference {
                    kind: Kind::Missing,
                    object: name.clone(),
                    canonical_id,
                    external_id,
                    fields: json!([]),
                    repaired: self.comparison.repair,
                };
                tally.note(&difference);
                batch.reconciled.push(ReconcileWrite::Found { id, difference });
            }
            self.ledger.writer().write(batch).await?;
        }
    }

    /// One object as it is now; `None` when it is not there.
    async fn read(&self, table: &Table, key: &str) -> Result<Option<Value>, LedgerError> {
        let value = Value::from(key);
        let scope = Scope::new([("key", &value)]);
        let Some(Ok(request)) =
            table.read.as_ref().map(|read| read.request("read", self.target.connector.encoding, &scope))
        else {
            return Ok(None);
        };
        for tries in 1..=TRIES {
            match self.ask(&request).await? {
                Some((Class::Applied, answer)) => {
                    let record = read_record(table, &answer, answer.clock_ms(Timestamp::now()));
                    return Ok(record.ok().map(|record| record.object).filter(|object| !is_gone(object)));
                }
                Some((Class::Missing | Class::Rejected | Class::Conflict, _)) => return Ok(None),
                _ => sleep(backoff(tries, rand::random()).min(Duration::from_secs(30))).await,
            }
        }
        Ok(None)
    }
}
