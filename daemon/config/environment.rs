//! Environment overrides: `TAILWATER__TARGETS__STRIPE__QUOTA=50/s` sets `targets.stripe.quota`.

use std::path::PathBuf;

use serde_json::Value;

use super::node::{At, Content, Node};

const PREFIX: &str = "TAILWATER__";

/// Lays the variables over the settings.
pub fn overlay(root: &mut Node, variables: impl Iterator<Item = (String, String)>) {
    let mut found: Vec<(String, String)> = variables.filter(|(name, _)| name.starts_with(PREFIX)).collect();
    found.sort();
    for (name, value) in found {
        let path: Vec<String> = name.trim_start_matches(PREFIX).split("__").map(str::to_lowercase).collect();
        let at = At { file: PathBuf::from(format!("environment variable {name}")), line: 0, column: 0 };
        set(root, &path, &at, value);
    }
}

fn set(node: &mut Node, path: &[String], at: &At, value: String) {
    let Some((first, rest)) = path.split_first() else {
        *node = Node { at: at.clone(), content: Content::Scalar(Value::String(value)) };
        return;
    };
    if !matches!(node.content, Content::Map(_)) {
        *node = Node { at: at.clone(), content: Content::Map(Vec::new()) };
    }
    let Content::Map(entries) = &mut node.content else { return };
    let index = entries.iter().position(|(key, _)| key == first).unwrap_or_else(|| {
        entries.push((first.clone(), Node { at: at.clone(), content: Content::Map(Vec::new()) }));
        entries.len() - 1
    });
    if let Some((_, child)) = entries.get_mut(index) {
        set(child, rest, at, value);
    }
}
