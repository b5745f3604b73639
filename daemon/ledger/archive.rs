//! Months that are taken out of the database, and what must not be.

use std::collections::HashMap;

use jiff::civil::Date;
use serde::Deserialize;
use tlog_tiles::tlog::{Hash, record_hash};
use tokio_postgres::{GenericClient, Transaction};

use super::LedgerError;
use super::raw::body_columns;
use super::statements::{Prepared, parameters};
use super::tree::TILE_WIDTH;

/// A month of entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Month {
    /// Its first day.
    pub month: Date,
    /// First entry.
    pub first: u64,
    /// Last entry.
    pub last: u64,
}

/// A hold that keeps something from being archived or erased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// Name.
    pub name: String,
    /// Months.
    pub months: Vec<Date>,
    /// Subjects, objects, rows.
    pub refs: Vec<String>,
    /// Why.
    pub reason: String,
    /// By whom.
    pub held_by: String,
}

/// Months with entries, oldest first, but for the one in which entries are written now.
pub async fn months(client: &impl GenericClient) -> Result<Vec<Month>, LedgerError> {
    let sql = "select month, min(seq), max(seq) from entry where month < (select month from tree) group by month order by month";
    let rows = client.query(sql, &[]).await?;
    let seq = |n: i64| u64::try_from(n).unwrap_or_default();
    rows.iter()
        .map(|row| {
            Ok(Month { month: row.try_get(0)?, first: seq(row.try_get(1)?), last: seq(row.try_get(2)?) })
        })
        .collect()
}

/// All holds.
pub async fn holds(client: &impl GenericClient) -> Result<Vec<Hold>, LedgerError> {
    let rows =
        client.query("select name, months, refs, reason, held_by from hold order by name", &[]).await?;
    let hold = |row: &tokio_postgres::Row| {
        Ok(Hold {
            name: row.try_get(0)?,
            months: row.try_get(1)?,
            refs: row.try_get(2)?,
            reason: row.try_get(3)?,
            held_by: row.try_get(4)?,
        })
    };
    rows.iter().map(hold).collect()
}

/// Names of holds that are about a month, or about something in it.
pub async fn held(client: &impl GenericClient, month: Date) -> Result<Vec<String>, LedgerError> {
    let sql = "select name from hold h where $1 = any (h.months)
               or exists (select from entry e where e.month = $1 and e.refs && h.refs) order by name";
    let rows = client.query(sql, &[&month]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// Open deliveries of a month's events.
pub async fn owed(client: &impl GenericClient, month: Date) -> Result<i64, LedgerError> {
    let sql = "select count(*) from delivery where event_month = $1 and open";
    Ok(client.query_one(sql, &[&month]).await?.try_get(0)?)
}

/// Takes a month out of the database: its leaves stay, and the events that are still needed.
pub async fn take_away(
    transaction: &Transaction<'_>,
    month: &Month,
    (file, sha256): (&str, &str),
) -> Result<(), LedgerError> {
    let (first, last) = (bound(month.first), bound(month.last));
    // What was found before the file was written may be something else by now.
    transaction.batch_execute("lock table hold in share mode").await?;
    if !held(transaction, month.month).await?.is_empty() || owed(transaction, month.month).await? > 0 {
        let next = "next: tailwater ledger hold list, tailwater deliveries list";
        return Err(LedgerError::Refused(format!("the month is held, or owed, by now; it stays\n{next}")));
    }
    // The newest of each lane says what an object should be; what waits or was set aside may be delivered again.
    transaction
        .execute(
            "insert into kept_event (seq, month, body)
             select e.seq, e.month, e.body from entry e
             where e.month = $1 and (e.kind = 'archive' or e.seq in (
               select event_seq from (select distinct on (target, object, canonical_id) event_seq, event_month
                                      from delivery order by target, object, canonical_id, id desc) newest
               where event_month = $1
               union select event_seq from delivery where event_month = $1 and aside
               union select event_seq from wish where event_seq between $2 and $3))",
            &[&month.month, &first, &last],
        )
        .await?;
    transaction
        .execute("delete from delivery d where d.event_month = $1 and not d.open and not exists (select from kept_event k where k.seq = d.event_seq)", &[&month.month])
        .await?;
    transaction.execute(KEEP_SUBJECTS, &[&month.month]).await?;
    keep_leaves(transaction, (month.first, month.last)).await?;
    let sql = "insert into archive (month, first_seq, last_seq, file, sha256) values ($1, $2, $3, $4, $5)";
    transaction.execute(sql, &[&month.month, &first, &last, &file, &sha256]).await?;
    let partition = partition(month.month);
    transaction
        .batch_execute(&format!("alter table entry detach partition {partition}; drop table {partition}"))
        .await?;
    Ok(())
}

const KEEP_SUBJECTS: &str = "
  insert into archived_subject (subject, seq, month, source, event_type, id, relation, key)
  select s.subject, e.seq, e.month, json #>> '{source,name}', json ->> 'type', json ->> 'id', c ->> 'relation', c ->> 'key'
  from (select seq, month, convert_from(body, 'UTF8')::jsonb as json from entry where month = $1 and kind = 'event') e
  cross join lateral jsonb_array_elements_text(case jsonb_typeof(json -> 'subjects') when 'array' then json -> 'subjects' end) s(subject)
  left join lateral jsonb_array_elements(case jsonb_typeof(json -> 'changes') when 'array' then json -> 'changes' end) c on true";

/// The leaves of entries, by tiles.
async fn keep_leaves(transaction: &Transaction<'_>, (first, last): (u64, u64)) -> Result<(), LedgerError> {
    let sql = format!(
        "insert into archived_leaves (first_seq, last_seq, hashes)
         select min(seq), max(seq), string_agg(leaf, ''::bytea order by seq)
         from entry where seq between $1 and $2 group by (seq - 1) / {TILE_WIDTH}"
    );
    transaction.execute(&sql, &[&bound(first), &bound(last)]).await?;
    Ok(())
}

/// Where an archived month is, and the digest of its file.
pub async fn archived(
    client: &impl GenericClient,
    month: Date,
) -> Result<Option<(Month, String, String)>, LedgerError> {
    let sql = "select first_seq, last_seq, file, sha256 from archive where month = $1";
    let Some(row) = client.query_opt(sql, &[&month]).await? else { return Ok(None) };
    let seq = |n: i64| u64::try_from(n).unwrap_or_default();
    let found = Month { month, first: seq(row.try_get(0)?), last: seq(row.try_get(1)?) };
    Ok(Some((found, row.try_get(2)?, row.try_get(3)?)))
}

/// Makes the partition that a month's entries are put back into.
pub async fn begin_restore(transaction: &Transaction<'_>, month: Date) -> Result<(), LedgerError> {
    Ok(transaction.execute("select open_month($1)", &[&month]).await.map(|_| ())?)
}

/// Puts entries back.
pub async fn restore(
    transaction: &Transaction<'_>,
    month: Date,
    bodies: &[Vec<u8>],
) -> Result<(), LedgerError> {
    let (mut seqs, mut kinds, mut times) = (Vec::new(), Vec::new(), Vec::new());
    let (mut ids, mut refs, mut leaves) = (Vec::new(), Vec::new(), Vec::new());
    for body in bodies {
        let columns =
            body_columns(body).ok_or_else(|| LedgerError::Unreadable("an archived entry".into()))?;
        seqs.push(columns.seq);
        kinds.push(columns.kind);
        times.push(columns.recorded_at);
        ids.push(columns.correlation_id);
        refs.push(columns.refs.join(super::entry::SEPARATOR));
        leaves.push(record_hash(body).0.to_vec());
    }
    let sql = "insert into entry (seq, month, kind, recorded_at, correlation_id, refs, body, leaf)
               select seq, $8, kind, recorded_at, correlation_id, string_to_array(refs, E'\\x01'), body, leaf
               from unnest($1::bigint[], $2::text[], $3::timestamptz[], $4::text[], $5::text[], $6::bytea[], $7::bytea[])
                 as w(seq, kind, recorded_at, correlation_id, refs, body, leaf)";
    transaction.execute(sql, &[&seqs, &kinds, &times, &ids, &refs, &bodies, &leaves, &month]).await?;
    Ok(())
}

/// The month is in the database again, if its leaves are those that were kept.
pub async fn end_restore(transaction: &Transaction<'_>, month: &Month) -> Result<bool, LedgerError> {
    let sql = "select coalesce(bool_and(a.hashes = e.hashes), false), coalesce(sum(a.last_seq - a.first_seq + 1), 0)::bigint
               from archived_leaves a
               left join lateral (select string_agg(leaf, ''::bytea order by seq) as hashes from entry
                                  where seq between a.first_seq and a.last_seq) e on true
               where a.first_seq >= $1 and a.last_seq <= $2";
    let row = transaction.query_one(sql, &[&bound(month.first), &bound(month.last)]).await?;
    let (equal, count): (bool, i64) = (row.try_get(0)?, row.try_get(1)?);
    if !equal || count != bound(month.last + 1 - month.first) {
        return Ok(false);
    }
    let range: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&bound(month.first), &bound(month.last)];
    transaction
        .execute("delete from archived_leaves where first_seq >= $1 and last_seq <= $2", &range)
        .await?;
    transaction.execute("delete from kept_event where month = $1", &[&month.month]).await?;
    transaction.execute("delete from archived_subject where month = $1", &[&month.month]).await?;
    transaction.execute("delete from archive where month = $1", &[&month.month]).await?;
    Ok(true)
}

/// Leaves of archived entries from `from` on, in order: the first entry and its hash.
pub async fn leaves_from(
    client: &impl GenericClient,
    from: u64,
) -> Result<Vec<(u64, Vec<Hash>)>, LedgerError> {
    let sql =
        "select first_seq, hashes from archived_leaves where last_seq >= $1 order by first_seq limit 400";
    let unreadable = || LedgerError::Unreadable("archived leaves".into());
    let rows = client.query(sql, &[&bound(from)]).await?;
    let mut found = Vec::new();
    for row in &rows {
        let first = u64::try_from(row.try_get::<_, i64>(0)?).map_err(|_| unreadable())?;
        let hashes: &[u8] = row.try_get(1)?;
        let hashes = hashes.chunks_exact(32).map(|hash| hash.try_into().map(Hash));
        found.push((first, hashes.collect::<Result<_, _>>().map_err(|_| unreadable())?));
    }
    Ok(found)
}

fn partition(month: Date) -> String {
    month.strftime("entry_%Y_%m").to_string()
}

/// From where to where entries lie in files: ranges next to each other are one.
pub async fn ranges(client: &impl GenericClient) -> Result<Vec<(u64, u64)>, LedgerError> {
    let sql = "select first_seq, last_seq from archived_leaves order by first_seq";
    let seq = |n: i64| u64::try_from(n).unwrap_or_default();
    let mut found: Vec<(u64, u64)> = Vec::new();
    for row in client.query(sql, &[]).await? {
        let (first, last) = (seq(row.try_get(0)?), seq(row.try_get(1)?));
        match found.last_mut().filter(|(_, before)| *before + 1 == first) {
            Some((_, before)) => *before = last,
            None => found.push((first, last)),
        }
    }
    Ok(found)
}

/// Bodies of archived entries that are kept, from `first` up to before `end`.
pub async fn kept_bodies(
    client: &impl GenericClient,
    (first, end): (u64, u64),
) -> Result<HashMap<u64, Vec<u8>>, LedgerError> {
    let sql = "select seq, body from kept_event where seq >= $1 and seq < $2";
    let rows = client.query(sql, &[&bound(first), &bound(end)]).await?;
    rows.iter()
        .map(|row| Ok((u64::try_from(row.try_get::<_, i64>(0)?).unwrap_or_default(), row.try_get(1)?)))
        .collect()
}

/// What an entry says of a month that went into a file, or came back.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ArchiveNote {
    /// First entry.
    pub first: u64,
    /// Last entry.
    pub last: u64,
    /// It came back.
    pub restored: bool,
}

/// See [`ArchiveNote`]; `None` for any other entry.
#[must_use]
pub fn archive_note(body: &[u8]) -> Option<ArchiveNote> {
    serde_json::from_slice(body).ok()
}

/// Everything that entries say of archives, in their order; those that are here and those that were kept.
pub async fn archive_notes(client: &impl GenericClient) -> Result<Vec<ArchiveNote>, LedgerError> {
    let sql = "select seq, body from entry where kind = 'archive'
               union all select seq, body from kept_event where position('\"kind\":\"archive\"'::bytea in body) > 0 order by 1";
    let rows = client.query(sql, &[]).await?;
    Ok(rows.iter().filter_map(|row| archive_note(row.try_get(1).ok()?)).collect())
}

/// What must not be taken away from now on.
pub(super) fn hold(
    name: String,
    (months, refs): (Vec<Date>, Vec<String>),
    (reason, held_by): (String, String),
    out: &mut Vec<Prepared>,
) {
    out.push(("select place_hold($1, $2, $3, $4, $5)", parameters![name, months, refs, reason, held_by]));
}

fn bound(seq: u64) -> i64 {
    i64::try_from(seq).unwrap_or(i64::MAX)
}
