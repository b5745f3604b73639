//! The writer: commits whatever has gathered since the last commit, all of it in one transaction.
//!
//! A one-row commit costs as much as a thousand-row one, so concurrency becomes batching here and nowhere else. Two tasks:
//! one seals the next batch while the other waits for the database with the one before (`committer`).
//!
//! A batch that the database refuses for its content is found and mended here, whoever made it (INV-14): what was handed over goes
//! back, each batch is committed by itself, and of one that is still refused the parts that cannot be written are taken out
//! (`isolate`).

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};

use super::LedgerError;
use super::batch::Batch;
use super::commit::{Sealer, Session};
use super::committer::{Committer, Handed, UnderWay, Work};
use super::erasures::Erasures;
use super::head::Head;
use super::isolate::{Part, only, parts, without};
use super::statements::to_microseconds;
use super::statistics::Growth;
use super::turn::Turn;

/// Batches waiting for the writer; beyond that the senders wait.
const QUEUE: usize = 256;
/// Entries or images after which nothing more is gathered into a commit (INV-8).
const MAX_GATHERED: usize = 400;
/// Probes after which it is given up to find out what of a batch is refused.
const MOST_PROBES: usize = 4_000;

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
    queue: mpsc::Sender<Work>,
}

impl Writer {
    /// Starts the tasks; `lost` becomes true when the session is gone.
    #[must_use]
    pub fn start(session: Session, writing: Writing, lost: Arc<watch::Sender<bool>>) -> Self {
        let (queue, requests) = mpsc::channel(QUEUE);
        let (hand_over, handed) = mpsc::channel(1);
        let under_way = Arc::new(watch::Sender::new(UnderWay::default()));
        let committer = Committer::new(session, under_way.clone(), writing.erasures.clone());
        let sealing = Sealing { writing, under_way: under_way.subscribe(), noted: under_way, hand_over };
        tokio::spawn(async move {
            if let Err(error) = sealing.run(requests).await {
                tracing::error!(%error, "nothing more can be sealed");
            }
        });
        tokio::spawn(async move {
            committer.run(handed).await;
            // Nobody may be listening any more: then nobody needs to know.
            let _ = lost.send(true);
        });
        Self { queue }
    }

    /// Commits `batch`; gives the `seq` its entries begin with. When it returns, the batch is durable, but for what of it cannot be
    /// written at all: that is named in the ledger, and waits for a person.
    pub async fn write(&self, batch: Batch) -> Result<i64, LedgerError> {
        let (answer, result) = oneshot::channel();
        self.queue.send(Work { batch, answer }).await.map_err(|_| LedgerError::WriterGone)?;
        result.await.map_err(|_| LedgerError::WriterGone)?
    }
}

/// Seals whatever has gathered whenever the committing task can take more.
struct Sealing {
    writing: Writing,
    under_way: watch::Receiver<UnderWay>,
    noted: Arc<watch::Sender<UnderWay>>,
    hand_over: mpsc::Sender<Handed>,
}

impl Sealing {
    async fn run(mut self, mut requests: mpsc::Receiver<Work>) -> Result<(), LedgerError> {
        loop {
            let mut under_way = self.under_way.clone();
            let first = tokio::select! {
                first = requests.recv() => first,
                // An idle process that had the ledger to itself lets the newcomer in.
                () = self.writing.turn.wanted(), if self.writing.turn.is_held() => {
                    self.give_turn().await?;
                    continue;
                }
                broken = async { under_way.wait_for(|under_way| under_way.broken).await.is_ok() } => {
                    if !broken {
                        return Err(LedgerError::WriterGone);
                    }
                    self.mend().await?;
                    continue;
                }
            };
            let Some(first) = first else {
                // Those who wait for what was handed over shall hear of it.
                self.settled().await?;
                return Ok(());
            };
            let hand_over = self.hand_over.clone();
            let Ok(permit) = hand_over.reserve().await else { return Ok(()) };
            if let Some(head) = self.writing.turn.take().await? {
                self.writing.erasures.heard(head.erasures);
                self.writing.sealer.follow(head);
            }
            let mut merged = Batch::default();
            let mut works = Vec::new();
            let mut next = Some(first);
            while let Some(work) = next {
                let offset = merged.entries.len();
                merged.append(work.batch.clone());
                works.push((work, offset));
                let full = merged.entries.len().max(merged.images.len()) >= MAX_GATHERED;
                next = if full { None } else { requests.try_recv().ok() };
            }
            if self.writing.sealer.must_settle() {
                self.settled().await?;
            }
            let sealed = self.seal(merged).await?;
            permit.send(Handed::Commit(sealed, works));
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

    async fn seal(&mut self, mut batch: Batch) -> Result<super::commit::Sealed, LedgerError> {
        let Writing { sealer, turn, growth, .. } = &mut self.writing;
        sealer.fetch_keys(turn.client(), &mut batch).await?;
        growth.grew(batch.rows());
        let sealed = sealer.seal(batch, to_microseconds(Timestamp::now()), !turn.is_alone())?;
        self.noted.send_modify(|under_way| under_way.count += 1);
        Ok(sealed)
    }

    /// Waits until everything that was handed over is committed.
    async fn settled(&mut self) -> Result<(), LedgerError> {
        while self.is_broken_when_settled().await? {
            self.mend().await?;
        }
        Ok(())
    }

    async fn is_broken_when_settled(&mut self) -> Result<bool, LedgerError> {
        let settled = self.under_way.wait_for(|under_way| under_way.count == 0).await;
        settled.map(|under_way| under_way.broken).map_err(|_| LedgerError::WriterGone)
    }

    async fn give_turn(&mut self) -> Result<(), LedgerError> {
        self.settled().await?;
        self.writing.turn.give().await
    }

    /// Takes back what was not committed, and commits each batch by itself, without what of it cannot be.
    async fn mend(&mut self) -> Result<(), LedgerError> {
        let (works, error) = self.take_back().await?;
        let reason = error.and_then(|error| error.content()).unwrap_or_default();
        tracing::warn!(
            batches = works.len(),
            reason,
            "the ledger refuses something for its content; it is found and parked, and everything else goes on"
        );
        for Work { batch, answer } in works {
            let written = self.alone(batch).await?;
            // Nobody may wait for it any more.
            let _ = answer.send(written);
        }
        Ok(())
    }

    async fn take_back(&mut self) -> Result<(Vec<Work>, Option<LedgerError>), LedgerError> {
        let (reply, returned) = oneshot::channel();
        self.hand_over.send(Handed::Return(reply)).await.map_err(|_| LedgerError::WriterGone)?;
        let returned = returned.await.map_err(|_| LedgerError::WriterGone)?;
        let client = self.writing.turn.client();
        let sql = "select coalesce(nullif(current_setting('tailwater.batch', true), ''), '0')";
        let batches: String = client.query_one(sql, &[]).await?.try_get(0)?;
        let head = Head::load(client).await?;
        self.writing.sealer.reset(head, batches.parse().unwrap_or_default());
        Ok(returned)
    }

    /// Commits one batch by itself; the inner error is its own.
    async fn alone(&mut self, batch: Batch) -> Result<Result<i64, LedgerError>, LedgerError> {
        let error = match self.attempt(batch.clone()).await? {
            Ok(first) => return Ok(Ok(first)),
            Err(error) => error,
        };
        let refused = self.refused_parts(&batch).await?;
        if refused.is_empty() {
            return Ok(Err(error));
        }
        for (part, reason) in &refused {
            tracing::error!(part = ?part, reason, "the ledger cannot hold this; it is parked: tailwater parked list");
        }
        self.attempt(without(batch, &refused)).await
    }

    async fn attempt(&mut self, batch: Batch) -> Result<Result<i64, LedgerError>, LedgerError> {
        let sealed = self.seal(batch).await?;
        let (answer, result) = oneshot::channel();
        let work = Work { batch: Batch::default(), answer };
        let handed = Handed::Commit(sealed, vec![(work, 0)]);
        self.hand_over.send(handed).await.map_err(|_| LedgerError::WriterGone)?;
        if !self.is_broken_when_settled().await? {
            return Ok(Ok(result.await.map_err(|_| LedgerError::WriterGone)??));
        }
        let (_, error) = self.take_back().await?;
        Ok(Err(error.unwrap_or(LedgerError::WriterGone)))
    }

    /// Parts of a batch that the database refuses whatever else is in it, each with the reason: by halves.
    async fn refused_parts(&mut self, batch: &Batch) -> Result<Vec<(Part, String)>, LedgerError> {
        let mut refused = Vec::new();
        let mut open = vec![parts(batch)];
        let mut probes = 0;
        while let Some(some) = open.pop() {
            probes += 1;
            let Some(reason) = self.probe(only(batch, &some)).await? else { continue };
            if probes > MOST_PROBES {
                return Ok(Vec::new());
            }
            match some.as_slice() {
                [] => {}
                [part] => refused.push((*part, reason)),
                several => {
                    let (left, right) = several.split_at(several.len() / 2);
                    open.extend([right.to_vec(), left.to_vec()]);
                }
            }
        }
        Ok(refused)
    }

    /// Why the database refuses a batch for its content; nothing of the batch stays.
    async fn probe(&mut self, batch: Batch) -> Result<Option<String>, LedgerError> {
        let statements = self.writing.sealer.probe(batch, to_microseconds(Timestamp::now()));
        let (reply, tried) = oneshot::channel();
        self.hand_over.send(Handed::Probe(statements, reply)).await.map_err(|_| LedgerError::WriterGone)?;
        match tried.await.map_err(|_| LedgerError::WriterGone)? {
            Ok(()) => Ok(None),
            Err(error) => error.content().map(Some).ok_or(error),
        }
    }
}
