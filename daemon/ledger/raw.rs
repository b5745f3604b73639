//! Entries as PostgreSQL sends them in COPY BINARY, read where they lie: verification and export look at every byte of a ledger.
//!
//! Layout: <https://www.postgresql.org/docs/current/sql-copy.html#id-1.9.3.55.9.4>.

use std::borrow::Cow;

use bytes::{Buf, Bytes};
use futures_util::{Stream, StreamExt};
use jiff::Timestamp;
use jiff::civil::{Date, date};
use serde::Deserialize;
use tokio_postgres::Transaction;

use super::LedgerError;
use super::entry::refs;
use super::head::first_of_month;

/// Signature, flags and extension of the header.
const HEADER_LENGTH: usize = 19;
/// Between 1970 and 2000, in microseconds.
const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

/// An entry as it is stored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RawEntry<'a> {
    /// Place in the ledger.
    pub seq: i64,
    /// First day of the month that it counts to, in days since 2000.
    pub month: i32,
    /// What it records.
    pub kind: &'a str,
    /// Microseconds since 1970.
    pub recorded_at_us: i64,
    /// See [`super::entry::NewEntry::correlation_id`].
    pub correlation_id: Option<&'a str>,
    /// An array of texts, as PostgreSQL sends it.
    refs: &'a [u8],
    /// RFC 8785 bytes.
    pub body: &'a [u8],
    /// Hash of `body`.
    pub leaf: &'a [u8],
}

/// Entries `from` to `to`, in order; each item is one row, to be read by [`RawEntry::read`].
pub async fn entries(
    transaction: &Transaction<'_>,
    (from, to): (i64, i64),
) -> Result<impl Stream<Item = Result<Bytes, LedgerError>> + use<>, LedgerError> {
    let sql = format!(
        "copy (select seq, month, kind, recorded_at, correlation_id, refs, body, leaf from entry
               where seq between {from} and {to} order by seq) to stdout (format binary)"
    );
    let mut first = true;
    let stream = transaction.copy_out(&sql).await?.map(move |row| {
        let mut row = row?;
        if std::mem::take(&mut first) {
            row.advance(HEADER_LENGTH.min(row.len()));
        }
        Ok(row)
    });
    Ok(stream)
}

impl<'a> RawEntry<'a> {
    /// Reads a row; `None` for what ends the copy.
    pub fn read(row: &'a [u8]) -> Result<Option<Self>, LedgerError> {
        let mut fields = Fields(row);
        // -1 is the trailer.
        if row.is_empty() || fields.count() == Some(-1) {
            return Ok(None);
        }
        Self::of_fields(&mut fields)
            .map(Some)
            .ok_or_else(|| LedgerError::Unreadable("a row of entries".into()))
    }

    fn of_fields(fields: &mut Fields<'a>) -> Option<Self> {
        let number = |bytes: &[u8]| Some(i64::from_be_bytes(bytes.try_into().ok()?));
        Some(Self {
            seq: number(fields.next()??)?,
            month: i32::from_be_bytes(fields.next()??.try_into().ok()?),
            kind: std::str::from_utf8(fields.next()??).ok()?,
            recorded_at_us: number(fields.next()??)?.checked_add(POSTGRES_EPOCH_US)?,
            correlation_id: match fields.next()? {
                Some(bytes) => Some(std::str::from_utf8(bytes).ok()?),
                None => None,
            },
            refs: fields.next()??,
            body: fields.next()??,
            leaf: fields.next()??,
        })
    }

    /// What the row says beside its body, where that differs from what the body says: the name of the column.
    #[must_use]
    pub fn mismatch(&self) -> Option<&'static str> {
        let Ok(head) = serde_json::from_slice::<Head<'_>>(self.body) else { return Some("body (no entry)") };
        let recorded_at_us = head.recorded_at.parse::<Timestamp>().ok().map(Timestamp::as_microsecond);
        if head.seq != self.seq {
            Some("seq")
        } else if head.kind != self.kind {
            Some("kind")
        } else if recorded_at_us != Some(self.recorded_at_us) {
            Some("recorded_at")
        } else if head.correlation_id.as_deref() != self.correlation_id {
            Some("correlation_id")
        } else if !self.has_refs(&head.refs()) {
            Some("refs")
        } else {
            None
        }
    }

    /// The first day of the month in which it was recorded, in days since 2000.
    #[must_use]
    pub fn month_recorded(&self) -> i32 {
        let first = Timestamp::from_microsecond(self.recorded_at_us).map(first_of_month).unwrap_or(Date::MIN);
        // Years are few enough for any number.
        (first - date(2000, 1, 1)).get_days()
    }

    /// An array has: dimensions, a flag, the type; for each dimension length and lower bound; then the elements.
    fn has_refs(&self, expected: &[String]) -> bool {
        let elements = match self.refs.get(..4) {
            Some([0, 0, 0, 0]) => return expected.is_empty(),
            Some([0, 0, 0, 1]) => self.refs.get(20..).unwrap_or_default(),
            _ => return false,
        };
        let mut fields = Fields(elements);
        expected.iter().all(|reference| fields.next() == Some(Some(reference.as_bytes())))
            && fields.0.is_empty()
    }
}

/// What of an entry stands in columns, by its body.
#[derive(Debug, Clone, PartialEq)]
pub struct BodyColumns {
    /// Place in the ledger.
    pub seq: i64,
    /// What it records.
    pub kind: String,
    /// When.
    pub recorded_at: Timestamp,
    /// See [`super::entry::NewEntry::correlation_id`].
    pub correlation_id: Option<String>,
    /// See [`refs`].
    pub refs: Vec<String>,
}

/// See [`BodyColumns`]; `None` for what is no entry.
#[must_use]
pub fn body_columns(body: &[u8]) -> Option<BodyColumns> {
    let head = serde_json::from_slice::<Head<'_>>(body).ok()?;
    Some(BodyColumns {
        seq: head.seq,
        recorded_at: head.recorded_at.parse().ok()?,
        correlation_id: head.correlation_id.as_deref().map(str::to_owned),
        refs: head.refs(),
        kind: head.kind.into_owned(),
    })
}

/// Fields of a row that are left.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn count(&mut self) -> Option<i16> {
        let (count, rest) = self.0.split_first_chunk::<2>()?;
        self.0 = rest;
        Some(i16::from_be_bytes(*count))
    }

    /// The next field, `Some(None)` for null; `None` when there is no such thing.
    fn next(&mut self) -> Option<Option<&'a [u8]>> {
        let (length, rest) = self.0.split_first_chunk::<4>()?;
        let length = i32::from_be_bytes(*length);
        if length == -1 {
            self.0 = rest;
            return Some(None);
        }
        let (field, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
        self.0 = rest;
        Some(Some(field))
    }
}

/// What of a body stands in columns, too.
#[derive(Deserialize)]
struct Head<'a> {
    seq: i64,
    #[serde(borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    recorded_at: Cow<'a, str>,
    #[serde(borrow)]
    correlation_id: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    id: Option<Text<'a>>,
    #[serde(default, borrow)]
    target: Option<Text<'a>>,
    #[serde(default, borrow)]
    external_id: Option<Text<'a>>,
    #[serde(default, borrow)]
    subject: Option<Text<'a>>,
    #[serde(default, borrow)]
    subjects: Vec<Cow<'a, str>>,
    #[serde(default, borrow)]
    changes: Vec<Place<'a>>,
}

/// A text, or anything else, which is none.
#[derive(Deserialize)]
#[serde(untagged)]
enum Text<'a> {
    Is(#[serde(borrow)] Cow<'a, str>),
    Other(serde::de::IgnoredAny),
}

/// A row that changed.
#[derive(Deserialize)]
struct Place<'a> {
    #[serde(borrow)]
    key: Cow<'a, str>,
    #[serde(borrow)]
    relation: Cow<'a, str>,
}

impl Head<'_> {
    fn refs(&self) -> Vec<String> {
        let text = |text: &'_ Option<Text<'_>>| match text {
            Some(Text::Is(text)) => Some(text.clone().into_owned()),
            _ => None,
        };
        let (id, target, external_id) = (text(&self.id), text(&self.target), text(&self.external_id));
        let rows = self.changes.iter().map(|place| (&*place.relation, &*place.key));
        if self.kind == "event" {
            let subjects = self.subjects.iter().map(|subject| &**subject);
            return refs(id.as_deref().into_iter().chain(subjects), None, rows);
        }
        let subject = text(&self.subject);
        let ids = id.as_deref().into_iter().chain(subject.as_deref());
        refs(ids, target.as_deref().zip(external_id.as_deref()), std::iter::empty())
    }
}
