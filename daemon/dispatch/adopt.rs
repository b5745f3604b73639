//! An object that stood at the target before us is taken over instead of being made again; one that stands for another object of
//! ours already is no candidate. What is not certain waits for a person, with the candidates: `tailwater identity link`.

use std::time::Duration;

use serde_json::Value;

use super::deliver::Delivery;
use super::outcome::Outcome;
use super::retry::backoff;
use crate::bounds::is_external_id;
use crate::connector::Adoption;
use crate::connector::classify::Class;
use crate::connector::request::Request;
use crate::ledger::LedgerError;
use crate::ledger::batch::{Batch, Cause, ClosedWrite, RetryWrite};
use crate::ledger::standing::taken;
use crate::mapping::scope::Scope;

/// Candidates named in the reason.
const NAMED: usize = 10;

/// What the look-ups came to.
pub(super) enum Adopted {
    /// There is no such object: it is to be made.
    Nobody,
    /// It was taken over, or waits; the outcome is durable.
    Settled,
}

impl Delivery {
    /// Writes down that an object stands at the target as it should, which it was never told.
    pub(super) async fn note(&self, request: &Request, wishes: Vec<String>) -> Result<(), LedgerError> {
        let mut batch = Batch::default();
        batch.claims.extend(self.claim(request.holds.clone(), wishes));
        self.supersede(&mut batch);
        let reason = "so already at the target";
        let entry = batch.entry(self.outcome_entry(Class::Duplicate, None, &Outcome::unsent(reason), None));
        batch.applied.push(self.applied(request, self.due.external_id.clone(), entry));
        let (state, reason) = ("duplicate", Some(reason.to_owned()));
        batch.closed.push(ClosedWrite { id: self.due.id, state, reason, cause: None });
        self.ledger.writer().write(batch).await.map(|_| ())
    }

    /// Looks the object up, surest way first.
    pub(super) async fn adopt(&self, look_ups: Vec<(usize, Request)>) -> Result<Adopted, LedgerError> {
        let object = self.target.connector.object(&self.due.lane.object);
        for (index, request) in look_ups {
            let Some(adoption) = object.and_then(|object| object.adopt.get(index)) else { continue };
            self.open(&request).await;
            let attempt_seq = self.ledger.writer().write(self.attempt(&request, "", None)).await?;
            let outcome = self.ask(&request, "").await?;
            let mut found = self.candidates(adoption, &outcome);
            let _only_we = self.target.adopting.lock().await;
            if let Some(ids) = found.as_mut().filter(|ids| !ids.is_empty()) {
                let taken = taken(self.ledger.reader(), &self.due.lane, ids).await?;
                ids.retain(|id| !taken.contains(id));
            }
            let (batch, settled) = self.judged(adoption, &request, attempt_seq, outcome, found.as_deref());
            self.ledger.writer().write(batch).await?;
            if settled {
                return Ok(Adopted::Settled);
            }
        }
        Ok(Adopted::Nobody)
    }

    /// What an answer to a look-up is written down as, and whether it ends the search.
    fn judged(
        &self,
        adoption: &Adoption,
        request: &Request,
        attempt_seq: i64,
        mut outcome: Outcome<'_>,
        candidates: Option<&[String]>,
    ) -> (Batch, bool) {
        let mut batch = Batch::default();
        match candidates {
            Some([]) => {
                outcome.reason = format!("nobody who is free by {}", adoption.by);
                batch.entry(self.outcome_entry(Class::Transient, Some(attempt_seq), &outcome, None));
                return (batch, false);
            }
            Some([only]) => {
                outcome.reason = format!("adopted by {}", adoption.by);
                let entry =
                    batch.entry(self.outcome_entry(Class::Applied, Some(attempt_seq), &outcome, Some(only)));
                // With whatever content: now that it is known there, it is updated.
                batch.applied.push(self.applied(request, Some(only.clone()), entry));
                batch.retries.push(self.retry(Duration::ZERO, &outcome, false, true));
            }
            Some(several) => {
                let named = several.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
                let (count, by) = (several.len(), adoption.by.as_str());
                outcome.reason =
                    format!("{count} objects match by {by}: {named}; choose with `tailwater identity link`");
                self.wait_for_a_person(&mut batch, attempt_seq, &outcome);
            }
            // A look-up changes nothing: in doubt it is asked again.
            None if !matches!(
                outcome.class,
                Class::Transient | Class::Throttled | Class::Unauthorised | Class::Uncertain
            ) =>
            {
                outcome.reason =
                    format!("the look-up by {} has no usable answer: {}", adoption.by, outcome.reason);
                self.wait_for_a_person(&mut batch, attempt_seq, &outcome);
            }
            None => {
                batch.entry(self.outcome_entry(outcome.class, Some(attempt_seq), &outcome, None));
                let wait =
                    outcome.retry_after.unwrap_or_else(|| backoff(self.due.attempts + 1, rand::random()));
                batch.retries.push(RetryWrite { counted: true, ..self.retry(wait, &outcome, false, false) });
            }
        }
        (batch, true)
    }

    fn wait_for_a_person(&self, batch: &mut Batch, attempt_seq: i64, outcome: &Outcome<'_>) {
        self.supersede(batch);
        batch.entry(self.outcome_entry(Class::Rejected, Some(attempt_seq), outcome, None));
        let reason = Some(outcome.reason.clone());
        batch.closed.push(ClosedWrite {
            id: self.due.id,
            state: "parked",
            reason,
            cause: Some(Cause::Ambiguous),
        });
    }

    /// Ids of what was found, whoever it may stand for; `None` when the target gave no usable answer.
    fn candidates(&self, adoption: &Adoption, outcome: &Outcome<'_>) -> Option<Vec<String>> {
        if outcome.class != Class::Applied {
            return None;
        }
        let event = self.due.event.get("data").cloned().unwrap_or_default();
        let scope = Scope::new([("answer", &outcome.answer), ("event", &event)]);
        let Ok(Value::Array(ids)) = adoption.ids.evaluate(&scope) else { return None };
        ids.iter()
            .map(|id| match id {
                Value::String(id) => Some(id.clone()).filter(|id| is_external_id(id)),
                Value::Number(id) => Some(id.to_string()),
                _ => None,
            })
            .collect()
    }
}
