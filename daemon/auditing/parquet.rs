//! Entries as Apache Parquet, a thousand in a row group.

use std::io::Write;
use std::sync::Arc;

use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, DataType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;

use super::export::Form;
use crate::ledger::raw::RawEntry;

/// Columns.
const SCHEMA: &str = "message entry {
  required int64 seq;
  required binary kind (string);
  required int64 recorded_at (timestamp(micros, true));
  optional binary correlation_id (string);
  required binary leaf;
  required binary body (json);
}";
/// Entries in a row group.
const GROUP: usize = 1_000;

/// See the module's text.
pub struct Table<W: Write + Send> {
    writer: SerializedFileWriter<W>,
    group: Group,
}

#[derive(Default)]
struct Group {
    seqs: Vec<i64>,
    kinds: Vec<ByteArray>,
    times: Vec<i64>,
    correlation_ids: Vec<ByteArray>,
    /// 1 where there is one.
    has_correlation_id: Vec<i16>,
    leaves: Vec<ByteArray>,
    bodies: Vec<ByteArray>,
}

impl<W: Write + Send> Table<W> {
    /// A table that is written to `sink`.
    pub fn begin(sink: W) -> Result<Self, ParquetError> {
        let schema = Arc::new(parse_message_type(SCHEMA)?);
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_created_by(format!("tailwater {}", env!("CARGO_PKG_VERSION")))
            .build();
        let writer = SerializedFileWriter::new(sink, schema, Arc::new(properties))?;
        Ok(Self { writer, group: Group::default() })
    }

    fn flush(&mut self) -> Result<(), ParquetError> {
        let group = std::mem::take(&mut self.group);
        if group.seqs.is_empty() {
            return Ok(());
        }
        let mut rows = self.writer.next_row_group()?;
        column::<Int64Type, W>(&mut rows, &group.seqs, None)?;
        column::<ByteArrayType, W>(&mut rows, &group.kinds, None)?;
        column::<Int64Type, W>(&mut rows, &group.times, None)?;
        column::<ByteArrayType, W>(&mut rows, &group.correlation_ids, Some(&group.has_correlation_id))?;
        column::<ByteArrayType, W>(&mut rows, &group.leaves, None)?;
        column::<ByteArrayType, W>(&mut rows, &group.bodies, None)?;
        rows.close().map(|_| ())
    }
}

fn column<T: DataType, W: Write + Send>(
    rows: &mut SerializedRowGroupWriter<'_, W>,
    values: &[T::T],
    present: Option<&[i16]>,
) -> Result<(), ParquetError> {
    let missing = || ParquetError::General("a column too many".into());
    let mut column = rows.next_column()?.ok_or_else(missing)?;
    column.typed::<T>().write_batch(values, present, None)?;
    column.close()
}

impl<W: Write + Send> Form for Table<W> {
    fn entry(&mut self, entry: &RawEntry<'_>) -> std::io::Result<()> {
        let bytes = |bytes: &[u8]| ByteArray::from(bytes.to_vec());
        let group = &mut self.group;
        group.seqs.push(entry.seq);
        group.kinds.push(bytes(entry.kind.as_bytes()));
        group.times.push(entry.recorded_at_us);
        group.has_correlation_id.push(i16::from(entry.correlation_id.is_some()));
        group.correlation_ids.extend(entry.correlation_id.map(|id| bytes(id.as_bytes())));
        group.leaves.push(bytes(entry.leaf));
        group.bodies.push(bytes(entry.body));
        if group.seqs.len() < GROUP {
            return Ok(());
        }
        self.flush().map_err(std::io::Error::other)
    }

    fn end(mut self: Box<Self>) -> std::io::Result<()> {
        self.flush().map_err(std::io::Error::other)?;
        self.writer.close().map(|_| ()).map_err(std::io::Error::other)
    }
}
