//! A target in shadow mode: what would have been sent is worked out and recorded, and not sent.

use serde_json::json;

use super::deliver::Delivery;
use crate::connector::request::Request;
use crate::event::sha256_hex;
use crate::ledger::LedgerError;
use crate::ledger::batch::{Batch, ClosedWrite};
use crate::ledger::entry::{EntryKind, NewEntry};

impl Delivery {
    /// Records what would have been sent.
    pub(super) async fn shadow(&self, request: &Request) -> Result<(), LedgerError> {
        let mut batch = Batch::default();
        self.supersede(&mut batch);
        let reason = format!("not sent: {} {} in shadow mode", request.method, request.step);
        batch.entry(NewEntry::new(
            EntryKind::Outcome,
            self.correlation_id(),
            json!({
                "delivery": self.due.id, "event_seq": self.due.event_seq, "target": self.due.lane.target,
                "object": self.due.lane.object, "id": self.due.lane.canonical_id, "class": "shadowed", "step": request.step,
                "method": request.method, "path_sha256": sha256_hex(request.path.as_bytes()),
                "request_sha256": request.body.as_ref().map(|body| sha256_hex(body.as_bytes())),
            }),
        ));
        batch.closed.push(ClosedWrite { id: self.due.id, state: "shadowed", reason: Some(reason) });
        self.ledger.writer().write(batch).await.map(|_| ())
    }
}
