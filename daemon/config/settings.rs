//! Reads the settings file; see `tailwater.example.toml` for every key.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use super::checkpoints::read_checkpoints;
use super::database::read_database;
use super::environment::overlay;
use super::node::{At, Fields, Node, Problem, Problems};
use super::poll::{PollConfig, read_poll};
use super::redis::read_redis;
use super::secret::Secret;
use super::source::{SourceConfig, read_source};
use super::target::{TargetConfig, read_target};
use serde_json::Value;

use crate::audit::publish::CheckpointSettings;
use crate::cache::CacheSettings;
use crate::ledger::keyring::Master;
use crate::mapping;
use crate::mapping::SourceMapping;
use crate::mapping::route::{self, Route};
use crate::mapping::shape::suggestion;
use crate::mapping::upcast::Upcasters;
use crate::pg::Database;

/// Where `make install` puts the mapping files.
const INSTALLED_MAPPINGS: &str = "/usr/share/tailwater/mappings";
/// Characters of a key at the least.
const SHORTEST_KEY: usize = 32;

/// `[ledger]`.
struct ReadLedger {
    ledger: Database,
    checkpoints: Option<CheckpointSettings>,
    master: Master,
}

/// All settings.
#[derive(Debug)]
pub struct Config {
    /// The ledger's database.
    pub ledger: Database,
    /// Its checkpoints outside the database.
    pub checkpoints: Option<CheckpointSettings>,
    /// What personal data is sealed with in it.
    pub master: Master,
    /// Where operators on this machine ask the daemon.
    pub admin_socket: Option<PathBuf>,
    /// Redis, for deduplication hints and shared quotas.
    pub redis: CacheSettings,
    /// Sources that are followed by their logical replication.
    pub sources: Vec<SourceConfig>,
    /// Sources that are polled.
    pub polls: Vec<PollConfig>,
    /// Targets.
    pub targets: Vec<TargetConfig>,
    /// Routes.
    pub routes: Vec<Route>,
    /// Older events in the form of newer versions.
    pub upcasters: Upcasters,
    /// Directory of the mapping files.
    pub mappings: PathBuf,
}

/// Reads `path`, the environment, and every file they name; all mistakes at once.
pub fn load(path: &Path, variables: impl Iterator<Item = (String, String)>) -> Result<Config, Vec<Problem>> {
    let mut problems = Problems::default();
    let config = read(path, variables, &mut problems);
    match config {
        Some(config) if problems.is_empty() => Ok(config),
        _ => Err(problems.sorted()),
    }
}

fn read(
    path: &Path,
    variables: impl Iterator<Item = (String, String)>,
    problems: &mut Problems,
) -> Option<Config> {
    let text = mapping::file::read(path, problems)?;
    let mut root = Node::from_toml(path, &text, problems)?;
    overlay(&mut root, variables);
    let mut fields = root.fields(problems);
    let mappings = find_mappings(path, &mut fields, problems);
    let ledger = read_ledger(&mut fields, problems);
    let redis = read_redis(&mut fields, problems);
    let admin_socket = read_admin_socket(&mut fields, problems);
    let sources = entries(&mut fields, "sources", problems);
    let targets = entries(&mut fields, "targets", problems);
    let flows = fields.optional("flows").map(|node| node.list(problems)).unwrap_or_default();
    fields.finish(problems);
    let mappings = mappings?;
    let targets: Vec<TargetConfig> =
        targets.iter().filter_map(|(name, node)| read_target(name, node, &mappings, problems)).collect();
    let names: Vec<&str> = sources.iter().map(|(name, _)| name.as_str()).collect();
    check_twins(&targets, &names, problems);
    let (sources, polls) = read_sources(&sources, &targets, &mappings, problems);
    let mut routes = route::load(&mappings, problems);
    keep_flows(&mut routes, flows, problems);
    let upcasters = Upcasters::load(&mappings, problems);
    let ReadLedger { ledger, checkpoints, master } = ledger?;
    let config = Config {
        ledger,
        checkpoints,
        master,
        admin_socket,
        redis: redis?,
        sources,
        polls,
        targets,
        routes,
        upcasters,
        mappings,
    };
    if problems.is_empty() {
        // Only then is known which events and objects there are.
        check_routes(&config, problems);
    }
    Some(config)
}

fn entries(fields: &mut Fields, key: &'static str, problems: &mut Problems) -> Vec<(String, Node)> {
    let example = if key == "sources" { "[sources.erp]" } else { "[targets.stripe]" };
    fields.required(key, example, problems).map(|node| node.entries(problems)).unwrap_or_default()
}

/// Routes that are part of a flow count only where `flows` names it.
fn keep_flows(routes: &mut Vec<Route>, named: Vec<Node>, problems: &mut Problems) {
    let known: BTreeSet<String> = routes.iter().filter_map(|route| route.flow.clone()).collect();
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    let mut wanted = HashSet::new();
    for node in named {
        let Some(name) = node.string(problems) else { continue };
        if !known.contains(&name.as_str()) {
            problems.add(&node.at, format!("there is no flow `{name}`"), suggestion(&name, &known, "one of"));
        }
        wanted.insert(name);
    }
    routes.retain(|route| route.flow.as_ref().is_none_or(|flow| wanted.contains(flow)));
}

/// By their kinds.
fn read_sources(
    nodes: &[(String, Node)],
    targets: &[TargetConfig],
    mappings: &Path,
    problems: &mut Problems,
) -> (Vec<SourceConfig>, Vec<PollConfig>) {
    let (mut sources, mut polls) = (Vec::new(), Vec::new());
    for (name, node) in nodes {
        let mut fields = node.fields(problems);
        let Some(kind) = fields.required("kind", "\"postgres\"", problems) else { continue };
        let word = kind.string(problems).unwrap_or_default();
        if word == "poll" {
            polls.extend(read_poll(name, fields, targets, mappings, problems));
            continue;
        }
        if word != "postgres" {
            problems.add(&kind.at, "unknown kind of source", "kind = \"postgres\", or \"poll\"");
        }
        sources.extend(read_source(name, fields, mappings, problems));
    }
    (sources, polls)
}

/// A target that is the same system as a source names one that there is.
fn check_twins(targets: &[TargetConfig], sources: &[&str], problems: &mut Problems) {
    for (twin, at) in targets.iter().filter_map(|target| target.twin.as_ref()) {
        if !sources.contains(&twin.as_str()) {
            problems.add(at, format!("there is no source `{twin}`"), suggestion(twin, sources, "one of"));
        }
    }
}

/// Named in the settings, beside them, installed, or beside the program's own sources.
fn find_mappings(path: &Path, fields: &mut Fields, problems: &mut Problems) -> Option<PathBuf> {
    let beside = path.parent().unwrap_or(Path::new("."));
    if let Some(node) = fields.optional("mappings") {
        let directory = beside.join(node.string(problems)?);
        if !directory.is_dir() {
            problems.add(
                &node.at,
                format!("`{}` is not a directory", directory.display()),
                "the path of mappings/",
            );
            return None;
        }
        return Some(directory);
    }
    let program = std::env::current_exe().unwrap_or_default();
    let program = program.parent().unwrap_or(Path::new("/"));
    let places = [
        beside.join("mappings"),
        program.join("../share/tailwater/mappings"),
        PathBuf::from(INSTALLED_MAPPINGS),
        program.join("../../mappings"),
    ];
    let found = places.iter().find(|place| place.is_dir()).cloned();
    if found.is_none() {
        let at = At::file(path);
        let places: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
        problems.add(
            &at,
            format!("no mapping files in any of {}", places.join(", ")),
            "mappings = \"/path/to/mappings\"",
        );
    }
    found
}

fn read_ledger(fields: &mut Fields, problems: &mut Problems) -> Option<ReadLedger> {
    let node = fields.required("ledger", "[ledger]", problems)?;
    let mut inner = node.fields(problems);
    let database = read_database(&mut inner, "postgres://tailwater@127.0.0.1:5432/tailwater", problems);
    let checkpoints = read_checkpoints(&mut inner, problems);
    let sealing_key = inner.optional("sealing_key");
    inner.finish(problems);
    let master = match sealing_key {
        Some(node) => Master::new(&read_key(&node, problems)?),
        None => Master::default(),
    };
    let ledger = Database { schema: crate::ledger::SCHEMA, ..database? };
    Some(ReadLedger { ledger, checkpoints, master })
}

/// A secret that is long enough to be a key.
pub(super) fn read_key(node: &Node, problems: &mut Problems) -> Option<Vec<u8>> {
    let secret = read_secret(node, problems)?;
    let instead = "32 random bytes: `openssl rand -base64 32 > FILE`, readable by tailwater alone";
    match secret.read() {
        Ok(text) if text.expose().len() >= SHORTEST_KEY => Some(text.expose().as_bytes().to_vec()),
        Ok(_) => {
            problems.add(&node.at, "the key is too short to be one", instead);
            None
        }
        Err(error) => {
            problems.add(&node.at, error.to_string(), instead);
            None
        }
    }
}

/// `[admin] socket`; left out: where systemd's `RuntimeDirectory=` is, or would be.
fn read_admin_socket(fields: &mut Fields, problems: &mut Problems) -> Option<PathBuf> {
    if let Some(node) = fields.optional("admin") {
        let mut inner = node.fields(problems);
        let socket = inner.string("socket", "\"/run/tailwater/admin.sock\"", problems);
        inner.finish(problems);
        return socket.map(PathBuf::from);
    }
    let directory = std::env::var_os("RUNTIME_DIRECTORY").map(PathBuf::from);
    let directory = directory.unwrap_or_else(|| PathBuf::from("/run/tailwater"));
    directory.is_dir().then(|| directory.join("admin.sock"))
}

pub(super) fn read_secret(node: &Node, problems: &mut Problems) -> Option<Secret> {
    let example = "{ file = \"/etc/tailwater/secrets/stripe\" } or { credential = \"stripe\" }";
    if matches!(node.content, super::node::Content::Scalar(_)) {
        problems.add(&node.at, "a secret does not belong into the settings", example);
        return None;
    }
    let mut fields = node.fields(problems);
    let file = fields.optional("file").and_then(|node| node.string(problems));
    let credential = fields.optional("credential").and_then(|node| node.string(problems));
    fields.finish(problems);
    match (file, credential) {
        (Some(path), None) => Some(Secret::File(PathBuf::from(path))),
        (None, Some(name)) => Some(Secret::Credential(name)),
        _ => {
            problems.add(&node.at, "a secret has either `file` or `credential`", example);
            None
        }
    }
}

/// Routes must name objects that exist; an event that goes nowhere is allowed, and a system without a target.
fn check_routes(config: &Config, problems: &mut Problems) {
    let polled = config.polls.iter().map(|poll| &poll.mapping);
    let mappings: Vec<&SourceMapping> =
        config.sources.iter().map(|source| &source.mapping).chain(polled).collect();
    let known: HashSet<&str> = mappings
        .iter()
        .flat_map(|mapping| mapping.events.iter().map(|event| event.event_type.as_str()))
        .collect();
    let made = |event_type: &str| {
        mappings.is_empty() || known.iter().any(|known| config.upcasters.reaches(known, event_type))
    };
    let objects = |system: &str| {
        let target = config.targets.iter().find(|target| target.connector.system == system)?;
        Some(target.connector.objects.iter().map(|object| object.name.clone()).collect())
    };
    route::check(&config.routes, &made, &objects, problems);
    check_set(config, problems);
    check_ownership(&mappings, problems);
}

/// What an object that is written needs of the settings of its target is there.
fn check_set(config: &Config, problems: &mut Problems) {
    for target in &config.targets {
        let connector = &target.connector;
        let named = |route: &&Route| route.target.as_ref().is_none_or(|only| *only == target.name);
        let routes = || config.routes.iter().filter(|route| route.system == connector.system).filter(named);
        for spec in
            connector.settings.iter().filter(|spec| connector.set.get(&spec.name).is_none_or(Value::is_null))
        {
            let Some(object) = &spec.needed_for else { continue };
            if let Some(route) = routes().find(|route| route.object == *object) {
                let what = format!(
                    "[targets.{}]: `{object}`, which this route makes, needs the setting `{}`",
                    target.name, spec.name
                );
                let flow = "or leave its flow out";
                problems.add(
                    &route.at,
                    what,
                    format!("settings = {{ {} = {} }}, {flow}", spec.name, spec.example),
                );
            }
        }
    }
}

/// Owners are of objects and fields that there are.
pub fn check_ownership(mappings: &[&SourceMapping], problems: &mut Problems) {
    let fields_of = |object: &str| {
        let specs = mappings.iter().flat_map(|mapping| &mapping.events);
        let spec = specs.into_iter().find(|spec| spec.object == object)?;
        Some(spec.schema.fields().to_vec())
    };
    // They all have the same file.
    if let Some(mapping) = mappings.first() {
        mapping.ownership.check_names(&fields_of, problems);
    }
}
