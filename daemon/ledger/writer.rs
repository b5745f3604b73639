//! The writer task: commits whatever has gathered since the last commit, all of it in one transaction.
//!
//! A one-row commit costs as much as a thousand-row one, so concurrency becomes batching here and nowhere else.

use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::LedgerError;
use super::batch::Batch;
use super::commit::Session;
use super::statements::to_microseconds;

/// Batches waiting for the writer; beyond that the senders wait.
const QUEUE: usize = 256;
/// Entries committed together at the most (INV-8).
const MAX_ENTRIES: usize = 20_000;
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
    /// Starts the task; `lost` becomes true when its session is gone.
    #[must_use]
    pub fn start(session: Session, lost: watch::Sender<bool>) -> Self {
        let (queue, requests) = mpsc::channel(QUEUE);
        tokio::spawn(async move {
            serve(session, requests).await;
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

/// Serves until the queue closes or the session breaks.
async fn serve(mut session: Session, mut requests: mpsc::Receiver<Request>) {
    loop {
        let first = match timeout(PROBE_INTERVAL, requests.recv()).await {
            Ok(Some(request)) => request,
            Ok(None) => return,
            Err(_) if session.client().is_closed() => return,
            Err(_) => continue,
        };
        let mut gathered = vec![first];
        let mut entries = 0;
        while let Ok(request) = requests.try_recv() {
            entries += request.0.entries.len();
            gathered.push(request);
            if entries > MAX_ENTRIES {
                break;
            }
        }
        if !commit_gathered(&mut session, gathered).await {
            return;
        }
    }
}

/// Commits the batches together; false when the session is lost.
async fn commit_gathered(session: &mut Session, gathered: Vec<Request>) -> bool {
    let mut merged = Batch::default();
    let mut waiting = Vec::with_capacity(gathered.len());
    for (batch, answer) in gathered {
        waiting.push((answer, merged.entries.len()));
        merged.append(batch);
    }
    let now = to_microseconds(Timestamp::now());
    let result = match timeout(COMMIT_TIMEOUT, session.commit(merged, now)).await {
        Ok(result) => result,
        Err(_) => Err(LedgerError::WriterGone),
    };
    match result {
        Ok(first) => {
            for (answer, offset) in waiting {
                let _ = answer.send(Ok(first + i64::try_from(offset).unwrap_or(i64::MAX)));
            }
            true
        }
        Err(error) => {
            tracing::error!(error = %error, batches = waiting.len(), "ledger commit failed");
            drop(waiting);
            false
        }
    }
}
