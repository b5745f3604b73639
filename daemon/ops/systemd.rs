//! The notify protocol of systemd: readiness, status line, watchdog.

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};

use super::pulse::Pulses;

/// Tells systemd; outside systemd nothing happens.
pub fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd could not be notified");
    }
}

/// Feeds the watchdog while every work loop beats. A loop that stands still is named in the log, and systemd restarts us.
pub async fn feed_watchdog(pulses: Arc<Pulses>) {
    let period = sd_notify::watchdog_enabled().map_or(Duration::from_secs(20), |timeout| timeout / 3);
    let mut ticks = interval(period.max(Duration::from_secs(5)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let stalled = pulses.stalled();
        if stalled.is_empty() {
            notify(&[NotifyState::Watchdog]);
        } else {
            tracing::warn!(loops = stalled.join(", "), "a work loop stands still; the watchdog is not fed");
        }
    }
}
