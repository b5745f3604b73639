//! The end of the stream on its way into the ledger: worked out, sent, durable, confirmed.

mod loading;
mod spill;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;
use serde_json::json;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Source;
use super::error::CaptureError;
use super::intake::{Intake, Prepared};
use super::load::Loading;
use super::load::quiet::quiet_writes;
use super::load::reader::Verdict;
use crate::event::{Lsn, Transaction, Unreadable};
use crate::image::Missing;
use crate::ledger::batch::{Batch, LoadWrite, QuietState};
use crate::ledger::command::{self, Asked};
use crate::ledger::entry::{EntryKind, NewEntry};
use crate::ledger::parked::{Parked, ParkedKind};
use crate::ledger::position::{Phase, Position};
use crate::ledger::{Ledger, LedgerError};
use crate::source::postgres::chunk::read_back;
use crate::source::postgres::stream::Confirmer;

/// A ledger that takes nothing for so long counts as away: the source must not wait for it (INV-9).
pub const STALLED: Duration = Duration::from_secs(10);

/// Objects that one transaction may touch and be worked out at once; more are spilled (INV-8).
const MAX_OBJECTS: usize = 1_000;

/// What came of transactions.
enum Worked {
    /// To be written.
    Batch(Box<Batch>),
    /// The transaction of this index touches too many objects.
    TooLarge(usize),
}

/// A batch that is durable now.
pub struct Written {
    end_lsn: Lsn,
    owes: bool,
    verdict: Option<oneshot::Sender<Verdict>>,
}

/// See the module's text.
pub struct Tail {
    source: Arc<Source>,
    ledger: Ledger,
    intake: Intake,
    /// Where the source stands once everything in flight is written.
    pub position: Position,
    /// Batches on their way, oldest first.
    pub in_flight: FuturesOrdered<BoxFuture<'static, Result<Written, LedgerError>>>,
    /// The load that is going on.
    pub loading: Option<Loading>,
    confirmer: Confirmer,
    wake: Arc<dyn Fn() + Send + Sync>,
    /// Taken over, and not worked out yet.
    waiting: VecDeque<Transaction>,
    /// A transaction whose spilled objects are being worked out.
    draining: Option<spill::Draining>,
    /// The transaction that is being spilled, and whether a row of it may have been deleted before.
    spilling: Option<(Lsn, bool)>,
    /// When a batch last became durable, or was sent with none before it.
    progress_at: Instant,
    /// Batches sent so far, and how many had been when the images last aged.
    sent: usize,
    aged_at: usize,
}

impl Tail {
    /// Nothing is on its way yet.
    #[must_use]
    pub fn new(
        source: &Arc<Source>,
        ledger: &Ledger,
        position: Position,
        loading: Option<Loading>,
        confirmer: Confirmer,
        wake: Arc<dyn Fn() + Send + Sync>,
    ) -> Self {
        let intake = source.intake(position.cluster.clone(), ledger);
        Self {
            source: source.clone(),
            ledger: ledger.clone(),
            intake,
            position,
            in_flight: FuturesOrdered::new(),
            loading,
            confirmer,
            wake,
            waiting: VecDeque::new(),
            draining: None,
            spilling: None,
            progress_at: Instant::now(),
            sent: 0,
            aged_at: 0,
        }
    }

    /// Takes transactions over; [`Tail::go_on`] works them out.
    pub fn take(&mut self, transactions: Vec<Transaction>) {
        self.waiting.extend(transactions);
    }

    /// True while something that was taken over is not worked out yet.
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.draining.is_some() || !self.waiting.is_empty()
    }

    /// Works out some of what was taken over and sends it on its way. Watermarks of a load are heeded in their place.
    pub async fn go_on(&mut self) -> Result<(), CaptureError> {
        if self.draining.is_some() {
            return self.drain().await;
        }
        let mut run = Vec::new();
        while let Some(next) = self.waiting.front() {
            let plain = next.marks.is_empty() && (self.is_quiet() || !self.is_part(next));
            if !plain && !run.is_empty() {
                break;
            }
            run.extend(self.waiting.pop_front());
            if !plain {
                break;
            }
        }
        match run.as_slice() {
            [] => Ok(()),
            [marked] if !marked.marks.is_empty() => self.with_marks(marked).await,
            [part] if !self.is_quiet() && self.is_part(part) => self.spill(part).await,
            plain => self.slice(plain).await,
        }
    }

    fn is_quiet(&self) -> bool {
        self.loading.as_ref().is_some_and(Loading::is_quiet)
    }

    /// A slice of a transaction, not the whole of it.
    fn is_part(&self, transaction: &Transaction) -> bool {
        !transaction.complete || self.is_continued(transaction)
    }

    /// A part of it is in the ledger already.
    fn is_continued(&self, transaction: &Transaction) -> bool {
        self.position.ordinal.is_some() && self.position.commit_lsn == transaction.commit_lsn
    }

    /// Anybody may write a message with our prefix beside changes of their own; those count all the same.
    async fn with_marks(&mut self, marked: &Transaction) -> Result<(), CaptureError> {
        let part = self.is_part(marked);
        if !marked.changes.is_empty() || !marked.truncated.is_empty() || !marked.unreadable.is_empty() || part
        {
            if part && !self.is_quiet() {
                self.spill(marked).await?;
            } else {
                self.slice(std::slice::from_ref(marked)).await?;
            }
        }
        if self.draining.is_some() {
            let rest = Transaction {
                changes: Vec::new(),
                truncated: Vec::new(),
                unreadable: Vec::new(),
                ..marked.clone()
            };
            self.waiting.push_front(rest);
            return Ok(());
        }
        self.marked(marked).await
    }

    async fn slice(&mut self, transactions: &[Transaction]) -> Result<(), CaptureError> {
        if !self.is_quiet() && transactions.iter().any(|transaction| !transaction.truncated.is_empty()) {
            for transaction in transactions {
                let rest = self.emptied(transaction).await?;
                Box::pin(self.slice(&[rest])).await?;
            }
            return Ok(());
        }
        let mut batch = match &self.loading {
            Some(loading) if loading.is_quiet() => {
                let load = loading.load.id;
                self.quiet(load, transactions).await?
            }
            _ => match self.worked_out(transactions, MAX_OBJECTS).await? {
                Worked::Batch(batch) => *batch,
                Worked::TooLarge(index) => return self.too_large(transactions, index).await,
            },
        };
        for transaction in transactions {
            self.park_rows(&transaction.unreadable, &mut batch);
            let continued = self.is_part(transaction) && transaction.complete;
            self.advance(transaction);
            if continued {
                batch.entry(tx_end(&self.source.flow.name, transaction));
            }
            batch.loads.extend(self.noted(transaction));
        }
        self.send(batch, None);
        Ok(())
    }

    /// Rows that nobody can go by wait for a person; one that is gone waits no more.
    fn park_rows(&self, rows: &[Unreadable], batch: &mut Batch) {
        for row in rows {
            let parked = Parked {
                kind: ParkedKind::Row,
                source: self.source.flow.name.clone(),
                place: row.table.to_string(),
                key: row.key.clone(),
                reason: row.reason.clone(),
                bytes: Some(row.bytes),
            };
            if row.gone {
                batch.healed_parked.push(parked.name());
            } else {
                tracing::error!(table = %row.table, key = row.key, reason = row.reason, "a row is parked");
                batch.park(parked);
            }
        }
    }

    /// What the load that is going on has to know of a transaction.
    fn noted(&mut self, transaction: &Transaction) -> Vec<LoadWrite> {
        let Some(current) = &mut self.loading else { return Vec::new() };
        current.windows.note(transaction);
        if current.is_quiet() {
            Vec::new()
        } else {
            loading::seen(current, &self.source.flow.name, transaction)
        }
    }

    fn advance(&mut self, transaction: &Transaction) {
        let position = &mut self.position;
        position.commit_lsn = transaction.commit_lsn;
        position.committed_at = Some(transaction.committed_at);
        if transaction.complete {
            position.ordinal = None;
            position.end_lsn = transaction.end_lsn;
        } else {
            position.ordinal = Some(transaction.last_ordinal);
        }
    }

    /// The batch of these transactions, with their events.
    async fn worked_out(
        &mut self,
        transactions: &[Transaction],
        most: usize,
    ) -> Result<Worked, CaptureError> {
        self.age().await?;
        loop {
            let settled = self.in_flight.is_empty();
            match self.intake.transactions(transactions, settled, most).await? {
                Prepared::Batch(batch) => return Ok(Worked::Batch(batch)),
                Prepared::TooLarge(index) => return Ok(Worked::TooLarge(index)),
                Prepared::Needs(missing) => self.load(missing).await?,
            }
        }
    }

    /// The ledger answers as of what is written, so that must be everything.
    async fn load(&mut self, missing: Missing) -> Result<(), CaptureError> {
        self.settle().await?;
        Ok(self.intake.load(missing).await?)
    }

    /// Lets go of images that have not been needed for a while.
    async fn age(&mut self) -> Result<(), CaptureError> {
        if self.intake.is_full() {
            // What is forgotten now was sent before the images last aged.
            while self.sent - self.in_flight.len() < self.aged_at {
                let Some(written) = self.in_flight.next().await else { break };
                self.written(written?);
            }
            self.intake.age();
            self.aged_at = self.sent;
        }
        Ok(())
    }

    /// The batch of these transactions without events.
    async fn quiet(&mut self, load: i64, transactions: &[Transaction]) -> Result<Batch, CaptureError> {
        let (mut quiet, moved) = quiet_writes(&self.source.flow.name, load, transactions);
        // A row that is gone by now has its own change on the way.
        let mut found = read_back(&self.source.database, &self.source.flow.mapping, &moved).await?;
        for write in &mut quiet {
            let relation: Arc<str> = write.relation.as_str().into();
            for (key, state) in &mut write.rows {
                if found.is_empty() {
                    break;
                }
                if let Some(row) = found.remove(&(relation.clone(), key.clone())) {
                    *state = QuietState::Whole(Arc::new(row));
                }
            }
        }
        Ok(Batch { quiet, ..Batch::default() })
    }

    /// Objects are to be told again: what is known of having told them is forgotten, and the next session goes through them.
    pub async fn tell_again(&mut self, asked: Vec<Asked>) -> Result<(), CaptureError> {
        if self.position.ordinal.is_some() {
            return Ok(());
        }
        self.settle().await?;
        let mut batch = Batch::default();
        // Ids of events made again at the same position must not be those of before.
        let round = asked.iter().map(|asked| asked.id).max().unwrap_or_default();
        for asked in asked {
            batch.append(command::batch(asked).0);
        }
        self.position.phase = Phase::Mapping;
        self.position.mapped = Some(json!({"round": round}));
        self.send(batch, None);
        self.settle().await
    }

    /// Nothing of ours was open when the server stood at `lsn`.
    pub fn idle(&mut self, lsn: Lsn) {
        self.position.end_lsn = lsn;
        self.send(Batch::default(), None);
    }

    fn send(&mut self, mut batch: Batch, verdict: Option<oneshot::Sender<Verdict>>) {
        batch.positions.push(self.position.clone());
        let (end_lsn, owes) = (self.position.end_lsn, !batch.deliveries.is_empty());
        let writer = self.ledger.writer().clone();
        let write = async move { writer.write(batch).await.map(|_| Written { end_lsn, owes, verdict }) };
        if self.in_flight.is_empty() {
            self.progress_at = Instant::now();
        }
        self.in_flight.push_back(Box::pin(write));
        self.sent += 1;
    }

    /// When the ledger will have taken nothing for [`STALLED`]; `None` while nothing waits.
    #[must_use]
    pub fn stalled_at(&self) -> Option<Instant> {
        (!self.in_flight.is_empty()).then(|| self.progress_at + STALLED)
    }

    /// Waits until everything sent is durable.
    pub async fn settle(&mut self) -> Result<(), CaptureError> {
        while let Some(written) = self.in_flight.next().await {
            self.written(written?);
        }
        Ok(())
    }

    /// A batch has become durable: the source and the dispatchers hear of it.
    pub fn written(&mut self, written: Written) {
        self.progress_at = Instant::now();
        self.confirmer.confirm(written.end_lsn);
        if let Some(verdict) = written.verdict {
            // The reader may have ended with the load.
            let _ = verdict.send(Verdict::Written);
        }
        if written.owes {
            (self.wake)();
        }
    }
}

/// Closes a transaction that was ledgered in slices, so that no reader takes half of it for the whole.
fn tx_end(source: &str, transaction: &Transaction) -> NewEntry {
    let fields = json!({
        "source": source, "commit_lsn": transaction.commit_lsn.to_string(), "xid": transaction.xid,
        "last_ordinal": transaction.last_ordinal,
    });
    NewEntry::new(EntryKind::TxEnd, None, fields)
}
