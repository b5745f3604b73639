//! Whether two bodies say the same. Pure.

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
