//! Blast-radius guard: a change of very many objects at once, or of many that end, is held for a person. The time is that of the
//! commits, so a backlog is judged as it came about. What counts are objects, not events: one that changes all day is one.

use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use crate::config::MassSettings;
use crate::event::{CanonicalEvent, Lsn, Operation};
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
    changed: Recent,
    ended: Recent,
    /// The transaction that was last found to be part of too much, and why: all of it is.
    too_much: Option<(Lsn, String)>,
    /// The same of what ends in it.
    too_much_ends: Option<(Lsn, String)>,
}

impl Kind {
    fn ends_too_many(&self, settings: &MassSettings, name: &str) -> Option<String> {
        let most = settings.endings.filter(|most| self.ended.count() > *most)?;
        Some(format!("mass change: more than {most} of {name} end within {}", spoken(settings.window)))
    }

    fn are_too_many(&self, settings: &MassSettings, name: &str, known: Option<u64>) -> Option<String> {
        let changed = self.changed.count();
        let window = spoken(settings.window);
        if let Some(most) = settings.objects.filter(|most| changed > *most) {
            return Some(format!("mass change: more than {most} of {name} within {window}"));
        }
        let passed = |percent: &u64| changed > LEAST && known.is_some() && changed > share(*percent, known);
        let most = settings.percent.filter(passed)?;
        Some(format!("mass change: more than {most} % of {name} within {window}"))
    }
}

/// The reason, found now or for an earlier event of the same transaction.
fn sticky(known: &mut Option<(Lsn, String)>, lsn: Lsn, found: Option<String>) -> Option<String> {
    if let Some((_, reason)) = known.as_ref().filter(|(of, _)| *of == lsn) {
        return Some(reason.clone());
    }
    *known = Some((lsn, found?));
    known.as_ref().map(|(_, reason)| reason.clone())
}

/// See the module's text.
#[derive(Debug, Clone, Default)]
pub struct MassGuard(Arc<Mutex<HashMap<String, Kind>>>);

impl MassGuard {
    /// Takes events of one transaction into account; once it has all of them they can be judged, so that a mass is held from its
    /// first object on. The same event counts once. `known`: objects by kind.
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
        let mut kinds = self.0.lock().ok()?;
        let kind = kinds.get_mut(&event.event_type)?;
        let lsn = event.position.commit_lsn;
        if ends(event.operation, event.data.get("status"), event.data.get("active")) {
            let reason = kind.ends_too_many(settings, &event.event_type);
            if let Some(reason) = sticky(&mut kind.too_much_ends, lsn, reason) {
                return Some(reason);
            }
        }
        let reason = kind.are_too_many(settings, &event.event_type, known);
        sticky(&mut kind.too_much, lsn, reason)
    }

    /// Objects of a kind that changed within the window, as it was last looked at.
    #[must_use]
    pub fn count(&self, event_type: &str) -> u64 {
        let kinds = self.0.lock();
        kinds.map_or(0, |kinds| kinds.get(event_type).map_or(0, |kind| kind.changed.count()))
    }

    /// A person has looked at what was held: what comes now is counted anew.
    pub fn reset(&self) {
        let Ok(mut kinds) = self.0.lock() else { return };
        for kind in kinds.values_mut() {
            (kind.changed, kind.ended) = Default::default();
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

fn spoken(window: Duration) -> String {
    match window.as_secs() {
        seconds if seconds < 120 || seconds % 60 != 0 => format!("{seconds} s"),
        seconds => format!("{} min", seconds / 60),
    }
}

fn share(percent: u64, known: Option<u64>) -> u64 {
    known.unwrap_or(0).saturating_mul(percent) / 100
}

fn hash(id: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    hasher.finish()
}
