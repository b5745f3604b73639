//! Follows the jobs in which a vendor works bulk requests off, to their end: those of this process, and those of processes that
//! have ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use jiff::SignedDuration;
use serde_json::Value;
use tokio::sync::{Notify, watch};
use tokio::time::sleep;

use super::bulk::settle_each;
use super::deliver::Delivery;
use super::outcome::Outcome;
use super::quota::at_once::part_of;
use super::target::Target;
use crate::connector::bulk::Jobs;
use crate::connector::classify::Class;
use crate::connector::request::Request;
use crate::ledger::batch::{Batch, CallWrite, RetryWrite};
use crate::ledger::calls::{Running, running};
use crate::ledger::outbox::{Due, by_ids};
use crate::ledger::{Ledger, LedgerError};
use crate::mapping::scope::Scope;
use crate::ops::pulse::Pulse;

/// Jobs asked for at once.
const ASKED: i64 = 100;
/// How often it is looked for jobs of processes that have ended, while there are none of our own.
const LOOK: Duration = Duration::from_secs(2);
/// Longest time between two looks at a job.
const MOST_APART: Duration = Duration::from_secs(60);
/// An attempt so much later is another one, whatever the clocks are like.
const SENT_AGAIN: SignedDuration = SignedDuration::from_mins(1);
/// A job the vendor does not know is given up when it is so old: it may need a moment to be found.
const UNKNOWN_AFTER: Duration = Duration::from_secs(60);

/// How many jobs of a target run, as far as this process knows.
#[derive(Debug, Default)]
pub struct JobCount {
    running: AtomicUsize,
    /// Requests under way that will be jobs.
    beginning: AtomicUsize,
    /// Processes that share the target.
    processes: AtomicU32,
    begun: Notify,
}

/// A request under way that will be a job.
pub struct Beginning(Arc<Target>);

impl Beginning {
    /// Notes one.
    #[must_use]
    pub fn new(target: Arc<Target>) -> Self {
        target.jobs.beginning.fetch_add(1, Ordering::Relaxed);
        Self(target)
    }

    /// It has become a job.
    pub fn runs(self) {
        self.0.jobs.running.fetch_add(1, Ordering::Relaxed);
        self.0.jobs.begun.notify_one();
    }
}

impl Drop for Beginning {
    fn drop(&mut self) {
        self.0.jobs.beginning.fetch_sub(1, Ordering::Relaxed);
    }
}

impl JobCount {
    /// True when they are this process's part of `at_once`.
    #[must_use]
    pub fn are_enough(&self, at_once: usize) -> bool {
        let part = part_of(at_once, self.processes.load(Ordering::Relaxed));
        self.running.load(Ordering::Relaxed) + self.beginning.load(Ordering::Relaxed) >= part
    }

    /// Among how many processes the target is divided.
    pub fn divide(&self, processes: u32) {
        self.processes.store(processes, Ordering::Relaxed);
    }
}

/// See the module's text.
pub struct JobFollower {
    /// The ledger.
    pub ledger: Ledger,
    /// The target, whose connector has jobs.
    pub target: Arc<Target>,
    /// Shows that work goes on.
    pub pulse: Pulse,
    /// Becomes true when the daemon stops.
    pub stopping: watch::Receiver<bool>,
}

impl JobFollower {
    /// Runs until the ledger fails or the daemon stops; what runs at the vendor then is followed by the next process.
    pub async fn run(self) -> Result<(), LedgerError> {
        let target = self.target.clone();
        let Some(jobs) = &target.connector.jobs else { return Ok(()) };
        let epoch = self.ledger.membership().map_or(0, |membership| membership.process.epoch);
        loop {
            self.pulse.beat();
            if *self.stopping.borrow() {
                return Ok(());
            }
            let found = running(self.ledger.reader(), &target.name, epoch, ASKED).await?;
            target.jobs.running.store(found.len(), Ordering::Relaxed);
            // The target may be closed for long.
            let mut stopping = self.stopping.clone();
            tokio::select! {
                done = self.pulse.during(self.round(jobs, found)) => done?,
                _ = stopping.wait_for(|stop| *stop) => {}
            }
        }
    }

    /// Looks at the jobs, and waits until it is time for the next look.
    async fn round(&self, jobs: &Jobs, found: Vec<Running>) -> Result<(), LedgerError> {
        let wait = match found.iter().map(|job| job.age).min() {
            None => LOOK,
            Some(youngest) => {
                self.look(jobs, found).await?;
                // A tenth of its age: a job of a minute is not asked for every second.
                jobs.every.max(youngest / 10).min(MOST_APART)
            }
        };
        tokio::select! {
            () = sleep(wait) => {}
            () = self.target.jobs.begun.notified() => sleep(jobs.every).await,
        }
        Ok(())
    }

    /// Asks for all of them in one request; `None` when the answer tells nothing.
    async fn ask(&self, jobs: &Jobs, found: &[Running]) -> Result<Option<Vec<Value>>, LedgerError> {
        let numbers: Vec<&str> = found.iter().map(|running| running.job.as_str()).collect();
        let numbers = Value::from(numbers.join(","));
        let request = match Request::bare("job", &jobs.line, &Scope::new([("jobs", &numbers)])) {
            Ok(request) => request,
            Err(error) => {
                tracing::error!(target_name = %self.target.name, %error, "jobs cannot be asked for");
                return Ok(None);
            }
        };
        let answer = self.target.read("job", &request, self.ledger.tenure()).await?;
        let listed = answer.and_then(|answer| jobs.list.evaluate(&Scope::new([("answer", &answer)])).ok());
        Ok(listed.and_then(|listed| listed.as_array().cloned()))
    }

    /// Writes what became of those that have ended. One of which nothing is heard for too long is given up.
    async fn look(&self, jobs: &Jobs, found: Vec<Running>) -> Result<(), LedgerError> {
        let answer = self.ask(jobs, &found).await?;
        let listed = answer.as_deref().unwrap_or_default();
        for running in found {
            let job = listed.iter().find(|job| {
                let key = jobs.key.evaluate(&Scope::new([("job", *job)])).unwrap_or_default();
                key.as_str().map_or_else(|| key.to_string(), str::to_owned) == running.job
            });
            let is_done =
                job.is_some_and(|job| jobs.done.holds(&Scope::new([("job", job)])).unwrap_or(false));
            // Without an answer nothing is known of any of them.
            let is_unknown = answer.is_some() && job.is_none() && running.age > UNKNOWN_AFTER;
            let is_lost = running.age > jobs.patience || is_unknown;
            if is_done || is_lost {
                let results = job
                    .filter(|_| is_done)
                    .map(|job| jobs.results.evaluate(&Scope::new([("job", job)])).unwrap_or_default());
                self.end(running, results).await?;
            }
        }
        Ok(())
    }

    /// Writes what became of each of a job's deliveries. `None`: nobody knows.
    async fn end(&self, running: Running, results: Option<Value>) -> Result<(), LedgerError> {
        let Running { key, object, way, deliveries, sent_at, .. } = running;
        let dues = by_ids(&self.ledger, &deliveries).await?;
        let reader = self.target.connector.object(&object).and_then(|object| object.bulk.get(way));
        let results = results.as_ref().and_then(Value::as_array).cloned().unwrap_or_default();
        let mut outcomes = match reader {
            Some(bulk) => bulk.result.read(&results, deliveries.len()),
            None => Vec::new(),
        };
        outcomes.resize_with(deliveries.len(), || None);
        let mut batch = Batch::default();
        let mut keys = Vec::new();
        let mut each = Vec::new();
        for (id, outcome) in deliveries.iter().zip(outcomes) {
            // One that is not open any more was settled by a person meanwhile; one that was sent again has an outcome of its own.
            let sent_again =
                |due: &Due| due.last_attempt_at.is_some_and(|at| at.duration_since(sent_at) > SENT_AGAIN);
            let Some(due) = dues.get(id).filter(|due| due.uncertain && !sent_again(due)) else { continue };
            let delivery = Delivery::one_of_many(self.ledger.clone(), self.target.clone(), due.clone());
            keys.extend(due.idempotency_key.clone());
            match due.request.as_ref().and_then(Request::from_json) {
                Some(request) => each.push((delivery, request, outcome)),
                None => {
                    let outcome = Outcome::unsent("what was sent is not recorded");
                    batch.entry(delivery.outcome_entry(Class::Uncertain, None, &outcome, None));
                    let retry = delivery.retry(Duration::ZERO, &outcome, true, false);
                    batch.retries.push(RetryWrite { alone: true, ..retry });
                }
            }
        }
        let settled =
            each.iter_mut().map(|(delivery, request, outcome)| ((&*delivery, &*request), outcome.take()));
        batch.append(settle_each(settled.collect(), &key).await?);
        batch.calls.push(CallWrite::Done { key });
        let seq = self.ledger.writer().write(batch).await?;
        for key in keys {
            self.target.dedup.delivered(&key, seq).await;
        }
        Ok(())
    }
}
