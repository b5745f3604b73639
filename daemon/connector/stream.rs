//! What can be read of a system: streams of changes, which are polled, and lists of all objects of a kind. Pure.
//!
//! ```yaml
//! tables:                       # objects, by the name that mappings have for them
//!   customer:
//!     list: { request: "GET /v1/customers?limit=100", next: "…&starting_after={last}", pages: { by: last, more: answer.has_more }, rows: answer.data }
//!     read: "GET /v1/customers/{key}"
//!     record: answer            # the object in the answer to `read`
//!     key: record.id
//! streams:
//!   events:
//!     every: { least_s: 5, most_s: 60 }
//!     request: "GET /v1/events?created[gte]={since}&limit=100"
//!     next: "GET /v1/events?created[gte]={since}&limit=100&starting_after={last}"
//!     pages: { by: last, more: answer.has_more }
//!     rows: answer.data
//!     table: row.data.object.object
//!     record: row.data.object
//!     key: row.data.object.id
//!     at: row.created
//!     progress: { by: time, overlap_s: 5, late_s: 300, retention_s: 2592000 }
//!     begins: now               # what was there before is listed; or `beginning`
//! ```

use std::time::Duration;

use serde_json::Value;

use super::Encoding;
use super::classify::Answer;
use super::request::{Request, RequestLine};
use crate::config::node::{Content, Fields, Node, Problems};
use crate::mapping::expression::{EvaluationError, Expression};
use crate::mapping::scope::Scope;
use crate::mapping::shape::open_variables;
use crate::mapping::template::Template;

/// Variables of requests for pages: `since` (seconds since 1970), `since_text` (RFC 3339), `last` (key of the last row),
/// `token`, `page` (from 1).
const PAGE: [&str; 5] = ["since", "since_text", "last", "token", "page"];

/// What can be read of a system.
#[derive(Debug, Default)]
pub struct Reading {
    /// Objects by kind.
    pub tables: Vec<Table>,
    /// Changes.
    pub streams: Vec<Stream>,
}

/// Objects of one kind.
#[derive(Debug)]
pub struct Table {
    /// What mappings call it.
    pub name: String,
    /// How all of them are read, page by page.
    pub list: Option<Listing>,
    /// How one is read, over `key`.
    pub read: Option<Lookup>,
    /// The object in the answer to `read`.
    pub record: Expression,
    /// Its key.
    pub key: Expression,
    /// When it was changed, over `record`; when the vendor answered, where it does not say.
    pub at: Option<Expression>,
}

/// A request that reads.
#[derive(Debug)]
pub struct Lookup {
    /// Method and path.
    pub line: RequestLine,
    /// What is sent with it, where reading takes that.
    pub body: Option<Template>,
}

impl Lookup {
    /// The request. `step`: what it is for.
    pub fn request(
        &self,
        step: &str,
        encoding: Encoding,
        scope: &Scope<'_>,
    ) -> Result<Request, EvaluationError> {
        let request = Request::bare(step, &self.line, scope)?;
        match &self.body {
            Some(body) => Ok(request.with_body(encoding, &body.render(scope)?)),
            None => Ok(request),
        }
    }
}

/// A list that comes in pages.
#[derive(Debug)]
pub struct Listing {
    /// Request for the first page.
    pub first: Lookup,
    /// Request for any other.
    pub next: Lookup,
    /// How the next page is found.
    pub pages: Pages,
    /// Rows of a page, a list over `answer`.
    pub rows: Expression,
}

/// How the next page is found.
#[derive(Debug)]
pub enum Pages {
    /// There is one.
    Single,
    /// By the key of the last row; there is another one while `more` holds.
    Last {
        /// Over `answer`.
        more: Expression,
    },
    /// By a token that the answer gives, null at the end.
    Token {
        /// Over `answer`.
        token: Expression,
        /// There is another one now, over `answer`; while there is a token when `None`.
        more: Option<Expression>,
    },
    /// By number, from 1; one that is not full is the last.
    Number {
        /// Rows of a full page.
        size: usize,
    },
    /// Each page begins at the time of the last row of the one before it, so that rows which move from page to page while they are
    /// read are not passed over; rows of one instant come by number.
    Time {
        /// Rows of a full page.
        size: usize,
    },
    /// By an address that the answer gives: of the next page, or, at the end, of what will have changed.
    Link {
        /// Over `answer`.
        next: Expression,
        /// Over `answer`.
        delta: Option<Expression>,
    },
}

/// How a stream goes on where it stopped.
#[derive(Debug)]
pub enum Progress {
    /// By the time of its rows.
    Time {
        /// Each pass goes back so far: rows of one instant may not all have been there.
        overlap: Duration,
        /// Every so often a pass goes back so far: rows may come late, with the time at which they should have come.
        late: Duration,
        /// How long the vendor keeps rows; for ever when `None`.
        retention: Option<Duration>,
    },
    /// By the token or address of its last page, which the vendor keeps for this long; for ever when `None`.
    Cursor {
        /// How long.
        retention: Option<Duration>,
    },
}

/// Changes as they are polled.
#[derive(Debug)]
pub struct Stream {
    /// Name.
    pub name: String,
    /// Its pages.
    pub listing: Listing,
    /// Least and longest time from one pass to the next.
    pub every: (Duration, Duration),
    /// Which table a row is about, over `row`; null: none that matters.
    pub table: Expression,
    /// The object, over `row`.
    pub record: Expression,
    /// Its key, over `row`.
    pub key: Expression,
    /// When it was changed, over `row`.
    pub at: Expression,
    /// How it goes on.
    pub progress: Progress,
    /// It tells of what changes from now on: what was there before is listed. Else it tells of everything.
    pub begins_now: bool,
    /// The answer says that there is no going on from there, over `status`, `headers`, `body`.
    pub expired: Option<Expression>,
}

impl Reading {
    /// The table with this name.
    #[must_use]
    pub fn table(&self, name: &str) -> Option<&Table> {
        self.tables.iter().find(|table| table.name == name)
    }

    /// The stream with this name.
    #[must_use]
    pub fn stream(&self, name: &str) -> Option<&Stream> {
        self.streams.iter().find(|stream| stream.name == name)
    }
}

impl Stream {
    /// True when there is no going on after this answer.
    #[must_use]
    pub fn is_expired(&self, answer: &Answer) -> bool {
        self.expired
            .as_ref()
            .is_some_and(|expired| answer.look(|scope| expired.holds(scope).unwrap_or(false)))
    }

    /// How long the vendor keeps what this goes on by.
    #[must_use]
    pub fn retention(&self) -> Option<Duration> {
        match self.progress {
            Progress::Time { retention, .. } | Progress::Cursor { retention } => retention,
        }
    }
}

/// A time as vendors write it, in milliseconds since 1970: seconds or milliseconds as a number or text, or RFC 3339.
#[must_use]
pub fn instant_ms(value: &Value) -> Option<i64> {
    /// Seconds of the year 5138 and milliseconds of 1973 are beyond what can be meant.
    const SECONDS_BELOW: i64 = 100_000_000_000;
    let scaled = |number: i64| match number {
        0..SECONDS_BELOW => number.checked_mul(1_000),
        SECONDS_BELOW.. => Some(number),
        _ => None,
    };
    match value {
        Value::Number(number) => scaled(number.as_i64()?),
        Value::String(text) => match text.parse::<i64>() {
            Ok(number) => scaled(number),
            Err(_) => Some(text.parse::<jiff::Timestamp>().ok()?.as_millisecond()),
        },
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

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
    fields.finish(problems);
    Some(Table { name: name.to_owned(), list, read, record: record?, key: key?, at })
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
    let pages = fields.required("pages", "{ by: token, token: answer.next_offset }", problems);
    let pages = pages.and_then(|node| read_pages(&node, problems));
    let rows = over(fields, "rows", &["answer"], "answer.data", problems);
    let first = Lookup { line: first?, body: first_body };
    let next = Lookup { line: next?, body: next_body };
    Some(Listing { first, next, pages: pages?, rows: rows? })
}

/// `METHOD /path`, or the same with a body.
fn read_lookup(node: &Node, problems: &mut Problems) -> Option<Lookup> {
    let variables = open_variables(&["key"]);
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
    let mut size = |fields: &mut Fields| {
        let size = fields.required("size", "100", problems).and_then(|node| node.whole(2, problems));
        size.and_then(|size| usize::try_from(size).ok())
    };
    let pages = match by.as_str() {
        "single" => Some(Pages::Single),
        "number" => size(&mut fields).map(|size| Pages::Number { size }),
        "time" => size(&mut fields).map(|size| Pages::Time { size }),
        "last" => over(&mut fields, "more", &["answer"], "answer.has_more", problems)
            .map(|more| Pages::Last { more }),
        "token" => {
            let token = over(&mut fields, "token", &["answer"], "answer.next_offset", problems);
            let more = fields.optional("more");
            let more =
                more.and_then(|node| Expression::compile(&node, &open_variables(&["answer"]), problems));
            token.map(|token| Pages::Token { token, more })
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
