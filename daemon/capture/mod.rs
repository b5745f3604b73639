//! One source on its way into the ledger: loads, stream, reconnect. Joins `source`, `image`, `mapping` and `ledger`.

pub mod error;
pub mod flow;
pub mod follow;
pub mod guard;
pub mod intake;
pub mod load;
pub mod mass;
mod patience;
pub mod poll;
pub mod recover;
pub mod seen;
pub mod tail;
mod told;
pub mod watch;
mod way;
mod words;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::config::{GuardSettings, LoadSettings, SourceConfig};
use crate::dispatch::Target;
use crate::event::Cluster;
use crate::ledger::Ledger;
use crate::mapping::SourceMapping;
use crate::ops::commands::Waves;
use crate::pg::Database;
use flow::{Flow, Ways};
use intake::Intake;

/// A source that is followed by its logical replication, as it is configured.
#[derive(Clone)]
pub struct Source {
    /// Its mapping, and where its events go.
    pub flow: Arc<Flow>,
    /// The ERP's database.
    pub database: Database,
    /// Replication slot.
    pub slot: String,
    /// Publication.
    pub publication: String,
    /// How tables are read.
    pub load: LoadSettings,
    /// When the WAL held back is too much.
    pub guard: GuardSettings,
    /// How often the catalogue is checked while the stream runs.
    pub recheck: Duration,
    /// Values come in binary.
    pub binary: bool,
    /// The slot is being let go of.
    pub releasing: guard::Releasing,
    /// Another process follows it.
    pub stands_by: Arc<AtomicBool>,
}

impl Source {
    /// A source of the settings. `twin`: the target that is the same system.
    #[must_use]
    pub fn new(config: SourceConfig, ways: Arc<Ways>, twin: Option<Arc<Target>>, waves: Waves) -> Self {
        let flow = Flow {
            name: config.name,
            mapping: Arc::new(config.mapping),
            ways,
            twin,
            mass: config.mass,
            mass_guard: mass::MassGuard::default(),
            waves,
        };
        Self {
            flow: Arc::new(flow),
            database: config.database,
            slot: config.slot,
            publication: config.publication,
            load: config.load,
            guard: config.guard,
            recheck: config.recheck,
            binary: config.binary,
            releasing: guard::Releasing::default(),
            stands_by: Arc::default(),
        }
    }

    /// Works out what comes from it.
    #[must_use]
    pub fn intake(&self, cluster: Cluster, ledger: &Ledger) -> Intake {
        Intake::new(self.flow.clone(), Some(self.database.clone()), cluster, ledger.clone())
    }

    /// The same with only those mapping files that count for what the source has.
    #[must_use]
    pub fn with_mapping(&self, mapping: SourceMapping) -> Self {
        let flow = Flow { mapping: Arc::new(mapping), ..(*self.flow).clone() };
        Self { flow: Arc::new(flow), ..self.clone() }
    }
}
