//! Entries as PostgreSQL sends them in COPY BINARY, read where they lie: verification and export look at every byte of a ledger.
//!
//! Layout: <https://www.postgresql.org/docs/current/sql-copy.html#id-1.9.3.55.9.4>.

use std::borrow::Cow;
use std::marker::PhantomData;

use bytes::{Buf, Bytes};
use futures_util::{Stream, StreamExt};
use jiff::Timestamp;
use jiff::civil::{Date, date};
use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
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
        let recorded_at_us = head.recorded_at.0.parse::<Timestamp>().ok().map(Timestamp::as_microsecond);
        if head.seq != self.seq {
            Some("seq")
        } else if head.kind.0 != self.kind {
            Some("kind")
        } else if recorded_at_us != Some(self.recorded_at_us) {
            Some("recorded_at")
        } else if head.correlation_id.as_ref().map(|id| &*id.0) != self.correlation_id {
            Some("correlation_id")
        } else if !self.has_refs(&head) {
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

    /// The array has exactly what the body says, in order. It has: dimensions, a flag, the type; for each dimension length and lower
    /// bound; then the elements.
    fn has_refs(&self, head: &Head<'_>) -> bool {
        let elements = match self.refs.get(..4) {
            Some([0, 0, 0, 0]) => &[],
            Some([0, 0, 0, 1]) => self.refs.get(20..).unwrap_or_default(),
            _ => return false,
        };
        let is = |element: &[u8], (whose, key): (&str, Option<&str>)| match key {
            None => element == whose.as_bytes(),
            Some(key) => {
                element.len() == whose.len() + 1 + key.len()
                    && element.starts_with(whose.as_bytes())
                    && element.get(whose.len()) == Some(&b'/')
                    && element.ends_with(key.as_bytes())
            }
        };
        let (mut fields, mut before) = (Fields(elements), None);
        while let Some(Some(element)) = fields.next() {
            if before >= Some(element) || !head.references().any(|reference| is(element, reference)) {
                // Only where a text was changed to be stored is the long way needed.
                return self.equals_refs(elements, &head.refs());
            }
            before = Some(element);
        }
        let stands = |reference| {
            let mut fields = Fields(elements);
            std::iter::from_fn(|| fields.next().flatten()).any(|element| is(element, reference))
        };
        (fields.0.is_empty() && head.references().all(stands)) || self.equals_refs(elements, &head.refs())
    }

    fn equals_refs(&self, elements: &[u8], expected: &[String]) -> bool {
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
        recorded_at: head.recorded_at.0.parse().ok()?,
        correlation_id: head.correlation_id.as_ref().map(|id| id.0.to_string()),
        refs: head.refs(),
        kind: head.kind.0.into_owned(),
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

/// What of a body stands in columns, too. Texts without escapes are not copied.
#[derive(Deserialize)]
struct Head<'a> {
    seq: i64,
    #[serde(borrow)]
    kind: Text<'a>,
    #[serde(borrow)]
    recorded_at: Text<'a>,
    #[serde(borrow)]
    correlation_id: Option<Text<'a>>,
    #[serde(default, borrow)]
    id: Lenient<'a>,
    #[serde(default, borrow)]
    target: Lenient<'a>,
    #[serde(default, borrow)]
    external_id: Lenient<'a>,
    #[serde(default, borrow)]
    subject: Lenient<'a>,
    #[serde(default, borrow)]
    subjects: Vec<Text<'a>>,
    #[serde(default, borrow)]
    changes: Vec<Place<'a>>,
}

/// `Cow` borrows in serde only where it is a field itself.
#[derive(Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// A text, or anything else, which is none.
#[derive(Default)]
struct Lenient<'a>(Option<Cow<'a, str>>);

impl<'de: 'a, 'a> Deserialize<'de> for Lenient<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LenientVisitor(PhantomData))
    }
}

struct LenientVisitor<'a>(PhantomData<&'a ()>);

impl<'de: 'a, 'a> Visitor<'de> for LenientVisitor<'a> {
    type Value = Lenient<'a>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("any value")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Lenient<'a>, E> {
        Ok(Lenient(Some(Cow::Borrowed(text))))
    }

    fn visit_str<E>(self, text: &str) -> Result<Lenient<'a>, E> {
        Ok(Lenient(Some(Cow::Owned(text.to_owned()))))
    }

    fn visit_unit<E>(self) -> Result<Lenient<'a>, E> {
        Ok(Lenient(None))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Lenient<'a>, E> {
        Ok(Lenient(None))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Lenient<'a>, E> {
        Ok(Lenient(None))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Lenient<'a>, E> {
        Ok(Lenient(None))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Lenient<'a>, E> {
        Ok(Lenient(None))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Lenient<'a>, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Lenient(None))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Lenient<'a>, A::Error> {
        while members.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Lenient(None))
    }
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
    /// What the references of the entry are made of: ids by themselves, and keys behind whose they are. See [`refs`].
    fn references(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        let is_event = self.kind.0 == "event";
        let own = |text: &'_ Lenient<'_>| text.0.is_some();
        let ids = [&self.id, &self.subject].into_iter().filter(move |text| own(text));
        let ids = ids.take(if is_event { 1 } else { 2 }).filter_map(|text| text.0.as_deref());
        let subjects = self.subjects.iter().filter(move |_| is_event).map(|subject| &*subject.0);
        let remote = self.target.0.as_deref().zip(self.external_id.0.as_deref()).filter(|_| !is_event);
        let rows = self.changes.iter().filter(move |_| is_event).map(|place| (&*place.relation, &*place.key));
        let keys = remote.into_iter().chain(rows).map(|(whose, key)| (whose, Some(key)));
        ids.chain(subjects).map(|id| (id, None)).chain(keys)
    }

    fn refs(&self) -> Vec<String> {
        let ids = self.references().filter_map(|(id, key)| key.is_none().then_some(id));
        let keys = self.references().filter_map(|(whose, key)| Some((whose, key?)));
        refs(ids, None, keys)
    }
}
