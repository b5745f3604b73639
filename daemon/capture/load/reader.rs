//! Reads the key ranges of a load, chunk by chunk, and hands each over to the follower through the stream's own order.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_postgres::Client;

use crate::capture::Source;
use crate::capture::error::CaptureError;
use crate::event::{Row, Unreadable, hex};
use crate::ledger::loads::Part;
use crate::mapping::TableSpec;
use crate::source::postgres::chunk::{self, Snapshot};
use crate::source::postgres::copy::Rows;

/// Rows of the first chunk; later ones follow the width of the rows.
const FIRST_ROWS: i64 = 50;
/// Rows of a chunk at the most (INV-8).
const MAX_ROWS: i64 = 1_000;
/// Bytes of a chunk, about (INV-8).
const CHUNK_BYTES: usize = 1 << 20;

/// What became of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is in the ledger.
    Written,
    /// It could not be compared with the stream.
    Again,
}

/// A chunk that was read.
pub struct Chunk {
    /// Its key range, as it stands once the chunk is written.
    pub part: Part,
    /// Its rows.
    pub rows: Vec<(String, Row)>,
    /// Rows that nobody can go by.
    pub unreadable: Vec<Unreadable>,
    /// What they could see.
    pub snapshot: Snapshot,
    /// To be told what became of it.
    pub verdict: oneshot::Sender<Verdict>,
}

/// A watermark of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mark {
    /// The chunk is about to be read.
    Low(u64),
    /// It has been.
    High(u64),
}

/// Where chunks lie between being read and coming by in the stream.
pub struct Shelf {
    /// Tells the watermarks of this session from those of others.
    session: String,
    next: AtomicU64,
    tables: Mutex<HashMap<u64, Arc<str>>>,
    chunks: Mutex<HashMap<u64, Chunk>>,
}

impl Shelf {
    fn new() -> Self {
        Self {
            session: hex(&rand::random::<[u8; 8]>()),
            next: AtomicU64::new(0),
            tables: Mutex::default(),
            chunks: Mutex::default(),
        }
    }

    /// The mark, if it is of this session.
    pub fn parse(&self, text: &str) -> Option<Mark> {
        let mut parts = text.split(' ');
        let (session, chunk, kind) = (parts.next()?, parts.next()?.parse().ok()?, parts.next()?);
        match kind {
            _ if session != self.session => None,
            "low" => Some(Mark::Low(chunk)),
            "high" => Some(Mark::High(chunk)),
            _ => None,
        }
    }

    /// The table of a chunk.
    pub fn table(&self, chunk: u64) -> Option<Arc<str>> {
        self.tables.lock().ok()?.remove(&chunk)
    }

    /// The chunk itself.
    pub fn take(&self, chunk: u64) -> Option<Chunk> {
        self.chunks.lock().ok()?.remove(&chunk)
    }
}

/// Lets so many rows pass in a second, over all readers.
struct Throttle {
    per_row: Duration,
    free_at: Mutex<Instant>,
}

impl Throttle {
    fn new(rows_per_second: Option<u32>) -> Self {
        let per_row = rows_per_second.map_or(Duration::ZERO, |rate| Duration::from_secs(1) / rate.max(1));
        Self { per_row, free_at: Mutex::new(Instant::now()) }
    }

    /// Until the rows that have passed are paid for.
    async fn wait(&self) {
        let free_at = self.free_at.lock().ok().map(|free_at| *free_at);
        sleep_until(free_at.unwrap_or_else(Instant::now)).await;
    }

    fn charge(&self, rows: usize) {
        let rows = u32::try_from(rows).unwrap_or(u32::MAX);
        if let Ok(mut free_at) = self.free_at.lock() {
            *free_at = (*free_at).max(Instant::now()) + self.per_row.saturating_mul(rows);
        }
    }
}

/// Starts the readers of `parts`.
pub fn start(
    source: &Arc<Source>,
    parts: Vec<Part>,
    waits: bool,
) -> (Arc<Shelf>, JoinSet<Result<(), CaptureError>>) {
    let shelf = Arc::new(Shelf::new());
    let throttle = Arc::new(Throttle::new(source.load.rows_per_second));
    let queue = Arc::new(Mutex::new(VecDeque::from(parts)));
    let mut readers = JoinSet::new();
    for _ in 0..source.load.parallel {
        let reader = Reader {
            source: source.clone(),
            shelf: shelf.clone(),
            throttle: throttle.clone(),
            queue: queue.clone(),
            waits,
        };
        readers.spawn(reader.run());
    }
    (shelf, readers)
}

struct Reader {
    source: Arc<Source>,
    shelf: Arc<Shelf>,
    throttle: Arc<Throttle>,
    queue: Arc<Mutex<VecDeque<Part>>>,
    /// Whole tables are read, which may just have been published.
    waits: bool,
}

impl Reader {
    async fn run(self) -> Result<(), CaptureError> {
        let client = self.source.database.connect("tailwater-load").await?;
        if self.waits {
            older_are_over(&client).await?;
        }
        loop {
            let next = self.queue.lock().ok().and_then(|mut queue| queue.pop_front());
            let Some(part) = next else { return Ok(()) };
            let Some(table) = self.source.flow.mapping.table_named(&part.relation) else { continue };
            self.read(&client, table, part).await?;
        }
    }

    async fn read(&self, client: &Client, table: &TableSpec, mut part: Part) -> Result<(), CaptureError> {
        let mut limit = FIRST_ROWS;
        while !part.done {
            let chunk = self.shelf.next.fetch_add(1, Ordering::Relaxed);
            if let Ok(mut tables) = self.shelf.tables.lock() {
                tables.insert(chunk, table.name.clone());
            }
            let mark = |kind: &str| format!("{} {chunk} {kind}", self.shelf.session);
            // Waited for before the chunk is begun: what the stream brings meanwhile has to be remembered.
            self.throttle.wait().await;
            chunk::emit(client, &mark("low")).await?;
            let after = part.cursor.as_deref().or(part.lower.as_deref());
            let (rows, snapshot) = chunk::read(client, table, after, part.upper.as_deref(), limit).await?;
            self.throttle.charge(rows.seen);
            let count = i64::try_from(rows.seen).unwrap_or(i64::MAX);
            let mut read = part.clone();
            read.rows += count;
            read.done = count < limit;
            read.cursor = rows.last.clone().or(read.cursor);
            let next_limit = limit_for(&rows);
            let (verdict, told) = oneshot::channel();
            if let Ok(mut chunks) = self.shelf.chunks.lock() {
                chunks.insert(
                    chunk,
                    Chunk {
                        part: read.clone(),
                        rows: rows.rows,
                        unreadable: rows.unreadable,
                        snapshot,
                        verdict,
                    },
                );
            }
            chunk::emit(client, &mark("high")).await?;
            match told.await {
                Ok(Verdict::Written) => (part, limit) = (read, next_limit),
                Ok(Verdict::Again) => {}
                // The follower is gone, and with it the load.
                Err(_) => return Ok(()),
            }
        }
        Ok(())
    }
}

/// How often it is looked for transactions that are waited for, and how often that is told.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// See [`LOOK_INTERVAL`].
const TOLD_EVERY: u32 = 120;

/// Waits for every transaction that is open now: one that wrote to a table before it was published is not in the stream, and no chunk
/// sees it before it is over.
async fn older_are_over(client: &Client) -> Result<(), CaptureError> {
    let mut older = chunk::running(client).await?;
    let mut looks = 0_u32;
    while !older.is_empty() {
        tokio::time::sleep(LOOK_INTERVAL).await;
        let running = chunk::running(client).await?;
        older.retain(|xid| running.contains(xid));
        looks += 1;
        if looks.is_multiple_of(TOLD_EVERY) {
            let xids: Vec<&str> = older.iter().map(String::as_str).collect();
            tracing::warn!(
                transactions = xids.join(", "),
                "a load waits for transactions that were open before it; look for them in pg_stat_activity (backend_xid)"
            );
        }
    }
    Ok(())
}

/// How many rows like these make a chunk.
fn limit_for(rows: &Rows) -> i64 {
    let widest = rows.rows.iter().map(|(_, row)| width(row)).max().unwrap_or_default();
    let mean = rows.bytes / rows.seen.max(1);
    i64::try_from(CHUNK_BYTES / widest.max(mean).max(1)).unwrap_or(MAX_ROWS).clamp(1, MAX_ROWS)
}

fn width(row: &Row) -> usize {
    let size = |value: &Value| match value {
        Value::String(text) => text.len(),
        Value::Array(_) | Value::Object(_) => value.to_string().len(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 8,
    };
    row.iter().map(|(name, value)| name.len() + size(value)).sum()
}
