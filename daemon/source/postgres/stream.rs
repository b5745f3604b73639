//! The running stream: one task reads and assembles, another answers.
//!
//! The answering task holds the write half and a watch of the flush position, so that no batch, however large, can keep
//! a keepalive waiting (INV-9). The reading task hands slices over as soon as the receiver can take one; while it
//! cannot, it gathers more, up to a bound, and then stops reading: the server's socket fills and the WAL waits there.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use jiff::Timestamp;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::condense::Condenser;
use super::connection::{ConnectionError, Streaming, Transport, server_error};
use super::thread::{ReaderThread, let_the_socket_fill};
use super::transaction::{Consumer, POSTGRES_EPOCH_US, StreamError};
use super::wire::{StreamMessage, decode_stream_message, encode_status_update, first_frame};
use crate::bounds::WHOLE_MESSAGE_BYTES;
use crate::event::{Lsn, Transaction};

/// Row changes gathered before the reader waits for the receiver (INV-8).
const MAX_GATHERED_ROWS: u64 = 400;
/// Bytes of messages gathered before the reader waits for the receiver (INV-8).
const MAX_GATHERED_BYTES: usize = 512 << 10;
/// Longest read. What waits behind it waits in the socket.
const READ_BYTES: usize = 512 << 10;
/// A read this large means that more is waiting.
const FULL_READ_BYTES: usize = 32 << 10;
/// Pause after a full read: the socket fills meanwhile, and both sides wake up an eighth as often.
const BEHIND_PAUSE: Duration = Duration::from_micros(2000);

/// Status intervals without a word from the server, two minutes with its defaults. It may be silent while it begins a
/// transaction of many millions of rows.
const SILENT_INTERVALS: u32 = 12;

/// What the reader hands over.
#[derive(Debug, Default)]
pub struct Delivered {
    /// Whole transactions, or slices of a large one, in commit order.
    pub transactions: Vec<Transaction>,
    /// Where the server stood when nothing of ours was open: all WAL before it needs nothing from us once
    /// `transactions` are ledgered.
    pub idle_at: Option<Lsn>,
    /// The server wants to hear of that position at once, as it does when it shuts down.
    pub urgent: bool,
}

/// Why the stream ended.
#[derive(Debug, thiserror::Error)]
pub enum StreamEnd {
    /// The connection.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The content: going on would lose rows.
    #[error("source stream: {0}")]
    Content(#[from] StreamError),
}

/// Tells the server what is durable.
#[derive(Debug, Clone)]
pub struct Confirmer(Arc<watch::Sender<Lsn>>);

impl Confirmer {
    /// Everything before `flush_lsn` is ledgered (INV-1).
    pub fn confirm(&self, flush_lsn: Lsn) {
        self.0.send_if_modified(|current| {
            let moved = flush_lsn > *current;
            *current = flush_lsn.max(*current);
            moved
        });
    }
}

/// The running stream.
pub struct Stream {
    delivered: mpsc::Receiver<Delivered>,
    flush: Confirmer,
    urgent: Arc<Notify>,
    tasks: [JoinHandle<()>; 2],
    _thread: ReaderThread,
    end: Arc<std::sync::Mutex<Option<StreamEnd>>>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        // Ends both tasks and with them the connection, so that PostgreSQL can always stop (INV-9).
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Stream {
    /// Starts both tasks on a connection in streaming mode.
    #[must_use]
    pub fn start(
        streaming: Streaming,
        consumer: impl Consumer,
        flushed: Lsn,
        status_interval: Duration,
    ) -> Self {
        let Streaming { transport, buffer, thread } = streaming;
        let (read, write) = tokio::io::split(transport);
        let (handover, delivered) = mpsc::channel(1);
        let (flush, flush_seen) = watch::channel(flushed);
        let asked = Arc::new(Notify::new());
        let end = Arc::new(std::sync::Mutex::new(None));
        let feedback = thread.handle().spawn(answer(write, flush_seen, asked.clone(), status_interval));
        let urgent = Arc::new(Notify::new());
        let (gathered, rows, bytes) = (Delivered::default(), 0, 0);
        let reader = Reader {
            read,
            buffer: buffer.to_vec(),
            condensing: None,
            consumer,
            handover,
            asked,
            urgent: urgent.clone(),
            gathered,
            rows,
            bytes,
            silence: status_interval * SILENT_INTERVALS,
        };
        let cause = end.clone();
        let reading = thread.handle().spawn(async move {
            let ended = reader.run().await;
            if let Ok(mut cause) = cause.lock() {
                *cause = ended.err();
            }
        });
        Self {
            delivered,
            flush: Confirmer(Arc::new(flush)),
            urgent,
            tasks: [reading, feedback],
            _thread: thread,
            end,
        }
    }

    /// The next slices; an error once the stream has ended and everything before was taken.
    pub async fn next(&mut self) -> Result<Delivered, StreamEnd> {
        match self.delivered.recv().await {
            Some(delivered) => Ok(delivered),
            None => {
                let cause = self.end.lock().ok().and_then(|mut cause| cause.take());
                Err(cause.unwrap_or(StreamEnd::Connection(ConnectionError::Closed)))
            }
        }
    }

    /// Ends when the server wants to hear of its position at once; status updates are sent so often that it only does so
    /// when it is about to stop.
    pub async fn urgent(&self) {
        self.urgent.notified().await;
    }

    /// For confirming positions, also while the stream is being read.
    #[must_use]
    pub fn confirmer(&self) -> Confirmer {
        self.flush.clone()
    }
}

/// Sends status updates: when the position moves, when asked, and now and then.
async fn answer(
    mut write: WriteHalf<Box<dyn Transport>>,
    mut flush: watch::Receiver<Lsn>,
    asked: Arc<Notify>,
    status_interval: Duration,
) {
    let mut ticks = interval(status_interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut out = BytesMut::with_capacity(64);
    loop {
        let ask = tokio::select! {
            moved = flush.changed() => if moved.is_err() { return } else { false },
            () = asked.notified() => false,
            _ = ticks.tick() => true,
        };
        let position = *flush.borrow_and_update();
        out.clear();
        let now_us = Timestamp::now().as_microsecond() - POSTGRES_EPOCH_US;
        encode_status_update(position, now_us, ask, &mut out);
        if write.write_all(&out).await.is_err() || write.flush().await.is_err() {
            // The reader sees the broken connection too, and reports it.
            return;
        }
    }
}

struct Reader<C> {
    read: ReadHalf<Box<dyn Transport>>,
    /// Frames not yet worked off.
    buffer: Vec<u8>,
    /// A message that is too large to be gathered.
    condensing: Option<Condenser>,
    consumer: C,
    handover: mpsc::Sender<Delivered>,
    asked: Arc<Notify>,
    urgent: Arc<Notify>,
    gathered: Delivered,
    rows: u64,
    bytes: usize,
    /// After this long without a word the server counts as gone: it is asked for one again and again.
    silence: Duration,
}

impl<C: Consumer> Reader<C> {
    async fn run(mut self) -> Result<(), StreamEnd> {
        loop {
            self.take_frames()?;
            let full = self.is_full();
            self.make_room();
            let waiting = !self.gathered.transactions.is_empty() || self.gathered.idle_at.is_some();
            let handover = self.handover.clone();
            let mut room = (&mut self.buffer).limit(READ_BYTES);
            tokio::select! {
                biased;
                permit = handover.reserve(), if waiting => match permit {
                    Ok(permit) => {
                        permit.send(std::mem::take(&mut self.gathered));
                        (self.rows, self.bytes) = (0, 0);
                    }
                    // Nobody listens any more: the stream is being closed.
                    Err(_) => return Ok(()),
                },
                () = sleep(self.silence), if !full => {
                    return Err(ConnectionError::Silent { seconds: self.silence.as_secs() }.into());
                }
                read = self.read.read_buf(&mut room), if !full => {
                    let count = read.map_err(ConnectionError::from)?;
                    if count == 0 {
                        return Err(ConnectionError::Closed.into());
                    }
                    if count >= FULL_READ_BYTES {
                        let_the_socket_fill(BEHIND_PAUSE);
                    }
                }
            }
        }
    }

    /// Something is to be handed over, and enough of it.
    fn is_full(&self) -> bool {
        let much = self.rows >= MAX_GATHERED_ROWS || self.bytes >= MAX_GATHERED_BYTES;
        much && !self.gathered.transactions.is_empty()
    }

    /// Works off every whole frame in the buffer, where it lies.
    fn take_frames(&mut self) -> Result<(), StreamEnd> {
        let buffer = std::mem::take(&mut self.buffer);
        let mut taken = 0;
        let result = self.work_off(&buffer, &mut taken);
        self.buffer = buffer;
        self.buffer.drain(..taken);
        result
    }

    /// For one more read. Room that only a huge row needed is given back.
    fn make_room(&mut self) {
        if self.buffer.len() < READ_BYTES {
            self.buffer.shrink_to(4 * READ_BYTES);
        }
        if self.buffer.capacity() - self.buffer.len() < READ_BYTES {
            self.buffer.reserve_exact(READ_BYTES);
        }
    }

    fn work_off(&mut self, buffer: &[u8], taken: &mut usize) -> Result<(), StreamEnd> {
        while !self.is_full() {
            let rest = buffer.get(*taken..).unwrap_or_default();
            if let Some(condenser) = &mut self.condensing {
                *taken += condenser.feed(rest, &self.consumer).map_err(StreamError::from)?;
                if !condenser.is_whole() {
                    return Ok(());
                }
                if let Some(payload) = self.condensing.take().and_then(Condenser::finish) {
                    self.payload(&payload)?;
                }
                continue;
            }
            if let Some(length) = oversized(rest) {
                self.condensing = Some(Condenser::new(length));
                *taken += FRAME_HEADER;
                continue;
            }
            let Some((frame, size)) = first_frame(rest).map_err(StreamError::from)? else { return Ok(()) };
            match frame.tag {
                b'd' => self.stream_message(frame.body)?,
                // CopyDone or CommandComplete: the server ends the stream, as it does when it shuts down.
                b'c' | b'C' => return Err(ConnectionError::Closed.into()),
                b'E' => return Err(server_error(frame.body).into()),
                _ => {}
            }
            *taken += size;
        }
        Ok(())
    }

    fn stream_message(&mut self, body: &[u8]) -> Result<(), StreamEnd> {
        match decode_stream_message(body).map_err(StreamError::from)? {
            StreamMessage::XLogData { payload } => self.payload(payload)?,
            StreamMessage::Keepalive { wal_end, reply_requested } => {
                if reply_requested {
                    self.asked.notify_one();
                    self.urgent.notify_one();
                }
                // Inside a transaction the server's position is not ours to confirm.
                if !self.consumer.in_transaction() {
                    self.gathered.idle_at = Some(wal_end);
                    self.gathered.urgent |= reply_requested;
                }
            }
        }
        Ok(())
    }

    fn payload(&mut self, payload: &[u8]) -> Result<(), StreamEnd> {
        self.bytes += payload.len();
        if let Some(transaction) = self.consumer.push(payload)? {
            self.rows += transaction.changes.len() as u64 + 1;
            self.gathered.transactions.push(transaction);
            // Whatever the keepalive said, this transaction came after it.
            self.gathered.idle_at = None;
        }
        Ok(())
    }
}

/// Tag and length of a frame.
const FRAME_HEADER: usize = 5;

/// Length of the message that `bytes` begin with, when it is one of the stream and too large to be gathered.
fn oversized(bytes: &[u8]) -> Option<usize> {
    let (&tag, rest) = bytes.split_first()?;
    let length = usize::try_from(u32::from_be_bytes(*rest.first_chunk::<4>()?)).ok()?;
    // A length that no message has is refused where frames are read.
    let is_possible = (WHOLE_MESSAGE_BYTES..=1 << 30).contains(&length);
    (tag == b'd' && is_possible).then_some(length - 4)
}
