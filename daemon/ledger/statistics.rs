//! What the planner knows of a ledger that grows fast.
//!
//! PostgreSQL counts a table's rows anew once a minute at most. Until then it takes a new ledger to be as empty as it was, and goes on
//! with plans that read all of it: a million rows are there within that minute. So they are counted whenever there are twice as
//! many as the last time.

use tokio::sync::watch;

use super::LedgerError;
use crate::pg::Database;

/// Rows after which they are counted for the first time.
const FIRST: usize = 1_000;

/// Rows written since the process began.
pub struct Growth {
    rows: usize,
    next: usize,
    doubled: watch::Sender<()>,
}

impl Growth {
    /// Counts from now on, and lets the planner know, in a task that ends with it.
    #[must_use]
    pub fn begin(database: Database) -> Self {
        let (doubled, told) = watch::channel(());
        tokio::spawn(follow(database, told));
        Self { rows: 0, next: FIRST, doubled }
    }

    /// Notes rows that are being written.
    pub fn grew(&mut self, rows: usize) {
        self.rows = self.rows.saturating_add(rows);
        if self.rows >= self.next {
            self.next = self.rows.saturating_mul(2);
            self.doubled.send_replace(());
        }
    }
}

async fn follow(database: Database, mut told: watch::Receiver<()>) {
    while told.changed().await.is_ok() {
        if let Err(error) = analyze(&database).await {
            tracing::debug!(%error, "the ledger's rows could not be counted; autovacuum will do it");
        }
    }
}

/// In a session of its own: nobody waits for it.
async fn analyze(database: &Database) -> Result<(), LedgerError> {
    let client = database.connect("tailwater-ledger-statistics").await?;
    Ok(client.batch_execute("select count_rows()").await?)
}
