//! Bytes of the replication connection. Checked reads only; nothing here knows of tables, mappings or sockets.

pub mod frame;
pub mod pgoutput;
pub mod reader;

pub use frame::{
    BorrowedFrame, Frame, StreamMessage, decode_stream_message, encode_status_update, first_frame, take_frame,
};
pub use pgoutput::{LogicalMessage, OldTuple, RelationMessage, Tuple, TupleValue};
pub use reader::DecodeError;
