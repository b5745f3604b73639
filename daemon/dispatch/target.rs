//! A target while the daemon runs: its connector, its pace, its gate.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use tokio::sync::{Mutex, Semaphore};
use tokio::time::{Instant, sleep_until};

use super::dedup::Dedup;
use super::gate::Gate;
use super::quota::Pacer;
use crate::connector::Connector;
use crate::connector::classify::Class;
use crate::ledger::outbox::Due;
use crate::mapping::expression::EvaluationError;
use crate::mapping::route::Route;
use crate::mapping::upcast::Upcasters;
use crate::target::HttpTarget;

/// Pause after a 429 that does not say how long.
const DEFAULT_PAUSE: Duration = Duration::from_secs(1);
/// Pause after our credentials were refused.
const UNAUTHORISED_PAUSE: Duration = Duration::from_secs(30);

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

/// See the module's text.
pub struct Target {
    /// Name in the settings.
    pub name: String,
    /// How to talk to it.
    pub connector: Connector,
    /// The way there.
    pub http: HttpTarget,
    /// Allowed rate.
    pub pacer: Pacer,
    /// Deduplication hints.
    pub dedup: Dedup,
    /// Objects may stand there that somebody else has made: they are looked for before one is created.
    pub adopts: bool,
    /// Held from the look for a free object to its adoption, so that two of ours never take the same.
    pub adopting: Mutex<()>,
    /// Which version of an event its objects are made of.
    pub versions: Versions,
    /// Everything is done but the request.
    pub shadow: bool,
    /// Whether it may be spoken to.
    pub gate: Mutex<Gate>,
    /// Room for deliveries that have been taken and may not leave yet: few, so that what is urgent waits for few.
    pub unsent: Arc<Semaphore>,
}

impl Target {
    /// Waits until the gate is open.
    pub async fn open(&self) {
        while let Some(at) = self.opens_at().await {
            sleep_until(at).await;
        }
    }

    /// Waits until a request may leave: the gate is open and the quota grants it. Called last of all, so that permits
    /// cannot gather behind a slow commit and then leave together.
    pub async fn permit(&self) {
        loop {
            self.open().await;
            self.pacer.permit().await;
            // The target may have asked for a pause while the quota was waited for.
            if self.opens_at().await.is_none() {
                return;
            }
        }
    }

    async fn opens_at(&self) -> Option<Instant> {
        self.gate.lock().await.opens_at(Instant::now())
    }

    /// Takes an outcome into account for all requests to come.
    pub async fn note(&self, class: Class, status: Option<u16>, retry_after: Option<Duration>) {
        let mut gate = self.gate.lock().await;
        let now = Instant::now();
        match class {
            Class::Throttled => {
                gate.answered();
                gate.pause(now, retry_after.unwrap_or(DEFAULT_PAUSE));
            }
            Class::Unauthorised => {
                tracing::error!(target_name = %self.name, "the target refuses our credentials; it is paused");
                gate.pause(now, UNAUTHORISED_PAUSE);
            }
            // Contention over one object is an answer; only silence and server errors speak of the target as a whole.
            Class::Transient | Class::Uncertain if status.is_none_or(|status| status >= 500) => {
                gate.failed(now, rand::random());
            }
            Class::Transient
            | Class::Uncertain
            | Class::Applied
            | Class::Duplicate
            | Class::Rejected
            | Class::Conflict
            | Class::Missing => gate.answered(),
        }
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
