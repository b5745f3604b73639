//! What an exchange came to, and what it changes.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::deliver::Delivery;
use super::plan::conflicting_want;
use super::retry::backoff;
use crate::connector::classify::{Answer, Class};
use crate::connector::request::Request;
use crate::event::sha256_hex;
use crate::ledger::batch::{AppliedWrite, Batch, Cause, ClosedWrite, EntryIndex, RetryWrite};
use crate::ledger::entry::{EntryKind, NewEntry};
use crate::target::SendError;

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
    /// It says yes, and does not say it of what was meant.
    pub(super) contradicts: bool,
}

/// Attempts after which an answer that contradicts what was asked waits for a person.
const CONTRADICTIONS: i32 = 5;

impl Outcome<'_> {
    /// Of what was not sent.
    pub(super) fn unsent(reason: &str) -> Self {
        Self {
            class: Class::Transient,
            field: None,
            status: None,
            answer: Value::Null,
            retry_after: None,
            reason: reason.to_owned(),
            replayed: false,
            contradicts: false,
        }
    }
}

impl Delivery {
    pub(super) fn judge(
        &self,
        step: &str,
        result: Result<Answer, SendError>,
    ) -> (Outcome<'_>, Option<Answer>) {
        match result {
            Ok(answer) => {
                let (class, field) = answer.classify(step, &self.target.connector.outcomes);
                let outcome = Outcome {
                    class,
                    field,
                    status: Some(answer.status),
                    retry_after: answer.retry_after(Timestamp::now(), self.target.connector.longest_wait()),
                    reason: describe(&answer),
                    replayed: self.is_replayed(&answer),
                    contradicts: false,
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
                    contradicts: false,
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
    pub(super) fn settle(
        &self,
        request: &Request,
        attempt_seq: Option<i64>,
        outcome: &Outcome<'_>,
        external_id: Option<String>,
    ) -> (Batch, bool) {
        let mut batch = Batch::default();
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
            Class::Uncertain if outcome.contradicts && self.due.attempts >= CONTRADICTIONS => {
                self.refuse(&mut batch, outcome, "parked");
            }
            Class::Throttled | Class::Transient | Class::Unauthorised | Class::Uncertain => {
                // Of a target that is silent its gate takes care; the delivery is ready when it opens.
                let attempts = if outcome.status.is_none() { 1 } else { self.due.attempts + 1 };
                let wait = outcome.retry_after.unwrap_or_else(|| backoff(attempts, rand::random()));
                // An answer that the server is broken may be stored under the key and replayed for as long as the key is
                // kept. What is the same however often it is sent is sent again, the same bytes under a new key.
                let renew = class == Class::Uncertain && outcome.status.is_some() && !request.makes_anew();
                let uncertain = self.due.uncertain || class == Class::Uncertain;
                batch.retries.push(self.retry(wait, outcome, uncertain, renew));
            }
            Class::Conflict => {
                let want = outcome.field.and_then(|field| conflicting_want(request, field));
                match want {
                    Some(want) => {
                        batch.foreign.push((self.due.lane.clone(), want, self.due.id));
                        batch.retries.push(self.retry(backoff(self.due.attempts, 1.0), outcome, false, true));
                    }
                    None => self.refuse(&mut batch, outcome, "rejected"),
                }
            }
            // One with an id of the target's own cannot be made again under it.
            Class::Missing if request.step == "update" && !self.has_own_id() => {
                batch.applied.push(self.applied(request, None, index));
                batch.retries.push(self.retry(Duration::ZERO, outcome, false, true));
            }
            Class::Missing | Class::Rejected => {
                // The same bytes are judged the same way by the vendor's own checks. Any other refusal says nothing about an
                // earlier attempt that may have been carried out: then the lane waits for a person.
                let judged = matches!(outcome.status, Some(400 | 422));
                let doubtful = self.due.uncertain && request.makes_anew() && !judged;
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
            alone: false,
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
            body: external_id.as_ref().and(request.says.clone()),
            holds: if external_id.is_some() { request.holds.clone() } else { Vec::new() },
            external_id,
            outcome,
            grants: self.target.may_grant(),
        }
    }

    pub(super) fn outcome_entry(
        &self,
        class: Class,
        attempt_seq: Option<i64>,
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
    match (code, answer.flaw) {
        (Some(code), _) => format!("status {} {code}", answer.status),
        (None, Some(flaw)) => format!("status {}, {}", answer.status, flaw.as_str()),
        (None, None) => format!("status {}", answer.status),
    }
}
