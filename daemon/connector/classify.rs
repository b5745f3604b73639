//! What an answer means: the first rule of the connector file that matches.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use crate::bounds::CLOCK_SKEW_S;
use crate::mapping::expression::Expression;
use crate::mapping::scope::Scope;

/// The fixed classes of answers. Each has one policy in `dispatch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Done.
    Applied,
    /// Already so.
    Duplicate,
    /// Not now: the server says when, or we guess.
    Throttled,
    /// Not done, and safe to repeat.
    Transient,
    /// Refused for good: a dead letter.
    Rejected,
    /// Our credentials are refused: the target pauses, nothing is burnt.
    Unauthorised,
    /// Perhaps done (INV-3).
    Uncertain,
    /// Another object holds a value that must be unique.
    Conflict,
    /// The object is not there any more.
    Missing,
}

impl Class {
    /// All classes a connector file may name.
    pub const ALL: [(&'static str, Self); 9] = [
        ("applied", Self::Applied),
        ("duplicate", Self::Duplicate),
        ("throttled", Self::Throttled),
        ("transient", Self::Transient),
        ("rejected", Self::Rejected),
        ("unauthorised", Self::Unauthorised),
        ("uncertain", Self::Uncertain),
        ("conflict", Self::Conflict),
        ("missing", Self::Missing),
    ];

    /// The word in files and the ledger.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(_, class)| *class == self).map_or("uncertain", |(name, _)| name)
    }
}

/// A rule of a connector file.
#[derive(Debug)]
pub struct OutcomeRule {
    /// Condition over `step` (what the request was for), `status`, `headers`, `body`.
    pub when: Expression,
    /// What it means.
    pub class: Class,
    /// For `conflict`: the body path of the value, `organization.name`.
    pub field: Option<String>,
}

/// An answer of the server.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Headers, names in lower case.
    pub headers: BTreeMap<String, String>,
    /// JSON body; null when there is none or it is something else.
    pub body: Value,
    /// Why there is no body to go by.
    pub flaw: Option<Flaw>,
}

/// What is wrong with the body of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// There is none.
    Empty,
    /// It is something else: a page of a proxy, a sign of maintenance.
    NotJson,
    /// It is longer than is read.
    TooLarge,
}

impl Flaw {
    /// For people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::NotJson => "not JSON",
            Self::TooLarge => "too large",
        }
    }
}

impl Answer {
    /// Looks at it with an expression over `status`, `headers` and `body`.
    pub fn look<T>(&self, look: impl FnOnce(&Scope<'_>) -> T) -> T {
        let status = Value::from(self.status);
        let headers = self.headers_value();
        look(&Scope::new([("status", &status), ("headers", &headers), ("body", &self.body)]))
    }

    fn headers_value(&self) -> Value {
        Value::Object(self.headers.iter().map(|(k, v)| (k.clone(), Value::from(v.clone()))).collect())
    }

    /// What the vendor's clock showed when it answered (`Date`, RFC 9110 section 6.6.1), in milliseconds since 1970; `now` when it
    /// does not say, or says what cannot be.
    #[must_use]
    pub fn clock_ms(&self, now: Timestamp) -> i64 {
        self.date().filter(|date| !is_off(*date, now)).unwrap_or(now).as_millisecond()
    }

    /// By how many seconds the vendor's clock is ahead of ours, where that is more than clocks differ.
    #[must_use]
    pub fn clock_is_off_by_s(&self, now: Timestamp) -> Option<i64> {
        self.date().filter(|date| is_off(*date, now)).map(|date| date.duration_since(now).as_secs())
    }

    fn date(&self) -> Option<Timestamp> {
        let date = self.headers.get("date").and_then(|text| httpdate::parse_http_date(text).ok())?;
        Timestamp::try_from(date).ok()
    }

    /// The class of this answer, and the rule's field. What no rule matches is judged by status alone: 2xx is done,
    /// 4xx refused, anything else uncertain.
    #[must_use]
    pub fn classify<'a>(&self, step: &str, rules: &'a [OutcomeRule]) -> (Class, Option<&'a str>) {
        let step = Value::from(step);
        let status = Value::from(self.status);
        let headers = self.headers_value();
        let scope =
            Scope::new([("step", &step), ("status", &status), ("headers", &headers), ("body", &self.body)]);
        // A rule that cannot be evaluated (a body without the member it asks for) does not match.
        let matched = rules.iter().find(|rule| rule.when.holds(&scope).unwrap_or(false));
        let judged = match matched {
            Some(rule) => (rule.class, rule.field.as_deref()),
            None => match self.status {
                200..=299 => (Class::Applied, None),
                400..=499 => (Class::Rejected, None),
                _ => (Class::Uncertain, None),
            },
        };
        // A proxy that answers for the vendor says neither that something was done nor that it is gone.
        match (judged.0, self.flaw) {
            (Class::Applied | Class::Duplicate | Class::Missing, Some(Flaw::NotJson | Flaw::TooLarge)) => {
                (Class::Uncertain, None)
            }
            _ => judged,
        }
    }

    /// `Retry-After` as a wait: seconds or an HTTP date (RFC 9110 section 10.2.3), at most `longest`: what asks for more is asked again
    /// then.
    #[must_use]
    pub fn retry_after(&self, now: Timestamp, longest: Duration) -> Option<Duration> {
        let text = self.headers.get("retry-after")?.trim();
        let wait = match text.parse::<f64>() {
            Ok(seconds) if seconds.is_finite() && seconds >= 0.0 => {
                Duration::from_secs_f64(seconds.min(longest.as_secs_f64()))
            }
            Ok(_) => return None,
            Err(_) => {
                let at = Timestamp::try_from(httpdate::parse_http_date(text).ok()?).ok()?;
                Duration::try_from(at.duration_since(now)).unwrap_or_default()
            }
        };
        Some(wait.min(longest))
    }
}

fn is_off(date: Timestamp, now: Timestamp) -> bool {
    date.duration_since(now).as_secs().abs() > CLOCK_SKEW_S
}
