//! What is asked before a delivery is written: whether it is so already, and what the request needs to know.

use serde_json::Value;

use super::deliver::Delivery;
use super::outcome::Outcome;
use super::plan::{before, befores, prepared};
use super::retry::backoff;
use crate::connector::classify::Class;
use crate::ledger::LedgerError;
use crate::ledger::batch::{Batch, Cause, ClosedWrite};
use crate::mapping::scope::Scope;

impl Delivery {
    /// Asks, and then sends what the answers make.
    pub(super) async fn prepare(&self, wishes: Vec<String>) -> Result<(), LedgerError> {
        let connector = &self.target.connector;
        let mut answered: Vec<(&str, Value)> = Vec::new();
        for step in befores(connector, &self.due) {
            let request = match before(connector, &self.due, step, &answered) {
                Ok(request) => request,
                Err(error) => return self.give_up(Cause::Mapping, error.to_string()).await,
            };
            self.open(&request).await;
            let attempt_seq = self.ledger.writer().write(self.attempt(&request, "", None)).await?;
            let outcome = self.ask(&request, "").await?;
            let mut batch = Batch::default();
            batch.entry(self.outcome_entry(outcome.class, Some(attempt_seq), &outcome, None));
            match outcome.class {
                Class::Applied | Class::Duplicate => {}
                Class::Rejected | Class::Missing | Class::Conflict => {
                    self.ledger.writer().write(batch).await?;
                    return self.give_up(Cause::Refused, outcome.reason).await;
                }
                _ => return self.ask_again(batch, &outcome).await,
            }
            self.ledger.writer().write(batch).await?;
            let done = step.done.as_ref();
            if done
                .is_some_and(|done| done.holds(&Scope::new([("answer", &outcome.answer)])).unwrap_or(false))
            {
                return self.close(("duplicate", None), "already so at the target".into(), None).await;
            }
            answered.push((&step.name, outcome.answer));
        }
        match prepared(connector, &self.due, &answered) {
            Ok(request) => self.send(request, wishes).await,
            Err(obstacle) => self.give_up(Cause::Mapping, obstacle.to_string()).await,
        }
    }

    /// Nothing was written: it is tried again as a whole.
    async fn ask_again(&self, mut batch: Batch, outcome: &Outcome<'_>) -> Result<(), LedgerError> {
        let wait = outcome.retry_after.unwrap_or_else(|| backoff(self.due.attempts + 1, rand::random()));
        let retry = self.retry(wait, outcome, false, false);
        batch.retries.push(crate::ledger::batch::RetryWrite { counted: true, ..retry });
        self.ledger.writer().write(batch).await.map(|_| ())
    }

    async fn give_up(&self, cause: Cause, reason: String) -> Result<(), LedgerError> {
        tracing::warn!(delivery = self.due.id, target = %self.due.lane.target, reason, "a delivery cannot be prepared");
        let mut batch = Batch::default();
        self.supersede(&mut batch);
        let state = if cause == Cause::Refused { "rejected" } else { "parked" };
        batch.closed.push(ClosedWrite { id: self.due.id, state, reason: Some(reason), cause: Some(cause) });
        self.ledger.writer().write(batch).await.map(|_| ())
    }
}
