//! A JSON shape whose leaves are expressions: the data of an event, the body of a request.

use serde_json::{Map, Value};

use super::expression::{EvaluationError, Expression, Scope, Variables};
use crate::config::node::{Content, Node, Problems};

/// See the module's text.
#[derive(Debug)]
pub enum Template {
    /// A computed value.
    Leaf(Expression),
    /// An object.
    Object(Vec<(String, Template)>),
}

impl Template {
    /// Compiles every leaf below `node`.
    pub fn compile(node: &Node, variables: &Variables, problems: &mut Problems) -> Option<Self> {
        match &node.content {
            Content::Map(entries) => {
                let compiled = entries.iter().filter_map(|(key, child)| {
                    Self::compile(child, variables, problems).map(|template| (key.clone(), template))
                });
                Some(Self::Object(compiled.collect()))
            }
            Content::Scalar(_) => Expression::compile(node, variables, problems).map(Self::Leaf),
            Content::List(_) => {
                problems.add(
                    &node.at,
                    "a list cannot stand here",
                    "a CEL list in quotes: \"[event.a, event.b]\"",
                );
                None
            }
        }
    }

    /// Keys of the outermost object.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        let entries: &[(String, Self)] = match self {
            Self::Object(entries) => entries,
            Self::Leaf(_) => &[],
        };
        entries.iter().map(|(key, _)| key.as_str())
    }

    /// The shape filled with values.
    pub fn render(&self, scope: &Scope<'_>) -> Result<Value, EvaluationError> {
        match self {
            Self::Leaf(expression) => expression.evaluate(scope),
            Self::Object(entries) => {
                let mut map = Map::new();
                for (key, template) in entries {
                    map.insert(key.clone(), template.render(scope)?);
                }
                Ok(Value::Object(map))
            }
        }
    }
}
