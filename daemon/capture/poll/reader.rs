//! Asks for page after page, and goes on when the one before is durable.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until};

use super::{Handed, Listed, Message, PollSource};
use crate::connector::classify::{Answer, Class, Flaw};
use crate::connector::request::Request;
use crate::connector::stream::{Listing, Stream, Table};
use crate::dispatch::pace::Pace;
use crate::dispatch::retry::backoff;
use crate::ledger::batch::LoadWrite;
use crate::ledger::loads::{self, Load};
use crate::ledger::polls::{self, PollWrite};
use crate::ledger::{Ledger, LedgerError};
use crate::source::poll::cursor::Expired;
use crate::source::poll::{Cursor, Page, PageError, Pass};

/// How often it is looked for lists that somebody asked for.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// A list that could not be read is asked for again.
const LIST_AGAIN: Duration = Duration::from_secs(10);
/// A stream that finds nothing is asked less often, each time by this much.
const SLOWER: f64 = 1.5;

/// Hands something over; gives how many events it made, once they are durable.
async fn hand(hand_over: &mpsc::Sender<Message>, handed: Handed) -> Result<usize, LedgerError> {
    let (done, durable) = oneshot::channel();
    hand_over.send((handed, done)).await.map_err(|_| LedgerError::WriterGone)?;
    durable.await.map_err(|_| LedgerError::WriterGone)
}

/// What asking for a page came to.
enum Asked {
    /// An answer to be read, and when it was asked for.
    Answer(Answer, Timestamp),
    /// The system says no; what it said is kept for a rule that knows better.
    Refused(Answer),
    /// There is an answer, and it is larger than anything that is read.
    TooLarge,
}

/// Failures in a row after which a stream is told of.
const FAILURES_TOLD: u32 = 3;

/// Whether a stream or a list can be read; when it cannot, that is told once, and once more when it can again.
pub(super) struct Health {
    name: String,
    hand_over: mpsc::Sender<Message>,
    failures: u32,
    told: bool,
}

impl Health {
    /// Nothing is known of it: what was told before this process began may have come right.
    pub(super) fn new(name: &str, hand_over: &mpsc::Sender<Message>) -> Self {
        Self { name: name.to_owned(), hand_over: hand_over.clone(), failures: 0, told: true }
    }

    /// It could not be read; it is tried again.
    async fn failed(&mut self, reason: &str, patience: u32) -> Result<(), LedgerError> {
        self.failures = self.failures.saturating_add(1);
        if self.failures == patience.max(1) {
            self.told = true;
            let trouble = Handed::Trouble { stream: self.name.clone(), reason: Some(reason.to_owned()) };
            hand(&self.hand_over, trouble).await?;
        }
        Ok(())
    }

    /// It can be read.
    async fn fine(&mut self) -> Result<(), LedgerError> {
        self.failures = 0;
        if std::mem::take(&mut self.told) {
            hand(&self.hand_over, Handed::Trouble { stream: self.name.clone(), reason: None }).await?;
        }
        Ok(())
    }
}

/// Asks until there is an answer.
async fn ask(
    source: &PollSource,
    ledger: &Ledger,
    pace: &Pace,
    request: &Request,
    health: &mut Health,
) -> Result<Asked, LedgerError> {
    let mut failures = 0;
    loop {
        pace.wait(&source.target, source.share).await;
        let asked_at = Timestamp::now();
        let answered = source.target.ask("poll", request, ledger.tenure()).await?;
        let reason = match answered {
            Some((_, Answer { flaw: Some(Flaw::TooLarge), .. })) => return Ok(Asked::TooLarge),
            Some((Class::Applied, answer)) if answer.flaw.is_none() => {
                return Ok(Asked::Answer(answer, asked_at));
            }
            // That is waiting, not failing.
            Some((Class::Throttled, _)) => None,
            Some((Class::Transient | Class::Uncertain | Class::Unauthorised | Class::Applied, answer)) => {
                Some(said(&answer))
            }
            None => Some("no answer".to_owned()),
            Some((_, answer)) => return Ok(Asked::Refused(answer)),
        };
        if let Some(reason) = reason {
            health.failed(&reason, FAILURES_TOLD).await?;
        }
        failures += 1;
        sleep(backoff(failures, rand::random()).min(Duration::from_secs(30))).await;
    }
}

/// What an answer says, without any of its content.
fn said(answer: &Answer) -> String {
    match answer.flaw {
        Some(flaw) => format!("status {}, and the answer is {}", answer.status, flaw.as_str()),
        None => format!("status {}", answer.status),
    }
}

/// That even one row is more than is read.
const ONE_IS_TOO_LARGE: &str = "the smallest page that can be asked for is larger than 16 MB";

/// Reads one stream.
pub(super) struct StreamReader {
    pub(super) source: PollSource,
    pub(super) ledger: Ledger,
    pub(super) stream: String,
    pub(super) cursor: Cursor,
    pub(super) pace: Arc<Pace>,
    pub(super) hand_over: mpsc::Sender<Message>,
}

impl StreamReader {
    /// Pass after pass, until the ledger fails.
    pub(super) async fn run(mut self) -> Result<(), LedgerError> {
        let target = self.source.target.clone();
        let Some(stream) = target.connector.reading.stream(&self.stream) else { return Ok(()) };
        let (least, most) = self.bounds(stream);
        let mut pause = least;
        let mut health = Health::new(&self.stream, &self.hand_over);
        loop {
            let began = Instant::now();
            match self.pass(stream, &mut health).await? {
                Some(made) if made > 0 => pause = least,
                Some(_) => pause = pause.mul_f64(SLOWER).min(most),
                None => pause = most,
            }
            sleep_until(began + pause).await;
        }
    }

    fn bounds(&self, stream: &Stream) -> (Duration, Duration) {
        let (least, most) = stream.every;
        let least = self.source.every.unwrap_or(least);
        (least, if self.source.every.is_some() { least } else { most.max(least) })
    }

    /// One pass over the pages; gives how many events it made, or nothing when the system says no.
    async fn pass(&mut self, stream: &Stream, health: &mut Health) -> Result<Option<usize>, LedgerError> {
        let from_ms = self.source.from.as_millisecond();
        if let Err(why) = self.cursor.begin(stream, from_ms, Timestamp::now()) {
            return self.lost(why).await.map(Some);
        }
        let mut made = 0;
        loop {
            let Some(pass) = &mut self.cursor.pass else { return Ok(Some(made)) };
            let request = match pass.request("poll", &stream.listing, &self.source.target.connector) {
                Ok(request) => request,
                Err(error) => return refused(health, &error.to_string()).await,
            };
            let (answer, asked_at) =
                match ask(&self.source, &self.ledger, &self.pace, &request, health).await? {
                    Asked::Answer(answer, _) | Asked::Refused(answer) if stream.is_expired(&answer) => {
                        return self.lost(Expired::Refused).await.map(Some);
                    }
                    Asked::Answer(answer, asked_at) => (answer, asked_at),
                    Asked::Refused(answer) => return refused(health, &said(&answer)).await,
                    Asked::TooLarge if pass.ask_for_less(&stream.listing) => continue,
                    Asked::TooLarge => return refused(health, ONE_IS_TOO_LARGE).await,
                };
            let page = match self.read(stream, &answer) {
                Ok(page) => page,
                Err(PageError::Stuck) => return self.stuck(stream).await.map(Some),
                Err(error) => return refused(health, &error.to_string()).await,
            };
            health.fine().await?;
            let more = page.more;
            made += self.hand(page, asked_at).await?;
            if !more {
                return Ok(Some(made));
            }
        }
    }

    /// The same page comes again: the stream begins anew, or, where it goes by time, with the next second.
    async fn stuck(&mut self, stream: &Stream) -> Result<usize, LedgerError> {
        let now = Timestamp::now();
        match self.cursor.pass.as_ref().and_then(|pass| pass.next_second(&stream.listing, now)) {
            Some(next) => {
                let made = self.lost(Expired::FullSecond).await?;
                self.cursor.pass = Some(next);
                Ok(made)
            }
            None => self.lost(Expired::Stuck).await,
        }
    }

    /// Moves the cursor over a page.
    fn read(&mut self, stream: &Stream, answer: &Answer) -> Result<Page, PageError> {
        let Some(pass) = &mut self.cursor.pass else { return Ok(Page::default()) };
        let now = Timestamp::now();
        let page = pass.take(stream, answer, (now.as_millisecond(), self.source.target.way.base_url()))?;
        if !page.more {
            // Whatever the vendor's clock says, what comes from now on is asked for.
            self.cursor.end(stream, answer.clock_ms(now).min(now.as_millisecond()));
        }
        Ok(page)
    }

    async fn hand(&self, page: Page, asked_at: Timestamp) -> Result<usize, LedgerError> {
        let handed = Handed::Page {
            records: page.records,
            asked_at,
            unreadable: page.unreadable,
            write: self.write(),
            listed: None,
        };
        hand(&self.hand_over, handed).await
    }

    fn write(&self) -> PollWrite {
        PollWrite {
            source: self.source.flow.name.clone(),
            stream: self.stream.clone(),
            // Numbers, texts and times always have a JSON form.
            cursor: serde_json::to_value(&self.cursor).unwrap_or_default(),
        }
    }

    /// Begins anew; what was missed meanwhile is found by reading everything.
    async fn lost(&mut self, why: Expired) -> Result<usize, LedgerError> {
        self.cursor = Cursor::default();
        hand(&self.hand_over, Handed::Lost { stream: self.stream.clone(), why }).await
    }
}

/// The system does not do as it is told. Nothing is lost: it is asked again.
async fn refused(health: &mut Health, reason: &str) -> Result<Option<usize>, LedgerError> {
    health.failed(reason, 1).await.map(|()| None)
}

/// Reads lists of all objects, as they are asked for.
pub(super) struct ListReader {
    pub(super) source: PollSource,
    pub(super) ledger: Ledger,
    pub(super) pace: Arc<Pace>,
    pub(super) hand_over: mpsc::Sender<Message>,
}

impl ListReader {
    /// Load after load, until the ledger fails.
    pub(super) async fn run(self) -> Result<(), LedgerError> {
        loop {
            match loads::current(self.ledger.reader(), &self.source.flow.name, false).await? {
                Some((load, begun)) => self.load(&load, begun).await?,
                None => sleep(LOOK_INTERVAL).await,
            }
        }
    }

    async fn load(&self, load: &Load, begun: bool) -> Result<(), LedgerError> {
        let target = self.source.target.clone();
        let listed = |relation: &String| {
            let table = target.connector.reading.table(relation)?;
            self.source.flow.mapping.table_named(relation)?;
            Some((table, table.list.as_ref()?))
        };
        let tables: Vec<(&Table, &Listing)> = load.relations.iter().filter_map(listed).collect();
        if tables.is_empty() {
            tracing::error!(
                load = load.id,
                "nothing of what is to be read can be listed; the load is refused"
            );
            return self.write(LoadWrite::End { load: load.id, refused: true }).await;
        }
        if !begun {
            self.write(LoadWrite::Begin { load: load.id, parts: Vec::new() }).await?;
            tracing::info!(load = load.id, kind = load.kind.as_str(), tables = tables.len(), "reading lists");
        }
        let mut open = self.still_open(load.id, tables).await?;
        let mut refused: BTreeSet<String> = BTreeSet::new();
        loop {
            // One that cannot be read holds up no other.
            let (count, mut left) = (open.len(), Vec::new());
            for (index, (table, listing, pass)) in open.into_iter().enumerate() {
                let ends_load = left.is_empty() && index + 1 == count;
                let Err(reason) = self.list(load.id, (table, listing), pass, ends_load).await? else {
                    continue;
                };
                if !refused.insert(table.name.clone()) {
                    left.push((table, listing, Pass::new(0, Timestamp::now())));
                    continue;
                }
                let trouble = Handed::Trouble { stream: stream_of(table), reason: Some(reason) };
                hand(&self.hand_over, trouble).await?;
                left.push((table, listing, Pass::new(0, Timestamp::now())));
            }
            if left.is_empty() {
                tracing::info!(load = load.id, "all lists of the load are read");
                return Ok(());
            }
            if self.is_in_the_way(load, &left).await? {
                return self.write(LoadWrite::End { load: load.id, refused: false }).await;
            }
            open = left;
            sleep(LIST_AGAIN).await;
        }
    }

    /// True when others wait for tables that can be read, behind a load of which only `left` is open. What is left is then asked for
    /// anew, behind them.
    async fn is_in_the_way(
        &self,
        load: &Load,
        left: &[(&Table, &Listing, Pass)],
    ) -> Result<bool, LedgerError> {
        let source = &self.source.flow.name;
        let waiting = loads::waiting(self.ledger.reader(), source).await?;
        let is_left = |relation: &String| left.iter().any(|(table, ..)| table.name == *relation);
        if waiting.iter().flatten().all(is_left) {
            return Ok(false);
        }
        let asked: BTreeSet<&String> = waiting.iter().flatten().collect();
        let relations = left.iter().map(|(table, ..)| table.name.clone());
        let relations: Vec<String> = relations.filter(|relation| !asked.contains(relation)).collect();
        if !relations.is_empty() {
            let request = loads::Request {
                source: source.clone(),
                kind: load.kind,
                relations,
                lower: None,
                upper: None,
                reason: format!("could not be read by load {}", load.id),
                look_first: false,
                requested_by: "tailwater".to_owned(),
            };
            loads::request(self.ledger.reader(), &request).await?;
        }
        Ok(true)
    }

    /// Tables of a load that are not read to their end, and where the way through each goes on.
    async fn still_open<'a>(
        &self,
        load: i64,
        tables: Vec<(&'a Table, &'a Listing)>,
    ) -> Result<Vec<(&'a Table, &'a Listing, Pass)>, LedgerError> {
        let known = polls::cursors(self.ledger.reader(), &self.source.flow.name).await?;
        let open = tables.into_iter().filter_map(|(table, listing)| {
            let stored = known.get(&stream_of(table)).map(|polled| &polled.cursor);
            let of_this = stored.filter(|state| state.get("load") == Some(&json!(load)));
            if of_this.is_some_and(|state| state.get("done") == Some(&json!(true))) {
                return None;
            }
            let pass = of_this.and_then(|state| serde_json::from_value(state.get("pass")?.clone()).ok());
            Some((table, listing, pass.unwrap_or_else(|| Pass::new(0, Timestamp::now()))))
        });
        Ok(open.collect())
    }

    /// Reads a list to its end, or says why that cannot be.
    async fn list(
        &self,
        load: i64,
        (table, listing): (&Table, &Listing),
        mut pass: Pass,
        ends_load: bool,
    ) -> Result<Result<(), String>, LedgerError> {
        let mut health = Health::new(&stream_of(table), &self.hand_over);
        loop {
            let (page, asked_at) = match self.page(table, listing, &mut pass, &mut health).await? {
                Ok(asked) => asked,
                Err(reason) => return Ok(Err(reason)),
            };
            let write = PollWrite {
                source: self.source.flow.name.clone(),
                stream: stream_of(table),
                cursor: json!({"load": load, "pass": pass, "done": !page.more}),
            };
            let listed = Listed { load, relation: table.name.clone(), ends: !page.more, ends_load };
            let (records, unreadable) = (page.records, page.unreadable);
            hand(
                &self.hand_over,
                Handed::Page { records, asked_at, unreadable, write, listed: Some(listed) },
            )
            .await?;
            if !page.more {
                return Ok(Ok(()));
            }
        }
    }

    async fn page(
        &self,
        table: &Table,
        listing: &Listing,
        pass: &mut Pass,
        health: &mut Health,
    ) -> Result<Result<(Page, Timestamp), String>, LedgerError> {
        let (answer, asked_at) = loop {
            let request = match pass.request("list", listing, &self.source.target.connector) {
                Ok(request) => request,
                Err(error) => return Ok(Err(error.to_string())),
            };
            match ask(&self.source, &self.ledger, &self.pace, &request, health).await? {
                Asked::Answer(answer, asked_at) => break (answer, asked_at),
                Asked::Refused(answer) => return Ok(Err(said(&answer))),
                Asked::TooLarge if pass.ask_for_less(listing) => {}
                Asked::TooLarge => return Ok(Err(ONE_IS_TOO_LARGE.to_owned())),
            }
        };
        let clock = answer.clock_ms(Timestamp::now());
        let place = (clock, self.source.target.way.base_url());
        let page = pass.take_listed(table, listing, &answer, place);
        if page.is_ok() {
            health.fine().await?;
        }
        Ok(page.map(|page| (page, asked_at)).map_err(|error| error.to_string()))
    }

    async fn write(&self, write: LoadWrite) -> Result<(), LedgerError> {
        let mut batch = crate::ledger::batch::Batch::default();
        batch.loads.push(write);
        self.ledger.writer().write(batch).await.map(|_| ())
    }
}

fn stream_of(table: &Table) -> String {
    format!("list {}", table.name)
}
