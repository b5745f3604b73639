//! Proves that the ledger is what was written: every body hashes to its leaf, every leaf is in the tree, none is missing, and the tree
//! is the one whose heads were signed and kept elsewhere.
//!
//! What is inside the database can be made to fit by whoever owns it. Only what is outside tells that it was: checkpoints, and the
//! leaves that were published with them, which name the first entry that is another one than then.

use std::collections::BTreeMap;

use tlog_tiles::tlog::Hash;
use tokio_postgres::{Client, IsolationLevel, Transaction};

use super::LedgerError;
use super::hashes::root_at;
use super::walk::Walk;

/// What verification found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Everything holds.
    Sound {
        /// Entries covered.
        size: u64,
        /// Tree head, in hexadecimal.
        root: String,
        /// Checkpoints that it agrees with.
        checkpoints: usize,
        /// The first leaf that was published and is not that of an entry, although the checkpoints agree with the ledger.
        misprinted: Option<u64>,
        /// Entries that lie in files; of them the hashes were verified.
        archived: u64,
    },
    /// Something was changed.
    Tampered {
        /// First entry that does not hold.
        seq: i64,
        /// What is wrong with it.
        what: String,
    },
    /// Entries are missing, or there are more than the tree covers.
    Incomplete {
        /// First entry expected and not found, or found and not covered.
        seq: i64,
        /// What is wrong.
        what: String,
    },
}

impl Verdict {
    /// Exit code of `tailwater ledger verify`.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Sound { .. } => 0,
            Self::Tampered { .. } => 1,
            Self::Incomplete { .. } => 2,
        }
    }

    pub(super) fn tampered(seq: u64, what: impl Into<String>) -> Self {
        Self::Tampered { seq: i64::try_from(seq).unwrap_or(i64::MAX), what: what.into() }
    }

    /// A checkpoint covers more than there is.
    pub(super) fn cut(covered: u64, size: u64) -> Self {
        Self::incomplete(
            size + 1,
            format!("missing; a checkpoint covers {covered} entries, the ledger has {size}"),
        )
    }

    pub(super) fn incomplete(seq: u64, what: impl Into<String>) -> Self {
        Self::Incomplete { seq: i64::try_from(seq).unwrap_or(i64::MAX), what: what.into() }
    }
}

/// What is known from outside the database. Signatures have been verified.
#[derive(Default)]
pub struct Evidence<'a> {
    /// Tree heads by size.
    pub checkpoints: BTreeMap<u64, Hash>,
    /// The leaf of an entry as it was published, by `seq`.
    pub leaf: Option<&'a mut (dyn FnMut(u64) -> Option<Hash> + Send)>,
}

/// Entries `from` to `to`; to the end when `None`. What is signed before and behind them is where the walk begins and ends.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    /// First.
    pub from: u64,
    /// Last.
    pub to: Option<u64>,
}

impl Span {
    /// All entries.
    pub const ALL: Self = Self { from: 1, to: None };
}

/// Verifies entries of the ledger as of one instant; `progress` is told every thousand.
pub async fn verify(
    client: &mut Client,
    span: Span,
    evidence: Evidence<'_>,
    progress: impl FnMut(u64, u64),
) -> Result<Verdict, LedgerError> {
    let begun = client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).start();
    verify_within(&begun.await?, span, evidence, progress).await
}

/// The same as a transaction sees the ledger.
pub async fn verify_within(
    transaction: &Transaction<'_>,
    span: Span,
    evidence: Evidence<'_>,
    progress: impl FnMut(u64, u64),
) -> Result<Verdict, LedgerError> {
    let row = transaction.query_one("select size, root from tree", &[]).await?;
    let (size, root): (i64, &[u8]) = (row.try_get(0)?, row.try_get(1)?);
    let size = u64::try_from(size).map_err(|_| LedgerError::Unreadable("the tree's size".into()))?;
    let to = span.to.unwrap_or(size);
    if let Some((newest, _)) = evidence.checkpoints.last_key_value().filter(|(newest, _)| **newest > size)
        && to.max(span.from) > size
    {
        return Ok(Verdict::cut(*newest, size));
    }
    if span.from == 0 || to > size || span.from > to + 1 {
        return Err(LedgerError::NotThere(to.max(span.from)));
    }
    let from = proven_before(transaction, &evidence, span.from).await? + 1;
    // What is signed behind the range proves it; what was changed in between is found there.
    let signed = evidence.checkpoints.range(to..=size).next().map(|(signed, _)| *signed);
    let to = if evidence.checkpoints.is_empty() { to } else { signed.unwrap_or(size) };
    let mut walk = Walk::begin(transaction, evidence, from, to).await?;
    if let Some(verdict) = walk.entries(transaction, progress).await? {
        return Ok(verdict);
    }
    if to == size && walk.root().0.as_slice() != root {
        return Ok(walk.astray(size, "the entries do not hash to the tree head"));
    }
    walk.finish(transaction, size).await
}

/// Size of the largest checkpoint before entry `from` that the tree agrees with: what was changed behind it is found, and named, although
/// it stands before `from`. Where nothing is known from outside, the tree is taken as it is up to `from`.
async fn proven_before(
    transaction: &Transaction<'_>,
    evidence: &Evidence<'_>,
    from: u64,
) -> Result<u64, LedgerError> {
    if evidence.checkpoints.is_empty() {
        return Ok(from - 1);
    }
    let before = evidence.checkpoints.range(1..from);
    let before: Vec<(u64, Hash)> = before.map(|(size, root)| (*size, *root)).collect();
    // Behind the first that it does not agree with there is none that it does.
    let (mut agreed, mut rest) = (0, before.as_slice());
    while let Some((size, root)) = rest.get(rest.len() / 2) {
        let (earlier, later) = rest.split_at(rest.len() / 2);
        let found = match root_at(transaction, *size).await {
            // Something is missing, and that is found when it is gone through.
            Err(LedgerError::NotThere(_)) => None,
            found => Some(found?),
        };
        if found == Some(*root) {
            (agreed, rest) = (*size, later.get(1..).unwrap_or_default());
        } else {
            rest = earlier;
        }
    }
    Ok(agreed)
}
