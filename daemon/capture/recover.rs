//! After changes were lost: the gap is written down, and the source is read again through a new slot. What it has no more
//! is found by what the ledger still has.

use serde_json::json;
use tokio_postgres::Client;

use super::Source;
use super::error::CaptureError;
use crate::event::{Cluster, Lsn};
use crate::ledger::Ledger;
use crate::ledger::batch::{Batch, LoadWrite};
use crate::ledger::entry::{EntryKind, NewEntry};
use crate::ledger::loads::{LoadKind, Request, current};
use crate::ledger::position::{Phase, Position};
use crate::source::postgres::slot::{self, Discontinuity};

/// Why and on whose behalf.
pub struct Recovery<'a> {
    /// The source.
    pub source: &'a Source,
    /// The ledger.
    pub ledger: &'a Ledger,
    /// Who asked.
    pub requested_by: &'a str,
    /// What was found.
    pub problem: &'a Discontinuity,
}

impl Recovery<'_> {
    /// Drops what is left of the slot and writes the gap down. The follower then makes a new slot and reads every table;
    /// a crash at any point leaves that to the next start.
    pub async fn begin(
        &self,
        client: &Client,
        cluster: Cluster,
        position: Position,
    ) -> Result<Position, CaptureError> {
        let (source, ledger) = (self.source, self.ledger);
        let tables: Vec<String> =
            source.flow.mapping.tables.iter().map(|table| table.name.to_string()).collect();
        let reason = self.problem.to_string();
        let mut batch = Batch::default();
        let fields = json!({
            "source": source.flow.name, "relations": tables, "reason": reason, "requested_by": self.requested_by,
            "from": position.end_lsn.to_string(), "system_identifier": cluster.system_identifier,
            "timeline": cluster.timeline,
        });
        batch.entry(NewEntry::new(EntryKind::Gap, None, fields));
        let asked = Request {
            source: source.flow.name.clone(),
            kind: LoadKind::Recover,
            relations: tables,
            lower: None,
            upper: None,
            // A slot ahead of the ledger may mean that the ledger is an older copy, which has forgotten what it did.
            look_first: matches!(self.problem, Discontinuity::SlotAhead { .. }),
            reason,
            requested_by: self.requested_by.to_owned(),
        };
        if let Some((open, _)) = current(ledger.reader(), &source.flow.name, false).await? {
            batch.loads.push(LoadWrite::End { load: open.id, refused: true });
        }
        batch.loads.push(LoadWrite::Ask(asked));
        let old_slot = position.slot.clone();
        let position = Position {
            cluster,
            slot: source.slot.clone(),
            phase: Phase::Creating,
            commit_lsn: Lsn::default(),
            ordinal: None,
            end_lsn: Lsn::default(),
            mapped: None,
            ..position
        };
        batch.positions.push(position.clone());
        // From here on the slot is known to be ours to make anew, whatever happens.
        ledger.writer().write(batch).await?;
        for slot in [&old_slot, &source.slot] {
            if slot::exists(client, slot).await? {
                slot::drop(client, slot).await?;
            }
        }
        Ok(position)
    }
}
