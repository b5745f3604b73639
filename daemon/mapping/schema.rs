//! Canonical schemas: `mappings/canonical/<object>.<version>.json`, JSON Schema 2020-12.
//!
//! `x-invariants` says in CEL what JSON Schema cannot, over `data`: a total is the sum of its lines, what is paid has no rest.
//! Each has a `rule` and what it `says` when it does not hold.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::expression::Expression;
use super::scope::Scope;
use super::shape::{Shape, Variables, suggestion};
use crate::config::node::{At, Content, Node, Problems, nearest};

/// A compiled canonical schema.
#[derive(Debug)]
pub struct Schema {
    validator: jsonschema::Validator,
    properties: Vec<String>,
    required: Vec<String>,
    invariants: Vec<(Expression, String)>,
    /// What expressions see of the data.
    pub shape: Shape,
}

impl Schema {
    /// Reads and compiles `canonical/<event_type>.json`.
    pub fn load(directory: &Path, event_type: &str, at: &At, problems: &mut Problems) -> Option<Self> {
        let (path, schema) = read(directory, event_type, at, problems)?;
        match jsonschema::validator_for(&schema) {
            Ok(validator) => {
                let shape = shape(&schema);
                let invariants = invariants(&schema, &shape, &path, problems);
                let (properties, required) = (keys(&schema), names(&schema));
                Some(Self { validator, properties, required, invariants, shape })
            }
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

    /// Reports fields the schema does not know, and required ones that are not mapped: a field that is only misspelt once.
    pub fn check_fields(&self, fields: &[(String, Node)], at: &At, problems: &mut Problems) {
        let known: Vec<&str> = self.properties.iter().map(String::as_str).collect();
        let mut meant = Vec::new();
        for (field, node) in fields.iter().filter(|(field, _)| !known.contains(&field.as_str())) {
            meant.extend(nearest(field, &known));
            let instead = suggestion(field, &known, "one of");
            problems.add(&node.at, format!("the canonical schema has no field `{field}`"), instead);
        }
        let given = |name: &str| meant.contains(&name) || fields.iter().any(|(field, _)| field == name);
        for name in self.required.iter().filter(|name| !given(name)) {
            let what = format!("the canonical schema requires field `{name}`");
            problems.add(at, what, format!("{name}: row.{name}"));
        }
    }

    /// Fields of the data.
    #[must_use]
    pub fn fields(&self) -> &[String] {
        &self.properties
    }

    /// What is wrong with `data`: paths and rules, never values (INV-12).
    #[must_use]
    pub fn violation(&self, data: &Value) -> Option<String> {
        if !self.validator.is_valid(data) {
            let error = self.validator.iter_errors(data).next()?;
            return Some(format!("{}: does not satisfy {}", error.instance_path(), error.schema_path()));
        }
        let scope = Scope::new([("data", data)]);
        self.invariants.iter().find_map(|(rule, says)| match rule.holds(&scope) {
            Ok(true) => None,
            Ok(false) => Some(says.clone()),
            Err(error) => Some(error.to_string()),
        })
    }
}

/// What expressions see of the data of an event, from its schema alone; an event without one is reported where it is looked for.
#[must_use]
pub fn shape_of(directory: &Path, event_type: &str) -> Shape {
    let path = directory.join("canonical").join(format!("{event_type}.json"));
    let text = std::fs::read_to_string(path).unwrap_or_default();
    serde_json::from_str(&text).map_or(Shape::Any, |schema: Value| shape(&schema))
}

fn read(directory: &Path, event_type: &str, at: &At, problems: &mut Problems) -> Option<(PathBuf, Value)> {
    let path = directory.join("canonical").join(format!("{event_type}.json"));
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) => {
            let known = known_types(directory);
            let known: Vec<&str> = known.iter().map(String::as_str).collect();
            let what = format!("no schema for `{event_type}`: {}: {error}", path.display());
            problems.add(at, what, suggestion(event_type, &known, "one of"));
            return None;
        }
    };
    match serde_json::from_str(&text) {
        Ok(schema) => Some((path, schema)),
        Err(error) => {
            let at = At { file: path, line: error.line(), column: error.column() };
            problems.add(&at, format!("not valid JSON: {error}"), "a JSON Schema");
            None
        }
    }
}

fn invariants(
    schema: &Value,
    shape: &Shape,
    path: &Path,
    problems: &mut Problems,
) -> Vec<(Expression, String)> {
    let variables: Variables = [("data".to_owned(), shape.clone())].into();
    let listed = schema.get("x-invariants").and_then(Value::as_array).into_iter().flatten();
    let compiled = listed.filter_map(|item| {
        let (Some(Value::String(rule)), Some(Value::String(says))) = (item.get("rule"), item.get("says"))
        else {
            problems.add(
                &At::file(path),
                "an invariant has `rule` and `says`",
                "{\"rule\": \"data.paid\", \"says\": \"…\"}",
            );
            return None;
        };
        let node = Node { at: At::file(path), content: Content::Scalar(Value::String(rule.clone())) };
        Expression::compile(&node, &variables, problems).map(|rule| (rule, says.clone()))
    });
    compiled.collect()
}

/// What expressions see of data that satisfies `schema`.
fn shape(schema: &Value) -> Shape {
    if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
        let members = properties.iter().map(|(name, schema)| (name.clone(), shape(schema)));
        return Shape::Members(Arc::new(members.collect::<BTreeMap<_, _>>()));
    }
    schema.get("items").map_or(Shape::Any, |items| Shape::List(Arc::new(shape(items))))
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
