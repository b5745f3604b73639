//! Carries out what people ask of the running daemon: see [`crate::ledger::command`].

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::pulse::Pulse;
use crate::ledger::batch::Batch;
use crate::ledger::command::{Changes, Command, Tuning, carry_out, changes, waiting};
use crate::ledger::{Ledger, LedgerError};

/// How soon a command is found, and what it changes is seen by all processes.
const LOOK: Duration = Duration::from_millis(250);
/// How often it is noted how the targets look, at the most.
const SHOW: Duration = Duration::from_secs(1);
/// Lease of the process that carries commands out.
pub const COMMANDS: &str = "commands";

/// What people have changed, as those see it who work events out: waves that have been moved, subjects that have been forgotten.
#[derive(Debug, Clone, Default)]
pub struct Waves {
    moved: Arc<RwLock<Arc<BTreeSet<String>>>>,
    erasures: Arc<AtomicI64>,
}

impl Waves {
    /// Those moved now.
    #[must_use]
    pub fn moved(&self) -> Arc<BTreeSet<String>> {
        self.moved.read().map(|waves| waves.clone()).unwrap_or_default()
    }

    /// How many data subjects have been forgotten: what is remembered of rows may be theirs.
    #[must_use]
    pub fn erasures(&self) -> i64 {
        self.erasures.load(Ordering::Relaxed)
    }

    /// Reads them from the ledger.
    pub async fn refresh(&self, ledger: &Ledger) -> Result<(), LedgerError> {
        let changes = changes(ledger.reader()).await?;
        ledger.erasures().heard(changes.erasures);
        self.set(&changes);
        Ok(())
    }

    fn set(&self, changes: &Changes) {
        self.erasures.store(changes.erasures, Ordering::Relaxed);
        if let Ok(mut waves) = self.moved.write() {
            *waves = Arc::new(changes.moved_waves.clone());
        }
    }
}

/// Targets, and how each looks.
type States = Vec<(String, Value)>;

/// Puts rates in force.
type Tune = dyn Fn(&[Tuning]) + Send + Sync;

/// What operators have changed, as every process sees it.
pub struct Watched {
    /// Waves that have been moved.
    pub waves: Waves,
    /// Told when everything that was held has been let go or thrown away.
    pub released: Box<dyn Fn() + Send + Sync>,
    /// Told the rates that are set.
    pub tuned: Box<Tune>,
    /// Told the targets of which every pause is lifted.
    pub lifted: Box<dyn Fn(&str) + Send + Sync>,
    /// How the targets look to this process, for people.
    pub states: Box<dyn Fn() -> States + Send + Sync>,
}

/// Carries commands out while this process has their lease, and follows what they change in any case. Runs until the ledger
/// fails, or the daemon stops. Backfills are left to the source's own loop.
pub async fn serve(
    ledger: Ledger,
    watched: Watched,
    wake: watch::Sender<u64>,
    pulse: Pulse,
    stopping: watch::Receiver<bool>,
) -> Result<(), LedgerError> {
    let mut seen: Option<Changes> = None;
    let mut shown = (Vec::new(), Instant::now());
    loop {
        pulse.beat();
        if *stopping.borrow() {
            return Ok(());
        }
        let is_ours = ledger
            .membership()
            .is_none_or(|membership| membership.standing().borrow().single.contains(COMMANDS));
        if is_ours {
            for asked in waiting(ledger.reader()).await? {
                if matches!(asked.command, Command::Backfill { .. }) {
                    continue;
                }
                tracing::warn!(command = asked.id, requested_by = %asked.requested_by, "an operator's command is carried out");
                carry_out(ledger.reader(), ledger.writer(), asked, || pulse.beat()).await?;
                wake.send_modify(|count| *count = count.wrapping_add(1));
            }
        }
        let changes = changes(ledger.reader()).await?;
        if seen.as_ref() != Some(&changes) {
            ledger.erasures().heard(changes.erasures);
            watched.waves.set(&changes);
            (watched.tuned)(&changes.tunings);
            if let Some(seen) = &seen {
                if seen.released != changes.released {
                    (watched.released)();
                }
                let lifted =
                    changes.lifted.iter().filter(|(target, id)| seen.lifted.get(*target) != Some(id));
                for (target, _) in lifted {
                    (watched.lifted)(target);
                    // Whoever was woken by the command has seen the pause once more.
                    wake.send_modify(|count| *count = count.wrapping_add(1));
                }
            }
            seen = Some(changes);
        }
        show(&ledger, &watched, &mut shown).await?;
        sleep(LOOK).await;
    }
}

/// Notes how the targets look, when that has changed.
async fn show(ledger: &Ledger, watched: &Watched, shown: &mut (States, Instant)) -> Result<(), LedgerError> {
    let Some(membership) = ledger.membership() else { return Ok(()) };
    if Instant::now() < shown.1 {
        return Ok(());
    }
    let states = (watched.states)();
    if states != shown.0 {
        let epoch = membership.process.epoch;
        let written = states.iter().map(|(target, state)| (target.clone(), epoch, state.clone()));
        ledger.writer().write(Batch { states: written.collect(), ..Batch::default() }).await?;
        *shown = (states, Instant::now() + SHOW);
    }
    Ok(())
}
