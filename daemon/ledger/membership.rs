//! The part of a process that keeps it among the living, and sees what is its to do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};
use tokio_postgres::Client;

use super::LedgerError;
use super::outbox::SHARDS;
use super::process::{HEARTBEAT, Others, Process, lanes, look};

/// What a process would do if it were alone.
#[derive(Debug, Clone, Default)]
pub struct Ambition {
    /// Leases that one process has: `source/erp`, `commands`.
    pub single: Vec<String>,
    /// Targets whose lanes are shared out.
    pub targets: Vec<String>,
}

/// What is this process's to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// The others.
    pub others: Others,
    /// Single leases it has.
    pub single: BTreeSet<String>,
    /// Shards of each target it has.
    pub shards: BTreeMap<String, BTreeSet<i16>>,
    /// Those of them that another process shall have: nothing new is begun there.
    pub leaving: BTreeMap<String, BTreeSet<i16>>,
}

impl Standing {
    /// Shards of `target` in which something new may be begun.
    #[must_use]
    pub fn own_shards(&self, target: &str) -> Vec<i16> {
        let leaving = self.leaving.get(target);
        let is_leaving = |shard: &i16| leaving.is_some_and(|leaving| leaving.contains(shard));
        self.shards.get(target).into_iter().flatten().copied().filter(|shard| !is_leaving(shard)).collect()
    }
}

/// A handle on it.
#[derive(Clone)]
pub struct Membership {
    /// The process.
    pub process: Process,
    standing: watch::Receiver<Standing>,
    left: mpsc::UnboundedSender<(String, Vec<i16>)>,
}

impl Membership {
    /// Takes what is free, and goes on in the background until the process is found dead or the ledger is away; `lost` is told.
    pub async fn begin(
        client: Client,
        process: Process,
        ambition: Ambition,
        lost: Arc<watch::Sender<bool>>,
    ) -> Result<Self, LedgerError> {
        let (published, standing) = watch::channel(Standing::default());
        let (left, leaving) = mpsc::unbounded_channel();
        let mut keeper = Keeper { client, process: process.clone(), ambition, published, leaving };
        keeper.round().await?;
        tokio::spawn(async move {
            if let Err(error) = keeper.keep().await {
                tracing::error!(%error, "this process does not belong to the ledger any more");
            }
            let _ = lost.send(true);
        });
        Ok(Self { process, standing, left })
    }

    /// What is its to do, and told when that changes.
    #[must_use]
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// Waits until this process has a single lease.
    pub async fn has(&self, name: &str) {
        let mut standing = self.standing.clone();
        if standing.wait_for(|standing| standing.single.contains(name)).await.is_err() {
            // The process is over, which whoever waits here is told elsewhere.
            std::future::pending::<()>().await;
        }
    }

    /// Nothing of these shards is under way any more.
    pub fn has_left(&self, target: &str, shards: Vec<i16>) {
        let _ = self.left.send((target.to_owned(), shards));
    }
}

struct Keeper {
    client: Client,
    process: Process,
    ambition: Ambition,
    published: watch::Sender<Standing>,
    leaving: mpsc::UnboundedReceiver<(String, Vec<i16>)>,
}

impl Keeper {
    async fn keep(&mut self) -> Result<(), LedgerError> {
        let mut tick = interval(HEARTBEAT);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => self.round().await?,
                left = self.leaving.recv() => match left {
                    Some((target, shards)) => self.leave(&target, &shards).await?,
                    None => return Ok(()),
                },
            }
        }
    }

    async fn round(&mut self) -> Result<(), LedgerError> {
        self.process.beat(&self.client).await?;
        let others = look(&self.client, self.process.epoch).await?;
        // What it has nobody takes away: only what it has not is asked for.
        let mut standing = self.published.borrow().clone();
        standing.others = others;
        for name in &self.ambition.single {
            if !standing.single.contains(name) && self.process.take(&self.client, name).await? {
                standing.single.insert(name.clone());
            }
        }
        for target in &self.ambition.targets {
            let share = usize::try_from(SHARDS).unwrap_or(1).div_ceil(standing.others.dispatching + 1);
            let mut mine = standing.shards.remove(target).unwrap_or_default();
            for shard in 0..SHARDS {
                if mine.len() >= share || mine.contains(&shard) {
                    continue;
                }
                if self.process.take(&self.client, &lanes(target, shard)).await? {
                    mine.insert(shard);
                }
            }
            let leaving = mine.iter().copied().skip(share).collect();
            standing.leaving.insert(target.clone(), leaving);
            standing.shards.insert(target.clone(), mine);
        }
        self.published.send_if_modified(|published| {
            let changed = *published != standing;
            *published = standing;
            changed
        });
        Ok(())
    }

    async fn leave(&self, target: &str, shards: &[i16]) -> Result<(), LedgerError> {
        let names: Vec<String> = shards.iter().map(|shard| lanes(target, *shard)).collect();
        self.process.release(&self.client, &names).await?;
        self.published.send_modify(|standing| {
            for of_target in
                [standing.shards.get_mut(target), standing.leaving.get_mut(target)].into_iter().flatten()
            {
                of_target.retain(|shard| !shards.contains(shard));
            }
        });
        Ok(())
    }
}
