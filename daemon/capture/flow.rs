//! What any source has, whatever it is read by: its mapping, and where its events go.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::mass::MassGuard;
use crate::config::MassSettings;
use crate::dispatch::Target;
use crate::mapping::route::Route;
use crate::mapping::upcast::Upcasters;
use crate::mapping::{EventKind, SourceMapping};
use crate::ops::commands::Waves;

/// See the module's text.
#[derive(Clone)]
pub struct Flow {
    /// Name of the source in the settings.
    pub name: String,
    /// Mapping files.
    pub mapping: Arc<SourceMapping>,
    /// Routes, and the targets that they lead to.
    pub ways: Arc<Ways>,
    /// The target that is the same system as this source, when there is one: its events do not go back there.
    pub twin: Option<Arc<Target>>,
    /// When a change is too large to go without a person.
    pub mass: MassSettings,
    /// What has changed of late; it outlives connections.
    pub mass_guard: MassGuard,
    /// Waves that have been moved.
    pub waves: Waves,
}

/// Where events may go, the same for all sources.
#[derive(Default)]
pub struct Ways {
    /// Routes.
    pub routes: Arc<Vec<Route>>,
    /// Older events in the form of newer versions.
    pub upcasters: Arc<Upcasters>,
    /// Target names by connector.
    pub targets: HashMap<String, Vec<String>>,
    /// Types of events that several sources make.
    pub shared: BTreeSet<String>,
}

impl Flow {
    /// True when the source may say that such an object is there, and that it has gone.
    #[must_use]
    pub fn leads(&self, event_type: &str) -> bool {
        let object = event_type.rsplit_once(".v").map_or("", |(object, _)| object);
        self.mapping.ownership.may_say(&self.mapping.name, object, "*")
    }

    /// Whether only the newest event of an object counts.
    #[must_use]
    pub fn kind_of(&self, event_type: &str) -> EventKind {
        let spec = self.mapping.events.iter().find(|spec| spec.event_type == event_type);
        spec.map_or(EventKind::Fact, |spec| spec.kind)
    }
}
