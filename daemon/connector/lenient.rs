//! JSON as vendors really send it: what one value of a page has that no parser takes must not cost all the others. Pure.
//!
//! Repaired are half surrogates (`\ud83d` without its other half becomes U+FFFD), bytes that are not UTF-8, control characters within
//! strings, numbers beyond any float and containers deeper than [`JSON_DEPTH`] (both become text). Whatever is not JSON otherwise stays
//! an error.

use std::fmt::Write as _;

use serde_json::Value;

use crate::bounds::JSON_DEPTH;

/// The value; `None` when it is not JSON, however leniently it is read.
#[must_use]
pub fn parse(bytes: &[u8]) -> Option<Value> {
    match serde_json::from_slice(bytes) {
        Ok(value) if !is_deep(&value, JSON_DEPTH) => Some(value),
        _ => serde_json::from_str(&repaired(&String::from_utf8_lossy(bytes))).ok(),
    }
}

/// True when containers are nested deeper than `levels`.
#[must_use]
pub fn is_deep(value: &Value, levels: usize) -> bool {
    match value {
        Value::Array(items) => levels == 0 || items.iter().any(|item| is_deep(item, levels - 1)),
        Value::Object(map) => levels == 0 || map.values().any(|item| is_deep(item, levels - 1)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

fn repaired(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 64);
    let mut rest = text;
    let mut depth = 0_usize;
    while let Some(c) = rest.chars().next() {
        match c {
            '"' => rest = string(rest, &mut out),
            '[' | '{' if depth >= JSON_DEPTH => {
                let (inside, behind) = rest.split_at(container_length(rest));
                out.push_str(&Value::from(inside).to_string());
                rest = behind;
            }
            '-' | '0'..='9' => {
                let length = rest
                    .find(|c: char| !matches!(c, '0'..='9' | '+' | '-' | '.' | 'e' | 'E'))
                    .unwrap_or(rest.len());
                let (number, behind) = rest.split_at(length);
                let is_finite = number.parse::<f64>().is_ok_and(f64::is_finite);
                if is_finite {
                    out.push_str(number)
                } else {
                    out.push_str(&Value::from(number).to_string())
                }
                rest = behind;
            }
            other => {
                match other {
                    '[' | '{' => depth += 1,
                    ']' | '}' => depth = depth.saturating_sub(1),
                    _ => {}
                }
                out.push(other);
                rest = rest.get(other.len_utf8()..).unwrap_or_default();
            }
        }
    }
    out
}

/// Copies the string that `text` begins with, repaired; gives what is behind it.
fn string<'a>(text: &'a str, out: &mut String) -> &'a str {
    out.push('"');
    let mut rest = text.get(1..).unwrap_or_default();
    while let Some(c) = rest.chars().next() {
        let behind = rest.get(c.len_utf8()..).unwrap_or_default();
        match c {
            '"' => {
                out.push('"');
                return behind;
            }
            '\\' => rest = escape(rest, out),
            control if control < ' ' => {
                let _ = write!(out, "\\u{:04x}", u32::from(control));
                rest = behind;
            }
            other => {
                out.push(other);
                rest = behind;
            }
        }
    }
    rest
}

/// Copies the escape that `text` begins with; one half of a pair becomes U+FFFD.
fn escape<'a>(text: &'a str, out: &mut String) -> &'a str {
    let unit = |text: &str| {
        let digits = text.strip_prefix("\\u")?.get(..4)?;
        u16::from_str_radix(digits, 16).ok()
    };
    let Some(first) = unit(text) else {
        let length = 1 + text.get(1..).and_then(|rest| rest.chars().next()).map_or(0, char::len_utf8);
        let (kept, behind) = text.split_at(length);
        out.push_str(kept);
        return behind;
    };
    let behind = text.get(6..).unwrap_or_default();
    let second = unit(behind);
    match (first, second) {
        (0xD800..0xDC00, Some(0xDC00..0xE000)) => {
            out.push_str(text.get(..12).unwrap_or_default());
            behind.get(6..).unwrap_or_default()
        }
        (0xD800..0xE000, _) => {
            out.push_str("\\ufffd");
            behind
        }
        _ => {
            out.push_str(text.get(..6).unwrap_or_default());
            behind
        }
    }
}

/// Bytes of the container that `text` begins with; all of it when it does not end.
fn container_length(text: &str) -> usize {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => depth += 1,
            b']' | b'}' if !in_string => {
                depth -= 1;
                if depth == 0 {
                    return at + 1;
                }
            }
            _ => {}
        }
    }
    text.len()
}
