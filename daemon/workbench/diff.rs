//! `tailwater mappings diff`: what changes for those who read the events, between two directories or revisions.
//!
//! Breaking is what a reader of the old schema may stumble over: a field that is gone or may be missing, a value that could not
//! occur before. Such a change needs a new version of the event, with an upcaster for what is stored.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::mapping::schema::{Schemas, written};

/// How much a change matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// Readers of the old schema may fail.
    Breaking,
    /// They need not notice.
    Compatible,
}

/// A difference.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Difference {
    /// How much it matters.
    pub weight: Weight,
    /// Event type and path of the field.
    pub path: String,
    /// What is different.
    pub what: String,
}

/// All differences, breaking ones first.
#[must_use]
pub fn differences(old: &Schemas, new: &Schemas) -> Vec<Difference> {
    let mut found = Vec::new();
    for (event_type, schema) in old {
        match new.get(event_type) {
            Some(new) => compare(event_type, schema, new, &mut found),
            None => add(&mut found, Weight::Breaking, event_type, "the event is gone"),
        }
    }
    for event_type in new.keys().filter(|event_type| !old.contains_key(*event_type)) {
        add(&mut found, Weight::Compatible, event_type, "the event is new");
    }
    found.sort();
    found
}

fn add(found: &mut Vec<Difference>, weight: Weight, path: &str, what: impl Into<String>) {
    found.push(Difference { weight, path: path.to_owned(), what: what.into() });
}

fn compare(path: &str, old: &Value, new: &Value, found: &mut Vec<Difference>) {
    let words = |schema: &Value, key: &str| -> BTreeSet<String> {
        let single = schema.get(key).map(|value| match value {
            Value::Array(values) => values.iter().map(ToString::to_string).collect(),
            other => BTreeSet::from([other.to_string()]),
        });
        single.unwrap_or_default()
    };
    for (key, name) in [("type", "may be"), ("enum", "may be")] {
        let (before, after) = (words(old, key), words(new, key));
        if before.is_empty() && after.is_empty() {
            continue;
        }
        for value in after.difference(&before).filter(|_| !before.is_empty()) {
            add(found, Weight::Breaking, path, format!("{name} {value} now"));
        }
        if after.is_empty() {
            add(found, Weight::Breaking, path, format!("`{key}` limits it no more"));
        }
        for value in before.difference(&after).filter(|_| !after.is_empty()) {
            add(found, Weight::Compatible, path, format!("is never {value} any more"));
        }
    }
    for key in ["pattern", "minLength", "maxLength", "minimum", "maximum"] {
        match (old.get(key), new.get(key)) {
            (Some(before), Some(after)) if before != after => {
                add(found, Weight::Breaking, path, format!("`{key}` was {before} and is {after}"));
            }
            (Some(before), None) => {
                add(found, Weight::Breaking, path, format!("`{key}` {before} holds no more"))
            }
            (None, Some(after)) => add(found, Weight::Compatible, path, format!("`{key}` {after} holds now")),
            _ => {}
        }
    }
    let required = |schema: &Value| words(schema, "required");
    for name in required(old).difference(&required(new)) {
        add(found, Weight::Breaking, path, format!("{name} may be missing now"));
    }
    properties(path, old, new, found);
    invariants(path, old, new, found);
    if let (Some(old), Some(new)) = (old.get("items"), new.get("items")) {
        compare(&format!("{path}[]"), old, new, found);
    }
}

fn properties(path: &str, old: &Value, new: &Value, found: &mut Vec<Difference>) {
    let of =
        |schema: &Value| schema.get("properties").and_then(Value::as_object).cloned().unwrap_or_default();
    let (before, after) = (of(old), of(new));
    for (name, schema) in &before {
        let path = format!("{path}.{name}");
        match after.get(name) {
            Some(new) => compare(&path, schema, new, found),
            None => add(found, Weight::Breaking, &path, "the field is gone"),
        }
    }
    for name in after.keys().filter(|name| !before.contains_key(*name)) {
        add(found, Weight::Compatible, &format!("{path}.{name}"), "the field is new");
    }
}

fn invariants(path: &str, old: &Value, new: &Value, found: &mut Vec<Difference>) {
    let of = |schema: &Value| -> BTreeSet<String> {
        let listed = schema.get("x-invariants").and_then(Value::as_array).into_iter().flatten();
        listed.filter_map(|item| item.get("rule")?.as_str().map(str::to_owned)).collect()
    };
    let (before, after) = (of(old), of(new));
    for rule in before.difference(&after) {
        add(found, Weight::Breaking, path, format!("holds no more: {rule}"));
    }
    for rule in after.difference(&before) {
        add(found, Weight::Compatible, path, format!("holds now: {rule}"));
    }
}

/// The schemas of a directory with mappings, or of a revision in the repository that `here` is in.
pub fn against(here: &Path, which: &str) -> io::Result<Schemas> {
    let directory = PathBuf::from(which);
    if directory.join("canonical").is_dir() {
        return Ok(written(&directory));
    }
    let listed = git(here, &["ls-tree", "--name-only", which, "canonical/"])?;
    let mut schemas = Schemas::new();
    for name in listed.lines() {
        let Some(event_type) = name.strip_prefix("canonical/").and_then(|name| name.strip_suffix(".json"))
        else {
            continue;
        };
        let text = git(here, &["show", &format!("{which}:./{name}")])?;
        schemas.insert(event_type.to_owned(), serde_json::from_str(&text)?);
    }
    Ok(schemas)
}

fn git(directory: &Path, arguments: &[&str]) -> io::Result<String> {
    let output = Command::new("git").arg("-C").arg(directory).args(arguments).output()?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr);
        return Err(io::Error::other(reason.lines().next().unwrap_or("git failed").to_owned()));
    }
    String::from_utf8(output.stdout).map_err(io::Error::other)
}
