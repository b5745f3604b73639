//! The end of the stream on its way into the ledger: worked out, sent, durable, confirmed.

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;
use serde_json::json;
use tokio::sync::oneshot;

use super::error::CaptureError;
use super::intake::{Intake, Prepared};
use super::load::Loading;
use super::load::quiet::quiet_writes;
use super::load::reader::{Chunk, Mark, Verdict};
use super::load::window::{Remainder, Windows};
use super::{Source, columns};
use crate::event::{Change, Field, Lsn, Row, RowState, SentRow, Transaction};
use crate::ledger::batch::{Batch, LoadWrite, QuietState, QuietWrite};
use crate::ledger::entry::{EntryKind, NewEntry};
use crate::ledger::loads::unseen;
use crate::ledger::position::{Phase, Position};
use crate::ledger::{Ledger, LedgerError};
use crate::source::postgres::chunk::{Identity, identities, read_keys, split_key};
use crate::source::postgres::stream::Confirmer;

/// Rows swept in one ledger transaction.
const SWEPT_ROWS: i64 = 500;
/// Ordinals of swept rows: beyond those of any transaction in the stream at the same position.
const SWEPT_ORDINAL: u64 = 1 << 40;

/// A batch that is durable now.
pub struct Written {
    end_lsn: Lsn,
    owes: bool,
    verdict: Option<oneshot::Sender<Verdict>>,
}

/// See the module's text.
pub struct Tail {
    source: Arc<Source>,
    ledger: Ledger,
    intake: Intake,
    /// Where the source stands once everything in flight is written.
    pub position: Position,
    /// Batches on their way, oldest first.
    pub in_flight: FuturesOrdered<BoxFuture<'static, Result<Written, LedgerError>>>,
    /// The load that is going on.
    pub loading: Option<Loading>,
    confirmer: Confirmer,
    wake: Arc<dyn Fn() + Send + Sync>,
    /// Batches sent so far, and how many had been when the images last aged.
    sent: usize,
    aged_at: usize,
}

impl Tail {
    /// Nothing is on its way yet.
    #[must_use]
    pub fn new(
        source: &Arc<Source>,
        ledger: &Ledger,
        position: Position,
        loading: Option<Loading>,
        confirmer: Confirmer,
        wake: Arc<dyn Fn() + Send + Sync>,
    ) -> Self {
        let intake = Intake::new(source.clone(), position.cluster.clone(), ledger.clone());
        Self {
            source: source.clone(),
            ledger: ledger.clone(),
            intake,
            position,
            in_flight: FuturesOrdered::new(),
            loading,
            confirmer,
            wake,
            sent: 0,
            aged_at: 0,
        }
    }

    /// Works transactions out, or slices of one, and sends them on their way. Watermarks of a load are heeded in their place.
    pub async fn take(&mut self, transactions: &[Transaction]) -> Result<(), CaptureError> {
        let mut rest = transactions;
        while let Some(place) = rest.iter().position(|transaction| !transaction.marks.is_empty()) {
            let (before, from) = rest.split_at(place);
            self.slice(before).await?;
            let Some((marked, after)) = from.split_first() else { break };
            // Anybody may write a message with our prefix beside changes of their own; those count all the same.
            if !marked.changes.is_empty() || !marked.truncated.is_empty() || self.position.ordinal.is_some() {
                self.slice(std::slice::from_ref(marked)).await?;
            }
            self.marked(marked).await?;
            rest = after;
        }
        self.slice(rest).await
    }

    async fn slice(&mut self, transactions: &[Transaction]) -> Result<(), CaptureError> {
        if transactions.is_empty() {
            return Ok(());
        }
        let mut batch = match &self.loading {
            Some(loading) if loading.is_quiet() => {
                let load = loading.load.id;
                self.quiet(load, transactions).await?
            }
            _ => self.worked_out(transactions).await?,
        };
        for transaction in transactions {
            let continued =
                self.position.commit_lsn == transaction.commit_lsn && self.position.ordinal.is_some();
            self.advance(transaction);
            if continued && transaction.complete {
                batch.entry(tx_end(&self.source.name, transaction));
            }
            if let Some(loading) = &mut self.loading {
                loading.windows.note(transaction);
                if !loading.is_quiet() {
                    batch.loads.extend(seen(loading, &self.source.name, transaction));
                }
            }
        }
        self.send(batch, None);
        Ok(())
    }

    fn advance(&mut self, transaction: &Transaction) {
        let position = &mut self.position;
        position.commit_lsn = transaction.commit_lsn;
        position.committed_at = Some(transaction.committed_at);
        if transaction.complete {
            position.ordinal = None;
            position.end_lsn = transaction.end_lsn;
        } else {
            position.ordinal = Some(transaction.last_ordinal);
        }
    }

    /// The batch of these transactions, with their events.
    async fn worked_out(&mut self, transactions: &[Transaction]) -> Result<Batch, CaptureError> {
        if self.intake.is_full() {
            // What is forgotten now was sent before the images last aged.
            while self.sent - self.in_flight.len() < self.aged_at {
                let Some(written) = self.in_flight.next().await else { break };
                self.written(written?);
            }
            self.intake.age();
            self.aged_at = self.sent;
        }
        loop {
            let settled = self.in_flight.is_empty();
            match self.intake.transactions(transactions, settled).await? {
                Prepared::Batch(batch) => return Ok(batch),
                Prepared::Needs(missing) => {
                    // The ledger answers as of what is written, so that must be everything.
                    self.settle().await?;
                    self.intake.load(missing).await?;
                }
            }
        }
    }

    /// The batch of these transactions without events.
    async fn quiet(&mut self, load: i64, transactions: &[Transaction]) -> Result<Batch, CaptureError> {
        let (mut quiet, moved) = quiet_writes(&self.source.name, load, transactions);
        if !moved.is_empty() {
            let client = self.source.database.connect("tailwater-read-back").await?;
            for (table, key) in moved {
                let Some(spec) = self.source.mapping.table_named(&table) else { continue };
                // A row that is gone by now has its own change on the way.
                let rows = read_keys(&client, spec, &[split_key(spec, &key)]).await?;
                let write = quiet.iter_mut().find(|write| *write.relation == *table);
                let state = write.and_then(|write| write.rows.iter_mut().find(|(known, _)| *known == key));
                if let (Some((_, state)), Some((_, row))) = (state, rows.into_iter().next()) {
                    *state = QuietState::Whole(row);
                }
            }
        }
        Ok(Batch { quiet, ..Batch::default() })
    }

    /// A transaction that carries watermarks.
    async fn marked(&mut self, transaction: &Transaction) -> Result<(), CaptureError> {
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

    /// Lays a chunk into the images.
    async fn chunk(
        &mut self,
        transaction: &Transaction,
        number: u64,
        chunk: Chunk,
    ) -> Result<(Batch, Option<oneshot::Sender<Verdict>>), CaptureError> {
        let Some(loading) = &mut self.loading else { return Ok((Batch::default(), None)) };
        let Chunk { part, rows, snapshot, verdict } = chunk;
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
            let mut batch = self.worked_out(&[pseudo]).await?;
            let (source, relation) = (self.source.name.clone(), part.relation.clone());
            batch.loads.push(LoadWrite::Seen { load, source, relation, keys });
            batch
        };
        batch.loads.push(LoadWrite::Progress(part));
        Ok((batch, Some(verdict)))
    }

    fn quiet_chunk(&self, load: i64, relation: &str, remainder: Remainder) -> QuietWrite {
        let rows = remainder.rows.into_iter().chain(remainder.completed);
        QuietWrite {
            source: self.source.name.clone(),
            relation: relation.to_owned(),
            load,
            truncated: false,
            rows: rows.map(|(key, row)| (key, QuietState::Whole(row))).collect(),
        }
    }

    /// A chunk as if the transaction of its high watermark had written it.
    fn as_transaction(&self, marked: &Transaction, relation: &str, remainder: Remainder) -> Transaction {
        let mut transaction =
            Transaction { marks: Vec::new(), changes: Vec::new(), snapshot: true, ..marked.clone() };
        let Some(table) = self.source.mapping.table_named(relation) else { return transaction };
        let names = columns(table);
        let rows = remainder.rows.into_iter().chain(remainder.completed);
        transaction.changes = (0..)
            .zip(rows)
            .map(|(ordinal, (key, row))| Change::new(&table.name, &key, ordinal, present(&names, &row)))
            .collect();
        transaction
    }

    /// Once everything is read: what was not seen is gone, and the load is over.
    pub async fn finish_load(&mut self) -> Result<(), CaptureError> {
        let Some(loading) = &self.loading else { return Ok(()) };
        if loading.open_parts > 0 {
            return Ok(());
        }
        self.settle().await?;
        let Some(loading) = &self.loading else { return Ok(()) };
        let (load, relations) = (loading.load.id, loading.to_sweep.clone());
        let mut batch = Batch::default();
        if loading.is_quiet() {
            let source = self.source.name.clone();
            batch.loads.push(LoadWrite::Sweep { load, source, relations });
            self.position.phase = Phase::Mapping;
        } else {
            let mut ordinal = SWEPT_ORDINAL;
            for relation in &relations {
                self.sweep(load, relation, &mut ordinal).await?;
            }
        }
        batch.loads.extend(self.loaded_relations().await?);
        batch.loads.push(LoadWrite::End { load, refused: false });
        self.send(batch, None);
        self.settle().await?;
        tracing::info!(load, "all tables of the load are read");
        self.loading = None;
        Ok(())
    }

    /// Rows of a table that the load did not see are deleted, with their events.
    async fn sweep(&mut self, load: i64, relation: &str, ordinal: &mut u64) -> Result<(), CaptureError> {
        let Some(table) = self.source.mapping.table_named(relation).map(|table| table.name.clone()) else {
            return Ok(());
        };
        loop {
            let reader = self.ledger.reader();
            let keys = unseen(reader, &self.source.name, relation, load, SWEPT_ROWS).await?;
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
            };
            let batch = self.worked_out(&[transaction]).await?;
            self.send(batch, None);
            self.settle().await?;
        }
    }

    /// What of each table is in the images from now on.
    async fn loaded_relations(&mut self) -> Result<Vec<LoadWrite>, CaptureError> {
        let Some(loading) = &self.loading else { return Ok(Vec::new()) };
        let client = self.source.database.connect("tailwater-source").await?;
        let tables = self
            .source
            .mapping
            .tables
            .iter()
            .filter(|table| loading.to_sweep.contains(&table.name.to_string()));
        let tables: Vec<_> = tables.cloned().collect();
        let found = identities(&client, &tables, &self.source.publication).await?;
        let write = |Identity { table, oid, member }| {
            let spec = tables.iter().find(|spec| spec.name == table)?;
            Some(LoadWrite::Relation {
                source: self.source.name.clone(),
                relation: table.to_string(),
                oid,
                member,
                columns: spec.columns.iter().map(ToString::to_string).collect(),
            })
        };
        Ok(found.into_iter().filter_map(write).collect())
    }

    /// Nothing of ours was open when the server stood at `lsn`.
    pub fn idle(&mut self, lsn: Lsn) {
        self.position.end_lsn = lsn;
        self.send(Batch::default(), None);
    }

    fn send(&mut self, mut batch: Batch, verdict: Option<oneshot::Sender<Verdict>>) {
        batch.positions.push(self.position.clone());
        let (end_lsn, owes) = (self.position.end_lsn, !batch.deliveries.is_empty());
        let writer = self.ledger.writer().clone();
        let write = async move { writer.write(batch).await.map(|_| Written { end_lsn, owes, verdict }) };
        self.in_flight.push_back(Box::pin(write));
        self.sent += 1;
    }

    /// Waits until everything sent is durable.
    pub async fn settle(&mut self) -> Result<(), CaptureError> {
        while let Some(written) = self.in_flight.next().await {
            self.written(written?);
        }
        Ok(())
    }

    /// A batch has become durable: the source and the dispatchers hear of it.
    pub fn written(&self, written: Written) {
        self.confirmer.confirm(written.end_lsn);
        if let Some(verdict) = written.verdict {
            // The reader may have ended with the load.
            let _ = verdict.send(Verdict::Written);
        }
        if written.owes {
            (self.wake)();
        }
    }
}

/// All columns of a row as if they had been sent.
fn present(names: &Arc<[Arc<str>]>, row: &Row) -> RowState {
    let known: Vec<Arc<str>> = names.iter().filter(|name| row.contains_key(&***name)).cloned().collect();
    let fields =
        known.iter().map(|name| Field::Value(row.get(&**name).cloned().unwrap_or_default())).collect();
    let columns = if known.len() == names.len() { names.clone() } else { known.into() };
    RowState::Present(SentRow { columns, fields })
}

/// Rows that the stream brings during a re-read are seen, too.
fn seen(loading: &Loading, source: &str, transaction: &Transaction) -> Vec<LoadWrite> {
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

/// Closes a transaction that was ledgered in slices, so that no reader takes half of it for the whole.
fn tx_end(source: &str, transaction: &Transaction) -> NewEntry {
    let fields = json!({
        "source": source, "commit_lsn": transaction.commit_lsn.to_string(), "xid": transaction.xid,
        "last_ordinal": transaction.last_ordinal,
    });
    NewEntry::new(EntryKind::TxEnd, None, fields)
}
