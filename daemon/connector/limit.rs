//! What a vendor allows: rates over one or several windows, requests at once, for all requests or for some, and how its
//! answers tell of it. Pure.

use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use serde_json::Value;

use super::classify::Answer;
use super::request::Request;
use crate::config::node::{Fields, Node, Problems};
use crate::mapping::expression::Expression;
use crate::mapping::scope::Scope;
use crate::mapping::shape::open_variables;

/// What conditions of limits are over.
const CALL: [&str; 4] = ["step", "object", "method", "endpoint"];
/// What tells of a limit in an answer.
const TOLD: [&str; 3] = ["status", "headers", "body"];

/// `80/s`, `600/min`, `6000/5min`, `5000/h`, `100000/d`: at most so many requests in any window of that length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Requests per window, at least 1.
    pub requests: NonZeroU32,
    /// Window length.
    pub window: Duration,
}

/// Units of windows, longest first.
const UNITS: [(&str, u64); 5] = [("d", 86_400), ("h", 3_600), ("min", 60), ("m", 60), ("s", 1)];
/// No vendor counts over more than a month.
const LONGEST_WINDOW_S: u64 = 31 * 86_400;

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.window.as_secs().max(1);
        let (unit, length) =
            UNITS.into_iter().find(|(_, length)| seconds.is_multiple_of(*length)).unwrap_or(("s", 1));
        match seconds / length {
            1 => write!(f, "{}/{unit}", self.requests),
            many => write!(f, "{}/{many}{unit}", self.requests),
        }
    }
}

impl Rate {
    /// Parses the form of the settings file.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (count, window) = text.split_once('/')?;
        let window = window.trim();
        let digits = window.len() - window.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (many, unit) = window.split_at(digits);
        let many: u64 = if many.is_empty() { 1 } else { many.parse().ok().filter(|many| *many > 0)? };
        let (_, length) = UNITS.into_iter().find(|(name, _)| *name == unit)?;
        let seconds = many.checked_mul(length).filter(|seconds| *seconds <= LONGEST_WINDOW_S)?;
        let requests = count.trim().parse::<u32>().ok().and_then(NonZeroU32::new)?;
        Some(Self { requests, window: Duration::from_secs(seconds) })
    }

    /// `part` of it, at least one request per window.
    #[must_use]
    pub fn scaled(self, part: f64) -> Self {
        let scaled = whole(f64::from(self.requests.get()) * part);
        Self { requests: NonZeroU32::new(scaled).unwrap_or(NonZeroU32::MIN), ..self }
    }

    /// Requests per second.
    #[must_use]
    pub fn per_second(&self) -> f64 {
        f64::from(self.requests.get()) / self.window.as_secs_f64()
    }

    /// Burst and refill interval of a bucket that never lets more than `requests` pass in any window.
    ///
    /// A bucket of burst b refilled at rate r lets b + r·w pass in a window w, so r = (requests − b) / w. A hundredth of the
    /// quota is left as burst, of a long window a fifth, for nobody's day is even; where the network bunches requests up, two
    /// hundredths more are held back: a refusal costs more than what is left unused.
    #[must_use]
    pub fn bucket(&self) -> (NonZeroU32, Duration) {
        let burst = match self.window.as_secs() {
            ..3_600 => (self.requests.get() / 100).clamp(1, 50),
            _ => (self.requests.get() / 5).max(1),
        };
        let spare = (self.requests.get() / 50).max(1);
        let refill = self.requests.get().saturating_sub(burst + spare).max(1);
        (NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN), self.window / refill + ROUNDED_UP)
    }
}

/// A count without its fraction; one that is none is 0.
#[must_use]
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Such a cast saturates.
pub fn whole(count: f64) -> u32 {
    count as u32
}

/// Division of durations rounds down, which would let one request too many pass at high rates.
const ROUNDED_UP: Duration = Duration::from_nanos(1);

/// How answers tell how much is left.
#[derive(Debug, Default)]
pub struct Told {
    /// What the vendor allows per window of the first rate.
    pub limit: Option<Expression>,
    /// What is left of it.
    pub remaining: Option<Expression>,
    /// Seconds until all of it is there again.
    pub reset_s: Option<Expression>,
}

/// What an answer said of a limit.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Report {
    /// Allowed per window.
    pub limit: Option<f64>,
    /// Left of it.
    pub remaining: Option<f64>,
    /// Until all of it is there again.
    pub reset: Option<Duration>,
}

/// See the module's text.
#[derive(Debug)]
pub struct Limit {
    /// What `tailwater quota` calls it.
    pub name: String,
    /// All of them hold at once; none when only the number at once is limited.
    pub rates: Vec<Rate>,
    /// Requests at once.
    pub at_once: Option<usize>,
    /// Which requests it is about; all when `None`.
    pub when: Option<Expression>,
    /// Each value of this has a limit of its own: `endpoint`.
    pub per: Option<Expression>,
    /// How much a request takes of it; 1 when `None`.
    pub weight: Option<Expression>,
    /// How answers tell of it.
    pub told: Told,
    /// Which refusals for going too fast are about this limit.
    pub exceeded: Option<Expression>,
}

impl Limit {
    /// How much `request` takes of it, and of which of its buckets; `None` when it is not about it.
    #[must_use]
    pub fn applies(&self, object: &str, request: &Request) -> Option<(String, NonZeroU32)> {
        let parts = [
            ("step", Value::from(request.step.as_str())),
            ("object", Value::from(object)),
            ("method", Value::from(request.method.as_str())),
            ("endpoint", Value::from(request.endpoint.as_str())),
        ];
        let scope = Scope::new(parts.iter().map(|(name, value)| (*name, value)));
        // What cannot be judged counts: too slow is better than too fast.
        if let Some(when) = &self.when
            && !when.holds(&scope).unwrap_or(true)
        {
            return None;
        }
        let key = self.per.as_ref().map(|per| per.evaluate(&scope).unwrap_or_default());
        let key = key.map(|key| key.as_str().map_or_else(|| key.to_string(), str::to_owned));
        let weight = self.weight.as_ref().and_then(|weight| weight.evaluate(&scope).ok()?.as_u64());
        let weight = weight.and_then(|weight| NonZeroU32::new(u32::try_from(weight).ok()?));
        Some((key.unwrap_or_default(), weight.unwrap_or(NonZeroU32::MIN)))
    }

    /// What `answer` says of it.
    #[must_use]
    pub fn read(&self, answer: &Answer) -> Report {
        let Told { limit, remaining, reset_s } = &self.told;
        if limit.is_none() && remaining.is_none() && reset_s.is_none() {
            return Report::default();
        }
        answer.look(|scope| {
            let number = |expression: &Option<Expression>| {
                let value = expression.as_ref()?.evaluate(scope).ok()?;
                let number = value.as_f64().or_else(|| value.as_str()?.trim().parse().ok())?;
                (number.is_finite() && number >= 0.0).then_some(number)
            };
            let reset = number(reset_s).map(|seconds| Duration::from_secs_f64(seconds.min(86_400.0)));
            Report { limit: number(limit), remaining: number(remaining), reset }
        })
    }

    /// True when a refusal for going too fast is about this limit.
    #[must_use]
    pub fn is_exceeded(&self, answer: &Answer) -> bool {
        let Some(exceeded) = &self.exceeded else { return false };
        answer.look(|scope| exceeded.holds(scope).unwrap_or(false))
    }
}

/// Reads the `limits` of a connector file. The first is what a target's `quota` sets.
pub fn read_limits(fields: &mut Fields, problems: &mut Problems) -> Vec<Limit> {
    let items = fields.optional("limits").map(|node| node.list(problems)).unwrap_or_default();
    let mut limits: Vec<Limit> = Vec::new();
    for item in &items {
        let Some(limit) = read_limit(item, problems) else { continue };
        if limits.iter().any(|known| known.name == limit.name) {
            problems.add(&item.at, format!("there are two limits `{}`", limit.name), "another name");
        }
        limits.push(limit);
    }
    if limits.is_empty() {
        // What is not said of the vendor is said in the settings.
        limits.push(Limit {
            name: "account".to_owned(),
            rates: Vec::new(),
            at_once: None,
            when: None,
            per: None,
            weight: None,
            told: Told::default(),
            exceeded: None,
        });
    }
    limits
}

fn read_limit(node: &Node, problems: &mut Problems) -> Option<Limit> {
    let mut fields = node.fields(problems);
    let name = fields.string("name", "account", problems);
    let rates = fields.optional("rate").map(|node| read_rates(&node, problems)).unwrap_or_default();
    let at_once = fields.optional("at_once").and_then(|node| node.whole(1, problems));
    let mut over = |key, variables: &[&str], problems: &mut Problems| {
        fields.optional(key).and_then(|node| Expression::compile(&node, &open_variables(variables), problems))
    };
    let when = over("when", &CALL, problems);
    let per = over("per", &CALL, problems);
    let weight = over("weight", &CALL, problems);
    let told = Told {
        limit: over("limit", &TOLD, problems),
        remaining: over("remaining", &TOLD, problems),
        reset_s: over("reset_s", &TOLD, problems),
    };
    let exceeded = over("exceeded", &TOLD, problems);
    fields.finish(problems);
    if rates.is_empty() && at_once.is_none() {
        problems.add(&node.at, "a limit without `rate` and `at_once` limits nothing", "rate: 100/s");
    }
    let at_once = at_once.and_then(|count| usize::try_from(count).ok());
    Some(Limit { name: name?, rates, at_once, when, per, weight, told, exceeded })
}

/// One rate or a list of them.
pub fn read_rates(node: &Node, problems: &mut Problems) -> Vec<Rate> {
    let nodes = match node.content {
        crate::config::node::Content::List(_) => node.list(problems),
        _ => vec![node.clone()],
    };
    let mut rates = Vec::new();
    for node in nodes {
        let Some(text) = node.string(problems) else { continue };
        match Rate::parse(&text) {
            Some(rate) => rates.push(rate),
            None => problems.add(
                &node.at,
                "not a rate",
                "\"80/s\", \"600/min\", \"6000/5min\", \"5000/h\" or \"100000/d\"",
            ),
        }
    }
    rates
}
