//! The Merkle tree over all entries (RFC 6962 section 2.1), kept as its frontier: the roots of its complete subtrees.
//!
//! The hashing is `tlog_tiles`'; here is only which hashes have to be remembered to append.

use std::collections::HashMap;

use tlog_tiles::tlog::{
    EMPTY_HASH, Hash, HashReader, stored_hash_index, stored_hashes_for_record_hash, sub_tree_index, tree_hash,
};

/// The tree's hashes contradict each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the tree's frontier does not fit its size {size}")]
pub struct BrokenTree {
    size: u64,
}

/// See the module's text. Invariant: `hashes` holds exactly what `sub_tree_index(0, size)` names, once pruned.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    size: u64,
    hashes: HashMap<u64, Hash>,
}

impl HashReader for Tree {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<Hash>, tlog_tiles::tlog::Error> {
        let found = indexes.iter().map(|index| self.hashes.get(index).copied());
        found.collect::<Option<_>>().ok_or(tlog_tiles::tlog::Error::InconsistentTile)
    }
}

impl Tree {
    /// The tree of `size` leaves with this frontier, largest subtree first.
    pub fn restore(size: u64, frontier: &[[u8; 32]]) -> Result<Self, BrokenTree> {
        let indexes = sub_tree_index(0, size, Vec::new());
        if indexes.len() != frontier.len() {
            return Err(BrokenTree { size });
        }
        Ok(Self { size, hashes: indexes.into_iter().zip(frontier.iter().map(|hash| Hash(*hash))).collect() })
    }

    /// Number of leaves.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Appends a leaf.
    pub fn append(&mut self, leaf: Hash) -> Result<(), BrokenTree> {
        let broken = BrokenTree { size: self.size };
        let new = stored_hashes_for_record_hash(self.size, leaf, self).map_err(|_| broken)?;
        for (level, hash) in (0_u8..).zip(new) {
            self.hashes.insert(stored_hash_index(level, self.size >> level), hash);
        }
        self.size += 1;
        Ok(())
    }

    /// Forgets hashes that no later append needs.
    pub fn prune(&mut self) {
        let needed = sub_tree_index(0, self.size, Vec::new());
        self.hashes.retain(|index, _| needed.contains(index));
    }

    /// The frontier, largest subtree first.
    pub fn frontier(&self) -> Result<Vec<[u8; 32]>, BrokenTree> {
        let hashes = self.read_hashes(&sub_tree_index(0, self.size, Vec::new()));
        Ok(hashes.map_err(|_| BrokenTree { size: self.size })?.into_iter().map(|hash| hash.0).collect())
    }

    /// The tree head.
    pub fn root(&self) -> Result<[u8; 32], BrokenTree> {
        if self.size == 0 {
            return Ok(EMPTY_HASH.0);
        }
        tree_hash(self.size, self).map(|hash| hash.0).map_err(|_| BrokenTree { size: self.size })
    }
}
