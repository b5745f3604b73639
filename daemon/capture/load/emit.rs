//! After a quiet load: the events that its rows make. A restart goes on where it stopped; what was emitted before and has
//! not changed makes none.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::json;

use crate::capture::Source;
use crate::capture::error::CaptureError;
use crate::capture::intake::{IntakeError, Prepared};
use crate::ledger::Ledger;
use crate::ledger::batch::{Batch, SpillDone};
use crate::ledger::images::keys_after;
use crate::ledger::loads::looks_first;
use crate::ledger::position::{Phase, Position};
use crate::ops::pulse::Pulse;

/// Objects per ledger transaction.
const KEYS: i64 = 500;

/// Makes the events; afterwards the source stands in [`Phase::Streaming`]. `wake` is called whenever something may be owed.
pub async fn emit(
    source: &Arc<Source>,
    ledger: &Ledger,
    pulse: &Pulse,
    mut position: Position,
    wake: &(dyn Fn() + Sync),
) -> Result<Position, CaptureError> {
    let taken_at = Timestamp::now();
    let mut intake = source.intake(position.cluster.clone(), ledger);
    if looks_first(ledger.reader(), &source.flow.name).await? {
        intake.look_first();
    }
    let cursor = position.mapped.take().unwrap_or_default();
    let round = cursor.get("round").and_then(serde_json::Value::as_u64).unwrap_or_default();
    let text = |name: &str| cursor.get(name).and_then(|value| value.as_str()).map(str::to_owned);
    let events = source.flow.mapping.events.iter();
    // A type that is mapped no more says nothing of the others: they are gone through again.
    let resumed_type = text("event_type").filter(|name| events.clone().any(|spec| spec.event_type == *name));
    let mut after = resumed_type.as_ref().and_then(|_| text("after"));
    let skipped =
        events.skip_while(|spec| resumed_type.as_ref().is_some_and(|name| *name != spec.event_type));
    let mut writing: Option<tokio::task::JoinHandle<_>> = None;
    for spec in skipped {
        loop {
            pulse.beat();
            let keys =
                keys_after(ledger.reader(), &source.flow.name, &spec.table, after.as_deref(), KEYS).await?;
            let Some(last) = keys.last().cloned() else { break };
            let at = position.commit_lsn;
            let mut batch = loop {
                let settled = writing.is_none();
                let prepared = intake.prepare(settled, |projection, overlay| {
                    Some(projection.snapshot(overlay, spec, &keys, (at, round), taken_at))
                });
                match prepared.await? {
                    Prepared::Batch(batch) => break *batch,
                    Prepared::Needs(missing) => {
                        written(&mut writing).await?;
                        intake.load(missing).await?;
                    }
                    Prepared::TooLarge(_) => return Err(IntakeError::Endless.into()),
                }
            };
            written(&mut writing).await?;
            if intake.is_full() {
                intake.age();
            }
            wake();
            position.mapped = Some(json!({"event_type": spec.event_type, "after": last, "round": round}));
            batch.positions.push(position.clone());
            // The next objects are worked out while these are being written.
            let writer = ledger.writer().clone();
            writing = Some(tokio::spawn(async move { writer.write(batch).await }));
            after = Some(last);
        }
        after = None;
    }
    written(&mut writing).await?;
    wake();
    position.phase = Phase::Streaming;
    position.mapped = None;
    // Whatever a transaction had spilled before the load is among what was gone through.
    let unspilled = vec![SpillDone { source: source.flow.name.clone(), of: None, keys: Vec::new() }];
    ledger.writer().write(Batch { positions: vec![position.clone()], unspilled, ..Batch::default() }).await?;
    tracing::info!("all events of the load are made");
    Ok(position)
}

type Writing = tokio::task::JoinHandle<Result<i64, crate::ledger::LedgerError>>;

/// Waits for the batch on its way, if there is one.
async fn written(writing: &mut Option<Writing>) -> Result<(), CaptureError> {
    if let Some(writing) = writing.take() {
        writing.await.map_err(|_| crate::ledger::LedgerError::WriterGone)??;
    }
    Ok(())
}
