//! The loop of one target: takes the heads of its lanes, the most urgent first, one request per lane at a time, and waits when
//! there is nothing to do.
//!
//! Nothing is taken before it can leave: what is still in the ledger can be overtaken by what is more urgent, be replaced by a
//! newer state, and share a request with others.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::bulk::{BulkDelivery, Item, way_of};
use super::deliver::Delivery;
use super::plan::{Obstacle, Plan, plan, wanted};
use super::target::Target;
use super::turn::{AGED, Turns};
use crate::connector::request::Request;
use crate::event::Priority;
use crate::ledger::batch::{Batch, Cause, Lane, WaitWrite};
use crate::ledger::entry::{EntryKind, NewEntry};
use crate::ledger::membership::{Membership, Standing};
use crate::ledger::outbox::{Due, Outbox, SHARDS, Wanted, owed_objects, shadowed};
use crate::ledger::standing::{has_older_open, held_by_each, holders};
use crate::ledger::{Ledger, LedgerError};
use crate::ops::pulse::Pulse;

/// Longest the loop sleeps: it must show that it lives.
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// Deliveries taken at once at the most.
const MOST_TAKEN: usize = 256;

/// See the module's text.
pub struct Dispatcher {
    ledger: Ledger,
    target: Arc<Target>,
    /// Changes whenever something new is owed.
    wake: watch::Receiver<u64>,
    pulse: Pulse,
    /// Becomes true when the daemon stops: nothing new is started then.
    stopping: watch::Receiver<bool>,
    /// Whose lanes are this process's.
    standing: Option<watch::Receiver<Standing>>,
    shards: Vec<i16>,
    /// Deliveries in flight by shard.
    in_shard: HashMap<i16, usize>,
    /// Objects of the connector, and those that are owed though it does not know them any more.
    objects: Vec<String>,
    /// Objects that one request in flight finds out about.
    probes: HashSet<String>,
    turns: Turns,
    /// The less urgent have waited for long.
    aged: bool,
    in_flight: JoinSet<(Done, Result<(), LedgerError>)>,
    /// Deliveries in flight, with the states they replace.
    busy: HashSet<i64>,
    /// Values reserved by requests in flight: by which lane and delivery.
    reserved: HashMap<String, (Lane, i64)>,
    /// Deliveries that wait for another one in flight or in front; asked again after each wait.
    blocked: HashSet<i64>,
}

/// Deliveries that have come to an outcome.
struct Done {
    object: String,
    /// The shard of each.
    shards: Vec<i16>,
    /// Their numbers, and those of the states they replaced.
    ids: Vec<i64>,
}

/// Deliveries that go in one request.
struct Group {
    way: usize,
    items: Vec<(Due, Request, Vec<String>)>,
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

    /// How many more requests may be started now.
    fn room(&self) -> usize {
        if self.target.gates.all_open_at(Instant::now()).is_some() {
            return 0;
        }
        let allowed = match self.target.gates.probing() {
            Some(_) => 1,
            None => self.target.connector.concurrency,
        };
        allowed.saturating_sub(self.in_flight.len()).min(self.target.room())
    }

    /// Objects that may be spoken of now.
    fn open_objects(&self) -> Vec<&str> {
        let now = Instant::now();
        let may = |object: &&str| {
            let probed = self.target.gates.probing_object(object) && self.probes.contains(*object);
            let spec = self.target.connector.object(object);
            let full = spec.is_some_and(|object| !object.bulk.is_empty()) && self.target.jobs_are_full();
            !probed && !full && self.target.gates.opens_at(object, now).is_none()
        };
        self.objects.iter().map(String::as_str).filter(may).collect()
    }

    /// Starts what is due; true when anything was found.
    async fn start_due(&mut self, outbox: &Outbox) -> Result<bool, LedgerError> {
        let room = self.room().min(MOST_TAKEN);
        if room == 0 {
            return Ok(false);
        }
        let mut found = self.take(outbox, &Priority::ALL, room).await?;
        if let Some(last) = found.last().map(|due| due.priority).filter(|_| found.len() == room) {
            self.turns.filled(last, room, self.aged);
            if let Some((classes, count)) = self.turns.below(last) {
                let lower = self.take(outbox, &classes, count.min(room)).await?;
                let waited = |due: &Due| Timestamp::now().duration_since(due.due_at).unsigned_abs();
                self.aged = lower.iter().any(|due| waited(due) > AGED);
                found.truncate(room - lower.len());
                found.extend(lower);
            }
        }
        let any = !found.is_empty();
        let (waiting, mut ready): (Vec<Due>, Vec<Due>) =
            found.into_iter().partition(|due| due.waits_for.is_some());
        self.leave_alone(waiting).await?;
        self.fill_up(outbox, &mut ready).await?;
        self.start_all(ready, room).await?;
        Ok(any)
    }

    /// Where many objects go in one request, as many as go in one are taken instead of one.
    async fn fill_up(&self, outbox: &Outbox, ready: &mut Vec<Due>) -> Result<(), LedgerError> {
        // A request that is to find out whether the target is there again risks one delivery, not a hundred.
        if self.target.gates.probing().is_some() {
            return Ok(());
        }
        for object in self.target.connector.objects.iter().filter(|object| !object.bulk.is_empty()) {
            let there = ready.iter().filter(|due| due.lane.object == object.name && !due.alone).count();
            let most = object.bulk.iter().map(|bulk| bulk.at_most).max().unwrap_or_default();
            if there == 0 || there >= most || self.target.bulk_is_refused(&object.name) || self.target.shadow
            {
                continue;
            }
            let taken: Vec<i64> =
                ready.iter().flat_map(|due| due.supersedes.iter().copied().chain([due.id])).collect();
            let more = self.take_of(outbox, &[&object.name], &Priority::ALL, most - there, &taken).await?;
            ready.extend(more.into_iter().filter(|due| due.waits_for.is_none()));
        }
        Ok(())
    }

    async fn take(
        &self,
        outbox: &Outbox,
        classes: &[Priority],
        most: usize,
    ) -> Result<Vec<Due>, LedgerError> {
        self.take_of(outbox, &self.open_objects(), classes, most, &[]).await
    }

    async fn take_of(
        &self,
        outbox: &Outbox,
        objects: &[&str],
        classes: &[Priority],
        most: usize,
        taken: &[i64],
    ) -> Result<Vec<Due>, LedgerError> {
        let busy = self.busy.iter().chain(&self.blocked).chain(taken);
        let busy: Vec<i64> = busy.copied().collect();
        let Self { target, shards, .. } = self;
        let wanted = Wanted { target: &target.name, objects, shards, classes, most, busy: &busy };
        outbox.due(self.ledger.reader(), &wanted).await
    }

    /// Deliveries that wait for another object are not found again until that one has moved.
    async fn leave_alone(&self, waiting: Vec<Due>) -> Result<(), LedgerError> {
        if waiting.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::default();
        for due in waiting {
            let head = due.supersedes.iter().copied().min().unwrap_or(due.id);
            batch.waits.extend(due.waits_for.map(|reference| WaitWrite { id: head, reference }));
        }
        self.ledger.writer().write(batch).await.map(|_| ())
    }

    /// Starts as many requests as there is room for; what finds none stays where it is.
    async fn start_all(&mut self, found: Vec<Due>, room: usize) -> Result<(), LedgerError> {
        let mut wishing: Vec<Wishing> = Vec::with_capacity(found.len());
        let mut probed: HashSet<String> = HashSet::new();
        for mut due in found {
            // One is enough to find out; the others stay where they are.
            let object = &due.lane.object;
            if self.target.gates.probing_object(object) && !probed.insert(object.clone()) {
                continue;
            }
            let system = &self.target.connector.system;
            if let Err(error) = self.target.versions.lift(system, &mut due) {
                self.park(due, &Obstacle::Evaluation(error));
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
        let (groups, singly) = self.group(planned).await?;
        let mut left = room;
        for group in groups {
            if left == 0 {
                return Ok(());
            }
            left -= 1;
            self.spawn_group(group);
        }
        for (due, plan) in singly {
            // What needs no request needs no room.
            let takes_room = !matches!(plan, Plan::Skip { .. } | Plan::Park(..));
            if takes_room && left == 0 {
                self.reserved.retain(|_, (_, id)| *id != due.id);
                continue;
            }
            left -= usize::from(takes_room);
            self.spawn(due, plan);
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
            Ok(plan) => {
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

    /// Deliveries that go together, and those that go by themselves.
    async fn group(&self, planned: Vec<(Due, Plan)>) -> Result<(Vec<Group>, Vec<(Due, Plan)>), LedgerError> {
        let (mut groups, mut singly): (BTreeMap<(String, usize), Group>, _) = (BTreeMap::new(), Vec::new());
        let has_ways = self.target.connector.objects.iter().any(|object| !object.bulk.is_empty());
        if !has_ways || self.target.shadow {
            return Ok((Vec::new(), planned));
        }
        let lanes: Vec<&Lane> = planned.iter().map(|(due, _)| &due.lane).collect();
        let held = held_by_each(self.ledger.reader(), &lanes).await?;
        for (due, plan) in planned {
            let Plan::Send { request, wishes } = plan else {
                singly.push((due, plan));
                continue;
            };
            let gone =
                held.get(&due.lane).into_iter().flatten().filter(|want| !request.holds.contains(*want));
            let released = gone.filter_map(|want| want.split_once('=')).map(|(_, value)| value).collect();
            match way_of(&self.target, &due, &request, &released) {
                Some(way) => {
                    let key = (due.lane.object.clone(), way);
                    groups
                        .entry(key)
                        .or_insert_with(|| Group { way, items: Vec::new() })
                        .items
                        .push((due, request, wishes));
                }
                None => singly.push((due, Plan::Send { request, wishes })),
            }
        }
        let mut large = Vec::new();
        for ((object, way), group) in groups {
            let spec = self.target.connector.object(&object).and_then(|object| object.bulk.get(way));
            if spec.is_some_and(|bulk| group.items.len() >= bulk.at_least) {
                large.push(group);
            } else {
                let alone = |(due, request, wishes)| (due, Plan::Send { request, wishes });
                singly.extend(group.items.into_iter().map(alone));
            }
        }
        singly.sort_by_key(|(due, _)| (due.priority, due.due_at, due.id));
        Ok((large, singly))
    }

    fn park(&mut self, due: Due, obstacle: &Obstacle) {
        self.spawn(due, Plan::Park(Cause::Mapping, obstacle.to_string()));
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

    fn spawn(&mut self, due: Due, plan: Plan) {
        let done = Done { object: due.lane.object.clone(), shards: vec![due.shard], ids: self.hold(&due) };
        let delivery = Delivery::new(self.ledger.clone(), self.target.clone(), due);
        self.in_flight.spawn(async move { (done, delivery.run(plan).await) });
    }

    fn spawn_group(&mut self, group: Group) {
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
        let bulk = BulkDelivery { ledger, target, object, way, items: together, unsent };
        self.in_flight.spawn(async move { (done, bulk.run().await) });
    }

    /// Waits for an outcome, for something new, or for the next time anything can be due.
    async fn wait(&mut self, outbox: &Outbox) -> Result<(), LedgerError> {
        let mut until = Instant::now() + LONGEST_WAIT;
        // While nothing more may be started, an outcome or the gate comes first: no need to look what is due.
        let may_start = self.room() > 0;
        if may_start {
            let Self { target, objects, shards, .. } = self;
            let next = outbox.next_due_at(self.ledger.reader(), &target.name, objects, shards).await?;
            if let Some(at) = next {
                let wait: Duration = at.duration_since(Timestamp::now()).try_into().unwrap_or_default();
                until = until.min(Instant::now() + wait);
            }
        }
        if let Some(at) = self.target.gates.next_opens_at(Instant::now()) {
            until = until.min(at);
        }
        let unsent = self.target.unsent.clone();
        let full = self.target.room() == 0;
        let mut changes = self.target.quotas.changes();
        let mut standing = self.standing.clone();
        tokio::select! {
            Some(done) = self.in_flight.join_next(), if !self.in_flight.is_empty() => self.finished(done)?,
            () = unsent.freed(), if full => {}
            () = changed(standing.as_mut()) => {}
            _ = changes.changed(), if full => {}
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
