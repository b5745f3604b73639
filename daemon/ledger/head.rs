//! Where the ledger ends: its tree, and the month in which entries are written.

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use tlog_tiles::tlog::Hash;
use tokio_postgres::GenericClient;

use super::LedgerError;
use super::tree::Tree;

/// See the module's text.
#[derive(Debug, Clone)]
pub struct Head {
    /// The tree over all entries.
    pub tree: Tree,
    /// First day of the month that the last entry counts to.
    pub month: Date,
    /// Keys that have been destroyed so far.
    pub erasures: i64,
    /// When the last entry was recorded.
    pub recorded_at: Timestamp,
}

impl Default for Head {
    fn default() -> Self {
        Self { tree: Tree::default(), month: Date::MIN, erasures: 0, recorded_at: Timestamp::UNIX_EPOCH }
    }
}

impl Head {
    /// Reads it as the ledger has it.
    pub async fn load(client: &impl GenericClient) -> Result<Self, LedgerError> {
        let row = client
            .query_one(
                // Auditors read a view that has no such column as the last one.
                "select size, frontier, month, erasures,
                        nullif(to_jsonb(tree) ->> 'recorded_at', '-infinity')::timestamptz from tree",
                &[],
            )
            .await?;
        let size: i64 = row.try_get(0)?;
        let frontier: Vec<Vec<u8>> = row.try_get(1)?;
        let hashes = frontier.into_iter().map(|hash| <[u8; 32]>::try_from(hash).map(Hash));
        let hashes: Vec<Hash> = hashes
            .collect::<Result<_, _>>()
            .map_err(|_| LedgerError::Unreadable("the tree's frontier".into()))?;
        let size = u64::try_from(size).map_err(|_| LedgerError::Unreadable("the tree's size".into()))?;
        let recorded_at = row.try_get::<_, Option<Timestamp>>(4)?.unwrap_or(Timestamp::UNIX_EPOCH);
        let (month, erasures) = (row.try_get(2)?, row.try_get(3)?);
        Ok(Self { tree: Tree::restore(size, hashes)?, month, erasures, recorded_at })
    }

    /// The month that an entry counts to which is written at `now`: never one before that of the entry before it, whatever the clock
    /// says, so that the entries of a month are next to each other.
    #[must_use]
    pub fn month_at(&self, now: Timestamp) -> Date {
        first_of_month(now).max(self.month)
    }
}

/// The first day of a month.
#[must_use]
pub fn first_of_month(at: Timestamp) -> Date {
    at.to_zoned(TimeZone::UTC).date().first_of_month()
}
