//! Forgets a data subject: destroys the key of what is sealed, and takes what is in clear out of every table that is state. Entries stay as
//! they are, and with them the tree and every proof.

use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use super::LedgerError;
use super::dispatch_statements::rehead;
use super::statements::{Prepared, parameters};

/// Who is forgotten, and where something of them is in clear.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Erasure {
    /// Canonical id of the subject.
    pub subject: String,
    /// Why.
    pub reason: String,
    /// Rows of the source that are theirs, as far as they are known.
    pub rows: Vec<ErasedRow>,
    /// Personal fields of events, by type.
    pub fields: Vec<(String, Vec<String>)>,
}

/// A row, and what of it is personal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErasedRow {
    /// Source.
    pub source: String,
    /// Table.
    pub relation: String,
    /// Key.
    pub key: String,
    /// Columns.
    pub columns: Vec<String>,
}

/// Deliveries of what the subject is that are still to be made.
pub async fn owed(client: &Client, subject: &str) -> Result<i64, LedgerError> {
    let sql = "select count(*) from delivery d join entry e on e.seq = d.event_seq and e.month = d.event_month
               where d.open and d.operation = 'upsert' and e.refs @> array[$1::text]
                 and right(convert_from(e.body, 'UTF8')::jsonb #>> '{data,~sealed}', length($1) + 1) = ' ' || $1";
    Ok(client.query_one(sql, &[&subject]).await?.try_get(0)?)
}

/// Holds that keep the subject from being forgotten: of itself, of entries in which something of it is sealed, or of their months.
pub async fn held(client: &Client, subject: &str) -> Result<Vec<String>, LedgerError> {
    let sql = "select name from hold h where $1::text = any (h.refs) or exists (
                 select from entry e where e.refs @> array[$1::text] and (e.month = any (h.months) or e.refs && h.refs))
               order by name";
    let rows = client.query(sql, &[&subject]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// What else is named in entries in which something of the subject is sealed: rows among it.
pub async fn rows_about(client: &Client, subject: &str) -> Result<Vec<String>, LedgerError> {
    let sql = "select distinct unnest(refs) from entry where refs @> array[$1::text] and kind = 'event'";
    let rows = client.query(sql, &[&subject]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// Events in which something of the subject is sealed, whether that is in their data, and their objects.
macro_rules! about {
    ($rest:literal) => {
        concat!(
            "with body(seq, json) as (
               select seq, convert_from(body, 'UTF8')::jsonb from entry where refs @> array[$1::text] and kind = 'event'
               union all
               select seq, convert_from(body, 'UTF8')::jsonb from kept_event
               where convert_from(body, 'UTF8')::jsonb -> 'subjects' ? $1::text),
             event(seq, id, theirs) as (
               select seq, json ->> 'id', coalesce(right(json #>> '{data,~sealed}', length($1) + 1) = ' ' || $1, false) from body),
             object(id) as (select id from event where theirs and id is not null union select $1) ",
            $rest
        )
    };
}

/// Takes what is in clear out of the tables that are state.
pub(super) fn erase(erasure: Erasure, out: &mut Vec<Prepared>) {
    let Erasure { subject, rows, fields, .. } = erasure;
    for ErasedRow { source, relation, key, columns } in rows {
        // Values that somebody else holds at a target, as it told us when we wanted them.
        out.push((
            "delete from reservation r using image i
             where r.canonical_id = '' and i.source = $1 and i.relation = $2 and i.key = $3 and exists (
               select from unnest($4::text[]) name
               where lower(i.row ->> name) = lower(substr(r.want, strpos(r.want, '=') + 1)))",
            parameters![source.clone(), relation.clone(), key.clone(), columns.clone()],
        ));
        out.push((
            "update image set row = row || (select jsonb_object_agg(name, null) from unnest($4::text[]) name)
             where source = $1 and relation = $2 and key = $3 and row is not null",
            parameters![source, relation, key, columns],
        ));
    }
    for (event_type, names) in fields {
        out.push((
            about!(
                "update said s set data = s.data - $3::text[] from object o where s.canonical_id = o.id and s.event_type = $2"
            ),
            parameters![subject.clone(), event_type, names],
        ));
    }
    let statements = [
        about!("update applied a set body = null from object o where a.canonical_id = o.id"),
        about!(
            "update bulk_call c set request = null where exists (
               select from delivery d join event e on e.seq = d.event_seq and e.theirs where d.id = any (c.deliveries))"
        ),
        about!(
            "update delivery d set state = case when d.operation = 'upsert' and (d.open or d.aside) then 'superseded' else d.state end,
                    reason = case when d.operation = 'upsert' and (d.open or d.aside) then 'erased by an operator' else d.reason end,
                    request = null, head = d.head and d.operation = 'delete', waits_for = null
             from event e where e.seq = d.event_seq and e.theirs and (d.open or d.aside or d.request is not null)"
        ),
        about!("delete from reservation r using object o where r.canonical_id = o.id"),
        about!("delete from wish w using object o where w.canonical_id = o.id"),
        about!("update difference f set fields = '[]' from object o where f.canonical_id = o.id"),
    ];
    out.extend(statements.into_iter().map(|sql| (sql, parameters![subject.clone()])));
    rehead(None, out);
}
