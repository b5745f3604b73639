//! Bodies against each other: the same, said by another, laid over another. Pure.

use serde_json::Value;

/// Equal but for nulls and the order of texts in lists, which vendors do not keep.
#[must_use]
pub fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            let null = Value::Null;
            let names = a.keys().chain(b.keys());
            names.into_iter().all(|name| same(a.get(name).unwrap_or(&null), b.get(name).unwrap_or(&null)))
        }
        (Value::Array(a), Value::Array(b)) => {
            let sorted = |items: &[Value]| {
                let mut texts: Vec<String> = items.iter().map(Value::to_string).collect();
                texts.sort();
                texts
            };
            sorted(a) == sorted(b)
        }
        // A field that was cleared may be empty, or, at Odoo, false.
        (Value::Null, Value::Bool(false)) | (Value::Bool(false), Value::Null) => true,
        (Value::Null, Value::String(text)) | (Value::String(text), Value::Null) => text.is_empty(),
        (a, b) => a == b,
    }
}

/// True when everything that `body` says is so in `held`.
pub fn within(body: &Value, held: &Value) -> bool {
    match (body, held) {
        (Value::Object(body), Value::Object(held)) => {
            body.iter().all(|(name, value)| within(value, held.get(name).unwrap_or(&Value::Null)))
        }
        (Value::Object(body), Value::Null) => body.values().all(|value| within(value, held)),
        (body, held) => body == held,
    }
}

/// True when what is shown is what `body` would make it.
pub fn shows(shown: &Value, body: &Value) -> bool {
    match (shown, body) {
        (Value::Object(shown), Value::Object(body)) => {
            body.iter().all(|(name, value)| shown.get(name).is_some_and(|shown| shows(shown, value)))
        }
        (shown, body) => same(shown, body),
    }
}

/// What is held once it has been told `body`.
pub fn laid_over(held: &Value, body: &Value) -> Value {
    match (held, body) {
        (Value::Object(held), Value::Object(body)) => {
            let mut all = held.clone();
            for (name, value) in body {
                let known = held.get(name).unwrap_or(&Value::Null);
                all.insert(name.clone(), laid_over(known, value));
            }
            Value::Object(all)
        }
        (_, body) => body.clone(),
    }
}
