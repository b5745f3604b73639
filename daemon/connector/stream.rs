//! What can be read of a system: streams of changes, which are polled, and lists of all objects of a kind. Pure.
//!
//! ```yaml
//! tables:                       # objects, by the name that mappings have for them
//!   customer:
//!     list: { request: "GET /v1/customers?limit={per_page}", next: "…&starting_after={last}", page_size: 100, pages: { by: last, more: answer.has_more }, rows: answer.data }
//!     read: "GET /v1/customers/{key}"
//!     record: answer            # the object in the answer to `read`
//!     key: record.id
//! streams:
//!   events:
//!     every: { least_s: 5, most_s: 60 }
//!     request: "GET /v1/events?created[gte]={since}&limit={per_page}"
//!     next: "GET /v1/events?created[gte]={since}&limit={per_page}&starting_after={last}"
//!     page_size: 100            # fewer are asked for where so many are too large to be read
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
use crate::mapping::expression::{EvaluationError, Expression};
use crate::mapping::scope::Scope;
use crate::mapping::template::Template;

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
    /// Since when it is so, over `record`, where it does not say when it was changed: the time of events that reading it makes.
    pub since: Option<Expression>,
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
    /// Rows that are asked for at once (`per_page` in the requests); fewer when so many are too large to be read.
    pub page_size: Option<usize>,
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
        /// The token is a time in seconds since 1970: behind a page that has no end, the next second can be asked for.
        is_time: bool,
    },
    /// By number, from 1; one that is not full is the last.
    Number,
    /// Each page begins at the time of the last row of the one before it, so that rows which move from page to page while they are
    /// read are not passed over; rows of one instant come by number.
    Time,
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
