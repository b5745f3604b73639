//! Where a stream stands, and how a pass over it goes on from page to page. It is kept in the ledger with the events of each page, so
//! that a restart goes on in the midst of a pass.

use std::collections::HashSet;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::connector::stream::{Listing, Pages, Progress, Stream};

/// Late passes are so many times more frequent than how far they go back: a row that comes late by four fifths of that is found.
const LATE_PASSES: u32 = 5;

/// See the module's text. All but `passed_at`, `late_at` and [`Pass::began_at`] is the vendor's clock.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cursor {
    /// Everything up to here has been read, in milliseconds since 1970, but for what comes late.
    pub high_ms: Option<i64>,
    /// The vendor's token, or its address, behind the last page.
    pub token: Option<String>,
    /// The pass that is going on.
    pub pass: Option<Pass>,
    /// When the last whole pass began.
    pub passed_at: Option<Timestamp>,
    /// When the last whole late pass began.
    pub late_at: Option<Timestamp>,
}

/// A way through the pages of a stream or of a list.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pass {
    /// Rows from here on are asked for, in milliseconds since 1970.
    pub since_ms: i64,
    /// Time of the newest row so far.
    pub newest_ms: Option<i64>,
    /// Number of the page that is asked for next, from 1.
    pub page: u64,
    /// Key of the last row so far.
    pub last: Option<String>,
    /// Token or address of the page that is asked for next.
    pub token: Option<String>,
    /// It goes back as far as rows may come late.
    pub late: bool,
    /// When it began.
    pub began_at: Option<Timestamp>,
    /// Pages read so far.
    pub pages: u64,
    /// Rows that are asked for at once; as the connector says when `None`.
    pub per_page: Option<usize>,
    /// Digests of pages, by which it is found out when they go round; a restart begins with none.
    #[serde(skip)]
    pub seen: HashSet<u64>,
}

impl Pass {
    /// Asks for half as many rows at once; false when it is one already, or the connector does not say how many.
    pub fn ask_for_less(&mut self, listing: &Listing) -> bool {
        let Some(size) = self.per_page.or(listing.page_size).filter(|size| *size > 1) else { return false };
        let less = size / 2;
        if matches!(listing.pages, Pages::Number | Pages::Time) {
            // The page that begins no later than the one that was too large.
            let (size, fewer) = (size as u64, less as u64);
            self.page = self.page.saturating_sub(1).saturating_mul(size) / fewer.max(1) + 1;
        }
        self.per_page = Some(less);
        true
    }

    /// A pass that goes on with the second behind the one in which this one is stuck, where pages go on by time.
    #[must_use]
    pub fn next_second(&self, listing: &Listing, now: Timestamp) -> Option<Self> {
        let Pages::Token { is_time: true, .. } = listing.pages else { return None };
        let second = match &self.token {
            Some(token) => token.parse::<i64>().ok()?,
            None => self.since_ms.div_euclid(1_000),
        };
        let token = Some(second.checked_add(1)?.to_string());
        Some(Self { token, per_page: self.per_page, ..Self::new(self.since_ms, now) })
    }

    /// From the first page on.
    #[must_use]
    pub fn new(since_ms: i64, now: Timestamp) -> Self {
        Self { since_ms, page: 1, began_at: Some(now), ..Self::default() }
    }
}

/// Why there is no going on from where a stream stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Expired {
    /// Nothing was read for longer than the vendor keeps it.
    #[error("nothing was read for longer than the vendor keeps what changed")]
    Retention,
    /// The vendor says so.
    #[error("the vendor says that there is no going on from there")]
    Refused,
    /// The same page comes again and again.
    #[error("the vendor gives the same page again and again")]
    Stuck,
    /// More changed in one second than a page has rows.
    #[error("more changed in one second than the vendor gives at once")]
    FullSecond,
}

impl Cursor {
    /// Begins a pass, unless one is going on already. `from_ms`: where a stream begins that tells of everything.
    pub fn begin(&mut self, stream: &Stream, from_ms: i64, now: Timestamp) -> Result<(), Expired> {
        let kept_for = stream.retention();
        let age = self.passed_at.map(|at| elapsed(at, now));
        if kept_for.zip(age).is_some_and(|(kept_for, age)| age >= kept_for) {
            return Err(Expired::Retention);
        }
        if self.pass.is_some() {
            return Ok(());
        }
        let mut pass = match (&stream.progress, self.high_ms) {
            (Progress::Time { late, .. }, None) if stream.begins_now => {
                Pass::new(back(now.as_millisecond(), *late), now)
            }
            (Progress::Time { late, .. }, Some(high)) if self.late_is_due(*late, now) => {
                Pass { late: true, ..Pass::new(back(high, *late), now) }
            }
            (Progress::Time { overlap, .. }, Some(high)) => Pass::new(back(high, *overlap), now),
            (_, None) if stream.begins_now => Pass::new(now.as_millisecond(), now),
            (_, None) => Pass::new(from_ms, now),
            (Progress::Cursor { .. }, Some(high)) => Pass::new(high, now),
        };
        if matches!(stream.progress, Progress::Cursor { .. }) {
            pass.token.clone_from(&self.token);
        }
        self.pass = Some(pass);
        Ok(())
    }

    fn late_is_due(&self, late: Duration, now: Timestamp) -> bool {
        self.late_at.is_none_or(|at| elapsed(at, now) >= late / LATE_PASSES)
    }

    /// Ends the pass that went through its last page. `clock_ms`: the vendor's, when it answered.
    pub fn end(&mut self, stream: &Stream, clock_ms: i64) {
        let Some(pass) = self.pass.take() else { return };
        // A row of the future would hide whatever comes until then.
        let newest = pass.newest_ms.map(|newest| newest.min(clock_ms));
        match stream.progress {
            Progress::Time { .. } => {
                let began = if stream.begins_now { clock_ms } else { pass.since_ms };
                self.high_ms = Some(self.high_ms.unwrap_or(began).max(newest.unwrap_or_default()));
            }
            Progress::Cursor { .. } => {
                self.high_ms = newest.or(self.high_ms).or(Some(pass.since_ms));
                self.token = pass.token.or(self.token.take());
            }
        }
        self.passed_at = pass.began_at;
        if pass.late {
            self.late_at = pass.began_at;
        }
    }
}

fn back(from_ms: i64, by: Duration) -> i64 {
    from_ms.saturating_sub(i64::try_from(by.as_millis()).unwrap_or(i64::MAX)).max(0)
}

fn elapsed(at: Timestamp, now: Timestamp) -> Duration {
    now.duration_since(at).try_into().unwrap_or_default()
}
