//! Rows of a table in chunks by key, each as of a moment that the stream can be compared with.
//!
//! A watermark is a small transaction of ours in the WAL (`pg_logical_emit_message`); nothing is written to any table. What
//! the stream brings between the two watermarks of a chunk is newer than the chunk, or the same.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures_util::{StreamExt, pin_mut};
use tokio_postgres::Client;

use super::catalog::{qualified, quote};
use super::copy::{CopyError, CopyReader, Rows};
use super::transaction::MESSAGE_PREFIX;
use super::types::Types;
use crate::event::Row;
use crate::mapping::{SourceMapping, TableSpec};
use crate::pg::{ConnectError, Database};

/// Rows read back in one query.
const READ_BACK_KEYS: usize = 200;

/// Why rows could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ChunkError {
    /// The source.
    #[error("{}", crate::pg::describe(.0))]
    Source(#[from] tokio_postgres::Error),
    /// It cannot be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// What it sent.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// The server's snapshot is not what it documents.
    #[error("`{0}` is not a snapshot")]
    Snapshot(String),
}

/// Which transactions a chunk can see (`pg_current_snapshot`), by the low 32 bits of their ids, as the stream has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    xmax: u32,
    running: Vec<u32>,
}

impl Snapshot {
    /// Parses `xmin:xmax:xip,…`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let low = |text: &str| {
            text.parse::<u64>().ok().map(|xid| u32::try_from(xid & 0xFFFF_FFFF).unwrap_or_default())
        };
        let mut parts = text.split(':');
        let (_, xmax, running) = (low(parts.next()?)?, low(parts.next()?)?, parts.next()?);
        let running = running.split(',').filter(|xid| !xid.is_empty()).map(low).collect::<Option<_>>()?;
        Some(Self { xmax, running })
    }

    /// True when the changes of a committed transaction are in the chunk. A commit is in the WAL a moment before others
    /// can see it, longer with synchronous replication.
    #[must_use]
    pub fn sees(&self, xid: u32) -> bool {
        // Ids are compared modulo 2^32, as PostgreSQL does.
        let before_xmax = xid.wrapping_sub(self.xmax).cast_signed() < 0;
        before_xmax && !self.running.contains(&xid)
    }
}

/// Transactions of the whole server that run now, by their full ids.
pub async fn running(client: &Client) -> Result<HashSet<String>, ChunkError> {
    let text: String = client.query_one("select pg_current_snapshot()::text", &[]).await?.try_get(0)?;
    let running = text.splitn(3, ':').nth(2).ok_or_else(|| ChunkError::Snapshot(text.clone()))?;
    Ok(running.split(',').filter(|xid| !xid.is_empty()).map(str::to_owned).collect())
}

/// Writes a watermark; when this returns it is in the WAL.
pub async fn emit(client: &Client, text: &str) -> Result<(), tokio_postgres::Error> {
    let sql = "select pg_logical_emit_message(true, $1::text, $2::text)";
    client.query_one(sql, &[&MESSAGE_PREFIX, &text]).await.map(|_| ())
}

/// The next rows after key `after`, at most `limit`, in the order of their keys; and what they could see.
pub async fn read(
    client: &Client,
    table: &TableSpec,
    after: Option<&[String]>,
    upper: Option<&[String]>,
    limit: i64,
) -> Result<(Rows, Snapshot), ChunkError> {
    client.batch_execute("begin isolation level repeatable read read only").await?;
    let read = async {
        let text: String = client.query_one("select pg_current_snapshot()::text", &[]).await?.try_get(0)?;
        let snapshot = Snapshot::parse(&text).ok_or(ChunkError::Snapshot(text))?;
        let mut conditions = String::new();
        for (operator, bound) in [(">", after), ("<=", upper)] {
            if let Some(bound) = bound {
                let word = if conditions.is_empty() { "where" } else { "and" };
                conditions.push_str(&format!(" {word} {}", compared(table, operator, bound)));
            }
        }
        let order: Vec<String> = table.key.iter().map(|column| quote(column)).collect();
        let rows =
            select(client, table, &format!("{conditions} order by {} limit {limit}", order.join(", ")))
                .await?;
        Ok((rows, snapshot))
    };
    let result = read.await;
    // Ends the transaction whatever came of it: no lock is held any longer than a chunk takes.
    client.batch_execute("rollback").await?;
    result
}

/// Rows as they are now, given by table and key; one that is gone by now is not among them.
pub async fn read_back<'a>(
    database: &Database,
    mapping: &SourceMapping,
    wanted: impl IntoIterator<Item = &'a (Arc<str>, String)>,
) -> Result<HashMap<(Arc<str>, String), Row>, ChunkError> {
    let mut by_table: HashMap<&str, Vec<&str>> = HashMap::new();
    for (table, key) in wanted {
        by_table.entry(table).or_default().push(key);
    }
    let mut found = HashMap::new();
    if by_table.is_empty() {
        return Ok(found);
    }
    let client = database.connect("tailwater-read-back").await?;
    for (name, keys) in by_table {
        let Some(table) = mapping.table_named(name) else { continue };
        for keys in keys.chunks(READ_BACK_KEYS) {
            let compare = |key: &&str| compared(table, "=", &split_key(table, key));
            let conditions: Vec<String> = keys.iter().map(compare).collect();
            let rows = select(&client, table, &format!(" where {}", conditions.join(" or "))).await?;
            found.extend(rows.rows.into_iter().map(|(key, row)| ((table.name.clone(), key), row)));
        }
    }
    Ok(found)
}

/// Rows of a table.
async fn select(client: &Client, table: &TableSpec, rest: &str) -> Result<Rows, ChunkError> {
    // A mapped column that the table has no more is left out, as the stream leaves it out.
    let sql = "select attname::text, atttypid, attlen < 0 from pg_attribute
               where attrelid = $1::text::regclass and attnum > 0 and not attisdropped";
    let mut existing = HashMap::new();
    for row in client.query(sql, &[&qualified(table)]).await? {
        let of_any_length: bool = row.try_get(2)?;
        existing.insert(row.try_get::<_, String>(0)?, (row.try_get::<_, u32>(1)?, of_any_length));
    }
    let types = Types::load(client).await?;
    let mut found = TableSpec { columns: Vec::new(), ..table.clone() };
    let (mut forms, mut columns, mut sizes) = (Vec::new(), Vec::new(), Vec::new());
    for column in &table.columns {
        let Some((type_oid, of_any_length)) = existing.get(&**column) else { continue };
        found.columns.push(column.clone());
        forms.push(types.form(*type_oid));
        // A key that is too long is told of by its beginning, so it is read.
        if !of_any_length || table.key.contains(column) {
            columns.push(quote(column));
            continue;
        }
        let (name, too_large) = (quote(column), too_large(table, column));
        columns.push(format!("case when not coalesce({too_large}, false) then {name} end"));
        let said = postgres_protocol::escape::escape_literal(&format!("{column}|"));
        sizes.push(format!("case when {too_large} then {said} || octet_length({name}::text) end"));
    }
    columns.push(format!(
        "concat_ws(E'\\n', {})",
        if sizes.is_empty() { "''".into() } else { sizes.join(", ") }
    ));
    let mut reader = CopyReader::new(&found, forms);
    let sql = format!("copy (select {} from {}{rest}) to stdout", columns.join(", "), qualified(table));
    let stream = client.copy_out(&sql).await?;
    pin_mut!(stream);
    let mut rows = Rows::default();
    while let Some(chunk) = stream.next().await {
        reader.push(&chunk?, &mut rows)?;
    }
    Ok(rows)
}

/// SQL that is true of a value beyond its bound. The text of what is stored in few bytes is not made: nothing that PostgreSQL
/// compresses is so many times longer.
fn too_large(table: &TableSpec, column: &Arc<str>) -> String {
    /// pglz and lz4 both come to some 255.
    const COMPRESSED_AT_MOST: usize = 300;
    let (most, name) = (table.most_bytes(column), quote(column));
    format!(
        "(pg_column_size({name}) > {} and octet_length({name}::text) > {most})",
        most / COMPRESSED_AT_MOST
    )
}

/// `(a, b) > ('1', '2')`: untyped literals take the types of the columns.
fn compared(table: &TableSpec, operator: &str, key: &[String]) -> String {
    let columns: Vec<String> = table.key.iter().map(|column| quote(column)).collect();
    let values: Vec<String> =
        key.iter().map(|value| postgres_protocol::escape::escape_literal(value)).collect();
    format!("({}) {operator} ({})", columns.join(", "), values.join(", "))
}

/// The key columns of a row key, as [`crate::event::row_key`] joined them.
#[must_use]
pub fn split_key(table: &TableSpec, key: &str) -> Vec<String> {
    match table.key.as_slice() {
        [_] => vec![key.to_owned()],
        _ => serde_json::from_str(key).unwrap_or_default(),
    }
}

/// How a table may be divided: rows expected, and the bounds between ranges of about equal length.
#[derive(Debug, Clone, Default)]
pub struct Division {
    /// Rows expected.
    pub estimated: i64,
    /// Upper ends of all ranges but the last.
    pub bounds: Vec<String>,
}

/// Tables smaller than this are one range.
const DIVIDED_ROWS: i64 = 5_000;

/// Divides a table into at most `ranges` ranges, if its key is one integer.
pub async fn divide(
    client: &Client,
    table: &TableSpec,
    ranges: i64,
) -> Result<Division, tokio_postgres::Error> {
    // Never analysed tables have no estimate; their size gives one.
    let sql = "select greatest(c.reltuples::bigint, pg_relation_size(c.oid) / 200) from pg_class c where c.oid = $1::text::regclass";
    let estimated: i64 = client.query_one(sql, &[&qualified(table)]).await?.try_get(0)?;
    let mut division = Division { estimated, bounds: Vec::new() };
    let [key] = table.key.as_slice() else { return Ok(division) };
    if estimated < DIVIDED_ROWS || ranges < 2 {
        return Ok(division);
    }
    let key = quote(key);
    let sql = format!(
        "select min({key})::text, max({key})::text from {} having pg_typeof(min({key})) in
         ('integer'::regtype, 'bigint'::regtype, 'smallint'::regtype)",
        qualified(table)
    );
    let Some(row) = client.query_opt(&sql, &[]).await? else { return Ok(division) };
    let end = |index| row.try_get::<_, Option<String>>(index).ok().flatten()?.parse::<i64>().ok();
    if let (Some(first), Some(last)) = (end(0), end(1)) {
        let step = last.saturating_sub(first) / ranges;
        division.bounds = (1..ranges).map(|n| (first + step * n).to_string()).collect();
    }
    Ok(division)
}

/// What a table is at the source, beyond its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Name in the mapping.
    pub table: Arc<str>,
    /// OID of the table: another one means that it was dropped and made again.
    pub oid: u32,
    /// OID of its membership in the publication: another one means that it had left it.
    pub member: u32,
    /// Numbers and types of the mapped columns, and the partitions with their files (TRUNCATE of one partition is in no stream, and
    /// gives it another file): they change without a word in the stream, and what is
    /// in the images may then be something else.
    pub shape: String,
}

/// What the mapped tables are that exist and are published.
pub async fn identities(
    client: &Client,
    tables: &[TableSpec],
    publication: &str,
) -> Result<Vec<Identity>, tokio_postgres::Error> {
    let sql = "select r.prrelid, r.oid, concat_ws('; ',
                 (select string_agg(attnum || ':' || atttypid, ' ' order by attnum) from pg_attribute
                  where attrelid = r.prrelid and attname = any ($3::text[]) and attnum > 0 and not attisdropped),
                 (select string_agg(concat_ws('/', relid::oid, pg_relation_filenode(relid)), ' ' order by relid::oid)
                  from pg_partition_tree(r.prrelid) where relid <> r.prrelid))
               from pg_publication_rel r join pg_publication p on p.oid = r.prpubid
               where p.pubname = $1 and r.prrelid = to_regclass($2)";
    let mut found = Vec::new();
    for table in tables {
        let columns: Vec<&str> = table.columns.iter().map(|column| &**column).collect();
        let row = client.query_opt(sql, &[&publication, &qualified(table), &columns]).await?;
        if let Some(row) = row {
            let (oid, member, shape) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            found.push(Identity { table: table.name.clone(), oid, member, shape });
        }
    }
    Ok(found)
}
