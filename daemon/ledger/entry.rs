//! Ledger entries: what is written, and the exact bytes the tree covers.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Map, Value};
use tlog_tiles::tlog::{Hash, record_hash};

use crate::event::sealing::SEALED;
use crate::event::{EventRecord, Keys, PersonalPart, canonical_bytes};

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
    /// Changes that could not be read, and what was done about them.
    Gap,
    /// A source changed what it does not own; that goes nowhere.
    Drift,
    /// Two sources changed the same field, each without knowing of the other.
    Conflict,
    /// What a target holds was compared with what it should.
    Reconcile,
    /// What a person did.
    Operator,
    /// Somebody read the ledger.
    Read,
    /// The key of a subject was destroyed.
    Erase,
    /// A month was written to a file, to be taken out of the database, or was put back.
    Archive,
    /// Somebody took a copy of a part of the ledger.
    Export,
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
            Self::Gap => "gap",
            Self::Drift => "drift",
            Self::Conflict => "conflict",
            Self::Reconcile => "reconcile",
            Self::Operator => "operator",
            Self::Read => "read",
            Self::Export => "export",
            Self::Erase => "erase",
            Self::Archive => "archive",
            Self::Start => "start",
            Self::Stop => "stop",
        }
    }
}

/// What an entry says.
#[derive(Debug, Clone)]
pub enum Content {
    /// Its own fields.
    Fields(Map<String, Value>),
    /// A canonical event.
    Event(Arc<EventRecord>),
}

/// An entry without its place in the ledger.
#[derive(Debug, Clone)]
pub struct NewEntry {
    /// What it records.
    pub kind: EntryKind,
    /// Follows one business fact through entries, log lines and requests.
    pub correlation_id: Option<String>,
    /// What it says.
    pub content: Content,
    /// Fields that are personal; of an event its record says that.
    pub personal: Option<PersonalPart>,
}

impl NewEntry {
    /// An entry whose fields are the members of `fields`.
    #[must_use]
    pub fn new(kind: EntryKind, correlation_id: Option<String>, fields: Value) -> Self {
        let fields = match fields {
            Value::Object(map) => map,
            other => Map::from_iter([("value".to_owned(), other)]),
        };
        Self { kind, correlation_id, content: Content::Fields(fields), personal: None }
    }

    /// The entry of a canonical event.
    #[must_use]
    pub fn event(record: EventRecord) -> Self {
        let correlation_id = Some(record.event.event_id.clone());
        Self {
            kind: EntryKind::Event,
            correlation_id,
            content: Content::Event(Arc::new(record)),
            personal: None,
        }
    }

    /// RFC 8785 bytes of the entry at its place in the ledger. `keys`: of those whose data is sealed in it.
    #[must_use]
    pub fn seal(self, seq: i64, recorded_at: Timestamp, keys: &Keys) -> SealedEntry {
        let Self { kind, correlation_id, content, personal } = self;
        let (refs, body) = match content {
            Content::Event(record) => {
                let rows = record.event.causes.iter().map(|cause| (&*cause.table, cause.key.as_str()));
                let subjects = if keys.is_empty() { Vec::new() } else { record.personal.subjects() };
                let refs =
                    refs(Some(&record.event.id).into_iter().map(String::as_str).chain(subjects), None, rows);
                (refs, record.to_body((BODY_VERSION, kind.as_str()), seq, recorded_at, keys))
            }
            Content::Fields(mut fields) => {
                if let Some(part) = personal {
                    seal_fields(&mut fields, &part, keys);
                }
                let text = |name| fields.get(name).and_then(Value::as_str);
                let refs = refs(
                    text("id").into_iter().chain(text("subject")),
                    text("target").zip(text("external_id")),
                    std::iter::empty(),
                );
                fields.insert("v".into(), BODY_VERSION.into());
                fields.insert("seq".into(), seq.into());
                fields.insert("kind".into(), kind.as_str().into());
                fields.insert("recorded_at".into(), recorded_at.to_string().into());
                fields.insert("correlation_id".into(), correlation_id.clone().into());
                (refs, canonical_bytes(&Value::Object(fields)))
            }
        };
        let leaf = record_hash(&body);
        SealedEntry { seq, kind, recorded_at, correlation_id, refs, body, leaf }
    }
}

/// Puts one text in the place of what is personal; without a key it stays.
fn seal_fields(fields: &mut Map<String, Value>, part: &PersonalPart, keys: &Keys) {
    let Some(key) = keys.get(&part.subject) else { return };
    let members = part.fields.iter().filter_map(|name| fields.remove_entry(&**name)).collect();
    if let Some(text) = key.seal(&part.subject, &members) {
        fields.insert(SEALED.into(), text.into());
        fields.insert("subject".into(), part.subject.as_str().into());
    }
}

/// Stands between references where several are one text; in none of them.
pub const SEPARATOR: &str = "\u{1}";

/// What an entry is found by: the canonical id it is about, whose data is sealed in it, the object at a target, and the rows that changed. A copy of what its body
/// says, so that it can be checked against it.
#[must_use]
pub fn refs<'a>(
    ids: impl Iterator<Item = &'a str>,
    remote: Option<(&'a str, &'a str)>,
    rows: impl Iterator<Item = (&'a str, &'a str)>,
) -> Vec<String> {
    let mut refs: Vec<String> = ids.map(str::to_owned).collect();
    refs.extend(remote.into_iter().chain(rows).map(|(whose, key)| format!("{whose}/{key}")));
    for reference in refs.iter_mut().filter(|reference| reference.contains(SEPARATOR)) {
        *reference = reference.replace(SEPARATOR, " ");
    }
    refs.retain(|reference| !reference.is_empty());
    refs.sort_unstable();
    refs.dedup();
    refs
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
    /// See [`refs`].
    pub refs: Vec<String>,
    /// RFC 8785 bytes.
    pub body: Vec<u8>,
    /// RFC 6962 leaf hash of `body`.
    pub leaf: Hash,
}
