//! Canonical events: what the business did, free of the source's tables.

use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value};

use super::json::{canonical_struct_bytes, is_plain};
use super::position::{ChangePosition, Cluster};
use super::row::Row;
use super::sealing::{Keys, Personal, PersonalPart, SEALED};

/// What happened to the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// It came into view.
    Create,
    /// It changed.
    Update,
    /// It left: deleted at the source, or no longer of this kind.
    Delete,
}

impl Operation {
    /// The word in the ledger and in expressions.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::Delete => "delete",
        }
    }

    /// Of the word in the ledger.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Create, Self::Update, Self::Delete].into_iter().find(|operation| operation.as_str() == word)
    }
}

/// A row change behind an event.
#[derive(Debug, Clone, PartialEq)]
pub struct Cause {
    /// Table in the source.
    pub table: Arc<str>,
    /// Row key.
    pub key: String,
    /// Mapped columns before, `None` for a new row.
    pub before: Option<Arc<Row>>,
    /// Mapped columns after, `None` for a deleted row.
    pub after: Option<Arc<Row>>,
    /// Who wrote it, in the source's terms (Odoo: `res_users.id`); `None` where that is not known.
    pub by: Option<Box<str>>,
}

/// A normalised business fact.
#[derive(Debug, Clone, PartialEq)]
pub struct CanonicalEvent {
    /// Stable identity (INV-4).
    pub event_id: String,
    /// Type with version: `customer.v1`.
    pub event_type: String,
    /// What happened.
    pub operation: Operation,
    /// Canonical id of the object: the same at every target.
    pub id: String,
    /// The whole object after the change; the last known one for a delete.
    pub data: Value,
    /// Fields that the source has no say in: what stands there in `data` means nothing.
    pub foreign: Vec<String>,
    /// Where it stands in the source.
    pub position: ChangePosition,
    /// When the source committed it.
    pub committed_at: Timestamp,
    /// Transaction id at the source; `None` in a snapshot.
    pub xid: Option<u32>,
    /// True when it came from the first load.
    pub snapshot: bool,
    /// The row changes it came from.
    pub causes: Vec<Cause>,
}

/// Where events come from, the same for many of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Source name of the settings.
    pub source: String,
    /// Cluster it is read from.
    pub cluster: Cluster,
    /// Digest of the mapping files.
    pub mapping_sha256: String,
}

/// An event as the ledger records it.
#[derive(Debug, Clone)]
pub struct EventRecord {
    /// The event.
    pub event: CanonicalEvent,
    /// Where it comes from.
    pub origin: Arc<Origin>,
    /// What is wrong with it: then it is held back, and waits for a later change of the object.
    pub fault: Option<String>,
    /// It is that later change.
    pub heals: bool,
    /// What of it is personal.
    pub personal: Personal,
}

impl EventRecord {
    /// RFC 8785 bytes of the entry at its place in the ledger. `version`: of the layout; `keys`: what is personal of their subjects is
    /// sealed.
    #[must_use]
    pub fn to_body(
        &self,
        (version, kind): (u64, &str),
        seq: i64,
        recorded_at: Timestamp,
        keys: &Keys,
    ) -> Vec<u8> {
        let (event, origin) = (&self.event, &*self.origin);
        let data = self.personal.data.as_ref().and_then(|part| sealed_data(&event.data, part, keys));
        let parts = self.personal.changes.iter().map(Option::as_ref).chain(std::iter::repeat(None));
        let subjects = if keys.is_empty() { Vec::new() } else { self.personal.subjects() };
        let body = Body {
            changes: event.causes.iter().zip(parts).map(|(cause, part)| change(cause, part, keys)).collect(),
            correlation_id: &event.event_id,
            data: data.as_ref().unwrap_or(&event.data),
            event_id: &event.event_id,
            fault: self.fault.as_deref(),
            foreign: &event.foreign,
            heals: self.heals.then_some(true),
            id: &event.id,
            kind,
            mapping_sha256: &origin.mapping_sha256,
            op: event.operation.as_str(),
            recorded_at,
            seq,
            source: SourceOfBody {
                commit_lsn: event.position.commit_lsn.to_string(),
                committed_at: event.committed_at,
                name: &origin.source,
                ordinal: event.position.ordinal,
                snapshot: event.snapshot,
                system_identifier: &origin.cluster.system_identifier,
                timeline: origin.cluster.timeline,
                xid: event.xid,
            },
            subjects,
            event_type: &event.event_type,
            v: version,
        };
        let rows = event.causes.iter().flat_map(|cause| [&cause.before, &cause.after]).flatten();
        let plain = is_plain(&event.data)
            && rows.flat_map(|row| row.iter()).all(|(name, value)| name.is_ascii() && is_plain(value));
        canonical_struct_bytes(&body, plain)
    }
}

/// The data without what is personal, which is sealed; `None` when there is nothing of that, or no key.
fn sealed_data(data: &Value, part: &PersonalPart, keys: &Keys) -> Option<Value> {
    let (key, mut object) = (keys.get(&part.subject)?, data.as_object()?.clone());
    let take = |name: &Arc<str>| object.remove_entry(&**name);
    let members: Map<String, Value> = part.fields.iter().filter_map(take).collect();
    if members.values().all(Value::is_null) {
        return None;
    }
    object.insert(SEALED.into(), key.seal(&part.subject, &members)?.into());
    Some(object.into())
}

fn row<'a>(row: Option<&'a Row>, part: Option<&'a PersonalPart>, keys: &Keys) -> Option<RowOfBody<'a>> {
    let row = row?;
    let sealed = part.and_then(|part| {
        let members = part.fields.iter().filter_map(|name| Some((name.to_string(), row.get(name)?.clone())));
        let members: Map<String, Value> = members.collect();
        Some((&*part.fields, keys.get(&part.subject)?.seal(&part.subject, &members)?))
    });
    Some(RowOfBody { row, sealed })
}

fn change<'a>(cause: &'a Cause, part: Option<&'a PersonalPart>, keys: &Keys) -> ChangeOfBody<'a> {
    let op = match (&cause.before, &cause.after) {
        (None, _) => "insert",
        (_, None) => "delete",
        _ => "update",
    };
    let (after, before) = (cause.after.as_deref(), cause.before.as_deref());
    // Which of them changed is known without the key.
    let differs =
        |name: &&Arc<str>| before.and_then(|row| row.get(name)) != after.and_then(|row| row.get(name));
    let known = part.filter(|part| keys.contains_key(&part.subject));
    let sealed = known.map(|part| part.fields.iter().filter(differs).map(|name| &**name).collect());
    let (after, before) = (row(after, part, keys), row(before, part, keys));
    ChangeOfBody {
        after,
        before,
        by: cause.by.as_deref(),
        key: &cause.key,
        op,
        relation: &cause.table,
        sealed,
    }
}

/// Fields in the order of their names, as RFC 8785 wants them.
#[derive(Serialize)]
struct Body<'a> {
    changes: Vec<ChangeOfBody<'a>>,
    correlation_id: &'a str,
    data: &'a Value,
    event_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<&'a str>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    foreign: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    heals: Option<bool>,
    id: &'a str,
    kind: &'a str,
    mapping_sha256: &'a str,
    op: &'a str,
    recorded_at: Timestamp,
    seq: i64,
    source: SourceOfBody<'a>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    subjects: Vec<&'a str>,
    #[serde(rename = "type")]
    event_type: &'a str,
    v: u64,
}

#[derive(Serialize)]
struct ChangeOfBody<'a> {
    after: Option<RowOfBody<'a>>,
    before: Option<RowOfBody<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<&'a str>,
    key: &'a str,
    op: &'a str,
    relation: &'a str,
    /// Names of sealed columns that differ.
    #[serde(skip_serializing_if = "Option::is_none")]
    sealed: Option<Vec<&'a str>>,
}

/// A row, perhaps with a text in the place of some of its columns.
struct RowOfBody<'a> {
    row: &'a Row,
    sealed: Option<(&'a [Arc<str>], String)>,
}

impl Serialize for RowOfBody<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Some((fields, text)) = &self.sealed else { return self.row.serialize(serializer) };
        // The name of what is sealed comes behind all letters, as RFC 8785 wants it.
        let sealed = Value::from(text.as_str());
        let open = self.row.iter().filter(|(name, _)| fields.binary_search(name).is_err());
        serializer.collect_map(open.map(|(name, value)| (&**name, value)).chain([(SEALED, &sealed)]))
    }
}

#[derive(Serialize)]
struct SourceOfBody<'a> {
    commit_lsn: String,
    committed_at: Timestamp,
    name: &'a str,
    ordinal: u64,
    snapshot: bool,
    system_identifier: &'a str,
    timeline: u32,
    xid: Option<u32>,
}
