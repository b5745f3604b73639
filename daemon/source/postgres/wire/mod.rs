//! Bytes of the replication connection. Checked reads only; nothing here knows of tables, mappings or sockets.

pub mod frame;
pub mod pgoutput;
pub mod reader;

pub use frame::{Frame, StreamMessage, decode_stream_message, encode_status_update, take_frame};
pub use pgoutput::{LogicalMessage, OldTuple, RelationMessage, Tuple, TupleValue};
pub use reader::DecodeError;
