//! Works comparisons off, one after the other: those that somebody asked for, and those whose time has come.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;
use tokio::time::sleep;

use super::Reconciler;
use crate::dispatch::Target;
use crate::ledger::batch::Batch;
use crate::ledger::reconcile::{ReconcileWrite, is_due, next, request};
use crate::ledger::{Ledger, LedgerError};
use crate::ops::commands::COMMANDS;
use crate::ops::pulse::Pulse;

/// How often it is looked for something to do.
const LOOK: Duration = Duration::from_secs(1);

/// When a target is compared by itself.
#[derive(Debug, Clone)]
pub struct Schedule {
    /// Target.
    pub target: String,
    /// How often.
    pub every: Duration,
    /// Put right what may be put right.
    pub repair: bool,
}

/// Runs until the ledger fails, or the daemon stops. Only the process that carries commands out does anything.
pub async fn serve(
    ledger: Ledger,
    (targets, schedules): (Vec<Arc<Target>>, Vec<Schedule>),
    wake: watch::Sender<u64>,
    pulse: Pulse,
    mut stopping: watch::Receiver<bool>,
) -> Result<(), LedgerError> {
    loop {
        pulse.beat();
        let is_ours = ledger
            .membership()
            .is_none_or(|membership| membership.standing().borrow().single.contains(COMMANDS));
        if is_ours {
            for Schedule { target, every, repair } in &schedules {
                if is_due(ledger.reader(), target, *every).await? {
                    request(ledger.reader(), target, &[], *repair, "schedule").await?;
                }
            }
            let work = one(&ledger, &targets, &pulse);
            tokio::select! {
                done = pulse.during(work) => if done? {
                    wake.send_modify(|count| *count = count.wrapping_add(1));
                },
                // It begins anew with the next start.
                _ = stopping.wait_for(|stop| *stop) => return Ok(()),
            }
        }
        tokio::select! {
            () = sleep(LOOK) => {}
            _ = stopping.wait_for(|stop| *stop) => return Ok(()),
        }
    }
}

/// Works one off, if there is one.
pub async fn one(ledger: &Ledger, targets: &[Arc<Target>], pulse: &Pulse) -> Result<bool, LedgerError> {
    let Some(comparison) = next(ledger.reader()).await? else { return Ok(false) };
    let Some(target) = targets.iter().find(|target| target.name == comparison.target) else {
        tracing::error!(target_name = %comparison.target, "there is no such target; the comparison is ended");
        let report = json!({"failed": comparison.target, "reason": "there is no such target"});
        let end = ReconcileWrite::End { id: comparison.id, report, is_done: false };
        ledger.writer().write(Batch { reconciled: vec![end], ..Batch::default() }).await?;
        return Ok(true);
    };
    tracing::info!(target_name = %target.name, reconcile = comparison.id, "comparing the target with what it should hold");
    let beat = || pulse.beat();
    Reconciler::new(ledger, target, &comparison, &beat).run().await?;
    tracing::info!(target_name = %target.name, reconcile = comparison.id, "compared");
    Ok(true)
}
