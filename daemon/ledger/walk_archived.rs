//! Verifies entries that lie in files: of these only the hashes are in the database, and the bodies of some.

use std::collections::BTreeMap;

use tlog_tiles::tlog::record_hash;
use tokio_postgres::Transaction;

use super::LedgerError;
use super::archive::{archive_note, kept_bodies, leaves_from};
use super::verify::Verdict;
use super::walk::{Walk, signed};

impl Walk<'_> {
    /// They are held against what is known from outside all the same.
    pub(super) async fn archived(
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
                let expected = self.tree.size() + 1;
                if seq < expected {
                    return Ok(Some(self.first(Verdict::tampered(seq, "its hash is kept twice"))));
                }
                if seq > expected {
                    break;
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
    pub(super) fn unexplained(&self) -> Option<u64> {
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
}
