//! Buckets in Redis that all processes draw from: the generic cell rate algorithm, decided by Redis in one step and by Redis's
//! own clock. Losing all of it costs a pause of one burst; without Redis each process keeps to its part (INV-2).

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::cache::Cache;

/// Draws in advance are for less than a quarter of a second.
const SOON: Duration = Duration::from_millis(200);
/// So late a permit is not used any more: at a hundred requests a second two more would leave within a second than are allowed.
const TOO_LATE: Duration = Duration::from_millis(20);

/// A bucket and what is drawn from it.
#[derive(Debug, Clone)]
pub struct Draw {
    /// Its name within the target.
    pub key: String,
    /// How much passes at once when it is full.
    pub burst: u32,
    /// After which one more passes.
    pub interval: Duration,
    /// How much is drawn.
    pub weight: u32,
}

impl Draw {
    /// As much as is drawn in one step: no more than is there soon, or light requests would always be sooner.
    fn piece(&self) -> u32 {
        let soon = SOON.as_micros() / self.interval.as_micros().max(1);
        u32::try_from(soon).unwrap_or(u32::MAX).min(self.burst).max(1)
    }
}

/// Draws from all buckets or from none. What will be there within a quarter of a second is drawn in advance: the answer is how many
/// microseconds to wait until it is there; a negative one, after how many to ask again. Each bucket is the time at which it will be
/// full again; one that Redis has forgotten starts empty. KEYS are the buckets; ARGV has for each its burst, its interval in
/// microseconds, and the weight.
const SCRIPT: &str = "
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local wait = 0
local full_at = {}
for i, key in ipairs(KEYS) do
  local burst, interval, weight = tonumber(ARGV[3*i-2]), tonumber(ARGV[3*i-1]), tonumber(ARGV[3*i])
  local known = tonumber(redis.call('GET', key))
  local at = known or (now + burst * interval)
  local most = now + burst * interval + 250000
  if at > most then at = most end
  if at < now then at = now end
  full_at[i] = at + weight * interval
  local over = full_at[i] - (now + burst * interval)
  if over > wait then wait = over end
  if not known then
    redis.call('SET', key, string.format('%.0f', at), 'PX', math.ceil((at - now) / 1000) + 1000)
  end
end
if wait > 250000 then return -math.ceil(wait - 200000) end
for i, key in ipairs(KEYS) do
  redis.call('SET', key, string.format('%.0f', full_at[i]), 'PX', math.ceil((full_at[i] - now) / 1000) + 1000)
end
return math.ceil(wait)";

/// The buckets of one target.
pub struct SharedBuckets {
    cache: Arc<Cache>,
    target: String,
    /// The ledger whose processes share them; until it is known each keeps to its own part.
    installation: OnceLock<String>,
    script: redis::Script,
}

impl SharedBuckets {
    /// The buckets of `target`.
    #[must_use]
    pub fn new(cache: Arc<Cache>, target: &str) -> Self {
        let (installation, script) = (OnceLock::new(), redis::Script::new(SCRIPT));
        Self { cache, target: target.to_owned(), installation, script }
    }

    /// Says whose they are: other ledgers may share the Redis.
    pub fn belong_to(&self, installation: &str) {
        let _ = self.installation.set(installation.to_owned());
    }

    /// Draws, and waits until it is there; false when Redis does not answer. What is more than a bucket ever holds is drawn bit by
    /// bit.
    pub async fn take(&self, draws: &[Draw]) -> bool {
        if draws.is_empty() {
            return true;
        }
        let Some(installation) = self.installation.get() else { return false };
        // The braces keep the keys of a target on one node of a cluster.
        let prefix = format!("tailwater:quota:{{{installation}:{}}}:", self.target);
        let mut left: Vec<(&Draw, u32)> = draws.iter().map(|draw| (draw, draw.weight)).collect();
        // Once: on a machine that is always late nobody comes together with anybody.
        let mut may_be_late = true;
        while !left.is_empty() {
            let mut call = self.script.prepare_invoke();
            for (draw, weight) in &left {
                let interval = u64::try_from(draw.interval.as_micros()).unwrap_or(u64::MAX);
                let weight = (*weight).min(draw.piece());
                call.key(format!("{prefix}{}", draw.key)).arg(draw.burst).arg(interval).arg(weight);
            }
            let Some(wait) = self.cache.script::<i64>(&call).await else { return false };
            let granted = Instant::now() + Duration::from_micros(wait.unsigned_abs());
            sleep_until(granted).await;
            // Whoever comes late would come together with those whose time it is; what was drawn is lost.
            if wait > 0 && may_be_late && granted.elapsed() > TOO_LATE {
                may_be_late = false;
                continue;
            }
            if wait >= 0 {
                left.iter_mut().for_each(|(draw, weight)| *weight = weight.saturating_sub(draw.piece()));
                left.retain(|(_, weight)| *weight > 0);
            }
        }
        true
    }
}
