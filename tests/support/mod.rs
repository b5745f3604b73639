//! Private servers, the daemon as a process of its own, and what Odoo's own tables say the targets should hold.

pub mod documents;
pub mod entries;
pub mod expected;
pub mod feed;
mod files;
pub mod images;
pub mod lists;
pub mod nats;
pub mod odoo_api;
pub mod plain;
pub mod proxy;
pub mod real_odoo;
pub mod triangle;
pub mod witness;
pub mod workload;
pub mod world;

pub use world::{World, WorldOptions};

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Waits for a condition; what it says after `patience` is the failure.
pub async fn eventually<F>(patience: Duration, what: &str, mut condition: F)
where
    F: AsyncFnMut() -> Result<(), String>,
{
    let started = Instant::now();
    loop {
        match condition().await {
            Ok(()) => return,
            Err(reason) if started.elapsed() > patience => {
                panic!("{what}: not within {patience:?}: {reason}")
            }
            Err(_) => sleep(Duration::from_millis(20)).await,
        }
    }
}

/// `../shared`, when the tests run beside it; they say so when they are skipped.
pub fn shared(path: &str) -> Option<PathBuf> {
    let found = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared").join(path);
    if found.exists() {
        return Some(found);
    }
    eprintln!("SKIPPED: {path} is not beside this checkout");
    None
}
