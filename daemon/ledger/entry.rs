//! Ledger entries: what is written, and the exact bytes the tree covers.

use jiff::Timestamp;
use serde_json::{Map, Value};
use tlog_tiles::tlog::{Hash, record_hash};

/// Version of the body's layout.
const BODY_VERSION: u64 = 1;

/// What an entry records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A canonical event with the row changes it came from.
    Event,
    /// A request about to leave.
    Attempt,
    /// What became of a delivery.
    Outcome,
    /// The last slice of a large transaction.
    TxEnd,
    /// What the daemon runs with, as far as it changes what is delivered.
    Config,
    /// The daemon started.
    Start,
    /// The daemon stopped in good order.
    Stop,
}

impl EntryKind {
    /// The word in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Event => "event",
            Self::Attempt => "attempt",
            Self::Outcome => "outcome",
            Self::TxEnd => "tx_end",
            Self::Config => "config",
            Self::Start => "start",
            Self::Stop => "stop",
        }
    }
}

/// An entry without its place in the ledger.
#[derive(Debug, Clone)]
pub struct NewEntry {
    /// What it records.
    pub kind: EntryKind,
    /// Follows one business fact through entries, log lines and requests.
    pub correlation_id: Option<String>,
    /// Its own fields.
    pub fields: Map<String, Value>,
}

impl NewEntry {
    /// An entry whose fields are the members of `fields`.
    #[must_use]
    pub fn new(kind: EntryKind, correlation_id: Option<String>, fields: Value) -> Self {
        let fields = match fields {
            Value::Object(map) => map,
            other => Map::from_iter([("value".to_owned(), other)]),
        };
        Self { kind, correlation_id, fields }
    }

    /// RFC 8785 bytes of the entry at its place in the ledger.
    #[must_use]
    pub fn seal(mut self, seq: i64, recorded_at: Timestamp) -> SealedEntry {
        self.fields.insert("v".into(), BODY_VERSION.into());
        self.fields.insert("seq".into(), seq.into());
        self.fields.insert("kind".into(), self.kind.as_str().into());
        self.fields.insert("recorded_at".into(), recorded_at.to_string().into());
        self.fields.insert("correlation_id".into(), self.correlation_id.clone().into());
        let body = crate::image::canonical_bytes(&Value::Object(self.fields));
        let leaf = record_hash(&body);
        SealedEntry { seq, kind: self.kind, recorded_at, correlation_id: self.correlation_id, body, leaf }
    }
}

/// An entry as it is stored.
#[derive(Debug, Clone)]
pub struct SealedEntry {
    /// Place in the ledger, from 1, gapless.
    pub seq: i64,
    /// What it records.
    pub kind: EntryKind,
    /// When.
    pub recorded_at: Timestamp,
    /// See [`NewEntry::correlation_id`].
    pub correlation_id: Option<String>,
    /// RFC 8785 bytes.
    pub body: Vec<u8>,
    /// RFC 6962 leaf hash of `body`.
    pub leaf: Hash,
}
