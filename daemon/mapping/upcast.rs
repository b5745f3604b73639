//! Older events in the form of a newer version, so that what is stored stays of use and a reader can pin the version it knows.
//!
//! The schema of the newer version says how, in `x-upcast`: from which version, what becomes of its data (a template over
//! `data`, laid over what was there), and which fields are dropped:
//!
//! ```json
//! "x-upcast": { "from": "customer.v1", "data": { "emails": "data.email == null ? [] : [data.email]" }, "drop": ["email"] }
//! ```

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::expression::EvaluationError;
use super::schema::written;
use super::scope::Scope;
use super::shape::{Variables, open_variables};
use super::template::Template;
use crate::config::node::{At, Content, Node, Problems};
use crate::event::CanonicalEvent;

/// One step.
#[derive(Debug)]
struct Step {
    to: String,
    data: Template,
    drop: Vec<String>,
}

/// See the module's text.
#[derive(Debug, Default)]
pub struct Upcasters {
    /// By the version they start from.
    steps: BTreeMap<String, Step>,
}

impl Upcasters {
    /// Reads `x-upcast` of all schemas.
    pub fn load(mappings: &Path, problems: &mut Problems) -> Self {
        let mut steps = BTreeMap::new();
        for (event_type, schema) in written(mappings) {
            if let Some(upcast) = schema.get("x-upcast") {
                let at = At::file(&mappings.join("canonical").join(format!("{event_type}.json")));
                steps.extend(read_step(&event_type, upcast, &at, problems));
            }
        }
        Self { steps }
    }

    /// True when events of type `from` can be given as `to`, or are.
    #[must_use]
    pub fn reaches(&self, from: &str, to: &str) -> bool {
        let mut at = from;
        // A version is never reached twice: each step starts from another one.
        for _ in 0..=self.steps.len() {
            match self.steps.get(at) {
                _ if at == to => return true,
                Some(step) => at = &step.to,
                None => return false,
            }
        }
        false
    }

    /// The data of an event of type `from` as `to` has it; as it is, when there is no way.
    pub fn lift(&self, from: &str, to: &str, data: &Value) -> Result<Value, EvaluationError> {
        let (mut at, mut data) = (from, data.clone());
        if !data.is_object() {
            // What is gone has no data.
            return Ok(data);
        }
        while at != to && self.reaches(at, to) {
            let Some(step) = self.steps.get(at) else { break };
            if let Value::Object(new) = step.data.render(&Scope::new([("data", &data)]))?
                && let Value::Object(map) = &mut data
            {
                map.retain(|field, _| !step.drop.contains(field));
                map.extend(new);
            }
            at = &step.to;
        }
        Ok(data)
    }

    /// The event as a reader of `event_type` gets it; `None` when it is not for such readers.
    pub fn event<'a>(
        &self,
        event: &'a CanonicalEvent,
        event_type: &str,
    ) -> Option<Result<Cow<'a, CanonicalEvent>, EvaluationError>> {
        if event.event_type == event_type {
            return Some(Ok(Cow::Borrowed(event)));
        }
        if !self.reaches(&event.event_type, event_type) {
            return None;
        }
        let lifted = |data| CanonicalEvent {
            event_type: event_type.to_owned(),
            data,
            foreign: event.foreign.clone(),
            causes: event.causes.clone(),
            event_id: event.event_id.clone(),
            id: event.id.clone(),
            position: event.position.clone(),
            ..*event
        };
        Some(self.lift(&event.event_type, event_type, &event.data).map(lifted).map(Cow::Owned))
    }
}

fn read_step(to: &str, upcast: &Value, at: &At, problems: &mut Problems) -> Option<(String, Step)> {
    let from = upcast.get("from").and_then(Value::as_str);
    let Some(from) = from.filter(|from| *from != to) else {
        let instead = "\"x-upcast\": {\"from\": \"customer.v1\", \"data\": {…}, \"drop\": […]}";
        problems.add(at, "`x-upcast` does not say from which other version", instead);
        return None;
    };
    let variables: Variables = open_variables(&["data"]);
    let empty = Value::Object(serde_json::Map::new());
    let data = Template::compile(&node(upcast.get("data").unwrap_or(&empty), at), &variables, problems)?;
    let drop = upcast.get("drop").and_then(Value::as_array).into_iter().flatten();
    let drop = drop.filter_map(Value::as_str).map(str::to_owned).collect();
    Some((from.to_owned(), Step { to: to.to_owned(), data, drop }))
}

/// JSON as a tree of nodes, all at one place.
fn node(value: &Value, at: &At) -> Node {
    let content = match value {
        Value::Object(map) => {
            Content::Map(map.iter().map(|(key, value)| (key.clone(), node(value, at))).collect())
        }
        Value::Array(items) => Content::List(items.iter().map(|item| node(item, at)).collect()),
        scalar => Content::Scalar(scalar.clone()),
    };
    Node { at: at.clone(), content }
}
