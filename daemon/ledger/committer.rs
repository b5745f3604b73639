//! The committing half of the writer: sends sealed batches, tells those who wait, and stops at the first one that is refused for its
//! content until everything has gone back.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};

use super::LedgerError;
use super::batch::Batch;
use super::commit::{Sealed, Session};
use super::erasures::Erasures;
use super::statements::Prepared;

/// A commit that takes longer means that the ledger is not there. Generous: a change of one row may touch every customer.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(300);
/// Transactions sent and not yet answered: the server finds the next one waiting when it has committed one.
const MAX_UNDER_WAY: usize = 2;
/// How often an idle session is asked whether it still stands.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// A batch, and who waits for it. It is kept until it is committed: should another one of the same commit be refused, it goes again.
pub struct Work {
    /// The batch.
    pub batch: Batch,
    /// Told the `seq` that its entries begin with.
    pub answer: oneshot::Sender<Result<i64, LedgerError>>,
}

/// What the committing task is given.
pub enum Handed {
    /// A sealed batch, and what it was made of, each with the offset of its first entry.
    Commit(Sealed, Vec<(Work, usize)>),
    /// To be tried out and taken back.
    Probe(Vec<Prepared>, oneshot::Sender<Result<(), LedgerError>>),
    /// Everything that was not committed goes back, in its order, with the reason.
    Return(oneshot::Sender<(Vec<Work>, Option<LedgerError>)>),
}

/// How the committing task stands.
#[derive(Debug, Default, Clone, Copy)]
pub struct UnderWay {
    /// Batches handed over and not yet committed.
    pub count: usize,
    /// The database refused one for its content: nothing more is committed until all that was handed over has gone back.
    pub broken: bool,
}

/// Who waits for a batch, once it is committed or not.
type Committed = (Result<(), LedgerError>, (i64, Option<i64>), Vec<(Work, usize)>);

/// See the module's text.
pub struct Committer {
    session: Session,
    noted: Arc<watch::Sender<UnderWay>>,
    erasures: Erasures,
    under_way: FuturesOrdered<BoxFuture<'static, Committed>>,
    returned: Vec<Work>,
    error: Option<LedgerError>,
}

impl Committer {
    /// Has committed nothing yet.
    pub fn new(session: Session, noted: Arc<watch::Sender<UnderWay>>, erasures: Erasures) -> Self {
        let (under_way, returned) = (FuturesOrdered::new(), Vec::new());
        Self { session, noted, erasures, under_way, returned, error: None }
    }

    /// Commits until nothing more comes or the session breaks.
    pub async fn run(mut self, mut handed: mpsc::Receiver<Handed>) {
        loop {
            tokio::select! {
                biased;
                Some(committed) = self.under_way.next(), if !self.under_way.is_empty() => {
                    if !self.done(committed) {
                        return;
                    }
                }
                next = handed.recv(), if self.under_way.len() < MAX_UNDER_WAY => {
                    let Some(next) = next else { break };
                    if !self.take(next).await {
                        return;
                    }
                }
                () = sleep(PROBE_INTERVAL) => if self.session.is_closed() { return },
            }
        }
        self.drain().await;
    }

    /// Takes what was handed over; false when the session must end.
    async fn take(&mut self, handed: Handed) -> bool {
        match handed {
            Handed::Commit(sealed, works) if self.error.is_some() => {
                drop(sealed);
                self.give_back(works);
                true
            }
            Handed::Commit(sealed, works) => {
                let about = (sealed.first, sealed.erasures);
                let ready = timeout(COMMIT_TIMEOUT, self.session.prepare(sealed)).await;
                match ready.unwrap_or(Err(LedgerError::WriterGone)) {
                    Ok(ready) => {
                        self.under_way.push_back(Box::pin(async move {
                            let result = timeout(COMMIT_TIMEOUT, ready.commit()).await;
                            (result.unwrap_or(Err(LedgerError::WriterGone)), about, works)
                        }));
                        true
                    }
                    Err(error) => self.done((Err(error), about, works)),
                }
            }
            Handed::Probe(statements, reply) => {
                let alive = self.drain().await;
                let tried = async { self.session.ready(statements).await?.try_out().await };
                let tried = timeout(COMMIT_TIMEOUT, tried).await;
                // Whoever asked has gone, and the session with it.
                let _ = reply.send(tried.unwrap_or(Err(LedgerError::WriterGone)));
                alive
            }
            Handed::Return(reply) => {
                let alive = self.drain().await;
                self.noted.send_modify(|under_way| under_way.broken = false);
                let _ = reply.send((std::mem::take(&mut self.returned), self.error.take()));
                alive
            }
        }
    }

    /// Waits for everything that was sent; false when the session must end.
    async fn drain(&mut self) -> bool {
        while let Some(committed) = self.under_way.next().await {
            if !self.done(committed) {
                return false;
            }
        }
        true
    }

    /// Tells those who wait; false when the session must end.
    fn done(&mut self, (result, (first, forgotten), works): Committed) -> bool {
        match result {
            Ok(()) => {
                // Before anybody hears that something of this batch, or a later one, is written.
                forgotten.into_iter().for_each(|count| self.erasures.heard(count));
                for (work, offset) in works {
                    let _ = work.answer.send(Ok(first + i64::try_from(offset).unwrap_or(i64::MAX)));
                }
                self.noted.send_modify(|under_way| under_way.count -= 1);
                true
            }
            // What was sent behind one that is refused fails with it.
            Err(error) if error.content().is_some() || self.error.is_some() => {
                self.error.get_or_insert(error);
                self.give_back(works);
                !self.session.is_closed()
            }
            Err(error) => {
                tracing::error!(%error, batches = works.len(), "ledger commit failed");
                false
            }
        }
    }

    fn give_back(&mut self, works: Vec<(Work, usize)>) {
        self.returned.extend(works.into_iter().map(|(work, _)| work));
        self.noted.send_modify(|under_way| {
            under_way.count -= 1;
            under_way.broken = true;
        });
    }
}
