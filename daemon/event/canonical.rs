//! Canonical events: what the business did, free of the source's tables.

use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::json::{canonical_struct_bytes, is_plain};
use super::position::{ChangePosition, Cluster};
use super::row::Row;

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
}

impl EventRecord {
    /// RFC 8785 bytes of the entry at its place in the ledger. `version`: of the layout.
    #[must_use]
    pub fn to_body(&self, version: u64, seq: i64, kind: &str, recorded_at: Timestamp) -> Vec<u8> {
        let (event, origin) = (&self.event, &*self.origin);
        let body = Body {
            changes: event.causes.iter().map(change).collect(),
            correlation_id: &event.event_id,
            data: &event.data,
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
            event_type: &event.event_type,
            v: version,
        };
        let rows = event.causes.iter().flat_map(|cause| [&cause.before, &cause.after]).flatten();
        let plain = is_plain(&event.data)
            && rows.flat_map(|row| row.iter()).all(|(name, value)| name.is_ascii() && is_plain(value));
        canonical_struct_bytes(&body, plain)
    }
}

fn change(cause: &Cause) -> ChangeOfBody<'_> {
    let op = match (&cause.before, &cause.after) {
        (None, _) => "insert",
        (_, None) => "delete",
        _ => "update",
    };
    let (after, before) = (cause.after.as_deref(), cause.before.as_deref());
    ChangeOfBody { after, before, by: cause.by.as_deref(), key: &cause.key, op, relation: &cause.table }
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
    #[serde(rename = "type")]
    event_type: &'a str,
    v: u64,
}

#[derive(Serialize)]
struct ChangeOfBody<'a> {
    after: Option<&'a Row>,
    before: Option<&'a Row>,
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<&'a str>,
    key: &'a str,
    op: &'a str,
    relation: &'a str,
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
