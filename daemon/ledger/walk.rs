//! Goes through the entries of a ledger, and holds each against everything that is known of it: see [`super::verify`].

use std::collections::BTreeMap;

use futures_util::{StreamExt, pin_mut};
use tlog_tiles::tlog::{Hash, check_tree, record_hash};
use tokio_postgres::Transaction;

use super::LedgerError;
use super::archive::{ArchiveNote, archive_note, archive_notes, ranges};
use super::hashes::{consistency, tree_at};
use super::head::Head;
use super::raw::{RawEntry, entries};
use super::tree::{Subtree, Tree};
use super::verify::{Evidence, Verdict};
use crate::event::hex;

/// See the module's text.
pub(super) struct Walk<'a> {
    from: u64,
    to: u64,
    evidence: Evidence<'a>,
    pub(super) tree: Tree,
    /// Of the entry before, in days of PostgreSQL.
    month: i32,
    /// From the first entry on whose leaf is another one than was published: the first such entry, and the tree of what was published.
    published: Option<(u64, Tree)>,
    /// The last size at which a checkpoint agreed.
    agreed: u64,
    agreements: usize,
    misprinted: Option<u64>,
    /// Entries of which only the hash is there.
    pub(super) archived: u64,
    /// From where to where these go.
    pub(super) ranges: Vec<(u64, u64)>,
    /// What entries say of them, in order.
    pub(super) noted: Vec<ArchiveNote>,
    /// Subtrees that were kept, and not seen yet.
    subtrees: BTreeMap<(u8, u64), Hash>,
}

impl<'a> Walk<'a> {
    pub(super) async fn begin(
        transaction: &Transaction<'_>,
        evidence: Evidence<'a>,
        from: u64,
        to: u64,
    ) -> Result<Self, LedgerError> {
        let tree = if from == 1 { Tree::default() } else { tree_at(transaction, from - 1).await? };
        let subtrees = if from == 1 { kept_subtrees(transaction).await? } else { BTreeMap::new() };
        let (published, agreed) = (None, from - 1);
        let agreements = usize::from(evidence.checkpoints.contains_key(&agreed));
        Ok(Self {
            from,
            to,
            evidence,
            tree,
            month: i32::MIN,
            published,
            agreed,
            agreements,
            misprinted: None,
            archived: 0,
            ranges: Vec::new(),
            noted: Vec::new(),
            subtrees,
        })
    }

    /// Goes through all of them; gives the first thing that is wrong. What lies in files and what is here may take turns.
    pub(super) async fn entries(
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
        let missing =
            || self.first(Verdict::incomplete(next, format!("missing; the tree covers {} entries", self.to)));
        Ok((next <= end).then(missing))
    }

    /// The entry's own bytes are as they should be; now its place in the tree.
    pub(super) fn append(&mut self, seq: u64, leaf: Hash) -> Option<Verdict> {
        self.compare_with_published(seq, leaf);
        self.tree.append(leaf);
        self.kept_hashes(seq).or_else(|| self.checkpoint(seq))
    }

    /// Tree head of everything so far.
    pub(super) fn root(&self) -> Hash {
        self.tree.root()
    }

    async fn size(&self, transaction: &Transaction<'_>) -> Result<u64, LedgerError> {
        let size: i64 = transaction.query_one("select size from tree", &[]).await?.try_get(0)?;
        Ok(u64::try_from(size).unwrap_or_default())
    }

    fn entry(&mut self, entry: &RawEntry<'_>) -> Option<Verdict> {
        let expected = self.tree.size() + 1;
        let seq = u64::try_from(entry.seq).unwrap_or_default();
        if seq > self.to {
            let what = format!("not covered by the tree, whose size is {}", self.to);
            return Some(self.first(Verdict::incomplete(seq, what)));
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
        self.agree(seq);
        None
    }

    /// A checkpoint says that everything up to `seq` is as it was.
    fn agree(&mut self, seq: u64) {
        self.agreed = seq;
        self.agreements += 1;
        if let Some((first, _)) = self.published.take() {
            // Whoever changed that file did not change the ledger.
            self.misprinted = Some(first);
            self.evidence.leaf = None;
        }
    }

    /// Something is wrong with the entries up to `seq`: the first that is another one than was published, or else all that no checkpoint
    /// has agreed with.
    pub(super) fn astray(&self, seq: u64, what: &str) -> Verdict {
        // Where the published leaves do not make what was signed either, they do not tell which entry it is.
        let is_signed =
            |tree: &Tree| self.evidence.checkpoints.get(&seq).is_none_or(|root| tree.root() == *root);
        match &self.published {
            Some((first, tree)) if tree.size() != seq || is_signed(tree) => {
                Verdict::tampered(*first, format!("it is not the entry that was published; {what}"))
            }
            _ if self.agreed >= seq => Verdict::tampered(seq, what),
            _ => Verdict::tampered(self.agreed + 1, format!("it, or one up to {seq}, was changed: {what}")),
        }
    }

    /// What was found, unless an earlier entry is not the one that was published.
    pub(super) fn first(&self, verdict: Verdict) -> Verdict {
        match &self.published {
            Some((first, _)) => Verdict::tampered(*first, "it is not the entry that was published"),
            None => verdict,
        }
    }

    /// Where nothing is known from outside, a range is held against the tree that goes on behind it.
    async fn leads_to(&self, transaction: &Transaction<'_>, size: u64) -> Result<bool, LedgerError> {
        if self.to == 0 {
            return Ok(true);
        }
        match consistency(transaction, self.to, size).await {
            Err(LedgerError::NotThere(_)) => Ok(false),
            proof => {
                let root = tree_at(transaction, size).await?.root();
                Ok(check_tree(&proof?, size, root, self.to, self.tree.root()).is_ok())
            }
        }
    }

    /// Everything that was read holds; now the rest.
    pub(super) async fn finish(
        mut self,
        transaction: &Transaction<'_>,
        size: u64,
    ) -> Result<Verdict, LedgerError> {
        if self.to == size
            && let Some(((level, index), _)) = self.subtrees.pop_first()
        {
            let what = format!("a hash is kept of subtree {level}/{index}, which is not complete");
            return Ok(self.first(Verdict::tampered(size, what)));
        }
        if self.to == size && Head::load(transaction).await?.tree.frontier() != self.tree.frontier() {
            let what = "the tree's frontier is not that of the entries";
            return Ok(self.first(Verdict::tampered(size, what)));
        }
        if self.from > 1 || self.to < size {
            self.noted = archive_notes(transaction).await?;
        }
        if let Some(seq) = self.unexplained() {
            let what = "missing; only its hash is there, and no entry says that it was archived";
            return Ok(self.first(Verdict::incomplete(seq, what)));
        }
        let newest = self.evidence.checkpoints.last_key_value().map_or(0, |(newest, _)| *newest);
        if newest > size {
            return Ok(self.first(Verdict::cut(newest, size)));
        }
        if self.to < size && self.agreed < self.to && !self.leads_to(transaction, size).await? {
            let what = format!("they are not the first of the {size} entries of the ledger's own tree");
            return Ok(self.astray(self.to, &what));
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

pub(super) fn signed(seq: u64) -> i64 {
    i64::try_from(seq).unwrap_or(i64::MAX)
}
