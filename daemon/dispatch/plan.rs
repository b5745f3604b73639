//! What to send for a delivery, if anything. Pure: who holds a unique value is a parameter.

use serde_json::{Map, Value, json};

use super::retry::{Doubt, Resolution, resolve};
use crate::connector::request::{Request, encode, without_nulls};
use crate::connector::{Connector, ObjectSpec, Strategy, Unique};
use crate::event::{canonical_bytes, sha256_hex};
use crate::ledger::batch::{Cause, Lane};
use crate::ledger::outbox::Due;
use crate::mapping::expression::EvaluationError;
use crate::mapping::scope::Scope;

/// See the module's text.
#[derive(Debug, Clone, PartialEq)]
pub enum Plan {
    /// The target already has it so.
    Skip {
        /// Why.
        reason: &'static str,
        /// What the object holds and wishes at the target now; `None` for a delete.
        claims: Option<(Vec<String>, Vec<String>)>,
    },
    /// Send this.
    Send {
        /// The request.
        request: Request,
        /// What it has to do without: unique values held by others, references that are not there.
        wishes: Vec<String>,
    },
    /// Look whether somebody else has made the object at the target already; if nobody has, send this.
    Adopt {
        /// Look-ups, with the index of their rule.
        look_ups: Vec<(usize, Request)>,
        /// The request that creates it.
        request: Request,
        /// As for [`Plan::Send`].
        wishes: Vec<String>,
    },
    /// Look the object up to learn what became of a create.
    Find(Request),
    /// A person decides.
    Park(Cause, String),
}

impl Plan {
    /// What is sent first; `None` when nothing is.
    #[must_use]
    pub fn first_request(&self) -> Option<&Request> {
        match self {
            Self::Skip { .. } | Self::Park(..) => None,
            Self::Send { request, .. } | Self::Find(request) => Some(request),
            Self::Adopt { look_ups, request, .. } => {
                Some(look_ups.first().map_or(request, |(_, look_up)| look_up))
            }
        }
    }
}

/// Why no plan can be made yet.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Obstacle {
    /// An expression failed on this event.
    #[error(transparent)]
    Evaluation(#[from] EvaluationError),
    /// The connector does not know the object any more.
    #[error("the connector has no object `{0}`")]
    UnknownObject(String),
}

/// The unique values the delivery would like to hold, to be looked up before [`plan`].
pub fn wanted(connector: &Connector, due: &Due) -> Result<Vec<String>, Obstacle> {
    let object = object_of(connector, due)?;
    let is_sent = due.uncertain && due.request.is_some();
    if due.operation == "delete" || is_sent || object.unique.is_empty() {
        return Ok(Vec::new());
    }
    let inputs = Inputs::new(connector, due);
    let scope = inputs.scope();
    let mut body = object.body.render(&scope)?;
    let mut wants = Vec::new();
    for unique in &object.unique {
        let Some(wanted) = want(object, unique, &body) else { continue };
        wants.push(wanted);
        set(&mut body, &unique.path, unique.otherwise.evaluate(&scope)?);
        wants.extend(want(object, unique, &body));
    }
    Ok(wants)
}

/// Decides. `adopts`: objects may stand at the target that somebody else has made. `holder` says which object holds a unique
/// value at the target.
pub fn plan(
    connector: &Connector,
    adopts: bool,
    due: &Due,
    now: jiff::Timestamp,
    holder: &dyn Fn(&str) -> Option<Lane>,
) -> Result<Plan, Obstacle> {
    let object = object_of(connector, due)?;
    if due.uncertain && (due.request.is_some() || looks_up(object)) {
        return in_doubt(connector, object, due, now);
    }
    let inputs = Inputs::new(connector, due);
    let scope = inputs.scope();
    let publishes = matches!(object.strategy, Strategy::Publish(_));
    if due.operation == "delete" && !publishes {
        if due.external_id.is_none() {
            return Ok(Plan::Skip { reason: "not at the target", claims: None });
        }
        let request = Request::bare("delete", &object.delete, &scope)?;
        return Ok(Plan::Send { request, wishes: Vec::new() });
    }
    let mut body = object.body.render(&scope)?;
    let (mut holds, mut wishes) = (Vec::new(), Vec::new());
    let is_free = |want: &str| holder(want).is_none_or(|lane| lane == due.lane);
    for unique in &object.unique {
        let Some(wanted) = want(object, unique, &body) else { continue };
        if is_free(&wanted) {
            holds.push(wanted);
            continue;
        }
        set(&mut body, &unique.path, unique.otherwise.evaluate(&scope)?);
        wishes.push(wanted);
        let Some(replacement) = want(object, unique, &body) else { continue };
        if !is_free(&replacement) {
            let path = unique.path.join(".");
            let reason = format!("`{path}` must be unique, and its replacement is taken as well");
            return Ok(Plan::Park(Cause::Unique, reason));
        }
        holds.push(replacement);
    }
    wishes.extend(due.requires.iter().map(|reference| wish_for(due, reference)));
    let sha256 = sha256_hex(&canonical_bytes(&without_nulls(&body)));
    if !publishes && due.external_id.is_some() && due.applied_sha256.as_deref() == Some(sha256.as_str()) {
        return Ok(Plan::Skip { reason: "unchanged at the target", claims: Some((holds, wishes)) });
    }
    let (step, line) = match (&object.strategy, &due.external_id) {
        (Strategy::Publish(write), _) => ("publish", &write.line),
        (Strategy::Upsert(write), _) => ("upsert", &write.line),
        (Strategy::CreateOrUpdate { create, .. }, None) => ("create", &create.line),
        (Strategy::CreateOrUpdate { update, .. }, Some(_)) => ("update", &update.line),
    };
    let (text, content_type) = encode(connector.encoding, &body, due.external_id.is_some());
    let request = Request {
        content_type: Some(content_type.to_owned()),
        body: Some(text),
        sha256: Some(sha256),
        holds,
        ..Request::bare(step, line, &scope)?
    };
    if step == "create" && adopts {
        let look_ups = look_ups(object, &scope)?;
        if !look_ups.is_empty() {
            return Ok(Plan::Adopt { look_ups, request, wishes });
        }
    }
    Ok(Plan::Send { request, wishes })
}

/// `ref`: not there, deliver again when it comes. `back`: there, deliver again should it go and come back.
fn wish_for(due: &Due, reference: &str) -> String {
    let kind = if due.references.contains_key(reference) { "back" } else { "ref" };
    format!("{kind}:{reference}")
}

fn look_ups(object: &ObjectSpec, scope: &Scope<'_>) -> Result<Vec<(usize, Request)>, Obstacle> {
    let mut look_ups = Vec::new();
    for (index, adoption) in object.adopt.iter().enumerate() {
        if adoption.when.holds(scope)? {
            look_ups.push((index, Request::bare("adopt", &adoption.line, scope)?));
        }
    }
    Ok(look_ups)
}

/// The last request has no outcome: the same bytes again, a look-up, or a person (INV-3).
fn in_doubt(
    connector: &Connector,
    object: &ObjectSpec,
    due: &Due,
    now: jiff::Timestamp,
) -> Result<Plan, Obstacle> {
    let find = match &object.strategy {
        Strategy::CreateOrUpdate { find, .. } => find.as_deref(),
        Strategy::Upsert(_) | Strategy::Publish(_) => None,
    };
    let Some(request_sent) = due.request.as_ref().and_then(Request::from_json) else {
        // Nothing was sent that the ledger knows of; the target is asked.
        return match find {
            Some(find) if due.request.is_none() => {
                Ok(Plan::Find(Request::bare("find", &find.line, &Inputs::new(connector, due).scope())?))
            }
            _ => Ok(Plan::Park(Cause::Doubt, "the request in doubt is not recorded".into())),
        };
    };
    let age = due.attempted_at.map(|at| now.duration_since(at));
    let doubt = Doubt {
        repeatable: request_sent.step != "create",
        key_window: connector.idempotency.as_ref().map(|idempotency| idempotency.window),
        age: age.and_then(|age| age.try_into().ok()).unwrap_or_default(),
        attempts: due.attempts,
        server_error: due.reason.as_ref().is_some_and(|reason| reason.starts_with("status 5")),
        can_find: find.is_some(),
    };
    match (resolve(&doubt), find) {
        (Resolution::Resend, _) => Ok(Plan::Send { request: request_sent, wishes: Vec::new() }),
        (Resolution::Find, Some(find)) => {
            Ok(Plan::Find(Request::bare("find", &find.line, &Inputs::new(connector, due).scope())?))
        }
        (Resolution::Find | Resolution::Park, _) => {
            Ok(Plan::Park(Cause::Doubt, "it is not known whether the request was carried out".into()))
        }
    }
}

/// An object that is not known here can be looked up at the target; an upsert needs no look-up.
fn looks_up(object: &ObjectSpec) -> bool {
    matches!(&object.strategy, Strategy::CreateOrUpdate { find: Some(_), .. })
}

fn object_of<'a>(connector: &'a Connector, due: &Due) -> Result<&'a ObjectSpec, Obstacle> {
    connector.object(&due.lane.object).ok_or_else(|| Obstacle::UnknownObject(due.lane.object.clone()))
}

/// `event`, `references` (object to the target's id, null when it is not there), `external_id`, and `meta` (what is said of the
/// event: `id`, `type`, `operation`, `time`, `source`, `subject`).
struct Inputs([(&'static str, Value); 4]);

impl Inputs {
    fn new(connector: &Connector, due: &Due) -> Self {
        let mut event = due.event.get("data").cloned().unwrap_or_default();
        if !event.is_object() {
            event = Value::Object(Map::new());
        }
        if let Value::Object(map) = &mut event {
            map.insert("id".into(), Value::String(due.lane.canonical_id.clone()));
        }
        let mut references: Map<String, Value> =
            connector.objects.iter().map(|object| (object.name.clone(), Value::Null)).collect();
        for (reference, external_id) in &due.references {
            if let Some((object, _)) = reference.split_once('/') {
                references.insert(object.to_owned(), Value::String(external_id.clone()));
            }
        }
        let external_id = due.external_id.clone().map_or(Value::Null, Value::String);
        let said = |path: &str| due.event.pointer(path).cloned().unwrap_or_default();
        let meta = json!({
            "id": said("/event_id"), "type": said("/type"), "operation": said("/op"), "subject": due.lane.canonical_id,
            "time": said("/source/committed_at"), "source": said("/source/name"),
        });
        let references = Value::Object(references);
        Self([("event", event), ("references", references), ("external_id", external_id), ("meta", meta)])
    }

    fn scope(&self) -> Scope<'_> {
        Scope::new(self.0.iter().map(|(name, value)| (*name, value)))
    }
}

/// The name under which a unique value is reserved; case and outer white space do not tell values apart.
fn want(object: &ObjectSpec, unique: &Unique, body: &Value) -> Option<String> {
    let value = unique.path.iter().try_fold(body, |value, key| value.get(key))?;
    let text = value.as_str()?.trim().to_lowercase();
    (!text.is_empty()).then(|| format!("{}:{}={text}", object.name, unique.path.join(".")))
}

fn set(body: &mut Value, path: &[String], value: Value) {
    let Some((last, parents)) = path.split_last() else { return };
    let parent = parents.iter().try_fold(body, |value, key| value.get_mut(key));
    if let Some(Value::Object(map)) = parent {
        map.insert(last.clone(), value);
    }
}

/// What the reservation of `path` in a request that was refused as a duplicate is called.
#[must_use]
pub fn conflicting_want(request: &Request, path: &str) -> Option<String> {
    request.holds.iter().find(|want| want.contains(&format!(":{path}="))).cloned()
}
