//! The Merkle tree over all entries (RFC 6962 section 2.1), kept as its frontier: the roots of its complete subtrees.
//!
//! The hashing is `tlog_tiles`'; here is only which hashes have to be remembered to append.

use tlog_tiles::tlog::{EMPTY_HASH, Hash, node_hash};

/// Leaves of a tile, and tiles of one a level higher (<https://c2sp.org/tlog-tiles>).
pub const TILE_WIDTH: u64 = 256;
/// Levels of the binary tree in a tile.
pub const TILE_HEIGHT: u8 = 8;

/// The tree's hashes contradict each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the tree's frontier does not fit its size {size}")]
pub struct BrokenTree {
    size: u64,
}

/// A complete subtree as wide as a tile of its level.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Subtree {
    /// 1 above 256 leaves, 2 above 256 of these.
    pub level: u8,
    /// Which of its level, from 0.
    pub index: u64,
    /// Its root.
    pub hash: Hash,
}

/// See the module's text. Invariant: `frontier` has a hash for each bit that is set in `size`, largest subtree first.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    size: u64,
    frontier: Vec<Hash>,
    completed: Vec<Subtree>,
}

impl Tree {
    /// The tree of `size` leaves with this frontier, largest subtree first.
    pub fn restore(size: u64, frontier: Vec<Hash>) -> Result<Self, BrokenTree> {
        if usize::try_from(size.count_ones()).ok() != Some(frontier.len()) {
            return Err(BrokenTree { size });
        }
        Ok(Self { size, frontier, completed: Vec::new() })
    }

    /// Number of leaves.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Appends a leaf.
    pub fn append(&mut self, leaf: Hash) {
        let (mut hash, mut level, mut index) = (leaf, 0, self.size);
        while index % 2 == 1
            && let Some(left) = self.frontier.pop()
        {
            hash = node_hash(left, hash);
            index /= 2;
            level += 1;
            if level % TILE_HEIGHT == 0 {
                self.completed.push(Subtree { level: level / TILE_HEIGHT, index, hash });
            }
        }
        self.frontier.push(hash);
        self.size += 1;
    }

    /// Subtrees that have become complete since this was last asked.
    pub fn take_completed(&mut self) -> Vec<Subtree> {
        std::mem::take(&mut self.completed)
    }

    /// The frontier, largest subtree first.
    #[must_use]
    pub fn frontier(&self) -> &[Hash] {
        &self.frontier
    }

    /// The tree head.
    #[must_use]
    pub fn root(&self) -> Hash {
        let from_the_right = self.frontier.iter().rev().copied();
        from_the_right.reduce(|right, left| node_hash(left, right)).unwrap_or(EMPTY_HASH)
    }
}
