//! Reads `mappings/connectors/<system>.yaml`. The file is closed: an unknown key is a mistake.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::bulk::{read_bulk, read_jobs};
use super::classify::{Class, OutcomeRule};
use super::limit::read_limits;
use super::request::RequestLine;
use super::stream::read_reading;
use super::{
    Adoption, Auth, Connector, Encoding, Find, FollowUp, FollowUpStep, Idempotency, ObjectSpec, Strategy,
    Transport, Unique, Write,
};
use crate::config::node::{Content, Fields, Node, Problems, nearest};
use crate::mapping::expression::Expression;
use crate::mapping::file::{check_format, read};
use crate::mapping::shape::{Variables, open_variables};
use crate::mapping::template::Template;

/// Variables of outcome rules.
const ANSWERED: [&str; 4] = ["step", "status", "headers", "body"];
/// Variables of messages.
const MESSAGE_VARIABLES: [&str; 2] = ["event", "meta"];
/// Variables of bodies and paths.
const WRITE_VARIABLES: [&str; 3] = ["event", "references", "external_id"];

/// Loads one connector file.
pub fn load(mappings: &Path, system: &str, problems: &mut Problems) -> Option<Connector> {
    let path = mappings.join("connectors").join(format!("{system}.yaml"));
    let text = read(&path, problems)?;
    let node = Node::from_yaml(&path, &text, problems)?;
    let mut fields = node.fields(problems);
    check_format(&mut fields, problems);
    let name = fields.string("system", system, problems);
    if name.as_ref().is_some_and(|name| name != system) {
        problems.add(&fields.at, "`system` differs from the file's name", format!("system: {system}"));
    }
    let base_url = fields.optional("base_url").and_then(|node| node.string(problems));
    let transport = read_transport(&mut fields, problems);
    let (auth, user_suffix) = match transport {
        Some(Transport::Http) => read_auth(&mut fields, problems),
        _ => (None, String::new()),
    };
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
        system: system.to_owned(),
        transport: transport?,
        base_url,
        auth: if transport == Some(Transport::Http) { Some(auth?) } else { None },
        user_suffix,
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

fn read_auth(fields: &mut Fields, problems: &mut Problems) -> (Option<Auth>, String) {
    let Some(node) = fields.required("auth", "{ kind: bearer }", problems) else {
        return (None, String::new());
    };
    let mut inner = node.fields(problems);
    let auth = one_of(&mut inner, "kind", &[("bearer", Auth::Bearer), ("basic", Auth::Basic)], problems);
    let suffix = inner.optional("user_suffix").and_then(|node| node.string(problems)).unwrap_or_default();
    inner.finish(problems);
    (auth, suffix)
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

fn read_object(name: &str, node: &Node, problems: &mut Problems) -> Option<ObjectSpec> {
    let variables = open_variables(&WRITE_VARIABLES);
    let mut fields = node.fields(problems);
    let body = fields.required("body", "{ name: event.name }", problems);
    let body = body.and_then(|node| Template::compile(&node, &variables, problems));
    let upsert = read_write(&mut fields, "upsert", &variables, problems);
    let create = read_write(&mut fields, "create", &variables, problems);
    let update = read_write(&mut fields, "update", &variables, problems);
    let find = fields.optional("find").and_then(|node| read_find(&node, &variables, problems));
    let delete = fields.required("delete", "DELETE /v1/customers/{external_id}", problems);
    let delete = delete.and_then(|node| RequestLine::compile(&node, &variables, problems));
    let unique = fields.optional("unique").map(|node| node.entries(problems)).unwrap_or_default();
    let unique = unique.iter().filter_map(|(path, node)| read_unique(path, node, problems)).collect();
    let follow_up = fields.optional("follow_up").and_then(|node| read_follow_up(&node, problems));
    let needs = fields.optional("needs").map(|node| node.strings(problems)).unwrap_or_default();
    let bulk = fields.optional("bulk");
    let bulks = bulk.as_ref().map(|node| read_bulk(node, problems)).unwrap_or_default();
    let adopt = fields.optional("adopt");
    let adopts = adopt.as_ref().map(|node| node.list(problems)).unwrap_or_default();
    let adopts = adopts.iter().filter_map(|node| read_adoption(node, problems)).collect();
    fields.finish(problems);
    if let (Some(node), None) = (&bulk, &upsert) {
        let what = "only an object with `upsert` goes with others: what is in doubt of it can be sent again";
        problems.add(&node.at, what, "leave `bulk` out");
    }
    if let (Some(node), Some(_)) = (&adopt, &upsert) {
        problems.add(
            &node.at,
            "only an object with `create` and `update` can be adopted",
            "leave `adopt` out",
        );
    }
    let strategy = match (upsert, create, update) {
        (Some(write), None, None) if find.is_none() => Strategy::Upsert(write),
        (None, Some(create), Some(update)) => {
            Strategy::CreateOrUpdate { create, update: Box::new(update), find: find.map(Box::new) }
        }
        _ => {
            problems.add(
                &node.at,
                format!("object `{name}` needs either `upsert`, or `create` and `update`"),
                "upsert: …",
            );
            return None;
        }
    };
    let (name, adopt) = (name.to_owned(), adopts);
    Some(ObjectSpec {
        name,
        body: body?,
        strategy,
        delete: delete?,
        unique,
        needs,
        bulk: bulks,
        follow_up,
        adopt,
    })
}

/// A kind of message: where it goes, and what is in it.
fn read_message(name: &str, node: &Node, problems: &mut Problems) -> Option<ObjectSpec> {
    let variables = open_variables(&MESSAGE_VARIABLES);
    let mut fields = node.fields(problems);
    let body = fields.required("body", "{ id: meta.id, data: event }", problems);
    let body = body.and_then(|node| Template::compile(&node, &variables, problems));
    let to = fields.required("publish", "POST /tailwater.{meta.type}", problems);
    fields.finish(problems);
    let mut lines =
        to.iter().flat_map(|node| [node, node]).map(|node| RequestLine::compile(node, &variables, problems));
    let (line, delete) = (lines.next()??, lines.next()??);
    drop(lines);
    let answered = Node { at: node.at.clone(), content: Content::Scalar("answer.id".into()) };
    let id = Expression::compile(&answered, &open_variables(&["answer"]), problems);
    Some(ObjectSpec {
        name: name.to_owned(),
        body: body?,
        delete,
        strategy: Strategy::Publish(Write { line, id: id? }),
        unique: Vec::new(),
        needs: Vec::new(),
        bulk: Vec::new(),
        follow_up: None,
        adopt: Vec::new(),
    })
}

fn read_adoption(node: &Node, problems: &mut Problems) -> Option<Adoption> {
    let mut fields = node.fields(problems);
    let by = fields.string("by", "e-mail", problems);
    let variables = open_variables(&["event"]);
    let when = fields.required("when", "event.email != null", problems);
    let when = when.and_then(|node| Expression::compile(&node, &variables, problems));
    let line = fields.required("request", "GET /v1/customers?email={event.email}", problems);
    let line = line.and_then(|node| RequestLine::compile(&node, &variables, problems));
    let ids = fields.required("ids", "answer.data.map(c, c.id)", problems);
    let variables = open_variables(&["answer", "event"]);
    let ids = ids.and_then(|node| Expression::compile(&node, &variables, problems));
    fields.finish(problems);
    Some(Adoption { by: by?, when: when?, line: line?, ids: ids? })
}

fn read_write(
    fields: &mut Fields,
    key: &'static str,
    variables: &Variables,
    problems: &mut Problems,
) -> Option<Write> {
    let node = fields.optional(key)?;
    let mut inner = node.fields(problems);
    let line = inner.required("request", "POST /v1/customers", problems);
    let line = line.and_then(|node| RequestLine::compile(&node, variables, problems));
    let id = inner.required("id", "answer.id", problems);
    let id = id.and_then(|node| Expression::compile(&node, &open_variables(&["answer"]), problems));
    inner.finish(problems);
    Some(Write { line: line?, id: id? })
}

fn read_find(node: &Node, variables: &Variables, problems: &mut Problems) -> Option<Find> {
    let mut fields = node.fields(problems);
    let line = fields.required("request", "GET /v1/customers/search?query={…}", problems);
    let line = line.and_then(|node| RequestLine::compile(&node, variables, problems));
    let ids = fields.required("ids", "answer.data.map(c, c.id)", problems);
    let ids = ids.and_then(|node| Expression::compile(&node, &open_variables(&["answer"]), problems));
    let fresh_after =
        fields.required("fresh_after_s", "60", problems).and_then(|node| node.whole(0, problems));
    fields.finish(problems);
    Some(Find { line: line?, ids: ids?, fresh_after: Duration::from_secs(fresh_after?) })
}

fn read_follow_up(node: &Node, problems: &mut Problems) -> Option<FollowUp> {
    let mut fields = node.fields(problems);
    let when = fields.required("when", "answer.user.email != sent.user.email", problems);
    let when = when.and_then(|node| {
        Expression::compile(&node, &open_variables(&["sent", "answer", "released"]), problems)
    });
    let list = fields.required("list", "GET /api/v2/users/{external_id}/identities", problems);
    let list = list
        .and_then(|node| RequestLine::compile(&node, &open_variables(&["sent", "external_id"]), problems));
    let steps =
        fields.required("then", "a list of `each` and `request`", problems).map(|node| node.list(problems));
    fields.finish(problems);
    let steps = steps.unwrap_or_default();
    let then = steps.iter().filter_map(|node| {
        let mut fields = node.fields(problems);
        let each = fields.required("each", "list.identities.map(i, i.id)", problems);
        let variables = open_variables(&["sent", "list", "released", "external_id"]);
        let each = each.and_then(|node| Expression::compile(&node, &variables, problems));
        let line =
            fields.required("request", "DELETE /api/v2/users/{external_id}/identities/{item}", problems);
        let variables = open_variables(&["sent", "item", "external_id"]);
        let line = line.and_then(|node| RequestLine::compile(&node, &variables, problems));
        fields.finish(problems);
        Some(FollowUpStep { each: each?, line: line? })
    });
    let then = then.collect();
    Some(FollowUp { when: when?, list: list?, then })
}

fn read_unique(path: &str, node: &Node, problems: &mut Problems) -> Option<Unique> {
    let mut fields = node.fields(problems);
    let otherwise = fields.required("otherwise", "event.name + ' (' + event.id + ')'", problems);
    let otherwise =
        otherwise.and_then(|node| Expression::compile(&node, &open_variables(&["event"]), problems));
    fields.finish(problems);
    Some(Unique { path: path.split('.').map(str::to_owned).collect(), otherwise: otherwise? })
}
