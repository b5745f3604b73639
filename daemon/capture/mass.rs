//! Blast-radius guard: a change of very many objects at once, or of many that end, is held for a person. The time is that of the
//! commits, so a backlog is judged as it came about. What counts are objects, not events: one that changes all day is one.

use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use serde_json::Value;

use crate::config::MassSettings;
use crate::event::{CanonicalEvent, Operation};
use crate::ledger::recent::RecentEvent;

/// Fewer objects are never a mass, whatever their share.
pub const LEAST: u64 = 20;

/// Objects that changed within the window, each with its last time; no more of them than matter.
#[derive(Debug, Default)]
struct Recent {
    last: HashMap<u64, Timestamp>,
    by_time: BTreeSet<(Timestamp, u64)>,
}

impl Recent {
    fn note(&mut self, at: Timestamp, object: u64, most: u64) {
        match self.last.get(&object).copied() {
            Some(last) if last >= at => return,
            Some(last) => self.by_time.remove(&(last, object)),
            None => false,
        };
        self.last.insert(object, at);
        self.by_time.insert((at, object));
        // One above the limit is enough to know that it is passed.
        while self.count() > most.saturating_add(1) {
            self.forget_first();
        }
    }

    fn forget_before(&mut self, start: Timestamp) {
        while self.by_time.first().is_some_and(|(at, _)| *at < start) {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        if let Some((_, object)) = self.by_time.pop_first() {
            self.last.remove(&object);
        }
    }

    fn count(&self) -> u64 {
        u64::try_from(self.last.len()).unwrap_or(u64::MAX)
    }
}

/// Objects of one kind.
#[derive(Debug, Default)]
struct Kind {
    /// That a transaction touches which is being worked out.
    expected: u64,
    changed: Recent,
    ended: Recent,
}

/// See the module's text.
#[derive(Debug, Clone, Default)]
pub struct MassGuard(Arc<Mutex<HashMap<String, Kind>>>);

impl MassGuard {
    /// Takes events into account that go together, before any of them is judged: a mass is held from its first object on.
    /// `known`: objects by kind.
    pub fn note<'a>(
        &self,
        settings: &MassSettings,
        events: impl Iterator<Item = &'a CanonicalEvent>,
        known: impl Fn(&str) -> Option<u64>,
    ) {
        let Ok(mut kinds) = self.0.lock() else { return };
        for event in events.filter(|event| counts(settings, event)) {
            let kind = kinds.entry(event.event_type.clone()).or_default();
            let start = event.committed_at.checked_sub(settings.window).unwrap_or(Timestamp::MIN);
            kind.changed.forget_before(start);
            kind.ended.forget_before(start);
            let share = settings.percent.map_or(0, |percent| share(percent, known(&event.event_type)));
            let object = hash(&event.id);
            let most = share.max(LEAST).max(settings.objects.unwrap_or(0));
            kind.changed.note(event.committed_at, object, most);
            if ends(event.operation, event.data.get("status"), event.data.get("active")) {
                kind.ended.note(event.committed_at, object, settings.endings.unwrap_or(0));
            }
        }
    }

    /// How many objects of each kind the transaction touches that is worked out now, bit by bit; none afterwards.
    pub fn expect(&self, touched: &HashMap<String, u64>) {
        let Ok(mut kinds) = self.0.lock() else { return };
        kinds.values_mut().for_each(|kind| kind.expected = 0);
        for (event_type, count) in touched {
            kinds.entry(event_type.clone()).or_default().expected = *count;
        }
    }

    /// The reason when an event is part of too much.
    #[must_use]
    pub fn judge(
        &self,
        settings: &MassSettings,
        event: &CanonicalEvent,
        known: Option<u64>,
    ) -> Option<String> {
        if !counts(settings, event) {
            return None;
        }
        let kinds = self.0.lock().ok()?;
        let kind = kinds.get(&event.event_type)?;
        let (changed, ended) = (kind.changed.count().max(kind.expected), kind.ended.count());
        let ending = ends(event.operation, event.data.get("status"), event.data.get("active"));
        let (name, minutes) = (&event.event_type, settings.window.as_secs() / 60);
        if let Some(most) = settings.endings.filter(|most| ending && ended > *most) {
            return Some(format!("mass change: more than {most} of {name} end within {minutes} min"));
        }
        if let Some(most) = settings.objects.filter(|most| changed > *most) {
            return Some(format!("mass change: more than {most} of {name} within {minutes} min"));
        }
        let passed = |percent: &u64| changed > LEAST && known.is_some() && changed > share(*percent, known);
        let most = settings.percent.filter(passed)?;
        Some(format!("mass change: more than {most} % of {name} within {minutes} min"))
    }

    /// Objects of a kind that changed within the window, as it was last looked at.
    #[must_use]
    pub fn count(&self, event_type: &str) -> u64 {
        let kinds = self.0.lock();
        kinds.map_or(0, |kinds| kinds.get(event_type).map_or(0, |kind| kind.changed.count()))
    }

    /// A person has looked at what was held: what comes now is counted anew.
    pub fn reset(&self) {
        if let Ok(mut kinds) = self.0.lock() {
            kinds.clear();
        }
    }

    /// Takes up what changed before we were started, as the ledger has it.
    pub fn resume(&self, events: Vec<RecentEvent>) {
        self.reset();
        let Ok(mut kinds) = self.0.lock() else { return };
        for RecentEvent { event_type, id, operation, committed_at, snapshot, status, active } in events {
            if snapshot && operation != Operation::Delete {
                continue;
            }
            let kind = kinds.entry(event_type).or_default();
            kind.changed.note(committed_at, hash(&id), u64::MAX);
            if ends(operation, status.as_ref(), active.as_ref()) {
                kind.ended.note(committed_at, hash(&id), u64::MAX);
            }
        }
    }
}

/// A first load is one large change by nature; what it finds gone is not.
fn counts(settings: &MassSettings, event: &CanonicalEvent) -> bool {
    settings.is_set() && !(event.snapshot && event.operation != Operation::Delete)
}

fn ends(operation: Operation, status: Option<&Value>, active: Option<&Value>) -> bool {
    operation == Operation::Delete
        || (operation == Operation::Update
            && (status == Some(&"cancelled".into()) || active == Some(&Value::Bool(false))))
}

fn share(percent: u64, known: Option<u64>) -> u64 {
    known.unwrap_or(0).saturating_mul(percent) / 100
}

fn hash(id: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    hasher.finish()
}
