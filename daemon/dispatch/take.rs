//! Which deliveries are taken next, and how many: no more than can leave.

use jiff::Timestamp;
use tokio::time::Instant;

use super::lane::Dispatcher;
use super::turn::AGED;
use crate::event::Priority;
use crate::ledger::LedgerError;
use crate::ledger::outbox::{Due, Outbox, Wanted};

/// Deliveries taken at once at the most.
const MOST_TAKEN: usize = 256;

impl Dispatcher {
    /// How many more requests may be started now.
    pub(super) fn room(&self) -> usize {
        if self.target.gates.all_open_at(Instant::now()).is_some() {
            return 0;
        }
        let (in_flight, concurrency) = (self.in_flight.len(), self.target.connector.concurrency);
        if self.target.gates.probing().is_some() {
            return 1_usize.saturating_sub(in_flight).min(self.target.room());
        }
        // What is held back for one kind of object leaves at least half of the way to the others.
        let held_back = self.target.unsent.held_back();
        let under_way = in_flight.saturating_sub(held_back) + held_back.min(concurrency / 2);
        concurrency.saturating_sub(under_way).min(self.target.room())
    }

    /// Objects that may be spoken of now.
    fn open_objects(&self) -> Vec<&str> {
        let now = Instant::now();
        let may = |object: &&str| {
            let probed = self.target.gates.probing_object(object) && self.probes.contains(*object);
            let spec = self.target.connector.object(object);
            let full = spec.is_some_and(|object| !object.bulk.is_empty()) && self.target.jobs_are_full();
            let held_back = self.target.unsent.is_held_back(object);
            !probed && !full && !held_back && self.target.gates.opens_at(object, now).is_none()
        };
        self.objects.iter().map(String::as_str).filter(may).collect()
    }

    /// Starts what is due; true when anything was found.
    pub(super) async fn start_due(&mut self, outbox: &Outbox) -> Result<bool, LedgerError> {
        let room = self.room().min(MOST_TAKEN);
        if room == 0 {
            return Ok(false);
        }
        self.left_out = self.objects.iter().any(|object| self.target.unsent.is_held_back(object));
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
            found.into_iter().partition(|due| due.waits_for.is_some() || self.lacks(due).is_some());
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
            let (waiting, more): (Vec<Due>, Vec<Due>) =
                more.into_iter().partition(|due| due.waits_for.is_some() || self.lacks(due).is_some());
            self.leave_alone(waiting).await?;
            ready.extend(more);
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
        outbox.due(self.ledger.outbox(), &wanted).await
    }

    /// What a delivery cannot do without, and is not at the target.
    pub(super) fn lacks(&self, due: &Due) -> Option<String> {
        let object = self.target.connector.object(&due.lane.object)?;
        let is_needed = |reference: &&String| {
            let of = reference.split_once('/').map_or("", |(object, _)| object);
            object.needs.iter().any(|needed| needed == of) && !due.references.contains_key(*reference)
        };
        due.requires.iter().find(is_needed).cloned()
    }
}
