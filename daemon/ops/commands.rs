//! Carries out what people ask of the running daemon: see [`crate::ledger::command`].

use std::collections::BTreeSet;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use super::pulse::Pulse;
use crate::ledger::command::{Command, batch, moved_waves, waiting};
use crate::ledger::{Ledger, LedgerError};

/// How soon a command is found.
const LOOK: Duration = Duration::from_millis(500);

/// Waves that have been moved, as routes see them.
#[derive(Debug, Clone, Default)]
pub struct Waves(Arc<RwLock<Arc<BTreeSet<String>>>>);

impl Waves {
    /// Those moved now.
    #[must_use]
    pub fn moved(&self) -> Arc<BTreeSet<String>> {
        self.0.read().map(|waves| waves.clone()).unwrap_or_default()
    }

    /// Reads them from the ledger.
    pub async fn refresh(&self, ledger: &Ledger) -> Result<(), LedgerError> {
        let moved = Arc::new(moved_waves(ledger.reader()).await?);
        if let Ok(mut waves) = self.0.write() {
            *waves = moved;
        }
        Ok(())
    }
}

/// Runs until the ledger fails, or the daemon stops. Backfills are left to the source's own loop. `released`: all that was held
/// is let go, or thrown away.
pub async fn serve(
    ledger: Ledger,
    waves: Waves,
    released: impl Fn() + Send,
    wake: watch::Sender<u64>,
    pulse: Pulse,
    stopping: watch::Receiver<bool>,
) -> Result<(), LedgerError> {
    loop {
        pulse.beat();
        if *stopping.borrow() {
            return Ok(());
        }
        for asked in waiting(ledger.reader()).await? {
            if matches!(asked.command, Command::Backfill { .. }) {
                continue;
            }
            let is_wave = matches!(asked.command, Command::Wave { .. });
            let all_released = asked.command.releases_all();
            tracing::warn!(command = asked.id, requested_by = %asked.requested_by, "an operator's command is carried out");
            ledger.writer().write(batch(asked)).await?;
            if is_wave {
                waves.refresh(&ledger).await?;
            }
            if all_released {
                released();
            }
            wake.send_modify(|count| *count = count.wrapping_add(1));
        }
        sleep(LOOK).await;
    }
}
