//! From transactions to a ledger batch: images, events, deliveries, position, all in one.

use std::collections::HashSet;
use std::sync::Arc;

use super::Source;
use crate::event::{Cluster, Operation, Transaction};
use crate::image::{Emitted, Images, Overlay, OverlayChanges, Projection, UnknownColumn};
use crate::ledger::batch::{Batch, DeliveryWrite, DocumentWrite, ImageWrite, Lane};
use crate::ledger::entry::{EntryKind, NewEntry};
use crate::ledger::{Ledger, LedgerError, images};
use crate::mapping::EventKind;

/// Rounds of loading after which something must be wrong: each round resolves one level of joins.
const MAX_ROUNDS: usize = 16;

/// Why a slice could not be worked out.
#[derive(Debug, thiserror::Error)]
pub enum IntakeError {
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A column that was not sent and is in no image.
    #[error(transparent)]
    UnknownColumn(#[from] UnknownColumn),
    /// Loading does not come to an end.
    #[error("the images a slice needs could not be loaded in {MAX_ROUNDS} rounds")]
    Endless,
}

/// Works out slices of one source over its images.
pub struct Intake {
    source: Arc<Source>,
    cluster: Cluster,
    ledger: Ledger,
    images: Images,
}

/// A batch, and what it changes in the images once it is committed.
pub struct Prepared {
    /// To be written.
    pub batch: Batch,
    changes: OverlayChanges,
}

impl Intake {
    /// Nothing is cached yet.
    #[must_use]
    pub fn new(source: Arc<Source>, cluster: Cluster, ledger: Ledger) -> Self {
        let images = Images::new(&source.mapping.lookup_columns());
        Self { source, cluster, ledger, images }
    }

    /// Works out streamed transactions.
    pub async fn transactions(&mut self, transactions: &[Transaction]) -> Result<Prepared, IntakeError> {
        let mut prepared = self
            .prepare(|projection, overlay| {
                let mut emitted = Vec::new();
                for transaction in transactions {
                    emitted.extend(projection.transaction(overlay, transaction)?);
                }
                Ok(emitted)
            })
            .await?;
        for ((table, key), row) in prepared.changes.rows() {
            prepared.batch.images.push(ImageWrite {
                source: self.source.name.clone(),
                relation: table.to_string(),
                key: key.clone(),
                row: row.map(|row| (**row).clone()),
            });
        }
        Ok(prepared)
    }

    /// Works out whatever `project` says, loading what it misses until nothing is missing.
    pub async fn prepare(
        &mut self,
        project: impl Fn(&Projection<'_>, &mut Overlay<'_>) -> Result<Vec<Emitted>, UnknownColumn>,
    ) -> Result<Prepared, IntakeError> {
        for _ in 0..MAX_ROUNDS {
            let projection = Projection {
                mapping: &self.source.mapping,
                source: &self.source.name,
                cluster: &self.cluster,
            };
            let mut overlay = Overlay::new(&self.images);
            let emitted = project(&projection, &mut overlay);
            let (missing, changes) = overlay.finish();
            if missing.is_empty() {
                let batch = self.batch(emitted?).await?;
                return Ok(Prepared { batch, changes });
            }
            images::load(self.ledger.reader(), &self.source.name, missing, &mut self.images).await?;
        }
        Err(IntakeError::Endless)
    }

    /// The batch was committed: the cache takes its changes over.
    pub fn committed(&mut self, changes: Prepared) {
        self.images.absorb(changes.changes);
    }

    async fn batch(&self, emitted: Vec<Emitted>) -> Result<Batch, IntakeError> {
        let owed = self.owed(&emitted).await?;
        let mut newly_owed: HashSet<Lane> = HashSet::new();
        let mut batch = Batch::default();
        for Emitted { event, fault, sha256 } in &emitted {
            let body = event.to_body(&self.source.name, &self.cluster, &self.source.mapping.sha256);
            let entry = batch.entry(NewEntry::new(EntryKind::Event, Some(event.event_id.clone()), body));
            batch.documents.push(DocumentWrite {
                source: self.source.name.clone(),
                event_type: event.event_type.clone(),
                canonical_id: event.id.clone(),
                sha256: sha256.clone(),
                event: entry,
            });
            for (lane, route) in self.source.lanes(event) {
                let is_owed = owed.contains(&lane) || newly_owed.contains(&lane);
                let (takes, requires, parked) = match fault {
                    Some(fault) => (true, Vec::new(), Some(fault.clone())),
                    None => match (route.takes(event, is_owed), route.requirements(event)) {
                        (Ok(takes), Ok(requires)) => (takes, requires, None),
                        (Err(error), _) | (_, Err(error)) => (true, Vec::new(), Some(error.to_string())),
                    },
                };
                if !takes {
                    continue;
                }
                newly_owed.insert(lane.clone());
                batch.deliveries.push(DeliveryWrite {
                    lane,
                    event: entry,
                    operation: if event.operation == Operation::Delete { "delete" } else { "upsert" },
                    fact: self.source.kind_of(&event.event_type) == EventKind::Fact,
                    requires,
                    parked,
                });
            }
        }
        Ok(batch)
    }

    /// Which lanes are owed already, for events whose route depends on it.
    async fn owed(&self, emitted: &[Emitted]) -> Result<HashSet<Lane>, LedgerError> {
        let mut lanes = Vec::new();
        for Emitted { event, .. } in emitted {
            for (lane, route) in self.source.lanes(event) {
                if !matches!(route.takes(event, false), Ok(true)) {
                    lanes.push(lane);
                }
            }
        }
        images::owed(self.ledger.reader(), &lanes).await
    }
}
