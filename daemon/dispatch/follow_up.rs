//! Requests that complete a write whose answer shows that it did not take in full.
//!
//! Until they are done the delivery stays open: after a crash the write is sent again, its answer still shows what is
//! missing, and this begins anew. Each request is harmless when repeated.

use std::time::Duration;

use serde_json::Value;

use super::deliver::{Delivery, Outcome};
use crate::connector::FollowUp;
use crate::connector::classify::Class;
use crate::connector::request::{Request, RequestLine};
use crate::ledger::LedgerError;
use crate::ledger::batch::Batch;
use crate::mapping::expression::{EvaluationError, Scope};

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
        let needed =
            follow_up.when.holds(&Scope::new([("sent", &body), ("answer", &answer)])).unwrap_or(false);
        if !needed {
            return Ok(());
        }
        if let Err(reason) = self.complete(follow_up, &body, &external_id).await? {
            outcome.class = Class::Uncertain;
            outcome.reason = reason;
            outcome.retry_after = Some(Duration::from_secs(1));
        }
        Ok(())
    }

    async fn complete(
        &self,
        follow_up: &FollowUp,
        sent: &Value,
        external_id: &Value,
    ) -> Result<Result<(), String>, LedgerError> {
        let described = |error: EvaluationError| error.to_string();
        let own = || [("sent", sent), ("external_id", external_id)];
        let line = match to_request(&follow_up.list, &Scope::new(own())) {
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
                Ok(_) => return Ok(Err("`each` is not a list".into())),
                Err(error) => return Ok(Err(described(error))),
            };
            for item in &items {
                let request =
                    match to_request(&step.line, &Scope::new(own().into_iter().chain([("item", item)]))) {
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
        self.target.permit().await;
        let attempt_seq = self.ledger.writer().write(self.attempt(request, "")).await?;
        let result = self.target.http.send(request, "").await;
        let outcome = self.judge(&request.step, result);
        self.target.note(outcome.class, outcome.retry_after).await;
        let mut batch = Batch::default();
        batch.entry(self.outcome_entry(outcome.class, attempt_seq, &outcome, None));
        self.ledger.writer().write(batch).await?;
        Ok(match outcome.class {
            Class::Applied | Class::Duplicate => Ok(outcome.answer),
            // Gone already, as it should be.
            Class::Missing if request.method == "DELETE" => Ok(Value::Null),
            _ => Err(outcome.reason),
        })
    }
}

fn to_request(line: &RequestLine, scope: &Scope) -> Result<Request, EvaluationError> {
    Ok(Request {
        step: "follow_up".into(),
        method: line.method().to_owned(),
        path: line.path(scope)?,
        content_type: None,
        body: None,
        sha256: None,
        holds: Vec::new(),
    })
}
