//! The published log: checkpoints and hashes of all leaves, in files outside the database, laid out as <https://c2sp.org/tlog-tiles> has
//! it, so that any tool for such logs can read it.
//!
//! `checkpoint` is the newest one, `checkpoints/DAY` all of a day, `tile/L/N` 256 hashes of level L. No entry is in it.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use tlog_tiles::tlog::Hash;
use tlog_tiles::{Tile, node_hash};

use super::checkpoint::{CheckpointError, PublicKey, SignedHead, split};
use crate::ledger::tree::{TILE_HEIGHT, TILE_WIDTH, Tree};

/// Bytes of a hash.
const HASH_LENGTH: usize = 32;
/// Hashes in a tile.
const WIDTH: usize = 256;

/// What is wrong with a published log.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// It cannot be read or written.
    #[error("{}: {error}", path.display())]
    Io {
        /// File or directory.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A checkpoint in it is not what it should be.
    #[error("{}: {error}", path.display())]
    Checkpoint {
        /// File.
        path: PathBuf,
        /// What is wrong.
        error: CheckpointError,
    },
    /// A tile is missing or has another length.
    #[error("{}: not the hashes of a tree of {size} entries", path.display())]
    BrokenTile {
        /// File.
        path: PathBuf,
        /// Size of the tree.
        size: u64,
    },
}

/// A published log.
#[derive(Debug, Clone)]
pub struct LogDirectory {
    path: PathBuf,
}

impl LogDirectory {
    /// The log in this directory, which need not exist yet.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_path_buf() }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// True when there is a checkpoint in it.
    #[must_use]
    pub fn is_published(&self) -> bool {
        self.path.join("checkpoint").is_file()
    }

    /// The newest checkpoint, if there is any.
    pub fn newest(&self, key: &PublicKey) -> Result<Option<SignedHead>, DirectoryError> {
        let path = self.path.join("checkpoint");
        match fs::read_to_string(&path) {
            Ok(note) => {
                key.verify(&note).map(Some).map_err(|error| DirectoryError::Checkpoint { path, error })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(DirectoryError::Io { path, error }),
        }
    }

    /// All checkpoints. One that somebody else has signed is a mistake; what is no note is passed over.
    pub fn all(&self, key: &PublicKey) -> Result<Vec<SignedHead>, DirectoryError> {
        let mut heads: Vec<SignedHead> = self.newest(key)?.into_iter().collect();
        let days = self.path.join("checkpoints");
        let Ok(entries) = fs::read_dir(&days) else { return Ok(heads) };
        for entry in entries {
            let path = entry.map_err(|error| DirectoryError::Io { path: days.clone(), error })?.path();
            let text = fs::read_to_string(&path);
            let text = text.map_err(|error| DirectoryError::Io { path: path.clone(), error })?;
            for note in split(&text) {
                match key.verify(note) {
                    Ok(head) => heads.push(head),
                    // A note that was cut off when the disk was full or the machine fell, perhaps with the one behind it.
                    Err(CheckpointError::Malformed) => {}
                    Err(error) => return Err(DirectoryError::Checkpoint { path, error }),
                }
            }
        }
        Ok(heads)
    }

    /// Names of logs that were written here and have ended: their ledgers were lost.
    #[must_use]
    pub fn ended(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path.join("ended")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Puts the log aside, and notes that nothing more is written under its name; gives where it is now.
    pub fn end(&self, name: &str, size: u64) -> Result<PathBuf, DirectoryError> {
        let mut ended = self.ended();
        ended.push(name.to_owned());
        let aside = self.path.with_added_extension(format!("ended-at-{size}"));
        let text = ended.join("\n") + "\n";
        // At both places: whatever becomes of this in between, the name has ended.
        self.write("ended", text.as_bytes())?;
        fs::rename(&self.path, &aside).map_err(|error| DirectoryError::Io { path: aside.clone(), error })?;
        self.write("ended", text.as_bytes())?;
        Ok(aside)
    }

    /// Writes the hashes of `leaves`, the entries behind the first `size`, and gives the tree with them.
    pub fn extend(&self, size: u64, leaves: &[Hash]) -> Result<Tree, DirectoryError> {
        let mut tree = self.tree(size)?;
        leaves.iter().for_each(|leaf| tree.append(*leaf));
        let (mut first, mut new) = (size, leaves.to_vec());
        let mut level = 0;
        while !new.is_empty() {
            let (tile, within) = (first / TILE_WIDTH, first % TILE_WIDTH);
            let mut hashes = self.read_tile(level, tile, within)?;
            hashes.extend(&new);
            for (index, tile_hashes) in (tile..).zip(hashes.chunks(WIDTH)) {
                self.write_tile(level, index, tile_hashes)?;
            }
            // Those that have become complete are hashes of the next level.
            new = hashes.chunks_exact(WIDTH).map(root_of).collect();
            first = tile;
            level += 1;
        }
        Ok(tree)
    }

    /// Makes a checkpoint the newest one. What it covers must have been written.
    pub fn publish(&self, head: &SignedHead, day: &str) -> Result<(), DirectoryError> {
        let days = self.path.join("checkpoints");
        let path = days.join(day);
        let append = || -> io::Result<()> {
            fs::create_dir_all(&days)?;
            let mut file = File::options().create(true).append(true).open(&path)?;
            file.write_all(head.note.as_bytes())?;
            file.sync_data()
        };
        append().map_err(|error| DirectoryError::Io { path: path.clone(), error })?;
        self.write("checkpoint", head.note.as_bytes())
    }

    /// The tree of the first `size` entries.
    fn tree(&self, size: u64) -> Result<Tree, DirectoryError> {
        let mut frontier = Vec::new();
        for level in (0..u64::BITS / u32::from(TILE_HEIGHT)).rev() {
            let complete = size >> (level * u32::from(TILE_HEIGHT));
            let level = u8::try_from(level).unwrap_or(u8::MAX);
            let mut left = self.read_tile(level, complete / TILE_WIDTH, complete % TILE_WIDTH)?.into_iter();
            for bit in (0..TILE_HEIGHT).rev().filter(|bit| (complete >> bit) & 1 == 1) {
                let hashes: Vec<Hash> = left.by_ref().take(1 << bit).collect();
                frontier.push(root_of(&hashes));
            }
        }
        let path = self.path.join("tile");
        Tree::restore(size, frontier).map_err(|_| DirectoryError::BrokenTile { path, size })
    }

    /// The first `width` hashes of a tile.
    fn read_tile(&self, level: u8, index: u64, width: u64) -> Result<Vec<Hash>, DirectoryError> {
        if width == 0 {
            return Ok(Vec::new());
        }
        let whole = self.path.join(tile_path(level, index, TILE_WIDTH));
        let part = self.path.join(tile_path(level, index, width));
        // A part is gone once the whole tile is there, which may be before the checkpoint that covers it.
        let path = if width < TILE_WIDTH && part.exists() { part } else { whole };
        let bytes = fs::read(&path).map_err(|error| DirectoryError::Io { path: path.clone(), error })?;
        let mut hashes: Vec<Hash> = bytes.chunks_exact(HASH_LENGTH).filter_map(to_hash).collect();
        let width = usize::try_from(width).unwrap_or(usize::MAX);
        if bytes.len() % HASH_LENGTH != 0 || hashes.len() < width {
            return Err(DirectoryError::BrokenTile { path, size: index * TILE_WIDTH });
        }
        hashes.truncate(width);
        Ok(hashes)
    }

    fn write_tile(&self, level: u8, index: u64, hashes: &[Hash]) -> Result<(), DirectoryError> {
        let bytes: Vec<u8> = hashes.iter().flat_map(|hash| hash.0).collect();
        let width = u64::try_from(hashes.len()).unwrap_or(TILE_WIDTH);
        self.write(&tile_path(level, index, width), &bytes)?;
        if width == TILE_WIDTH {
            // What was written of it while it grew is in it.
            let partial = self.path.join(format!("{}.p", tile_path(level, index, width)));
            match fs::remove_dir_all(&partial) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(DirectoryError::Io { path: partial, error });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// All of a file or nothing of it.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), DirectoryError> {
        let path = self.path.join(name);
        let temporary = path.with_added_extension("new");
        let write = || -> io::Result<()> {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            let mut file = File::create(&temporary)?;
            file.write_all(bytes)?;
            file.sync_data()?;
            fs::rename(&temporary, &path)
        };
        write().map_err(|error| DirectoryError::Io { path: path.clone(), error })
    }
}

/// Leaves of a published log, one behind the other.
pub struct PublishedLeaves {
    directory: LogDirectory,
    size: u64,
    tile: Option<(u64, Vec<Hash>)>,
}

impl PublishedLeaves {
    /// Those of the first `size` entries.
    #[must_use]
    pub fn new(directory: LogDirectory, size: u64) -> Self {
        Self { directory, size, tile: None }
    }

    /// The leaf of entry `seq`; `None` when it is not there, or cannot be read.
    pub fn leaf(&mut self, seq: u64) -> Option<Hash> {
        let index = seq.checked_sub(1).filter(|index| *index < self.size)?;
        let tile = index / TILE_WIDTH;
        if self.tile.as_ref().is_none_or(|(read, _)| *read != tile) {
            let width = (self.size - tile * TILE_WIDTH).min(TILE_WIDTH);
            let hashes = self.directory.read_tile(0, tile, width).unwrap_or_default();
            self.tile = Some((tile, hashes));
        }
        let (_, hashes) = self.tile.as_ref()?;
        hashes.get(usize::try_from(index % TILE_WIDTH).ok()?).copied()
    }
}

fn tile_path(level: u8, index: u64, width: u64) -> String {
    // `tile/8/…`: the height is left out where it is always the same.
    let tile = Tile::new(TILE_HEIGHT, level, index, u32::try_from(width).unwrap_or(256), false).path();
    tile.replacen("tile/8/", "tile/", 1)
}

fn to_hash(bytes: &[u8]) -> Option<Hash> {
    Some(Hash(bytes.try_into().ok()?))
}

/// The root over hashes of one level, whose number is a power of two.
fn root_of(hashes: &[Hash]) -> Hash {
    match hashes {
        [single] => *single,
        _ => {
            let (left, right) = hashes.split_at(hashes.len() / 2);
            node_hash(root_of(left), root_of(right))
        }
    }
}
