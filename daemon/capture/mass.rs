//! Blast-radius guard: a change of very many objects at once, or of many that end, is held for a person. Pure: the time is that
//! of the commits.

use std::collections::{HashMap, VecDeque};

use jiff::Timestamp;
use serde_json::Value;

use crate::config::MassSettings;
use crate::event::{CanonicalEvent, Operation};

/// Fewer objects are never a mass, whatever their share.
pub const LEAST: u64 = 20;

/// Events of one kind within the window.
#[derive(Debug, Default)]
struct Window {
    /// Time of a commit, its events, and how many of them end something.
    commits: VecDeque<(Timestamp, u64, u64)>,
    events: u64,
    endings: u64,
}

impl Window {
    fn add(&mut self, at: Timestamp, ends: bool) {
        let ends = u64::from(ends);
        match self.commits.back_mut().filter(|(last, ..)| *last == at) {
            Some((_, events, endings)) => {
                *events += 1;
                *endings += ends;
            }
            None => self.commits.push_back((at, 1, ends)),
        }
        self.events += 1;
        self.endings += ends;
    }

    fn forget_before(&mut self, start: Timestamp) {
        while let Some((_, events, endings)) = self.commits.front().copied().filter(|(at, ..)| *at < start) {
            self.commits.pop_front();
            self.events -= events;
            self.endings -= endings;
        }
    }
}

/// See the module's text.
#[derive(Debug, Default)]
pub struct MassGuard {
    windows: HashMap<String, Window>,
}

impl MassGuard {
    /// Takes an event into account; gives the reason when it is part of too much. `known`: objects of its kind.
    pub fn judge(
        &mut self,
        settings: &MassSettings,
        event: &CanonicalEvent,
        known: Option<u64>,
    ) -> Option<String> {
        let MassSettings { objects, percent, endings, window: length } = settings;
        // A first load is one large change by nature; what it finds gone is not.
        let expected = event.snapshot && event.operation != Operation::Delete;
        if expected || (objects.is_none() && percent.is_none() && endings.is_none()) {
            return None;
        }
        let window = self.windows.entry(event.event_type.clone()).or_default();
        window.forget_before(event.committed_at.checked_sub(*length).unwrap_or(Timestamp::MIN));
        let ends = is_ending(event);
        window.add(event.committed_at, ends);
        let (kind, minutes) = (&event.event_type, length.as_secs() / 60);
        if let Some(most) = endings.filter(|most| ends && window.endings > *most) {
            return Some(format!("mass change: more than {most} of {kind} end within {minutes} min"));
        }
        if let Some(most) = objects.filter(|most| window.events > *most) {
            return Some(format!("mass change: more than {most} of {kind} within {minutes} min"));
        }
        let share = known.filter(|known| *known > 0).map(|known| window.events.saturating_mul(100) / known);
        let most =
            percent.filter(|most| window.events > LEAST && share.is_some_and(|share| share > *most))?;
        Some(format!("mass change: more than {most} % of {kind} within {minutes} min"))
    }

    /// Events of a kind within the window, as it was last looked at.
    #[must_use]
    pub fn count(&self, event_type: &str) -> u64 {
        self.windows.get(event_type).map_or(0, |window| window.events)
    }
}

fn is_ending(event: &CanonicalEvent) -> bool {
    let is = |name: &str, value: &Value| event.data.get(name) == Some(value);
    event.operation == Operation::Delete
        || (event.operation == Operation::Update
            && (is("status", &"cancelled".into()) || is("active", &Value::Bool(false))))
}
