//! How fast a target may be spoken to: every limit of its connector at once, as the settings, the operator and the target's own
//! answers have it, for all processes together.
//!
//! A request takes its part of each limit that it is about: of the buckets in Redis, of all or of none, or, while Redis does not
//! answer, of this process's own, the longest window first.

pub mod at_once;
mod limit;
pub mod shared;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, watch};
use tokio::time::{Instant, sleep_until};

use super::unsent::Waiting;
use crate::connector::classify::Answer;
use crate::connector::limit::{Limit, Rate, whole};
use crate::connector::request::Request;
use at_once::AtOnce;
pub use limit::Refused;
use limit::{Demand, LimitState};
use shared::SharedBuckets;

/// What the settings say of a target's limits.
#[derive(Debug, Clone, PartialEq)]
pub struct QuotaSettings {
    /// Rates by the name of the limit; for others those of the connector count, as far as `share` goes.
    pub rates: BTreeMap<String, Vec<Rate>>,
    /// Part of what the vendor allows that is ours; the rest is left to other integrations of the account.
    pub share: f64,
}

/// A limit as it is now, for people.
#[derive(Debug, Clone, PartialEq)]
pub struct Shown {
    /// Its name.
    pub name: String,
    /// Rates in force.
    pub rates: Vec<Rate>,
    /// Where they come from: `settings`, `connector`, `operator`.
    pub origin: &'static str,
    /// What the target says it allows per window.
    pub told: Option<f64>,
    /// Part of the rates left after refusals, 1 when there were none lately.
    pub cut: f64,
    /// Requests at once.
    pub at_once: Option<usize>,
    /// Until when it pauses.
    pub paused_to: Option<Instant>,
}

impl Shown {
    /// As the ledger keeps it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let rates: Vec<String> = self.rates.iter().map(Rate::to_string).collect();
        json!({"name": self.name, "rates": rates, "origin": self.origin, "told": self.told, "cut": self.cut,
               "at_once": self.at_once, "paused_until": self.paused_to.map(clock_of)})
    }
}

/// A limit and how it stands.
struct Limited {
    limit: Arc<Limit>,
    /// What a target's `quota` is about, and a refusal that names no other.
    is_first: bool,
    state: Mutex<LimitState>,
    /// Requests at once, where the limit says how many.
    at_once: Option<AtOnce>,
}

impl Limited {
    fn state(&self) -> MutexGuard<'_, LimitState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All requests need it.
    fn is_about_all(&self) -> bool {
        self.limit.when.is_none() && self.limit.per.is_none()
    }

    /// As many as leave within a fifth of a second, and one, may wait for it; as many as may be under way, when that is all it says.
    fn ahead(&self) -> usize {
        match self.state().slowest_per_second() {
            Some(rate) => usize::try_from(whole(rate / 5.0)).unwrap_or(usize::MAX).saturating_add(1),
            None => self.at_once.as_ref().map_or(usize::MAX, AtOnce::part),
        }
    }
}

/// What a request takes, of which limits.
type Demands<'a> = Vec<(&'a Limited, Demand)>;

/// Whom a refusal for going too fast pauses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pauses {
    /// The whole target: for so long, where that is known.
    Target(Option<Duration>),
    /// The limit that was exceeded, and nothing else.
    Limit,
    /// It was on its way when another one was refused.
    Nothing,
}

/// See the module's text.
pub struct Quotas {
    limits: Vec<Limited>,
    shared: Option<SharedBuckets>,
    /// Changes whenever a rate does: whoever waits at the old one asks again.
    changed: watch::Sender<u64>,
}

/// A request that may leave; dropped when its answer is there.
pub struct Permit {
    _at_once: Vec<OwnedSemaphorePermit>,
    /// It is the only one that may leave until its answer is there.
    pub probe: Option<OwnedMutexGuard<()>>,
}

impl Quotas {
    /// The limits of a connector under the settings. `shared`: buckets that all processes draw from.
    #[must_use]
    pub fn new(limits: Vec<Arc<Limit>>, settings: &QuotaSettings, shared: Option<SharedBuckets>) -> Self {
        let limited = |(index, limit): (usize, Arc<Limit>)| Limited {
            is_first: index == 0,
            state: Mutex::new(LimitState::new(&limit, settings)),
            at_once: limit.at_once.map(AtOnce::new),
            limit,
        };
        let limits = limits.into_iter().enumerate().map(limited).collect();
        Self { limits, shared, changed: watch::channel(0).0 }
    }

    /// Says which ledger's processes share the buckets.
    pub fn belong_to(&self, installation: &str) {
        if let Some(shared) = &self.shared {
            shared.belong_to(installation);
        }
    }

    /// Waits until `request` may leave. Called last of all, so that permits cannot gather behind a slow commit and then leave
    /// together.
    pub async fn permit(&self, object: &str, request: &Request, waiting: Option<&Waiting>) -> Permit {
        let demands = self.demands(object, request);
        loop {
            place(object, &demands, waiting);
            self.wait_out(&demands).await;
            let mut at_once = Vec::new();
            for semaphore in demands.iter().filter_map(|(limited, _)| limited.at_once.as_ref()) {
                at_once.extend(semaphore.enter().await);
            }
            self.pass_as_they_change(&demands).await;
            // The target may have asked for a pause meanwhile.
            if paused_until(&demands).is_none() {
                return Permit { _at_once: at_once, probe: None };
            }
        }
    }

    /// Waits while `request` is about a limit that pauses: its attempt is not even written down.
    pub async fn unpaused(&self, object: &str, request: &Request, waiting: Option<&Waiting>) {
        let demands = self.demands(object, request);
        place(object, &demands, waiting);
        self.wait_out(&demands).await;
        place(object, &demands, waiting);
    }

    /// Waits while a limit pauses; an operator may lift that.
    async fn wait_out(&self, demands: &Demands<'_>) {
        let mut changed = self.changed.subscribe();
        while let Some(until) = paused_until(demands) {
            tokio::select! {
                () = sleep_until(until) => {}
                _ = changed.changed() => {}
            }
        }
    }

    /// With how many like `request` held back no more are begun; `None` when it is not held back.
    #[must_use]
    pub fn enough(&self, object: &str, request: &Request) -> Option<usize> {
        enough(&self.demands(object, request))
    }

    /// Passes `demands` at the rates as they are in the end.
    async fn pass_as_they_change(&self, demands: &Demands<'_>) {
        loop {
            let mut changed = self.changed.subscribe();
            tokio::select! {
                biased;
                () = self.pass(demands) => return,
                _ = changed.changed() => {}
            }
        }
    }

    /// Passes all limits once; what was taken of some when the wait is given up is lost, which is on the safe side.
    async fn pass(&self, demands: &Demands<'_>) {
        // Redis gives permits for exact times: another bucket behind it would only add delays.
        if !self.take_shared(demands).await {
            let passed = demands.iter().flat_map(|(limited, demand)| limited.state().buckets(demand));
            let mut buckets: Vec<_> = passed.collect();
            buckets.sort_by_key(|bucket| std::cmp::Reverse(bucket.window));
            for bucket in buckets {
                bucket.take().await;
            }
        }
    }

    /// Takes from the buckets of all processes; false when they cannot be reached, and each keeps to its own part.
    async fn take_shared(&self, demands: &Demands<'_>) -> bool {
        let Some(shared) = &self.shared else { return false };
        let draws =
            demands.iter().flat_map(|(limited, demand)| limited.state().draws(&limited.limit.name, demand));
        let draws: Vec<_> = draws.collect();
        shared.take(&draws).await
    }

    fn demands(&self, object: &str, request: &Request) -> Demands<'_> {
        let demand = |limited: &'_ Limited| {
            let (key, weight) = limited.limit.applies(object, request)?;
            Some(Demand { key, weight })
        };
        self.limits.iter().filter_map(|limited| Some((limited, demand(limited)?))).collect()
    }

    /// How many deliveries may be on their way to their permit.
    #[must_use]
    pub fn ahead(&self) -> usize {
        self.limits
            .iter()
            .filter(|limited| limited.is_about_all())
            .map(Limited::ahead)
            .min()
            .unwrap_or(usize::MAX)
    }

    /// Takes an answer into account, and says whom the refusal that it may be pauses.
    pub fn learn(
        &self,
        object: &str,
        request: &Request,
        answer: &Answer,
        refused: Option<Refused>,
    ) -> Pauses {
        let now = Instant::now();
        let mut pauses = Pauses::Target(refused.and_then(|refused| refused.wait));
        let about_another =
            self.limits.iter().any(|limited| !limited.is_first && limited.limit.is_exceeded(answer));
        for (limited, demand) in self.demands(object, request) {
            let report = limited.limit.read(answer);
            let mut state = limited.state();
            let mut changed = state.told(&demand.key, &report, now);
            let is_this = limited.limit.is_exceeded(answer) || (limited.is_first && !about_another);
            if let Some(refused) = refused.filter(|_| is_this) {
                let refusal = state.refused(&demand.key, &report, refused, now);
                changed |= refusal.changed;
                pauses = match refusal.tells_nothing {
                    true => Pauses::Nothing,
                    false if limited.is_first => Pauses::Target(refusal.told.or(refusal.brief)),
                    false => Pauses::Limit,
                };
            } else if refused.is_none() {
                changed |= state.granted(&demand.key, now);
            }
            drop(state);
            if changed {
                self.touch();
            }
        }
        pauses
    }

    /// Sets the rates of a limit while requests are on their way; `None` takes back what was set.
    pub fn tune(&self, name: &str, rates: Option<Vec<Rate>>) -> bool {
        let Some(limited) = self.limits.iter().find(|limited| limited.limit.name == name) else {
            return false;
        };
        limited.state().tune(rates);
        self.touch();
        true
    }

    /// Forgets pauses and what was learnt: what holds is found out anew.
    pub fn lift(&self) {
        self.limits.iter().for_each(|limited| limited.state().lift());
        self.touch();
    }

    /// Takes over other settings.
    pub fn configure(&self, settings: &QuotaSettings) {
        self.limits.iter().for_each(|limited| limited.state().configure(&limited.limit, settings));
        self.touch();
    }

    /// How many processes share the target: each keeps to its part of the requests at once, and of every rate while the shared
    /// buckets cannot be reached.
    pub fn divide(&self, processes: u32) {
        self.limits
            .iter()
            .filter_map(|limited| limited.at_once.as_ref())
            .for_each(|at_once| at_once.divide(processes));
        let changed =
            self.limits.iter().fold(false, |changed, limited| limited.state().divide(processes) | changed);
        if changed {
            self.touch();
        }
    }

    /// Limits as they are now.
    #[must_use]
    pub fn show(&self) -> Vec<Shown> {
        self.limits.iter().map(|limited| limited.state().show(&limited.limit)).collect()
    }

    /// Told whenever a rate changes.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn touch(&self) {
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
    }
}

/// As many as leave soon of what is slower than the target as a whole, or one while that pauses; `None` where the target as a whole
/// is the slowest: then what is most urgent goes first, of whatever kind it is.
fn enough(demands: &Demands<'_>) -> Option<usize> {
    let (wide, narrow): (Demands<'_>, Demands<'_>) =
        demands.iter().cloned().partition(|(limited, _)| limited.is_about_all());
    if paused_until(&narrow).is_some() {
        return Some(1);
    }
    let ahead = |demands: &Demands<'_>| demands.iter().map(|(limited, _)| limited.ahead()).min();
    ahead(&narrow).filter(|narrow| *narrow < ahead(&wide).unwrap_or(usize::MAX))
}

/// What waits for a limit that is slower than the target as a whole counts with its kind of object alone.
fn place(object: &str, demands: &Demands<'_>, waiting: Option<&Waiting>) {
    match (waiting, enough(demands)) {
        (Some(waiting), Some(enough)) => waiting.hold_back(object, enough),
        (Some(waiting), None) => waiting.go_on(),
        (None, _) => {}
    }
}

/// The time of day of an instant, for people: in steps of some seconds, so that it stays the same while it is looked at.
#[must_use]
pub fn clock_of(until: Instant) -> String {
    const STEP_S: i64 = 5;
    let left = until.saturating_duration_since(Instant::now());
    let at = Timestamp::now().checked_add(left).unwrap_or(Timestamp::MAX).as_second();
    Timestamp::from_second((at / STEP_S + 1) * STEP_S).unwrap_or(Timestamp::MAX).to_string()
}

fn paused_until(demands: &Demands<'_>) -> Option<Instant> {
    let now = Instant::now();
    demands.iter().filter_map(|(limited, demand)| limited.state().paused_until(&demand.key, now)).max()
}
