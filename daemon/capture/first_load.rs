//! The first load: rows as of the slot's consistent point, then the events they make.
//!
//! All rows come first, because an event may need any of them (a tag, a country). Until then a restart begins anew with
//! a new slot; nothing has been emitted. After that a restart goes on: which events were made stands in the ledger.

use std::sync::Arc;

use futures_util::{StreamExt, pin_mut};
use jiff::Timestamp;
use serde_json::json;
use tokio_postgres::Client;

use super::Source;
use super::follow::CaptureError;
use super::intake::{Intake, Prepared};
use crate::event::{Cluster, Lsn, Row};
use crate::image::Image;
use crate::ledger::Ledger;
use crate::ledger::batch::{Batch, ImageWrite};
use crate::ledger::images::keys_after;
use crate::ledger::position::{Phase, Position};
use crate::mapping::TableSpec;
use crate::ops::pulse::Pulse;
use crate::source::postgres::connection::ReplicationConnection;
use crate::source::postgres::copy::{CopyReader, statement, types_statement};
use crate::source::postgres::slot::{self, Discontinuity};

/// Rows per ledger transaction while copying (INV-8).
const COPY_ROWS: usize = 5_000;
/// Objects per ledger transaction while mapping.
const MAP_KEYS: i64 = 500;

/// What the first load works with.
pub struct FirstLoad<'a> {
    /// The source.
    pub source: &'a Arc<Source>,
    /// The ledger.
    pub ledger: &'a Ledger,
    /// SQL session on the ERP.
    pub client: &'a Client,
    /// Shows that work goes on.
    pub pulse: &'a Pulse,
}

impl FirstLoad<'_> {
    /// Creates the slot and copies all mapped rows; afterwards the source stands in [`Phase::Mapping`].
    pub async fn copy(
        &self,
        connection: &mut ReplicationConnection,
        cluster: &Cluster,
        earlier: Option<&Position>,
    ) -> Result<Position, CaptureError> {
        let slot_name = &self.source.slot;
        if slot::exists(self.client, slot_name).await? {
            if earlier.is_none_or(|earlier| earlier.slot != *slot_name) {
                return Err(Discontinuity::SlotForeign { slot: slot_name.clone() }.into());
            }
            // The slot of a load that did not get to its end.
            tracing::warn!(slot = %slot_name, "the first load was interrupted; it begins anew with a new slot");
            slot::drop(self.client, slot_name).await?;
        }
        let mut position = Position {
            source: self.source.name.clone(),
            cluster: cluster.clone(),
            slot: slot_name.clone(),
            phase: Phase::Creating,
            commit_lsn: Lsn::default(),
            ordinal: None,
            end_lsn: Lsn::default(),
            snapshot_cursor: None,
            committed_at: None,
        };
        let forget = vec![self.source.name.clone()];
        let batch = Batch { forget, positions: vec![position.clone()], ..Batch::default() };
        self.ledger.writer().write(batch).await?;
        let new = self.pulse.during(slot::create(connection, slot_name)).await?;
        tracing::info!(slot = %slot_name, consistent_point = %new.consistent_point, "slot created; copying");
        position = Position {
            phase: Phase::Copying,
            commit_lsn: new.consistent_point,
            end_lsn: new.consistent_point,
            ..position
        };
        self.write_position(&position).await?;
        self.client.batch_execute("begin isolation level repeatable read read only").await?;
        let snapshot = postgres_protocol::escape::escape_literal(&new.snapshot);
        self.client.batch_execute(&format!("set transaction snapshot {snapshot}")).await?;
        for table in &self.source.mapping.tables {
            let rows = self.copy_table(table).await?;
            tracing::info!(table = %table.name, rows, "copied");
        }
        self.client.batch_execute("commit").await?;
        position.phase = Phase::Mapping;
        self.write_position(&position).await?;
        Ok(position)
    }

    async fn copy_table(&self, table: &TableSpec) -> Result<u64, CaptureError> {
        let types = crate::source::postgres::types::Types::load(self.client).await?;
        let described = self.client.prepare(&types_statement(table)).await?;
        let forms = described.columns().iter().map(|column| types.form(column.type_().oid())).collect();
        let mut reader = CopyReader::new(table, forms);
        let stream = self.client.copy_out(&statement(table)).await?;
        pin_mut!(stream);
        let mut waiting: Vec<(String, Row)> = Vec::new();
        let mut count = 0;
        while let Some(chunk) = stream.next().await {
            waiting.extend(reader.push(&chunk?)?);
            if waiting.len() >= COPY_ROWS {
                count += self.write_rows(table, std::mem::take(&mut waiting)).await?;
            }
        }
        count += self.write_rows(table, waiting).await?;
        Ok(count)
    }

    async fn write_rows(&self, table: &TableSpec, rows: Vec<(String, Row)>) -> Result<u64, CaptureError> {
        self.pulse.beat();
        let count = rows.len() as u64;
        let images = rows.into_iter().map(|(key, row)| ImageWrite {
            source: self.source.name.as_str().into(),
            relation: table.name.clone(),
            key,
            image: Image { row: Some(Arc::new(row)), emitted: Vec::new() },
            row_changed: true,
        });
        let batch = Batch { images: images.collect(), ..Batch::default() };
        self.ledger.writer().write(batch).await?;
        Ok(count)
    }

    /// Makes the events of the rows that were copied; afterwards the source stands in [`Phase::Streaming`].
    pub async fn map(
        &self,
        mut position: Position,
        wake: &(dyn Fn() + Sync),
    ) -> Result<Position, CaptureError> {
        let taken_at = Timestamp::now();
        let mut intake = Intake::new(self.source.clone(), position.cluster.clone(), self.ledger.clone());
        let cursor = position.snapshot_cursor.take().unwrap_or_default();
        let resumed_type = cursor.get("event_type").and_then(|value| value.as_str()).map(str::to_owned);
        let mut after = cursor.get("after").and_then(|value| value.as_str()).map(str::to_owned);
        let events = self.source.mapping.events.iter();
        let skipped =
            events.skip_while(|spec| resumed_type.as_ref().is_some_and(|name| *name != spec.event_type));
        for spec in skipped {
            loop {
                self.pulse.beat();
                let reader = self.ledger.reader();
                let keys =
                    keys_after(reader, &self.source.name, &spec.table, after.as_deref(), MAP_KEYS).await?;
                let Some(last) = keys.last().cloned() else { break };
                let consistent_point = position.commit_lsn;
                let mut batch = loop {
                    let prepared = intake.prepare(true, |projection, overlay| {
                        Ok(projection.snapshot(overlay, spec, &keys, consistent_point, taken_at))
                    });
                    match prepared.await? {
                        Prepared::Batch(batch) => break batch,
                        Prepared::Needs(missing) => intake.load(missing).await?,
                    }
                };
                position.snapshot_cursor = Some(json!({"event_type": spec.event_type, "after": last}));
                batch.positions.push(position.clone());
                self.ledger.writer().write(batch).await?;
                if intake.is_full() {
                    intake.age();
                }
                wake();
                after = Some(last);
            }
            after = None;
        }
        position.phase = Phase::Streaming;
        position.snapshot_cursor = None;
        // A transaction whose commit record begins exactly at the consistent point is not in the snapshot.
        position.commit_lsn = Lsn(position.commit_lsn.0.saturating_sub(1));
        self.write_position(&position).await?;
        tracing::info!("first load complete");
        Ok(position)
    }

    async fn write_position(&self, position: &Position) -> Result<(), CaptureError> {
        let batch = Batch { positions: vec![position.clone()], ..Batch::default() };
        self.ledger.writer().write(batch).await?;
        Ok(())
    }
}
