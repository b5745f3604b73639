//! Where an event may go: each target of each route for its type, in the version that the route names.

use std::borrow::Cow;
use std::collections::BTreeSet;

use super::flow::Flow;
use crate::event::{CanonicalEvent, Operation};
use crate::ledger::batch::Lane;
use crate::mapping::expression::EvaluationError;
use crate::mapping::route::Route;

/// A way that an event may go.
pub(super) struct Way<'a> {
    /// To whom.
    pub lane: Lane,
    /// By which route.
    pub route: &'a Route,
    /// The event in the version that the route names; `None` when it is so already.
    pub lifted: Result<Option<CanonicalEvent>, EvaluationError>,
    /// It takes the route wherever the target is owed the object, whatever its condition says.
    pub partial: bool,
    /// Whether it takes the route when the target is not owed the object.
    pub unless_owed: Result<bool, EvaluationError>,
}

/// Where an event may go.
///
/// `partial`: not all of it is known, so it is told only to those who know the object; `history`: see [`Route::takes`].
pub(super) fn ways<'a>(
    flow: &'a Flow,
    event: &CanonicalEvent,
    (partial, history): (bool, bool),
    moved: &BTreeSet<String>,
) -> Vec<Way<'a>> {
    if event.operation == Operation::Delete && !flow.leads(&event.event_type) {
        // Whether an object is there is said by whom it belongs to.
        return Vec::new();
    }
    let way = |(lane, route): (Lane, &'a Route)| {
        let seen = flow.ways.upcasters.event(event, &route.event_type)?;
        let unless_owed = match &seen {
            _ if partial => Ok(false),
            Ok(seen) => route.takes(seen, (false, history), moved),
            Err(error) => Err(error.clone()),
        };
        let lifted = seen.map(|seen| match seen {
            Cow::Borrowed(_) => None,
            Cow::Owned(lifted) => Some(lifted),
        });
        Some(Way { lane, route, lifted, partial, unless_owed })
    };
    flow.lanes(event).filter_map(way).collect()
}

impl Flow {
    /// Where an event may go: each target of each route for its type.
    fn lanes<'a>(&'a self, event: &CanonicalEvent) -> impl Iterator<Item = (Lane, &'a Route)> {
        let reaches = |route: &&Route| self.ways.upcasters.reaches(&event.event_type, &route.event_type);
        let routes = self.ways.routes.iter().filter(reaches);
        routes.flat_map(move |route| {
            let targets = self.ways.targets.get(&route.system).into_iter().flatten();
            let targets = targets.filter(|target| route.target.as_ref().is_none_or(|only| only == *target));
            // What a system says is never told to itself.
            let targets =
                targets.filter(|target| self.twin.as_ref().is_none_or(|twin| twin.name != **target));
            let subject = route.lane_of(event);
            targets.filter_map(move |target| {
                let lane = Lane {
                    target: target.clone(),
                    object: route.object.clone(),
                    canonical_id: subject.clone()?,
                };
                Some((lane, route))
            })
        })
    }
}
