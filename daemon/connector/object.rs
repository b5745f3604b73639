//! Reads the objects of a connector file: how they are written, found, recognised, completed, and how they look.

use std::time::Duration;

use super::bulk::read_bulk;
use super::request::RequestLine;
use super::{
    Adoption, Before, Find, FollowUp, FollowUpStep, ObjectSpec, Removal, Shown, Strategy, Unique, Write,
};
use crate::config::node::{Content, Fields, Node, Problems};
use crate::mapping::expression::Expression;
use crate::mapping::shape::{Variables, open_variables};
use crate::mapping::template::Template;

/// Variables of messages.
const MESSAGE_VARIABLES: [&str; 2] = ["event", "meta"];
/// Variables of bodies and paths.
const WRITE_VARIABLES: [&str; 5] = ["event", "references", "external_id", "meta", "settings"];

pub(super) fn read_object(name: &str, node: &Node, problems: &mut Problems) -> Option<ObjectSpec> {
    let variables = open_variables(&WRITE_VARIABLES);
    let mut fields = node.fields(problems);
    let concerns = fields.optional("concerns");
    let concerns = concerns
        .and_then(|node| Expression::compile(&node, &open_variables(&["event", "settings"]), problems));
    let body = fields.required("body", "{ name: event.name }", problems);
    let body = body.and_then(|node| Template::compile(&node, &variables, problems));
    let upsert = read_write(&mut fields, "upsert", &variables, problems);
    let create = read_write(&mut fields, "create", &variables, problems);
    let update = read_write(&mut fields, "update", &variables, problems);
    let find = fields.optional("find").and_then(|node| read_find(&node, &variables, problems));
    let post = read_write(&mut fields, "post", &variables, problems);
    let own_id = fields.optional("own_id");
    let own_id =
        own_id.and_then(|node| Expression::compile(&node, &open_variables(&["event", "settings"]), problems));
    let delete = fields.required("delete", "DELETE /v1/customers/{external_id}", problems);
    let delete = delete.map(|node| read_removal(&node, &variables, problems));
    let unique = fields.optional("unique").map(|node| node.entries(problems)).unwrap_or_default();
    let unique = unique.iter().filter_map(|(path, node)| read_unique(path, node, problems)).collect();
    let follow_up = fields.optional("follow_up").and_then(|node| read_follow_up(&node, problems));
    let shown = fields.optional("shown").and_then(|node| read_shown(&node, problems));
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
    let strategy = strategy_of((upsert, create, update, post), find, (name, node), problems)?;
    let (name, adopt) = (name.to_owned(), adopts);
    Some(ObjectSpec {
        name,
        concerns,
        body: body?,
        strategy,
        own_id,
        delete: delete?.ok()?,
        unique,
        needs,
        bulk: bulks,
        shown,
        follow_up,
        adopt,
    })
}

/// How an object comes to stand, from what its file says.
fn strategy_of(
    (upsert, create, update, post): (Option<Write>, Option<Write>, Option<Write>, Option<Write>),
    find: Option<Find>,
    (name, node): (&str, &Node),
    problems: &mut Problems,
) -> Option<Strategy> {
    match (upsert, create, update, post) {
        (Some(write), None, None, None) if find.is_none() => Some(Strategy::Upsert(write)),
        (None, Some(create), Some(update), None) => {
            Some(Strategy::CreateOrUpdate { create, update: Box::new(update), find: find.map(Box::new) })
        }
        (None, None, None, Some(post)) => Some(Strategy::Post { post, find: find.map(Box::new) }),
        _ => {
            let what = format!("object `{name}` needs either `upsert`, or `create` and `update`, or `post`");
            problems.add(&node.at, what, "upsert: …");
            None
        }
    }
}

/// A kind of message: where it goes, and what is in it.
pub(super) fn read_message(name: &str, node: &Node, problems: &mut Problems) -> Option<ObjectSpec> {
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
        concerns: None,
        delete: Some(Removal { line: delete, body: None, proof: None }),
        own_id: None,
        strategy: Strategy::Publish(Write {
            line,
            body: None,
            before: Vec::new(),
            id: id?,
            ours: None,
            proof: None,
        }),
        unique: Vec::new(),
        needs: Vec::new(),
        bulk: Vec::new(),
        shown: None,
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
    let id =
        id.and_then(|node| Expression::compile(&node, &open_variables(&["answer", "external_id"]), problems));
    let before = inner.optional("before").map(|node| node.list(problems)).unwrap_or_default();
    let mut known = variables.clone();
    let mut steps = Vec::with_capacity(before.len());
    for node in &before {
        let Some(step) = read_before(node, &known, problems) else { continue };
        known.extend(open_variables(&[&step.name]));
        steps.push(step);
    }
    known.extend(open_variables(&["body"]));
    let body = inner.optional("body").and_then(|node| Template::compile(&node, &known, problems));
    let ours = inner.optional("ours");
    let ours = ours.and_then(|node| Expression::compile(&node, &open_variables(&["answer"]), problems));
    let proof = read_proof(&mut inner, problems);
    inner.finish(problems);
    let id = id?;
    if !id.names("answer") && proof.is_none() {
        let what =
            "an answer without the object's id must show in another way that the write was carried out";
        problems.add(&node.at, what, "proof: answer == true");
    }
    Some(Write { line: line?, body, before: steps, id, ours, proof })
}

fn read_before(node: &Node, variables: &Variables, problems: &mut Problems) -> Option<Before> {
    let mut fields = node.fields(problems);
    let name = fields.string("as", "wizard", problems);
    let line = fields.required("request", "POST /read", problems);
    let line = line.and_then(|node| RequestLine::compile(&node, variables, problems));
    let body = fields.optional("body").and_then(|node| Template::compile(&node, variables, problems));
    let done = fields.optional("done");
    let done = done.and_then(|node| Expression::compile(&node, &open_variables(&["answer"]), problems));
    fields.finish(problems);
    Some(Before { name: name?, line: line?, body, done })
}

/// What shows that a request was carried out.
fn read_proof(fields: &mut Fields, problems: &mut Problems) -> Option<Expression> {
    let node = fields.optional("proof")?;
    Expression::compile(&node, &open_variables(&["answer", "status", "external_id"]), problems)
}

/// `METHOD /path`, the same with a body, or `never`: then it stays there. An error is told already.
fn read_removal(node: &Node, variables: &Variables, problems: &mut Problems) -> Result<Option<Removal>, ()> {
    if matches!(&node.content, Content::Scalar(value) if value.as_str() == Some("never")) {
        return Ok(None);
    }
    let Content::Map(_) = node.content else {
        let line = RequestLine::compile(node, variables, problems).ok_or(())?;
        return Ok(Some(Removal { line, body: None, proof: None }));
    };
    let mut fields = node.fields(problems);
    let line = fields.required("request", "POST /archive", problems);
    let line = line.and_then(|node| RequestLine::compile(&node, variables, problems));
    let body = fields.optional("body").and_then(|node| Template::compile(&node, variables, problems));
    let proof = read_proof(&mut fields, problems);
    fields.finish(problems);
    Ok(Some(Removal { line: line.ok_or(())?, body, proof }))
}

fn read_find(node: &Node, variables: &Variables, problems: &mut Problems) -> Option<Find> {
    let mut fields = node.fields(problems);
    let line = fields.required("request", "GET /v1/customers/search?query={…}", problems);
    let line = line.and_then(|node| RequestLine::compile(&node, variables, problems));
    let ids = fields.required("ids", "answer.data.map(c, c.id)", problems);
    let known = open_variables(&["answer", "event", "meta"]);
    let ids = ids.and_then(|node| Expression::compile(&node, &known, problems));
    let fresh_after =
        fields.required("fresh_after_s", "60", problems).and_then(|node| node.whole(0, problems));
    let body = fields.optional("body").and_then(|node| Template::compile(&node, variables, problems));
    fields.finish(problems);
    Some(Find { line: line?, body, ids: ids?, fresh_after: Duration::from_secs(fresh_after?) })
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

fn read_shown(node: &Node, problems: &mut Problems) -> Option<Shown> {
    let mut fields = node.fields(problems);
    let table = fields.string("table", "customer", problems);
    let body = fields.required("as", "record", problems);
    let body = body.and_then(|node| Expression::compile(&node, &open_variables(&["record"]), problems));
    let ours = fields.optional("ours");
    let ours = ours.and_then(|node| Expression::compile(&node, &open_variables(&["record"]), problems));
    let except = fields.optional("except").map(|node| node.strings(problems)).unwrap_or_default();
    fields.finish(problems);
    Some(Shown { table: table?, body: body?, ours, except })
}

fn read_unique(path: &str, node: &Node, problems: &mut Problems) -> Option<Unique> {
    let mut fields = node.fields(problems);
    let otherwise = fields.required("otherwise", "event.name + ' (' + event.id + ')'", problems);
    let otherwise =
        otherwise.and_then(|node| Expression::compile(&node, &open_variables(&["event"]), problems));
    fields.finish(problems);
    Some(Unique { path: path.split('.').map(str::to_owned).collect(), otherwise: otherwise? })
}
