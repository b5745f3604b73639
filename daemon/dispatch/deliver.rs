//! One delivery: attempt into the ledger, request to the target, outcome into the ledger.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::adopt::Adopted;
use super::plan::{Plan, conflicting_want};
use super::retry::backoff;
use super::target::{Note, Target, Waiting};
use crate::connector::Strategy;
use crate::connector::classify::{Answer, Class};
use crate::connector::request::Request;
use crate::event::sha256_hex;
use crate::ledger::batch::{
    AppliedWrite, Batch, Cause, ClaimWrite, ClosedWrite, EntryIndex, RetryWrite, SendingWrite,
};
use crate::ledger::entry::{EntryKind, NewEntry};
use crate::ledger::outbox::Due;
use crate::ledger::{Ledger, LedgerError};
use crate::target::SendError;

/// A delivery on its way.
pub struct Delivery {
    /// The ledger.
    pub ledger: Ledger,
    /// The target.
    pub target: Arc<Target>,
    /// What is owed.
    pub due: Due,
    /// Until its first request may leave, it counts among those on their way there.
    unsent: Mutex<Option<Waiting>>,
}

/// What an exchange told us.
pub(super) struct Outcome<'a> {
    pub(super) class: Class,
    pub(super) field: Option<&'a str>,
    pub(super) status: Option<u16>,
    pub(super) answer: Value,
    pub(super) retry_after: Option<Duration>,
    pub(super) reason: String,
    /// The answer is one that the vendor stored for the key earlier.
    pub(super) replayed: bool,
}

impl Delivery {
    /// A delivery that has not begun.
    #[must_use]
    pub fn new(ledger: Ledger, target: Arc<Target>, due: Due) -> Self {
        let unsent = Mutex::new(Some(target.unsent.enter()));
        Self { ledger, target, due, unsent }
    }

    /// Sends a request whose attempt is durable, as soon as the target may be spoken to, and judges the answer.
    ///
    /// A process that may have been taken for dead while it waited, or slept, sends nothing more: another one resolves what it
    /// has begun.
    pub(super) async fn ask(&self, request: &Request, key: &str) -> Result<Outcome<'_>, LedgerError> {
        let object = &self.due.lane.object;
        let permit = self.target.permit(object, request).await;
        drop(self.unsent.lock().unwrap_or_else(PoisonError::into_inner).take());
        let result = self.ledger.tenure().during(self.target.way.send(request, key)).await;
        let result = result.ok_or(LedgerError::Fenced)?;
        drop(permit);
        let (outcome, answer) = self.judge(&request.step, result);
        let Outcome { class, retry_after, .. } = outcome;
        self.target.note(&Note { object, request, class, answer: answer.as_ref(), retry_after });
        Ok(outcome)
    }

    /// Carries out `plan`. When it returns, the outcome is durable.
    pub async fn run(self, plan: Plan) -> Result<(), LedgerError> {
        if self.target.shadow {
            return self.shadow(plan).await;
        }
        match plan {
            Plan::Skip { reason, claims } => self.close(("duplicate", None), reason.to_owned(), claims).await,
            Plan::Park(cause, reason) => {
                tracing::warn!(delivery = self.due.id, target = %self.due.lane.target, reason, "delivery parked");
                self.close(("parked", Some(cause)), reason, None).await
            }
            Plan::Adopt { look_ups, request, wishes } => match self.adopt(look_ups).await? {
                Adopted::Nobody => self.send(request, wishes).await,
                Adopted::Settled => Ok(()),
            },
            Plan::Send { request, wishes } => self.send(request, wishes).await,
            Plan::Find(request) => self.find(request).await,
        }
    }

    /// The same for every attempt of a round: a new round is a deliberately new request.
    fn idempotency_key(&self) -> String {
        if self.due.uncertain
            && let Some(key) = &self.due.idempotency_key
        {
            return key.clone();
        }
        let event = self.due.event.get("event_id").and_then(Value::as_str).unwrap_or_default();
        let lane = &self.due.lane;
        let parts = [event, &lane.target, &lane.object, &self.due.operation, &self.due.round.to_string()];
        format!("tw-{}", sha256_hex(parts.join("\n").as_bytes()).get(..40).unwrap_or_default())
    }

    pub(super) async fn send(&self, request: Request, wishes: Vec<String>) -> Result<(), LedgerError> {
        let key = self.idempotency_key();
        if self.target.dedup.may_be_delivered(&key).await
            && crate::ledger::outbox::is_applied(self.ledger.reader(), self.due.id).await?
        {
            return Ok(());
        }
        self.target.open(&self.due.lane.object).await;
        let mut batch = self.attempt(&request, &key);
        self.supersede(&mut batch);
        if !self.due.uncertain {
            batch.claims.extend(self.claim(request.holds.clone(), wishes));
        }
        batch.sending.push(SendingWrite {
            id: self.due.id,
            idempotency_key: key.clone(),
            request: request.to_json(),
            attempted_at: Timestamp::now(),
        });
        let attempt_seq = self.ledger.writer().write(batch).await?;
        let mut outcome = self.ask(&request, &key).await?;
        if outcome.class == Class::Applied {
            self.follow_up(&request, &mut outcome).await?;
        }
        let (batch, delivered) = self.settle(&request, attempt_seq, &outcome);
        let seq = self.ledger.writer().write(batch).await?;
        if delivered {
            self.target.dedup.delivered(&key, seq).await;
        }
        Ok(())
    }

    /// What the object holds and wishes at the target from now on, where that matters.
    fn claim(&self, reserve: Vec<String>, wishes: Vec<String>) -> Option<ClaimWrite> {
        let matters = self.target.has_unique(&self.due.lane.object) || !self.due.requires.is_empty();
        matters.then(|| ClaimWrite {
            lane: self.due.lane.clone(),
            reserve,
            wishes,
            event_seq: self.due.event_seq,
            requires: self.due.requires.clone(),
        })
    }

    /// The attempt entry of a request.
    pub(super) fn attempt(&self, request: &Request, key: &str) -> Batch {
        let mut batch = Batch::default();
        batch.entry(NewEntry::new(
            EntryKind::Attempt,
            self.correlation_id(),
            json!({
                "delivery": self.due.id, "event_seq": self.due.event_seq, "target": self.due.lane.target,
                "object": self.due.lane.object, "id": self.due.lane.canonical_id, "step": request.step,
                "method": request.method, "path_sha256": sha256_hex(request.path.as_bytes()),
                "request_sha256": request.body.as_ref().map(|body| sha256_hex(body.as_bytes())),
                "idempotency_key": key, "attempt": self.due.attempts + 1,
            }),
        ));
        batch
    }

    /// Closes the states this delivery replaces.
    pub(super) fn supersede(&self, batch: &mut Batch) {
        for older in &self.due.supersedes {
            let reason = format!("replaced by delivery {}", self.due.id);
            batch.entry(NewEntry::new(
                EntryKind::Outcome,
                self.correlation_id(),
                json!({"delivery": older, "target": self.due.lane.target, "object": self.due.lane.object,
                       "id": self.due.lane.canonical_id, "class": "superseded", "reason": reason}),
            ));
            batch.closed.push(ClosedWrite {
                id: *older,
                state: "superseded",
                reason: Some(reason),
                cause: None,
            });
        }
    }

    fn judge(&self, step: &str, result: Result<Answer, SendError>) -> (Outcome<'_>, Option<Answer>) {
        match result {
            Ok(answer) => {
                let (class, field) = answer.classify(step, &self.target.connector.outcomes);
                let outcome = Outcome {
                    class,
                    field,
                    status: Some(answer.status),
                    retry_after: answer.retry_after(Timestamp::now()),
                    reason: describe(&answer),
                    replayed: self.is_replayed(&answer),
                    answer: answer.body.clone(),
                };
                (outcome, Some(answer))
            }
            Err(error) => {
                let sent = !matches!(error, SendError::NotSent(_));
                let outcome = Outcome {
                    class: if sent { Class::Uncertain } else { Class::Transient },
                    field: None,
                    status: None,
                    answer: Value::Null,
                    retry_after: None,
                    reason: error.to_string(),
                    replayed: false,
                };
                (outcome, None)
            }
        }
    }

    fn is_replayed(&self, answer: &Answer) -> bool {
        let idempotency = self.target.connector.idempotency.as_ref();
        let header = idempotency.and_then(|idempotency| idempotency.replayed_header.as_ref());
        header.and_then(|name| answer.headers.get(name)).is_some_and(|value| value == "true")
    }

    /// What the outcome changes; true when the delivery is done.
    fn settle(&self, request: &Request, attempt_seq: i64, outcome: &Outcome<'_>) -> (Batch, bool) {
        let mut batch = Batch::default();
        let external_id = self.external_id(request, &outcome.answer);
        let mut class = outcome.class;
        if class == Class::Applied && request.step != "delete" && external_id.is_none() {
            // Accepted without an id: whether the object stands is not known.
            class = Class::Uncertain;
        }
        if class == Class::Missing && request.step == "delete" {
            class = Class::Duplicate;
        }
        let index = batch.entry(self.outcome_entry(class, attempt_seq, outcome, external_id.as_deref()));
        match class {
            Class::Applied | Class::Duplicate => {
                let state = if class == Class::Applied { "applied" } else { "duplicate" };
                batch.closed.push(ClosedWrite { id: self.due.id, state, reason: None, cause: None });
                batch.applied.push(self.applied(request, external_id, index));
                return (batch, true);
            }
            Class::Throttled | Class::Transient | Class::Unauthorised | Class::Uncertain => {
                let wait =
                    outcome.retry_after.unwrap_or_else(|| backoff(self.due.attempts + 1, rand::random()));
                // An answer that the server is broken may be stored under the key and replayed for as long as the key is
                // kept. What is the same however often it is sent is sent again, the same bytes under a new key.
                let renew = class == Class::Uncertain && outcome.status.is_some() && request.step != "create";
                let uncertain = self.due.uncertain || class == Class::Uncertain;
                batch.retries.push(self.retry(wait, outcome, uncertain, renew));
            }
            Class::Conflict => {
                let want = outcome.field.and_then(|field| conflicting_want(request, field));
                match want {
                    Some(want) => {
                        batch.foreign.push((self.due.lane.clone(), want));
                        batch.retries.push(self.retry(backoff(self.due.attempts, 1.0), outcome, false, true));
                    }
                    None => self.refuse(&mut batch, outcome, "rejected"),
                }
            }
            Class::Missing if request.step == "update" => {
                batch.applied.push(self.applied(request, None, index));
                batch.retries.push(self.retry(Duration::ZERO, outcome, false, true));
            }
            Class::Missing | Class::Rejected => {
                // The same bytes are judged the same way by the vendor's own checks. Any other refusal says nothing about an
                // earlier attempt that may have been carried out: then the lane waits for a person.
                let judged = matches!(outcome.status, Some(400 | 422));
                let doubtful = self.due.uncertain && request.step == "create" && !judged;
                self.refuse(&mut batch, outcome, if doubtful { "parked" } else { "rejected" });
            }
        }
        (batch, false)
    }

    fn refuse(&self, batch: &mut Batch, outcome: &Outcome<'_>, state: &'static str) {
        tracing::warn!(delivery = self.due.id, target = %self.due.lane.target, reason = %outcome.reason,
            "the target refused a delivery for good");
        let cause = Some(if state == "parked" { Cause::Doubt } else { Cause::Refused });
        let reason = Some(outcome.reason.clone());
        batch.closed.push(ClosedWrite { id: self.due.id, state, reason, cause });
    }

    pub(super) fn retry(
        &self,
        wait: Duration,
        outcome: &Outcome<'_>,
        uncertain: bool,
        new_round: bool,
    ) -> RetryWrite {
        let due_at = Timestamp::now().checked_add(wait).unwrap_or(Timestamp::MAX);
        let replayed_since = self.due.last_attempt_at.filter(|_| outcome.replayed);
        RetryWrite {
            id: self.due.id,
            due_at,
            reason: outcome.reason.clone(),
            uncertain,
            new_round,
            counted: false,
            replayed_since,
        }
    }

    pub(super) fn applied(
        &self,
        request: &Request,
        external_id: Option<String>,
        outcome: EntryIndex,
    ) -> AppliedWrite {
        AppliedWrite {
            lane: self.due.lane.clone(),
            delivery: self.due.id,
            sha256: external_id.as_ref().and(request.sha256.clone()),
            holds: if external_id.is_some() { request.holds.clone() } else { Vec::new() },
            external_id,
            outcome,
            grants: self.target.may_grant(),
        }
    }

    /// The target's id: from the answer, else the one that was known. None after a delete.
    pub(super) fn external_id(&self, request: &Request, answer: &Value) -> Option<String> {
        if request.step == "delete" {
            return None;
        }
        let object = self.target.connector.object(&self.due.lane.object)?;
        let write = match (&object.strategy, request.step.as_str()) {
            (Strategy::Upsert(write), _) => write,
            (Strategy::CreateOrUpdate { create, .. }, "create") => create,
            (Strategy::CreateOrUpdate { update, .. }, _) => update,
        };
        let scope = crate::mapping::scope::Scope::new([("answer", answer)]);
        match write.id.evaluate(&scope) {
            Ok(Value::String(id)) if !id.is_empty() && !id.contains('\0') => Some(id),
            Ok(Value::Number(id)) => Some(id.to_string()),
            _ => self.due.external_id.clone(),
        }
    }

    pub(super) fn outcome_entry(
        &self,
        class: Class,
        attempt_seq: i64,
        outcome: &Outcome<'_>,
        external_id: Option<&str>,
    ) -> NewEntry {
        NewEntry::new(
            EntryKind::Outcome,
            self.correlation_id(),
            json!({
                "delivery": self.due.id, "event_seq": self.due.event_seq, "attempt_seq": attempt_seq,
                "target": self.due.lane.target, "object": self.due.lane.object, "id": self.due.lane.canonical_id,
                "class": class.as_str(), "status": outcome.status, "external_id": external_id,
                "reason": outcome.reason,
                "response_sha256": outcome.status.map(|_| sha256_hex(outcome.answer.to_string().as_bytes())),
            }),
        )
    }

    /// Ends the delivery without a request.
    async fn close(
        &self,
        (state, cause): (&'static str, Option<Cause>),
        reason: String,
        claims: Option<(Vec<String>, Vec<String>)>,
    ) -> Result<(), LedgerError> {
        let mut batch = Batch::default();
        if let Some((reserve, wishes)) = claims {
            batch.claims.extend(self.claim(reserve, wishes));
        }
        self.supersede(&mut batch);
        let outcome = batch.entry(NewEntry::new(
            EntryKind::Outcome,
            self.correlation_id(),
            json!({"delivery": self.due.id, "event_seq": self.due.event_seq, "target": self.due.lane.target,
                   "object": self.due.lane.object, "id": self.due.lane.canonical_id, "class": state, "reason": reason}),
        ));
        if state == "duplicate" && self.due.operation == "delete" {
            // It never came to stand there: nobody has to wait for it any more.
            batch.applied.push(AppliedWrite {
                lane: self.due.lane.clone(),
                delivery: self.due.id,
                external_id: None,
                sha256: None,
                outcome,
                holds: Vec::new(),
                grants: self.target.may_grant(),
            });
        }
        batch.closed.push(ClosedWrite { id: self.due.id, state, reason: Some(reason), cause });
        self.ledger.writer().write(batch).await.map(|_| ())
    }

    pub(super) fn correlation_id(&self) -> Option<String> {
        self.due.event.get("correlation_id").and_then(Value::as_str).map(str::to_owned)
    }
}

/// Status and the vendor's error code; never its message, which may quote personal values (INV-12).
fn describe(answer: &Answer) -> String {
    let error = answer.body.get("error");
    let code = error
        .and_then(|error| error.get("code").or_else(|| error.get("type")).or(Some(error)))
        .and_then(Value::as_str)
        .filter(|code| {
            code.len() <= 64 && code.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
        });
    match code {
        Some(code) => format!("status {} {code}", answer.status),
        None => format!("status {}", answer.status),
    }
}
