//! Writes a part of the ledger so that it proves itself: see [`crate::audit::bundle`].

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek as _};
use std::path::Path;

use jiff::Timestamp;
use sha2::{Digest, Sha256};
use tokio_postgres::Transaction;

use super::export::write;
use crate::app::EX_UNAVAILABLE;
use crate::audit::bundle::{Manifest, Proof, VERSION, text};
use crate::cli::ExportFormat;
use crate::event::hex;
use crate::ledger::hashes::{consistency, leaves, root_at, tree_at};
use crate::ledger::head::Head;
use crate::operate::Refusal;

/// What is written, and where.
pub struct Bundle<'a> {
    /// First and last entry.
    pub span: (u64, u64),
    /// A form in which the entries are in it, too.
    pub format: ExportFormat,
    /// The entries are compressed, and their hashes are in it, too: for an archive.
    pub compressed: bool,
    /// File.
    pub out: &'a Path,
    /// The newest checkpoint: its size, and the note.
    pub checkpoint: Option<(u64, String)>,
}

/// A part of a bundle that is not small.
type Part = (&'static str, File);

fn failed(error: impl std::fmt::Display) -> Refusal {
    Refusal(EX_UNAVAILABLE, format!("the bundle could not be written: {error}"))
}

impl Bundle<'_> {
    /// Writes it.
    pub async fn write(&self, transaction: &Transaction<'_>) -> Result<(), Refusal> {
        let (first, last) = self.span;
        let covering = self.checkpoint.as_ref().filter(|(size, _)| *size >= last);
        let size = Head::load(transaction).await?.tree.size();
        let tree_size = covering.map_or(size, |(size, _)| *size);
        let proof = Proof {
            first,
            last,
            left: tree_at(transaction, first - 1).await?.frontier().iter().map(text).collect(),
            consistency: consistency(transaction, last, tree_size).await?.iter().map(text).collect(),
            tree_size,
            root: text(&root_at(transaction, tree_size).await?),
        };
        let (mut entries, entries_sha256) = self.entries(transaction).await?;
        let manifest = Manifest {
            version: VERSION,
            first,
            last,
            count: last + 1 - first,
            entries_sha256,
            exported_at: Timestamp::now().to_string(),
        };
        let mut others = self.others(transaction).await?;
        let json = |value: serde_json::Result<String>| value.map(String::into_bytes).map_err(failed);
        let mut small = vec![
            ("manifest.json", json(serde_json::to_string_pretty(&manifest))?),
            ("proof.json", json(serde_json::to_string_pretty(&proof))?),
        ];
        small.extend(covering.map(|(_, note)| ("checkpoint", note.clone().into_bytes())));
        if self.compressed {
            let hashes = leaves(transaction, first - 1, last).await?;
            small.push(("leaves", hashes.iter().flat_map(|hash| hash.0).collect()));
        }
        self.pack(&small, others.as_mut_slice(), &mut entries).map_err(failed)
    }

    /// The entries, and the digest of their lines.
    async fn entries(&self, transaction: &Transaction<'_>) -> Result<(Part, String), Refusal> {
        let mut file = scratch(self.out, "entries").map_err(failed)?;
        if !self.compressed {
            let sink = Box::new(BufWriter::new(&mut file));
            write(transaction, self.span, ExportFormat::Jsonl, sink).await?;
            let digest = digest(&mut file, false).map_err(failed)?;
            return Ok((("entries.jsonl", file), digest));
        }
        let encoder = zstd::Encoder::new(BufWriter::new(&mut file), 0).map_err(failed)?;
        write(transaction, self.span, ExportFormat::Jsonl, Box::new(encoder.auto_finish())).await?;
        // What is read back is what counts.
        let digest = digest(&mut file, true).map_err(failed)?;
        Ok((("entries.jsonl.zst", file), digest))
    }

    /// Other forms of the same entries.
    async fn others(&self, transaction: &Transaction<'_>) -> Result<Vec<Part>, Refusal> {
        let name = match self.format {
            ExportFormat::Jsonl => return Ok(Vec::new()),
            ExportFormat::Csv => "entries.csv",
            ExportFormat::Parquet => "entries.parquet",
        };
        let mut file = scratch(self.out, "other").map_err(failed)?;
        write(transaction, self.span, self.format, Box::new(BufWriter::new(&mut file))).await?;
        Ok(vec![(name, file)])
    }

    /// The entries come last: what is needed to read them has been read by then.
    fn pack(
        &self,
        small: &[(&str, Vec<u8>)],
        others: &mut [Part],
        entries: &mut Part,
    ) -> std::io::Result<()> {
        let mut archive = tar::Builder::new(BufWriter::new(File::create(self.out)?));
        for (name, bytes) in small {
            let mut header = tar::Header::new_gnu();
            header.set_size(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
            header.set_mode(0o644);
            header.set_cksum();
            archive.append_data(&mut header, name, bytes.as_slice())?;
        }
        for (name, file) in others.iter_mut().chain([entries]) {
            file.rewind()?;
            archive.append_file(*name, file)?;
        }
        archive.into_inner()?.into_inner().map_err(std::io::Error::other)?.sync_all()
    }
}

/// A file without a name beside `out`: its size has to be known before it goes into the archive.
fn scratch(out: &Path, what: &str) -> std::io::Result<File> {
    let path = out.with_added_extension(format!("{what}-{}", std::process::id()));
    let file = File::options().read(true).write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// SHA-256 of a file, or of what is compressed in it.
pub fn digest(file: &mut File, compressed: bool) -> std::io::Result<String> {
    file.rewind()?;
    let mut reader: Box<dyn Read + '_> =
        if compressed { Box::new(zstd::Decoder::new(file)?) } else { Box::new(BufReader::new(file)) };
    let (mut digest, mut buffer) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(hex(&digest.finalize())),
            length => digest.update(buffer.get(..length).unwrap_or_default()),
        }
    }
}
