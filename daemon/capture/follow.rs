//! Follows a source: connect, check, load if need be, stream, and again after a break.
//!
//! INV-1: a position is confirmed to the source only after the ledger has committed everything up to it, the position
//! itself included. INV-9: when the ledger does not answer, the connection is closed, so that the ERP can stop.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::Source;
use super::first_load::FirstLoad;
use super::intake::{Intake, IntakeError, Prepared};
use crate::dispatch::retry::backoff;
use crate::event::{Lsn, Transaction};
use crate::ledger::batch::Batch;
use crate::ledger::entry::{EntryKind, NewEntry};
use crate::ledger::position::{Phase, Position};
use crate::ledger::{Ledger, LedgerError, images};
use crate::ops::pulse::Pulse;
use crate::pg::{ConnectError, describe};
use crate::source::postgres::catalog::{self, Finding, Severity};
use crate::source::postgres::connection::{ConnectionError, ReplicationConnection};
use crate::source::postgres::copy::CopyError;
use crate::source::postgres::slot::{self, Discontinuity};
use crate::source::postgres::stream::{Confirmer, Delivered, Stream, StreamEnd};
use crate::source::postgres::transaction::{Assembler, SliceLimits};
use crate::source::postgres::types::Types;

/// How long a server that wants to stop waits for the ledger before its connection is closed.
const PATIENCE: Duration = Duration::from_millis(1_000);
/// How often an idle position is noted when nobody asks.
const IDLE_WRITE_INTERVAL: Duration = Duration::from_secs(1);
/// Batches on their way into the ledger while the next one is worked out.
const MAX_IN_FLIGHT: usize = 2;
/// Longest time without a sign of life to the watchdog.
const BEAT_INTERVAL: Duration = Duration::from_secs(2);

/// Why capturing stopped, by remedy.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The ledger: everything starts again once it is back.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The source cannot be read safely: a person has to act.
    #[error(transparent)]
    Discontinuity(#[from] Discontinuity),
    /// The catalogue forbids it.
    #[error("source \"{source_name}\" is not safe to read:\n{}", list(.findings))]
    Unsafe {
        /// Source.
        source_name: String,
        /// What was found.
        findings: Vec<Finding>,
    },
    /// The content cannot be read: going on would lose rows.
    #[error("{0}")]
    Content(String),
    /// The source is away: tried again.
    #[error("{0}")]
    Away(String),
}

fn list(findings: &[Finding]) -> String {
    let lines = findings
        .iter()
        .map(|finding| format!("  {}: {}\n    next: {}", finding.subject, finding.what, finding.remedy));
    lines.collect::<Vec<_>>().join("\n")
}

impl From<tokio_postgres::Error> for CaptureError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Away(format!("source: {}", describe(&error)))
    }
}

impl From<ConnectError> for CaptureError {
    fn from(error: ConnectError) -> Self {
        Self::Away(format!("source: {error}"))
    }
}

impl From<ConnectionError> for CaptureError {
    fn from(error: ConnectionError) -> Self {
        Self::Away(format!("source: {error}"))
    }
}

impl From<CopyError> for CaptureError {
    fn from(error: CopyError) -> Self {
        Self::Content(error.to_string())
    }
}

impl From<StreamEnd> for CaptureError {
    fn from(end: StreamEnd) -> Self {
        match end {
            StreamEnd::Connection(error) => error.into(),
            StreamEnd::Content(error) => Self::Content(format!("source stream: {error}")),
        }
    }
}

impl From<IntakeError> for CaptureError {
    fn from(error: IntakeError) -> Self {
        match error {
            IntakeError::Ledger(error) => error.into(),
            other => Self::Content(other.to_string()),
        }
    }
}

/// Follows one source.
pub struct Follower {
    /// The source.
    pub source: Arc<Source>,
    /// The ledger.
    pub ledger: Ledger,
    /// Told whenever something new is owed.
    pub wake: watch::Sender<u64>,
    /// Shows that work goes on.
    pub pulse: Pulse,
    /// Becomes true once the stream runs.
    pub streaming: watch::Sender<bool>,
}

impl Follower {
    /// Runs until the ledger fails or a person has to act; a source that is away is tried again.
    pub async fn run(self) -> Result<(), CaptureError> {
        images::create_indexes(self.ledger.reader(), &self.source.mapping.lookup_columns()).await?;
        let mut failures = 0;
        loop {
            let started = Instant::now();
            let Err(error) = self.session().await else { return Ok(()) };
            let CaptureError::Away(reason) = error else { return Err(error) };
            if started.elapsed() > Duration::from_secs(30) {
                failures = 0;
            }
            failures += 1;
            let wait = backoff(failures, rand::random()).min(Duration::from_secs(10));
            tracing::warn!(source_name = %self.source.name, reason, wait_ms = %wait.as_millis(), "source is away");
            self.pulse.beat();
            tokio::select! {
                () = sleep(wait) => {}
                () = self.ledger.lost() => return Err(LedgerError::WriterGone.into()),
            }
        }
    }

    /// One connection, from its checks to its end.
    async fn session(&self) -> Result<(), CaptureError> {
        self.pulse.beat();
        let client = self.source.database.connect("tailwater-source").await?;
        self.check(&client).await?;
        let mut connection = ReplicationConnection::open(&self.source.database).await?;
        let cluster = slot::identify(&mut connection).await?;
        let known = Position::load(self.ledger.reader(), &self.source.name).await?;
        let load =
            FirstLoad { source: &self.source, ledger: &self.ledger, client: &client, pulse: &self.pulse };
        let mut position = match known {
            Some(position) if !matches!(position.phase, Phase::Creating | Phase::Copying) => position,
            earlier => load.copy(&mut connection, &cluster, earlier.as_ref()).await?,
        };
        if let Some(problem) = slot::check_continuity(&client, &cluster, &self.source.slot, &position).await?
        {
            return Err(problem.into());
        }
        if position.phase == Phase::Mapping {
            position = load.map(position, &|| self.wake_all()).await?;
        }
        let interval = status_interval(&client).await?;
        let types = Types::load(&client).await?;
        drop(client);
        let sql = slot::start_statement(&self.source.slot, &self.source.publication, position.end_lsn);
        let streaming = connection.start_streaming(&sql).await?;
        let ledgered = (position.commit_lsn, position.ordinal);
        let assembler = Assembler::new(self.source.mapping.clone(), types, SliceLimits::default(), ledgered);
        let stream = Stream::start(streaming, assembler, position.end_lsn, interval);
        tracing::info!(source_name = %self.source.name, from = %position.end_lsn, "streaming");
        self.streaming.send_replace(true);
        self.stream(stream, position).await
    }

    async fn check(&self, client: &tokio_postgres::Client) -> Result<(), CaptureError> {
        let source = &self.source;
        let mut findings = catalog::check(client, &source.mapping, &source.publication, &source.slot).await?;
        findings.retain(|finding| finding.severity == Severity::Error);
        if findings.is_empty() {
            return Ok(());
        }
        Err(CaptureError::Unsafe { source_name: source.name.clone(), findings })
    }

    async fn stream(&self, stream: Stream, position: Position) -> Result<(), CaptureError> {
        let intake = Intake::new(self.source.clone(), position.cluster.clone(), self.ledger.clone());
        let confirmer = stream.confirmer();
        let in_flight = FuturesOrdered::new();
        let mut tail = Tail { follower: self, intake, position, in_flight, confirmer, sent: 0, aged_at: 0 };
        let mut stream = Some(stream);
        let mut idle_at: Option<Lsn> = None;
        let mut idle_written = Instant::now();
        while let Some(open) = &mut stream {
            self.pulse.beat();
            let wait = if idle_at.is_some() { IDLE_WRITE_INTERVAL } else { BEAT_INTERVAL };
            let delivered = tokio::select! {
                Some(written) = tail.in_flight.next(), if !tail.in_flight.is_empty() => {
                    tail.written(written?);
                    continue;
                }
                next = open.next(), if tail.in_flight.len() < MAX_IN_FLIGHT => next?,
                () = self.ledger.lost() => return Err(LedgerError::WriterGone.into()),
                () = sleep(wait) => Delivered::default(),
            };
            if !delivered.transactions.is_empty() {
                let taken = tail.take(&delivered.transactions);
                self.yielding(&mut stream, delivered.urgent, taken).await?;
            }
            idle_at = delivered.idle_at.or(idle_at).filter(|lsn| *lsn > tail.position.end_lsn);
            if let Some(lsn) = idle_at
                && (delivered.urgent || idle_written.elapsed() >= IDLE_WRITE_INTERVAL)
            {
                tail.idle(lsn);
                idle_at = None;
                idle_written = Instant::now();
            }
            if delivered.urgent {
                self.yielding(&mut stream, true, tail.settle()).await?;
            }
        }
        Err(CaptureError::Away("the server wanted to stop while the ledger was slow".into()))
    }

    /// Carries out `work` on the ledger. When the server wants to stop and the work takes too long, the connection is
    /// closed first (INV-9); the work still comes to its end, so that nothing is half known.
    async fn yielding(
        &self,
        stream: &mut Option<Stream>,
        urgent: bool,
        work: impl Future<Output = Result<(), CaptureError>>,
    ) -> Result<(), CaptureError> {
        let mut work = std::pin::pin!(self.pulse.during(work));
        let wanted = async {
            match stream.as_ref() {
                Some(stream) if !urgent => stream.urgent().await,
                _ => {}
            }
            sleep(PATIENCE).await;
        };
        tokio::select! {
            done = &mut work => return done,
            () = wanted => {}
        }
        tracing::warn!(source_name = %self.source.name, "the ledger is slow and the server waits; the connection is closed");
        *stream = None;
        tokio::select! {
            done = work => done,
            () = self.ledger.lost() => Err(LedgerError::WriterGone.into()),
        }
    }

    fn wake_all(&self) {
        self.wake.send_modify(|count| *count = count.wrapping_add(1));
    }
}

/// A batch that is durable now.
struct Written {
    end_lsn: Lsn,
    owes: bool,
}

/// The end of the stream that is on its way into the ledger.
struct Tail<'a> {
    follower: &'a Follower,
    intake: Intake,
    /// Where the source stands once everything in flight is written.
    position: Position,
    in_flight: FuturesOrdered<BoxFuture<'a, Result<Written, LedgerError>>>,
    confirmer: Confirmer,
    /// Batches sent so far, and how many had been when the images last aged.
    sent: usize,
    aged_at: usize,
}

impl Tail<'_> {
    /// Works transactions out, or slices of one, and sends them on their way.
    async fn take(&mut self, transactions: &[Transaction]) -> Result<(), CaptureError> {
        if self.intake.is_full() {
            // What is forgotten now was sent before the images last aged.
            while self.sent - self.in_flight.len() < self.aged_at {
                let Some(written) = self.in_flight.next().await else { break };
                self.written(written?);
            }
            self.intake.age();
            self.aged_at = self.sent;
        }
        let mut batch = loop {
            let settled = self.in_flight.is_empty();
            match self.intake.transactions(transactions, settled).await? {
                Prepared::Batch(batch) => break batch,
                Prepared::Needs(missing) => {
                    // The ledger answers as of what is written, so that must be everything.
                    self.settle().await?;
                    self.intake.load(missing).await?;
                }
            }
        };
        for transaction in transactions {
            let position = &mut self.position;
            let continued = position.commit_lsn == transaction.commit_lsn && position.ordinal.is_some();
            position.commit_lsn = transaction.commit_lsn;
            position.committed_at = Some(transaction.committed_at);
            if transaction.complete {
                position.ordinal = None;
                position.end_lsn = transaction.end_lsn;
            } else {
                position.ordinal = Some(transaction.last_ordinal);
            }
            if continued && transaction.complete {
                batch.entry(tx_end(&position.source, transaction));
            }
        }
        self.send(batch);
        Ok(())
    }

    /// Nothing of ours was open when the server stood at `lsn`.
    fn idle(&mut self, lsn: Lsn) {
        self.position.end_lsn = lsn;
        self.send(Batch::default());
    }

    fn send(&mut self, mut batch: Batch) {
        batch.positions.push(self.position.clone());
        let (end_lsn, owes) = (self.position.end_lsn, !batch.deliveries.is_empty());
        let writer = self.follower.ledger.writer();
        let write = async move { writer.write(batch).await.map(|_| Written { end_lsn, owes }) };
        self.in_flight.push_back(Box::pin(write));
        self.sent += 1;
    }

    /// Waits until everything sent is durable.
    async fn settle(&mut self) -> Result<(), CaptureError> {
        while let Some(written) = self.in_flight.next().await {
            self.written(written?);
        }
        Ok(())
    }

    fn written(&self, written: Written) {
        self.confirmer.confirm(written.end_lsn);
        if written.owes {
            self.follower.wake_all();
        }
    }
}

/// Closes a transaction that was ledgered in slices, so that no reader takes half of it for the whole.
fn tx_end(source: &str, transaction: &Transaction) -> NewEntry {
    let fields = serde_json::json!({
        "source": source, "commit_lsn": transaction.commit_lsn.to_string(), "xid": transaction.xid,
        "last_ordinal": transaction.last_ordinal,
    });
    NewEntry::new(EntryKind::TxEnd, None, fields)
}

/// A third of the server's patience, at most ten seconds.
async fn status_interval(client: &tokio_postgres::Client) -> Result<Duration, tokio_postgres::Error> {
    let sql = "select setting::bigint from pg_settings where name = 'wal_sender_timeout'";
    let timeout_ms: i64 = client.query_one(sql, &[]).await?.try_get(0)?;
    let third = Duration::from_millis(u64::try_from(timeout_ms / 3).unwrap_or_default());
    Ok(if third.is_zero() { Duration::from_secs(10) } else { third.min(Duration::from_secs(10)) })
}
