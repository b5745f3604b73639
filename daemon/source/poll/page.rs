//! One page: its request, its records, and what comes behind it.

use serde_json::Value;

use super::cursor::Pass;
use crate::connector::Connector;
use crate::connector::classify::Answer;
use crate::connector::request::Request;
use crate::connector::stream::{Listing, Pages, Stream, Table, instant_ms};
use crate::mapping::expression::EvaluationError;
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
    /// Rows that could not be read, each with the reason.
    pub unreadable: Vec<String>,
    /// Another page comes behind it.
    pub more: bool,
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
    /// The next page is the same one.
    #[error("the vendor gives the same page again and again")]
    Stuck,
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

    /// Takes a page of a stream. `clock_ms`: the vendor's, when it answered; `base_url`: where the system is.
    pub fn take(&mut self, stream: &Stream, answer: &Answer, base_url: &str) -> Result<Page, PageError> {
        let rows = rows_of(&stream.listing, answer)?;
        let mut page = Page::default();
        let mut ends = Vec::with_capacity(rows.len());
        for row in rows {
            match record_of(stream, &row) {
                Ok((key, at_ms, record)) => {
                    ends.push((key, Some(at_ms)));
                    self.newest_ms = self.newest_ms.max(Some(at_ms));
                    page.records.extend(record);
                }
                Err(reason) => page.unreadable.push(reason),
            }
        }
        page.more = self.go_on(&stream.listing, answer, &ends, base_url)?;
        Ok(page)
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
        for object in rows_of(listing, answer)? {
            match as_record(table, object, clock_ms) {
                Ok(record) => {
                    ends.push((record.key.clone(), None));
                    page.records.push(record);
                }
                Err(reason) => page.unreadable.push(reason),
            }
        }
        page.more = self.go_on(listing, answer, &ends, base_url)?;
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
        let scope = Scope::new([("answer", &answer.body)]);
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
            Pages::Token { token, more } => {
                let token = text_of(token.evaluate(&scope)?);
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
            Pages::Number { size } => {
                self.page += 1;
                Ok(rows.len() >= *size)
            }
            Pages::Time { size } => {
                let seconds = |ms: i64| ms.div_euclid(1_000);
                match last.and_then(|(_, at_ms)| *at_ms).filter(|at| seconds(*at) > seconds(self.since_ms)) {
                    Some(at_ms) => (self.since_ms, self.page) = (at_ms, 1),
                    None => self.page += 1,
                }
                Ok(rows.len() >= *size)
            }
            Pages::Link { next, delta } => {
                let next = text_of(next.evaluate(&scope).unwrap_or_default());
                let more = next.is_some();
                let delta =
                    delta.as_ref().and_then(|delta| text_of(delta.evaluate(&scope).unwrap_or_default()));
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
    as_record(table, object, clock_ms)
}

fn as_record(table: &Table, object: Value, clock_ms: i64) -> Result<Record, String> {
    let scope = Scope::new([("record", &object)]);
    let key = table.key.evaluate(&scope).map_err(|error| error.to_string())?;
    let key = text_of(key).ok_or_else(|| format!("an object of `{}` has no key", table.name))?;
    let at_ms = match &table.at {
        Some(at) => {
            let at = at.evaluate(&scope).map_err(|error| error.to_string())?;
            instant_ms(&at).ok_or_else(|| format!("`{}` is not a time", at_text(at.is_null())))?
        }
        None => clock_ms,
    };
    let since = table.since.as_ref().map(|since| since.evaluate(&scope)).transpose();
    let since = since.map_err(|error| error.to_string())?.filter(|since| !since.is_null());
    let since_ms = since.and_then(|since| instant_ms(&since)).unwrap_or(at_ms);
    Ok(Record { table: table.name.clone(), key, at_ms, since_ms, object })
}

fn at_text(is_null: bool) -> &'static str {
    if is_null { "nothing" } else { "what `at` gives" }
}

/// Key and time of a row, and the record when it is about a table.
fn record_of(stream: &Stream, row: &Value) -> Result<(String, i64, Option<Record>), String> {
    let scope = Scope::new([("row", row)]);
    let evaluate = |expression: &crate::mapping::expression::Expression| {
        expression.evaluate(&scope).map_err(|e| e.to_string())
    };
    let at = evaluate(&stream.at)?;
    let at_ms = instant_ms(&at).ok_or_else(|| format!("`{}` is not a time", at_text(at.is_null())))?;
    let row_key = row.get("id").cloned().and_then(text_of);
    let Value::String(table) = evaluate(&stream.table)? else {
        return Ok((row_key.unwrap_or_default(), at_ms, None));
    };
    let key = text_of(evaluate(&stream.key)?).ok_or("a row has no key")?;
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

fn rows_of(listing: &Listing, answer: &Answer) -> Result<Vec<Value>, PageError> {
    match listing.rows.evaluate(&Scope::new([("answer", &answer.body)]))? {
        Value::Array(rows) => Ok(rows),
        _ => Err(PageError::NoRows(listing.rows.text().to_owned())),
    }
}

/// A key or token; what the ledger cannot hold is none.
fn text_of(value: Value) -> Option<String> {
    match value {
        Value::String(text) if !text.is_empty() && !text.contains('\0') => Some(text),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
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
