//! Questions of auditors, answered from the views in schema `tailwater_audit`. All of one transaction are one reading, which the daemon
//! writes into the ledger.

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, IsolationLevel, Transaction};

use super::LedgerError;
use super::keyring::Master;

/// Somebody who reads, and has said so.
pub struct Reading<'a> {
    transaction: Transaction<'a>,
    /// With which what is sealed is opened, where that is wanted.
    master: Master,
}

/// What is said of a row.
const CHANGE: &str = "jsonb_build_object('seq', c.seq, 'recorded_at', c.recorded_at, 'committed_at', c.committed_at,
  'table', c.table_name, 'key', c.key, 'operation', c.operation, 'by', c.changed_by, 'before', c.before, 'after', c.after, 'sealed', c.sealed,
  'event', c.event_type, 'id', c.id, 'source', c.source, 'xid', c.xid, 'commit_lsn', c.commit_lsn, 'ordinal', c.ordinal,
  'event_id', c.correlation_id)";

/// Notes that `what` is read, by itself.
pub async fn note(client: &Client, what: &str, details: &str) -> Result<(), LedgerError> {
    client.execute("select tailwater_audit.noted($1, $2)", &[&what, &details]).await?;
    Ok(())
}

impl<'a> Reading<'a> {
    /// Begins, and notes `what` is read; `kind`: `read` or `export`.
    pub async fn begin(
        client: &'a mut Client,
        kind: &str,
        (what, details): (&str, &str),
        master: Master,
    ) -> Result<Self, LedgerError> {
        // By itself: what is read afterwards is noted whatever becomes of that.
        let opened = if master.is_set() { " (unsealed)" } else { "" };
        client.execute("select noted($1, $2, $3)", &[&what, &format!("{details}{opened}"), &kind]).await?;
        let begun = client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).start();
        Ok(Self { transaction: begun.await?, master })
    }

    /// The transaction.
    #[must_use]
    pub fn transaction(&self) -> &Transaction<'a> {
        &self.transaction
    }

    /// Ends.
    pub async fn end(self) -> Result<(), LedgerError> {
        Ok(self.transaction.commit().await?)
    }

    /// An entry as it stands.
    pub async fn entry(&self, seq: i64) -> Result<Option<Value>, LedgerError> {
        let sql = "select json || jsonb_build_object('leaf', encode(leaf, 'hex'), 'refs', to_jsonb(refs)) from entry where seq = $1";
        Ok(self.values(sql, &[&seq]).await?.into_iter().next())
    }

    /// Changes of a row, oldest first; one that led to several events once.
    pub async fn history(&self, table: &str, key: &str) -> Result<Vec<Value>, LedgerError> {
        let sql = format!(
            "select {CHANGE} from (
               select distinct on (c.source, c.commit_lsn, c.before, c.after) c.* from change c
               where c.refs @> array[$1 || '/' || $2] and c.table_name = $1 and c.key = $2
               order by c.source, c.commit_lsn, c.before, c.after, c.seq) c order by c.seq"
        );
        self.values(&sql, &[&table, &key]).await
    }

    /// Sources that have told of a row.
    pub async fn sources(&self, table: &str, key: &str) -> Result<Vec<String>, LedgerError> {
        let sql = "select distinct c.source from change c
                   where c.refs @> array[$1 || '/' || $2] and c.table_name = $1 and c.key = $2 order by 1";
        let rows = self.transaction.query(sql, &[&table, &key]).await?;
        rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
    }

    /// The last change of a row of `source` that was committed by then, and the first one after it.
    pub async fn around(
        &self,
        source: &str,
        (table, key): (&str, &str),
        at: Timestamp,
    ) -> Result<(Option<Value>, Option<Value>), LedgerError> {
        let one = async |is: &str, order: &str| {
            let sql = format!(
                "select {CHANGE} from change c where c.refs @> array[$1 || '/' || $2] and c.table_name = $1 and c.key = $2
                   and c.committed_at {is} $3 and c.source = $4 order by c.seq {order} limit 1"
            );
            Ok::<_, LedgerError>(self.values(&sql, &[&table, &key, &at, &source]).await?.into_iter().next())
        };
        Ok((one("<=", "desc").await?, one(">", "asc").await?))
    }

    /// Rows that changed between two times, each once: as it was before and after all of it.
    pub async fn differences(
        &self,
        (from, to): (Timestamp, Timestamp),
        table: Option<&str>,
    ) -> Result<Vec<Value>, LedgerError> {
        let sql = "select jsonb_build_object('source', source, 'table', table_name, 'key', key, 'before', first_before, 'after', last_after, 'sealed', sealed,
                                             'changes', changes, 'by', people, 'first_seq', first_seq, 'last_seq', last_seq)
                   from (
                     select source, table_name, key, (array_agg(before order by seq))[1] as first_before,
                            (array_agg(after order by seq desc))[1] as last_after, count(distinct (source, commit_lsn)) as changes,
                            array_agg(distinct changed_by) filter (where changed_by is not null) as people,
                            min(seq) as first_seq, max(seq) as last_seq,
                            jsonb_path_query_array(jsonb_agg(sealed), '$[*][*]') as sealed
                     from change
                     where recorded_at >= $1::timestamptz - interval '1 day' and committed_at > $1 and committed_at <= $2
                       and ($3::text is null or table_name = $3)
                     group by source, table_name, key) d
                   where first_before is distinct from last_after order by table_name, key, source";
        self.values(sql, &[&from, &to, &table]).await
    }

    /// What an id may be: events that are about it, newest first.
    pub async fn stories(&self, id: &str, last: i64) -> Result<Vec<String>, LedgerError> {
        let sql = "
          with named(ref) as (
            select $1::text union select i.system || '/' || i.external_id from identity i where i.external_id = $1),
          found(correlation_id, seq) as (
            select correlation_id, seq from entry where correlation_id = $1
            union all
            select correlation_id, seq from entry where seq = $2 and correlation_id is not null
            union all
            select e.correlation_id, e.seq from entry e where e.refs && (select array_agg(ref) from named)
              and e.correlation_id is not null)
          select correlation_id from found group by correlation_id order by min(seq) desc limit $3";
        let seq: i64 = id.parse().unwrap_or_default();
        let rows = self.transaction.query(sql, &[&id, &seq, &last]).await?;
        rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
    }

    /// All entries of a story, in order.
    pub async fn story(&self, correlation_id: &str) -> Result<Vec<Value>, LedgerError> {
        self.values("select json from entry where correlation_id = $1 order by seq", &[&correlation_id]).await
    }

    /// The first entry recorded at or after `at`, or the last one recorded at or before it.
    pub async fn seq_at(&self, at: Timestamp, is_end: bool) -> Result<Option<i64>, LedgerError> {
        let sql = if is_end {
            "select max(seq) from entry where recorded_at <= $1"
        } else {
            "select min(seq) from entry where recorded_at >= $1"
        };
        Ok(self.transaction.query_one(sql, &[&at]).await?.try_get(0)?)
    }

    async fn values(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Value>, LedgerError> {
        let rows = self.transaction.query(sql, parameters).await?;
        // An earlier version may have written what is nested too deeply for the reader.
        let unreadable = |_| json!({"unreadable": "it is nested too deeply"});
        let mut values: Vec<Value> =
            rows.iter().map(|row| row.try_get(0).unwrap_or_else(unreadable)).collect();
        self.master.unseal(&self.transaction, &mut values.iter_mut().collect::<Vec<_>>()).await?;
        Ok(values)
    }
}
