//! Canonical events: what the business did, free of the source's tables.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::change::Row;
use super::position::{ChangePosition, Cluster};

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
}

/// A row change behind an event.
#[derive(Debug, Clone, PartialEq)]
pub struct Cause {
    /// Table in the source.
    pub table: String,
    /// Row key.
    pub key: String,
    /// Mapped columns before, `None` for a new row.
    pub before: Option<Arc<Row>>,
    /// Mapped columns after, `None` for a deleted row.
    pub after: Option<Arc<Row>>,
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

impl CanonicalEvent {
    /// The envelope and the data as the ledger keeps them.
    #[must_use]
    pub fn to_body(&self, source: &str, cluster: &Cluster, mapping_sha256: &str) -> Value {
        let causes = self.causes.iter().map(|cause| {
            let op = match (&cause.before, &cause.after) {
                (None, _) => "insert",
                (_, None) => "delete",
                _ => "update",
            };
            json!({"relation": cause.table, "key": cause.key, "op": op, "before": cause.before.as_deref(), "after": cause.after.as_deref()})
        });
        json!({
            "event_id": self.event_id,
            "type": self.event_type,
            "op": self.operation.as_str(),
            "id": self.id,
            "data": self.data,
            "mapping_sha256": mapping_sha256,
            "changes": causes.collect::<Vec<_>>(),
            "source": {
                "name": source,
                "system_identifier": cluster.system_identifier,
                "timeline": cluster.timeline,
                "commit_lsn": self.position.commit_lsn.to_string(),
                "ordinal": self.position.ordinal,
                "xid": self.xid,
                "committed_at": self.committed_at.to_string(),
                "snapshot": self.snapshot,
            },
        })
    }
}
