//! Where a change stands in its source, and the identity that follows from it (INV-4).

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

/// A byte position in the write-ahead log, printed as PostgreSQL does (`16/B374D848`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// Text that is not an LSN.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an LSN (expected two hexadecimal numbers with a slash, such as 16/B374D848)")]
pub struct InvalidLsn(String);

impl FromStr for Lsn {
    type Err = InvalidLsn;

    fn from_str(text: &str) -> Result<Self, InvalidLsn> {
        let invalid = || InvalidLsn(text.to_owned());
        let (high, low) = text.split_once('/').ok_or_else(invalid)?;
        let high = u32::from_str_radix(high, 16).map_err(|_| invalid())?;
        let low = u32::from_str_radix(low, 16).map_err(|_| invalid())?;
        Ok(Self((u64::from(high) << 32) | u64::from(low)))
    }
}

impl From<Lsn> for postgres_types::PgLsn {
    fn from(lsn: Lsn) -> Self {
        Self::from(lsn.0)
    }
}

impl From<postgres_types::PgLsn> for Lsn {
    fn from(lsn: postgres_types::PgLsn) -> Self {
        Self(lsn.into())
    }
}

/// Which database cluster, on which branch of its history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// `IDENTIFY_SYSTEM.systemid`: survives restarts, differs after `initdb`.
    pub system_identifier: String,
    /// `IDENTIFY_SYSTEM.timeline`: differs after a promotion or a point-in-time recovery.
    pub timeline: u32,
}

/// Where one folded change stands in the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangePosition {
    /// LSN of the commit record, or the slot's consistent point for snapshot rows.
    pub commit_lsn: Lsn,
    /// Counts the row changes of the transaction from 0. Several rows share one LSN, so it is needed (INV-4).
    pub ordinal: u64,
}

/// The identity of an event: the same whenever the source is read again. It begins with the commit LSN, so that ids come in
/// the order of commits and an index on them grows at its end.
#[must_use]
pub fn event_id(
    source: &str,
    cluster: &Cluster,
    position: &ChangePosition,
    event_type: &str,
    id: &str,
) -> String {
    let mut hash = Sha256::new();
    let ordinal = position.ordinal.to_string();
    let timeline = cluster.timeline.to_string();
    let lsn = position.commit_lsn.to_string();
    for part in [source, &cluster.system_identifier, &timeline, &lsn, &ordinal, event_type, id] {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    let digest = hex(hash.finalize().as_slice().get(..12).unwrap_or_default());
    format!("{:016x}{digest}", position.commit_lsn.0)
}

/// Lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or_default();
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 0xF)]).collect()
}

/// SHA-256 of `bytes`, in hexadecimal.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(Sha256::digest(bytes).as_slice())
}
