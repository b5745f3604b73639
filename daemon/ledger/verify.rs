//! Proves that the ledger is what was written: every body hashes to its leaf, every leaf is in the tree, none is missing, and the tree
//! is the one whose heads were signed and kept elsewhere.
//!
//! What is inside the database can be made to fit by whoever owns it. Only what is outside tells that it was: checkpoints, and the
//! leaves that were published with them, which name the first entry that is another one than then.

use std::collections::BTreeMap;

use futures_util::{StreamExt, pin_mut};
use tlog_tiles::tlog::{Hash, check_tree, record_hash};
use tokio_postgres::{Client, IsolationLevel, Transaction};

use super::LedgerError;
use super::archive::{ArchiveNote, archive_note, kept_bodies, leaves_from, ranges};
use super::hashes::{consistency, tree_at};
use super::head::Head;
use super::raw::{RawEntry, entries};
use super::tree::{Subtree, Tree};
use crate::event::hex;

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

    fn tampered(seq: u64, what: impl Into<String>) -> Self {
        Self::Tampered { seq: i64::try_from(seq).unwrap_or(i64::MAX), what: what.into() }
    }

    fn incomplete(seq: u64, what: impl Into<String>) -> Self {
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

/// Entries `from` to `to`; to the end when `None`.
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
    let newest = evidence.checkpoints.last_key_value().map_or(0, |(size, _)| *size);
    if newest > size {
        let what = format!("missing; a checkpoint covers {newest} entries, the ledger has {size}");
        return Ok(Verdict::incomplete(size + 1, what));
    }
    let to = span.to.unwrap_or(size);
    if span.from == 0 || to > size || span.from > to + 1 {
        return Err(LedgerError::NotThere(to.max(span.from)));
    }
    let mut walk = Walk::begin(transaction, evidence, span.from, to).await?;
    if let Some(verdict) = walk.entries(transaction, progress).await? {
        return Ok(verdict);
    }
    if to == size && walk.tree.root().0.as_slice() != root {
        return Ok(walk.astray(size, "the entries do not hash to the tree head"));
    }
    walk.finish(transaction, size).await
}

/// Goes through entries, and holds each against everything that is known of it.
struct Walk<'a> {
    from: u64,
    to: u64,
    evidence: Evidence<'a>,
    tree: Tree,
    /// Of the entry before, in days of PostgreSQL.
    month: i32,
    /// From the first entry on whose leaf is another one than was published: the first such entry, and the tree of what was published.
    published: Option<(u64, Tree)>,
    /// The last size at which a checkpoint agreed.
    agreed: u64,
    agreements: usize,
    misprinted: Option<u64>,
    /// Entries of which only the hash is there.
    archived: u64,
    /// From where to where these go.
    ranges: Vec<(u64, u64)>,
    /// What entries say of them, in order.
    noted: Vec<ArchiveNote>,
    /// Subtrees that were kept, and not seen yet.
    subtrees: BTreeMap<(u8, u64), Hash>,
}

impl<'a> Walk<'a> {
    async fn begin(
        transaction: &Transaction<'_>,
        evidence: Evidence<'a>,
        from: u64,
        to: u64,
    ) -> Result<Self, LedgerError> {
        let tree = if from == 1 { Tree::default() } else { tree_at(transaction, from - 1).await? };
        let subtrees = if from == 1 { kept_subtrees(transaction).await? } else { BTreeMap::new() };
        let (published, agreed) = (None, from - 1);
        Ok(Self {
            from,
            to,
            evidence,
            tree,
            month: i32::MIN,
            published,
            agreed,
            agreements: 0,
            misprinted: None,
            archived: 0,
            ranges: Vec::new(),
            noted: Vec::new(),
            subtrees,
        })
    }

    /// Goes through all of them; gives the first thing that is wrong. What lies in files and what is here may take turns.
    async fn entries(
        &mut self,
        transaction: &Transaction<'_>,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<Option<Verdict>, LedgerError> {
        let before_all = "select exists (select from entry where seq < 1)";
        if transaction.query_one(before_all, &[]).await?.try_get(0)? {
            return Ok(Some(Verdict::tampered(1, "there are entries before it")));
        }
        self.ranges = ranges(transaction).await?;
        for (first, last) in self.ranges.clone() {
            if last <= self.tree.size() || first > self.to {
                continue;
            }
            if let Some(verdict) = self.stored(transaction, Some(first - 1), &mut progress).await? {
                return Ok(Some(verdict));
            }
            if let Some(verdict) = self.archived(transaction, (first, last.min(self.to))).await? {
                return Ok(Some(verdict));
            }
        }
        self.stored(transaction, None, &mut progress).await
    }

    /// Entries in the table, up to `last`, or to the end.
    async fn stored(
        &mut self,
        transaction: &Transaction<'_>,
        last: Option<u64>,
        progress: &mut impl FnMut(u64, u64),
    ) -> Result<Option<Verdict>, LedgerError> {
        let end = last.unwrap_or(self.to);
        if last.is_some() && self.tree.size() >= end {
            return Ok(None);
        }
        // What lies behind the end of the tree is looked for, too.
        let is_end = last.is_none() && self.to == self.size(transaction).await?;
        let bound = if is_end { i64::MAX } else { signed(end) };
        let rows = entries(transaction, (signed(self.tree.size() + 1), bound)).await?;
        pin_mut!(rows);
        while let Some(row) = rows.next().await {
            let row = row?;
            let Some(entry) = RawEntry::read(&row)? else { continue };
            if let Some(verdict) = self.entry(&entry) {
                return Ok(Some(verdict));
            }
            if self.tree.size().is_multiple_of(1000) {
                progress(self.tree.size(), self.to);
            }
        }
        let next = self.tree.size() + 1;
        let missing = || Verdict::incomplete(next, format!("missing; the tree covers {} entries", self.to));
        Ok((next <= end).then(missing))
    }

    /// Of entries that lie in files only the hashes are here, and bodies of some: they are held against what is known from outside all the same.
    async fn archived(
        &mut self,
        transaction: &Transaction<'_>,
        (first, last): (u64, u64),
    ) -> Result<Option<Verdict>, LedgerError> {
        let sql = "select min(seq) from entry where seq between $1 and $2";
        let row = transaction.query_one(sql, &[&signed(first), &signed(last)]).await?;
        if let Some(seq) = row.try_get::<_, Option<i64>>(0)? {
            let what = "it is in the table, and lies in a file as well";
            return Ok(Some(Verdict::Tampered { seq, what: what.into() }));
        }
        while self.tree.size() < last {
            let next = self.tree.size() + 1;
            let parts = leaves_from(transaction, next).await?;
            let end = parts
                .last()
                .map_or(next, |(first, leaves)| first + u64::try_from(leaves.len()).unwrap_or_default());
            let kept = kept_bodies(transaction, (next, end)).await?;
            for (seq, leaf) in parts.into_iter().flat_map(|(first, leaves)| (first..).zip(leaves)) {
                if !(next..=last).contains(&seq) {
                    continue;
                }
                let body = kept.get(&seq);
                if body.is_some_and(|body| record_hash(body) != leaf) {
                    return Ok(Some(
                        self.first(Verdict::tampered(seq, "what is kept of it does not hash to its leaf")),
                    ));
                }
                self.noted.extend(body.and_then(|body| archive_note(body)));
                if let Some(verdict) = self.append(seq, leaf) {
                    return Ok(Some(verdict));
                }
                self.archived += 1;
            }
            if self.tree.size() < next {
                return Ok(Some(Verdict::incomplete(next, "missing; neither it nor its hash is there")));
            }
        }
        Ok(None)
    }

    /// What lies in files is what the ledger says it has put there: the first entry of which it does not.
    fn unexplained(&self) -> Option<u64> {
        let mut files: BTreeMap<(u64, u64), bool> = BTreeMap::new();
        for note in &self.noted {
            files.insert((note.first, note.last), !note.restored);
        }
        let explained = |first: u64, last: u64| {
            let mut next = first;
            for ((from, to), _) in files.iter().filter(|(_, is_there)| **is_there) {
                if (*from..=*to).contains(&next) {
                    next = to + 1;
                }
            }
            (next <= last).then_some(next)
        };
        self.ranges.iter().find_map(|(first, last)| explained(*first, *last))
    }

    /// The entry's own bytes are as they should be; now its place in the tree.
    fn append(&mut self, seq: u64, leaf: Hash) -> Option<Verdict> {
        self.compare_with_published(seq, leaf);
        self.tree.append(leaf);
        self.kept_hashes(seq).or_else(|| self.checkpoint(seq))
    }

    async fn size(&self, transaction: &Transaction<'_>) -> Result<u64, LedgerError> {
        let size: i64 = transaction.query_one("select size from tree", &[]).await?.try_get(0)?;
        Ok(u64::try_from(size).unwrap_or_default())
    }

    fn entry(&mut self, entry: &RawEntry<'_>) -> Option<Verdict> {
        let expected = self.tree.size() + 1;
        let seq = u64::try_from(entry.seq).unwrap_or_default();
        if seq > self.to {
            return Some(Verdict::incomplete(
                seq,
                format!("not covered by the tree, whose size is {}", self.to),
            ));
        }
        if seq > expected {
            return Some(
                self.first(Verdict::incomplete(expected, format!("missing; the next one there is {seq}"))),
            );
        }
        if seq < expected {
            return Some(self.first(Verdict::tampered(seq, "it is there twice")));
        }
        let leaf = record_hash(entry.body);
        if leaf.0.as_slice() != entry.leaf {
            return Some(self.first(Verdict::tampered(seq, "the body does not hash to its leaf")));
        }
        if let Some(column) = entry.mismatch() {
            return Some(
                self.first(Verdict::tampered(seq, format!("column {column} is not what the body says"))),
            );
        }
        if entry.month < self.month.max(entry.month_recorded()) {
            return Some(self.first(Verdict::tampered(
                seq,
                "column month is before that of the entry before it, or of the time it was recorded",
            )));
        }
        self.month = entry.month;
        if entry.kind == "archive" {
            self.noted.extend(archive_note(entry.body));
        }
        self.append(seq, leaf)
    }

    fn compare_with_published(&mut self, seq: u64, leaf: Hash) {
        let Some(published) = self.evidence.leaf.as_mut().and_then(|leaf| leaf(seq)) else { return };
        if self.published.is_none() && published != leaf {
            self.published = Some((seq, self.tree.clone()));
        }
        if let Some((_, tree)) = &mut self.published {
            tree.append(published);
        }
    }

    /// Roots of subtrees, of which proofs are made.
    fn kept_hashes(&mut self, seq: u64) -> Option<Verdict> {
        for Subtree { level, index, hash } in self.tree.take_completed() {
            if self.from == 1 && self.subtrees.remove(&(level, index)) != Some(hash) {
                let what = format!(
                    "the hash that is kept of subtree {level}/{index}, which ends here, is not that of its entries"
                );
                return Some(self.first(Verdict::tampered(seq, what)));
            }
        }
        None
    }

    fn checkpoint(&mut self, seq: u64) -> Option<Verdict> {
        let signed = *self.evidence.checkpoints.get(&seq)?;
        if self.tree.root() != signed {
            return Some(self.astray(
                seq,
                &format!("the first {seq} entries are not those of the checkpoint of that size"),
            ));
        }
        self.agreed = seq;
        self.agreements += 1;
        if let Some((first, _)) = self.published.take() {
            // Whoever changed that file did not change the ledger.
            self.misprinted = Some(first);
            self.evidence.leaf = None;
        }
        None
    }

    /// Something is wrong with the entries up to `seq`: the first that is another one than was published, or else all that no checkpoint
    /// has agreed with.
    fn astray(&self, seq: u64, what: &str) -> Verdict {
        match &self.published {
            Some((first, _)) => {
                Verdict::tampered(*first, format!("it is not the entry that was published; {what}"))
            }
            None if self.agreed >= seq => Verdict::tampered(seq, what),
            None => {
                Verdict::tampered(self.agreed + 1, format!("it, or one up to {seq}, was changed: {what}"))
            }
        }
    }

    /// What was found, unless an earlier entry is not the one that was published.
    fn first(&self, verdict: Verdict) -> Verdict {
        match &self.published {
            Some((first, _)) => Verdict::tampered(*first, "it is not the entry that was published"),
            None => verdict,
        }
    }

    /// Everything that was read holds; now the rest.
    async fn finish(mut self, transaction: &Transaction<'_>, size: u64) -> Result<Verdict, LedgerError> {
        if let Some(((level, index), _)) = self.subtrees.pop_first() {
            return Ok(Verdict::tampered(
                size,
                format!("a hash is kept of subtree {level}/{index}, which is not complete"),
            ));
        }
        if self.to == size && Head::load(transaction).await?.tree.frontier() != self.tree.frontier() {
            return Ok(Verdict::tampered(size, "the tree's frontier is not that of the entries"));
        }
        if self.from == 1
            && self.to == size
            && let Some(seq) = self.unexplained()
        {
            return Ok(Verdict::incomplete(
                seq,
                "missing; only its hash is there, and no entry says that it was archived",
            ));
        }
        // Entries of a range are proven by a tree that goes on behind them.
        let later = self.evidence.checkpoints.range(self.to + 1..).next().map(|(size, root)| (*size, *root));
        let head = match later {
            Some(checkpoint) => Some(checkpoint),
            None if self.to < size => Some((size, tree_at(transaction, size).await?.root())),
            None => None,
        };
        if let Some((later_size, root)) = head.filter(|_| self.to > 0) {
            let proof = consistency(transaction, self.to, later_size).await?;
            if check_tree(&proof, later_size, root, self.to, self.tree.root()).is_err() {
                return Ok(self.astray(
                    self.to,
                    &format!("they are not the first of the {later_size} entries of a later tree head"),
                ));
            }
            self.agreements += usize::from(later.is_some());
        }
        if self.published.is_some() {
            return Ok(self.astray(self.to, "no checkpoint speaks of it, but what was published does"));
        }
        let root = hex(&self.tree.root().0);
        Ok(Verdict::Sound {
            size: self.tree.size(),
            root,
            checkpoints: self.agreements,
            misprinted: self.misprinted,
            archived: self.archived,
        })
    }
}

async fn kept_subtrees(transaction: &Transaction<'_>) -> Result<BTreeMap<(u8, u64), Hash>, LedgerError> {
    let unreadable = || LedgerError::Unreadable("a hash of the tree".into());
    let mut kept = BTreeMap::new();
    for row in transaction.query("select level, index, hash from subtree", &[]).await? {
        let level = u8::try_from(row.try_get::<_, i16>(0)?).map_err(|_| unreadable())?;
        let index = u64::try_from(row.try_get::<_, i64>(1)?).map_err(|_| unreadable())?;
        let hash: [u8; 32] = row.try_get::<_, &[u8]>(2)?.try_into().map_err(|_| unreadable())?;
        kept.insert((level, index), Hash(hash));
    }
    Ok(kept)
}

fn signed(seq: u64) -> i64 {
    i64::try_from(seq).unwrap_or(i64::MAX)
}
