//! What an answer proves. A target's word counts for the object that was meant, and for nothing else: an answer without the object is a
//! doubt, and so is one that names another.

use std::collections::HashSet;

use serde_json::Value;

use super::deliver::Delivery;
use super::outcome::Outcome;
use crate::bounds::is_external_id;
use crate::connector::classify::Class;
use crate::connector::request::Request;
use crate::connector::{Strategy, Write};
use crate::ledger::LedgerError;
use crate::ledger::standing::taken;
use crate::mapping::expression::Expression;
use crate::mapping::scope::Scope;
use crate::target::Way;

impl Delivery {
    /// Looks whether an answer that says yes says it of the object that was meant; gives the target's id of it. What does not is in
    /// doubt, with the reason.
    pub(super) async fn weigh(
        &self,
        request: &Request,
        outcome: &mut Outcome<'_>,
    ) -> Result<Option<String>, LedgerError> {
        if outcome.class != Class::Applied {
            let refuses = matches!(outcome.class, Class::Rejected | Class::Missing | Class::Conflict);
            if refuses && request.step != "delete" && self.is_shown(request, outcome) {
                doubt(outcome, "the status refuses it, and the answer shows the object");
            }
            if outcome.class == Class::Missing && self.is_about_another(request, outcome) {
                doubt(outcome, "the answer says of another object that it is gone");
            }
            return Ok(self.external_id(request, &outcome.answer));
        }
        let id = match self.proven(request, outcome) {
            Ok(id) => id,
            Err(reason) => {
                doubt(outcome, reason);
                return Ok(None);
            }
        };
        if let Some(id) = &id
            && self.stands_for_another(id).await?
        {
            doubt(outcome, "the answer names an object that stands for another one of ours");
            return Ok(None);
        }
        Ok(id)
    }

    /// True when a new id of the target's stands for another object of ours already.
    async fn stands_for_another(&self, id: &String) -> Result<bool, LedgerError> {
        let is_known = self.due.external_id.as_ref() == Some(id);
        let object = self.target.connector.object(&self.due.lane.object);
        let is_own = object.is_some_and(|object| {
            matches!(object.strategy, Strategy::Upsert(_) | Strategy::CreateOrUpdate { .. })
        });
        if is_known || !is_own || matches!(self.target.way, Way::Discard) {
            return Ok(false);
        }
        Ok(!taken(self.ledger.reader(), &self.due.lane, std::slice::from_ref(id)).await?.is_empty())
    }

    /// The target's id of the object that the answer is about; none after a delete that is proven.
    fn proven(&self, request: &Request, outcome: &Outcome<'_>) -> Result<Option<String>, &'static str> {
        let object = self.target.connector.object(&self.due.lane.object).ok_or("the object is not known")?;
        let status = outcome.status.map_or(Value::Null, Value::from);
        let known = self.due.external_id.clone().map_or(Value::Null, Value::String);
        let scope = Scope::new([("answer", &outcome.answer), ("status", &status), ("external_id", &known)]);
        let holds = |proof: &Expression| proof.holds(&scope).unwrap_or(false);
        if request.step == "delete" {
            let proof = object.delete.as_ref().and_then(|removal| removal.proof.as_ref());
            let is_said = match proof {
                Some(proof) => holds(proof),
                None => outcome.status == Some(204) || says_something(&outcome.answer),
            };
            return if is_said { Ok(None) } else { Err("the answer does not show that the object is gone") };
        }
        let write = self.write_of(request).ok_or("the object is not known")?;
        if write.proof.as_ref().is_some_and(|proof| !holds(proof)) {
            return Err("the answer does not show that it was carried out");
        }
        if !write.id.names("answer") {
            return self
                .due
                .external_id
                .clone()
                .map(Some)
                .ok_or("the target's id of the object is not known");
        }
        let id = match write.id.evaluate(&scope) {
            Ok(Value::String(id)) if is_external_id(&id) => id,
            Ok(Value::Number(id)) => id.to_string(),
            _ => return Err("the answer does not name the object"),
        };
        let ours = write.ours.as_ref().and_then(|ours| ours.evaluate(&scope).ok());
        let ours = ours.as_ref().and_then(Value::as_str);
        let own = self.own_name();
        if ours.is_some_and(|ours| ours != own) {
            return Err("the answer is about an object with another id of ours");
        }
        if ours.is_none() && write.ours.is_some() && self.due.external_id.is_none() {
            return Err("the answer does not show whose object it is");
        }
        let is_another = self.due.external_id.as_ref().is_some_and(|known| *known != id);
        // What is posted or published is another thing each time, and a target that matches by our id may have made the object anew.
        let is_own = matches!(object.strategy, Strategy::Upsert(_) | Strategy::CreateOrUpdate { .. });
        if is_own && is_another && !(request.step == "upsert" && ours.is_some()) {
            return Err("the answer is about another object than was asked for");
        }
        Ok(Some(id))
    }

    /// True when an answer names an object, and another one than was meant.
    fn is_about_another(&self, request: &Request, outcome: &Outcome<'_>) -> bool {
        let scope = Scope::new([("answer", &outcome.answer), ("external_id", &Value::Null)]);
        let id = self.write_of(request).and_then(|write| write.id.evaluate(&scope).ok());
        let id = id.as_ref().and_then(Value::as_str);
        id.is_some() && id != self.due.external_id.as_deref()
    }

    /// True when an answer names the object by our id and by the target's.
    fn is_shown(&self, request: &Request, outcome: &Outcome<'_>) -> bool {
        self.write_of(request).is_some_and(|write| write.ours.is_some())
            && self.proven(request, outcome).is_ok_and(|id| id.is_some())
    }

    /// Our id of the object that a delivery is about, as bodies carry it.
    pub(super) fn own_name(&self) -> &str {
        self.due.event.get("id").and_then(Value::as_str).unwrap_or(&self.due.lane.canonical_id)
    }

    /// What a request writes the object by.
    fn write_of(&self, request: &Request) -> Option<&Write> {
        let object = self.target.connector.object(&self.due.lane.object)?;
        Some(match (&object.strategy, request.step.as_str()) {
            (Strategy::Upsert(write) | Strategy::Publish(write) | Strategy::Post { post: write, .. }, _) => {
                write
            }
            (Strategy::CreateOrUpdate { create, .. }, "create") => create,
            (Strategy::CreateOrUpdate { update, .. }, _) => update,
        })
    }

    /// The target's id: from the answer, else the one that was known. None after a delete.
    pub(super) fn external_id(&self, request: &Request, answer: &Value) -> Option<String> {
        if request.step == "delete" {
            return None;
        }
        let known = self.due.external_id.clone().map_or(Value::Null, Value::String);
        let scope = Scope::new([("answer", answer), ("external_id", &known)]);
        match self.write_of(request)?.id.evaluate(&scope) {
            Ok(Value::String(id)) if is_external_id(&id) => Some(id),
            Ok(Value::Number(id)) => Some(id.to_string()),
            _ => self.due.external_id.clone(),
        }
    }
}

/// Ids of the target's that several deliveries of one request were told, or that stand for other objects of ours: of none of these it is
/// certain whose they are.
pub(super) async fn contested(told: &[(&Delivery, String)]) -> Result<HashSet<String>, LedgerError> {
    let (mut seen, mut contested, mut fresh) = (HashSet::new(), HashSet::new(), Vec::new());
    for (delivery, id) in told {
        if !seen.insert(id) {
            contested.insert(id.clone());
        }
        if delivery.due.external_id.as_ref() != Some(id) {
            fresh.push((delivery, id));
        }
    }
    for (delivery, id) in fresh {
        if delivery.stands_for_another(id).await? {
            contested.insert(id.clone());
        }
    }
    Ok(contested)
}

fn doubt(outcome: &mut Outcome<'_>, reason: &str) {
    outcome.class = Class::Uncertain;
    outcome.contradicts = true;
    outcome.reason = format!("{}: {reason}", outcome.reason);
}

/// An answer that is JSON with something in it.
fn says_something(answer: &Value) -> bool {
    match answer {
        Value::Null => false,
        Value::Object(map) => !map.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Bool(said) => *said,
        Value::Number(_) | Value::String(_) => true,
    }
}
