//! The loop of one target: takes the heads of its lanes, one request per lane at a time, and waits when there is
//! nothing to do.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::deliver::Delivery;
use super::plan::{Obstacle, Plan, plan, wanted};
use super::target::Target;
use crate::ledger::batch::{Batch, Lane};
use crate::ledger::entry::{EntryKind, NewEntry};
use crate::ledger::outbox::{Due, Outbox, has_older_open, holders, shadowed};
use crate::ledger::{Ledger, LedgerError};
use crate::ops::pulse::Pulse;

/// Longest the loop sleeps: it must show that it lives.
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// See the module's text.
pub struct Dispatcher {
    ledger: Ledger,
    target: Arc<Target>,
    /// Changes whenever something new is owed.
    wake: watch::Receiver<u64>,
    pulse: Pulse,
    /// Becomes true when the daemon stops: nothing new is started then.
    stopping: watch::Receiver<bool>,
    in_flight: JoinSet<(Vec<i64>, Result<(), LedgerError>)>,
    /// Deliveries in flight, with the states they replace.
    busy: HashSet<i64>,
    /// Values reserved by requests in flight: by which lane and delivery.
    reserved: HashMap<String, (Lane, i64)>,
    /// Deliveries that wait for another one in flight or in front; asked again after each wait.
    blocked: HashSet<i64>,
}

impl Dispatcher {
    /// A dispatcher that has nothing in flight yet.
    #[must_use]
    pub fn new(
        ledger: Ledger,
        target: Arc<Target>,
        wake: watch::Receiver<u64>,
        pulse: Pulse,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        Self {
            ledger,
            target,
            wake,
            pulse,
            stopping,
            in_flight: JoinSet::new(),
            busy: HashSet::new(),
            reserved: HashMap::new(),
            blocked: HashSet::new(),
        }
    }

    /// Runs until the ledger fails, or until it is told to stop and nothing is in flight. Cancelled, it abandons requests
    /// in flight: they are in doubt, which the ledger knows.
    pub async fn run(mut self) -> Result<(), LedgerError> {
        let outbox = Outbox::prepare(self.ledger.reader()).await?;
        self.go_live().await?;
        loop {
            self.pulse.beat();
            if *self.stopping.borrow() {
                match self.in_flight.join_next().await {
                    Some(done) => self.finished(done)?,
                    None => return Ok(()),
                }
                continue;
            }
            self.wake.borrow_and_update();
            let started = self.start_due(&outbox).await?;
            if started && self.capacity().await > 0 {
                continue;
            }
            self.wait(&outbox).await?;
        }
    }

    /// What was only recorded while the target was in shadow mode is owed once it is live.
    async fn go_live(&self) -> Result<(), LedgerError> {
        let target = &self.target.name;
        let shadowed = if self.target.shadow { 0 } else { shadowed(self.ledger.reader(), target).await? };
        if shadowed == 0 {
            return Ok(());
        }
        let mut batch = Batch { live: vec![target.clone()], ..Batch::default() };
        let fields = json!({"target": target, "mode": "live", "deliveries": shadowed});
        batch.entry(NewEntry::new(EntryKind::Config, None, fields));
        self.ledger.writer().write(batch).await.map(|_| ())
    }

    async fn capacity(&self) -> usize {
        let gate = self.target.gate.lock().await;
        if gate.opens_at(Instant::now()).is_some() {
            return 0;
        }
        let allowed = if gate.probing() { 1 } else { self.target.connector.concurrency };
        allowed.saturating_sub(self.in_flight.len())
    }

    /// Starts what is due; true when anything was found.
    async fn start_due(&mut self, outbox: &Outbox) -> Result<bool, LedgerError> {
        let capacity = self.capacity().await;
        if capacity == 0 {
            return Ok(false);
        }
        let excluded: Vec<i64> = self.busy.iter().chain(&self.blocked).copied().collect();
        let limit = i64::try_from(capacity).unwrap_or(1);
        let found = outbox.due(self.ledger.reader(), &self.target.name, &excluded, limit).await?;
        let any = !found.is_empty();
        for due in found {
            self.start(due).await?;
        }
        Ok(any)
    }

    async fn start(&mut self, mut due: Due) -> Result<(), LedgerError> {
        let system = &self.target.connector.system;
        if let Err(error) = self.target.versions.lift(system, &mut due) {
            return self.park(due, &Obstacle::Evaluation(error));
        }
        let wants = match wanted(&self.target.connector, &due) {
            Ok(wants) => wants,
            Err(obstacle) => return self.park(due, &obstacle),
        };
        let mut held = holders(self.ledger.reader(), &self.target.name, &wants).await?;
        for want in &wants {
            if let Some((lane, _)) = self.reserved.get(want) {
                held.insert(want.clone(), lane.clone());
            }
        }
        let own = wants.iter().filter_map(|want| held.get(want));
        for lane in own.filter(|lane| **lane != due.lane) {
            // Its holder is about to change: what was committed first is delivered first. Heads of lanes are compared, so
            // that two lanes never wait for each other.
            let head = due.supersedes.iter().copied().min().unwrap_or(due.id);
            if has_older_open(self.ledger.reader(), lane, head).await? {
                self.blocked.insert(due.id);
                self.blocked.extend(&due.supersedes);
                return Ok(());
            }
        }
        let Target { connector, adopts, .. } = &*self.target;
        let decided = plan(connector, *adopts, &due, Timestamp::now(), &|want| held.get(want).cloned());
        match decided {
            Ok(plan) => self.spawn(due, plan),
            Err(obstacle) => return self.park(due, &obstacle),
        }
        Ok(())
    }

    fn park(&mut self, due: Due, obstacle: &Obstacle) -> Result<(), LedgerError> {
        self.spawn(due, Plan::Park(obstacle.to_string()));
        Ok(())
    }

    fn spawn(&mut self, due: Due, plan: Plan) {
        let mut ids = due.supersedes.clone();
        ids.push(due.id);
        self.busy.extend(&ids);
        if let Plan::Send { request, .. } | Plan::Adopt { request, .. } = &plan {
            for want in &request.holds {
                self.reserved.insert(want.clone(), (due.lane.clone(), due.id));
            }
        }
        let delivery = Delivery { ledger: self.ledger.clone(), target: self.target.clone(), due };
        self.in_flight.spawn(async move { (ids, delivery.run(plan).await) });
    }

    /// Waits for an outcome, for something new, or for the next time anything can be due.
    async fn wait(&mut self, outbox: &Outbox) -> Result<(), LedgerError> {
        let mut until = Instant::now() + LONGEST_WAIT;
        // While nothing more may be started, an outcome or the gate comes first: no need to look what is due.
        let may_start = self.capacity().await > 0;
        if may_start && let Some(at) = outbox.next_due_at(self.ledger.reader(), &self.target.name).await? {
            let wait: Duration = at.duration_since(Timestamp::now()).try_into().unwrap_or_default();
            until = until.min(Instant::now() + wait);
        }
        if let Some(at) = self.target.gate.lock().await.opens_at(Instant::now()) {
            until = until.min(at);
        }
        tokio::select! {
            Some(done) = self.in_flight.join_next(), if !self.in_flight.is_empty() => self.finished(done)?,
            stopped = self.stopping.changed() => stopped.map_err(|_| LedgerError::WriterGone)?,
            changed = self.wake.changed(), if may_start => changed.map_err(|_| LedgerError::WriterGone)?,
            () = sleep_until(until) => {}
        }
        while let Some(done) = self.in_flight.try_join_next() {
            self.finished(done)?;
        }
        self.blocked.clear();
        Ok(())
    }

    fn finished(
        &mut self,
        done: Result<(Vec<i64>, Result<(), LedgerError>), tokio::task::JoinError>,
    ) -> Result<(), LedgerError> {
        let (ids, result) = done.map_err(|_| LedgerError::WriterGone)?;
        for id in &ids {
            self.busy.remove(id);
        }
        // What it reserved is in the ledger by now.
        self.reserved.retain(|_, (_, id)| !ids.contains(id));
        result
    }
}
