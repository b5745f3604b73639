//! Files as they are read here: regular ones, up to a bound, and of secrets only those that nobody else may read.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::bounds::{FILE_BYTES, SECRET_BYTES};

/// Anybody beside the owner may read; the group may, as systemd and package managers have it (`root:tailwater 0640`).
const OTHERS_READ: u32 = 0o004;
/// The group or anybody else may write.
const OTHERS_WRITE: u32 = 0o022;
/// Opening a FIFO waits for its writer, unless that is said.
const NONBLOCK: i32 = 0o4000;

/// The text of a file that people write, or why it cannot be had.
pub fn read_text(path: &Path) -> Result<String, String> {
    let (file, _) = open(path)?;
    text_of(file, FILE_BYTES)
}

/// The text of a secret's file. One that others may read is no secret: libpq and ssh refuse it, too.
pub(super) fn read_secret(path: &Path) -> Result<String, String> {
    let (file, mode) = open(path)?;
    if mode & (OTHERS_READ | OTHERS_WRITE) != 0 {
        return Err(format!(
            "mode {:04o}: others may read or write it; chmod 0600, or 0640 with group tailwater",
            mode & 0o7777
        ));
    }
    text_of(file, SECRET_BYTES)
}

/// Who beside its owner may write a file or directory, for a warning; `None` when nobody may.
#[must_use]
pub fn writable_by_others(path: &Path) -> Option<String> {
    let mode = std::fs::metadata(path).ok()?.mode();
    (mode & OTHERS_WRITE != 0)
        .then(|| format!("mode {:04o}: others than its owner may write it", mode & 0o7777))
}

/// What below a path, or the path itself, others than its owner may write, and how that shows.
#[must_use]
pub fn writable(path: &Path) -> Vec<(PathBuf, String)> {
    let mut found: Vec<_> =
        writable_by_others(path).map(|what| (path.to_path_buf(), what)).into_iter().collect();
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    // Links are not followed: what they lead to may be anywhere, and round.
    let own = entries.filter(|entry| entry.file_type().is_ok_and(|kind| !kind.is_symlink()));
    found.extend(own.flat_map(|entry| writable(&entry.path())));
    found
}

fn open(path: &Path) -> Result<(File, u32), String> {
    let opened = OpenOptions::new().read(true).custom_flags(NONBLOCK).open(path);
    let file = opened.map_err(|error| error.to_string())?;
    let meta = file.metadata().map_err(|error| error.to_string())?;
    if !meta.is_file() {
        return Err("it is not a regular file".into());
    }
    Ok((file, meta.mode()))
}

fn text_of(file: File, most: u64) -> Result<String, String> {
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > most {
        return Err(format!("it is longer than {most} bytes"));
    }
    String::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())
}
