//! A target while the daemon runs: its connector, its quotas, its gates.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};

use super::dedup::Dedup;
use super::gate::{Closed, Gates};
use super::job::JobCount;
use super::quota::{Pauses, Permit, Quotas, Refused, clock_of};
use super::unsent::{Unsent, Waiting};
use crate::connector::Connector;
use crate::connector::classify::{Answer, Class};
use crate::connector::request::Request;
use crate::ledger::LedgerError;
use crate::ledger::outbox::Due;
use crate::ledger::process::Tenure;
use crate::mapping::expression::EvaluationError;
use crate::mapping::route::Route;
use crate::mapping::upcast::Upcasters;
use crate::target::Way;

/// How long a target that refuses bulk requests is spared them.
const REFUSED_BULK: Duration = Duration::from_secs(3_600);

/// Which version of an event an object is made of: that of the route which brings it there.
#[derive(Clone)]
pub struct Versions {
    /// Routes.
    pub routes: Arc<Vec<Route>>,
    /// Older events in the form of newer versions.
    pub upcasters: Arc<Upcasters>,
}

impl Versions {
    /// See [`lift`].
    pub fn lift(&self, system: &str, due: &mut Due) -> Result<(), EvaluationError> {
        lift(&self.routes, &self.upcasters, system, due)
    }
}

/// Brings the event of a delivery, as the ledger keeps it, to the version that is wanted at `system`.
pub fn lift(
    routes: &[Route],
    upcasters: &Upcasters,
    system: &str,
    due: &mut Due,
) -> Result<(), EvaluationError> {
    let Some(stored) = due.event.get("type").and_then(Value::as_str).map(str::to_owned) else {
        return Ok(());
    };
    let leads = |route: &&Route| route.system == system && route.object == due.lane.object;
    let wanted = routes.iter().filter(leads).find(|route| upcasters.reaches(&stored, &route.event_type));
    if let (Some(wanted), Some(data)) = (wanted, due.event.get_mut("data")) {
        *data = upcasters.lift(&stored, &wanted.event_type, data)?;
    }
    Ok(())
}

/// What an exchange with the target tells of the target itself.
pub struct Note<'a> {
    /// Object it was about.
    pub object: &'a str,
    /// The request.
    pub request: &'a Request,
    /// When it left.
    pub sent: Instant,
    /// What came of it.
    pub class: Class,
    /// The answer, when there was one.
    pub answer: Option<&'a Answer>,
    /// How long the target asks us to wait.
    pub retry_after: Option<Duration>,
}

/// See the module's text.
pub struct Target {
    /// Name in the settings.
    pub name: String,
    /// How to talk to it.
    pub connector: Connector,
    /// The way there.
    pub way: Way,
    /// Allowed rates.
    pub quotas: Quotas,
    /// Deduplication hints.
    pub dedup: Dedup,
    /// Objects may stand there that somebody else has made: they are looked for before one is created.
    pub adopts: bool,
    /// Held from the look for a free object to its adoption, so that two of ours never take the same.
    pub adopting: Mutex<()>,
    /// Which version of an event its objects are made of.
    pub versions: Versions,
    /// The source that is the same system, when there is one: what it shows is compared with what was told to the target.
    pub twin: Option<String>,
    /// Types of events that several sources make.
    pub shared: BTreeSet<String>,
    /// Everything is done but the request.
    pub shadow: bool,
    /// Whether it may be spoken to, and about which objects.
    pub gates: Gates,
    /// Held by the one request that finds out whether it may be spoken to again.
    pub probe: Arc<Mutex<()>>,
    /// Its clock and ours differ by more than clocks do.
    pub clock_is_off: AtomicBool,
    /// See there.
    pub unsent: Arc<Unsent>,
    /// Jobs of bulk requests.
    pub jobs: JobCount,
    /// Objects whose bulk requests the target has refused, and until when none is tried.
    pub refused_bulk: std::sync::Mutex<HashMap<String, Instant>>,
}

impl Target {
    /// How many more deliveries may be taken to wait for their permit.
    #[must_use]
    pub fn room(&self) -> usize {
        self.quotas.ahead().saturating_sub(self.unsent.count())
    }

    /// Waits until `request` may be begun: until then its attempt is not even written down.
    pub async fn open(&self, object: &str, request: &Request, waiting: Option<&Waiting>) {
        self.pass_gates(object, waiting).await;
        self.quotas.unpaused(object, request, waiting).await;
        self.pass_gates(object, waiting).await;
    }

    async fn pass_gates(&self, object: &str, waiting: Option<&Waiting>) {
        let waiting = waiting.filter(|waiting| !waiting.is_held_back());
        let mut lifted = self.quotas.changes();
        while let Some(at) = self.gates.opens_at(object, Instant::now()) {
            if self.gates.all_open_at(Instant::now()).is_none() {
                waiting.inspect(|waiting| waiting.hold_back(object, 1));
            }
            tokio::select! {
                () = sleep_until(at) => {}
                _ = lifted.changed() => {}
            }
        }
        waiting.inspect(|waiting| waiting.go_on());
    }

    /// Waits until a request may leave: the gates are open and the quotas grant it. Called last of all, so that permits
    /// cannot gather behind a slow commit and then leave together.
    pub async fn permit(&self, object: &str, request: &Request, waiting: Option<&Waiting>) -> Permit {
        let mut probe = None;
        loop {
            self.pass_gates(object, waiting).await;
            let mut permit = self.quotas.permit(object, request, waiting).await;
            // The target may have asked for a pause while the quotas were waited for.
            if self.gates.opens_at(object, Instant::now()).is_some() {
                continue;
            }
            let is_probe = self.gates.probing().is_some() || self.gates.probing_object(object);
            if is_probe && probe.is_none() {
                // The others, which were on their way when the gate closed, wait for what this one finds out.
                drop(permit);
                probe = Some(self.probe.clone().lock_owned().await);
                continue;
            }
            permit.probe = probe.filter(|_| is_probe);
            return permit;
        }
    }

    /// Reads something that is about no delivery; `None` when the target gave no usable answer.
    pub async fn read(
        &self,
        object: &str,
        request: &Request,
        tenure: &Tenure,
    ) -> Result<Option<Value>, LedgerError> {
        let answered = self.ask(object, request, tenure).await?;
        Ok(answered.filter(|(class, _)| *class == Class::Applied).map(|(_, answer)| answer.body))
    }

    /// The same with whatever the target answers; `None` when it does not.
    pub async fn ask(
        &self,
        object: &str,
        request: &Request,
        tenure: &Tenure,
    ) -> Result<Option<(Class, Answer)>, LedgerError> {
        let permit = self.permit(object, request, None).await;
        let sent = Instant::now();
        let result = tenure.during(self.way.send(request, "")).await.ok_or(LedgerError::Fenced)?;
        let Ok(answer) = result else {
            self.note(&Note {
                object,
                request,
                sent,
                class: Class::Transient,
                answer: None,
                retry_after: None,
            });
            return Ok(None);
        };
        let (class, _) = answer.classify(&request.step, &self.connector.outcomes);
        // Our credentials may do other things than read this (RFC 9110, 15.5.4): what is written goes on.
        let is_forbidden = class == Class::Unauthorised && answer.status == 403 && request.reads();
        let class = if is_forbidden { Class::Rejected } else { class };
        let now = Timestamp::now();
        let retry_after = answer.retry_after(now, self.connector.longest_wait());
        self.note_clock(&answer, now);
        self.note(&Note { object, request, sent, class, answer: Some(&answer), retry_after });
        drop(permit);
        Ok(Some((class, answer)))
    }

    /// Says once that the target's clock is off: what it says of times is not believed then.
    fn note_clock(&self, answer: &Answer, now: Timestamp) {
        let off = answer.clock_is_off_by_s(now);
        if self.clock_is_off.swap(off.is_some(), Ordering::Relaxed) == off.is_some() {
            return;
        }
        match off {
            Some(ahead_s) => tracing::error!(
                target_name = %self.name, ahead_s,
                "the clock of the target and ours differ; ours counts: look which of them is off"
            ),
            None => {
                tracing::info!(target_name = %self.name, "the clocks of the target and of this machine agree again")
            }
        }
    }

    /// Notes that the target does not take bulk requests of an object.
    pub fn refuse_bulk(&self, object: &str) {
        tracing::warn!(target_name = %self.name, object, "the target refuses bulk requests; objects go one by one for an hour");
        let until = Instant::now() + REFUSED_BULK;
        self.refused_bulk.lock().unwrap_or_else(PoisonError::into_inner).insert(object.to_owned(), until);
    }

    /// True while it is known that it does not.
    #[must_use]
    pub fn bulk_is_refused(&self, object: &str) -> bool {
        let refused = self.refused_bulk.lock().unwrap_or_else(PoisonError::into_inner);
        refused.get(object).is_some_and(|until| *until > Instant::now())
    }

    /// True while no further job may be begun.
    #[must_use]
    pub fn jobs_are_full(&self) -> bool {
        self.connector.jobs.as_ref().is_some_and(|jobs| self.jobs.are_enough(jobs.at_once))
    }

    /// Among how many processes it is divided.
    pub fn divide(&self, processes: u32) {
        self.quotas.divide(processes);
        self.jobs.divide(processes);
    }

    /// Takes an outcome into account for all requests to come.
    pub fn note(&self, note: &Note<'_>) {
        let Note { object, request, sent, class, answer, retry_after } = note;
        let refused = (*class == Class::Throttled).then_some(Refused { sent: *sent, wait: *retry_after });
        let learnt = answer.map(|answer| self.quotas.learn(object, request, answer, refused));
        let status = answer.map(|answer| answer.status);
        let now = Instant::now();
        match class {
            Class::Throttled => match learnt.unwrap_or(Pauses::Target(*retry_after)) {
                Pauses::Limit | Pauses::Nothing => {}
                Pauses::Target(wait) => self.gates.throttled(now, wait),
            },
            Class::Unauthorised => {
                tracing::error!(target_name = %self.name, "the target refuses our credentials; it is paused");
                self.gates.unauthorised(now);
            }
            Class::Transient | Class::Uncertain if status.is_none() => self.gates.silent(now, rand::random()),
            // Contention over one object is an answer; only silence and server errors speak of more.
            Class::Transient | Class::Uncertain if status.is_some_and(|status| status >= 500) => {
                self.gates.failed(object, now, rand::random());
            }
            Class::Transient
            | Class::Uncertain
            | Class::Applied
            | Class::Duplicate
            | Class::Rejected
            | Class::Conflict
            | Class::Missing => self.gates.answered(object),
        }
    }

    /// An operator wants no pause any more: it is spoken to at once, at the rates that are set.
    pub fn lift(&self) {
        self.gates.lift();
        self.quotas.lift();
    }

    /// How it looks, for people.
    #[must_use]
    pub fn describe(&self) -> Value {
        let limits: Vec<Value> = self.quotas.show().into_iter().map(|shown| shown.to_json()).collect();
        let closed = self.gates.probing().map(Closed::as_str);
        let until = self.gates.all_open_at(Instant::now()).map(clock_of);
        json!({"limits": limits, "closed": closed, "closed_until": until,
               "closed_objects": self.gates.closed_objects()})
    }

    /// True when the vendor wants values of this object unique.
    #[must_use]
    pub fn has_unique(&self, object: &str) -> bool {
        self.connector.object(object).is_some_and(|object| !object.unique.is_empty())
    }

    /// True when an object here can wait for another one: for a unique value, or for one it refers to.
    #[must_use]
    pub fn may_grant(&self) -> bool {
        let objects = &self.connector.objects;
        objects.len() > 1 || objects.iter().any(|object| !object.unique.is_empty())
    }
}
