//! Reads `tables` and `streams` of a connector file; `stream` says what they look like.

use std::time::Duration;

use super::request::RequestLine;
use super::stream::{Listing, Lookup, Pages, Progress, Reading, Stream, Table};
use crate::config::node::{Content, Fields, Node, Problems};
use crate::mapping::expression::Expression;
use crate::mapping::shape::open_variables;
use crate::mapping::template::Template;

/// Variables of requests for pages: `since` (seconds since 1970), `since_text` (RFC 3339), `last` (key of the last row),
/// `token`, `page` (from 1), `per_page`, `settings`.
const PAGE: [&str; 7] = ["since", "since_text", "last", "token", "page", "per_page", "settings"];

/// Reads `tables` and `streams` of a connector file.
pub fn read_reading(fields: &mut Fields, problems: &mut Problems) -> Reading {
    let tables = fields.optional("tables").map(|node| node.entries(problems)).unwrap_or_default();
    let tables = tables.iter().filter_map(|(name, node)| read_table(name, node, problems)).collect();
    let streams = fields.optional("streams").map(|node| node.entries(problems)).unwrap_or_default();
    let streams = streams.iter().filter_map(|(name, node)| read_stream(name, node, problems)).collect();
    Reading { tables, streams }
}

fn read_table(name: &str, node: &Node, problems: &mut Problems) -> Option<Table> {
    let mut fields = node.fields(problems);
    let list = fields.optional("list").and_then(|node| {
        let mut inner = node.fields(problems);
        let listing = read_listing(&mut inner, problems);
        inner.finish(problems);
        listing
    });
    let read = fields.optional("read").and_then(|node| read_lookup(&node, problems));
    let record = over(&mut fields, "record", &["answer"], "answer", problems);
    let key = over(&mut fields, "key", &["record"], "record.id", problems);
    let at = fields.optional("at");
    let at = at.and_then(|node| Expression::compile(&node, &open_variables(&["record"]), problems));
    let since = fields.optional("since");
    let since = since.and_then(|node| Expression::compile(&node, &open_variables(&["record"]), problems));
    fields.finish(problems);
    Some(Table { name: name.to_owned(), list, read, record: record?, key: key?, at, since })
}

fn read_stream(name: &str, node: &Node, problems: &mut Problems) -> Option<Stream> {
    let mut fields = node.fields(problems);
    let listing = read_listing(&mut fields, problems);
    let every = fields.required("every", "{ least_s: 5, most_s: 60 }", problems);
    let every = every.and_then(|node| {
        let mut inner = node.fields(problems);
        let mut seconds = |key, problems: &mut Problems| {
            inner.required(key, "60", problems).and_then(|node| node.whole(1, problems))
        };
        let (least, most) = (seconds("least_s", problems), seconds("most_s", problems));
        inner.finish(problems);
        Some((Duration::from_secs(least?), Duration::from_secs(most?.max(least?))))
    });
    let table = over(&mut fields, "table", &["row"], "\"'ticket'\"", problems);
    let record = over(&mut fields, "record", &["row"], "row", problems);
    let key = over(&mut fields, "key", &["row"], "row.id", problems);
    let at = over(&mut fields, "at", &["row"], "row.updated_at", problems);
    let progress = fields.required("progress", "{ by: time, overlap_s: 5, late_s: 300 }", problems);
    let progress = progress.and_then(|node| read_progress(&node, problems));
    let begins = fields.string("begins", "now", problems);
    if begins.as_ref().is_some_and(|begins| begins != "now" && begins != "beginning") {
        problems.add(&fields.at, "a stream begins `now` or at the `beginning`", "begins: now");
    }
    let expired = fields.optional("expired").and_then(|node| {
        Expression::compile(&node, &open_variables(&["status", "headers", "body"]), problems)
    });
    fields.finish(problems);
    let (listing, progress) = (listing?, progress?);
    let continues = matches!(listing.pages, Pages::Token { .. } | Pages::Link { .. });
    if matches!(progress, Progress::Cursor { .. }) && !continues {
        problems.add(
            &node.at,
            "only pages by token or by link have something to go on by",
            "progress: { by: time, … }",
        );
    }
    Some(Stream {
        name: name.to_owned(),
        listing,
        every: every?,
        table: table?,
        record: record?,
        key: key?,
        at: at?,
        progress,
        begins_now: begins? == "now",
        expired,
    })
}

fn read_listing(fields: &mut Fields, problems: &mut Problems) -> Option<Listing> {
    let variables = open_variables(&PAGE);
    let first = fields.required("request", "GET /v1/customers?limit=100", problems);
    let next = fields.optional("next").or_else(|| first.clone());
    let first = first.and_then(|node| RequestLine::compile(&node, &variables, problems));
    let next = next.and_then(|node| RequestLine::compile(&node, &variables, problems));
    let body = fields.optional("body");
    let mut compiled = || body.as_ref().and_then(|node| Template::compile(node, &variables, problems));
    let (first_body, next_body) = (compiled(), compiled());
    let page_size = fields.optional("page_size").and_then(|node| node.whole(1, problems));
    let page_size = page_size.and_then(|size| usize::try_from(size).ok());
    let pages = fields.required("pages", "{ by: token, token: answer.next_offset }", problems);
    let at = pages.as_ref().map(|node| node.at.clone());
    let pages = pages.and_then(|node| read_pages(&node, problems));
    if let (Some(Pages::Number | Pages::Time), None, Some(at)) = (&pages, page_size, at) {
        problems.add(&at, "whether a page is full is told by its rows", "page_size: 100, beside `pages`");
    }
    let rows = over(fields, "rows", &["answer"], "answer.data", problems);
    let first = Lookup { line: first?, body: first_body };
    let next = Lookup { line: next?, body: next_body };
    Some(Listing { first, next, page_size, pages: pages?, rows: rows? })
}

/// `METHOD /path`, or the same with a body.
fn read_lookup(node: &Node, problems: &mut Problems) -> Option<Lookup> {
    let variables = open_variables(&["key", "settings"]);
    let Content::Map(_) = node.content else {
        return Some(Lookup { line: RequestLine::compile(node, &variables, problems)?, body: None });
    };
    let mut fields = node.fields(problems);
    let line = fields.required("request", "POST /read", problems);
    let line = line.and_then(|node| RequestLine::compile(&node, &variables, problems));
    let body = fields.optional("body").and_then(|node| Template::compile(&node, &variables, problems));
    fields.finish(problems);
    Some(Lookup { line: line?, body })
}

fn read_pages(node: &Node, problems: &mut Problems) -> Option<Pages> {
    let mut fields = node.fields(problems);
    let by = fields.string("by", "token", problems)?;
    let pages = match by.as_str() {
        "single" => Some(Pages::Single),
        "number" => Some(Pages::Number),
        "time" => Some(Pages::Time),
        "last" => over(&mut fields, "more", &["answer", "per_page"], "answer.has_more", problems)
            .map(|more| Pages::Last { more }),
        "token" => {
            let token = over(&mut fields, "token", &["answer"], "answer.next_offset", problems);
            let more = fields.optional("more");
            let more =
                more.and_then(|node| Expression::compile(&node, &open_variables(&["answer"]), problems));
            let is_time = fields.optional("is_time").and_then(|node| node.boolean(problems)).unwrap_or(false);
            token.map(|token| Pages::Token { token, more, is_time })
        }
        "link" => {
            let next = over(&mut fields, "next", &["answer"], "answer['@odata.nextLink']", problems);
            let delta = fields.optional("delta");
            let delta =
                delta.and_then(|node| Expression::compile(&node, &open_variables(&["answer"]), problems));
            next.map(|next| Pages::Link { next, delta })
        }
        _ => {
            let known = "single, last, token, number, time or link";
            problems.add(&node.at, format!("there is no way `{by}` from page to page"), known);
            None
        }
    };
    fields.finish(problems);
    pages
}

fn read_progress(node: &Node, problems: &mut Problems) -> Option<Progress> {
    let mut fields = node.fields(problems);
    let by = fields.string("by", "time", problems);
    let retention = fields.optional("retention_s").and_then(|node| node.whole(60, problems));
    let retention = retention.map(Duration::from_secs);
    let progress = match by.as_deref() {
        Some("time") => {
            let mut seconds = |key, example: &str, least, problems: &mut Problems| {
                let seconds =
                    fields.required(key, example, problems).and_then(|node| node.whole(least, problems));
                seconds.map(Duration::from_secs)
            };
            let overlap = seconds("overlap_s", "5", 1, problems);
            let late = seconds("late_s", "300", 5, problems);
            overlap.zip(late).map(|(overlap, late)| Progress::Time { overlap, late, retention })
        }
        Some("cursor") => Some(Progress::Cursor { retention }),
        Some(by) => {
            problems.add(&node.at, format!("there is no progress by `{by}`"), "by: time, or by: cursor");
            None
        }
        None => None,
    };
    fields.finish(problems);
    progress
}

fn over(
    fields: &mut Fields,
    key: &'static str,
    variables: &[&str],
    example: &str,
    problems: &mut Problems,
) -> Option<Expression> {
    let node = fields.required(key, example, problems)?;
    Expression::compile(&node, &open_variables(variables), problems)
}
