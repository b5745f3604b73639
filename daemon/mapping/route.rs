//! Routes: which event goes to which object of which system, under which condition.
//!
//! ```yaml
//! format: 1
//! routes:
//!   - event: customer.v1
//!     system: stripe
//!     object: customer
//!     when: "event.active || owed"
//!     requires: [{ object: organization, id: event.customer }]
//!     every: false # true: every event, not only the newest state of an object
//!     subject: event.customer # whose lane it is in: of several that wait for the same one goes; the event's own id by default
//!     newest: false # true: only the newest of a subject counts, though its events are facts
//!     flow: standing # only where the settings name this flow
//!     priority: profile # money, entitlement, profile or backfill; what the event is about by default
//! ```
//!
//! A delete goes wherever the object is owed, whatever `when` says.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::expression::{EvaluationError, Expression};
use super::file::{check_format, read, yaml_files};
use super::schema::shape_of;
use super::scope::Scope;
use super::shape::{Shape, Variables, open_variables, suggestion};
use crate::config::node::{At, Fields, Node, Problems};
use crate::event::{CanonicalEvent, Operation, Priority};

/// Another object that must stand at the target first.
#[derive(Debug)]
pub struct Requirement {
    /// Object at the same system.
    pub object: String,
    /// Its canonical id; null when nothing is required.
    pub id: Expression,
}

/// See the module's text.
#[derive(Debug)]
pub struct Route {
    /// Where it stands.
    pub at: At,
    /// Event type with version.
    pub event_type: String,
    /// Connector name.
    pub system: String,
    /// Only this target of the settings; all with the connector when `None`.
    pub target: Option<String>,
    /// Only for (`true`), or not for (`false`), customers of a wave that has been moved.
    pub wave: Option<(Arc<Wave>, bool)>,
    /// Object of the connector.
    pub object: String,
    /// Condition over `event`, `owed`, `created`, `snapshot`, `history`.
    pub when: Expression,
    /// What must stand first.
    pub requires: Vec<Requirement>,
    /// What goes first when not everything can.
    pub priority: Priority,
    /// Every event, not only the newest state of an object.
    pub every: bool,
    /// Whose lane it is in, over `event`; the event's own when `None`.
    pub subject: Option<Expression>,
    /// Only the newest of a subject counts.
    pub newest: bool,
    /// The flow that it is part of.
    pub flow: Option<String>,
    /// There is a schema of the event.
    pub is_canonical: bool,
}

impl Route {
    /// True when `event` takes this route. `owed`: the target holds the object or is owed it; `history`: it is of a time before its
    /// source was first read.
    pub fn takes(
        &self,
        event: &CanonicalEvent,
        (owed, history): (bool, bool),
        moved: &BTreeSet<String>,
    ) -> Result<bool, EvaluationError> {
        if event.operation == Operation::Delete {
            return Ok(owed);
        }
        if let Some((wave, inside)) = &self.wave
            && (moved.contains(&wave.name) && wave.has(event)?) != *inside
        {
            return Ok(false);
        }
        let (owed, created, snapshot) = (
            Value::Bool(owed),
            Value::Bool(event.operation == Operation::Create),
            Value::Bool(event.snapshot),
        );
        let history = Value::Bool(history);
        let scope = [
            ("event", &event.data),
            ("owed", &owed),
            ("created", &created),
            ("snapshot", &snapshot),
            ("history", &history),
        ];
        self.when.holds(&Scope::new(scope))
    }

    /// In whose lane `event` goes; `None` when that is nobody's.
    #[must_use]
    pub fn lane_of(&self, event: &CanonicalEvent) -> Option<String> {
        let Some(subject) = &self.subject else { return Some(event.id.clone()) };
        match subject.evaluate(&Scope::new([("event", &event.data)])) {
            Ok(Value::String(subject)) if !subject.is_empty() => Some(subject),
            _ => None,
        }
    }

    /// What goes first. What comes with a load can wait: nobody has changed it just now.
    #[must_use]
    pub fn priority_of(&self, event: &CanonicalEvent) -> Priority {
        if event.snapshot { Priority::Backfill } else { self.priority }
    }

    /// References (`object/canonical id`) that must stand at the target before this event goes there.
    ///
    /// `partial`: not all of the event is known, perhaps not what it refers to.
    pub fn requirements(
        &self,
        event: &CanonicalEvent,
        partial: bool,
    ) -> Result<Vec<String>, EvaluationError> {
        if event.operation == Operation::Delete {
            return Ok(Vec::new());
        }
        let scope = Scope::new([("event", &event.data)]);
        let mut references = Vec::new();
        for requirement in &self.requires {
            match requirement.id.evaluate(&scope) {
                Ok(Value::String(id)) => references.push(reference(&requirement.object, &id)),
                Err(error) if !partial => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
        Ok(references)
    }
}

/// Reports routes that lead nowhere: `made` are the event types of the mappings, `objects` those of a system, `None` when there is
/// no such connector.
pub fn check(
    routes: &[Route],
    made: &dyn Fn(&str) -> bool,
    objects: &dyn Fn(&str) -> Option<Vec<String>>,
    problems: &mut Problems,
) {
    for route in routes {
        let objects = objects(&route.system);
        // What of the canonical events there is depends on the sources; a route of one that none makes waits for a source that does.
        if !made(&route.event_type) && !route.is_canonical {
            let what = format!("a route names event `{}`, which no mapping makes", route.event_type);
            problems.add(&route.at, what, "a mapped event type");
        }
        let Some(known) = objects else { continue };
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        let names =
            std::iter::once(&route.object).chain(route.requires.iter().map(|required| &required.object));
        for object in names.filter(|object| !known.contains(&object.as_str())) {
            let what =
                format!("a route names object `{object}`, which connector `{}` does not have", route.system);
            problems.add(&route.at, what, suggestion(object, &known, "one of"));
        }
    }
}

/// A group of customers that is moved from one system to another.
#[derive(Debug)]
pub struct Wave {
    /// Name.
    pub name: String,
    /// Who belongs to it, over `customer` (canonical id) and `event`.
    pub when: Expression,
}

impl Wave {
    fn has(&self, event: &CanonicalEvent) -> Result<bool, EvaluationError> {
        // An invoice goes with its customer.
        let own = Value::String(event.id.clone());
        let customer = event.data.get("customer").filter(|customer| customer.is_string()).unwrap_or(&own);
        self.when.holds(&Scope::new([("event", &event.data), ("customer", customer)]))
    }
}

/// How the ledger names an object at a target: `organization/ERP-P-8`.
#[must_use]
pub fn reference(object: &str, canonical_id: &str) -> String {
    format!("{object}/{canonical_id}")
}

/// Loads `mappings/routes/*.yaml`.
pub fn load(mappings: &Path, problems: &mut Problems) -> Vec<Route> {
    let (mut routes, mut waves) = (Vec::new(), Vec::new());
    let mut items = Vec::new();
    for path in yaml_files(&mappings.join("routes"), problems) {
        let Some(text) = read(&path, problems) else { continue };
        let Some(node) = Node::from_yaml(&path, &text, problems) else { continue };
        let mut fields = node.fields(problems);
        check_format(&mut fields, problems);
        for (name, node) in fields.optional("waves").map(|node| node.entries(problems)).unwrap_or_default() {
            let variables = open_variables(&["event", "customer"]);
            let when = Expression::compile(&node, &variables, problems);
            waves.extend(when.map(|when| Arc::new(Wave { name, when })));
        }
        let listed = fields.required("routes", "a list", problems);
        fields.finish(problems);
        items.extend(listed.map(|node| node.list(problems)).unwrap_or_default());
    }
    for item in &items {
        routes.extend(read_route(mappings, item, &waves, problems));
    }
    routes
}

fn read_route(mappings: &Path, node: &Node, waves: &[Arc<Wave>], problems: &mut Problems) -> Option<Route> {
    let mut fields = node.fields(problems);
    let event_type = fields.string("event", "customer.v1", problems);
    let system = fields.string("system", "stripe", problems);
    let target = fields.optional("target").and_then(|node| node.string(problems));
    let wave = read_wave(&mut fields, node, waves, problems);
    let object = fields.string("object", "customer", problems);
    let shape = event_type.as_ref().map_or(Shape::Any, |name| shape_of(mappings, name));
    let mut variables = open_variables(&["event", "owed", "created", "snapshot", "history"]);
    variables.insert("event".into(), shape.clone());
    let when = fields.required("when", "\"true\"", problems);
    let when = when.and_then(|node| Expression::compile(&node, &variables, problems));
    let listed = fields.optional("requires").map(|node| node.list(problems)).unwrap_or_default();
    let priority = fields.optional("priority").and_then(|node| read_priority(&node, problems));
    let is_canonical = !matches!(shape, Shape::Any);
    let mut yes = |key, problems: &mut Problems| {
        fields.optional(key).and_then(|node| node.boolean(problems)).unwrap_or(false)
    };
    let (every, newest) = (yes("every", problems), yes("newest", problems));
    let subject = fields.optional("subject");
    let own = [("event".to_owned(), shape.clone())].into();
    let subject = subject.and_then(|node| Expression::compile(&node, &own, problems));
    let flow = fields.optional("flow").and_then(|node| node.string(problems));
    fields.finish(problems);
    let requires = listed.iter().filter_map(|item| read_requirement(item, &shape, problems)).collect();
    let (event_type, system, object) = (event_type?, system?, object?);
    let priority = priority.unwrap_or_else(|| Priority::of_type(&event_type));
    Some(Route {
        at: node.at.clone(),
        event_type,
        system,
        target,
        wave: wave?,
        object,
        when: when?,
        requires,
        priority,
        every,
        subject,
        newest,
        flow,
        is_canonical,
    })
}

fn read_priority(node: &Node, problems: &mut Problems) -> Option<Priority> {
    let text = node.string(problems)?;
    let found = Priority::ALL.into_iter().find(|priority| priority.as_str() == text);
    if found.is_none() {
        let known = Priority::ALL.map(Priority::as_str);
        problems.add(&node.at, format!("there is no priority `{text}`"), suggestion(&text, &known, "one of"));
    }
    found
}

/// `wave: NAME` or `unless_wave: NAME`; `None` when it is wrong.
fn read_wave(
    fields: &mut Fields,
    node: &Node,
    waves: &[Arc<Wave>],
    problems: &mut Problems,
) -> Option<Option<(Arc<Wave>, bool)>> {
    let (inside, outside) = (fields.optional("wave"), fields.optional("unless_wave"));
    let (named, inside) = match (inside, outside) {
        (None, None) => return Some(None),
        (Some(named), None) => (named, true),
        (None, Some(named)) => (named, false),
        (Some(_), Some(_)) => {
            problems.add(&node.at, "a route has `wave` or `unless_wave`, not both", "wave: pilot");
            return None;
        }
    };
    let name = named.string(problems)?;
    let found = waves.iter().find(|wave| wave.name == name);
    if found.is_none() {
        let known: Vec<&str> = waves.iter().map(|wave| wave.name.as_str()).collect();
        problems.add(
            &named.at,
            format!("there is no wave `{name}`"),
            suggestion(&name, &known, "under `waves`"),
        );
    }
    found.map(|wave| Some((wave.clone(), inside)))
}

fn read_requirement(node: &Node, shape: &Shape, problems: &mut Problems) -> Option<Requirement> {
    let variables: Variables = [("event".to_owned(), shape.clone())].into();
    let mut fields = node.fields(problems);
    let object = fields.string("object", "organization", problems);
    let id = fields.required("id", "event.customer", problems);
    let id = id.and_then(|node| Expression::compile(&node, &variables, problems));
    fields.finish(problems);
    Some(Requirement { object: object?, id: id? })
}
