//! The writer: commits whatever has gathered since the last commit, all of it in one transaction.
//!
//! A one-row commit costs as much as a thousand-row one, so concurrency becomes batching here and nowhere else. Two tasks:
//! one seals the next batch while the other waits for the database with the one before.

use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::LedgerError;
use super::batch::Batch;
use super::commit::{Sealed, Sealer, Session};
use super::statements::to_microseconds;

/// Batches waiting for the writer; beyond that the senders wait.
const QUEUE: usize = 256;
/// Entries or images after which nothing more is gathered into a commit (INV-8).
const MAX_GATHERED: usize = 400;
/// A commit that takes longer means that the ledger is not there. Generous: a change of one row may touch every customer.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(300);
/// How often an idle session is asked whether it still stands.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

type Request = (Batch, oneshot::Sender<Result<i64, LedgerError>>);

/// Hands batches to the writer task.
#[derive(Clone)]
pub struct Writer {
    queue: mpsc::Sender<Request>,
}

impl Writer {
    /// Starts the tasks; `lost` becomes true when the session is gone.
    #[must_use]
    pub fn start(session: Session, sealer: Sealer, lost: watch::Sender<bool>) -> Self {
        let (queue, requests) = mpsc::channel(QUEUE);
        let (hand_over, sealed) = mpsc::channel(1);
        tokio::spawn(seal(sealer, requests, hand_over));
        tokio::spawn(async move {
            commit(session, sealed).await;
            // Nobody may be listening any more: then nobody needs to know.
            let _ = lost.send(true);
        });
        Self { queue }
    }

    /// Commits `batch`; gives the `seq` its entries begin with. When it returns, the batch is durable.
    pub async fn write(&self, batch: Batch) -> Result<i64, LedgerError> {
        let (answer, result) = oneshot::channel();
        self.queue.send((batch, answer)).await.map_err(|_| LedgerError::WriterGone)?;
        result.await.map_err(|_| LedgerError::WriterGone)?
    }
}

/// A sealed batch, and who waits for it: each with the offset of its first entry.
type Gathered = (Sealed, Vec<(oneshot::Sender<Result<i64, LedgerError>>, usize)>);

/// Seals what has gathered whenever the committing task can take more.
async fn seal(mut sealer: Sealer, mut requests: mpsc::Receiver<Request>, hand_over: mpsc::Sender<Gathered>) {
    while let Some(first) = requests.recv().await {
        let Ok(permit) = hand_over.reserve().await else { return };
        let mut merged = Batch::default();
        let mut waiting = Vec::new();
        let mut next = Some(first);
        while let Some((batch, answer)) = next {
            waiting.push((answer, merged.entries.len()));
            merged.append(batch);
            let full = merged.entries.len().max(merged.images.len()) >= MAX_GATHERED;
            next = if full { None } else { requests.try_recv().ok() };
        }
        match sealer.seal(merged, to_microseconds(Timestamp::now())) {
            Ok(sealed) => permit.send((sealed, waiting)),
            Err(error) => {
                tracing::error!(%error, "the ledger's tree cannot be advanced");
                return;
            }
        }
    }
}

/// Commits until nothing more comes or the session breaks.
async fn commit(mut session: Session, mut batches: mpsc::Receiver<Gathered>) {
    loop {
        let (sealed, waiting) = match timeout(PROBE_INTERVAL, batches.recv()).await {
            Ok(Some(gathered)) => gathered,
            Ok(None) => return,
            Err(_) if session.is_closed() => return,
            Err(_) => continue,
        };
        let first = sealed.first;
        let result = timeout(COMMIT_TIMEOUT, session.commit(sealed)).await;
        if let Err(error) = result.unwrap_or(Err(LedgerError::WriterGone)) {
            tracing::error!(%error, batches = waiting.len(), "ledger commit failed");
            return;
        }
        for (answer, offset) in waiting {
            let _ = answer.send(Ok(first + i64::try_from(offset).unwrap_or(i64::MAX)));
        }
    }
}
