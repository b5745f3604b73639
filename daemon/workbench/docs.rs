//! `tailwater mappings docs`: the reference of all events, from their schemas: Markdown for people, AsyncAPI 3.0 for tools.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::mappings::Files;
use crate::mapping::schema::Schemas;
use crate::mapping::{EventKind, EventSpec};

/// The reference in Markdown.
#[must_use]
pub fn markdown(schemas: &Schemas, files: &Files) -> String {
    let mut out = String::from(
        "# Canonical events\n\nMade by `tailwater mappings docs` from `mappings/canonical/`; do not edit. Amounts and quantities are \
         decimal texts, times are UTC, ids are canonical ids such as `ERP-P-8`.\n",
    );
    for (event_type, schema) in schemas {
        let _ = writeln!(out, "\n## {event_type}\n\n{}", text(schema, "description"));
        for spec in specs(files, event_type) {
            let _ = writeln!(out, "\n{}", origin(spec));
        }
        out.push_str("\n| field | type | meaning |\n|---|---|---|\n");
        rows("", schema, &mut out);
        let invariants = schema.get("x-invariants").and_then(Value::as_array).cloned().unwrap_or_default();
        if !invariants.is_empty() {
            out.push_str("\nHeld back, with the reason, when:\n\n");
            for invariant in invariants {
                let _ = writeln!(out, "- {}", text(&invariant, "says"));
            }
        }
        if let Some(example) = schema.pointer("/examples/0") {
            let _ = writeln!(out, "\n```json\n{example:#}\n```");
        }
    }
    out
}

fn specs<'a>(files: &'a Files, event_type: &'a str) -> impl Iterator<Item = &'a EventSpec> {
    let events = files.sources.iter().flat_map(|(mapping, _)| &mapping.events);
    events.map(|spec| &**spec).filter(move |spec| spec.event_type == event_type)
}

fn origin(spec: &EventSpec) -> String {
    let kind = match spec.kind {
        EventKind::State => "A state: of several that wait, the newest is delivered.",
        EventKind::Fact => "A fact: each one is delivered, in its order.",
    };
    let when = if spec.on_delete { "a row goes from" } else { "something changes that belongs to a row of" };
    format!("Made when {when} `{}`. {kind}", spec.table)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn rows(prefix: &str, schema: &Value, out: &mut String) {
    let properties = schema.get("properties").and_then(Value::as_object).into_iter().flatten();
    for (name, property) in properties {
        let path = format!("{prefix}{name}");
        let _ = writeln!(out, "| `{path}` | {} | {} |", kind(property), text(property, "description"));
        rows(&format!("{path}."), property, out);
        if let Some(items) = property.get("items") {
            rows(&format!("{path}[]."), items, out);
        }
    }
}

fn kind(property: &Value) -> String {
    let word = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    if let Some(values) = property.get("enum").and_then(Value::as_array) {
        return values.iter().map(|value| format!("`{}`", word(value))).collect::<Vec<_>>().join(", ");
    }
    match property.get("type") {
        Some(Value::Array(types)) => types.iter().map(word).collect::<Vec<_>>().join(" or "),
        Some(single) => word(single),
        None => "any".to_owned(),
    }
}

/// The same as an AsyncAPI 3.0 document.
#[must_use]
pub fn asyncapi(schemas: &Schemas) -> Value {
    let (mut channels, mut messages, mut payloads) = (Map::new(), Map::new(), Map::new());
    for (event_type, schema) in schemas {
        let message = json!({"$ref": format!("#/components/messages/{event_type}")});
        channels
            .insert(event_type.clone(), json!({"address": event_type, "messages": {event_type: message}}));
        messages.insert(
            event_type.clone(),
            json!({
                "name": event_type, "title": text(schema, "title"), "summary": text(schema, "description"),
                "contentType": "application/json",
                "payload": {"schemaFormat": "application/schema+json;version=draft-2020-12",
                            "schema": {"$ref": format!("#/components/schemas/{event_type}")}},
            }),
        );
        payloads.insert(event_type.clone(), schema.clone());
    }
    json!({
        "asyncapi": "3.0.0",
        "info": {"title": "Tailwater canonical events", "version": env!("CARGO_PKG_VERSION")},
        "defaultContentType": "application/json",
        "channels": channels,
        "components": {"messages": messages, "schemas": payloads},
    })
}
