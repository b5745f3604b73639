//! What to send for a delivery, if anything. Pure: who holds a unique value is a parameter.

use serde_json::Value;

use super::compare::{laid_over, shows, within};
use super::inputs::Inputs;
use super::retry::{Doubt, Resolution, resolve};
use crate::connector::request::{Request, encode, without_nulls};
use crate::connector::{Before, Connector, Find, ObjectSpec, Strategy, Unique, Write};
use crate::event::{canonical_bytes, sha256_hex};
use crate::ledger::batch::{Cause, Lane};
use crate::ledger::outbox::Due;
use crate::mapping::expression::EvaluationError;
use crate::mapping::scope::{Scope, Variable};

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
    /// It stands there so, though the target was never told: what it would have been told is noted.
    Note {
        /// The request that is not sent.
        request: Request,
        /// As for [`Plan::Send`].
        wishes: Vec<String>,
    },
    /// Ask first what is to be written; then send that.
    Prepare {
        /// As for [`Plan::Send`].
        wishes: Vec<String>,
        /// What is asked at first.
        first: Request,
    },
    /// Look the object up to learn what became of a create.
    Find(Request),
    /// A person decides.
    Park(Cause, String),
}

impl Plan {
    /// What its body says matters to nobody later.
    pub fn forget_what_it_says(&mut self) {
        if let Self::Send { request, .. } | Self::Adopt { request, .. } | Self::Note { request, .. } = self {
            request.says = None;
        }
    }

    /// What is sent first; `None` when nothing is.
    #[must_use]
    pub fn first_request(&self) -> Option<&Request> {
        match self {
            Self::Skip { .. } | Self::Note { .. } | Self::Park(..) => None,
            Self::Send { request, .. } | Self::Find(request) | Self::Prepare { first: request, .. } => {
                Some(request)
            }
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
    /// Its subject was forgotten after all of it was written.
    #[error("what is personal of it cannot be opened any more: its subject was forgotten")]
    Sealed,
    /// Nothing could be made of what it came from, for this reason: only its cure brings an event that can be delivered.
    #[error("{0}")]
    HeldBack(String),
    /// An earlier version wrote it, or somebody else.
    #[error("its event cannot be read back from the ledger: it is nested too deeply")]
    Unreadable,
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
    let Some(mut body) = object.body.render_without(&scope, "event", &due.unknown)? else {
        return Ok(Vec::new());
    };
    let mut wants = Vec::new();
    for unique in &object.unique {
        let Some(wanted) = want(object, unique, &body) else { continue };
        wants.push(wanted);
        set(&mut body, &unique.path, unique.otherwise.evaluate(&scope)?);
        wants.extend(want(object, unique, &body));
    }
    Ok(wants)
}

/// The target's own id of the object, where that follows from the event.
#[must_use]
pub fn own_id(connector: &Connector, due: &Due) -> Option<String> {
    let own = connector.object(&due.lane.object)?.own_id.as_ref()?;
    let inputs = Inputs::new(connector, due);
    match own.evaluate(&inputs.scope()).ok()? {
        Value::String(id) => Some(id),
        Value::Number(id) => Some(id.to_string()),
        _ => None,
    }
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
    if let Some(concerns) = object.concerns.as_ref().filter(|_| due.operation != "delete")
        && !concerns.holds(&scope)?
    {
        return Ok(Plan::Skip { reason: "it is about another system than this one", claims: None });
    }
    let known = due.external_id.is_some();
    let publishes = matches!(object.strategy, Strategy::Publish(_));
    if due.operation == "delete" && !publishes {
        return removal(connector, object, due, &scope);
    }
    if known && matches!(object.strategy, Strategy::Post { .. }) {
        return Ok(Plan::Skip { reason: "made already", claims: None });
    }
    let Some(mut body) = object.body.render_without(&scope, "event", &due.unknown)? else {
        return Ok(Plan::Skip { reason: "nobody who has a say in it has spoken", claims: None });
    };
    let is_free = |want: &str| holder(want).is_none_or(|lane| lane == due.lane);
    let (holds, mut wishes) = match claims(object, &scope, &mut body, &is_free)? {
        Ok(claims) => claims,
        Err(reason) => return Ok(Plan::Park(Cause::Unique, reason)),
    };
    wishes.extend(due.requires.iter().map(|reference| wish_for(due, reference)));
    let sha256 = sha256_hex(&canonical_bytes(&without_nulls(&body)));
    let held = due.applied_body.as_ref();
    let is_so = due.applied_sha256.as_deref() == Some(sha256.as_str())
        || held.is_some_and(|held| within(&body, held));
    if !publishes && known && is_so {
        return Ok(Plan::Skip { reason: "unchanged at the target", claims: Some((holds, wishes)) });
    }
    let is_shown = known && due.shown_body.as_ref().is_some_and(|shown| shows(shown, &body));
    let (step, write) = write_of(&object.strategy, known);
    if let Some(first) = write.before.first() {
        let first = before(connector, due, first, &[])?;
        return Ok(Plan::Prepare { wishes, first });
    }
    let request = written(connector, (step, write), &scope, body, known)?;
    let says = request.says.map(|body| held.map_or_else(|| body.clone(), |held| laid_over(held, &body)));
    let request = Request { sha256: Some(sha256), holds, says, ..request };
    if is_shown {
        return Ok(Plan::Note { request, wishes });
    }
    let look_ups = if step == "create" && adopts { look_ups(object, &scope)? } else { Vec::new() };
    if look_ups.is_empty() {
        return Ok(Plan::Send { request, wishes });
    }
    Ok(Plan::Adopt { look_ups, request, wishes })
}

/// What an object holds at the target, and what it would like to hold.
type Claims = (Vec<String>, Vec<String>);

/// What the object holds, and would like to hold; what others hold is replaced in `body`. The error says what cannot be had at all.
fn claims(
    object: &ObjectSpec,
    scope: &Scope<'_>,
    body: &mut Value,
    is_free: &dyn Fn(&str) -> bool,
) -> Result<Result<Claims, String>, EvaluationError> {
    let (mut holds, mut wishes) = (Vec::new(), Vec::new());
    for unique in &object.unique {
        let Some(wanted) = want(object, unique, body) else { continue };
        if is_free(&wanted) {
            holds.push(wanted);
            continue;
        }
        set(body, &unique.path, unique.otherwise.evaluate(scope)?);
        wishes.push(wanted);
        let Some(replacement) = want(object, unique, body) else { continue };
        if !is_free(&replacement) {
            let path = unique.path.join(".");
            return Ok(Err(format!("`{path}` must be unique, and its replacement is taken as well")));
        }
        holds.push(replacement);
    }
    Ok(Ok((holds, wishes)))
}

/// What an object is written by.
fn write_of(strategy: &Strategy, known: bool) -> (&'static str, &Write) {
    match strategy {
        Strategy::Publish(write) => ("publish", write),
        Strategy::Upsert(write) => ("upsert", write),
        Strategy::Post { post, .. } => ("post", post),
        Strategy::CreateOrUpdate { update, .. } if known => ("update", update),
        Strategy::CreateOrUpdate { create, .. } => ("create", create),
    }
}

/// The request that writes `body`.
fn written(
    connector: &Connector,
    (step, write): (&str, &Write),
    scope: &Scope<'_>,
    body: Value,
    known: bool,
) -> Result<Request, EvaluationError> {
    let bare = Request::bare(step, &write.line, scope)?;
    let (text, content_type) = match &write.body {
        // Whoever writes a body of its own says what a null means there.
        Some(own) => encode(
            connector.encoding,
            &own.render(&Scope::with(scope, "body", Variable::Value(&body)))?,
            true,
        ),
        None => encode(connector.encoding, &body, known),
    };
    Ok(Request { content_type: Some(content_type.to_owned()), body: Some(text), says: Some(body), ..bare })
}

/// A request before the one that writes; `answered`: what came of those before it.
pub fn before(
    connector: &Connector,
    due: &Due,
    before: &Before,
    answered: &[(&str, Value)],
) -> Result<Request, EvaluationError> {
    let inputs = Inputs::new(connector, due);
    let scope = inputs.with(answered);
    let request = Request::bare("before", &before.line, &scope)?;
    match &before.body {
        Some(body) => Ok(request.with_body(connector.encoding, &body.render(&scope)?)),
        None => Ok(request),
    }
}

/// The request that writes, once everything before it was answered.
pub fn prepared(connector: &Connector, due: &Due, answered: &[(&str, Value)]) -> Result<Request, Obstacle> {
    let object = object_of(connector, due)?;
    let inputs = Inputs::new(connector, due);
    let scope = inputs.with(answered);
    let body = object.body.render_without(&scope, "event", &due.unknown)?.unwrap_or_default();
    let sha256 = sha256_hex(&canonical_bytes(&without_nulls(&body)));
    let known = due.external_id.is_some();
    let request = written(connector, write_of(&object.strategy, known), &scope, body, known)?;
    Ok(Request { sha256: Some(sha256), ..request })
}

/// What is asked before a delivery is written.
#[must_use]
pub fn befores<'a>(connector: &'a Connector, due: &Due) -> &'a [Before] {
    let known = due.external_id.is_some();
    connector.object(&due.lane.object).map_or(&[], |object| &write_of(&object.strategy, known).1.before)
}

fn removal(
    connector: &Connector,
    object: &ObjectSpec,
    due: &Due,
    scope: &Scope<'_>,
) -> Result<Plan, Obstacle> {
    let Some(removal) = &object.delete else {
        return Ok(Plan::Skip { reason: "it stays there", claims: None });
    };
    if due.external_id.is_none() {
        return Ok(Plan::Skip { reason: "not at the target", claims: None });
    }
    let request = Request::bare("delete", &removal.line, scope)?;
    let request = match &removal.body {
        Some(body) => request.with_body(connector.encoding, &body.render(scope)?),
        None => request,
    };
    Ok(Plan::Send { request, wishes: Vec::new() })
}

fn look_up(connector: &Connector, find: &Find, due: &Due) -> Result<Request, EvaluationError> {
    let inputs = Inputs::new(connector, due);
    let request = Request::bare("find", &find.line, &inputs.scope())?;
    match &find.body {
        Some(body) => Ok(request.with_body(connector.encoding, &body.render(&inputs.scope())?)),
        None => Ok(request),
    }
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
        Strategy::CreateOrUpdate { find, .. } | Strategy::Post { find, .. } => find.as_deref(),
        Strategy::Upsert(_) | Strategy::Publish(_) => None,
    };
    let Some(request_sent) = due.request.as_ref().and_then(Request::from_json) else {
        // Nothing was sent that the ledger knows of; the target is asked.
        return match find {
            Some(find) if due.request.is_none() => Ok(Plan::Find(look_up(connector, find, due)?)),
            _ => Ok(Plan::Park(Cause::Doubt, "the request in doubt is not recorded".into())),
        };
    };
    let age = due.attempted_at.map(|at| now.duration_since(at));
    let doubt = Doubt {
        repeatable: !request_sent.makes_anew(),
        key_window: connector.idempotency.as_ref().map(|idempotency| idempotency.window),
        age: age.and_then(|age| age.try_into().ok()).unwrap_or_default(),
        attempts: due.attempts,
        server_error: due.reason.as_ref().is_some_and(|reason| reason.starts_with("status 5")),
        can_find: find.is_some(),
    };
    match (resolve(&doubt), find) {
        (Resolution::Resend, _) => Ok(Plan::Send { request: request_sent, wishes: Vec::new() }),
        (Resolution::Find, Some(find)) => Ok(Plan::Find(look_up(connector, find, due)?)),
        (Resolution::Find | Resolution::Park, _) => {
            Ok(Plan::Park(Cause::Doubt, "it is not known whether the request was carried out".into()))
        }
    }
}

/// An object that is not known here can be looked up at the target; an upsert needs no look-up.
fn looks_up(object: &ObjectSpec) -> bool {
    matches!(
        &object.strategy,
        Strategy::CreateOrUpdate { find: Some(_), .. } | Strategy::Post { find: Some(_), .. }
    )
}

fn object_of<'a>(connector: &'a Connector, due: &Due) -> Result<&'a ObjectSpec, Obstacle> {
    connector.object(&due.lane.object).ok_or_else(|| Obstacle::UnknownObject(due.lane.object.clone()))
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
