//! What the routes make of events, without any target: each object stands at a system as soon as an event has been routed
//! there.

use std::collections::{BTreeSet, HashMap, HashSet};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::redact::redacted;
use crate::connector::Connector;
use crate::dispatch::plan::{Plan, own_id, plan};
use crate::event::{CanonicalEvent, Operation};
use crate::image::Emitted;
use crate::ledger::batch::Lane;
use crate::ledger::outbox::Due;
use crate::mapping::route::Route;
use crate::mapping::upcast::Upcasters;

/// See the module's text.
pub struct Rehearsal<'a> {
    /// Mapping of the events: what a system says is not told to itself.
    own: &'a str,
    routes: &'a [Route],
    connectors: &'a [Connector],
    upcasters: &'a Upcasters,
    /// What stands where: system, object, canonical id.
    known: HashSet<(String, String, String)>,
}

impl<'a> Rehearsal<'a> {
    /// Nothing stands anywhere.
    #[must_use]
    pub fn new(
        own: &'a str,
        routes: &'a [Route],
        connectors: &'a [Connector],
        upcasters: &'a Upcasters,
    ) -> Self {
        Self { own, routes, connectors, upcasters, known: HashSet::new() }
    }

    /// The requests that an event leads to: `system`, `request` and `body`; or `error`.
    pub fn requests(&mut self, emitted: &Emitted) -> Vec<Value> {
        let event = &emitted.event;
        if emitted.fault.is_some() {
            return Vec::new();
        }
        let mut requests = Vec::new();
        for route in self.routes.iter().filter(|route| route.system != self.own) {
            let Some(lifted) = self.upcasters.event(event, &route.event_type) else { continue };
            // What a bus is told is the event itself, which is shown already.
            let told = |known: &&Connector| known.name == route.system && !known.transport.publishes();
            let Some(connector) = self.connectors.iter().find(told) else {
                continue;
            };
            let object = (route.system.clone(), route.object.clone(), event.id.clone());
            let owed = self.known.contains(&object);
            let taken = lifted.and_then(|event| {
                Ok((
                    route.takes(&event, (owed, false), &BTreeSet::new())?,
                    route.requirements(&event, false)?,
                    event,
                ))
            });
            match taken {
                Ok((false, ..)) => {}
                Ok((true, requires, lifted)) => {
                    let due = self.due(&lifted, &object, requires);
                    requests.extend(shown(connector, &due));
                    if event.operation == Operation::Delete {
                        self.known.remove(&object);
                    } else {
                        self.known.insert(object);
                    }
                }
                Err(error) => requests.push(json!({"system": route.system, "error": error.to_string()})),
            }
        }
        requests
    }

    fn due(&self, event: &CanonicalEvent, object: &(String, String, String), requires: Vec<String>) -> Due {
        let (system, name, id) = object;
        let stands = |name: &str, id: &str| {
            let key = (system.clone(), name.to_owned(), id.to_owned());
            self.known.contains(&key).then(|| format!("({name} {id})"))
        };
        let references: HashMap<String, String> = requires
            .iter()
            .filter_map(|reference| {
                let (name, id) = reference.split_once('/')?;
                Some((reference.clone(), stands(name, id)?))
            })
            .collect();
        let lane = Lane { target: system.clone(), object: name.clone(), canonical_id: id.clone() };
        let mut due =
            Due { external_id: stands(name, id), references, ..Due::imagined(lane, event, requires) };
        let connector = self.connectors.iter().find(|connector| connector.name == *system);
        if due.external_id.is_none() {
            due.external_id = connector.and_then(|connector| own_id(connector, &due));
        }
        due
    }
}

/// The request of a delivery, as people read it; `None` when nothing is to be sent.
#[must_use]
pub fn shown(connector: &Connector, due: &Due) -> Option<Value> {
    let system = &connector.system;
    match plan(connector, false, due, Timestamp::UNIX_EPOCH, &|_| None) {
        Ok(
            Plan::Send { request, .. }
            | Plan::Adopt { request, .. }
            | Plan::Find(request)
            | Plan::Prepare { first: request, .. },
        ) => {
            let line = format!("{} {}", request.method, request.path);
            let body = request
                .body
                .map(|body| serde_json::from_str::<Value>(&body).unwrap_or_else(|_| fields_of_form(&body)));
            Some(json!({"system": system, "request": line, "body": body}))
        }
        Ok(Plan::Skip { .. } | Plan::Note { .. }) => None,
        Ok(Plan::Park(_, reason)) => Some(json!({"system": system, "error": reason})),
        Err(obstacle) => Some(json!({"system": system, "error": obstacle.to_string()})),
    }
}

/// The line and the body of what is [`shown`]; `values`: personal ones, too.
#[must_use]
pub fn printed(shown: &Value, values: bool) -> (&str, Value) {
    let line = shown.get("request").or(shown.get("error")).and_then(Value::as_str).unwrap_or_default();
    let body = shown.get("body").cloned().unwrap_or_default();
    (line, if values { body } else { redacted(&body) })
}

/// `a=1&b[c]=2` as `{"a": "1", "b[c]": "2"}`.
fn fields_of_form(body: &str) -> Value {
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decoded(name), Value::String(decoded(value)))
    };
    Value::Object(body.split('&').filter(|pair| !pair.is_empty()).map(pair).collect())
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = after.get(..2).filter(|_| *first == b'%');
        let code = code
            .and_then(|code| std::str::from_utf8(code).ok())
            .and_then(|code| u8::from_str_radix(code, 16).ok());
        match code {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
