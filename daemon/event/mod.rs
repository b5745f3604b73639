//! What flows through the program: row changes, canonical events, positions. Pure data, no I/O.

pub mod canonical;
pub mod change;
pub mod json;
pub mod position;
pub mod priority;
pub mod row;
pub mod sealing;
pub mod words;

pub use canonical::{CanonicalEvent, Cause, EventRecord, Operation, Origin};
pub use change::{Change, RowState, Transaction, Unreadable, key_text, row_key};
pub use json::{canonical_bytes, canonical_struct_bytes, is_plain};
pub use position::{ChangePosition, Cluster, Lsn, event_id, hex, sha256_hex};
pub use priority::Priority;
pub use row::{Columns, Field, LEFT_OUT, Row, SentRow};
pub use sealing::{Keys, Personal, PersonalPart};
