//! What a comparison found, and how an object is compared. Pure.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::connector::Shown;
use crate::dispatch::compare::same;
use crate::ledger::reconcile::Difference;

/// Differences that the ledger's entry names; all of them are in the table.
const NAMED: usize = 20;

/// What was found of one kind of object.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub listed: u64,
    pub found: u64,
    pub expected: i64,
    pub others: u64,
    /// Objects that may not be read one by one.
    pub unread: u64,
    pub kinds: BTreeMap<&'static str, u64>,
    pub fields: BTreeMap<String, u64>,
    pub repaired: u64,
    pub named: Vec<Value>,
}

impl Tally {
    pub fn note(&mut self, difference: &Difference) {
        *self.kinds.entry(difference.kind.as_str()).or_default() += 1;
        self.repaired += u64::from(difference.repaired);
        if self.named.len() < NAMED {
            let Difference { kind, canonical_id, external_id, fields, .. } = difference;
            // Which they are, not what they hold: this stays for ever.
            let fields: Vec<&Value> =
                fields.as_array().into_iter().flatten().filter_map(|field| field.get("field")).collect();
            self.named.push(json!({"kind": kind.as_str(), "id": canonical_id, "external_id": external_id, "fields": fields}));
        }
    }

    pub fn report(&self) -> Value {
        let missing = self.kinds.get("missing").copied().unwrap_or_default() + self.unread;
        let coverage = match self.expected {
            0 => 100.0,
            expected => {
                #[allow(clippy::cast_precision_loss)] // A percentage needs no more digits.
                let share = (expected - i64::try_from(missing).unwrap_or(expected)) as f64 / expected as f64;
                (share * 10_000.0).round() / 100.0
            }
        };
        json!({
            "listed": self.listed, "expected": self.expected, "others": self.others, "unread": self.unread, "coverage_percent": coverage.to_string(),
            "differences": self.kinds, "fields": self.fields, "repaired": self.repaired, "first": self.named,
        })
    }
}

/// A vendor that answers for what is gone says so.
pub(super) fn is_gone(object: &Value) -> bool {
    object.get("deleted").and_then(Value::as_bool) == Some(true)
}

/// Fields of which something else stands there: path, what should stand there, what does.
pub(super) fn fields(shown: &Shown, body: &Value, record: &Value) -> Vec<(String, Value, Value)> {
    let mut found = Vec::new();
    differ(String::new(), body, &shown.as_body(record), &shown.except, &mut found);
    found
}

fn differ(
    path: String,
    ours: &Value,
    theirs: &Value,
    except: &[String],
    found: &mut Vec<(String, Value, Value)>,
) {
    if except.contains(&path) {
        return;
    }
    if let Value::Object(members) = ours {
        for (name, ours) in members {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            differ(path, ours, theirs.get(name).unwrap_or(&Value::Null), except, found);
        }
    } else if !same(ours, theirs) {
        found.push((path, ours.clone(), theirs.clone()));
    }
}

/// `body` with whatever stands there of it.
pub(super) fn laid_over(body: &Value, shown: &Value) -> Value {
    match (body, shown) {
        (Value::Object(body), shown) => {
            let member = |(name, value): (&String, &Value)| {
                (name.clone(), laid_over(value, shown.get(name).unwrap_or(&Value::Null)))
            };
            Value::Object(body.iter().map(member).collect())
        }
        (_, shown) => shown.clone(),
    }
}
