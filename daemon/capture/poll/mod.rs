//! A source that is asked: its streams are polled within the quota of the target that is the same system, and what they tell goes the
//! way of every change. Each stream has a reader of its own; pages are worked out one after the other.
//!
//! INV-1: a cursor is written with the events of its page. INV-2: what was told before is known by the images.

mod reader;
mod records;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::interval;

use super::error::CaptureError;
use super::flow::Flow;
use crate::connector::stream::Stream;
use crate::dispatch::Target;
use crate::dispatch::pace::Pace;
use crate::ledger::batch::{Batch, LoadWrite};
use crate::ledger::entry::{EntryKind, NewEntry};
use crate::ledger::loads::{self, LoadKind, Request};
use crate::ledger::parked::{self, Parked, ParkedKind, ParkedName};
use crate::ledger::polls::{self, PollWrite};
use crate::ledger::{Ledger, LedgerError, images};
use crate::mapping::scope::Scope;
use crate::ops::pulse::Pulse;
use crate::source::poll::cursor::Expired;
use crate::source::poll::{Record, Unreadable};
use reader::{ListReader, StreamReader};
use records::Records;

/// Longest time without a sign of life to the watchdog.
const BEAT_INTERVAL: Duration = Duration::from_secs(2);
/// Pages that wait while one is worked out.
const PAGES_WAITING: usize = 2;

/// A polled source as it is configured.
#[derive(Clone)]
pub struct PollSource {
    /// Its mapping, and where its events go.
    pub flow: Arc<Flow>,
    /// The target that is the same system: how it is asked, within which quota.
    pub target: Arc<Target>,
    /// Part of the target's quota that polling takes at the most.
    pub share: f64,
    /// Least time between two passes over a stream; the connector's when `None`.
    pub every: Option<Duration>,
    /// Where streams begin that tell of everything.
    pub from: Timestamp,
}

/// What a reader hands over.
enum Handed {
    /// A page of a stream or of a list.
    Page {
        records: Vec<Record>,
        /// When it was asked for: what the system was told since then is newer.
        asked_at: Timestamp,
        /// Rows that could not be read.
        unreadable: Vec<Unreadable>,
        write: PollWrite,
        /// Of the list that it is from.
        listed: Option<Listed>,
    },
    /// A stream or a list cannot be read, and why; or it can be read again.
    Trouble { stream: String, reason: Option<String> },
    /// There is no going on from where a stream stood.
    Lost { stream: String, why: Expired },
}

/// Which list a page is from.
struct Listed {
    load: i64,
    relation: String,
    /// It is the last one.
    ends: bool,
    /// Every other table of the load is read.
    ends_load: bool,
}

/// Something handed over, and who waits for it to be durable. The answer: how many events it made.
type Message = (Handed, oneshot::Sender<usize>);

/// See the module's text.
pub struct Poller {
    /// The source.
    pub source: PollSource,
    /// The ledger.
    pub ledger: Ledger,
    /// Told whenever something new is owed.
    pub wake: watch::Sender<u64>,
    /// Shows that work goes on.
    pub pulse: Pulse,
    /// Becomes true once the streams are read.
    pub streaming: watch::Sender<bool>,
}

impl Poller {
    /// Runs until the ledger fails; a system that is away is asked again.
    pub async fn run(self) -> Result<(), CaptureError> {
        let flow = &self.source.flow;
        images::create_indexes(self.ledger.reader(), &flow.mapping.lookup_columns()).await?;
        let known = polls::cursors(self.ledger.reader(), &flow.name).await?;
        let is_new = known.keys().all(|stream| stream.starts_with("list "));
        if is_new && self.streams().any(|stream| stream.begins_now) {
            self.ask_for_lists(LoadKind::First, "the source is new").await?;
        }
        let (hand_over, mut handed) = mpsc::channel(PAGES_WAITING);
        let mut readers = self.readers(&known, &hand_over)?;
        drop(hand_over);
        let mut records = Records::new(&self.source, &self.ledger);
        tracing::info!(source_name = %flow.name, streams = readers.len() - 1, "polling");
        self.streaming.send_replace(true);
        let mut beats = interval(BEAT_INTERVAL);
        loop {
            tokio::select! {
                message = handed.recv() => {
                    let (message, done) = message.ok_or(LedgerError::WriterGone)?;
                    let made = self.pulse.during(self.take(&mut records, message)).await?;
                    // The reader may have been stopped meanwhile.
                    let _ = done.send(made);
                }
                Some(ended) = readers.join_next() => {
                    ended.map_err(|_| LedgerError::WriterGone)??;
                }
                _ = beats.tick() => {
                    self.pulse.beat();
                    self.pulse.during(self.read_parked(&mut records)).await?;
                }
                () = self.ledger.lost() => return Err(LedgerError::WriterGone.into()),
            }
        }
    }

    /// Streams of the connector that tell of something mapped.
    fn streams(&self) -> impl Iterator<Item = &Stream> {
        let streams = self.source.target.connector.reading.streams.iter();
        streams.filter(|stream| match stream.table.evaluate(&Scope::new([])) {
            Ok(serde_json::Value::String(table)) => self.source.flow.mapping.table_named(&table).is_some(),
            // It depends on the row.
            _ => true,
        })
    }

    fn readers(
        &self,
        known: &std::collections::HashMap<String, polls::Polled>,
        hand_over: &mpsc::Sender<Message>,
    ) -> Result<JoinSet<Result<(), LedgerError>>, CaptureError> {
        let pace = Arc::new(Pace::default());
        let mut readers = JoinSet::new();
        for stream in self.streams() {
            let stored = known.get(&stream.name).map(|polled| polled.cursor.clone());
            let cursor = stored.map(serde_json::from_value).transpose();
            let cursor = cursor.map_err(|_| LedgerError::Unreadable(format!("poll of {}", stream.name)))?;
            let reader = StreamReader {
                source: self.source.clone(),
                ledger: self.ledger.clone(),
                stream: stream.name.clone(),
                cursor: cursor.unwrap_or_default(),
                pace: pace.clone(),
                hand_over: hand_over.clone(),
            };
            readers.spawn(reader.run());
        }
        let lists = ListReader {
            source: self.source.clone(),
            ledger: self.ledger.clone(),
            pace,
            hand_over: hand_over.clone(),
        };
        readers.spawn(lists.run());
        Ok(readers)
    }

    async fn take(&self, records: &mut Records, handed: Handed) -> Result<usize, CaptureError> {
        match handed {
            Handed::Trouble { stream, reason } => {
                self.trouble(stream, reason).await?;
                Ok(0)
            }
            Handed::Lost { stream, why } => {
                self.lost(&stream, why).await?;
                Ok(0)
            }
            Handed::Page { records: read, asked_at, unreadable, write, listed } => {
                let mut last = Batch::default();
                unreadable.into_iter().for_each(|row| last.park(self.unreadable(row)));
                last.healed_parked = self.healed(&read).await?;
                last.polls.push(write);
                if let Some(Listed { load, relation, ends, ends_load }) = &listed {
                    let keys = read.iter().map(|record| record.key.clone()).collect();
                    let (load, source) = (*load, self.source.flow.name.clone());
                    let relation = relation.clone();
                    last.loads.push(LoadWrite::Seen { load, source, relation, keys });
                    if *ends_load && *ends {
                        last.loads.push(LoadWrite::End { load, refused: false });
                    }
                }
                let sweep = listed.filter(|listed| listed.ends).map(|listed| (listed.load, listed.relation));
                let made = records.take((read, asked_at), sweep, last).await?;
                if made > 0 {
                    self.wake.send_modify(|count| *count = count.wrapping_add(1));
                }
                Ok(made)
            }
        }
    }

    /// A record that nobody can read waits by name, and holds up nothing else.
    fn unreadable(&self, row: Unreadable) -> Parked {
        let Unreadable { place, key, reason } = row;
        tracing::error!(source_name = %self.source.flow.name, table = place, key, reason, "a record is parked");
        let source = self.source.flow.name.clone();
        Parked { kind: ParkedKind::Record, source, place, key, reason, bytes: None }
    }

    /// Records that were parked and can be read now.
    async fn healed(&self, records: &[Record]) -> Result<Vec<ParkedName>, LedgerError> {
        if records.is_empty() {
            return Ok(Vec::new());
        }
        let kinds = [ParkedKind::Record.as_str()];
        let open = parked::open_of(self.ledger.reader(), &self.source.flow.name, &kinds).await?;
        let of = |name: &ParkedName, record: &Record| record.table == name.place && record.key == name.key;
        let healed = open.into_iter().map(|(name, _)| name);
        Ok(healed.filter(|name| records.iter().any(|record| of(name, record))).collect())
    }

    /// Tells that a stream cannot be read, or that it can be again.
    async fn trouble(&self, stream: String, reason: Option<String>) -> Result<(), LedgerError> {
        let source = self.source.flow.name.clone();
        let kinds = [ParkedKind::Stream.as_str()];
        let open = parked::open_of(self.ledger.reader(), &source, &kinds).await?;
        let is_open = open.iter().any(|(name, _)| name.place == stream);
        let key = stream.clone();
        let parked = |reason| Parked {
            kind: ParkedKind::Stream,
            source: source.clone(),
            place: stream.clone(),
            key,
            reason,
            bytes: None,
        };
        let mut batch = Batch::default();
        match reason {
            Some(reason) => {
                let what = if stream.starts_with("list ") { "a list" } else { "a stream" };
                tracing::error!(source_name = %source, stream, reason, "{what} cannot be read; it is tried again");
                batch.park(parked(reason));
            }
            None if is_open => {
                tracing::info!(source_name = %source, stream, "a stream can be read again");
                batch.healed_parked.push(parked(String::new()).name());
            }
            None => return Ok(()),
        }
        self.ledger.writer().write(batch).await.map(|_| ())
    }

    /// Reads parked records again that a person asks for.
    async fn read_parked(&self, records: &mut Records) -> Result<(), CaptureError> {
        let kinds = [ParkedKind::Record.as_str()];
        let open = parked::open_of(self.ledger.reader(), &self.source.flow.name, &kinds).await?;
        for (name, _) in open.into_iter().filter(|(_, asked)| *asked) {
            let made = match records.read_parked(&name).await? {
                Ok(made) => made,
                Err(reason) => {
                    let ParkedName { kind, source, place, key } = name;
                    let mut batch = Batch::default();
                    batch.park(Parked { kind, source, place, key, reason, bytes: None });
                    self.ledger.writer().write(batch).await?;
                    continue;
                }
            };
            let batch = Batch { healed_parked: vec![name], ..Batch::default() };
            self.ledger.writer().write(batch).await?;
            if made > 0 {
                self.wake.send_modify(|count| *count = count.wrapping_add(1));
            }
        }
        Ok(())
    }

    /// What changed while there was no going on is found by reading everything; so are deletions.
    async fn lost(&self, stream: &str, why: Expired) -> Result<(), CaptureError> {
        let name = &self.source.flow.name;
        tracing::error!(source_name = %name, stream, reason = %why,
            "changes may have been missed; everything is read again");
        let mut batch = Batch::default();
        batch.entry(NewEntry::new(
            EntryKind::Gap,
            None,
            json!({"source": name, "action": "expired", "stream": stream, "reason": why.to_string()}),
        ));
        self.ledger.writer().write(batch).await?;
        // One that has begun may be past what has changed.
        let waiting = loads::waiting(self.ledger.reader(), name).await?;
        let listed = self.listed();
        if !waiting.iter().any(|waiting| listed.iter().all(|relation| waiting.contains(relation))) {
            self.ask_for_lists(LoadKind::Recover, &why.to_string()).await?;
        }
        Ok(())
    }

    /// Mapped tables that can be listed. A document may need any row: what is joined to comes first, in the order of the mapping.
    fn listed(&self) -> Vec<String> {
        let reading = &self.source.target.connector.reading;
        let tables = self.source.flow.mapping.tables.iter();
        let listed =
            tables.filter(|table| reading.table(&table.name).is_some_and(|table| table.list.is_some()));
        listed.map(|table| table.name.to_string()).collect()
    }

    /// Asks for all objects of every mapped table that can be listed.
    async fn ask_for_lists(&self, kind: LoadKind, reason: &str) -> Result<(), LedgerError> {
        let request = Request {
            source: self.source.flow.name.clone(),
            kind,
            relations: self.listed(),
            lower: None,
            upper: None,
            reason: reason.to_owned(),
            look_first: false,
            requested_by: "tailwater".to_owned(),
        };
        if !request.relations.is_empty() {
            loads::request(self.ledger.reader(), &request).await?;
        }
        Ok(())
    }
}
