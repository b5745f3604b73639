//! Transactions too large to be worked out at once: their rows go into the images slice by slice, their objects are
//! noted beside them, and once all of it is there the events are made, a few at a time. So no event tells of half a
//! transaction, and memory stays bounded (INV-8). Until the last one is made the position stays inside the transaction: after
//! a crash its slices are skipped, and what is left of its objects is gone through.

use super::{Tail, tx_end};
use crate::capture::error::CaptureError;
use crate::capture::intake::{IntakeError, Prepared};
use crate::event::{RowState, Transaction};
use crate::ledger::batch::{Batch, SpillDone};
use crate::ledger::spill;

/// Objects worked out in one ledger transaction.
const OBJECTS: i64 = 500;

/// A transaction whose spilled objects are being worked out.
pub struct Draining {
    /// It, without its changes.
    transaction: Transaction,
    /// The event of the mapping that comes next.
    next_event: usize,
    /// The mass guard goes through it first: up to which object it has come; `None` when it knows how much it is.
    weighed: Option<(usize, String)>,
}

impl Tail {
    /// Takes a transaction, or a slice of one, into the images.
    pub(super) async fn spill(&mut self, part: &Transaction) -> Result<(), CaptureError> {
        let emptied = !part.truncated.is_empty();
        let part = &self.emptied(part).await?;
        self.age().await?;
        let first = !self.is_continued(part);
        let trusted = first || self.spilling == Some((part.commit_lsn, false));
        let mut batch = loop {
            match self.intake.spill(part, trusted).await? {
                Prepared::Batch(batch) => break *batch,
                Prepared::Needs(missing) => self.load(missing).await?,
                Prepared::TooLarge(_) => return Err(IntakeError::Endless.into()),
            }
        };
        // A row that was deleted in an earlier slice may come back as an inserted one: then it is looked up all the same.
        let deletes = emptied || part.changes.iter().any(|change| change.state == RowState::Absent);
        self.spilling = Some((part.commit_lsn, !trusted || deletes));
        // Also the last slice leaves the position inside the transaction.
        self.advance(&Transaction { complete: false, ..without_changes(part) });
        batch.loads.extend(self.noted(part));
        self.park_rows(&part.unreadable, &mut batch);
        self.send(batch, None);
        if part.complete {
            let weighed = self.source.flow.mass.is_set().then(Default::default);
            self.draining = Some(Draining { transaction: without_changes(part), next_event: 0, weighed });
        }
        Ok(())
    }

    /// One of several transactions touches too many objects: those before it are worked out, it is spilled.
    pub(super) async fn too_large(
        &mut self,
        transactions: &[Transaction],
        index: usize,
    ) -> Result<(), CaptureError> {
        let (before, from) = transactions.split_at(index);
        let Some((large, after)) = from.split_first() else { return Ok(()) };
        for later in after.iter().rev() {
            self.waiting.push_front(later.clone());
        }
        if !before.is_empty() {
            Box::pin(self.slice(before)).await?;
        }
        self.spill(large).await
    }

    /// Works out some of the spilled objects; after the last ones the transaction is complete.
    pub(super) async fn drain(&mut self) -> Result<(), CaptureError> {
        let Some(mut draining) = self.draining.take() else { return Ok(()) };
        self.settle().await?;
        if let Some(place) = draining.weighed.take() {
            draining.weighed = self.weigh(&draining.transaction, place).await?;
            self.draining = Some(draining);
            return Ok(());
        }
        let mapping = self.source.flow.mapping.clone();
        while let Some(spec) = mapping.events.get(draining.next_event) {
            let (event_type, root) = (&spec.event_type, &*spec.table);
            let objects =
                spill::read(self.ledger.reader(), &self.source.flow.name, event_type, root, "", OBJECTS)
                    .await?;
            if objects.is_empty() {
                draining.next_event += 1;
                continue;
            }
            self.age().await?;
            let mut batch = loop {
                match self.intake.spilled(spec, &objects, &draining.transaction).await? {
                    Prepared::Batch(batch) => break *batch,
                    Prepared::Needs(missing) => self.load(missing).await?,
                    Prepared::TooLarge(_) => return Err(IntakeError::Endless.into()),
                }
            };
            batch.unspilled.push(SpillDone {
                source: self.source.flow.name.clone(),
                of: Some((event_type.clone(), root.to_owned())),
                keys: objects.into_iter().map(|object| object.key).collect(),
            });
            self.send(batch, None);
            self.draining = Some(draining);
            return Ok(());
        }
        self.advance(&draining.transaction);
        let mut batch = Batch::default();
        batch.entry(tx_end(&self.source.flow.name, &draining.transaction));
        self.send(batch, None);
        Ok(())
    }

    /// Counts some of the spilled objects before any of them is told: a mass is held from its first object on. Gives the place where
    /// to go on.
    async fn weigh(
        &mut self,
        transaction: &Transaction,
        (index, after): (usize, String),
    ) -> Result<Option<(usize, String)>, CaptureError> {
        let mapping = self.source.flow.mapping.clone();
        let Some(spec) = mapping.events.get(index) else { return Ok(None) };
        let reader = self.ledger.reader();
        let objects =
            spill::read(reader, &self.source.flow.name, &spec.event_type, &spec.table, &after, OBJECTS)
                .await?;
        let Some(last) = objects.last().map(|object| object.key.clone()) else {
            return Ok(Some((index + 1, String::new())));
        };
        self.age().await?;
        while let Some(missing) = self.intake.weigh(spec, &objects, transaction).await? {
            self.load(missing).await?;
        }
        Ok(Some((index, last)))
    }
}

fn without_changes(transaction: &Transaction) -> Transaction {
    let (changes, truncated, marks, unreadable) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    Transaction { changes, truncated, marks, unreadable, ..*transaction }
}
