//! The writer: commits whatever has gathered since the last commit, all of it in one transaction.
//!
//! A one-row commit costs as much as a thousand-row one, so concurrency becomes batching here and nowhere else. Two tasks:
//! one seals the next batch while the other waits for the database with the one before.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};

use super::LedgerError;
use super::batch::Batch;
use super::commit::{Sealed, Sealer, Session};
use super::erasures::Erasures;
use super::statements::to_microseconds;
use super::statistics::Growth;
use super::turn::Turn;

/// Batches waiting for the writer; beyond that the senders wait.
const QUEUE: usize = 256;
/// Entries or images after which nothing more is gathered into a commit (INV-8).
const MAX_GATHERED: usize = 400;
/// A commit that takes longer means that the ledger is not there. Generous: a change of one row may touch every customer.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(300);
/// Transactions sent and not yet answered: the server finds the next one waiting when it has committed one.
const MAX_UNDER_WAY: usize = 2;
/// How often an idle session is asked whether it still stands.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

type Request = (Batch, oneshot::Sender<Result<i64, LedgerError>>);

/// What it takes to seal batches.
pub struct Writing {
    /// Gives them their places.
    pub sealer: Sealer,
    /// Tells whose turn it is.
    pub turn: Turn,
    /// Told how many rows there are more.
    pub growth: Growth,
    /// Told of subjects that are forgotten.
    pub erasures: Erasures,
}

/// Hands batches to the writer task.
#[derive(Clone)]
pub struct Writer {
    queue: mpsc::Sender<Request>,
}

impl Writer {
    /// Starts the tasks; `lost` becomes true when the session is gone.
    #[must_use]
    pub fn start(session: Session, writing: Writing, lost: Arc<watch::Sender<bool>>) -> Self {
        let (queue, requests) = mpsc::channel(QUEUE);
        let erasures = writing.erasures.clone();
        let (hand_over, sealed) = mpsc::channel(1);
        let under_way = Arc::new(watch::Sender::new(0));
        let sealing = Sealing { writing, under_way: under_way.subscribe(), noted: under_way.clone() };
        tokio::spawn(async move {
            if let Err(error) = sealing.run(requests, hand_over).await {
                tracing::error!(%error, "nothing more can be sealed");
            }
        });
        tokio::spawn(async move {
            commit(session, sealed, (&under_way, &erasures)).await;
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

/// Who waits for a batch, each with the offset of its first entry.
type Waiting = Vec<(oneshot::Sender<Result<i64, LedgerError>>, usize)>;
/// A sealed batch, and who waits for it.
type Gathered = (Sealed, Waiting);

/// Seals what has gathered whenever the committing task can take more.
struct Sealing {
    writing: Writing,
    /// Batches handed over and not yet committed.
    under_way: watch::Receiver<usize>,
    noted: Arc<watch::Sender<usize>>,
}

impl Sealing {
    async fn run(
        mut self,
        mut requests: mpsc::Receiver<Request>,
        hand_over: mpsc::Sender<Gathered>,
    ) -> Result<(), LedgerError> {
        loop {
            let first = tokio::select! {
                first = requests.recv() => first,
                // An idle process that had the ledger to itself lets the newcomer in.
                () = self.writing.turn.wanted(), if self.writing.turn.is_held() => {
                    self.give_turn().await?;
                    continue;
                }
            };
            let Some(first) = first else { return Ok(()) };
            let Ok(permit) = hand_over.reserve().await else { return Ok(()) };
            if let Some(head) = self.writing.turn.take().await? {
                self.writing.erasures.heard(head.erasures);
                self.writing.sealer.follow(head);
            }
            let mut merged = Batch::default();
            let mut waiting = Vec::new();
            let mut next = Some(first);
            while let Some((batch, answer)) = next {
                waiting.push((answer, merged.entries.len()));
                merged.append(batch);
                let full = merged.entries.len().max(merged.images.len()) >= MAX_GATHERED;
                next = if full { None } else { requests.try_recv().ok() };
            }
            if self.writing.sealer.must_settle() {
                self.settled().await?;
            }
            self.writing.sealer.fetch_keys(self.writing.turn.client(), &mut merged).await?;
            self.writing.growth.grew(merged.rows());
            let sealed = self.writing.sealer.seal(
                merged,
                to_microseconds(Timestamp::now()),
                !self.writing.turn.is_alone(),
            )?;
            self.noted.send_modify(|under_way| *under_way += 1);
            permit.send((sealed, waiting));
            if hand_over.is_closed() {
                // Nobody takes what was just handed over: those who wait for it hear of that when this task ends.
                return Ok(());
            }
            if !self.writing.turn.is_alone() {
                tokio::select! {
                    given = self.give_turn() => given?,
                    // The commit failed, and the session is over.
                    () = hand_over.closed() => return Ok(()),
                }
            }
        }
    }

    /// Waits until everything that was handed over is committed.
    async fn settled(&mut self) -> Result<(), LedgerError> {
        let settled = self.under_way.wait_for(|under_way| *under_way == 0).await;
        settled.map(|_| ()).map_err(|_| LedgerError::WriterGone)
    }

    async fn give_turn(&mut self) -> Result<(), LedgerError> {
        self.settled().await?;
        self.writing.turn.give().await
    }
}

/// Who waits for a batch, once it is committed or not.
type Committed = (Result<(), LedgerError>, (i64, Option<i64>), Waiting);

/// Commits until nothing more comes or the session breaks.
async fn commit(
    mut session: Session,
    mut batches: mpsc::Receiver<Gathered>,
    (noted, erasures): (&watch::Sender<usize>, &Erasures),
) {
    let mut under_way: FuturesOrdered<BoxFuture<'static, Committed>> = FuturesOrdered::new();
    loop {
        tokio::select! {
            biased;
            Some(committed) = under_way.next(), if !under_way.is_empty() => {
                if !answer(committed, erasures) {
                    return;
                }
                noted.send_modify(|under_way| *under_way -= 1);
            }
            gathered = batches.recv(), if under_way.len() < MAX_UNDER_WAY => {
                let Some((sealed, waiting)) = gathered else { break };
                let (first, forgotten) = (sealed.first, sealed.erasures);
                let ready = timeout(COMMIT_TIMEOUT, session.prepare(sealed)).await;
                match ready.unwrap_or(Err(LedgerError::WriterGone)) {
                    Ok(ready) => under_way.push_back(Box::pin(async move {
                        let result = timeout(COMMIT_TIMEOUT, ready.commit()).await;
                        (result.unwrap_or(Err(LedgerError::WriterGone)), (first, forgotten), waiting)
                    })),
                    Err(error) => {
                        answer((Err(error), (first, forgotten), waiting), erasures);
                        return;
                    }
                }
            }
            () = sleep(PROBE_INTERVAL) => if session.is_closed() { return },
        }
    }
    while let Some(committed) = under_way.next().await {
        if !answer(committed, erasures) {
            return;
        }
    }
}

/// Tells those who wait; false when the session must end.
fn answer((result, (first, forgotten), waiting): Committed, erasures: &Erasures) -> bool {
    if let Err(error) = result {
        tracing::error!(%error, batches = waiting.len(), "ledger commit failed");
        return false;
    }
    // Before anybody hears that something of this batch, or a later one, is written.
    forgotten.into_iter().for_each(|count| erasures.heard(count));
    for (answer, offset) in waiting {
        let _ = answer.send(Ok(first + i64::try_from(offset).unwrap_or(i64::MAX)));
    }
    true
}
