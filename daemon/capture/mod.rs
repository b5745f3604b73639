//! One source on its way into the ledger: loads, stream, reconnect. Joins `source`, `image`, `mapping` and `ledger`.

pub mod error;
pub mod follow;
pub mod guard;
pub mod intake;
pub mod load;
pub mod mass;
mod patience;
pub mod recover;
pub mod tail;
pub mod watch;
mod way;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::config::{GuardSettings, LoadSettings, MassSettings, SourceConfig};
use crate::mapping::route::Route;
use crate::mapping::upcast::Upcasters;
use crate::mapping::{EventKind, SourceMapping};
use crate::ops::commands::Waves;
use crate::pg::Database;

/// A source as it is configured.
#[derive(Clone)]
pub struct Source {
    /// Name in the settings.
    pub name: String,
    /// The ERP's database.
    pub database: Database,
    /// Replication slot.
    pub slot: String,
    /// Publication.
    pub publication: String,
    /// Mapping files.
    pub mapping: Arc<SourceMapping>,
    /// Routes.
    pub routes: Arc<Vec<Route>>,
    /// Older events in the form of newer versions.
    pub upcasters: Arc<Upcasters>,
    /// Target names by connector.
    pub targets: HashMap<String, Vec<String>>,
    /// How tables are read.
    pub load: LoadSettings,
    /// When the WAL held back is too much.
    pub guard: GuardSettings,
    /// How often the catalogue is checked while the stream runs.
    pub recheck: Duration,
    /// Values come in binary.
    pub binary: bool,
    /// When a change is too large to go without a person.
    pub mass: MassSettings,
    /// What has changed of late; it outlives connections.
    pub mass_guard: mass::MassGuard,
    /// Waves that have been moved.
    pub waves: Waves,
    /// The slot is being let go of.
    pub releasing: guard::Releasing,
    /// Another process follows it.
    pub stands_by: Arc<AtomicBool>,
}

impl Source {
    /// A source of the settings, with the routes and the targets of each connector.
    #[must_use]
    pub fn new(
        config: SourceConfig,
        (routes, upcasters): (Arc<Vec<Route>>, Arc<Upcasters>),
        targets: HashMap<String, Vec<String>>,
        waves: Waves,
    ) -> Self {
        Self {
            name: config.name,
            database: config.database,
            slot: config.slot,
            publication: config.publication,
            mapping: Arc::new(config.mapping),
            routes,
            upcasters,
            targets,
            load: config.load,
            guard: config.guard,
            recheck: config.recheck,
            binary: config.binary,
            mass: config.mass,
            mass_guard: mass::MassGuard::default(),
            waves,
            releasing: guard::Releasing::default(),
            stands_by: Arc::default(),
        }
    }

    /// The same with only those mapping files that count for what the source has.
    #[must_use]
    pub fn with_mapping(&self, mapping: SourceMapping) -> Self {
        Self { mapping: Arc::new(mapping), ..self.clone() }
    }

    fn kind_of(&self, event_type: &str) -> EventKind {
        let spec = self.mapping.events.iter().find(|spec| spec.event_type == event_type);
        spec.map_or(EventKind::Fact, |spec| spec.kind)
    }
}
