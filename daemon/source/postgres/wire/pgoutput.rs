//! Messages of the `pgoutput` plugin, protocol version 1.
//!
//! Source: <https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html>. Messages of later
//! versions (streamed and prepared transactions) are refused: the stream is opened with `proto_version '1'`.

use super::reader::{DecodeError, FieldReader};
use crate::event::Lsn;

/// Kind of a column that stands for one which was left out while the stream was read; the protocol has no such kind. Its length
/// follows, in 8 bytes.
pub const LEFT_OUT: u8 = b'!';

/// A column of a relation message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationColumn {
    /// Part of the replica identity.
    pub key: bool,
    /// Column name.
    pub name: String,
    /// OID of its type.
    pub type_oid: u32,
}

/// Describes a table; sent before its first row and after each change of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationMessage {
    /// OID of the table, by which rows refer to it.
    pub oid: u32,
    /// Schema; empty stands for `pg_catalog`.
    pub schema: String,
    /// Table name.
    pub name: String,
    /// `d` default, `n` nothing, `f` full, `i` index.
    pub replica_identity: u8,
    /// Columns in order.
    pub columns: Vec<RelationColumn>,
}

/// One column of a tuple.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TupleValue<'a> {
    /// SQL NULL.
    Null,
    /// TOASTed and unchanged: not sent (INV-7).
    Unchanged,
    /// Text form.
    Text(&'a [u8]),
    /// Binary form, only with option `binary`.
    Binary(&'a [u8]),
    /// Larger than anything that is kept, and left out while the stream was read (`condense`): its length.
    LeftOut(u64),
}

/// A row image, still as it was sent. Its columns were walked once when it was decoded, so reading them cannot fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuple<'a> {
    columns: u16,
    bytes: &'a [u8],
}

impl<'a> Tuple<'a> {
    /// Number of columns.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::from(self.columns)
    }

    /// True for a table without columns.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.columns == 0
    }

    /// The columns in order.
    pub fn values(&self) -> impl Iterator<Item = TupleValue<'a>> + use<'a> {
        let mut rest = self.bytes;
        std::iter::from_fn(move || {
            let (value, after) = first_value(rest)?;
            rest = after;
            Some(value)
        })
    }
}

/// The first column of what is left of a tuple; `None` at its end, and for what the protocol does not know.
#[inline]
fn first_value(bytes: &[u8]) -> Option<(TupleValue<'_>, &[u8])> {
    let (kind, rest) = bytes.split_first()?;
    match kind {
        b'n' => Some((TupleValue::Null, rest)),
        b'u' => Some((TupleValue::Unchanged, rest)),
        b't' | b'b' => {
            let (length, rest) = rest.split_first_chunk::<4>()?;
            let length = usize::try_from(i32::from_be_bytes(*length)).ok()?;
            let (value, rest) = rest.split_at_checked(length)?;
            Some((if *kind == b't' { TupleValue::Text(value) } else { TupleValue::Binary(value) }, rest))
        }
        &LEFT_OUT => {
            let (length, rest) = rest.split_first_chunk::<8>()?;
            Some((TupleValue::LeftOut(u64::from_be_bytes(*length)), rest))
        }
        _ => None,
    }
}

/// Which old columns came with an update or delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OldTuple<'a> {
    /// `K`: the key columns, all others null.
    Key(Tuple<'a>),
    /// `O`: the whole old row (REPLICA IDENTITY FULL).
    Full(Tuple<'a>),
}

impl<'a> OldTuple<'a> {
    /// The columns themselves.
    #[must_use]
    pub fn tuple(&self) -> Tuple<'a> {
        match self {
            Self::Key(tuple) | Self::Full(tuple) => *tuple,
        }
    }
}

/// A message of the logical stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogicalMessage<'a> {
    /// Start of a committed transaction.
    Begin {
        /// LSN of its commit record.
        commit_lsn: Lsn,
        /// Microseconds since 2000-01-01 UTC.
        committed_at_us: i64,
        /// Transaction id.
        xid: u32,
    },
    /// End of a transaction.
    Commit {
        /// LSN of the commit record.
        commit_lsn: Lsn,
        /// Just after it: what may be confirmed.
        end_lsn: Lsn,
        /// Microseconds since 2000-01-01 UTC.
        committed_at_us: i64,
    },
    /// The transaction came from another node.
    Origin {
        /// Its name.
        name: String,
    },
    /// Table description.
    Relation(RelationMessage),
    /// Type description (only for types that are not built in).
    Type {
        /// OID of the type.
        oid: u32,
        /// Schema.
        schema: String,
        /// Name.
        name: String,
    },
    /// A new row.
    Insert {
        /// Table.
        relation_oid: u32,
        /// The row.
        new: Tuple<'a>,
    },
    /// A changed row.
    Update {
        /// Table.
        relation_oid: u32,
        /// Present when the key changed, or with identity FULL.
        old: Option<OldTuple<'a>>,
        /// The row.
        new: Tuple<'a>,
    },
    /// A deleted row.
    Delete {
        /// Table.
        relation_oid: u32,
        /// Key or whole row.
        old: OldTuple<'a>,
    },
    /// Tables emptied.
    Truncate {
        /// Tables.
        relation_oids: Vec<u32>,
    },
    /// `pg_logical_emit_message`.
    Message {
        /// Part of the transaction.
        transactional: bool,
        /// Prefix given by the sender.
        prefix: String,
        /// Content.
        content: &'a [u8],
    },
}

/// Decodes one pgoutput message.
pub fn decode(payload: &[u8]) -> Result<LogicalMessage<'_>, DecodeError> {
    let tag = FieldReader::new("pgoutput", payload).peek("tag")?;
    let name = message_name(tag);
    let mut fields = FieldReader::new(name, payload);
    fields.u8("tag")?;
    let message = match tag {
        b'B' => {
            let commit_lsn = Lsn(fields.u64("finalLsn")?);
            let committed_at_us = fields.i64("commitTime")?;
            LogicalMessage::Begin { commit_lsn, committed_at_us, xid: fields.u32("xid")? }
        }
        b'C' => {
            let _flags = fields.u8("flags")?;
            let commit_lsn = Lsn(fields.u64("commitLsn")?);
            let end_lsn = Lsn(fields.u64("endLsn")?);
            LogicalMessage::Commit { commit_lsn, end_lsn, committed_at_us: fields.i64("commitTime")? }
        }
        b'O' => {
            let _commit_lsn = fields.u64("commitLsn")?;
            LogicalMessage::Origin { name: fields.string("name")? }
        }
        b'R' => LogicalMessage::Relation(relation(&mut fields)?),
        b'Y' => {
            let oid = fields.u32("oid")?;
            let schema = fields.string("namespace")?;
            LogicalMessage::Type { oid, schema, name: fields.string("name")? }
        }
        b'I' => insert(&mut fields)?,
        b'U' => update(&mut fields)?,
        b'D' => delete(&mut fields)?,
        b'T' => truncate(&mut fields)?,
        b'M' => {
            let transactional = fields.u8("flags")? & 1 == 1;
            let _lsn = fields.u64("lsn")?;
            let prefix = fields.string("prefix")?;
            LogicalMessage::Message { transactional, prefix, content: fields.sized("content")? }
        }
        other => return Err(fields.unknown_tag("tag", other)),
    };
    fields.end()?;
    Ok(message)
}

fn message_name(tag: u8) -> &'static str {
    match tag {
        b'B' => "Begin",
        b'C' => "Commit",
        b'O' => "Origin",
        b'R' => "Relation",
        b'Y' => "Type",
        b'I' => "Insert",
        b'U' => "Update",
        b'D' => "Delete",
        b'T' => "Truncate",
        b'M' => "Message",
        _ => "pgoutput",
    }
}

fn relation(fields: &mut FieldReader<'_>) -> Result<RelationMessage, DecodeError> {
    let oid = fields.u32("oid")?;
    let schema = fields.string("namespace")?;
    let name = fields.string("name")?;
    let replica_identity = fields.u8("replicaIdentity")?;
    let count = fields.u16("columnCount")?;
    let mut columns = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        let key = fields.u8("columnFlags")? & 1 == 1;
        let name = fields.string("columnName")?;
        let type_oid = fields.u32("columnType")?;
        let _modifier = fields.i32("columnModifier")?;
        columns.push(RelationColumn { key, name, type_oid });
    }
    Ok(RelationMessage { oid, schema, name, replica_identity, columns })
}

fn insert<'a>(fields: &mut FieldReader<'a>) -> Result<LogicalMessage<'a>, DecodeError> {
    let relation_oid = fields.u32("relation")?;
    match fields.u8("newTag")? {
        b'N' => Ok(LogicalMessage::Insert { relation_oid, new: tuple(fields)? }),
        tag => Err(fields.unknown_tag("newTag", tag)),
    }
}

fn update<'a>(fields: &mut FieldReader<'a>) -> Result<LogicalMessage<'a>, DecodeError> {
    let relation_oid = fields.u32("relation")?;
    let mut tag = fields.u8("tupleTag")?;
    let mut old = None;
    if tag == b'K' || tag == b'O' {
        let image = tuple(fields)?;
        old = Some(if tag == b'K' { OldTuple::Key(image) } else { OldTuple::Full(image) });
        tag = fields.u8("newTag")?;
    }
    match tag {
        b'N' => Ok(LogicalMessage::Update { relation_oid, old, new: tuple(fields)? }),
        tag => Err(fields.unknown_tag("newTag", tag)),
    }
}

fn delete<'a>(fields: &mut FieldReader<'a>) -> Result<LogicalMessage<'a>, DecodeError> {
    let relation_oid = fields.u32("relation")?;
    let old = match fields.u8("oldTag")? {
        b'K' => OldTuple::Key(tuple(fields)?),
        b'O' => OldTuple::Full(tuple(fields)?),
        tag => return Err(fields.unknown_tag("oldTag", tag)),
    };
    Ok(LogicalMessage::Delete { relation_oid, old })
}

fn truncate<'a>(fields: &mut FieldReader<'a>) -> Result<LogicalMessage<'a>, DecodeError> {
    let count = fields.u32("relationCount")?;
    let _options = fields.u8("options")?;
    let mut relation_oids = Vec::new();
    for _ in 0..count {
        relation_oids.push(fields.u32("relation")?);
    }
    Ok(LogicalMessage::Truncate { relation_oids })
}

fn tuple<'a>(fields: &mut FieldReader<'a>) -> Result<Tuple<'a>, DecodeError> {
    let columns = fields.u16("tuple.columnCount")?;
    let whole = fields.rest();
    let mut rest = whole;
    for _ in 0..columns {
        match first_value(rest) {
            Some((_, after)) => rest = after,
            None => return Err(broken_column(FieldReader::new("tuple", rest))),
        }
    }
    let bytes = fields.bytes("tuple", whole.len() - rest.len())?;
    Ok(Tuple { columns, bytes })
}

/// What is wrong with a column that is none.
fn broken_column(mut fields: FieldReader<'_>) -> DecodeError {
    let wrong = match fields.u8("column.kind") {
        Ok(b't' | b'b') => fields.sized("column.value").err(),
        Ok(tag) => Some(fields.unknown_tag("column.kind", tag)),
        Err(error) => Some(error),
    };
    wrong.unwrap_or(DecodeError::Truncated { message: "tuple", field: "column" })
}
