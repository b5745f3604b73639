//! Blast-radius guard: a change of very many objects at once, or of many that end, is held for a person. Pure: the time is that
//! of the commits.

use std::collections::{HashMap, VecDeque};

use jiff::Timestamp;
use serde_json::Value;

use crate::config::MassSettings;
use crate::event::{CanonicalEvent, Operation};

/// Fewer objects are never a mass, whatever their share.
pub const LEAST: u64 = 20;

/// Events of one kind within the window, and how many of them end something.
#[derive(Debug, Default)]
struct Window {
    events: VecDeque<(Timestamp, bool)>,
    endings: u64,
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
        // A first load is one large change by nature; what it finds gone is not.
        if event.snapshot && event.operation != Operation::Delete {
            return None;
        }
        let window = self.windows.entry(event.event_type.clone()).or_default();
        let start = event.committed_at.checked_sub(settings.window).unwrap_or(Timestamp::MIN);
        while let Some((at, ends)) = window.events.front().copied().filter(|(at, _)| *at < start) {
            debug_assert!(at < start);
            window.events.pop_front();
            window.endings -= u64::from(ends);
        }
        let ends = is_ending(event);
        window.events.push_back((event.committed_at, ends));
        window.endings += u64::from(ends);
        let count = u64::try_from(window.events.len()).unwrap_or(u64::MAX);
        let (kind, minutes) = (&event.event_type, settings.window.as_secs() / 60);
        if settings.endings.is_some_and(|most| window.endings > most) && ends {
            return Some(format!(
                "mass change: more than {} of {kind} end within {minutes} min",
                settings.endings?
            ));
        }
        if settings.objects.is_some_and(|most| count > most) {
            return Some(format!(
                "mass change: more than {} of {kind} within {minutes} min",
                settings.objects?
            ));
        }
        let share = known.filter(|known| *known > 0).map(|known| count.saturating_mul(100) / known);
        if count > LEAST && settings.percent.zip(share).is_some_and(|(most, share)| share > most) {
            return Some(format!(
                "mass change: more than {} % of {kind} within {minutes} min",
                settings.percent?
            ));
        }
        None
    }

    /// Events of a kind within the window.
    #[must_use]
    pub fn count(&self, event_type: &str) -> u64 {
        let window = self.windows.get(event_type);
        window.map_or(0, |window| u64::try_from(window.events.len()).unwrap_or(u64::MAX))
    }
}

fn is_ending(event: &CanonicalEvent) -> bool {
    let is = |name: &str, value: &Value| event.data.get(name) == Some(value);
    event.operation == Operation::Delete
        || (event.operation == Operation::Update
            && (is("status", &"cancelled".into()) || is("active", &Value::Bool(false))))
}
