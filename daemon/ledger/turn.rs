//! Whose turn it is to write. The tree has one end, so one process writes at a time: it holds an advisory lock while it does. One
//! that is alone keeps the lock; where there are others, it is let go after each commit, and goes round in the order in which
//! they asked.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_postgres::Client;

use super::commit::Session;
use super::head::Head;
use super::membership::Standing;
use super::{LedgerError, WRITER_LOCK};

/// See the module's text.
pub struct Turn {
    client: Arc<Client>,
    standing: Option<watch::Receiver<Standing>>,
    held: bool,
}

impl Turn {
    /// The turn of a session; without a standing the process is alone by force.
    #[must_use]
    pub fn new(session: &Session, standing: Option<watch::Receiver<Standing>>) -> Self {
        Self { client: session.client().clone(), standing, held: false }
    }

    /// The writing session.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// True while no other process writes.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        self.standing.as_ref().is_none_or(|standing| standing.borrow().others.writing == 0)
    }

    /// True while this process may write.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.held
    }

    /// Waits for its turn; gives the ledger's end as the others have left it, if it was away.
    pub async fn take(&mut self) -> Result<Option<Head>, LedgerError> {
        if self.held {
            return Ok(None);
        }
        self.client.execute("select pg_advisory_lock($1)", &[&WRITER_LOCK]).await?;
        self.held = true;
        Ok(Some(Head::load(&*self.client).await?))
    }

    /// Lets the others write. Everything of this process must have been committed.
    pub async fn give(&mut self) -> Result<(), LedgerError> {
        if self.held {
            self.client.execute("select pg_advisory_unlock($1)", &[&WRITER_LOCK]).await?;
            self.held = false;
        }
        Ok(())
    }

    /// Ends when there is another process.
    pub async fn wanted(&self) {
        let Some(standing) = &self.standing else { return std::future::pending().await };
        let mut standing = standing.clone();
        if standing.wait_for(|standing| standing.others.writing > 0).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
