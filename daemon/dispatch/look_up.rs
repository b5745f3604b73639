//! A create in doubt: the object is looked up by our id (INV-3).

use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use super::deliver::Delivery;
use super::inputs::Inputs;
use super::outcome::Outcome;
use super::retry::backoff;
use crate::bounds::is_external_id;
use crate::connector::Strategy;
use crate::connector::classify::Class;
use crate::connector::request::Request;
use crate::ledger::LedgerError;
use crate::ledger::batch::{Batch, Cause, ClosedWrite, EntryIndex};
use crate::ledger::standing::taken;

/// An id of the target's own, text or number.
fn id_of(value: &Value) -> Option<String> {
    match value {
        Value::String(id) => Some(id.clone()).filter(|id| is_external_id(id)),
        Value::Number(id) => Some(id.to_string()),
        _ => None,
    }
}

impl Delivery {
    /// Looks the object up by our id to learn what became of its creation.
    pub(super) async fn find(&self, request: Request) -> Result<(), LedgerError> {
        self.open(&request).await;
        let attempt_seq = self.ledger.writer().write(self.attempt(&request, "", None)).await?;
        let mut outcome = self.ask(&request, "").await?;
        let ids = self.ids_of(&outcome).await?;
        let mut batch = Batch::default();
        match ids {
            Some((_, Value::Array(ids)))
                if ids.len() == 1 && ids.first().is_some_and(|id| id_of(id).is_some()) =>
            {
                let id = ids.first().and_then(id_of);
                outcome.reason = "found by our id: it was carried out".into();
                let index = batch.entry(self.outcome_entry(
                    Class::Applied,
                    Some(attempt_seq),
                    &outcome,
                    id.as_deref(),
                ));
                self.found(&mut batch, id, index, &request, &outcome);
            }
            Some((fresh_after, Value::Array(ids))) if ids.is_empty() => {
                let age = self.due.last_attempt_at.map(|at| Timestamp::now().duration_since(at));
                let age: Duration = age.and_then(|age| age.try_into().ok()).unwrap_or_default();
                let settled = age >= fresh_after;
                outcome.reason =
                    if settled { "not found: it was not carried out" } else { "not found yet" }.into();
                batch.entry(self.outcome_entry(Class::Transient, Some(attempt_seq), &outcome, None));
                // Inside the key's window the same request is safe to send again meanwhile; past it only time helps.
                let in_window = self.in_key_window();
                let wait = match (settled, in_window) {
                    (true, _) => Duration::ZERO,
                    (false, true) => backoff(self.due.attempts, rand::random()),
                    (false, false) => fresh_after.saturating_sub(age),
                };
                batch.retries.push(self.retry(wait, &outcome, !settled, settled));
            }
            Some(_) => {
                outcome.reason = "several objects carry our id".into();
                batch.entry(self.outcome_entry(Class::Uncertain, Some(attempt_seq), &outcome, None));
                let reason = Some(outcome.reason.clone());
                batch.closed.push(ClosedWrite {
                    id: self.due.id,
                    state: "parked",
                    reason,
                    cause: Some(Cause::Ambiguous),
                });
            }
            None => {
                batch.entry(self.outcome_entry(outcome.class, Some(attempt_seq), &outcome, None));
                let wait = outcome.retry_after.unwrap_or_else(|| backoff(self.due.attempts, rand::random()));
                batch.retries.push(self.retry(wait, &outcome, true, false));
            }
        }
        self.ledger.writer().write(batch).await.map(|_| ())
    }

    /// The ids that a look-up has answered, after how long what it does not name is not there. What stands for another object of ours
    /// is not this one, whatever it carries.
    async fn ids_of(&self, outcome: &Outcome<'_>) -> Result<Option<(Duration, Value)>, LedgerError> {
        let object = self.target.connector.object(&self.due.lane.object);
        let find = object.and_then(|object| match &object.strategy {
            Strategy::CreateOrUpdate { find, .. } | Strategy::Post { find, .. } => find.as_deref(),
            Strategy::Upsert(_) | Strategy::Publish(_) => None,
        });
        let Some(find) = find.filter(|_| outcome.class == Class::Applied) else { return Ok(None) };
        let inputs = Inputs::new(&self.target.connector, &self.due);
        let answered = [("answer", outcome.answer.clone())];
        let ids = match find.ids.evaluate(&inputs.with(&answered)).unwrap_or_default() {
            Value::Array(ids) => {
                let named: Vec<String> = ids.iter().filter_map(id_of).collect();
                let taken = taken(self.ledger.reader(), &self.due.lane, &named).await?;
                let free = |id: &Value| id_of(id).is_none_or(|id| !taken.contains(&id));
                Value::Array(ids.into_iter().filter(free).collect())
            }
            other => other,
        };
        Ok(Some((find.fresh_after, ids)))
    }

    /// The target has the object under this id of its own.
    fn found(
        &self,
        batch: &mut Batch,
        id: Option<String>,
        index: EntryIndex,
        look_up: &Request,
        outcome: &Outcome<'_>,
    ) {
        match self.due.request.as_ref().and_then(Request::from_json) {
            Some(created) => {
                batch.closed.push(ClosedWrite {
                    id: self.due.id,
                    state: "applied",
                    reason: None,
                    cause: None,
                });
                batch.applied.push(self.applied(&created, id, index));
            }
            // With whatever content: now that it is known there, it is updated.
            None => {
                batch.applied.push(self.applied(look_up, id, index));
                batch.retries.push(self.retry(Duration::ZERO, outcome, false, true));
            }
        }
    }

    fn in_key_window(&self) -> bool {
        let window = self.target.connector.idempotency.as_ref().map(|idempotency| idempotency.window);
        let age = self.due.attempted_at.map(|at| Timestamp::now().duration_since(at));
        let age: Duration = age.and_then(|age| age.try_into().ok()).unwrap_or_default();
        window.is_some_and(|window| age < window)
    }
}
