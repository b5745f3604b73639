//! One delivery: attempt into the ledger, request to the target, outcome into the ledger.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::adopt::Adopted;
use super::outcome::Outcome;
use super::plan::{Plan, own_id};
use super::quota::Permit;
use super::target::{Note, Target};
use super::unsent::Waiting;
use crate::connector::classify::Class;
use crate::connector::request::Request;
use crate::event::sha256_hex;
use crate::ledger::batch::{AppliedWrite, Batch, Cause, ClaimWrite, ClosedWrite, SendingWrite};
use crate::ledger::entry::{EntryKind, NewEntry};
use crate::ledger::erasures::{ERASED, is_erased};
use crate::ledger::membership::Membership;
use crate::ledger::outbox::Due;
use crate::ledger::standing::{holders, is_applied};
use crate::ledger::{Ledger, LedgerError};

/// A delivery on its way.
pub struct Delivery {
    /// The ledger.
    pub ledger: Ledger,
    /// The target.
    pub target: Arc<Target>,
    /// What is owed.
    pub due: Due,
    /// Until its request may leave, it counts among those on their way there.
    pub(super) waiting: Option<Waiting>,
}

impl Delivery {
    /// A delivery that has not begun. `enough`: with so many held back no more of its kind are begun.
    #[must_use]
    pub fn new(ledger: Ledger, target: Arc<Target>, due: Due, enough: Option<usize>) -> Self {
        let waiting = Some(match enough {
            Some(enough) => target.unsent.enter_held_back(&due.lane.object, enough),
            None => target.unsent.enter(),
        });
        Self { ledger, target, due, waiting }
    }

    /// One of many that go in one request, or whose outcome is known from elsewhere.
    #[must_use]
    pub fn one_of_many(ledger: Ledger, target: Arc<Target>, due: Due) -> Self {
        Self { ledger, target, due, waiting: None }
    }

    /// Sends a request whose attempt is durable, as soon as the target may be spoken to, and judges the answer.
    pub(super) async fn ask(&self, request: &Request, key: &str) -> Result<Outcome<'_>, LedgerError> {
        let permit = self.target.permit(&self.due.lane.object, request, self.waiting.as_ref()).await;
        self.waiting.iter().for_each(Waiting::leave);
        if self.is_forgotten().await? {
            return Ok(Outcome::unsent(ERASED));
        }
        self.send_with(permit, request, key).await
    }

    /// Sends a request that may leave, and judges the answer.
    ///
    /// A process that may have been taken for dead while it waited, or slept, sends nothing more: another one resolves what it
    /// has begun.
    pub(super) async fn send_with(
        &self,
        permit: Permit,
        request: &Request,
        key: &str,
    ) -> Result<Outcome<'_>, LedgerError> {
        let object = &self.due.lane.object;
        let sent = Instant::now();
        let result = self.ledger.tenure().during(self.target.way.send(request, key)).await;
        let result = result.ok_or(LedgerError::Fenced)?;
        let (outcome, answer) = self.judge(&request.step, result);
        let Outcome { class, retry_after, .. } = outcome;
        self.target.note(&Note { object, request, sent, class, answer: answer.as_ref(), retry_after });
        drop(permit);
        Ok(outcome)
    }

    /// True when its subject was forgotten after it was read.
    pub(super) async fn is_forgotten(&self) -> Result<bool, LedgerError> {
        if self.ledger.erasures().count() == self.due.erasures {
            return Ok(false);
        }
        is_erased(self.ledger.reader(), self.due.id).await
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
            Plan::Prepare { wishes, .. } => self.prepare(wishes).await,
            Plan::Note { request, wishes } => self.note(&request, wishes).await,
            Plan::Find(request) => self.find(request).await,
        }
    }

    /// Waits until `request` may be begun.
    pub(super) async fn open(&self, request: &Request) {
        self.target.open(&self.due.lane.object, request, self.waiting.as_ref()).await;
    }

    /// The same for every attempt of a round: a new round is a deliberately new request.
    pub(super) fn idempotency_key(&self) -> String {
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
            && is_applied(self.ledger.reader(), self.due.id).await?
        {
            return Ok(());
        }
        self.open(&request).await;
        let batch = self.begin(&request, &request, &key, &wishes, None);
        let attempt_seq = self.ledger.writer().write(batch).await?;
        if let Some(reason) = self.lost_a_value(&request).await? {
            return self.ledger.writer().write(self.not_sent(&reason, attempt_seq)).await.map(|_| ());
        }
        let mut outcome = self.ask(&request, &key).await?;
        let external_id = self.weigh(&request, &mut outcome).await?;
        if outcome.class == Class::Applied {
            self.follow_up(&request, &mut outcome).await?;
        }
        let (batch, delivered) = self.settle(&request, Some(attempt_seq), &outcome, external_id);
        let seq = self.ledger.writer().write(batch).await?;
        if delivered {
            self.target.dedup.delivered(&key, seq).await;
        }
        Ok(())
    }

    /// What is written before `sent` leaves: the attempt, what it replaces, takes and wishes, and, for the time until its outcome
    /// is known, the request that would be sent again. `call`: the bulk request that it is one of.
    pub(super) fn begin(
        &self,
        sent: &Request,
        again: &Request,
        key: &str,
        wishes: &[String],
        call: Option<&str>,
    ) -> Batch {
        let mut batch = self.attempt(sent, key, call);
        self.supersede(&mut batch);
        // What was sent before has claimed already what it is about.
        if !(self.due.uncertain && self.due.request.is_some()) {
            batch.claims.extend(self.claim(again.holds.clone(), wishes.to_vec()));
        }
        batch.sending.push(SendingWrite {
            id: self.due.id,
            idempotency_key: key.to_owned(),
            request: again.to_json(),
            attempted_at: Timestamp::now(),
            settled_after: None,
        });
        batch
    }

    /// Where several processes deliver, two of them may have taken the same unique value at once: the ledger knows whose it is.
    pub(super) async fn lost_a_value(&self, request: &Request) -> Result<Option<String>, LedgerError> {
        let alone = |membership: &Membership| membership.standing().borrow().others.dispatching == 0;
        if request.holds.is_empty() || self.ledger.membership().is_none_or(alone) {
            return Ok(None);
        }
        let held = holders(self.ledger.reader(), &self.due.lane.target, &request.holds).await?;
        let lost =
            request.holds.iter().find(|want| held.get(*want).is_some_and(|lane| *lane != self.due.lane));
        Ok(lost.map(|_| "another object has taken a value that must be unique".to_owned()))
    }

    /// The attempt was not made after all.
    fn not_sent(&self, reason: &str, attempt_seq: i64) -> Batch {
        let outcome = Outcome::unsent(reason);
        let mut batch = Batch::default();
        batch.entry(self.outcome_entry(Class::Transient, Some(attempt_seq), &outcome, None));
        batch.retries.push(self.retry(Duration::ZERO, &outcome, false, true));
        batch
    }

    /// What the object holds and wishes at the target from now on, where that matters.
    pub(super) fn claim(&self, reserve: Vec<String>, wishes: Vec<String>) -> Option<ClaimWrite> {
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
    pub(super) fn attempt(&self, request: &Request, key: &str, call: Option<&str>) -> Batch {
        let mut batch = Batch::default();
        batch.entry(NewEntry::new(
            EntryKind::Attempt,
            self.correlation_id(),
            json!({
                "delivery": self.due.id, "event_seq": self.due.event_seq, "target": self.due.lane.target,
                "object": self.due.lane.object, "id": self.due.lane.canonical_id, "step": request.step,
                "method": request.method, "path_sha256": sha256_hex(request.path.as_bytes()),
                "request_sha256": request.body.as_ref().map(|body| sha256_hex(body.as_bytes())),
                "idempotency_key": key, "attempt": self.due.attempts + 1, "call": call,
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

    /// Ends the delivery without a request.
    pub(super) async fn close(
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
        if state == "duplicate" && self.due.operation == "delete" && self.due.external_id.is_none() {
            // It never came to stand there: nobody has to wait for it any more.
            batch.applied.push(AppliedWrite {
                lane: self.due.lane.clone(),
                delivery: self.due.id,
                external_id: None,
                sha256: None,
                body: None,
                outcome,
                holds: Vec::new(),
                grants: self.target.may_grant(),
            });
        }
        batch.closed.push(ClosedWrite { id: self.due.id, state, reason: Some(reason), cause });
        self.ledger.writer().write(batch).await.map(|_| ())
    }

    /// The target's own id follows from the event: the object came from there.
    pub(super) fn has_own_id(&self) -> bool {
        own_id(&self.target.connector, &self.due).is_some()
    }

    pub(super) fn correlation_id(&self) -> Option<String> {
        self.due.event.get("correlation_id").and_then(Value::as_str).map(str::to_owned)
    }
}
