//! What a slice writes down: its events, and to whom each is owed.

use std::collections::{BTreeSet, HashMap, HashSet};

use jiff::Timestamp;

use super::flow::Flow;
use super::intake::Intake;
use super::way::Way;
use super::words::{Together, note};
use crate::event::{CanonicalEvent, EventRecord, Operation, Personal};
use crate::image::Emitted;
use crate::ledger::batch::{Batch, DeliveryWrite, Lane};
use crate::ledger::entry::NewEntry;
use crate::mapping::EventKind;

impl Intake {
    /// The batch of these events; `owed`: lanes whose target is owed the object already; `latest`: the time of the newest event in
    /// lanes in which only the newest counts, whenever it is heard of.
    pub(super) fn batch(
        &self,
        emitted: Vec<Emitted>,
        together: &[Option<Together>],
        ways: Vec<Vec<Way<'_>>>,
        (owed, mut latest): (&HashSet<Lane>, HashMap<Lane, Timestamp>),
        moved: &BTreeSet<String>,
    ) -> Batch {
        let mut newly_owed: HashSet<Lane> = HashSet::new();
        let mut batch = Batch::default();
        let verdicts = self.verdicts(&emitted);
        let told = emitted.into_iter().zip(together);
        for (((Emitted { event, fault, heals }, together), ways), held) in told.zip(ways).zip(verdicts) {
            let entry = batch.next_entry();
            let as_seen = together.as_ref().map_or(&event, |together| &together.event);
            if heals {
                batch.healed.extend(ways.iter().map(|way| (way.lane.clone(), entry)));
            }
            for Way { lane, route, lifted, partial, unless_owed } in ways {
                let seen = match &lifted {
                    Ok(lifted) => Ok(lifted.as_ref().unwrap_or(as_seen)),
                    Err(error) => Err(error.clone()),
                };
                let takes = match owed.contains(&lane) || newly_owed.contains(&lane) {
                    true if partial => Ok(true),
                    true => seen
                        .clone()
                        .and_then(|event| route.takes(event, (true, self.is_history(event)), moved)),
                    false => unless_owed,
                };
                let (takes, requires, parked) = match &fault {
                    Some(fault) => (true, Vec::new(), Some(fault.clone())),
                    None => match (takes, seen.and_then(|event| route.requirements(event, partial))) {
                        (Ok(takes), Ok(requires)) => (takes, requires, None),
                        (Err(error), _) | (_, Err(error)) => (true, Vec::new(), Some(error.to_string())),
                    },
                };
                if !takes || (route.newest && !is_newest(&mut latest, &lane, event.committed_at)) {
                    continue;
                }
                newly_owed.insert(lane.clone());
                batch.deliveries.push(DeliveryWrite {
                    lane,
                    event: entry,
                    operation: if event.operation == Operation::Delete { "delete" } else { "upsert" },
                    fact: !route.newest
                        && (route.every || self.flow.kind_of(&event.event_type) == EventKind::Fact),
                    priority: route.priority_of(&event),
                    requires,
                    parked,
                    held: held.clone(),
                    look_first: self.look_first && event.operation == Operation::Create,
                });
            }
            if let Some(fault) = &fault {
                tracing::warn!(event = %event.event_id, object = %event.id, reason = %fault, "a document is held back");
            }
            let origin = self.origin.clone();
            let personal = self.personal(&event);
            batch.entry(NewEntry::event(EventRecord { event, origin, fault, heals, personal }));
            if let Some(together) = together {
                note(&self.flow, together, entry, &mut batch);
            }
        }
        batch
    }

    /// Whose it is matters only where something is sealed.
    fn personal(&self, event: &CanonicalEvent) -> Personal {
        if !self.ledger.master().is_set() {
            return Personal::default();
        }
        self.flow.mapping.personal_of(&self.origin.source, event)
    }

    /// Which mass of changes each event is held with, if any.
    fn verdicts(&self, emitted: &[Emitted]) -> Vec<Option<String>> {
        let Flow { mass, mass_guard, .. } = &*self.flow;
        let known = |event_type: &str| self.known.get(event_type).map(|(known, _)| *known);
        let mut verdicts = Vec::with_capacity(emitted.len());
        for transaction in emitted.chunk_by(|a, b| a.event.position.commit_lsn == b.event.position.commit_lsn)
        {
            let events = || transaction.iter().map(|emitted| &emitted.event);
            mass_guard.note(mass, events(), known);
            verdicts.extend(events().map(|event| mass_guard.judge(mass, event, known(&event.event_type))));
        }
        verdicts
    }
}

/// True when nothing newer is owed in the lane; then `at` is the newest.
fn is_newest(latest: &mut HashMap<Lane, Timestamp>, lane: &Lane, at: Timestamp) -> bool {
    let known = latest.entry(lane.clone()).or_insert(at);
    let is_newest = *known <= at;
    *known = at.max(*known);
    is_newest
}
