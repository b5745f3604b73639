//! What a load means for the tail of the stream: chunks are laid into the images at their watermarks, rows that no chunk saw
//! are swept, and the load is closed.

use std::collections::HashSet;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::{Tail, Worked};
use crate::capture::error::CaptureError;
use crate::capture::intake::IntakeError;
use crate::capture::load::Loading;
use crate::capture::load::reader::{Chunk, Mark, Verdict};
use crate::capture::load::window::{Remainder, Windows};
use crate::event::{Change, RowState, Transaction};
use crate::ledger::batch::{Batch, LoadWrite, QuietState, QuietWrite};
use crate::ledger::images::keys_after;
use crate::ledger::loads::unseen;
use crate::ledger::position::Phase;

/// Rows swept in one ledger transaction.
const SWEPT_ROWS: i64 = 500;
/// Ordinals of swept rows: beyond those of any transaction in the stream at the same position.
const SWEPT_ORDINAL: u64 = 1 << 40;

impl Tail {
    /// A transaction that carries watermarks.
    pub(super) async fn marked(&mut self, transaction: &Transaction) -> Result<(), CaptureError> {
        let mut batch = Batch::default();
        let mut verdict = None;
        for text in &transaction.marks {
            let Some(loading) = &mut self.loading else { break };
            match loading.shelf.parse(text) {
                Some(Mark::Low(chunk)) => {
                    if let Some(table) = loading.shelf.table(chunk) {
                        loading.windows.open(chunk, table);
                    }
                }
                Some(Mark::High(chunk)) => {
                    if let Some(read) = loading.shelf.take(chunk) {
                        (batch, verdict) = self.chunk(transaction, chunk, read).await?;
                    }
                }
                None => {}
            }
        }
        self.advance(transaction);
        self.send(batch, verdict);
        Ok(())
    }

    async fn all_worked_out(&mut self, transactions: &[Transaction]) -> Result<Batch, CaptureError> {
        match self.worked_out(transactions, usize::MAX).await? {
            Worked::Batch(batch) => Ok(*batch),
            Worked::TooLarge(_) => Err(IntakeError::Endless.into()),
        }
    }

    /// Lays a chunk into the images.
    async fn chunk(
        &mut self,
        transaction: &Transaction,
        number: u64,
        chunk: Chunk,
    ) -> Result<(Batch, Option<oneshot::Sender<Verdict>>), CaptureError> {
        let Some(loading) = &mut self.loading else { return Ok((Batch::default(), None)) };
        let Chunk { part, rows, unreadable, snapshot, verdict } = chunk;
        let keys: Vec<String> = rows.iter().map(|(key, _)| key.clone()).collect();
        let Some(remainder) = loading.windows.close(number, &snapshot, rows) else {
            // The reader is told at once; nothing is written for it to wait for.
            let _ = verdict.send(Verdict::Again);
            return Ok((Batch::default(), None));
        };
        let (load, quiet) = (loading.load.id, loading.is_quiet());
        if part.done {
            loading.open_parts = loading.open_parts.saturating_sub(1);
        }
        let mut batch = if quiet {
            Batch { quiet: vec![self.quiet_chunk(load, &part.relation, remainder)], ..Batch::default() }
        } else {
            let pseudo = self.as_transaction(transaction, &part.relation, remainder);
            let mut batch = self.all_worked_out(&[pseudo]).await?;
            let (source, relation) = (self.source.flow.name.clone(), part.relation.clone());
            batch.loads.push(LoadWrite::Seen { load, source, relation, keys });
            batch
        };
        self.park_rows(&unreadable, &mut batch);
        batch.loads.push(LoadWrite::Progress(part));
        Ok((batch, Some(verdict)))
    }

    fn quiet_chunk(&self, load: i64, relation: &str, remainder: Remainder) -> QuietWrite {
        let rows = remainder.rows.into_iter().chain(remainder.completed);
        QuietWrite {
            source: self.source.flow.name.clone(),
            relation: relation.to_owned(),
            load,
            truncated: false,
            rows: rows.map(|(key, row)| (key, QuietState::Whole(Arc::new(row)))).collect(),
        }
    }

    /// A chunk as if the transaction of its high watermark had written it.
    fn as_transaction(&self, marked: &Transaction, relation: &str, remainder: Remainder) -> Transaction {
        let mut transaction = Transaction {
            marks: Vec::new(),
            changes: Vec::new(),
            unreadable: Vec::new(),
            snapshot: true,
            ..marked.clone()
        };
        let Some(table) = self.source.flow.mapping.table_named(relation) else { return transaction };
        let rows = remainder.rows.into_iter().chain(remainder.completed);
        transaction.changes = (0..)
            .zip(rows)
            .map(|(ordinal, (key, row))| {
                Change::new(&table.name, &key, ordinal, RowState::Present(row.into()))
            })
            .collect();
        transaction
    }

    /// Once everything is read: what was not seen is gone, and the load is over.
    pub async fn finish_load(&mut self) -> Result<(), CaptureError> {
        let Some(loading) = &self.loading else { return Ok(()) };
        // Not in the middle of a transaction: its beginning would be told without its end.
        if loading.open_parts > 0 || self.has_work() || self.position.ordinal.is_some() {
            return Ok(());
        }
        self.settle().await?;
        let Some(loading) = &self.loading else { return Ok(()) };
        let (load, relations) = (loading.load.id, loading.to_sweep.clone());
        let mut batch = Batch::default();
        if loading.is_quiet() {
            let source = self.source.flow.name.clone();
            batch.loads.push(LoadWrite::Sweep { load, source, relations });
            self.position.phase = Phase::Mapping;
        } else {
            let mut ordinal = SWEPT_ORDINAL;
            for relation in &relations {
                self.sweep(load, relation, &mut ordinal).await?;
            }
        }
        batch.loads.push(LoadWrite::End { load, refused: false });
        self.send(batch, None);
        self.settle().await?;
        tracing::info!(load, "all tables of the load are read");
        self.loading = None;
        Ok(())
    }

    /// Rows of the tables that a transaction empties are deleted with their events, some at a time; gives the transaction without
    /// that. What it wrote there afterwards stays, and is compared with what was there before.
    pub(super) async fn emptied(&mut self, transaction: &Transaction) -> Result<Transaction, CaptureError> {
        let stays: HashSet<(Arc<str>, String)> =
            transaction.changes.iter().map(|change| (change.table.clone(), change.key.clone())).collect();
        for (table, ordinal) in &transaction.truncated {
            let mut after = None;
            loop {
                self.settle().await?;
                let source = &self.source.flow.name;
                let keys =
                    keys_after(self.ledger.reader(), source, table, after.as_deref(), SWEPT_ROWS).await?;
                let Some(last) = keys.last().cloned() else { break };
                let gone = keys.iter().filter(|key| !stays.contains(&(table.clone(), (*key).clone())));
                let changes = gone.map(|key| Change::new(table, key, *ordinal, RowState::Absent)).collect();
                let part = Transaction {
                    changes,
                    truncated: Vec::new(),
                    marks: Vec::new(),
                    unreadable: Vec::new(),
                    ..*transaction
                };
                let batch = self.all_worked_out(&[part]).await?;
                self.send(batch, None);
                after = Some(last);
            }
        }
        Ok(Transaction { truncated: Vec::new(), ..transaction.clone() })
    }

    /// Rows of a table that the load did not see are deleted, with their events.
    async fn sweep(&mut self, load: i64, relation: &str, ordinal: &mut u64) -> Result<(), CaptureError> {
        let Some(table) = self.source.flow.mapping.table_named(relation).map(|table| table.name.clone())
        else {
            return Ok(());
        };
        loop {
            let reader = self.ledger.reader();
            let keys = unseen(reader, &self.source.flow.name, relation, load, SWEPT_ROWS).await?;
            if keys.is_empty() {
                return Ok(());
            }
            let mut changes = Vec::with_capacity(keys.len());
            for key in &keys {
                changes.push(Change::new(&table, key, *ordinal, RowState::Absent));
                *ordinal += 1;
            }
            let transaction = Transaction {
                commit_lsn: self.position.commit_lsn,
                end_lsn: self.position.end_lsn,
                committed_at: self.position.committed_at.unwrap_or_else(jiff::Timestamp::now),
                xid: 0,
                changes,
                truncated: Vec::new(),
                row_changes: 0,
                last_ordinal: 0,
                complete: true,
                marks: Vec::new(),
                snapshot: true,
                unreadable: Vec::new(),
            };
            let batch = self.all_worked_out(&[transaction]).await?;
            self.send(batch, None);
            self.settle().await?;
        }
    }
}

/// Rows that the stream brings during a re-read are seen, too.
pub(super) fn seen(loading: &Loading, source: &str, transaction: &Transaction) -> Vec<LoadWrite> {
    let relations = loading.load.relations.iter();
    let writes = relations.filter_map(|relation| {
        let keys: Vec<String> = Windows::present(transaction, relation).into_iter().collect();
        let write = LoadWrite::Seen {
            load: loading.load.id,
            source: source.to_owned(),
            relation: relation.clone(),
            keys,
        };
        Some(write).filter(|write| !matches!(write, LoadWrite::Seen { keys, .. } if keys.is_empty()))
    });
    writes.collect()
}
