//! The loop of one target: takes the heads of its lanes, the most urgent first, one request per lane at a time, and waits when
//! there is nothing to do.
//!
//! Nothing is taken before it can leave: what is still in the ledger can be overtaken by what is more urgent, be replaced by a
//! newer state, and share a request with others.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::bulk::{BulkDelivery, Item};
use super::deliver::Delivery;
use super::group::{Group, group};
use super::job::Beginning;
use super::plan::{Obstacle, Plan, plan, wanted};
use super::target::Target;
use super::together::together;
use super::turn::Turns;
use crate::ledger::batch::{Batch, Cause, Lane, WaitWrite};
use crate::ledger::entry::{EntryKind, NewEntry};
use crate::ledger::membership::{Membership, Standing};
use crate::ledger::outbox::{Due, Outbox, SHARDS, owed_objects, shadowed};
use crate::ledger::standing::{has_older_open, holders};
use crate::ledger::{Ledger, LedgerError};
use crate::ops::pulse::Pulse;

/// Longest the loop sleeps: it must show that it lives.
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// See the module's text.
pub struct Dispatcher {
    pub(super) ledger: Ledger,
    pub(super) target: Arc<Target>,
    /// Changes whenever something new is owed.
    pub(super) wake: watch::Receiver<u64>,
    pub(super) pulse: Pulse,
    /// Becomes true when the daemon stops: nothing new is started then.
    pub(super) stopping: watch::Receiver<bool>,
    /// Whose lanes are this process's.
    pub(super) standing: Option<watch::Receiver<Standing>>,
    pub(super) shards: Vec<i16>,
    /// Deliveries in flight by shard.
    pub(super) in_shard: HashMap<i16, usize>,
    /// Objects of the connector, and those that are owed though it does not know them any more.
    pub(super) objects: Vec<String>,
    /// Objects that one request in flight finds out about.
    pub(super) probes: HashSet<String>,
    pub(super) turns: Turns,
    /// The less urgent have waited for long.
    pub(super) aged: bool,
    /// Some objects were left out because others of them are held back.
    pub(super) left_out: bool,
    pub(super) in_flight: JoinSet<(Done, Result<(), LedgerError>)>,
    /// Deliveries in flight, with the states they replace.
    pub(super) busy: HashSet<i64>,
    /// Values reserved by requests in flight: by which lane and delivery.
    pub(super) reserved: HashMap<String, (Lane, i64)>,
    /// Deliveries that wait for another one in flight or in front; asked again after each wait.
    pub(super) blocked: HashSet<i64>,
}

/// Deliveries that have come to an outcome.
pub(super) struct Done {
    object: String,
    /// The shard of each.
    shards: Vec<i16>,
    /// Their numbers, and those of the states they replaced.
    ids: Vec<i64>,
}

/// A delivery, and the unique values it would like to hold.
type Wishing = (Due, Vec<String>);

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
            standing: ledger.membership().map(Membership::standing),
            in_shard: HashMap::new(),
            ledger,
            target,
            wake,
            pulse,
            stopping,
            shards: (0..SHARDS).collect(),
            objects: Vec::new(),
            probes: HashSet::new(),
            turns: Turns::default(),
            aged: false,
            left_out: false,
            in_flight: JoinSet::new(),
            busy: HashSet::new(),
            reserved: HashMap::new(),
            blocked: HashSet::new(),
        }
    }

    /// Runs until the ledger fails, or until it is told to stop and nothing is in flight. Cancelled, it abandons requests
    /// in flight: they are in doubt, which the ledger knows.
    pub async fn run(mut self) -> Result<(), LedgerError> {
        let outbox =
            Outbox::prepare(self.ledger.outbox(), self.ledger.master(), self.ledger.erasures()).await?;
        self.go_live().await?;
        self.objects = owed_objects(self.ledger.reader(), &self.target.name).await?;
        for object in &self.target.connector.objects {
            if !self.objects.contains(&object.name) {
                self.objects.push(object.name.clone());
            }
        }
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
            self.share_lanes();
            let started = self.start_due(&outbox).await?;
            if started && self.room() > 0 {
                continue;
            }
            self.wait(&outbox).await?;
        }
    }

    /// Takes note of which lanes are this process's; those that another one shall have are let go when nothing of them is in flight.
    fn share_lanes(&mut self) {
        let Some(standing) = &mut self.standing else { return };
        let standing = standing.borrow_and_update();
        self.shards = standing.own_shards(&self.target.name);
        let Some(leaving) = standing.leaving.get(&self.target.name) else { return };
        let idle = leaving.iter().copied().filter(|shard| !self.in_shard.contains_key(shard));
        let idle: Vec<i16> = idle.collect();
        if let Some(membership) = self.ledger.membership().filter(|_| !idle.is_empty()) {
            membership.has_left(&self.target.name, idle);
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

    /// Deliveries that wait for another object are not found again until that one has moved.
    pub(super) async fn leave_alone(&self, waiting: Vec<Due>) -> Result<(), LedgerError> {
        if waiting.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::default();
        for due in waiting {
            let head = due.supersedes.iter().copied().min().unwrap_or(due.id);
            let needed = self.lacks(&due);
            let reference = needed.clone().or(due.waits_for);
            let needed = needed.is_some();
            batch.waits.extend(reference.map(|reference| WaitWrite { id: head, reference, needed }));
        }
        self.ledger.writer().write(batch).await.map(|_| ())
    }

    /// Why its event cannot be delivered as it is; otherwise it is of the version that is wanted now.
    fn obstacle(&self, due: &mut Due) -> Option<Obstacle> {
        if due.unreadable {
            return Some(Obstacle::Unreadable);
        }
        if let Some(fault) = due.fault() {
            return Some(Obstacle::HeldBack(fault.to_owned()));
        }
        if due.is_sealed() {
            return Some(Obstacle::Sealed);
        }
        self.target.versions.lift(&self.target.connector.system, due).err().map(Obstacle::Evaluation)
    }

    /// Starts as many requests as there is room for; what finds none stays where it is.
    pub(super) async fn start_all(&mut self, found: Vec<Due>, room: usize) -> Result<(), LedgerError> {
        let found = together(self.ledger.reader(), &self.target, found).await?;
        let mut wishing: Vec<Wishing> = Vec::with_capacity(found.len());
        let mut probed: HashSet<String> = HashSet::new();
        for mut due in found {
            // One is enough to find out; the others stay where they are.
            let object = &due.lane.object;
            if self.target.gates.probing_object(object) && !probed.insert(object.clone()) {
                continue;
            }
            if let Some(obstacle) = self.obstacle(&mut due) {
                self.park(due, &obstacle);
                continue;
            }
            match wanted(&self.target.connector, &due) {
                Ok(wants) => wishing.push((due, wants)),
                Err(obstacle) => self.park(due, &obstacle),
            }
        }
        let wants: Vec<String> = wishing.iter().flat_map(|(_, wants)| wants.iter().cloned()).collect();
        let held = holders(self.ledger.reader(), &self.target.name, &wants).await?;
        let mut planned = Vec::with_capacity(wishing.len());
        for (due, wants) in wishing {
            planned.extend(self.plan(due, &wants, &held).await?);
        }
        let (groups, singly) = group(&self.target, self.ledger.reader(), planned).await?;
        let mut left = room;
        for group in groups {
            let in_job = group.becomes_a_job(&self.target);
            if left == 0 || (in_job && self.target.jobs_are_full()) {
                let ids: Vec<i64> = group.items.iter().map(|(due, ..)| due.id).collect();
                self.reserved.retain(|_, (_, id)| !ids.contains(id));
                continue;
            }
            left -= 1;
            self.spawn_group(group, in_job);
        }
        for (due, plan) in singly {
            // What needs no request needs no room.
            let request = plan.first_request();
            let object = &due.lane.object;
            let enough = request.and_then(|request| self.target.quotas.enough(object, request));
            let is_enough = enough.is_some() && self.target.unsent.is_held_back(object);
            let takes_room = request.is_some();
            if takes_room && (left == 0 || is_enough) {
                self.reserved.retain(|_, (_, id)| *id != due.id);
                continue;
            }
            left -= usize::from(takes_room);
            self.spawn(due, plan, enough);
        }
        Ok(())
    }

    async fn plan(
        &mut self,
        due: Due,
        wants: &[String],
        held: &HashMap<String, Lane>,
    ) -> Result<Option<(Due, Plan)>, LedgerError> {
        let holder =
            |want: &str| self.reserved.get(want).map(|(lane, _)| lane).or_else(|| held.get(want)).cloned();
        for lane in wants.iter().filter_map(|want| holder(want)).filter(|lane| *lane != due.lane) {
            // Its holder is about to change: what was committed first is delivered first. Heads of lanes are compared, so
            // that two lanes never wait for each other.
            let head = due.supersedes.iter().copied().min().unwrap_or(due.id);
            if has_older_open(self.ledger.reader(), &lane, head).await? {
                self.blocked.insert(due.id);
                self.blocked.insert(head);
                return Ok(None);
            }
        }
        let Target { connector, adopts, .. } = &*self.target;
        match plan(connector, *adopts, &due, Timestamp::now(), &holder) {
            Ok(mut plan) => {
                if self.target.twin.is_none() {
                    plan.forget_what_it_says();
                }
                self.reserve(&due, &plan);
                Ok(Some((due, plan)))
            }
            Err(obstacle) => {
                self.park(due, &obstacle);
                Ok(None)
            }
        }
    }

    fn reserve(&mut self, due: &Due, plan: &Plan) {
        if let Plan::Send { request, .. } | Plan::Adopt { request, .. } = plan {
            for want in &request.holds {
                self.reserved.insert(want.clone(), (due.lane.clone(), due.id));
            }
        }
    }

    fn park(&mut self, due: Due, obstacle: &Obstacle) {
        let cause = if matches!(obstacle, Obstacle::Unreadable) { Cause::Unreadable } else { Cause::Mapping };
        self.spawn(due, Plan::Park(cause, obstacle.to_string()), None);
    }

    /// Notes a delivery as being in hand.
    fn hold(&mut self, due: &Due) -> Vec<i64> {
        let mut ids = due.supersedes.clone();
        ids.push(due.id);
        self.busy.extend(&ids);
        *self.in_shard.entry(due.shard).or_default() += 1;
        if self.target.gates.probing_object(&due.lane.object) {
            self.probes.insert(due.lane.object.clone());
        }
        ids
    }

    /// `enough`: with so many held back no more of its kind are begun.
    fn spawn(&mut self, due: Due, plan: Plan, enough: Option<usize>) {
        let done = Done { object: due.lane.object.clone(), shards: vec![due.shard], ids: self.hold(&due) };
        let delivery = Delivery::new(self.ledger.clone(), self.target.clone(), due, enough);
        self.in_flight.spawn(async move { (done, delivery.run(plan).await) });
    }

    fn spawn_group(&mut self, group: Group, in_job: bool) {
        let Group { way, items } = group;
        let object = items.first().map(|(due, ..)| due.lane.object.clone()).unwrap_or_default();
        let mut done = Done { object: object.clone(), shards: Vec::new(), ids: Vec::new() };
        let mut together = Vec::with_capacity(items.len());
        for (due, request, wishes) in items {
            done.ids.extend(self.hold(&due));
            done.shards.push(due.shard);
            let delivery = Delivery::one_of_many(self.ledger.clone(), self.target.clone(), due);
            together.push(Item { delivery, request, wishes });
        }
        let (ledger, target) = (self.ledger.clone(), self.target.clone());
        let unsent = target.unsent.enter();
        let job = in_job.then(|| Beginning::new(target.clone()));
        let bulk = BulkDelivery { ledger, target, object, way, items: together, unsent, job };
        self.in_flight.spawn(async move { (done, bulk.run().await) });
    }

    /// Waits for an outcome, for something new, or for the next time anything can be due.
    async fn wait(&mut self, outbox: &Outbox) -> Result<(), LedgerError> {
        let mut until = Instant::now() + LONGEST_WAIT;
        // Before anything is looked at: a pause may be lifted meanwhile.
        let mut changes = self.target.quotas.changes();
        // While nothing more may be started, an outcome or the gate comes first: no need to look what is due.
        let may_start = self.room() > 0;
        if may_start {
            let Self { target, objects, shards, .. } = self;
            let next = outbox.next_due_at(self.ledger.outbox(), &target.name, objects, shards).await?;
            if let Some(at) = next {
                let wait: Duration = at.duration_since(Timestamp::now()).try_into().unwrap_or_default();
                until = until.min(Instant::now() + wait);
            }
        }
        if let Some(at) = self.target.gates.next_opens_at(Instant::now()) {
            until = until.min(at);
        }
        let unsent = self.target.unsent.clone();
        let full = self.target.room() == 0 || self.left_out || unsent.held_back() > 0;
        let mut standing = self.standing.clone();
        tokio::select! {
            Some(done) = self.in_flight.join_next(), if !self.in_flight.is_empty() => self.finished(done)?,
            () = unsent.freed(), if full => {}
            () = changed(standing.as_mut()) => {}
            _ = changes.changed(), if full || !may_start => {}
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
        done: Result<(Done, Result<(), LedgerError>), tokio::task::JoinError>,
    ) -> Result<(), LedgerError> {
        let (Done { object, shards, ids }, result) = done.map_err(|_| LedgerError::WriterGone)?;
        self.probes.remove(&object);
        for shard in shards {
            if let Some(count) = self.in_shard.get_mut(&shard) {
                *count -= 1;
                if *count == 0 {
                    self.in_shard.remove(&shard);
                }
            }
        }
        for id in &ids {
            self.busy.remove(id);
        }
        // What they reserved is in the ledger by now.
        self.reserved.retain(|_, (_, id)| !ids.contains(id));
        result
    }
}

/// Ends when it changes; never, where there is nothing to change.
async fn changed(standing: Option<&mut watch::Receiver<Standing>>) {
    let Some(standing) = standing else { return std::future::pending().await };
    if standing.changed().await.is_err() {
        std::future::pending().await
    }
}
