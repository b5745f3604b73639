//! Hashes of the tree as the ledger keeps them, and the proofs made of them (RFC 6962 sections 2.1.1 and 2.1.2).
//!
//! Kept are the leaves, with the entries, and the roots of complete subtrees as wide as a tile. Whatever else a proof needs is made of
//! at most 128 of these: some thousand hashes for a proof, however large the ledger is.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;

use tlog_tiles::tlog::{
    Error, Hash, HashReader, RecordProof, TreeProof, node_hash, prove_record, prove_tree,
    split_stored_hash_index, stored_hash_index, sub_tree_index,
};
use tokio_postgres::{GenericClient, Row};

use super::LedgerError;
use super::tree::{TILE_HEIGHT, Tree};

/// Notes which hashes are asked for, and gives none.
#[derive(Default)]
struct Asked(RefCell<Vec<u64>>);

impl HashReader for Asked {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<Hash>, Error> {
        self.0.borrow_mut().extend_from_slice(indexes);
        Ok(vec![Hash([0; 32]); indexes.len()])
    }
}

/// Hashes that have been read.
struct Read(HashMap<u64, Hash>);

impl HashReader for Read {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<Hash>, Error> {
        let found = indexes.iter().map(|index| self.0.get(index).copied());
        found.collect::<Option<_>>().ok_or(Error::InconsistentTile)
    }
}

/// That entry `seq` is in the tree of the first `size` entries.
pub async fn inclusion(
    client: &impl GenericClient,
    seq: u64,
    size: u64,
) -> Result<(Hash, RecordProof), LedgerError> {
    let index = seq.checked_sub(1).filter(|index| *index < size).ok_or(LedgerError::NotThere(seq))?;
    let own = stored_hash_index(0, index);
    let asked = Asked::default();
    // What it gives without hashes is of no use; which it would need is.
    let _ = prove_record(size, index, &asked);
    asked.0.borrow_mut().push(own);
    let read = read(client, asked.0.into_inner()).await?;
    let leaf = read.0.get(&own).copied().ok_or(LedgerError::NotThere(seq))?;
    let proof = prove_record(size, index, &read).map_err(|_| LedgerError::NotThere(seq))?;
    Ok((leaf, proof))
}

/// That the first `old` entries of the tree of `new` entries are those of the tree of `old`.
pub async fn consistency(client: &impl GenericClient, old: u64, new: u64) -> Result<TreeProof, LedgerError> {
    if old == 0 || old > new {
        return Err(LedgerError::NotThere(old));
    }
    let asked = Asked::default();
    let _ = prove_tree(new, old, &asked);
    let read = read(client, asked.0.into_inner()).await?;
    prove_tree(new, old, &read).map_err(|_| LedgerError::NotThere(new))
}

/// Head of the tree of the first `size` entries.
pub async fn root_at(client: &impl GenericClient, size: u64) -> Result<Hash, LedgerError> {
    Ok(tree_at(client, size).await?.root())
}

/// The tree of the first `size` entries.
pub async fn tree_at(client: &impl GenericClient, size: u64) -> Result<Tree, LedgerError> {
    let indexes = sub_tree_index(0, size, Vec::new());
    let read = read(client, indexes.clone()).await?;
    let frontier = read.read_hashes(&indexes).map_err(|_| LedgerError::NotThere(size))?;
    Ok(Tree::restore(size, frontier)?)
}

/// Leaves of the entries behind the first `size`, up to `end`.
pub async fn leaves(client: &impl GenericClient, size: u64, end: u64) -> Result<Vec<Hash>, LedgerError> {
    let kept = kept(client, &[(0, 0, size..end)]).await?;
    let leaf = |index: u64| kept.get(&(0, index)).copied().ok_or(LedgerError::NotThere(index + 1));
    (size..end).map(leaf).collect()
}

/// Reads hashes by their index in the order in which a tree stores them.
async fn read(client: &impl GenericClient, indexes: Vec<u64>) -> Result<Read, LedgerError> {
    let mut wanted: Vec<(u64, u8, Range<u64>)> = Vec::new();
    for index in indexes {
        let (level, n) = split_stored_hash_index(index);
        let below = level % TILE_HEIGHT;
        wanted.push((index, level / TILE_HEIGHT, n << below..(n + 1) << below));
    }
    let kept = kept(client, &wanted).await?;
    let mut found = HashMap::new();
    for (index, level, range) in wanted {
        let row: Option<Vec<Hash>> = range.map(|n| kept.get(&(level, n)).copied()).collect();
        if let Some(hash) = row.and_then(root_of) {
            found.insert(index, hash);
        }
    }
    Ok(Read(found))
}

/// Hashes that are kept, by level of their tile (0: leaves) and place in it.
async fn kept(
    client: &impl GenericClient,
    wanted: &[(u64, u8, Range<u64>)],
) -> Result<HashMap<(u8, u64), Hash>, LedgerError> {
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let (mut levels, mut firsts, mut ends) = (Vec::new(), Vec::new(), Vec::new());
    for (_, level, range) in wanted {
        levels.push(i16::from(*level));
        firsts.push(number(range.start));
        ends.push(number(range.end));
    }
    let sql = "select 0::smallint, e.seq - 1, e.leaf
               from unnest($1::smallint[], $2::bigint[], $3::bigint[]) as w(level, first, after)
               join entry e on e.seq > w.first and e.seq <= w.after where w.level = 0
               union all
               select 0::smallint, n, substring(a.hashes from (n - a.first_seq + 1)::int * 32 + 1 for 32)
               from unnest($1::smallint[], $2::bigint[], $3::bigint[]) as w(level, first, after)
               join archived_leaves a on a.last_seq > w.first and a.first_seq <= w.after
               cross join lateral generate_series(greatest(w.first, a.first_seq - 1), least(w.after, a.last_seq) - 1) n
               where w.level = 0
               union all
               select s.level, s.index, s.hash
               from unnest($1::smallint[], $2::bigint[], $3::bigint[]) as w(level, first, after)
               join subtree s on s.level = w.level and s.index >= w.first and s.index < w.after where w.level > 0";
    let rows = client.query(sql, &[&levels, &firsts, &ends]).await?;
    rows.iter().map(kept_hash).collect()
}

fn kept_hash(row: &Row) -> Result<((u8, u64), Hash), LedgerError> {
    let unreadable = || LedgerError::Unreadable("a hash of the tree".into());
    let level = u8::try_from(row.try_get::<_, i16>(0)?).map_err(|_| unreadable())?;
    let index = u64::try_from(row.try_get::<_, i64>(1)?).map_err(|_| unreadable())?;
    let hash: [u8; 32] = row.try_get::<_, &[u8]>(2)?.try_into().map_err(|_| unreadable())?;
    Ok(((level, index), Hash(hash)))
}

/// The root over hashes of one level, whose number is a power of two.
fn root_of(mut hashes: Vec<Hash>) -> Option<Hash> {
    while hashes.len() > 1 {
        hashes = hashes
            .chunks_exact(2)
            .filter_map(|pair| match pair {
                [left, right] => Some(node_hash(*left, *right)),
                _ => None,
            })
            .collect();
    }
    hashes.first().copied()
}
