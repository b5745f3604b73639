//! Settings of a source that is polled.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;

use super::node::{Fields, Node, Problems};
use super::source::{MassSettings, read_bounds, read_digest_key, read_mass, read_time, with_digest_key};
use super::target::TargetConfig;
use crate::mapping::{self, Constants, SourceMapping};

/// Part of a target's quota that polling takes at the most, in per cent, unless the settings say otherwise.
const DEFAULT_SHARE: u64 = 25;

/// A polled source.
#[derive(Debug, Clone)]
pub struct PollConfig {
    /// Name.
    pub name: String,
    /// The target that is asked.
    pub target: String,
    /// Mapping files.
    pub mapping: SourceMapping,
    /// Part of the target's quota that polling takes at the most.
    pub share: f64,
    /// Time between two passes over a stream; as the connector has it when `None`.
    pub every: Option<Duration>,
    /// Where streams begin that tell of everything.
    pub from: Timestamp,
    /// When a change is too large to go without a person.
    pub mass: MassSettings,
}

/// Reads `[sources.NAME]` with `kind = "poll"`.
pub(super) fn read_poll(
    name: &str,
    mut fields: Fields,
    targets: &[TargetConfig],
    mappings: &Path,
    problems: &mut Problems,
) -> Option<PollConfig> {
    let target = fields.required("target", "\"stripe\"", problems);
    let named = target.as_ref().and_then(|node| node.string(problems));
    let target = targets.iter().find(|target| Some(&target.name) == named.as_ref());
    let mapping = fields.optional("mapping").map(|node| node.string(problems));
    let share =
        fields.optional("share").and_then(|node| read_share(&node, problems)).unwrap_or(DEFAULT_SHARE);
    let every = read_time(&mut fields, "every", problems);
    let from = fields.optional("from").and_then(|node| read_from(&node, problems));
    let mass = read_mass(&mut fields, problems);
    let digest_key = read_digest_key(&mut fields, problems);
    let at = fields.at.clone();
    let value_bytes = read_bounds(&mut fields, problems);
    fields.finish(problems);
    // A target with mistakes of its own is told of there.
    let target = target?;
    if target.connector.reading.streams.is_empty() {
        let system = &target.connector.name;
        problems.add(
            &at,
            format!("connector `{system}` has no `streams`"),
            "a target whose connector can be read",
        );
    }
    let constants = Constants { settings: target.connector.set.clone(), ..Constants::of(name) };
    let mapping = mapping.unwrap_or_else(|| Some(target.connector.system.clone()))?;
    let mapping = mapping::file::load(mappings, &mapping, constants, problems)?;
    let mapping = with_digest_key(mapping, digest_key.as_ref(), &at, problems).bounded(value_bytes);
    let reading = &target.connector.reading;
    for table in mapping.tables.iter().filter(|table| reading.table(&table.name).is_none()) {
        let known: Vec<&str> = reading.tables.iter().map(|table| table.name.as_str()).collect();
        let what = format!(
            "the mapping reads `{}`, which connector `{}` does not have",
            table.name, target.connector.name
        );
        problems.add(&at, what, mapping::shape::suggestion(&table.name, &known, "one of"));
    }
    Some(PollConfig {
        name: name.to_owned(),
        target: target.name.clone(),
        mapping,
        share: f64::from(u8::try_from(share).unwrap_or(100)) / 100.0,
        every,
        from: from.unwrap_or(Timestamp::UNIX_EPOCH),
        mass,
    })
}

fn read_share(node: &Node, problems: &mut Problems) -> Option<u64> {
    let share = node.whole(1, problems)?;
    if share > 100 {
        problems.add(&node.at, "a share is in per cent of the target's quota", "25");
        return None;
    }
    Some(share)
}

/// A day, or an instant.
fn read_from(node: &Node, problems: &mut Problems) -> Option<Timestamp> {
    let text = node.string(problems)?;
    let day = || text.parse::<jiff::civil::Date>().ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok();
    let found = text.parse().ok().or_else(|| Some(day()?.timestamp()));
    if found.is_none() {
        problems.add(&node.at, "not a day", "from = \"2026-01-01\"");
    }
    found
}
