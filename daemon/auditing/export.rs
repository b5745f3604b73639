//! `tailwater ledger export`: a part of the ledger as a file, or as a bundle that proves itself.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use futures_util::{StreamExt, pin_mut};
use jiff::Timestamp;
use tokio_postgres::Transaction;

use super::bundle::Bundle;
use super::times::Times;
use super::{Outside, parquet, place, reader};
use crate::app::{EX_CONFIG, EX_UNAVAILABLE, EX_USAGE};
use crate::cli::{EvidenceArgs, ExportFormat, ReadingArgs};
use crate::event::hex;
use crate::ledger::head::Head;
use crate::ledger::keyring::Master;
use crate::ledger::raw::{RawEntry, entries};
use crate::ledger::reading::Reading;
use crate::operate::Refusal;

/// What is exported, and how.
pub struct Export<'a> {
    /// First entry or time.
    pub from: &'a str,
    /// Last entry or time.
    pub to: Option<&'a str>,
    /// Form.
    pub format: ExportFormat,
    /// As a bundle.
    pub with_proofs: bool,
    /// File.
    pub out: Option<PathBuf>,
}

fn failed(error: impl std::fmt::Display) -> Refusal {
    Refusal(EX_UNAVAILABLE, format!("the export could not be written: {error}"))
}

/// See the module's text.
pub async fn export(
    args: &ReadingArgs,
    evidence: &EvidenceArgs,
    what: &Export<'_>,
) -> Result<String, Refusal> {
    let times = Times::of(args)?;
    let checkpoint = match what.with_proofs {
        true => {
            let (_, config) = place(&args.ledger, crate::ledger::VIEWS)?;
            Outside::find(evidence, config.as_ref())?.newest_note()?
        }
        false => None,
    };
    let (mut client, _) = reader(args).await?;
    let details = format!("{} to {}", what.from, what.to.unwrap_or("the end"));
    let reading = Reading::begin(&mut client, "export", ("export", &details), Master::default()).await?;
    let size = Head::load(reading.transaction()).await?.tree.size();
    let first = bound(&reading, what.from, &times, false).await?.unwrap_or(size + 1);
    let last = match what.to {
        Some(to) => bound(&reading, to, &times, true).await?.unwrap_or(0).min(size),
        None => size,
    };
    if first == 0 || first > last {
        return Err(Refusal(EX_USAGE, format!("there are no entries from {details}; the ledger has {size}")));
    }
    let span = (first, last);
    let out = what.out.as_deref();
    if what.with_proofs {
        let out = out.ok_or_else(|| Refusal(EX_USAGE, "a bundle needs a file: --out FILE".into()))?;
        let bundle = Bundle { span, format: what.format, compressed: false, out, checkpoint };
        bundle.write(reading.transaction()).await?;
    } else {
        let sink: Box<dyn Write + Send> = match out {
            Some(path) => Box::new(BufWriter::new(File::create(path).map_err(failed)?)),
            None => Box::new(BufWriter::new(std::io::stdout())),
        };
        write(reading.transaction(), span, what.format, sink).await?;
    }
    reading.end().await?;
    Ok(out.map_or_else(String::new, |path| format!("entries {first} to {last} are in {}\n", path.display())))
}

/// The entry of that number, or the first or last one of that time.
async fn bound(
    reading: &Reading<'_>,
    text: &str,
    times: &Times,
    is_end: bool,
) -> Result<Option<u64>, Refusal> {
    if let Ok(seq) = text.parse() {
        return Ok(Some(seq));
    }
    let seq = reading.seq_at(times.parse(text)?, is_end).await?;
    Ok(seq.and_then(|seq| u64::try_from(seq).ok()))
}

/// Writes entries in one form.
pub async fn write(
    transaction: &Transaction<'_>,
    (first, last): (u64, u64),
    format: ExportFormat,
    sink: Box<dyn Write + Send + '_>,
) -> Result<(), Refusal> {
    let mut form: Box<dyn Form + Send + '_> = match format {
        ExportFormat::Jsonl => Box::new(Jsonl(sink)),
        ExportFormat::Csv => Box::new(Csv::begin(sink).map_err(failed)?),
        ExportFormat::Parquet => Box::new(parquet::Table::begin(sink).map_err(failed)?),
    };
    let bound = |seq: u64| i64::try_from(seq).unwrap_or(i64::MAX);
    let rows = entries(transaction, (bound(first), bound(last))).await?;
    pin_mut!(rows);
    let mut expected = bound(first);
    while let Some(row) = rows.next().await {
        let row = row?;
        let Some(entry) = RawEntry::read(&row)? else { continue };
        if entry.seq != expected {
            break;
        }
        form.entry(&entry).map_err(failed)?;
        expected += 1;
    }
    if expected <= bound(last) {
        let next = "next: if it is archived, its file is a bundle already (tailwater ledger restore puts it back); else tailwater ledger verify";
        return Err(Refusal(EX_CONFIG, format!("the ledger lacks entry {expected}\n{next}")));
    }
    form.end().map_err(failed)
}

/// A way to write entries down.
pub trait Form {
    /// One more.
    fn entry(&mut self, entry: &RawEntry<'_>) -> std::io::Result<()>;
    /// That was all.
    fn end(self: Box<Self>) -> std::io::Result<()>;
}

struct Jsonl<W>(W);

impl<W: Write> Form for Jsonl<W> {
    fn entry(&mut self, entry: &RawEntry<'_>) -> std::io::Result<()> {
        self.0.write_all(entry.body)?;
        self.0.write_all(b"\n")
    }

    fn end(mut self: Box<Self>) -> std::io::Result<()> {
        self.0.flush()
    }
}

struct Csv<W>(W);

impl<W: Write> Csv<W> {
    fn begin(mut sink: W) -> std::io::Result<Self> {
        sink.write_all(b"seq,kind,recorded_at,correlation_id,leaf,body\r\n")?;
        Ok(Self(sink))
    }
}

/// RFC 4180.
impl<W: Write> Form for Csv<W> {
    fn entry(&mut self, entry: &RawEntry<'_>) -> std::io::Result<()> {
        let at = Timestamp::from_microsecond(entry.recorded_at_us).unwrap_or_default();
        let body = String::from_utf8_lossy(entry.body).replace('"', "\"\"");
        let (seq, kind, leaf) = (entry.seq, entry.kind, hex(entry.leaf));
        let correlation_id = entry.correlation_id.unwrap_or_default();
        write!(self.0, "{seq},{kind},{at},{correlation_id},{leaf},\"{body}\"\r\n")
    }

    fn end(mut self: Box<Self>) -> std::io::Result<()> {
        self.0.flush()
    }
}
