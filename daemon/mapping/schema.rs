//! Canonical schemas: `mappings/canonical/<object>.<version>.json`, JSON Schema 2020-12.

use std::path::Path;

use serde_json::Value;

use crate::config::node::{At, Problems, nearest};

/// A compiled canonical schema.
#[derive(Debug)]
pub struct Schema {
    validator: jsonschema::Validator,
    properties: Vec<String>,
    required: Vec<String>,
}

impl Schema {
    /// Reads and compiles `canonical/<event_type>.json`.
    pub fn load(directory: &Path, event_type: &str, at: &At, problems: &mut Problems) -> Option<Self> {
        let path = directory.join("canonical").join(format!("{event_type}.json"));
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) => {
                let known = known_types(directory);
                let known: Vec<&str> = known.iter().map(String::as_str).collect();
                let instead = nearest(event_type, &known).map_or_else(
                    || format!("one of: {}", known.join(", ")),
                    |near| format!("did you mean `{near}`?"),
                );
                problems.add(
                    at,
                    format!("no schema for `{event_type}`: {}: {error}", path.display()),
                    instead,
                );
                return None;
            }
        };
        let schema: Value = match serde_json::from_str(&text) {
            Ok(schema) => schema,
            Err(error) => {
                let at = At { file: path, line: error.line() };
                problems.add(&at, format!("not valid JSON: {error}"), "a JSON Schema");
                return None;
            }
        };
        match jsonschema::validator_for(&schema) {
            Ok(validator) => Some(Self { validator, properties: keys(&schema), required: names(&schema) }),
            Err(error) => {
                problems.add(
                    &At::file(&path),
                    format!("not a JSON Schema: {error}"),
                    "see https://json-schema.org",
                );
                None
            }
        }
    }

    /// Reports fields the schema does not know, and required ones that are not mapped.
    pub fn check_fields<'a>(&self, fields: impl Iterator<Item = &'a str>, at: &At, problems: &mut Problems) {
        let fields: Vec<&str> = fields.collect();
        let known: Vec<&str> = self.properties.iter().map(String::as_str).collect();
        for field in &fields {
            if !known.contains(field) {
                let instead = nearest(field, &known).map_or_else(
                    || format!("one of: {}", known.join(", ")),
                    |near| format!("did you mean `{near}`?"),
                );
                problems.add(at, format!("the canonical schema has no field `{field}`"), instead);
            }
        }
        for name in &self.required {
            if !fields.contains(&name.as_str()) {
                problems.add(
                    at,
                    format!("the canonical schema requires field `{name}`"),
                    format!("{name}: row.{name}"),
                );
            }
        }
    }

    /// What is wrong with `data`: paths and rules, never values (INV-12).
    #[must_use]
    pub fn violation(&self, data: &Value) -> Option<String> {
        if self.validator.is_valid(data) {
            return None;
        }
        let error = self.validator.iter_errors(data).next()?;
        Some(format!("{}: does not satisfy {}", error.instance_path(), error.schema_path()))
    }
}

fn keys(schema: &Value) -> Vec<String> {
    let properties = schema.get("properties").and_then(Value::as_object);
    properties.map(|map| map.keys().cloned().collect()).unwrap_or_default()
}

fn names(schema: &Value) -> Vec<String> {
    let required = schema.get("required").and_then(Value::as_array);
    let texts = required.into_iter().flatten().filter_map(Value::as_str);
    texts.map(str::to_owned).collect()
}

fn known_types(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory.join("canonical")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".json").map(str::to_owned)).collect()
}
