//! One page: its request, its records, and what comes behind it.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::Value;

use super::cursor::Pass;
use crate::bounds::{CLOCK_SKEW_S, ID_BYTES, PAGES_REMEMBERED, TOKEN_BYTES, is_id};
use crate::connector::Connector;
use crate::connector::classify::{Answer, Flaw};
use crate::connector::request::Request;
use crate::connector::stream::{Listing, Pages, Stream, Table, instant_ms};
use crate::mapping::expression::{EvaluationError, Expression};
use crate::mapping::scope::Scope;

/// An object as a system tells of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Table of the mapping.
    pub table: String,
    /// Key of the object at the system.
    pub key: String,
    /// When it was changed, or read, in milliseconds since 1970 of the vendor's clock.
    pub at_ms: i64,
    /// Since when it is so, as far as it says.
    pub since_ms: i64,
    /// The object.
    pub object: Value,
}

/// What an answer says.
#[derive(Debug, Default, PartialEq)]
pub struct Page {
    /// Records, in the order of the answer.
    pub records: Vec<Record>,
    /// Rows that could not be read.
    pub unreadable: Vec<Unreadable>,
    /// Another page comes behind it.
    pub more: bool,
}

/// A row that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// Its table, or the stream where it does not say.
    pub place: String,
    /// Its key, or a digest of it where it has none.
    pub key: String,
    /// Why.
    pub reason: String,
}

/// An answer that says nothing that could be gone by.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PageError {
    /// An expression of the connector file does not fit the answer.
    #[error(transparent)]
    Evaluation(#[from] EvaluationError),
    /// There is no list of rows in it.
    #[error("`{0}` gives no list of rows")]
    NoRows(String),
    /// There is no answer to go by.
    #[error("status {status}, and the answer is {}", .flaw.as_str())]
    Flawed {
        /// Of HTTP.
        status: u16,
        /// What is wrong with it.
        flaw: Flaw,
    },
    /// The next page is the same one, or one that came before.
    #[error("the vendor gives the same page again and again")]
    Stuck,
    /// What goes on to the next page is longer than any token.
    #[error("the token of the next page has {0} bytes")]
    Token(usize),
    /// The address of the next page is not at the system.
    #[error("the address of the next page is not one of this system")]
    Elsewhere,
}

impl Pass {
    /// The request for its next page. `step`: what it is for.
    pub fn request(
        &self,
        step: &str,
        listing: &Listing,
        connector: &Connector,
    ) -> Result<Request, EvaluationError> {
        let line = if self.is_first() { &listing.first } else { &listing.next };
        let seconds = self.since_ms.div_euclid(1_000);
        let text = jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::UNIX_EPOCH).to_string();
        let optional = |text: &Option<String>| text.clone().map_or(Value::Null, Value::String);
        let values = [
            ("since", Value::from(seconds)),
            ("since_text", Value::from(text)),
            ("last", optional(&self.last)),
            ("token", optional(&self.token)),
            ("page", Value::from(self.page)),
            ("per_page", Value::from(self.size(listing))),
        ];
        let values = values.iter().map(|(name, value)| (*name, value));
        let scope = Scope::new(values.chain([("settings", &connector.set)]));
        let request = line.request(step, connector.encoding, &scope);
        match (&listing.pages, &self.token) {
            // The address is taken as the vendor gave it.
            (Pages::Link { .. }, Some(path)) => Ok(Request { path: path.clone(), ..request? }),
            _ => request,
        }
    }

    fn is_first(&self) -> bool {
        self.page <= 1 && self.last.is_none() && self.token.is_none()
    }

    fn size(&self, listing: &Listing) -> usize {
        self.per_page.or(listing.page_size).unwrap_or(usize::from(u8::MAX))
    }

    /// Takes a page of a stream. `now_ms`: our clock; `base_url`: where the system is.
    pub fn take(
        &mut self,
        stream: &Stream,
        answer: &Answer,
        (now_ms, base_url): (i64, &str),
    ) -> Result<Page, PageError> {
        let rows = rows_of(&stream.listing, answer)?;
        let hash = hash_of(&rows, self.since_ms);
        let mut page = Page::default();
        let mut ends = Vec::with_capacity(rows.len());
        for row in rows {
            match record_of(stream, &row, now_ms) {
                Ok((key, at_ms, record)) => {
                    ends.push((key, Some(at_ms)));
                    self.newest_ms = self.newest_ms.max(Some(at_ms));
                    page.records.extend(record);
                }
                Err(reason) => {
                    let unreadable = named(stream, &row, reason);
                    // It is a row of the page all the same.
                    ends.push((unreadable.key.clone(), None));
                    page.unreadable.push(unreadable);
                }
            }
        }
        page.more = self.go_on(&stream.listing, answer, &ends, base_url)?;
        self.is_new(&page, hash)?;
        Ok(page)
    }

    /// Pages that go round are found out: one that has come before in this pass has nothing behind it.
    fn is_new(&mut self, page: &Page, hash: Option<u64>) -> Result<(), PageError> {
        let Some(hash) = hash.filter(|_| self.seen.len() < PAGES_REMEMBERED) else { return Ok(()) };
        if self.seen.insert(hash) || !page.more { Ok(()) } else { Err(PageError::Stuck) }
    }

    /// Takes a page of a list of all objects.
    pub fn take_listed(
        &mut self,
        table: &Table,
        listing: &Listing,
        answer: &Answer,
        (clock_ms, base_url): (i64, &str),
    ) -> Result<Page, PageError> {
        let mut page = Page::default();
        let mut ends = Vec::new();
        let rows = rows_of(listing, answer)?;
        let hash = hash_of(&rows, self.since_ms);
        for object in rows {
            let digest = digest(&object);
            match as_record(table, object, clock_ms) {
                Ok(record) => {
                    ends.push((record.key.clone(), None));
                    page.records.push(record);
                }
                Err((key, reason)) => {
                    let (place, key) = (table.name.clone(), key.unwrap_or(digest));
                    ends.push((key.clone(), None));
                    page.unreadable.push(Unreadable { place, key, reason });
                }
            }
        }
        page.more = self.go_on(listing, answer, &ends, base_url)?;
        self.is_new(&page, hash)?;
        Ok(page)
    }

    /// Moves on to the next page; false when there is none.
    fn go_on(
        &mut self,
        listing: &Listing,
        answer: &Answer,
        rows: &[(String, Option<i64>)],
        base_url: &str,
    ) -> Result<bool, PageError> {
        self.pages += 1;
        let (size, per_page) = (self.size(listing), Value::from(self.size(listing)));
        let scope = Scope::new([("answer", &answer.body), ("per_page", &per_page)]);
        let last = rows.last();
        match &listing.pages {
            Pages::Single => Ok(false),
            Pages::Last { more } => {
                let more = more.holds(&scope)?;
                let last = last.map(|(key, _)| key.clone());
                // Without a row there is nothing to go on by.
                if more && (last.is_none() || last == self.last) {
                    return Err(PageError::Stuck);
                }
                self.last = last;
                Ok(more)
            }
            Pages::Token { token, more, .. } => {
                let token = token_of(token.evaluate(&scope)?)?;
                let more = match more {
                    Some(more) => more.holds(&scope)?,
                    None => token.is_some(),
                };
                if more && (token.is_none() || token == self.token) {
                    return Err(PageError::Stuck);
                }
                if token.is_some() {
                    self.token = token;
                }
                Ok(more)
            }
            Pages::Number => {
                self.page += 1;
                Ok(rows.len() >= size)
            }
            Pages::Time => {
                let seconds = |ms: i64| ms.div_euclid(1_000);
                let newest = rows.iter().rev().find_map(|(_, at_ms)| *at_ms);
                match newest.filter(|at| seconds(*at) > seconds(self.since_ms)) {
                    Some(at_ms) => (self.since_ms, self.page) = (at_ms, 1),
                    None => self.page += 1,
                }
                Ok(rows.len() >= size)
            }
            Pages::Link { next, delta } => {
                let next = token_of(next.evaluate(&scope).unwrap_or_default())?;
                let more = next.is_some();
                let delta = delta.as_ref().map(|delta| token_of(delta.evaluate(&scope).unwrap_or_default()));
                let delta = delta.transpose()?.flatten();
                if let Some(address) = next.or(delta) {
                    let path = local_path(&address, base_url).ok_or(PageError::Elsewhere)?;
                    if more && self.token.as_ref() == Some(&path) {
                        return Err(PageError::Stuck);
                    }
                    self.token = Some(path);
                }
                Ok(more)
            }
        }
    }
}

/// The answer to `read`: the object, as it was when the vendor answered.
pub fn read_record(table: &Table, answer: &Answer, clock_ms: i64) -> Result<Record, String> {
    let scope = Scope::new([("answer", &answer.body)]);
    let object = table.record.evaluate(&scope).map_err(|error| error.to_string())?;
    as_record(table, object, clock_ms).map_err(|(_, reason)| reason)
}

/// The record that an object is; else its key, as far as it has one, and what is wrong.
fn as_record(table: &Table, object: Value, clock_ms: i64) -> Result<Record, (Option<String>, String)> {
    let scope = Scope::new([("record", &object)]);
    let key = table.key.evaluate(&scope).map_err(|error| (None, error.to_string()))?;
    let key = key_of(key, &table.name).map_err(|reason| (None, reason))?;
    let wrong = |error: EvaluationError| (Some(key.clone()), error.to_string());
    let at_ms = match &table.at {
        Some(at) => {
            let at = at.evaluate(&scope).map_err(wrong)?;
            let no_time = || (Some(key.clone()), format!("`{}` is not a time", at_text(at.is_null())));
            believed(instant_ms(&at).ok_or_else(no_time)?, clock_ms)
        }
        None => clock_ms,
    };
    let since = table.since.as_ref().map(|since| since.evaluate(&scope)).transpose();
    let since = since.map_err(wrong)?.filter(|since| !since.is_null());
    let since_ms = since.and_then(|since| instant_ms(&since)).map_or(at_ms, |ms| believed(ms, clock_ms));
    Ok(Record { table: table.name.clone(), key, at_ms, since_ms, object })
}

/// What happened in the future has happened now: else whatever happens until then would be older.
fn believed(at_ms: i64, now_ms: i64) -> i64 {
    if at_ms > now_ms.saturating_add(CLOCK_SKEW_S * 1_000) { now_ms } else { at_ms }
}

fn at_text(is_null: bool) -> &'static str {
    if is_null { "nothing" } else { "what `at` gives" }
}

/// Key and time of a row, and the record when it is about a table.
fn record_of(stream: &Stream, row: &Value, now_ms: i64) -> Result<(String, i64, Option<Record>), String> {
    let scope = Scope::new([("row", row)]);
    let evaluate = |expression: &Expression| expression.evaluate(&scope).map_err(|e| e.to_string());
    let at = evaluate(&stream.at)?;
    let at_ms = instant_ms(&at).ok_or_else(|| format!("`{}` is not a time", at_text(at.is_null())))?;
    let at_ms = believed(at_ms, now_ms);
    let row_key = row.get("id").cloned().and_then(text_of);
    let Value::String(table) = evaluate(&stream.table)? else {
        return Ok((row_key.unwrap_or_default(), at_ms, None));
    };
    let key = key_of(evaluate(&stream.key)?, &table)?;
    let object = evaluate(&stream.record)?;
    if !object.is_object() {
        return Err("a record is not an object".into());
    }
    Ok((
        row_key.unwrap_or_else(|| key.clone()),
        at_ms,
        Some(Record { table, key, at_ms, since_ms: at_ms, object }),
    ))
}

/// Tells a page from others; nothing of one without rows. Where pages go by time, rows of one instant come once more when the time moves
/// on to it.
fn hash_of(rows: &[Value], since_ms: i64) -> Option<u64> {
    let mut hasher = DefaultHasher::new();
    since_ms.hash(&mut hasher);
    rows.iter().for_each(|row| row.to_string().hash(&mut hasher));
    (!rows.is_empty()).then(|| hasher.finish())
}

/// A row that cannot be read, by the best name that it has.
fn named(stream: &Stream, row: &Value, reason: String) -> Unreadable {
    let scope = Scope::new([("row", row)]);
    let text = |expression: &Expression| expression.evaluate(&scope).ok().and_then(text_of);
    let key = text(&stream.key).or_else(|| row.get("id").cloned().and_then(text_of));
    Unreadable {
        place: text(&stream.table).unwrap_or_else(|| stream.name.clone()),
        key: key.unwrap_or_else(|| digest(row)),
        reason,
    }
}

fn digest(row: &Value) -> String {
    let digest = crate::event::sha256_hex(row.to_string().as_bytes());
    format!("sha256 {}", digest.get(..16).unwrap_or_default())
}

fn rows_of(listing: &Listing, answer: &Answer) -> Result<Vec<Value>, PageError> {
    if let Some(flaw) = answer.flaw {
        return Err(PageError::Flawed { status: answer.status, flaw });
    }
    match listing.rows.evaluate(&Scope::new([("answer", &answer.body)]))? {
        Value::Array(rows) => Ok(rows),
        _ => Err(PageError::NoRows(listing.rows.text().to_owned())),
    }
}

/// A key; what is no id is none.
fn text_of(value: Value) -> Option<String> {
    let text = match value {
        Value::String(text) => text,
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    Some(text).filter(|text| is_id(text))
}

fn key_of(value: Value, table: &str) -> Result<String, String> {
    let bytes = value.as_str().map_or(0, str::len);
    if bytes > ID_BYTES {
        return Err(format!("the id of an object of `{table}` has {bytes} bytes; {ID_BYTES} is the most"));
    }
    text_of(value).ok_or_else(|| format!("an object of `{table}` has no key"))
}

/// A token or an address.
fn token_of(value: Value) -> Result<Option<String>, PageError> {
    match value {
        Value::String(text) if text.len() > TOKEN_BYTES => Err(PageError::Token(text.len())),
        Value::String(text) => Ok(Some(text).filter(|text| !text.is_empty() && !text.contains('\0'))),
        Value::Number(number) => Ok(Some(number.to_string())),
        _ => Ok(None),
    }
}

/// Path and query of an address, when it is one of the system: credentials go nowhere else.
#[must_use]
pub fn local_path(address: &str, base_url: &str) -> Option<String> {
    let base = base_url.trim_end_matches('/');
    let path = match address.strip_prefix(base) {
        Some(path) => path,
        None if address.starts_with('/') && !address.starts_with("//") => address,
        None => return None,
    };
    let odd = path.chars().any(|c| c.is_control() || c == ' ' || c == '\\');
    (path.starts_with('/') && !odd).then(|| path.to_owned())
}
