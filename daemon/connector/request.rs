//! Requests: method, path with `{expression}` placeholders, body. What is rendered here is stored in the ledger and
//! sent byte for byte, also when it is sent again (INV-3).

use serde_json::{Map, Value, json};

use super::Encoding;
use crate::config::node::{Node, Problems};
use crate::mapping::expression::{EvaluationError, Expression};
use crate::mapping::scope::Scope;
use crate::mapping::shape::Variables;

/// A piece of a path.
#[derive(Debug)]
enum Piece {
    Text(String),
    Placeholder(Expression),
}

/// `POST /v1/customers/{external_id}`.
#[derive(Debug)]
pub struct RequestLine {
    method: String,
    endpoint: String,
    path: Vec<Piece>,
}

/// A request, ready to be stored and sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What it is for: `create`, `update`, `upsert`, `delete`, `find`.
    pub step: String,
    /// HTTP method.
    pub method: String,
    /// Path and query, encoded.
    pub path: String,
    /// Method and path without what differs from object to object: what limits and breakers go by.
    pub endpoint: String,
    /// `Content-Type`, when there is a body.
    pub content_type: Option<String>,
    /// Body text.
    pub body: Option<String>,
    /// Digest of what the body says, whatever its encoding.
    pub sha256: Option<String>,
    /// Unique values it claims.
    pub holds: Vec<String>,
    /// What the body says, where it matters what the target is seen to hold later.
    pub says: Option<Value>,
}

impl Request {
    /// A request without a body.
    pub fn bare(step: &str, line: &RequestLine, scope: &Scope<'_>) -> Result<Self, EvaluationError> {
        Ok(Self {
            step: step.to_owned(),
            method: line.method.clone(),
            path: line.path(scope)?,
            endpoint: line.endpoint.clone(),
            content_type: None,
            body: None,
            sha256: None,
            holds: Vec::new(),
            says: None,
        })
    }

    /// With this body.
    #[must_use]
    pub fn with_body(self, encoding: Encoding, body: &Value) -> Self {
        let (text, content_type) = encode(encoding, body, true);
        Self { content_type: Some(content_type.to_owned()), body: Some(text), ..self }
    }

    /// Sent twice it may make two: only what it is for tells.
    #[must_use]
    pub fn makes_anew(&self) -> bool {
        matches!(self.step.as_str(), "create" | "post")
    }

    /// It asks what there is, for a poll or a comparison.
    #[must_use]
    pub fn reads(&self) -> bool {
        matches!(self.step.as_str(), "poll" | "list" | "read" | "reconcile")
    }

    /// As the ledger keeps it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "step": self.step, "method": self.method, "path": self.path, "endpoint": self.endpoint, "content_type": self.content_type,
            "body": self.body, "sha256": self.sha256, "holds": self.holds, "says": self.says,
        })
    }

    /// Reads what [`Request::to_json`] wrote.
    #[must_use]
    pub fn from_json(value: &Value) -> Option<Self> {
        let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
        let holds = value.get("holds").and_then(Value::as_array).into_iter().flatten();
        Some(Self {
            step: text("step")?,
            method: text("method")?,
            path: text("path")?,
            endpoint: text("endpoint").unwrap_or_default(),
            content_type: text("content_type"),
            body: text("body"),
            sha256: text("sha256"),
            holds: holds.filter_map(Value::as_str).map(str::to_owned).collect(),
            says: value.get("says").filter(|says| !says.is_null()).cloned(),
        })
    }
}

impl RequestLine {
    /// Compiles `METHOD /path/{expression}?query={expression}`.
    pub fn compile(node: &Node, variables: &Variables, problems: &mut Problems) -> Option<Self> {
        let text = node.string(problems)?;
        let example = "POST /v1/customers";
        let Some((method, path)) = text.split_once(' ') else {
            problems.add(&node.at, format!("`{text}` is not a method and a path"), example);
            return None;
        };
        if !["GET", "POST", "PUT", "PATCH", "DELETE"].contains(&method) || !path.starts_with('/') {
            problems.add(&node.at, format!("`{text}` is not a method and a path"), example);
            return None;
        }
        let mut pieces = Vec::new();
        let mut rest = path;
        while let Some((before, after)) = rest.split_once('{') {
            pieces.push(Piece::Text(before.to_owned()));
            let Some((inside, behind)) = after.split_once('}') else {
                problems.add(&node.at, format!("`{text}`: `{{` without `}}`"), "/v1/customers/{external_id}");
                return None;
            };
            let mut inner = node.clone();
            inner.content = crate::config::node::Content::Scalar(Value::String(inside.to_owned()));
            pieces.push(Piece::Placeholder(Expression::compile(&inner, variables, problems)?));
            rest = behind;
        }
        pieces.push(Piece::Text(rest.to_owned()));
        let shown = pieces.iter().map(|piece| match piece {
            Piece::Text(text) => text.as_str(),
            Piece::Placeholder(_) => "{}",
        });
        let endpoint: String = shown.collect();
        let endpoint = format!("{method} {}", endpoint.split('?').next().unwrap_or_default());
        Some(Self { method: method.to_owned(), endpoint, path: pieces })
    }

    /// The path with its placeholders filled and percent-encoded (a space is `%20`, never `+`).
    pub fn path(&self, scope: &Scope<'_>) -> Result<String, EvaluationError> {
        let mut path = String::new();
        for piece in &self.path {
            match piece {
                Piece::Text(text) => path.push_str(text),
                Piece::Placeholder(expression) => match expression.evaluate(scope)? {
                    Value::String(text) => path.push_str(&percent_encode(&text)),
                    Value::Number(number) => path.push_str(&number.to_string()),
                    _ => {
                        return Err(EvaluationError {
                            text: "path".into(),
                            reason: "a placeholder is neither text nor number".into(),
                        });
                    }
                },
            }
        }
        if climbs(&path) {
            let reason = "an id would lead to another path than the connector's".into();
            return Err(EvaluationError { text: "path".into(), reason });
        }
        Ok(path)
    }
}

/// True when a segment of the path is empty, `.` or `..`, however it is written: URLs are resolved by whoever sends and whoever
/// receives them (RFC 3986 section 5.2.4).
#[must_use]
pub fn climbs(path: &str) -> bool {
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let is_dots =
        |segment: &str| matches!(segment.to_ascii_lowercase().replace("%2e", ".").as_str(), "" | "." | "..");
    path.strip_prefix('/').unwrap_or(path).split('/').any(is_dots)
}

/// Everything but unreserved characters (RFC 3986) becomes `%XX`.
#[must_use]
pub fn percent_encode(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// Encodes a body. `known`: the object stands at the target, so that a null clears a field there; for a new object
/// nulls are left out.
#[must_use]
pub fn encode(encoding: Encoding, body: &Value, known: bool) -> (String, &'static str) {
    let body = if known { body.clone() } else { without_nulls(body) };
    match encoding {
        Encoding::Json => (body.to_string(), "application/json"),
        Encoding::Form => {
            let mut pairs = Vec::new();
            form_pairs("", &body, &mut pairs);
            let encoded: Vec<String> = pairs
                .iter()
                .map(|(name, value)| format!("{}={}", form_name(name), percent_encode(value)))
                .collect();
            (encoded.join("&"), "application/x-www-form-urlencoded")
        }
    }
}

/// The body without null members, at any depth.
#[must_use]
pub fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.iter().filter(|(_, value)| !value.is_null());
            Value::Object(kept.map(|(key, value)| (key.clone(), without_nulls(value))).collect::<Map<_, _>>())
        }
        other => other.clone(),
    }
}

/// Brackets stay readable in names; the rest is encoded.
fn form_name(name: &str) -> String {
    percent_encode(name).replace("%5B", "[").replace("%5D", "]")
}

/// `a[b]=…` for objects, `a[0]=…` for lists, the empty text for null: that is how a form clears a field.
fn form_pairs(prefix: &str, value: &Value, pairs: &mut Vec<(String, String)>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}[{key}]") };
                form_pairs(&name, value, pairs);
            }
        }
        Value::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                form_pairs(&format!("{prefix}[{index}]"), value, pairs);
            }
        }
        Value::Null => pairs.push((prefix.to_owned(), String::new())),
        Value::String(text) => pairs.push((prefix.to_owned(), text.clone())),
        other => pairs.push((prefix.to_owned(), other.to_string())),
    }
}
