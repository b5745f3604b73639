//! Requests that complete a write whose answer shows that it did not take in full.
//!
//! Until they are done the delivery stays open, and the values that the object lets go of stay reserved for it: after a
//! crash the write is sent again, those values are still to be released, and this begins anew. Each request is harmless
//! when repeated.

use std::time::Duration;

use serde_json::Value;

use super::deliver::Delivery;
use super::outcome::Outcome;
use crate::connector::FollowUp;
use crate::connector::classify::Class;
use crate::connector::request::Request;
use crate::ledger::LedgerError;
use crate::ledger::batch::Batch;
use crate::ledger::standing::held_by;
use crate::mapping::expression::EvaluationError;
use crate::mapping::scope::Scope;

impl Delivery {
    /// Carries out what the connector's `follow_up` says. A request that fails makes the whole write uncertain.
    pub(super) async fn follow_up(
        &self,
        sent: &Request,
        outcome: &mut Outcome<'_>,
    ) -> Result<(), LedgerError> {
        let object = self.target.connector.object(&self.due.lane.object);
        let Some(follow_up) = object.and_then(|object| object.follow_up.as_ref()) else { return Ok(()) };
        let Some(body) = sent.body.as_ref().and_then(|body| serde_json::from_str::<Value>(body).ok()) else {
            return Ok(());
        };
        let answer = outcome.answer.clone();
        let external_id = self.external_id(sent, &answer).map_or(Value::Null, Value::String);
        let released = self.released(sent).await?;
        let resumed = self.due.uncertain && released.as_array().is_some_and(|values| !values.is_empty());
        let scope = Scope::new([("sent", &body), ("answer", &answer), ("released", &released)]);
        if !resumed && !follow_up.when.holds(&scope).unwrap_or(false) {
            return Ok(());
        }
        let known = [("sent", &body), ("released", &released), ("external_id", &external_id)];
        if let Err(reason) = self.complete(follow_up, known).await? {
            outcome.class = Class::Uncertain;
            outcome.status = None;
            outcome.reason = reason;
            outcome.retry_after = Some(Duration::from_secs(1));
        }
        Ok(())
    }

    /// Unique values that the object held until now and holds no longer: they are still reserved for it.
    async fn released(&self, sent: &Request) -> Result<Value, LedgerError> {
        let held = held_by(self.ledger.reader(), &self.due.lane).await?;
        let gone = held.iter().filter(|want| !sent.holds.contains(*want));
        Ok(gone.filter_map(|want| want.split_once('=')).map(|(_, value)| value).collect())
    }

    async fn complete(
        &self,
        follow_up: &FollowUp,
        known: [(&str, &Value); 3],
    ) -> Result<Result<(), String>, LedgerError> {
        let described = |error: EvaluationError| error.to_string();
        let own = || known;
        let line = match Request::bare("follow_up", &follow_up.list, &Scope::new(own())) {
            Ok(request) => request,
            Err(error) => return Ok(Err(described(error))),
        };
        let list = match self.exchange(&line).await? {
            Ok(list) => list,
            Err(reason) => return Ok(Err(reason)),
        };
        for step in &follow_up.then {
            let items = match step.each.evaluate(&Scope::new(own().into_iter().chain([("list", &list)]))) {
                Ok(Value::Array(items)) => items,
                // What was listed has another form than expected, or nothing could be listed.
                Ok(_) | Err(_) => return Ok(Ok(())),
            };
            for item in &items {
                let request = match Request::bare(
                    "follow_up",
                    &step.line,
                    &Scope::new(own().into_iter().chain([("item", item)])),
                ) {
                    Ok(request) => request,
                    Err(error) => return Ok(Err(described(error))),
                };
                if let Err(reason) = self.exchange(&request).await? {
                    return Ok(Err(reason));
                }
            }
        }
        Ok(Ok(()))
    }

    /// One more request of this delivery, with its own attempt and outcome in the ledger.
    async fn exchange(&self, request: &Request) -> Result<Result<Value, String>, LedgerError> {
        self.open(request).await;
        let attempt_seq = self.ledger.writer().write(self.attempt(request, "", None)).await?;
        let outcome = self.ask(request, "").await?;
        let mut batch = Batch::default();
        batch.entry(self.outcome_entry(outcome.class, Some(attempt_seq), &outcome, None));
        self.ledger.writer().write(batch).await?;
        Ok(match outcome.class {
            Class::Applied | Class::Duplicate => Ok(outcome.answer),
            // Gone already, or refused for good: asking again would change nothing.
            Class::Missing | Class::Rejected | Class::Conflict => Ok(Value::Null),
            _ => Err(outcome.reason),
        })
    }
}
