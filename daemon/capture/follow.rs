//! Follows a source: connect, check, load if need be, stream, and again after a break.
//!
//! INV-1: a position is confirmed to the source only after the ledger has committed everything up to it, the position
//! itself included. INV-9: when the ledger does not answer, the connection is closed, so that the ERP can stop.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_postgres::Client;

use super::error::CaptureError;
use super::load::{self, Loading, emit::emit};
use super::recover::Recovery;
use super::tail::Tail;
use super::{Source, watch};
use crate::dispatch::retry::backoff;
use crate::event::{Cluster, Lsn};
use crate::ledger::batch::Batch;
use crate::ledger::position::{Phase, Position};
use crate::ledger::{Ledger, LedgerError, command, images, loads};
use crate::ops::pulse::Pulse;
use crate::source::postgres::catalog::Finding;
use crate::source::postgres::connection::ReplicationConnection;
use crate::source::postgres::presence::Presence;
use crate::source::postgres::slot::{self, Discontinuity};
use crate::source::postgres::stream::{Delivered, Stream};
use crate::source::postgres::transaction::{Assembler, SliceLimits};
use crate::source::postgres::types::Types;

/// How often it is looked for loads that somebody asked for.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How often an idle position is noted when nobody asks.
const IDLE_WRITE_INTERVAL: Duration = Duration::from_secs(1);
/// Longest wait for what is asked of the source, and of the ledger about it, while the stream runs.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Batches on their way into the ledger while the next one is worked out.
const MAX_IN_FLIGHT: usize = 3;
/// Longest time without a sign of life to the watchdog.
const BEAT_INTERVAL: Duration = Duration::from_secs(2);

/// Follows one source.
pub struct Follower {
    /// The source.
    pub source: Arc<Source>,
    /// The ledger.
    pub ledger: Ledger,
    /// Told whenever something new is owed.
    pub wake: tokio::sync::watch::Sender<u64>,
    /// Shows that work goes on.
    pub pulse: Pulse,
    /// Becomes true once the stream runs.
    pub streaming: tokio::sync::watch::Sender<bool>,
}

impl Follower {
    /// Runs until the ledger fails or a person has to act; a source that is away is tried again.
    pub async fn run(mut self) -> Result<(), CaptureError> {
        let (mut failures, mut narrowed) = (0, false);
        loop {
            let started = Instant::now();
            let ended = match narrowed {
                true => self.session().await,
                false => self.pulse.clone().during(answered(self.narrow())).await,
            };
            let Err(error) = ended else {
                narrowed = true;
                continue;
            };
            let CaptureError::Away(reason) = error else { return Err(error) };
            if started.elapsed() > Duration::from_secs(30) {
                failures = 0;
            }
            failures += 1;
            let wait = backoff(failures, rand::random()).min(Duration::from_secs(10));
            tracing::warn!(source_name = %self.source.flow.name, reason, wait_ms = %wait.as_millis(), "source is away");
            self.pulse.beat();
            tokio::select! {
                () = sleep(wait) => {}
                () = self.ledger.lost() => return Err(LedgerError::WriterGone.into()),
            }
        }
    }

    /// Leaves out the mapping files that do not count for this database, and makes the indexes that the others need.
    async fn narrow(&mut self) -> Result<(), CaptureError> {
        let client = self.source.database.connect("tailwater-source").await?;
        let known =
            loads::relations(self.ledger.reader(), &self.source.flow.name).await?.into_keys().collect();
        let Source { flow, publication, .. } = &*self.source;
        let mapping = &flow.mapping;
        let presence = Presence::of(&client, mapping, publication, known).await?;
        for Finding { subject, what, remedy, .. } in presence.findings(mapping, publication) {
            tracing::warn!(subject, what, remedy, "a mapping file is left out");
        }
        let mapping = presence.narrow(mapping);
        images::create_indexes(self.ledger.reader(), &mapping.lookup_columns()).await?;
        let types: Vec<&str> = mapping.events.iter().map(|event| event.event_type.as_str()).collect();
        tracing::info!(source_name = %self.source.flow.name, events = types.join(", "), "mapping");
        self.source = Arc::new(self.source.with_mapping(mapping));
        Ok(())
    }

    /// One connection, from its checks to its end.
    async fn session(&self) -> Result<(), CaptureError> {
        self.pulse.beat();
        if self.source.releasing.is_set() {
            return Err(CaptureError::Away("the slot is being let go".into()));
        }
        let (client, mut connection, cluster, known) = self.pulse.during(answered(self.open())).await?;
        if self.ledger.membership().is_some() {
            // Only one process follows the sources, and this is it.
            slot::take_over(&client, &self.source.slot).await?;
        }
        let mut position = match known {
            Some(position) if position.phase != Phase::Creating => position,
            earlier => self.create_slot(&client, &mut connection, &cluster, earlier).await?,
        };
        let continued = self.continued(&client, &mut connection, cluster, position);
        position = self.pulse.during(answered(continued)).await?;
        if position.phase == Phase::Creating {
            return Err(CaptureError::Away("the source is read again through a new slot".into()));
        }
        if position.phase == Phase::Mapping {
            position = emit(&self.source, &self.ledger, &self.pulse, position, &|| self.wake_all()).await?;
        }
        let (stream, tail) = self.pulse.during(answered(self.start(&client, connection, position))).await?;
        self.streaming.send_replace(true);
        self.stream(stream, tail, &client).await
    }

    /// Connects and checks; nothing is changed yet.
    async fn open(&self) -> Result<(Client, ReplicationConnection, Cluster, Option<Position>), CaptureError> {
        let client = self.source.database.connect("tailwater-source").await?;
        let known = Position::load(self.ledger.reader(), &self.source.flow.name).await?;
        watch::check(&self.source, &self.ledger, &client, known.is_some()).await?;
        let mut connection = ReplicationConnection::open(&self.source.database).await?;
        let cluster = slot::identify(&mut connection).await?;
        Ok((client, connection, cluster, known))
    }

    /// Begins to stream where the ledger stands.
    async fn start(
        &self,
        client: &Client,
        connection: ReplicationConnection,
        position: Position,
    ) -> Result<(Stream, Tail), CaptureError> {
        if position.phase == Phase::Streaming {
            watch::ask_for_what_is_new(&self.source, &self.ledger, client).await?;
        }
        let quiet = position.phase == Phase::Copying;
        let loading = load::begin(&self.source, &self.ledger, client, quiet).await?;
        let interval = status_interval(client).await?;
        let types = Types::load(client).await?;
        let Source { slot, publication, binary, .. } = &*self.source;
        let sql = slot::start_statement(slot, publication, position.end_lsn, *binary);
        let streaming = connection.start_streaming(&sql).await?;
        let ledgered = (position.commit_lsn, position.ordinal);
        let assembler =
            Assembler::new(self.source.flow.mapping.clone(), types, SliceLimits::default(), ledgered);
        let stream = Stream::start(streaming, assembler, position.end_lsn, interval);
        tracing::info!(source_name = %self.source.flow.name, from = %position.end_lsn, "streaming");
        let wake = self.wake.clone();
        let wake = Arc::new(move || wake.send_modify(|count| *count = count.wrapping_add(1)));
        let tail = Tail::new(&self.source, &self.ledger, position, loading, stream.confirmer(), wake);
        Ok((stream, tail))
    }

    /// Creates the slot; afterwards the source stands in [`Phase::Copying`]. The images stay: a recovery compares them
    /// with what it reads.
    async fn create_slot(
        &self,
        client: &Client,
        connection: &mut ReplicationConnection,
        cluster: &Cluster,
        earlier: Option<Position>,
    ) -> Result<Position, CaptureError> {
        let slot_name = &self.source.slot;
        if slot::exists(client, slot_name).await? {
            if earlier.is_none_or(|earlier| earlier.slot != *slot_name) {
                return Err(Discontinuity::SlotForeign { slot: slot_name.clone() }.into());
            }
            tracing::warn!(slot = %slot_name, "a slot was being made when we stopped; it is made anew");
            slot::drop(client, slot_name).await?;
        }
        let mut position = Position {
            source: self.source.flow.name.clone(),
            cluster: cluster.clone(),
            slot: slot_name.clone(),
            phase: Phase::Creating,
            commit_lsn: Lsn::default(),
            ordinal: None,
            end_lsn: Lsn::default(),
            mapped: None,
            committed_at: None,
        };
        self.write_position(&position).await?;
        let consistent_point = self.pulse.during(slot::create(client, connection, slot_name)).await?;
        tracing::info!(slot = %slot_name, %consistent_point, "slot created");
        position.phase = Phase::Copying;
        // A transaction whose commit record begins exactly at the consistent point is still to come.
        position.commit_lsn = Lsn(consistent_point.0.saturating_sub(1));
        position.end_lsn = consistent_point;
        self.write_position(&position).await?;
        Ok(position)
    }

    /// The position, if the source goes on where the ledger stands; after a loss, if the settings say so, the beginning of
    /// a recovery.
    async fn continued(
        &self,
        client: &Client,
        connection: &mut ReplicationConnection,
        cluster: Cluster,
        mut position: Position,
    ) -> Result<Position, CaptureError> {
        if slot::follows(connection, &cluster, &position).await? {
            tracing::warn!(
                timeline = cluster.timeline,
                "the server was promoted after everything that the ledger holds; the stream goes on"
            );
            position.cluster.timeline = cluster.timeline;
            self.write_position(&position).await?;
        }
        let Some(problem) = slot::check_continuity(client, &cluster, &self.source.slot, &position).await?
        else {
            return Ok(position);
        };
        let may_recover = self.source.guard.recover || self.source.guard.release_bytes.is_some();
        if !may_recover || !problem.is_slot_lost() {
            return Err(problem.into());
        }
        tracing::error!(%problem, "the slot is lost; everything is read again, as the settings say");
        let recovery = Recovery {
            source: &self.source,
            ledger: &self.ledger,
            requested_by: "tailwater",
            problem: &problem,
        };
        recovery.begin(client, cluster, position).await
    }

    async fn write_position(&self, position: &Position) -> Result<(), CaptureError> {
        let batch = Batch { positions: vec![position.clone()], ..Batch::default() };
        self.ledger.writer().write(batch).await?;
        Ok(())
    }

    async fn stream(&self, stream: Stream, mut tail: Tail, client: &Client) -> Result<(), CaptureError> {
        let mut stream = Some(stream);
        let mut idle_at: Option<Lsn> = None;
        let mut idle_written = Instant::now();
        let mut urgent_since = None;
        let mut looked = Looked { loads: Instant::now(), source: Instant::now() };
        while let Some(open) = &mut stream {
            self.pulse.beat();
            if tail.has_work() {
                self.work_off(&mut stream, &mut tail, &mut urgent_since).await?;
                continue;
            }
            urgent_since = None;
            let wait = if idle_at.is_some() { IDLE_WRITE_INTERVAL } else { BEAT_INTERVAL };
            let stalled_at = tail.stalled_at();
            let delivered = tokio::select! {
                Some(written) = tail.in_flight.next(), if !tail.in_flight.is_empty() => {
                    tail.written(written?);
                    continue;
                }
                next = open.next(), if tail.in_flight.len() < MAX_IN_FLIGHT => next?,
                ended = readers_ended(&mut tail.loading) => {
                    ended?;
                    continue;
                }
                () = self.ledger.lost() => return Err(LedgerError::WriterGone.into()),
                () = sleep_until(stalled_at.unwrap_or_else(Instant::now)), if stalled_at.is_some() => {
                    self.yielding(&mut stream, true, tail.settle()).await?;
                    continue;
                }
                () = sleep(wait) => Delivered::default(),
            };
            if !delivered.transactions.is_empty() {
                tail.take(delivered.transactions);
                self.yielding(&mut stream, delivered.urgent, tail.go_on()).await?;
            }
            idle_at = delivered.idle_at.or(idle_at).filter(|lsn| *lsn > tail.position.end_lsn);
            if let Some(lsn) = idle_at
                && !tail.has_work()
                && (delivered.urgent || idle_written.elapsed() >= IDLE_WRITE_INTERVAL)
            {
                tail.idle(lsn);
                idle_at = None;
                idle_written = Instant::now();
            }
            if delivered.urgent {
                self.yielding(&mut stream, true, tail.settle()).await?;
            }
            self.yielding(&mut stream, delivered.urgent, tail.finish_load()).await?;
            if self.source.releasing.is_set() {
                return Err(CaptureError::Away("the slot is being let go".into()));
            }
            self.look_around(&mut stream, &mut tail, client, delivered.urgent, &mut looked).await?;
            if tail.position.phase == Phase::Mapping {
                // The connection is closed while events are made, and opened again.
                return Ok(());
            }
        }
        Err(CaptureError::Away("the ledger was slow".into()))
    }

    /// Now and then: is the source still as it should be, was a load asked for?
    async fn look_around(
        &self,
        stream: &mut Option<Stream>,
        tail: &mut Tail,
        client: &Client,
        urgent: bool,
        looked: &mut Looked,
    ) -> Result<(), CaptureError> {
        if tail.position.phase == Phase::Mapping {
            return Ok(());
        }
        if looked.source.elapsed() >= self.source.recheck {
            looked.source = Instant::now();
            let recheck = watch::recheck(&self.source, &self.ledger, client);
            self.yielding(stream, urgent, answered(recheck)).await?;
        }
        if tail.loading.is_none() && looked.loads.elapsed() >= LOOK_INTERVAL {
            looked.loads = Instant::now();
            let mut backfills = Vec::new();
            let look = async {
                backfills = command::backfills(self.ledger.reader(), &self.source.flow.name).await?;
                Ok(())
            };
            self.yielding(stream, urgent, answered(look)).await?;
            if !backfills.is_empty() && !tail.has_work() {
                return self.yielding(stream, urgent, tail.tell_again(backfills)).await;
            }
            let begin = async {
                tail.loading = load::begin(&self.source, &self.ledger, client, false).await?;
                Ok(())
            };
            self.yielding(stream, urgent, answered(begin)).await?;
        }
        Ok(())
    }

    fn wake_all(&self) {
        self.wake.send_modify(|count| *count = count.wrapping_add(1));
    }
}

/// When it was last looked for what changes rarely.
struct Looked {
    loads: Instant,
    source: Instant,
}

/// Work that asks the source. A network that swallows everything, which a connection alone does not notice, must hold up
/// neither the stream nor the next try.
async fn answered<T>(work: impl Future<Output = Result<T, CaptureError>>) -> Result<T, CaptureError> {
    let done = tokio::time::timeout(ANSWER_TIMEOUT, work).await;
    done.unwrap_or_else(|_| Err(CaptureError::Away("source: no answer in time".into())))
}

/// Ends with an error when a reader of the load does; never when there is none.
async fn readers_ended(loading: &mut Option<Loading>) -> Result<(), CaptureError> {
    let Some(loading) = loading else { return std::future::pending().await };
    match loading.readers.join_next().await {
        Some(Ok(result)) => result,
        Some(Err(_)) => Err(CaptureError::Away("source: a reader ended".into())),
        None => std::future::pending().await,
    }
}

/// A third of the server's patience, at most ten seconds.
async fn status_interval(client: &tokio_postgres::Client) -> Result<Duration, tokio_postgres::Error> {
    let sql = "select setting::bigint from pg_settings where name = 'wal_sender_timeout'";
    let timeout_ms: i64 = client.query_one(sql, &[]).await?.try_get(0)?;
    let third = Duration::from_millis(u64::try_from(timeout_ms / 3).unwrap_or_default());
    Ok(if third.is_zero() { Duration::from_secs(10) } else { third.min(Duration::from_secs(10)) })
}
