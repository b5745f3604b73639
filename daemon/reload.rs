//! What may change while the daemon runs: rates, by command and by reading the settings again (SIGHUP, `systemctl reload`).

use std::path::PathBuf;
use std::sync::Arc;

use sd_notify::NotifyState;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, mpsc, watch};

use crate::config;
use crate::connector::limit::Rate;
use crate::dispatch::Target;
use crate::ledger::command::Tuning;
use crate::ledger::entry::EntryKind;
use crate::ledger::{Ledger, LedgerError};
use crate::ops::systemd::notify;
use crate::supervise::note;

/// Puts the rates in force that operators have set for a target, and takes back what they have taken back.
pub fn tune(target: &Target, tunings: &[Tuning]) {
    for limit in &target.connector.limits {
        let set =
            tunings.iter().find(|tuning| tuning.target == target.name && tuning.limit_name == limit.name);
        let rates = set.map(|tuning| tuning.rates.iter().filter_map(|rate| Rate::parse(rate)).collect());
        target.quotas.tune(&limit.name, rates);
    }
}

/// Reads the settings again at each SIGHUP, and puts the rates and shares they say in force. Settings that are wrong change
/// nothing. What was done goes to `noted`, for the ledger.
pub async fn reload_on_hangup(settings: PathBuf, targets: Vec<Arc<Target>>, noted: mpsc::Sender<Value>) {
    let Ok(mut hangups) = signal(SignalKind::hangup()) else { return };
    while hangups.recv().await.is_some() {
        notify(&[
            NotifyState::Reloading,
            NotifyState::monotonic_usec_now().unwrap_or(NotifyState::Reloading),
        ]);
        let fields = match config::load(&settings, std::env::vars()) {
            Ok(read) => {
                let mut rates = serde_json::Map::new();
                for target in &targets {
                    let Some(read) = read.targets.iter().find(|read| read.name == target.name) else {
                        continue;
                    };
                    target.quotas.configure(&read.quota);
                    rates.insert(target.name.clone(), json!(read.quota_text()));
                }
                tracing::warn!(
                    "settings were read again: rates and shares are in force, all else with the next start"
                );
                json!({"action": "reload", "requested_by": "SIGHUP", "quotas": rates})
            }
            Err(problems) => {
                for problem in &problems {
                    tracing::error!("{problem}");
                }
                tracing::error!("the settings are wrong; nothing has changed");
                json!({"action": "reload", "requested_by": "SIGHUP", "refused": problems.len()})
            }
        };
        notify(&[NotifyState::Ready]);
        if noted.send(fields).await.is_err() {
            return;
        }
    }
}

/// Writes reloads into the ledger.
pub async fn note_reloads(
    ledger: Ledger,
    reloaded: Arc<Mutex<mpsc::Receiver<Value>>>,
    mut stopping: watch::Receiver<bool>,
) -> Result<(), LedgerError> {
    let mut reloaded = reloaded.lock().await;
    loop {
        let fields = tokio::select! {
            fields = reloaded.recv() => fields,
            _ = stopping.wait_for(|stop| *stop) => None,
        };
        match fields {
            Some(fields) => note(&ledger, EntryKind::Config, fields).await?,
            None => return Ok(()),
        }
    }
}
