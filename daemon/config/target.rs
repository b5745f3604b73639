//! Targets: where they are, as whom and how fast they are spoken to.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value};

use super::address;
use super::node::{At, Fields, Node, Problems};
use super::secret::Secret;
use super::settings::read_secret;
use super::source::read_time;
use crate::connector::limit::{Rate, read_rates};
use crate::connector::{self, Auth, Connector, Transport};
use crate::dispatch::quota::QuotaSettings;
use crate::mapping::shape::suggestion;

/// Part of what a vendor allows that is ours unless the settings say otherwise, in per cent.
const DEFAULT_SHARE: u64 = 80;

/// A target.
#[derive(Debug)]
pub struct TargetConfig {
    /// Name.
    pub name: String,
    /// Its connector file.
    pub connector: Connector,
    /// Where it is.
    pub base_url: String,
    /// User for Basic authentication.
    pub user: Option<String>,
    /// Key.
    pub api_key: Option<Secret>,
    /// Allowed rates.
    pub quota: QuotaSettings,
    /// Everything is done but the request.
    pub shadow: bool,
    /// Objects that somebody else made there are looked for before one is created.
    pub adopts: bool,
    /// How often it is compared with what it should hold, and whether that is put right.
    pub reconcile: Option<(Duration, bool)>,
    /// The source that is the same system, and where that is said.
    pub twin: Option<(String, At)>,
}

/// Reads one.
pub(super) fn read_target(
    name: &str,
    node: &Node,
    mappings: &Path,
    problems: &mut Problems,
) -> Option<TargetConfig> {
    let mut fields = node.fields(problems);
    let connector = fields.string("connector", "\"stripe\"", problems);
    let connector = connector.and_then(|name| connector::file::load(mappings, &name, problems));
    let base_url = fields.optional("base_url");
    let user = fields.optional("user").and_then(|node| node.string(problems));
    let speaks_http = connector.as_ref().is_none_or(|connector| connector.transport == Transport::Http);
    let example = "{ file = \"/etc/tailwater/secrets/stripe\" }";
    let api_key = match speaks_http {
        true => fields.required("api_key", example, problems),
        false => fields.optional("api_key"),
    };
    let needs_key = api_key.is_some() || speaks_http;
    let api_key = api_key.and_then(|node| read_secret(&node, problems));
    let quota = read_quota(&mut fields, connector.as_ref(), problems);
    let shadow = fields.optional("mode").is_some_and(|node| match node.string(problems).as_deref() {
        Some("shadow") => true,
        Some("live") | None => false,
        Some(_) => {
            problems.add(&node.at, "neither `live` nor `shadow`", "mode = \"shadow\"");
            false
        }
    });
    let adopts = fields.optional("adopt").and_then(|node| node.boolean(problems)).unwrap_or(false);
    let reconcile = fields.optional("reconcile").and_then(|node| read_reconcile(&node, problems));
    let set = fields.optional("settings");
    let twin = fields.optional("source");
    let twin = twin.and_then(|node| Some((node.string(problems)?, node.at)));
    let at = fields.at.clone();
    fields.finish(problems);
    let mut connector = connector?;
    connector.set = read_set(set, &connector, twin.as_ref().map(|(name, _)| name.as_str()), &at, problems);
    if connector.auth == Some(Auth::Basic) && user.is_none() {
        problems.add(
            &at,
            format!("connector `{}` needs `user`", connector.name),
            "user = \"bot@example.test\"",
        );
    }
    let base_url = match connector.transport {
        Transport::Http => read_base_url(base_url, &connector, &at, problems)?,
        Transport::Nats => read_bus_url(base_url, ("nats", "tls"), &at, problems)?,
        Transport::RedisStream => read_bus_url(base_url, ("redis", "rediss"), &at, problems)?,
        Transport::Discard => String::new(),
    };
    if needs_key && api_key.is_none() {
        return None;
    }
    Some(TargetConfig {
        name: name.to_owned(),
        connector,
        base_url,
        user,
        api_key,
        quota: quota?,
        shadow,
        adopts,
        reconcile,
        twin,
    })
}

/// `reconcile`: how often, and whether what differs is put right.
fn read_reconcile(node: &Node, problems: &mut Problems) -> Option<(Duration, bool)> {
    let mut fields = node.fields(problems);
    let every = read_time(&mut fields, "every", problems);
    let repair = fields.optional("repair").and_then(|node| node.boolean(problems)).unwrap_or(false);
    fields.finish(problems);
    Some((every?, repair))
}

/// `settings`: what the connector cannot know.
fn read_set(
    node: Option<Node>,
    connector: &Connector,
    twin: Option<&str>,
    at: &At,
    problems: &mut Problems,
) -> Value {
    let given = node.map(|node| node.entries(problems)).unwrap_or_default();
    let names: Vec<&str> = connector.settings.iter().map(|spec| spec.name.as_str()).collect();
    for (name, node) in given.iter().filter(|(name, _)| !names.contains(&name.as_str())) {
        let what = format!("connector `{}` has no setting `{name}`", connector.name);
        problems.add(&node.at, what, suggestion(name, &names, "one of"));
    }
    let mut set = Map::new();
    for spec in &connector.settings {
        let found = given.iter().find(|(name, _)| *name == spec.name).map(|(_, node)| node.to_json());
        if found.is_none() && spec.needed {
            let what = format!("connector `{}` needs the setting `{}`", connector.name, spec.name);
            problems.add(at, what, format!("settings = {{ {} = {} }}", spec.name, spec.example));
        }
        set.insert(spec.name.clone(), found.unwrap_or_default());
    }
    // As canonical ids of the source that is the same system begin.
    set.insert("source".into(), twin.map_or(Value::Null, |twin| twin.to_uppercase().into()));
    Value::Object(set)
}

/// `quota`: rates of the connector's first limit. `quotas`: of others. `share`: the part in per cent of what the connector says
/// that is ours.
fn read_quota(
    fields: &mut Fields,
    connector: Option<&Connector>,
    problems: &mut Problems,
) -> Option<QuotaSettings> {
    let limits: Vec<&str> = connector
        .map(|connector| connector.limits.iter().map(|limit| limit.name.as_str()).collect())
        .unwrap_or_default();
    let known = connector.and_then(|connector| connector.limits.first());
    let is_needed = connector.is_none_or(|connector| connector.transport == Transport::Http)
        && known.is_none_or(|limit| limit.rates.is_empty());
    let quota =
        if is_needed { fields.required("quota", "\"80/s\"", problems) } else { fields.optional("quota") };
    let missing = is_needed && quota.is_none();
    let mut rates = BTreeMap::new();
    let first = limits.first().copied().unwrap_or("account");
    if let Some(node) = quota {
        let read = read_rates(&node, problems);
        if read.is_empty() {
            return None;
        }
        rates.insert(first.to_owned(), read);
    }
    for (name, node) in fields.optional("quotas").map(|node| node.entries(problems)).unwrap_or_default() {
        if !limits.contains(&name.as_str()) {
            problems.add(
                &node.at,
                format!("the connector has no limit `{name}`"),
                format!("one of {}", limits.join(", ")),
            );
        }
        rates.insert(name, read_rates(&node, problems));
    }
    let share = fields.optional("share").and_then(|node| {
        let share = node.whole(1, problems)?;
        if share > 100 {
            problems.add(&node.at, "a share is in per cent of what the vendor allows", "80");
        }
        Some(share.min(100))
    });
    let share = f64::from(u8::try_from(share.unwrap_or(DEFAULT_SHARE)).unwrap_or(100)) / 100.0;
    (!missing).then_some(QuotaSettings { rates, share })
}

impl TargetConfig {
    /// Rates of its first limit, as they are without what is tuned or told while the daemon runs.
    #[must_use]
    pub fn rates(&self) -> Vec<Rate> {
        let first = self.connector.limits.first();
        let set = first.and_then(|limit| self.quota.rates.get(&limit.name)).cloned();
        set.unwrap_or_else(|| {
            first
                .into_iter()
                .flat_map(|limit| &limit.rates)
                .map(|rate| rate.scaled(self.quota.share))
                .collect()
        })
    }

    /// The same for people: `80/s, 100000/d`.
    #[must_use]
    pub fn quota_text(&self) -> String {
        let rates: Vec<String> = self.rates().iter().map(Rate::to_string).collect();
        if rates.is_empty() { "no limit".to_owned() } else { rates.join(", ") }
    }
}

/// Where a bus is: plain only on this machine, elsewhere encrypted.
fn read_bus_url(
    node: Option<Node>,
    schemes: (&str, &str),
    at: &At,
    problems: &mut Problems,
) -> Option<String> {
    let example = format!("base_url = \"{}://127.0.0.1:…\"", schemes.0);
    let Some(node) = node else {
        problems.add(at, "the bus has no address", example);
        return None;
    };
    refused_at(&node.at, address::bus(&node.string(problems)?, schemes), &example, problems)
}

/// Encrypted, unless the target is on this machine.
fn read_base_url(
    node: Option<Node>,
    connector: &Connector,
    at: &At,
    problems: &mut Problems,
) -> Option<String> {
    let example = "base_url = \"https://your-subdomain.zendesk.com\"";
    let (text, at) = match (node, &connector.base_url) {
        (Some(node), _) => (node.string(problems)?, node.at),
        (None, Some(url)) => (url.clone(), at.clone()),
        (None, None) => {
            problems.add(at, format!("connector `{}` has no address of its own", connector.name), example);
            return None;
        }
    };
    refused_at(&at, address::http(&text), "https://…  (http only for this machine)", problems)
}

/// The address, or a problem that says why not.
pub(super) fn refused_at(
    at: &At,
    read: Result<String, address::Refused>,
    instead: &str,
    problems: &mut Problems,
) -> Option<String> {
    read.map_err(|what| problems.add(at, what, instead)).ok()
}
