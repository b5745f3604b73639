//! Reads `mappings/connectors/<system>.yaml`. The file is closed: an unknown key is a mistake.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::bulk::read_jobs;
use super::classify::{Class, OutcomeRule};
use super::limit::read_limits;
use super::object::{read_message, read_object};
use super::reading::read_reading;
use super::{Auth, Connector, Encoding, Idempotency, SettingSpec, Transport};
use crate::config::node::{Fields, Node, Problems, nearest};
use crate::mapping::expression::Expression;
use crate::mapping::file::{check_format, read};
use crate::mapping::shape::open_variables;

/// Variables of outcome rules.
const ANSWERED: [&str; 4] = ["step", "status", "headers", "body"];

/// The system that a file's connector leads to: `odoo-rpc` is another way to `odoo`.
fn read_system(fields: &mut Fields, name: &str, problems: &mut Problems) -> Option<String> {
    let system = fields.string("system", name, problems)?;
    let rest = name.strip_prefix(system.as_str());
    if rest.is_none_or(|rest| !rest.is_empty() && !rest.starts_with('-')) {
        problems.add(
            &fields.at,
            "`system` is not what the file's name begins with",
            format!("system: {name}"),
        );
    }
    Some(system)
}

/// Loads one connector file.
pub fn load(mappings: &Path, name: &str, problems: &mut Problems) -> Option<Connector> {
    let path = mappings.join("connectors").join(format!("{name}.yaml"));
    let text = read(&path, problems)?;
    let node = Node::from_yaml(&path, &text, problems)?;
    let mut fields = node.fields(problems);
    check_format(&mut fields, problems);
    let system = read_system(&mut fields, name, problems);
    let base_url = fields.optional("base_url").and_then(|node| node.string(problems));
    let transport = read_transport(&mut fields, problems);
    let (auth, user_suffix, key_at) = match transport {
        Some(Transport::Http) => read_auth(&mut fields, problems),
        _ => (None, String::new(), None),
    };
    let settings = read_settings(&mut fields, problems);
    let headers = read_headers(&mut fields, problems);
    let encoding =
        one_of(&mut fields, "encoding", &[("form", Encoding::Form), ("json", Encoding::Json)], problems);
    let timeout = seconds(&mut fields, "timeout_s", 30, problems);
    let concurrency = fields.optional("concurrency").and_then(|node| node.whole(1, problems)).unwrap_or(8);
    let idempotency = fields.optional("idempotency").and_then(|node| read_idempotency(&node, problems));
    let limits = read_limits(&mut fields, problems);
    let outcomes = match transport {
        Some(Transport::Http) => fields.required("outcomes", "a list of rules", problems),
        _ => fields.optional("outcomes"),
    };
    let outcomes = outcomes.map(|node| read_rules(&node, &ANSWERED, problems)).unwrap_or_default();
    let jobs = fields.optional("jobs").and_then(|node| read_jobs(&node, problems));
    let objects =
        fields.required("objects", "a map", problems).map(|node| node.entries(problems)).unwrap_or_default();
    let publishes = transport.is_some_and(Transport::publishes);
    let objects = objects.iter().filter_map(|(name, node)| match publishes {
        true => read_message(name, node, problems),
        false => read_object(name, node, problems),
    });
    let objects = objects.collect();
    let reading = read_reading(&mut fields, problems);
    check_evidence(&mut fields, problems);
    fields.finish(problems);
    Some(Connector {
        name: name.to_owned(),
        system: system?,
        transport: transport?,
        base_url,
        auth: if transport == Some(Transport::Http) { Some(auth?) } else { None },
        key_at,
        user_suffix,
        settings,
        set: serde_json::Value::Object(serde_json::Map::new()),
        headers,
        encoding: encoding?,
        timeout,
        concurrency: usize::try_from(concurrency).unwrap_or(8),
        limits: limits.into_iter().map(Arc::new).collect(),
        idempotency,
        jobs,
        outcomes,
        objects,
        reading,
    })
}

fn check_evidence(fields: &mut Fields, problems: &mut Problems) {
    for item in fields.optional("evidence").map(|node| node.list(problems)).unwrap_or_default() {
        let mut source = item.fields(problems);
        for key in ["what", "url", "seen"] {
            source.required(key, "the source of a number", problems);
        }
        source.finish(problems);
    }
}

/// HTTP, unless it is said otherwise.
fn read_transport(fields: &mut Fields, problems: &mut Problems) -> Option<Transport> {
    let known = [
        ("http", Transport::Http),
        ("nats", Transport::Nats),
        ("redis-stream", Transport::RedisStream),
        ("discard", Transport::Discard),
    ];
    match fields.optional("transport") {
        Some(node) => choice("transport", &node, &known, problems),
        None => Some(Transport::Http),
    }
}

fn read_auth(fields: &mut Fields, problems: &mut Problems) -> (Option<Auth>, String, Option<String>) {
    let Some(node) = fields.required("auth", "{ kind: bearer }", problems) else {
        return (None, String::new(), None);
    };
    let mut inner = node.fields(problems);
    let kinds = [("bearer", Auth::Bearer), ("basic", Auth::Basic), ("key", Auth::Key), ("body", Auth::Body)];
    let auth = one_of(&mut inner, "kind", &kinds, problems);
    let key = if auth == Some(Auth::Key) { "password" } else { "user_suffix" };
    let suffix = inner.optional(key).and_then(|node| node.string(problems)).unwrap_or_default();
    let at = inner.optional("at").and_then(|node| node.string(problems));
    if (auth == Some(Auth::Body)) != at.is_some() || at.as_ref().is_some_and(|at| !at.starts_with('/')) {
        problems.add(
            &inner.at,
            "a key in the body has its place there, and no other key has",
            "{ kind: body, at: /params/args/2 }",
        );
    }
    inner.finish(problems);
    (auth, suffix, at)
}

/// What only the settings of a target know.
fn read_settings(fields: &mut Fields, problems: &mut Problems) -> Vec<SettingSpec> {
    let entries = fields.optional("settings").map(|node| node.entries(problems)).unwrap_or_default();
    let read = |(name, node): (String, Node)| {
        let mut inner = node.fields(problems);
        let example = inner.string("example", "\"odoo19\"", problems);
        let needed = inner.optional("needed").and_then(|node| node.boolean(problems)).unwrap_or(false);
        let needed_for = inner.optional("needed_for").and_then(|node| node.string(problems));
        inner.finish(problems);
        Some(SettingSpec { name, example: example?, needed, needed_for })
    };
    entries.into_iter().filter_map(read).collect()
}

fn read_headers(fields: &mut Fields, problems: &mut Problems) -> Vec<(String, String)> {
    let entries = fields.optional("headers").map(|node| node.entries(problems)).unwrap_or_default();
    entries.into_iter().filter_map(|(name, node)| Some((name, node.string(problems)?))).collect()
}

fn one_of<T: Copy>(
    fields: &mut Fields,
    key: &'static str,
    choices: &[(&'static str, T)],
    problems: &mut Problems,
) -> Option<T> {
    let example = choices.first().map_or("", |(name, _)| *name);
    let node = fields.required(key, example, problems)?;
    choice(key, &node, choices, problems)
}

fn choice<T: Copy>(
    key: &'static str,
    node: &Node,
    choices: &[(&'static str, T)],
    problems: &mut Problems,
) -> Option<T> {
    let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
    let text = node.string(problems)?;
    let found = choices.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
    if found.is_none() {
        let instead = nearest(&text, &names).map_or_else(
            || format!("one of: {}", names.join(", ")),
            |near| format!("did you mean `{near}`?"),
        );
        problems.add(&node.at, format!("unknown {key} `{text}`"), instead);
    }
    found
}

fn seconds(fields: &mut Fields, key: &'static str, default: u64, problems: &mut Problems) -> Duration {
    Duration::from_secs(fields.optional(key).and_then(|node| node.whole(1, problems)).unwrap_or(default))
}

fn read_idempotency(node: &Node, problems: &mut Problems) -> Option<Idempotency> {
    let mut fields = node.fields(problems);
    let header = fields.string("header", "Idempotency-Key", problems);
    let window = fields.required("window_s", "86400", problems).and_then(|node| node.whole(1, problems));
    let replayed = fields.optional("replayed_header").and_then(|node| node.string(problems));
    fields.finish(problems);
    let replayed_header = replayed.map(|name| name.to_lowercase());
    Some(Idempotency { header: header?, window: Duration::from_secs(window?), replayed_header })
}

/// Reads rules over `variables`.
pub(super) fn read_rules(node: &Node, variables: &[&str], problems: &mut Problems) -> Vec<OutcomeRule> {
    node.list(problems).iter().filter_map(|item| read_rule(item, variables, problems)).collect()
}

fn read_rule(node: &Node, variables: &[&str], problems: &mut Problems) -> Option<OutcomeRule> {
    let mut fields = node.fields(problems);
    let when = fields.required("when", "status == 429", problems);
    let when = when.and_then(|node| Expression::compile(&node, &open_variables(variables), problems));
    let class = one_of(&mut fields, "outcome", &Class::ALL, problems);
    let field = fields.optional("field").and_then(|node| node.string(problems));
    if class == Some(Class::Conflict) && field.is_none() {
        problems.add(&node.at, "a conflict must say which value is taken", "field: organization.name");
    }
    fields.finish(problems);
    Some(OutcomeRule { when: when?, class: class?, field })
}
