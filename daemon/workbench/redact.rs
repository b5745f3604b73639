//! Values that may be shown to anybody: structure, ids, amounts, dates, words of our own. All other texts are given by their
//! length only.

use serde_json::Value;

/// The value without what may be personal.
#[must_use]
pub fn redacted(value: &Value) -> Value {
    match value {
        Value::String(text) if is_plain(text) => value.clone(),
        Value::String(text) => Value::String(format!("({} characters)", text.chars().count())),
        Value::Array(items) => Value::Array(items.iter().map(redacted).collect()),
        Value::Object(map) => {
            Value::Object(map.iter().map(|(key, value)| (key.clone(), redacted(value))).collect())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}

/// Canonical ids, decimals, dates and times, currency codes, and lower-case words with an underscore such as `partially_paid`.
fn is_plain(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let is_upper = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_uppercase());
    let is_digits = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let is_id = parts.len() >= 3 && parts.iter().take(2).all(is_upper) && parts.iter().skip(2).all(is_digits);
    let is_amount = !text.is_empty()
        && text.len() <= 16
        && text.contains('.')
        && text.bytes().all(|byte| byte.is_ascii_digit() || b".-".contains(&byte));
    let is_date = text.len() >= 10
        && parts.len() >= 3
        && text.bytes().all(|byte| byte.is_ascii_digit() || b"-:.TZ".contains(&byte));
    let is_currency = text.len() == 3 && is_upper(&text);
    const WORDS: [&str; 22] = [
        "true",
        "false",
        "draft",
        "posted",
        "partially_paid",
        "paid",
        "reversed",
        "cancelled",
        "sent",
        "confirmed",
        "active",
        "paused",
        "open",
        "closed",
        "low",
        "normal",
        "high",
        "urgent",
        "goods",
        "service",
        "month",
        "year",
    ];
    text.is_empty() || is_id || is_amount || is_date || is_currency || WORDS.contains(&text)
}
