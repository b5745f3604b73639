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
    invariants: Vec<(Expression, String)>,
    /// As it is written.
    text: Value,
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
                let found = Self { validator, properties: keys(&schema), invariants, text: schema, shape };
                found.check_examples(&path, problems);
                Some(found)
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

    /// Reports fields the schema does not know, and required ones that are not mapped, at any depth: a field that is only misspelt
    /// once.
    pub fn check_fields(&self, node: &Node, problems: &mut Problems) {
        check_node(&self.text, node, problems);
    }

    /// An example that the schema itself refuses helps nobody.
    fn check_examples(&self, path: &Path, problems: &mut Problems) {
        let examples = self.text.get("examples").and_then(Value::as_array);
        for (index, example) in examples.into_iter().flatten().enumerate() {
            if let Some(what) = self.violation(example) {
                problems.add(
                    &At::file(path),
                    format!("example {}: {what}", index + 1),
                    "an example that holds",
                );
            }
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

fn missing(error: &std::io::Error) -> String {
    if error.kind() == std::io::ErrorKind::NotFound {
        "there is no such file".into()
    } else {
        error.to_string()
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
            let known = written(directory);
            let known: Vec<&str> = known.keys().map(String::as_str).collect();
            let what = format!("no schema for `{event_type}`: {}: {}", path.display(), missing(&error));
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
    let own = schema.as_object().into_iter().flatten().map(|(key, _)| key.as_str());
    for key in own.filter(|key| key.starts_with("x-") && !["x-invariants", "x-upcast"].contains(key)) {
        problems.add(&At::file(path), format!("unknown key `{key}`"), "x-invariants or x-upcast");
    }
    if schema.get("x-invariants").is_some_and(|listed| !listed.is_array()) {
        problems.add(
            &At::file(path),
            "`x-invariants` is not a list",
            "[{\"rule\": \"data.paid\", \"says\": \"…\"}]",
        );
    }
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

/// Compares what a template makes with what the schema knows.
fn check_node(schema: &Value, node: &Node, problems: &mut Problems) {
    let Content::Map(entries) = &node.content else { return };
    let part = |name: &str| entries.iter().find(|(key, _)| key == name).map(|(_, node)| node);
    if part("each").is_some() {
        if let (Some(items), Some(item)) = (schema.get("items"), part("item")) {
            check_node(items, item, problems);
        }
        return;
    }
    if let Some(rules) = part("rules") {
        let Content::List(rules) = &rules.content else { return };
        for rule in rules {
            let Content::Map(parts) = &rule.content else { continue };
            let made = parts.iter().filter(|(key, _)| key == "then" || key == "otherwise");
            made.for_each(|(_, node)| check_node(schema, node, problems));
        }
        return;
    }
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return };
    let known: Vec<&str> = properties.keys().map(String::as_str).collect();
    let mut meant = Vec::new();
    for (field, node) in entries {
        match properties.get(field) {
            Some(schema) => check_node(schema, node, problems),
            None => {
                meant.extend(nearest(field, &known));
                let what = format!("the canonical schema has no field `{field}`");
                problems.add(&node.at, what, suggestion(field, &known, "one of"));
            }
        }
    }
    let given = |name: &str| meant.contains(&name) || entries.iter().any(|(field, _)| field == name);
    for name in names(schema).iter().filter(|name| !given(name)) {
        let what = format!("the canonical schema requires field `{name}`");
        problems.add(&node.at, what, format!("{name}: row.{name}"));
    }
}

fn names(schema: &Value) -> Vec<String> {
    let required = schema.get("required").and_then(Value::as_array);
    let texts = required.into_iter().flatten().filter_map(Value::as_str);
    texts.map(str::to_owned).collect()
}

/// Schemas by event type, as they are written.
pub type Schemas = BTreeMap<String, Value>;

/// All schemas of a directory with mappings. What is no JSON is left out: loading the events has complained of it.
#[must_use]
pub fn written(directory: &Path) -> Schemas {
    let entries = std::fs::read_dir(directory.join("canonical")).into_iter().flatten().flatten();
    let read = |path: PathBuf| {
        let event_type = path.file_name()?.to_str()?.strip_suffix(".json")?.to_owned();
        Some((event_type, serde_json::from_str(&std::fs::read_to_string(&path).ok()?).ok()?))
    };
    entries.filter_map(|entry| read(entry.path())).collect()
}
