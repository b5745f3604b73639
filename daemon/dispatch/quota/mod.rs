//! How fast a target may be spoken to: every limit of its connector at once, as the settings, the operator and the target's own
//! answers have it, for all processes together.
//!
//! A request takes its part of each limit that it is about, the longest window first: what it has taken it always uses.

mod limit;
pub mod shared;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep_until};

use crate::connector::classify::Answer;
use crate::connector::limit::{Limit, Rate};
use crate::connector::request::Request;
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
}

impl Shown {
    /// As the ledger keeps it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let rates: Vec<String> = self.rates.iter().map(Rate::to_string).collect();
        json!({"name": self.name, "rates": rates, "origin": self.origin, "told": self.told, "cut": self.cut,
               "at_once": self.at_once})
    }
}

/// See the module's text.
pub struct Quotas {
    limits: Vec<Arc<Limit>>,
    states: Vec<Mutex<LimitState>>,
    /// Requests at once, for limits that say so.
    at_once: Vec<Option<Arc<Semaphore>>>,
    shared: Option<SharedBuckets>,
    /// Changes whenever a rate does: whoever waits at the old one asks again.
    changed: watch::Sender<u64>,
}

/// A request that may leave; dropped when its answer is there.
pub struct Permit {
    _at_once: Vec<OwnedSemaphorePermit>,
}

impl Quotas {
    /// The limits of a connector under the settings. `shared`: buckets that all processes draw from.
    #[must_use]
    pub fn new(limits: Vec<Arc<Limit>>, settings: &QuotaSettings, shared: Option<SharedBuckets>) -> Self {
        let states = limits.iter().map(|limit| Mutex::new(LimitState::new(limit, settings))).collect();
        let at_once = limits.iter().map(|limit| limit.at_once.map(|most| Arc::new(Semaphore::new(most))));
        let at_once = at_once.collect();
        Self { limits, states, at_once, shared, changed: watch::channel(0).0 }
    }

    /// Waits until `request` may leave. Called last of all, so that permits cannot gather behind a slow commit and then leave
    /// together.
    pub async fn permit(&self, object: &str, request: &Request) -> Permit {
        let demands = self.demands(object, request);
        let mut at_once = Vec::new();
        for (index, _) in &demands {
            if let Some(Some(semaphore)) = self.at_once.get(*index)
                && let Ok(permit) = semaphore.clone().acquire_owned().await
            {
                at_once.push(permit);
            }
        }
        loop {
            let mut changed = self.changed.subscribe();
            tokio::select! {
                biased;
                () = self.pass(&demands) => return Permit { _at_once: at_once },
                _ = changed.changed() => {}
            }
        }
    }

    /// Passes all limits once; what was taken of some when the wait is given up is lost, which is on the safe side.
    async fn pass(&self, demands: &[(usize, Demand)]) {
        loop {
            self.unpaused(demands).await;
            let is_shared = self.take_shared(demands).await;
            let mut buckets: Vec<_> = demands
                .iter()
                .flat_map(|(index, demand)| self.state(*index).buckets(demand, is_shared))
                .collect();
            buckets.sort_by_key(|bucket| std::cmp::Reverse(bucket.window));
            for bucket in buckets {
                bucket.take().await;
            }
            // The target may have asked for a pause meanwhile.
            if self.paused_until(demands).is_none() {
                return;
            }
        }
    }

    /// Takes from the buckets of all processes; false when they cannot be reached, and each keeps to its own part.
    async fn take_shared(&self, demands: &[(usize, Demand)]) -> bool {
        let Some(shared) = &self.shared else { return true };
        let draws = demands.iter().flat_map(|(index, demand)| {
            let name = self.limits.get(*index).map_or("", |limit| limit.name.as_str());
            self.state(*index).draws(name, demand)
        });
        let draws: Vec<_> = draws.collect();
        shared.take(&draws).await
    }

    fn demands(&self, object: &str, request: &Request) -> Vec<(usize, Demand)> {
        let limits = self.limits.iter().enumerate();
        limits
            .filter_map(|(index, limit)| {
                let (key, weight) = limit.applies(object, request)?;
                Some((index, Demand { key, weight }))
            })
            .collect()
    }

    async fn unpaused(&self, demands: &[(usize, Demand)]) {
        while let Some(until) = self.paused_until(demands) {
            sleep_until(until).await;
        }
    }

    fn paused_until(&self, demands: &[(usize, Demand)]) -> Option<Instant> {
        let now = Instant::now();
        demands.iter().filter_map(|(index, demand)| self.state(*index).paused_until(&demand.key, now)).max()
    }

    fn state(&self, index: usize) -> MutexGuard<'_, LimitState> {
        // Indexes come from the list of limits itself, which has as many states.
        self.states[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many deliveries may be on their way to their permit: what leaves within a tenth of a second, and one.
    #[must_use]
    pub fn ahead(&self) -> usize {
        let slowest = self
            .limits
            .iter()
            .zip(&self.states)
            .filter(|(limit, _)| limit.when.is_none() && limit.per.is_none());
        let rates = slowest.filter_map(|(_, state)| {
            state.lock().unwrap_or_else(PoisonError::into_inner).slowest_per_second()
        });
        match rates.min_by(f64::total_cmp) {
            Some(rate) => 1 + (rate / 10.0) as usize,
            None => usize::MAX,
        }
    }

    /// Takes an answer into account. True when the refusal it is, is about one limit alone, which pauses: the rest of the target
    /// goes on.
    pub fn learn(
        &self,
        object: &str,
        request: &Request,
        answer: &Answer,
        throttled: bool,
        wait: Option<Duration>,
    ) -> bool {
        let now = Instant::now();
        let mut alone = false;
        for (index, demand) in self.demands(object, request) {
            let Some(limit) = self.limits.get(index) else { continue };
            let report = limit.read(answer);
            let mut state = self.state(index);
            let mut changed = state.told(&demand.key, &report, now);
            if throttled && limit.is_exceeded(answer) {
                changed |= state.refused(&demand.key, &report, wait, now);
                alone |= index > 0;
            } else if throttled && index == 0 && !self.is_about_another(answer) {
                changed |= state.refused(&demand.key, &report, wait, now);
            } else if !throttled {
                changed |= state.granted(now);
            }
            drop(state);
            if changed {
                self.touch();
            }
        }
        alone
    }

    fn is_about_another(&self, answer: &Answer) -> bool {
        self.limits.iter().skip(1).any(|limit| limit.is_exceeded(answer))
    }

    /// Sets the rates of a limit while requests are on their way; `None` takes back what was set.
    pub fn tune(&self, name: &str, rates: Option<Vec<Rate>>) -> bool {
        let Some(index) = self.limits.iter().position(|limit| limit.name == name) else { return false };
        self.state(index).tune(rates);
        self.touch();
        true
    }

    /// Takes over other settings.
    pub fn configure(&self, settings: &QuotaSettings) {
        for (index, limit) in self.limits.iter().enumerate() {
            self.state(index).configure(limit, settings);
        }
        self.touch();
    }

    /// How many processes share the target: each keeps to its part of every rate while the shared buckets cannot be reached.
    pub fn divide(&self, processes: u32) {
        let changed = (0..self.limits.len())
            .fold(false, |changed, index| self.state(index).divide(processes) | changed);
        if changed {
            self.touch();
        }
    }

    /// Limits as they are now.
    #[must_use]
    pub fn show(&self) -> Vec<Shown> {
        self.limits.iter().enumerate().map(|(index, limit)| self.state(index).show(limit)).collect()
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
