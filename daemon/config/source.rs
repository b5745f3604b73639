//! Settings of a source.

use std::path::Path;
use std::time::Duration;

use super::database::read_database;
use super::node::{At, Fields, Problems};
use super::settings::read_key;
use crate::bounds::{VALUE_BYTES, VALUE_BYTES_RANGE};
use crate::mapping::{self, Constants, DigestKey, SourceMapping};
use crate::pg::Database;

/// A source.
#[derive(Debug, Clone)]
pub struct SourceConfig {
    /// Name.
    pub name: String,
    /// The ERP's database.
    pub database: Database,
    /// Replication slot.
    pub slot: String,
    /// Publication.
    pub publication: String,
    /// Mapping files.
    pub mapping: SourceMapping,
    /// How tables are read.
    pub load: LoadSettings,
    /// When the WAL that the slot holds back is too much.
    pub guard: GuardSettings,
    /// How often the catalogue is checked while the stream runs.
    pub recheck: Duration,
    /// When a change is too large to go without a person.
    pub mass: MassSettings,
    /// Values come in binary. Gains nothing measurable with common rows; types without a known binary form are refused.
    pub binary: bool,
}

/// How tables are read: at first, after a gap, on demand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadSettings {
    /// Key ranges read at the same time.
    pub parallel: usize,
    /// Most rows in a second, over all ranges.
    pub rows_per_second: Option<u32>,
}

impl Default for LoadSettings {
    fn default() -> Self {
        Self { parallel: 2, rows_per_second: None }
    }
}

/// When the WAL that the slot holds back is too much, and what is done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardSettings {
    /// Warn at this much.
    pub warn_bytes: u64,
    /// Raise an alarm at this much.
    pub alarm_bytes: u64,
    /// Let go of the slot at this much: the ERP's disk comes before the stream.
    pub release_bytes: Option<u64>,
    /// Warn when the server's limit is reached within this time at the present rate.
    pub warn_time: Duration,
    /// Raise an alarm when it is reached within this time.
    pub alarm_time: Duration,
    /// After the slot was lost or let go: read everything again, with a gap in the ledger, without asking.
    pub recover: bool,
    /// How often an empty message is written, so that even a database that nobody writes to shows that it is followed.
    pub heartbeat: Option<Duration>,
}

impl Default for GuardSettings {
    fn default() -> Self {
        Self {
            warn_bytes: 5 << 30,
            alarm_bytes: 20 << 30,
            release_bytes: None,
            warn_time: Duration::from_secs(24 * 3_600),
            alarm_time: Duration::from_secs(4 * 3_600),
            recover: false,
            heartbeat: None,
        }
    }
}

/// Which change is too large to go without a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MassSettings {
    /// Objects of a kind within the window.
    pub objects: Option<u64>,
    /// Share of all known objects of the kind, in percent.
    pub percent: Option<u64>,
    /// Objects of a kind that are deleted, cancelled or archived within the window.
    pub endings: Option<u64>,
    /// Length of the window.
    pub window: Duration,
}

impl MassSettings {
    /// Any change is too large at all.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.objects.is_some() || self.percent.is_some() || self.endings.is_some()
    }
}

impl Default for MassSettings {
    fn default() -> Self {
        Self { objects: None, percent: None, endings: None, window: Duration::from_secs(600) }
    }
}

/// Reads `[sources.NAME]` with `kind = "postgres"`.
pub(super) fn read_source(
    name: &str,
    mut fields: Fields,
    mappings: &Path,
    problems: &mut Problems,
) -> Option<SourceConfig> {
    let database = read_database(&mut fields, "postgres://tailwater_src@127.0.0.1:5432/erp", problems);
    let slot = fields.string("slot", "\"tailwater\"", problems);
    let publication = fields.string("publication", "\"tailwater\"", problems);
    let mapping = fields.string("mapping", "\"odoo\"", problems);
    if slot.as_ref().is_some_and(|slot| !is_slot_name(slot)) {
        problems.add(
            &fields.at,
            "a slot name has lower-case letters, digits and underscores, at most 63",
            "slot = \"tailwater\"",
        );
    }
    let load = read_load(&mut fields, problems);
    let guard = read_guard(&mut fields, problems);
    let binary = fields.optional("binary").and_then(|node| node.boolean(problems)).unwrap_or(false);
    let recheck = read_time(&mut fields, "recheck", problems).unwrap_or(Duration::from_secs(60));
    let mass = read_mass(&mut fields, problems);
    let constants = read_constants(name, &mut fields, problems);
    let (digest_key, at) = (read_digest_key(&mut fields, problems), fields.at.clone());
    let value_bytes = read_bounds(&mut fields, problems);
    fields.finish(problems);
    let mapping = mapping.and_then(|mapping| mapping::file::load(mappings, &mapping, constants, problems));
    let mapping = mapping.map(|mapping| with_digest_key(mapping, digest_key.as_ref(), &at, problems));
    let mapping = mapping.map(|mapping| mapping.bounded(value_bytes));
    Some(SourceConfig {
        name: name.to_owned(),
        database: database?,
        slot: slot?,
        publication: publication?,
        mapping: mapping?,
        load,
        guard,
        recheck,
        mass,
        binary,
    })
}

/// `[sources.NAME.bounds]`: bytes of a value that is kept.
pub(super) fn read_bounds(fields: &mut Fields, problems: &mut Problems) -> usize {
    let Some(node) = fields.optional("bounds") else { return VALUE_BYTES };
    let mut inner = node.fields(problems);
    let node = inner.optional("value");
    inner.finish(problems);
    let Some(node) = node else { return VALUE_BYTES };
    let Some(text) = node.string(problems) else { return VALUE_BYTES };
    let (least, most) = VALUE_BYTES_RANGE;
    match parse_bytes(&text).filter(|bytes| (least..=most).contains(bytes)) {
        Some(bytes) => usize::try_from(bytes).unwrap_or(VALUE_BYTES),
        None => {
            problems.add(&node.at, "not a size from 1kB to 8MB", "value = \"1MB\"");
            VALUE_BYTES
        }
    }
}

/// `digest_key`: of digests that stand for values (`hmac` in the mapping).
pub(super) fn read_digest_key(fields: &mut Fields, problems: &mut Problems) -> Option<DigestKey> {
    let node = fields.optional("digest_key")?;
    read_key(&node, problems).map(|key| DigestKey::new(&key))
}

/// The mapping with the key that it needs.
pub(super) fn with_digest_key(
    mut mapping: SourceMapping,
    key: Option<&DigestKey>,
    at: &At,
    problems: &mut Problems,
) -> SourceMapping {
    if !mapping.set_digest_key(key) {
        let what = "the mapping has `hmac` columns, and there is no key for them";
        problems.add(
            at,
            what,
            "digest_key = { file = \"…\" }, of 32 random bytes: `openssl rand -base64 32`",
        );
    }
    mapping
}

/// The server's own rule (`ReplicationSlotValidateName`).
fn is_slot_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

/// `[sources.NAME.mass]`.
pub(super) fn read_mass(fields: &mut Fields, problems: &mut Problems) -> MassSettings {
    let mut settings = MassSettings::default();
    let Some(node) = fields.optional("mass") else { return settings };
    let mut inner = node.fields(problems);
    let mut most =
        |key, problems: &mut Problems| inner.optional(key).and_then(|node| node.whole(1, problems));
    settings.objects = most("objects", problems);
    settings.percent = most("percent", problems);
    settings.endings = most("endings", problems);
    settings.window = read_time(&mut inner, "within", problems).unwrap_or(settings.window);
    inner.finish(problems);
    settings
}

/// What mapping files may refer to.
fn read_constants(name: &str, fields: &mut Fields, problems: &mut Problems) -> Constants {
    let mut constants = Constants::of(name);
    if let Some(language) = fields.optional("language").and_then(|node| node.string(problems)) {
        constants.language = language.into();
    }
    if let Some(company) = fields.optional("company").and_then(|node| node.whole(1, problems)) {
        constants.company = company.into();
    }
    let companies = fields.optional("companies").map(|node| node.list(problems)).unwrap_or_default();
    let companies = companies.iter().filter_map(|node| node.whole(1, problems));
    constants.companies = companies.filter_map(|id| i64::try_from(id).ok()).collect();
    constants
}

fn read_load(fields: &mut Fields, problems: &mut Problems) -> LoadSettings {
    let mut settings = LoadSettings::default();
    let Some(node) = fields.optional("load") else { return settings };
    let mut inner = node.fields(problems);
    if let Some(node) = inner.optional("parallel")
        && let Some(count) = node.whole(1, problems)
    {
        match usize::try_from(count) {
            Ok(count @ 1..=16) => settings.parallel = count,
            _ => problems.add(&node.at, "not a number of readers from 1 to 16", "parallel = 2"),
        }
    }
    if let Some(node) = inner.optional("rows_per_second")
        && let Some(count) = node.whole(1, problems)
    {
        match u32::try_from(count) {
            Ok(count @ 1..) => settings.rows_per_second = Some(count),
            _ => problems.add(&node.at, "not a number of rows, at least 1", "rows_per_second = 5000"),
        }
    }
    inner.finish(problems);
    settings
}

fn read_guard(fields: &mut Fields, problems: &mut Problems) -> GuardSettings {
    let mut settings = GuardSettings::default();
    let Some(node) = fields.optional("wal") else { return settings };
    let at = node.at.clone();
    let mut inner = node.fields(problems);
    let bytes = |inner: &mut Fields, key, problems: &mut Problems| {
        let node = inner.optional(key)?;
        let found = parse_bytes(&node.string(problems)?);
        if found.is_none() {
            problems.add(&node.at, "not a size", "\"500MB\", \"20GB\" or \"1TB\"");
        }
        found
    };
    settings.warn_bytes = bytes(&mut inner, "warn_at", problems).unwrap_or(settings.warn_bytes);
    settings.alarm_bytes = bytes(&mut inner, "alarm_at", problems).unwrap_or(settings.alarm_bytes);
    settings.release_bytes = bytes(&mut inner, "release_slot_at", problems);
    settings.warn_time = read_time(&mut inner, "warn_within", problems).unwrap_or(settings.warn_time);
    settings.alarm_time = read_time(&mut inner, "alarm_within", problems).unwrap_or(settings.alarm_time);
    settings.heartbeat = read_time(&mut inner, "heartbeat", problems);
    if let Some(node) = inner.optional("when_lost") {
        match node.string(problems).as_deref() {
            Some("recover") => settings.recover = true,
            Some("refuse") | None => {}
            Some(_) => problems.add(&node.at, "neither `refuse` nor `recover`", "when_lost = \"refuse\""),
        }
    }
    inner.finish(problems);
    let release = settings.release_bytes.unwrap_or(u64::MAX);
    if settings.warn_bytes > settings.alarm_bytes || settings.alarm_bytes > release {
        problems.add(&at, "the sizes are not in order", "warn_at <= alarm_at <= release_slot_at");
    }
    settings
}

pub(super) fn read_time(fields: &mut Fields, key: &'static str, problems: &mut Problems) -> Option<Duration> {
    let node = fields.optional(key)?;
    let found = parse_time(&node.string(problems)?).filter(|time| !time.is_zero());
    if found.is_none() {
        problems.add(&node.at, "not a time", "\"30s\", \"10min\" or \"4h\"");
    }
    found
}

/// `20GB`, as PostgreSQL writes sizes: powers of 1024.
fn parse_bytes(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(digits)?;
    let shift = match unit.trim() {
        "B" | "" => 0,
        "kB" => 10,
        "MB" => 20,
        "GB" => 30,
        "TB" => 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// `30s`, `10min`, `4h`.
fn parse_time(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at_checked(digits)?;
    let seconds = match unit.trim() {
        "s" => 1,
        "min" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return None,
    };
    Some(Duration::from_secs(number.parse::<u64>().ok()?.checked_mul(seconds)?))
}
