//! RFC 8785: the one sequence of bytes that a JSON value has, so that it can be hashed.

use serde::Serialize;
use serde_json::Value;

/// RFC 8785 bytes. A value made of JSON text always has them; one that has not is taken as it prints.
#[must_use]
pub fn canonical_bytes(value: &Value) -> Vec<u8> {
    canonical_struct_bytes(value, is_plain(value))
}

/// The same for a structure whose fields are declared in the order of their names. `plain`: see [`is_plain`], of all
/// values in it.
#[must_use]
pub fn canonical_struct_bytes(value: &impl Serialize, plain: bool) -> Vec<u8> {
    if !plain {
        return serde_json_canonicalizer::to_vec(value).unwrap_or_default();
    }
    // As large as most are: growing in steps costs more than writing.
    let mut bytes = Vec::with_capacity(2_048);
    serde_json::to_writer(&mut bytes, value).map(|()| bytes).unwrap_or_default()
}

/// True when plain serialization is already canonical: maps are sorted by bytes, which is the canonical order for ASCII,
/// strings are escaped alike, and only floats are printed otherwise.
#[must_use]
pub fn is_plain(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(_) | Value::String(_) => true,
        Value::Number(number) => !number.is_f64(),
        Value::Array(items) => items.iter().all(is_plain),
        Value::Object(map) => map.iter().all(|(key, value)| key.is_ascii() && is_plain(value)),
    }
}
