//! Signs of life: each work loop beats, and the watchdog is fed only while all of them do.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::interval;

/// One loop's counter.
#[derive(Debug, Clone, Default)]
pub struct Pulse(Arc<AtomicU64>);

impl Pulse {
    /// The loop has come round.
    pub fn beat(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Beats while `work` waits for somebody else, such as the ERP's longest transaction.
    pub async fn during<T>(&self, work: impl Future<Output = T>) -> T {
        let mut ticks = interval(Duration::from_secs(2));
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                _ = ticks.tick() => self.beat(),
            }
        }
    }

    fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// All loops of the daemon.
#[derive(Debug, Default)]
pub struct Pulses(Mutex<Vec<(String, Pulse, u64)>>);

impl Pulses {
    /// Registers a loop.
    #[must_use]
    pub fn register(&self, name: &str) -> Pulse {
        let pulse = Pulse::default();
        if let Ok(mut pulses) = self.0.lock() {
            pulses.retain(|(known, _, _)| known != name);
            pulses.push((name.to_owned(), pulse.clone(), u64::MAX));
        }
        pulse
    }

    /// Forgets all loops: they are being restarted.
    pub fn clear(&self) {
        if let Ok(mut pulses) = self.0.lock() {
            pulses.clear();
        }
    }

    /// Names of loops that have not beaten since the last call.
    #[must_use]
    pub fn stalled(&self) -> Vec<String> {
        let Ok(mut pulses) = self.0.lock() else { return Vec::new() };
        let mut stalled = Vec::new();
        for (name, pulse, seen) in pulses.iter_mut() {
            let count = pulse.count();
            if count == *seen {
                stalled.push(name.clone());
            }
            *seen = count;
        }
        stalled
    }
}
