//! Keeps what can wait within a share of a target's quota.

use std::sync::PoisonError;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::target::Target;
use crate::connector::limit::Rate;

/// Longest time between two requests.
const LONGEST_S: f64 = 3_600.0;

/// See the module's text.
#[derive(Default)]
pub struct Pace(std::sync::Mutex<Option<Instant>>);

impl Pace {
    /// Waits until a request may be made; `share` of the target's first limit, as it is now.
    pub async fn wait(&self, target: &Target, share: f64) {
        let rates = target.quotas.show().into_iter().next().map(|shown| shown.rates).unwrap_or_default();
        let rate = rates.iter().map(Rate::per_second).fold(f64::INFINITY, f64::min);
        let apart = if rate.is_finite() { 1.0 / (rate * share).max(f64::MIN_POSITIVE) } else { 0.0 };
        let at = {
            let mut next = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let at = next.unwrap_or_else(Instant::now).max(Instant::now());
            *next = Some(at + Duration::from_secs_f64(apart.min(LONGEST_S)));
            at
        };
        sleep_until(at).await;
    }
}
