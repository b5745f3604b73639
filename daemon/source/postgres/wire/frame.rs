//! Frames of the frontend/backend protocol and of the replication sub-protocol inside `CopyData`.
//!
//! Sources: <https://www.postgresql.org/docs/current/protocol-message-formats.html> and
//! <https://www.postgresql.org/docs/current/protocol-replication.html>.

use bytes::{BufMut, Bytes, BytesMut};

use super::reader::{DecodeError, FieldReader};
use crate::event::Lsn;

/// PostgreSQL never sends more in one message: its own allocations end at 1 GiB (`MaxAllocSize`).
const MAX_FRAME_BYTES: usize = 1 << 30;

/// A backend message: its tag and its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// First byte of the message.
    pub tag: u8,
    /// Body without tag and length, shared with the receive buffer.
    pub body: Bytes,
}

/// The first whole frame of `buffer`, with its size there; `None` when more bytes are needed.
pub fn first_frame(buffer: &[u8]) -> Result<Option<(BorrowedFrame<'_>, usize)>, DecodeError> {
    let Some((&tag, rest)) = buffer.split_first() else { return Ok(None) };
    let Some(prefix) = rest.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_be_bytes(*prefix);
    let size = usize::try_from(length).unwrap_or(usize::MAX);
    if !(4..=MAX_FRAME_BYTES).contains(&size) {
        return Err(DecodeError::BadLength { message: "frame", field: "length", length: i64::from(length) });
    }
    Ok(rest.get(4..size).map(|body| (BorrowedFrame { tag, body }, size + 1)))
}

/// A backend message, still in the receive buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BorrowedFrame<'a> {
    /// First byte of the message.
    pub tag: u8,
    /// Body without tag and length.
    pub body: &'a [u8],
}

/// Takes the next whole frame from `buffer`; `None` when more bytes are needed.
pub fn take_frame(buffer: &mut BytesMut) -> Result<Option<Frame>, DecodeError> {
    let Some((frame, size)) = first_frame(buffer)? else { return Ok(None) };
    let tag = frame.tag;
    let mut whole = buffer.split_to(size).freeze();
    let body = whole.split_off(5);
    Ok(Some(Frame { tag, body }))
}

/// A message inside `CopyData` while streaming.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamMessage<'a> {
    /// `w`: a piece of the logical stream.
    XLogData {
        /// The pgoutput message.
        payload: &'a [u8],
    },
    /// `k`: where the server stands.
    Keepalive {
        /// End of WAL on the server; everything of ours before it has been sent.
        wal_end: Lsn,
        /// The server wants a status update at once, or it will close the connection.
        reply_requested: bool,
    },
}

/// Decodes the body of a `CopyData` message.
pub fn decode_stream_message(body: &[u8]) -> Result<StreamMessage<'_>, DecodeError> {
    let mut fields = FieldReader::new("CopyData", body);
    match fields.u8("tag")? {
        b'w' => {
            let _data_start = fields.u64("XLogData.dataStart")?;
            let _wal_end = fields.u64("XLogData.walEnd")?;
            let _sent_at = fields.i64("XLogData.sendTime")?;
            Ok(StreamMessage::XLogData { payload: fields.rest() })
        }
        b'k' => {
            let wal_end = Lsn(fields.u64("keepalive.walEnd")?);
            let _sent_at = fields.i64("keepalive.sendTime")?;
            let reply_requested = fields.u8("keepalive.replyRequested")? != 0;
            fields.end()?;
            Ok(StreamMessage::Keepalive { wal_end, reply_requested })
        }
        tag => Err(fields.unknown_tag("tag", tag)),
    }
}

/// Encodes a standby status update (`r`) as a whole `CopyData` message.
///
/// `ask`: the server is to answer with a keepalive, so that its silence means something. Written, flushed and applied are the same position: only what the ledger committed is reported (INV-1).
pub fn encode_status_update(flush_lsn: Lsn, now_postgres_us: i64, ask: bool, out: &mut BytesMut) {
    out.put_u8(b'd');
    out.put_i32(4 + 34);
    out.put_u8(b'r');
    for _ in 0..3 {
        out.put_u64(flush_lsn.0);
    }
    out.put_i64(now_postgres_us);
    out.put_u8(u8::from(ask));
}
