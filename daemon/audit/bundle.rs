//! A part of the ledger that proves itself: entries, and what shows that they are all of that part and as they were written.
//!
//! A tar of `manifest.json`, `proof.json`, `checkpoint` (where there is one) and `entries.jsonl`, whose lines are the exact bytes of the
//! bodies; in an archive they are compressed (`entries.jsonl.zst`), and their hashes lie beside them (`leaves`). The entries are leaves `first` to `last` of the tree: with the roots of the subtrees before them (`left`) they make the head
//! of the tree of `last` entries, and `consistency` (RFC 6962 section 2.1.2) shows that this one is the beginning of the tree that was
//! signed. So none of them can be missing, added or changed.

use std::io::{BufRead, BufReader, Read};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tlog_tiles::tlog::{Hash, check_tree, record_hash};

use super::checkpoint::PublicKey;
use crate::event::hex;
use crate::ledger::tree::Tree;

/// Version of this layout.
pub const VERSION: u64 = 1;
/// Longest line that is read: no entry is as large.
const LONGEST_LINE: u64 = 64 << 20;
/// Largest of the other files.
const LARGEST_FILE: u64 = 16 << 20;

/// What is in the bundle.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// See [`VERSION`].
    pub version: u64,
    /// First entry.
    pub first: u64,
    /// Last entry.
    pub last: u64,
    /// How many.
    pub count: u64,
    /// SHA-256 of `entries.jsonl`.
    pub entries_sha256: String,
    /// When it was made.
    pub exported_at: String,
}

/// What shows that the entries are those of the ledger.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Proof {
    /// First entry.
    pub first: u64,
    /// Last entry.
    pub last: u64,
    /// Roots of the complete subtrees before the first entry, largest first, in base64.
    pub left: Vec<String>,
    /// From the tree of `last` entries to that of `tree_size`.
    pub consistency: Vec<String>,
    /// Entries of the tree that was signed.
    pub tree_size: u64,
    /// Its head.
    pub root: String,
}

/// What a bundle was found to be.
#[derive(Debug, Clone, PartialEq)]
pub enum Finding {
    /// Complete and unaltered.
    Sound {
        /// First entry.
        first: u64,
        /// Last entry.
        last: u64,
        /// Of the tree that it is part of.
        tree_size: u64,
        /// Who signed that tree's head; nobody, where the bundle has no checkpoint.
        signed_by: Option<String>,
        /// Files beside it that nothing was said of: other forms of the entries.
        unchecked: Vec<String>,
    },
    /// Something was changed.
    Tampered(String),
    /// Something is missing.
    Incomplete(String),
}

/// The hash in base64.
#[must_use]
pub fn text(hash: &Hash) -> String {
    BASE64_STANDARD.encode(hash.0)
}

fn hash(text: &str) -> Option<Hash> {
    Some(Hash(BASE64_STANDARD.decode(text).ok()?.try_into().ok()?))
}

fn hashes(texts: &[String]) -> Option<Vec<Hash>> {
    texts.iter().map(|text| hash(text)).collect()
}

#[derive(Default)]
struct Parts {
    manifest: Option<Manifest>,
    proof: Option<Proof>,
    checkpoint: Option<String>,
    /// Other forms of the same entries.
    unchecked: Vec<String>,
}

/// Checks a bundle, reading it once. `key`: whose checkpoint it must have.
pub fn verify(bundle: impl Read, key: Option<&PublicKey>) -> std::io::Result<Finding> {
    let mut archive = tar::Archive::new(bundle);
    let (mut parts, mut names, mut finding) = (Parts::default(), Vec::new(), None);
    for file in archive.entries()? {
        let file = file?;
        let name = file.path()?.display().to_string();
        if finding.is_some() || names.contains(&name) {
            // Who unpacks it may read another file than was checked here.
            return Ok(Finding::Tampered(format!("{name} is there twice, or behind the entries")));
        }
        match name.as_str() {
            "manifest.json" => parts.manifest = serde_json::from_reader(file.take(LARGEST_FILE)).ok(),
            "proof.json" => parts.proof = serde_json::from_reader(file.take(LARGEST_FILE)).ok(),
            "checkpoint" => parts.checkpoint = Some(std::io::read_to_string(file.take(LARGEST_FILE))?),
            "entries.jsonl" => finding = Some(verify_entries(BufReader::new(file), &parts, key)?),
            "entries.jsonl.zst" => {
                let lines = BufReader::new(zstd::Decoder::new(file)?);
                finding = Some(verify_entries(lines, &parts, key)?);
            }
            "leaves" => {}
            "entries.csv" | "entries.parquet" => parts.unchecked.push(name.clone()),
            _ => return Ok(Finding::Tampered(format!("{name} does not belong into a bundle"))),
        }
        names.push(name);
    }
    Ok(finding.unwrap_or_else(|| Finding::Incomplete("the bundle has no entries".into())))
}

/// The bodies in a bundle, one after the other; nothing of it is checked.
pub fn bodies(
    bundle: impl Read,
    mut body: impl FnMut(Vec<u8>) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let mut archive = tar::Archive::new(bundle);
    for file in archive.entries()? {
        let file = file?;
        let mut lines: Box<dyn BufRead + '_> = match &*file.path()?.to_string_lossy() {
            "entries.jsonl" => Box::new(BufReader::new(file)),
            "entries.jsonl.zst" => Box::new(BufReader::new(zstd::Decoder::new(file)?)),
            _ => continue,
        };
        loop {
            let mut line = Vec::new();
            if lines.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line)? == 0 {
                return Ok(());
            }
            line.pop();
            body(line)?;
        }
    }
    Ok(())
}

fn verify_entries(
    mut lines: impl BufRead,
    parts: &Parts,
    key: Option<&PublicKey>,
) -> std::io::Result<Finding> {
    let Some((manifest, proof)) = parts.manifest.as_ref().zip(parts.proof.as_ref()) else {
        return Ok(Finding::Incomplete("manifest.json or proof.json is missing, or cannot be read".into()));
    };
    let left = hashes(&proof.left).and_then(|left| Tree::restore(proof.first.checked_sub(1)?, left).ok());
    let Some(mut tree) = left else {
        return Ok(Finding::Tampered("proof.json: `left` does not fit `first`".into()));
    };
    let (mut seq, mut digest, mut line) = (proof.first, Sha256::new(), Vec::new());
    loop {
        line.clear();
        if lines.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        digest.update(&line);
        let Some(body) = line.strip_suffix(b"\n") else {
            return Ok(Finding::Incomplete(format!("entry {seq} is cut off")));
        };
        if seq_of(body) != Some(seq) {
            return Ok(Finding::Tampered(format!("where entry {seq} should be stands something else")));
        }
        tree.append(record_hash(body));
        seq += 1;
    }
    if Some(seq) != proof.last.checked_add(1) {
        return Ok(Finding::Incomplete(format!("entries {seq} to {} are missing", proof.last)));
    }
    let counted = (manifest.first, manifest.last, manifest.count);
    if counted != (proof.first, proof.last, proof.last + 1 - proof.first)
        || hex(&digest.finalize()) != manifest.entries_sha256
    {
        return Ok(Finding::Tampered("manifest.json does not describe the entries".into()));
    }
    Ok(verify_head(&tree, proof, parts, key))
}

/// The tree of the entries is the beginning of the one that was signed.
fn verify_head(tree: &Tree, proof: &Proof, parts: &Parts, key: Option<&PublicKey>) -> Finding {
    let (root, consistency) = (hash(&proof.root), hashes(&proof.consistency));
    let Some((root, consistency)) = root.zip(consistency) else {
        return Finding::Tampered("proof.json: not hashes".into());
    };
    let is_part = check_tree(&consistency, proof.tree_size, root, proof.last, tree.root()).is_ok();
    if !is_part {
        return Finding::Tampered(format!(
            "the entries are not those of the tree of {} entries: at least one was changed",
            proof.tree_size
        ));
    }
    let signed_by = match (parts.checkpoint.as_deref(), key) {
        (Some(note), Some(key)) => match key.verify(note) {
            Ok(head) if (head.size, head.root) == (proof.tree_size, root) => Some(key.name().to_owned()),
            Ok(_) => return Finding::Tampered("the checkpoint is of another tree".into()),
            Err(error) => return Finding::Tampered(error.to_string()),
        },
        (None, Some(key)) => {
            return Finding::Incomplete(format!("the bundle has no checkpoint of {}", key.name()));
        }
        (_, None) => None,
    };
    Finding::Sound {
        first: proof.first,
        last: proof.last,
        tree_size: proof.tree_size,
        signed_by,
        unchecked: parts.unchecked.clone(),
    }
}

fn seq_of(body: &[u8]) -> Option<u64> {
    #[derive(Deserialize)]
    struct Head {
        seq: u64,
    }
    serde_json::from_slice::<Head>(body).ok().map(|head| head.seq)
}
