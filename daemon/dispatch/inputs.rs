//! What expressions of a connector file know of a delivery. Pure.

use serde_json::{Map, Value, json};

use crate::connector::Connector;
use crate::ledger::outbox::Due;
use crate::mapping::scope::Scope;

/// `event`, `references` (object to the target's id, null when it is not there), `external_id`, and `meta` (what is said of the
/// event: `id`, `type`, `operation`, `time`, `source`, `subject`).
pub(super) struct Inputs([(&'static str, Value); 5]);

impl Inputs {
    pub(super) fn new(connector: &Connector, due: &Due) -> Self {
        let mut event = due.event.get("data").cloned().unwrap_or_default();
        if !event.is_object() {
            event = Value::Object(Map::new());
        }
        if let Value::Object(map) = &mut event {
            let id = due.event.get("id").and_then(Value::as_str).unwrap_or(&due.lane.canonical_id);
            map.insert("id".into(), Value::from(id));
        }
        let mut references: Map<String, Value> =
            connector.objects.iter().map(|object| (object.name.clone(), Value::Null)).collect();
        for (reference, external_id) in &due.references {
            if let Some((object, _)) = reference.split_once('/') {
                references.insert(object.to_owned(), Value::String(external_id.clone()));
            }
        }
        let settings = connector.set.clone();
        let external_id = due.external_id.clone().map_or(Value::Null, Value::String);
        let said = |path: &str| due.event.pointer(path).cloned().unwrap_or_default();
        let meta = json!({
            "id": said("/event_id"), "type": said("/type"), "operation": said("/op"), "subject": due.lane.canonical_id,
            "time": said("/source/committed_at"), "source": said("/source/name"),
        });
        let references = Value::Object(references);
        let inputs = [
            ("event", event),
            ("references", references),
            ("external_id", external_id),
            ("meta", meta),
            ("settings", settings),
        ];
        Self(inputs)
    }

    pub(super) fn with<'a>(&'a self, answered: &'a [(&str, Value)]) -> Scope<'a> {
        let own = self.0.iter().map(|(name, value)| (*name, value));
        Scope::new(own.chain(answered.iter().map(|(name, value)| (*name, value))))
    }

    pub(super) fn scope(&self) -> Scope<'_> {
        Scope::new(self.0.iter().map(|(name, value)| (*name, value)))
    }
}
