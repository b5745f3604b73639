//! A vendor's feed of events, newest first, as <https://docs.stripe.com/api/events/list> describes it: whole seconds, several events
//! of one second in no certain order, and some that come into view late, with the time at which they happened.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};

/// An event.
#[derive(Debug, Clone)]
struct Logged {
    created: i64,
    visible_at_ms: i64,
    body: Value,
}

/// See the module's text.
#[derive(Debug, Default)]
pub struct EventLog {
    /// In the order in which they happened.
    events: Vec<Logged>,
    /// Each event comes into view after as much as this, in milliseconds.
    pub late_ms: i64,
    /// Events older than this many seconds are forgotten; none when 0.
    pub retention_s: i64,
    /// How far the vendor's clock is ahead, in seconds.
    pub skew_s: i64,
}

impl EventLog {
    /// The vendor's clock, in seconds since 1970.
    #[must_use]
    pub fn now_s(&self) -> i64 {
        Timestamp::now().as_second() + self.skew_s
    }

    /// Something happened to an object, which is now so.
    pub fn note(&mut self, kind: &str, object: &Value) {
        let created = self.now_s();
        let late: f64 = rand::random::<f64>() * f64::from(i32::try_from(self.late_ms).unwrap_or(i32::MAX));
        #[allow(clippy::cast_possible_truncation)] // Less than what it was made of.
        let visible_at_ms = Timestamp::now().as_millisecond() + late as i64;
        let id = format!("evt_{:010}", self.events.len() + 1);
        let body = json!({"id": id, "object": "event", "type": kind, "created": created, "data": {"object": object}});
        self.events.push(Logged { created, visible_at_ms, body });
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// True while nothing has happened.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// `GET /v1/events`.
    #[must_use]
    pub fn list(&self, query: &BTreeMap<String, String>) -> Value {
        let now_ms = Timestamp::now().as_millisecond();
        let number = |name: &str| query.get(name).and_then(|text| text.parse::<i64>().ok());
        let oldest = if self.retention_s > 0 { self.now_s() - self.retention_s } else { 0 };
        let since = number("created[gte]").unwrap_or(0).max(oldest);
        let limit = usize::try_from(number("limit").unwrap_or(10)).unwrap_or(10).min(100);
        let mut shown: Vec<&Logged> = self
            .events
            .iter()
            .rev()
            .filter(|event| event.created >= since && event.visible_at_ms <= now_ms)
            .collect();
        shown.sort_by_key(|event| std::cmp::Reverse(event.created));
        let start = query.get("starting_after").map_or(0, |last| {
            shown
                .iter()
                .position(|event| event.body.get("id").and_then(Value::as_str) == Some(last))
                .map_or(shown.len(), |place| place + 1)
        });
        let page: Vec<&Value> = shown.iter().skip(start).take(limit).map(|event| &event.body).collect();
        json!({"object": "list", "data": page, "has_more": start + limit < shown.len()})
    }
}
