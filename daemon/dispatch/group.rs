//! Which planned deliveries go together in one request.

use std::collections::BTreeMap;

use tokio_postgres::Client;

use super::bulk::way_of;
use super::plan::Plan;
use super::target::Target;
use crate::connector::request::Request;
use crate::ledger::LedgerError;
use crate::ledger::batch::Lane;
use crate::ledger::outbox::Due;
use crate::ledger::standing::held_by_each;

/// Deliveries that go in one request.
pub struct Group {
    /// Which of the connector's bulk requests of the object.
    pub way: usize,
    /// Each with its own request and what it has to do without.
    pub items: Vec<(Due, Request, Vec<String>)>,
}

impl Group {
    /// The vendor answers with a job, in which it works them off later.
    pub fn becomes_a_job(&self, target: &Target) -> bool {
        let object = self.items.first().and_then(|(due, ..)| target.connector.object(&due.lane.object));
        object.and_then(|object| object.bulk.get(self.way)).is_some_and(|bulk| bulk.results.is_none())
    }
}

/// Deliveries that go together, and those that go by themselves.
pub async fn group(
    target: &Target,
    reader: &Client,
    planned: Vec<(Due, Plan)>,
) -> Result<(Vec<Group>, Vec<(Due, Plan)>), LedgerError> {
    let (mut groups, mut singly): (BTreeMap<(String, usize), Group>, _) = (BTreeMap::new(), Vec::new());
    let has_ways = target.connector.objects.iter().any(|object| !object.bulk.is_empty());
    if !has_ways || target.shadow {
        return Ok((Vec::new(), planned));
    }
    let lanes: Vec<&Lane> = planned.iter().map(|(due, _)| &due.lane).collect();
    let held = held_by_each(reader, &lanes).await?;
    for (due, plan) in planned {
        let Plan::Send { request, wishes } = plan else {
            singly.push((due, plan));
            continue;
        };
        let gone = held.get(&due.lane).into_iter().flatten().filter(|want| !request.holds.contains(*want));
        let released = gone.filter_map(|want| want.split_once('=')).map(|(_, value)| value).collect();
        match way_of(target, &due, &request, &released) {
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
        let spec = target.connector.object(&object).and_then(|object| object.bulk.get(way));
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
