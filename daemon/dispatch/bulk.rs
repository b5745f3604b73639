//! Many deliveries in one request: attempts of all of them into the ledger, the request, and the outcome of each.
//!
//! What did not go through together goes by itself the next time, so that one bad object holds up nobody else. What is in doubt
//! after a bulk request is sent again, one by one or, where a repetition is the same, together: only objects that the vendor
//! matches by our id go this way.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::time::sleep;

use super::deliver::Delivery;
use super::evidence::contested;
use super::job::Beginning;
use super::outcome::Outcome;
use super::quota::Permit;
use super::retry::backoff;
use super::target::Target;
use super::unsent::Waiting;
use crate::connector::bulk::{Bulk, ItemOutcome};
use crate::connector::classify::Class;
use crate::connector::request::{Request, encode};
use crate::event::{canonical_bytes, sha256_hex};
use crate::ledger::batch::{Batch, CallWrite, RetryWrite};
use crate::ledger::erasures::ERASED;
use crate::ledger::outbox::Due;
use crate::ledger::{Ledger, LedgerError};
use crate::mapping::expression::EvaluationError;
use crate::mapping::scope::Scope;

/// How long a bulk request that was never answered may still be worked off: only then is it safe to send anything newer.
const SETTLED_AFTER: Duration = Duration::from_secs(30);

/// How often that is counted anew while the request waits until it may leave.
const PUT_OFF_EVERY: Duration = Duration::from_secs(5);

/// Attempts after which objects go by themselves when the target says "not now" of all together.
const PATIENT: i32 = 3;

/// One of many.
pub struct Item {
    /// The delivery.
    pub delivery: Delivery,
    /// What would be sent if it went by itself.
    pub request: Request,
    /// What it has to do without.
    pub wishes: Vec<String>,
}

/// Deliveries that go together.
pub struct BulkDelivery {
    /// The ledger.
    pub ledger: Ledger,
    /// The target.
    pub target: Arc<Target>,
    /// Object of its connector.
    pub object: String,
    /// Which of its bulk requests.
    pub way: usize,
    /// All of them.
    pub items: Vec<Item>,
    /// They count as one among those that wait for their permit.
    pub unsent: Waiting,
    /// They will be one job there.
    pub job: Option<Beginning>,
}

/// Which of the bulk requests of its object a delivery may go with.
pub fn way_of(target: &Target, due: &Due, request: &Request, released: &Value) -> Option<usize> {
    let object = target.connector.object(&due.lane.object)?;
    if due.alone || request.step != "upsert" || target.shadow || target.bulk_is_refused(&due.lane.object) {
        return None;
    }
    let body: Value = serde_json::from_str(request.body.as_deref()?).ok()?;
    let known = Value::Bool(due.external_id.is_some());
    let event = due.event.get("data").cloned().unwrap_or_default();
    let scope = Scope::new([("known", &known), ("body", &body), ("released", released), ("event", &event)]);
    let may = |bulk: &Bulk| (bulk.repeatable || !due.uncertain) && bulk.when.holds(&scope).unwrap_or(false);
    object.bulk.iter().position(may)
}

impl BulkDelivery {
    fn bulk(&self) -> Option<&Bulk> {
        self.target.connector.object(&self.object)?.bulk.get(self.way)
    }

    /// Carries it out. When it returns, the outcome of each is durable, or that of none is known and a job is to be followed.
    pub async fn run(self) -> Result<(), LedgerError> {
        let Some(bulk) = self.bulk() else { return Ok(()) };
        let request = match self.request(bulk) {
            Ok(request) => request,
            Err(error) => return self.go_alone(&error.to_string(), Duration::ZERO).await,
        };
        let keys: Vec<String> = self.items.iter().map(|item| item.delivery.idempotency_key()).collect();
        let key = format!("tw-bulk-{}", sha256_hex(keys.join("\n").as_bytes()).get(..40).unwrap_or_default());
        self.target.open(&self.object, &request, Some(&self.unsent)).await;
        self.ledger.writer().write(self.attempts(&request, &keys, &key)).await?;
        for item in &self.items {
            if let Some(reason) = item.delivery.lost_a_value(&item.request).await? {
                let batch = self.not_done(&Outcome::unsent(&reason), Duration::ZERO, true);
                return self.ledger.writer().write(ended(batch, &key, false)).await.map(|_| ());
            }
        }
        let Some(first) = self.items.first() else { return Ok(()) };
        let permit = self.permit(&request, &key).await?;
        self.unsent.leave();
        if let Some(batch) = self.without_the_forgotten().await? {
            return self.ledger.writer().write(ended(batch, &key, false)).await.map(|_| ());
        }
        let outcome = first.delivery.send_with(permit, &request, &key).await?;
        let batch = match outcome.class {
            Class::Applied | Class::Duplicate => self.accepted(bulk, &key, &outcome).await?,
            Class::Throttled | Class::Transient | Class::Unauthorised => {
                let attempts =
                    self.items.iter().map(|item| item.delivery.due.attempts).max().unwrap_or_default();
                let wait = outcome.retry_after.unwrap_or_else(|| backoff(attempts + 1, rand::random()));
                // An answer that comes again and again is about one of them.
                let alone =
                    outcome.class == Class::Transient && outcome.status.is_some() && attempts >= PATIENT;
                self.not_done(&outcome, wait, alone)
            }
            Class::Uncertain => self.in_doubt(&outcome, SETTLED_AFTER),
            Class::Rejected | Class::Conflict | Class::Missing => {
                if matches!(outcome.status, Some(403..=405 | 501)) {
                    self.target.refuse_bulk(&self.object);
                }
                self.not_done(&outcome, Duration::ZERO, true)
            }
        };
        let is_running = batch.calls.iter().any(|call| matches!(call, CallWrite::Running { .. }));
        self.ledger.writer().write(ended(batch, &key, is_running)).await?;
        self.job.filter(|_| is_running).into_iter().for_each(Beginning::runs);
        Ok(())
    }

    /// Where the subject of one was forgotten meanwhile, nothing of it leaves, and all others go by themselves.
    async fn without_the_forgotten(&self) -> Result<Option<Batch>, LedgerError> {
        let mut forgotten = Vec::with_capacity(self.items.len());
        for item in &self.items {
            forgotten.push(item.delivery.is_forgotten().await?);
        }
        if !forgotten.contains(&true) {
            return Ok(None);
        }
        let of = |reason: &str, wanted: bool| {
            let items = self.items.iter().zip(&forgotten).filter(move |(_, is)| **is == wanted);
            not_done_of(items.map(|(item, _)| item), &Outcome::unsent(reason), Duration::ZERO, true)
        };
        let mut batch = of(ERASED, true);
        batch.append(of("another one of the same request was given up", false));
        Ok(Some(batch))
    }

    /// Waits for the permit; meanwhile the time until its outcome must be known is put off.
    async fn permit(&self, request: &Request, key: &str) -> Result<Permit, LedgerError> {
        let mut permit = std::pin::pin!(self.target.permit(&self.object, request, Some(&self.unsent)));
        loop {
            tokio::select! {
                biased;
                permit = &mut permit => return Ok(permit),
                () = sleep(PUT_OFF_EVERY) => {}
            }
            let waiting = CallWrite::Waiting { key: key.to_owned(), settled_after: SETTLED_AFTER };
            self.ledger.writer().write(Batch { calls: vec![waiting], ..Batch::default() }).await?;
        }
    }

    fn request(&self, bulk: &Bulk) -> Result<Request, EvaluationError> {
        let mut items = Vec::with_capacity(self.items.len());
        for Item { delivery, request, .. } in &self.items {
            let body =
                request.body.as_deref().and_then(|body| serde_json::from_str(body).ok()).unwrap_or_default();
            items.push(bulk.item(&body, delivery.due.external_id.as_deref())?);
        }
        let body = bulk.body(items);
        let sha256 = sha256_hex(&canonical_bytes(&body));
        let (text, content_type) = encode(self.target.connector.encoding, &body, true);
        Ok(Request {
            content_type: Some(content_type.to_owned()),
            body: Some(text),
            sha256: Some(sha256),
            ..Request::bare("bulk", &bulk.line, &Scope::new([]))?
        })
    }

    /// The attempts of all, and what is sent for them.
    fn attempts(&self, request: &Request, keys: &[String], key: &str) -> Batch {
        let mut batch = Batch::default();
        for (item, own) in self.items.iter().zip(keys) {
            batch.append(item.delivery.begin(request, &item.request, own, &item.wishes, Some(key)));
        }
        for write in &mut batch.sending {
            write.settled_after = Some(SETTLED_AFTER);
        }
        let way = i16::try_from(self.way).unwrap_or_default();
        let epoch = self.ledger.membership().map_or(0, |membership| membership.process.epoch);
        batch.calls.push(CallWrite::Begin {
            key: key.to_owned(),
            target: self.target.name.clone(),
            object: self.object.clone(),
            way,
            deliveries: self.items.iter().map(|item| item.delivery.due.id).collect(),
            request: request.to_json(),
            epoch,
        });
        batch
    }

    /// The answer says what became of each, or which job will.
    async fn accepted(&self, bulk: &Bulk, key: &str, outcome: &Outcome<'_>) -> Result<Batch, LedgerError> {
        let scope = Scope::new([("answer", &outcome.answer)]);
        if let Some(results) = &bulk.results {
            let results = results.evaluate(&scope).unwrap_or_default();
            let results = results.as_array().cloned().unwrap_or_default();
            let outcomes = bulk.result.read(&results, self.items.len());
            let each = self.items.iter().map(|item| (&item.delivery, &item.request)).zip(outcomes);
            return settle_each(each.collect(), key).await;
        }
        let jobs = self.target.connector.jobs.as_ref();
        let job = jobs.and_then(|jobs| match jobs.id.evaluate(&scope).ok()? {
            Value::String(job) if !job.is_empty() => Some((job, jobs.patience)),
            Value::Number(job) => Some((job.to_string(), jobs.patience)),
            _ => None,
        });
        let Some((job, patience)) = job else { return Ok(self.in_doubt(outcome, SETTLED_AFTER)) };
        let running = CallWrite::Running { key: key.to_owned(), job, patience };
        Ok(Batch { calls: vec![running], ..Batch::default() })
    }

    /// Nothing of it was carried out.
    fn not_done(&self, outcome: &Outcome<'_>, wait: Duration, alone: bool) -> Batch {
        not_done_of(self.items.iter(), outcome, wait, alone)
    }

    /// Perhaps it was, or still is: again once it must be over, each by itself where a repetition is not the same.
    fn in_doubt(&self, outcome: &Outcome<'_>, wait: Duration) -> Batch {
        let mut batch = Batch::default();
        let alone = !self.bulk().is_some_and(|bulk| bulk.repeatable);
        for item in &self.items {
            batch.entry(item.delivery.outcome_entry(Class::Uncertain, None, outcome, None));
            batch.retries.push(RetryWrite { alone, ..item.delivery.retry(wait, outcome, true, false) });
        }
        batch
    }

    async fn go_alone(&self, reason: &str, wait: Duration) -> Result<(), LedgerError> {
        let outcome = Outcome::unsent(reason);
        self.ledger.writer().write(self.not_done(&outcome, wait, true)).await.map(|_| ())
    }
}

fn not_done_of<'a>(
    items: impl Iterator<Item = &'a Item>,
    outcome: &Outcome<'_>,
    wait: Duration,
    alone: bool,
) -> Batch {
    let mut batch = Batch::default();
    for item in items {
        batch.entry(item.delivery.outcome_entry(outcome.class, None, outcome, None));
        batch.retries.push(RetryWrite { alone, ..item.delivery.retry(wait, outcome, false, alone) });
    }
    batch
}

/// What each of many came to. Of an id that two were told, or that contradicts what is known, nobody knows whose it is.
pub(super) async fn settle_each(
    each: Vec<((&Delivery, &Request), Option<ItemOutcome<'_>>)>,
    key: &str,
) -> Result<Batch, LedgerError> {
    let mut told = Vec::with_capacity(each.len());
    for ((delivery, _), outcome) in &each {
        let applied = outcome.as_ref().filter(|outcome| outcome.class == Class::Applied);
        told.extend(applied.and_then(|outcome| Some((*delivery, outcome.external_id.clone()?))));
    }
    let contested = contested(&told).await?;
    let mut batch = Batch::default();
    for ((delivery, request), outcome) in each {
        let is_meant = |item: &ItemOutcome<'_>| {
            let id = item.external_id.as_ref();
            let is_other =
                id.is_some_and(|id| delivery.due.external_id.as_ref().is_some_and(|known| known != id));
            let is_ours = item.ours.as_ref().is_none_or(|ours| ours == delivery.own_name());
            item.class != Class::Applied
                || (is_ours && !is_other && id.is_none_or(|id| !contested.contains(id)))
        };
        batch.append(settle(delivery, request, outcome.filter(is_meant), key));
    }
    Ok(batch)
}

/// What one of many came to; nothing said of it means that it is not known.
fn settle(delivery: &Delivery, request: &Request, outcome: Option<ItemOutcome<'_>>, key: &str) -> Batch {
    let Some(item) = outcome else {
        let outcome = Outcome::unsent("nothing certain is said of it in the outcome of the bulk request");
        let mut batch = Batch::default();
        batch.entry(delivery.outcome_entry(Class::Uncertain, None, &outcome, None));
        batch
            .retries
            .push(RetryWrite { alone: true, ..delivery.retry(Duration::ZERO, &outcome, true, false) });
        return batch;
    };
    let outcome = Outcome {
        class: item.class,
        field: item.field,
        reason: format!("one of bulk request {key}: {}", item.class.as_str()),
        answer: item.result,
        ..Outcome::unsent("")
    };
    let external_id = item.external_id.or_else(|| delivery.due.external_id.clone());
    let (mut batch, _) = delivery.settle(request, None, &outcome, external_id);
    for retry in &mut batch.retries {
        retry.alone = true;
    }
    // What a vendor says of one among many may be about the others: by itself it says so again.
    for closed in batch.closed.iter_mut().filter(|closed| closed.state == "rejected") {
        batch
            .retries
            .push(RetryWrite { alone: true, ..delivery.retry(Duration::ZERO, &outcome, false, true) });
        closed.id = 0;
    }
    batch.closed.retain(|closed| closed.id != 0);
    batch
}

/// The call is over, unless a job runs.
fn ended(mut batch: Batch, key: &str, is_running: bool) -> Batch {
    if !is_running {
        batch.calls.push(CallWrite::Done { key: key.to_owned() });
    }
    batch
}
