//! A target in shadow mode: what would have been sent is worked out and recorded, and not sent.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;

use super::deliver::Delivery;
use super::plan::Plan;
use crate::event::sha256_hex;
use crate::ledger::LedgerError;
use crate::ledger::batch::{Batch, ClosedWrite, RetryWrite};
use crate::ledger::entry::{EntryKind, NewEntry};

/// How often it is looked whether what is in doubt may be resolved.
const LOOK: Duration = Duration::from_secs(30);

impl Delivery {
    /// Records what would have been done. It stays in its lane, and is decided again once the target is live.
    pub(super) async fn shadow(&self, plan: Plan) -> Result<(), LedgerError> {
        let mut batch = Batch::default();
        if self.due.uncertain {
            // What was sent before the shadow is resolved when requests may leave again; until then its lane waits.
            batch.retries.push(RetryWrite {
                id: self.due.id,
                due_at: Timestamp::now().checked_add(LOOK).unwrap_or(Timestamp::MAX),
                reason: "in doubt since before the target was in shadow mode".into(),
                uncertain: true,
                new_round: false,
                counted: false,
                alone: false,
                replayed_since: None,
            });
            return self.ledger.writer().write(batch).await.map(|_| ());
        }
        self.supersede(&mut batch);
        let (what, request) = match &plan {
            Plan::Send { request, .. }
            | Plan::Adopt { request, .. }
            | Plan::Find(request)
            | Plan::Prepare { first: request, .. } => {
                (format!("{} {}", request.method, request.step), Some(request))
            }
            Plan::Skip { reason, .. } => ((*reason).to_owned(), None),
            Plan::Note { .. } => ("so already at the target".to_owned(), None),
            Plan::Park(_, reason) => (format!("parked: {reason}"), None),
        };
        batch.entry(NewEntry::new(
            EntryKind::Outcome,
            self.correlation_id(),
            json!({
                "delivery": self.due.id, "event_seq": self.due.event_seq, "target": self.due.lane.target,
                "object": self.due.lane.object, "id": self.due.lane.canonical_id, "class": "shadowed", "reason": what,
                "path_sha256": request.map(|request| sha256_hex(request.path.as_bytes())),
                "request_sha256": request.and_then(|request| request.body.as_ref()).map(|body| sha256_hex(body.as_bytes())),
            }),
        ));
        let reason = Some(format!("not done, because of shadow mode: {what}"));
        batch.closed.push(ClosedWrite { id: self.due.id, state: "shadowed", reason, cause: None });
        self.ledger.writer().write(batch).await.map(|_| ())
    }
}
