//! Turns settings into what runs.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tokio::sync::Mutex;

use crate::audit::publish::CheckpointSettings;
use crate::bounds::shown;
use crate::cache::{Cache, CacheSettings};
use crate::capture::Source;
use crate::capture::flow::{Flow, Ways};
use crate::capture::mass::MassGuard;
use crate::capture::poll::PollSource;
use crate::config::secret::Secret;
use crate::config::{Config, PollConfig, SourceConfig, TargetConfig};
use crate::connector::Transport;
use crate::connector::limit::Rate;
use crate::dispatch::Target;
use crate::dispatch::dedup::Dedup;
use crate::dispatch::gate::Gates;
use crate::dispatch::job::JobCount;
use crate::dispatch::quota::Quotas;
use crate::dispatch::quota::shared::SharedBuckets;
use crate::dispatch::target::Versions;
use crate::ledger::command::{Asking, Command};
use crate::ledger::keyring::Master;
use crate::mapping::{EventKind, SourceMapping};
use crate::ops::admin::Judge;
use crate::ops::commands::Waves;
use crate::reconcile::serve::Schedule;
use crate::target::{HttpTarget, NatsTarget, RedisStreamTarget, Way};

/// Sources and targets, ready to run.
pub struct Prepared {
    /// Sources that are followed by their logical replication.
    pub sources: Vec<Arc<Source>>,
    /// Sources that are polled.
    pub polls: Vec<PollSource>,
    /// Targets.
    pub targets: Vec<Arc<Target>>,
    /// Targets that are compared by themselves.
    pub schedules: Vec<Schedule>,
    /// The ledger's database.
    pub ledger: crate::pg::Database,
    /// What personal data is sealed with there.
    pub master: Master,
    /// Where operators on this machine ask.
    pub admin_socket: Option<std::path::PathBuf>,
    /// Its checkpoints.
    pub checkpoints: Option<Arc<CheckpointSettings>>,
}

impl Prepared {
    /// Who judges what is asked for by the admin socket.
    #[must_use]
    pub fn judge(&self) -> Judge {
        let targets: Vec<String> = self.targets.iter().map(|target| target.name.clone()).collect();
        Arc::new(move |asking| {
            let (target, rates) = match asking {
                Asking::Command(Command::Quota { target, rates, .. }) => (target, rates.as_deref()),
                Asking::Command(Command::Link { target, .. } | Command::Resolve { target, .. })
                | Asking::Reconcile { target, .. } => (target, None),
                // What of a target that is in the settings no more is still owed, or known, can be given up.
                Asking::Command(_) | Asking::Load(_) => return Ok(()),
            };
            if !targets.contains(target) {
                let known = targets.join(", ");
                return Err(format!("there is no target `{}`; there is {known}", shown(target)));
            }
            match rates.unwrap_or_default().iter().find(|rate| Rate::parse(rate).is_none()) {
                Some(rate) => Err(format!("`{}` is no rate; one is `40/s` or `50000/d`", shown(rate))),
                None => Ok(()),
            }
        })
    }
}

/// See the module's text.
pub fn prepare(config: Config, waves: &Waves) -> Result<Prepared, String> {
    let mut by_system: HashMap<String, Vec<String>> = HashMap::new();
    for target in &config.targets {
        by_system.entry(target.connector.system.clone()).or_default().push(target.name.clone());
    }
    let routes = Arc::new(config.routes);
    let upcasters = Arc::new(config.upcasters);
    let shared = shared(
        config
            .sources
            .iter()
            .map(|source| &source.mapping)
            .chain(config.polls.iter().map(|poll| &poll.mapping)),
    );
    let twins = twins(&config.targets, &config.polls);
    let (routes_of, upcasters_of) = (routes.clone(), upcasters.clone());
    let ways =
        Ways { routes: routes_of, upcasters: upcasters_of, targets: by_system, shared: shared.clone() };
    let ways = Arc::new(ways);
    let versions = Versions { routes: routes.clone(), upcasters: upcasters.clone() };
    let cache = Arc::new(Cache::new(config.redis));
    let schedule = |target: &TargetConfig| {
        let (every, repair) = target.reconcile?;
        Some(Schedule { target: target.name.clone(), every, repair })
    };
    let schedules = config.targets.iter().filter_map(schedule).collect();
    let prepare = |target: TargetConfig| {
        let twin = twins.iter().find(|(_, twin)| **twin == target.name).map(|(source, _)| source.clone());
        prepare_target(target, &cache, versions.clone(), (twin, shared.clone()))
    };
    let targets = config.targets.into_iter().map(prepare);
    let targets = targets.collect::<Result<Vec<_>, String>>()?;
    let twin = |source: &str| {
        let name = twins.get(source)?;
        targets.iter().find(|target| target.name == *name).cloned()
    };
    let source = |config: SourceConfig| {
        let twin = twin(&config.name);
        Arc::new(Source::new(config, ways.clone(), twin, waves.clone()))
    };
    let sources = config.sources.into_iter().map(source).collect();
    let poll = |config| prepare_poll(config, &ways, &targets, waves);
    let polls = config.polls.into_iter().filter_map(poll).collect();
    let checkpoints = config.checkpoints.map(Arc::new);
    // A key that cannot be read now would only be found out with the first checkpoint.
    checkpoints
        .as_ref()
        .map(|settings| settings.read_key())
        .transpose()
        .map_err(|error| error.to_string())?;
    Ok(Prepared {
        sources,
        polls,
        targets,
        schedules,
        ledger: config.ledger,
        master: config.master,
        admin_socket: config.admin_socket,
        checkpoints,
    })
}

/// Targets that are the same system as a source, by the source's name.
fn twins(targets: &[TargetConfig], polls: &[PollConfig]) -> HashMap<String, String> {
    let named =
        targets.iter().filter_map(|target| Some((target.twin.as_ref()?.0.clone(), target.name.clone())));
    named.chain(polls.iter().map(|poll| (poll.name.clone(), poll.target.clone()))).collect()
}

/// A source that is polled; its target is among the prepared ones.
fn prepare_poll(
    config: PollConfig,
    ways: &Arc<Ways>,
    targets: &[Arc<Target>],
    waves: &Waves,
) -> Option<PollSource> {
    let target = targets.iter().find(|target| target.name == config.target)?.clone();
    let flow = Flow {
        name: config.name,
        mapping: Arc::new(config.mapping),
        ways: ways.clone(),
        twin: Some(target.clone()),
        mass: config.mass,
        mass_guard: MassGuard::default(),
        waves: waves.clone(),
    };
    Some(PollSource {
        flow: Arc::new(flow),
        target,
        share: config.share,
        every: config.every,
        from: config.from,
    })
}

/// Types of events that several sources make.
fn shared<'a>(mappings: impl Iterator<Item = &'a SourceMapping>) -> BTreeSet<String> {
    let (mut once, mut shared) = (BTreeSet::new(), BTreeSet::new());
    for mapping in mappings {
        let types: BTreeSet<&str> = mapping.events.iter().map(|event| event.event_type.as_str()).collect();
        let facts = |event_type: &&str| {
            mapping
                .events
                .iter()
                .any(|event| event.event_type == **event_type && event.kind == EventKind::Fact)
        };
        for event_type in types.into_iter().filter(|event_type| !facts(event_type)) {
            if !once.insert(event_type.to_owned()) {
                shared.insert(event_type.to_owned());
            }
        }
    }
    shared
}

fn prepare_target(
    target: TargetConfig,
    cache: &Arc<Cache>,
    versions: Versions,
    (twin, shared_types): (Option<String>, BTreeSet<String>),
) -> Result<Arc<Target>, String> {
    // A secret that cannot be read now would only be found out at the first delivery.
    let failed = |error: String| format!("target \"{}\": {error}", target.name);
    target.api_key.as_ref().map(Secret::read).transpose().map_err(|error| failed(error.to_string()))?;
    let way = match target.connector.transport {
        Transport::Http => {
            let (user, key) = (target.user.as_deref(), target.api_key.clone());
            let http = HttpTarget::new(&target.connector, &target.base_url, user, key);
            Way::Http(http.map_err(|error| failed(error.to_string()))?)
        }
        Transport::Nats => {
            Way::Nats(NatsTarget::new(&target.base_url, target.user.as_deref(), target.api_key.clone()))
        }
        Transport::RedisStream => {
            let (user, password) = (target.user.clone(), target.api_key.clone());
            let settings = CacheSettings { user, password, ..CacheSettings::single(&target.base_url) };
            Way::RedisStream(RedisStreamTarget::new(settings))
        }
        Transport::Discard => Way::Discard,
    };
    let limits = target.connector.limits.clone();
    let shared = SharedBuckets::new(cache.clone(), &target.name);
    Ok(Arc::new(Target {
        way,
        quotas: Quotas::new(limits, &target.quota, Some(shared)),
        name: target.name,
        connector: target.connector,
        clock_is_off: AtomicBool::default(),
        unsent: Arc::default(),
        probe: Arc::default(),
        dedup: Dedup::new(cache.clone()),
        shadow: target.shadow,
        versions,
        twin,
        shared: shared_types,
        adopts: target.adopts,
        adopting: Mutex::new(()),
        gates: Gates::default(),
        jobs: JobCount::default(),
        refused_bulk: std::sync::Mutex::default(),
    }))
}
