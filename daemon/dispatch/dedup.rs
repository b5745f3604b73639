//! Deduplication hints in Redis: which keys were delivered. A hit is confirmed by the ledger, a miss is decided by it,
//! and losing all of it costs time only (INV-2).

use std::sync::Arc;

use crate::cache::Cache;

/// Hints older than this are of no use: the lane has moved on.
const KEPT_SECONDS: u64 = 7 * 86_400;

/// See the module's text.
pub struct Dedup(Arc<Cache>);

impl Dedup {
    /// Hints in this Redis.
    #[must_use]
    pub fn new(cache: Arc<Cache>) -> Self {
        Self(cache)
    }

    /// True when the key may have been delivered: the ledger has to confirm it. Without Redis: false.
    pub async fn may_be_delivered(&self, key: &str) -> bool {
        let mut exists = redis::cmd("EXISTS");
        exists.arg(name(key));
        self.0.query(&exists).await.unwrap_or(false)
    }

    /// Notes that a key was delivered; called after the ledger has it.
    pub async fn delivered(&self, key: &str, seq: i64) {
        let mut set = redis::cmd("SET");
        set.arg(name(key)).arg(seq).arg("EX").arg(KEPT_SECONDS);
        // It is a hint: one that is missing costs nothing but a look into the ledger.
        let _: Option<redis::Value> = self.0.query(&set).await;
    }
}

fn name(key: &str) -> String {
    format!("tailwater:delivered:{key}")
}
