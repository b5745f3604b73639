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
//! ```
//!
//! A delete goes wherever the object is owed, whatever `when` says.

use std::path::Path;

use serde_json::Value;

use super::expression::{EvaluationError, Expression};
use super::file::{check_format, read, yaml_files};
use super::scope::Scope;
use super::shape::{Variables, open_variables};
use crate::config::node::{Node, Problems};
use crate::event::{CanonicalEvent, Operation};

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
    /// Event type with version.
    pub event_type: String,
    /// Connector name.
    pub system: String,
    /// Object of the connector.
    pub object: String,
    /// Condition over `event`, `owed`, `created`, `snapshot`.
    pub when: Expression,
    /// What must stand first.
    pub requires: Vec<Requirement>,
}

impl Route {
    /// True when `event` takes this route. `owed`: the target holds the object or is owed it.
    pub fn takes(&self, event: &CanonicalEvent, owed: bool) -> Result<bool, EvaluationError> {
        if event.operation == Operation::Delete {
            return Ok(owed);
        }
        let (owed, created, snapshot) = (
            Value::Bool(owed),
            Value::Bool(event.operation == Operation::Create),
            Value::Bool(event.snapshot),
        );
        let scope = [("event", &event.data), ("owed", &owed), ("created", &created), ("snapshot", &snapshot)];
        self.when.holds(&Scope::new(scope))
    }

    /// References (`object/canonical id`) that must stand at the target before this event goes there.
    pub fn requirements(&self, event: &CanonicalEvent) -> Result<Vec<String>, EvaluationError> {
        if event.operation == Operation::Delete {
            return Ok(Vec::new());
        }
        let scope = Scope::new([("event", &event.data)]);
        let mut references = Vec::new();
        for requirement in &self.requires {
            if let Value::String(id) = requirement.id.evaluate(&scope)? {
                references.push(reference(&requirement.object, &id));
            }
        }
        Ok(references)
    }
}

/// How the ledger names an object at a target: `organization/ERP-P-8`.
#[must_use]
pub fn reference(object: &str, canonical_id: &str) -> String {
    format!("{object}/{canonical_id}")
}

/// Loads `mappings/routes/*.yaml`.
pub fn load(mappings: &Path, problems: &mut Problems) -> Vec<Route> {
    let mut routes = Vec::new();
    for path in yaml_files(&mappings.join("routes"), problems) {
        let Some(text) = read(&path, problems) else { continue };
        let Some(node) = Node::from_yaml(&path, &text, problems) else { continue };
        let mut fields = node.fields(problems);
        check_format(&mut fields, problems);
        let items = fields.required("routes", "a list", problems);
        fields.finish(problems);
        for item in items.map(|node| node.list(problems)).unwrap_or_default() {
            routes.extend(read_route(&item, problems));
        }
    }
    routes
}

fn read_route(node: &Node, problems: &mut Problems) -> Option<Route> {
    let mut fields = node.fields(problems);
    let event_type = fields.string("event", "customer.v1", problems);
    let system = fields.string("system", "stripe", problems);
    let object = fields.string("object", "customer", problems);
    let variables = open_variables(&["event", "owed", "created", "snapshot"]);
    let when = fields.required("when", "\"true\"", problems);
    let when = when.and_then(|node| Expression::compile(&node, &variables, problems));
    let listed = fields.optional("requires").map(|node| node.list(problems)).unwrap_or_default();
    fields.finish(problems);
    let requires = listed.iter().filter_map(|item| read_requirement(item, problems)).collect();
    Some(Route { event_type: event_type?, system: system?, object: object?, when: when?, requires })
}

fn read_requirement(node: &Node, problems: &mut Problems) -> Option<Requirement> {
    let variables: Variables = open_variables(&["event"]);
    let mut fields = node.fields(problems);
    let object = fields.string("object", "organization", problems);
    let id = fields.required("id", "event.customer", problems);
    let id = id.and_then(|node| Expression::compile(&node, &variables, problems));
    fields.finish(problems);
    Some(Requirement { object: object?, id: id? })
}
