//! One limit while the daemon runs: its rates in force, what is left of them, and its pauses.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::clock::DefaultClock;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota as Cells, RateLimiter};
use tokio::time::Instant;

use super::shared::Draw;
use super::{QuotaSettings, Shown};
use crate::bounds::WAIT_S;
use crate::connector::limit::{Limit, Rate, Report, whole};

/// What is left of the rates after a refusal, when nothing shows what the target takes.
const CUT: f64 = 0.7;
/// What is used of the rate at which it was seen to take requests.
const OF_SEEN: f64 = 0.85;
/// A target that took this part of what was sent allows it: a few have come too close together on their way.
const NEARLY: f64 = 0.9;
/// What is left of the rates then, and the part of a window for which it pauses.
const SLIGHT_CUT: f64 = 0.95;
const BRIEF: u32 = 10;
/// So many have to be seen.
const SEEN: u32 = 5;
/// Never less than this part.
const LEAST: f64 = 0.01;
/// How often the rates grow again while nothing is refused, and by how much at first; each time twice as much.
const RECOVERS_EVERY: Duration = Duration::from_secs(10);
const FIRST_GROWTH: f64 = 0.05;
/// Requests that are remembered to see at which rate the target takes them.
const REMEMBERED: usize = 4_096;
/// So long after a refusal the next one may be slight again.
const CALM: Duration = Duration::from_secs(3);
/// Pause of a limit that was exceeded, when the answer does not say how long.
const PAUSE: Duration = Duration::from_secs(1);
/// Keys remembered of a limit that is kept for each: beyond that the idle ones are forgotten.
const MOST_KEYS: usize = 10_000;

/// What a request takes of a limit.
#[derive(Debug, Clone)]
pub struct Demand {
    /// Of which of its buckets.
    pub key: String,
    /// How much.
    pub weight: NonZeroU32,
}

/// A request that was refused for going too fast.
#[derive(Debug, Clone, Copy)]
pub struct Refused {
    /// When it was sent.
    pub sent: Instant,
    /// How long the target asks us to wait.
    pub wait: Option<Duration>,
}

/// What a refusal changed.
#[derive(Debug, Default)]
pub struct Refusal {
    /// The rates.
    pub changed: bool,
    /// It was on its way when another one was refused.
    pub tells_nothing: bool,
    /// How long the target asks us to wait.
    pub told: Option<Duration>,
    /// It pauses for so long and no longer: what was sent is nearly what the target takes.
    pub brief: Option<Duration>,
}

/// A bucket of one window.
#[derive(Clone)]
pub struct Bucket {
    limiter: Arc<RateLimiter<NotKeyed, InMemoryState, DefaultClock>>,
    /// Window length.
    pub window: Duration,
    weight: NonZeroU32,
}

impl Bucket {
    /// Waits until it grants its weight; one that it could never grant at once is taken bit by bit.
    pub async fn take(&self) {
        if self.limiter.until_n_ready(self.weight).await.is_err() {
            for _ in 0..self.weight.get() {
                self.limiter.until_ready().await;
            }
        }
    }
}

/// A bucket that starts empty: what was sent within the window before is not known here, so the burst has to be earned first.
fn limiter(rate: Rate) -> Arc<RateLimiter<NotKeyed, InMemoryState, DefaultClock>> {
    let (burst, interval) = rate.bucket();
    let cells = Cells::with_period(interval).unwrap_or(Cells::per_second(NonZeroU32::MIN)).allow_burst(burst);
    let limiter = RateLimiter::direct(cells);
    // A burst never exceeds the bucket, so it is always granted.
    let _ = limiter.check_n(burst);
    Arc::new(limiter)
}

/// See the module's text.
pub struct LimitState {
    /// What the settings or the connector say.
    base: Vec<Rate>,
    origin: &'static str,
    tuned: Option<Vec<Rate>>,
    share: f64,
    /// What the target says it allows, in the window of the connector's first rate.
    told: Option<f64>,
    told_window: Option<Duration>,
    /// Part of the rates that is used since the last refusals.
    cut: f64,
    refused_at: Option<Instant>,
    eased_at: Option<Instant>,
    growth: f64,
    /// When the target took requests, lately, and of which key.
    taken: VecDeque<(Instant, String)>,
    /// Processes that share the rates, when nothing else divides them.
    processes: u32,
    paused: HashMap<String, Instant>,
    /// Buckets by key, of the part of this process.
    buckets: HashMap<String, Vec<Bucket>>,
}

impl LimitState {
    pub fn new(limit: &Limit, settings: &QuotaSettings) -> Self {
        let mut state = Self {
            base: Vec::new(),
            origin: "connector",
            tuned: None,
            share: 1.0,
            told: None,
            told_window: limit.rates.first().map(|rate| rate.window),
            cut: 1.0,
            refused_at: None,
            eased_at: None,
            growth: FIRST_GROWTH,
            taken: VecDeque::new(),
            processes: 1,
            paused: HashMap::new(),
            buckets: HashMap::new(),
        };
        state.configure(limit, settings);
        state
    }

    pub fn configure(&mut self, limit: &Limit, settings: &QuotaSettings) {
        let (base, origin) = match settings.rates.get(&limit.name) {
            Some(rates) => (rates.clone(), "settings"),
            None => (limit.rates.iter().map(|rate| rate.scaled(settings.share)).collect(), "connector"),
        };
        if base != self.base || settings.share != self.share {
            self.buckets.clear();
        }
        (self.base, self.origin, self.share) = (base, origin, settings.share);
    }

    /// Forgets pauses, and what refusals and answers have taught.
    pub fn lift(&mut self) {
        self.paused.clear();
        (self.told, self.cut, self.refused_at, self.eased_at) = (None, 1.0, None, None);
        self.growth = FIRST_GROWTH;
        self.taken.clear();
        self.buckets.clear();
    }

    /// Until when the last of its pauses lasts.
    pub fn paused_to(&self, now: Instant) -> Option<Instant> {
        self.paused.values().copied().filter(|until| *until > now).max()
    }

    pub fn tune(&mut self, rates: Option<Vec<Rate>>) {
        if self.tuned != rates {
            self.tuned = rates;
            self.buckets.clear();
        }
    }

    pub fn divide(&mut self, processes: u32) -> bool {
        let changed = self.processes != processes.max(1);
        self.processes = processes.max(1);
        if changed {
            self.buckets.clear();
        }
        changed
    }

    /// Rates in force.
    fn rates(&self) -> Vec<Rate> {
        let mut rates = self.tuned.as_ref().unwrap_or(&self.base).clone();
        if let (Some(told), Some(window)) = (self.told, self.told_window) {
            let told = NonZeroU32::new(whole(told * self.share)).unwrap_or(NonZeroU32::MIN);
            match rates.iter_mut().find(|rate| rate.window == window) {
                Some(rate) => rate.requests = rate.requests.min(told),
                None => rates.push(Rate { requests: told, window }),
            }
        }
        rates.into_iter().map(|rate| rate.scaled(self.cut)).collect()
    }

    pub fn slowest_per_second(&self) -> Option<f64> {
        self.rates().iter().map(Rate::per_second).min_by(f64::total_cmp)
    }

    /// The buckets a request has to pass, where nothing else divides the rates among processes.
    pub fn buckets(&mut self, demand: &Demand) -> Vec<Bucket> {
        if !self.buckets.contains_key(&demand.key) {
            if self.buckets.len() >= MOST_KEYS {
                self.buckets.clear();
            }
            let part = 1.0 / f64::from(self.processes);
            let made = self.rates().into_iter().map(|rate| Bucket {
                limiter: limiter(rate.scaled(part)),
                window: rate.window,
                weight: NonZeroU32::MIN,
            });
            let made = made.collect();
            self.buckets.insert(demand.key.clone(), made);
        }
        let found = self.buckets.get(&demand.key).cloned().unwrap_or_default();
        found.into_iter().map(|bucket| Bucket { weight: demand.weight, ..bucket }).collect()
    }

    /// The same for buckets that all processes draw from.
    pub fn draws(&self, name: &str, demand: &Demand) -> Vec<Draw> {
        let draw = |rate: Rate| {
            let (burst, interval) = rate.bucket();
            let key = format!("{name}:{}:{}", rate.window.as_secs(), demand.key);
            Draw { key, burst: burst.get(), interval, weight: demand.weight.get() }
        };
        self.rates().into_iter().map(draw).collect()
    }

    pub fn paused_until(&self, key: &str, now: Instant) -> Option<Instant> {
        self.paused.get(key).copied().filter(|until| *until > now)
    }

    fn pause(&mut self, key: &str, until: Instant, now: Instant) {
        self.paused.retain(|_, until| *until > now);
        let known = self.paused.entry(key.to_owned()).or_insert(until);
        *known = (*known).max(until);
    }

    /// What an answer says counts more than what the settings say, where it is less.
    pub fn told(&mut self, key: &str, report: &Report, now: Instant) -> bool {
        // What is left to others is not ours to use up.
        let left = report.limit.unwrap_or_default() * (1.0 - self.share);
        if let (Some(remaining), Some(reset)) = (report.remaining, report.reset)
            && remaining <= left
        {
            self.pause(key, now + reset.min(self.longest()), now);
        }
        let changed = report.limit.is_some_and(|limit| limit >= 1.0 && self.told != Some(limit));
        if changed {
            self.told = report.limit;
            self.buckets.clear();
        }
        changed
    }

    /// The target refused a request for going too fast.
    pub fn refused(&mut self, key: &str, report: &Report, refused: Refused, now: Instant) -> Refusal {
        let told = refused.wait.or(report.reset).map(|told| told.min(self.longest()));
        let before = self.refused_at.map(|at| now.duration_since(at));
        if self.refused_at.is_some_and(|at| refused.sent < at) {
            told.inspect(|told| self.pause(key, now + *told, now));
            return Refusal { tells_nothing: told.is_none(), told, ..Refusal::default() };
        }
        let seen = self.seen(key, now).zip(self.rates().first().map(Rate::per_second));
        let is_calm = before.is_none_or(|before| before >= CALM);
        let is_slight = is_calm && seen.is_some_and(|(seen, rate)| seen >= NEARLY * rate);
        let brief = is_slight.then(|| (self.window() / BRIEF).min(PAUSE));
        self.pause(key, now + told.or(brief).unwrap_or(PAUSE), now);
        self.refused_at = Some(now);
        self.eased_at = Some(now);
        // One that says how much is left needs no guess.
        if report.remaining.is_some() {
            return Refusal { told, ..Refusal::default() };
        }
        self.growth = FIRST_GROWTH;
        if !is_slight {
            // What was taken at the old rates says nothing of the new ones.
            self.taken.clear();
        }
        let cut = match seen {
            Some(_) if is_slight => self.cut * SLIGHT_CUT,
            Some((seen, rate)) => (self.cut * seen * OF_SEEN / rate).min(self.cut),
            None => self.cut * CUT,
        };
        self.cut = cut.max(LEAST);
        self.buckets.clear();
        Refusal { changed: true, told, brief, tells_nothing: false }
    }

    /// The longest pause that an answer can ask for.
    fn longest(&self) -> Duration {
        let windows = self.base.iter().map(|rate| rate.window);
        windows.max().unwrap_or_default().max(Duration::from_secs(WAIT_S))
    }

    fn window(&self) -> Duration {
        self.base.first().map_or(PAUSE, |rate| rate.window)
    }

    /// Requests per second that the target has taken until now, over a window: what the other processes send is taken to be as much.
    fn seen(&self, key: &str, now: Instant) -> Option<f64> {
        let window = self.window();
        let from = now.checked_sub(window)?;
        let taken = self.taken.iter().rev().take_while(|(at, _)| *at >= from).filter(|(_, of)| of == key);
        let (count, first) = taken.fold((0_u32, None), |(count, _), (at, _)| (count + 1, Some(*at)));
        let elapsed = now.duration_since(first?).max(window / 10).max(PAUSE.min(window));
        (count >= SEEN).then(|| f64::from(count) * f64::from(self.processes) / elapsed.as_secs_f64())
    }

    /// The target took a request: by and by it is trusted again.
    pub fn granted(&mut self, key: &str, now: Instant) -> bool {
        if self.taken.len() >= REMEMBERED {
            self.taken.pop_front();
        }
        self.taken.push_back((now, key.to_owned()));
        let due = self.eased_at.is_some_and(|at| now.duration_since(at) >= RECOVERS_EVERY);
        if self.cut >= 1.0 || !due {
            return false;
        }
        self.eased_at = Some(now);
        self.cut = (self.cut * (1.0 + self.growth)).min(1.0);
        self.growth = (self.growth * 2.0).min(1.0);
        self.buckets.clear();
        true
    }

    pub fn show(&self, limit: &Limit) -> Shown {
        Shown {
            name: limit.name.clone(),
            rates: self.rates(),
            origin: if self.tuned.is_some() { "operator" } else { self.origin },
            told: self.told,
            cut: self.cut,
            at_once: limit.at_once,
            paused_to: self.paused_to(Instant::now()),
        }
    }
}
