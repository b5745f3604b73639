//! How many data subjects have been forgotten, as far as this process knows: what was read from the ledger before the last of them may be
//! theirs.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use tokio_postgres::Client;

use super::LedgerError;

/// Why a delivery is not made any more whose subject was forgotten.
pub const ERASED: &str = "erased by an operator";

/// See the module's text.
#[derive(Debug, Clone, Default)]
pub struct Erasures(Arc<AtomicI64>);

impl Erasures {
    /// So many.
    #[must_use]
    pub fn count(&self) -> i64 {
        self.0.load(Ordering::Acquire)
    }

    /// There were so many at least.
    pub fn heard(&self, count: i64) {
        self.0.fetch_max(count, Ordering::AcqRel);
    }
}

/// True when the delivery was given up because its subject was forgotten.
pub async fn is_erased(client: &Client, delivery: i64) -> Result<bool, LedgerError> {
    let sql = "select exists (select from delivery where id = $1 and reason = $2)";
    Ok(client.query_one(sql, &[&delivery, &ERASED]).await?.try_get(0)?)
}
