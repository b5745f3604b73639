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
    /// Others whose keys are destroyed with theirs: rows that are nobody's own, and names that they had before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<String>,
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

impl Erasure {
    /// The subject under all its names, and what goes with it.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.also.iter().cloned().chain([self.subject.clone()]).collect()
    }
}

/// A request that is on its way, or of which nobody knows whether it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnderWay {
    /// Target.
    pub target: String,
    /// Object of its connector.
    pub object: String,
    /// Canonical id.
    pub id: String,
}

/// Events in which something of subjects (`$1`) is sealed, whether that is in their data, and their objects.
macro_rules! about {
    ($rest:literal) => {
        concat!(
            "with body(seq, json) as (
               select seq, convert_from(body, 'UTF8')::jsonb from entry where refs && $1::text[] and kind = 'event'
               union all
               select seq, convert_from(body, 'UTF8')::jsonb from kept_event
               where seq in (select seq from archived_subject where subject = any ($1::text[]))),
             event(seq, id, theirs) as (
               select seq, json ->> 'id', coalesce(regexp_replace(json #>> '{data,~sealed}', '^\\S+ \\S+ ', '') = any ($1::text[]), false)
               from body),
             object(id) as (select id from event where theirs and id is not null union select unnest($1::text[])) ",
            $rest
        )
    };
}

/// Deliveries of what the subjects are that are still to be made: how many, and those that may have arrived already.
pub async fn owed(client: &Client, names: &[String]) -> Result<(usize, Vec<UnderWay>), LedgerError> {
    let sql = about!(
        "select distinct on (d.id) d.target, d.object, d.canonical_id, d.state = 'sending'
         from event e join delivery d on d.event_seq = e.seq where e.theirs and d.open and d.operation = 'upsert'"
    );
    let rows = client.query(sql, &[&names]).await?;
    let mut under_way = Vec::new();
    for row in &rows {
        if row.try_get(3)? {
            under_way.push(UnderWay {
                target: row.try_get(0)?,
                object: row.try_get(1)?,
                id: row.try_get(2)?,
            });
        }
    }
    Ok((rows.len(), under_way))
}

/// Holds that keep subjects from being forgotten: of themselves, of entries in which something of them is sealed, or of their months.
pub async fn held(client: &Client, names: &[String]) -> Result<Vec<String>, LedgerError> {
    let sql = "select name from hold h where h.refs && $1::text[] or exists (
                 select from entry e where e.refs && $1::text[] and (e.month = any (h.months) or e.refs && h.refs))
                 or exists (select from archived_subject a where a.subject = any ($1::text[]) and a.month = any (h.months))
               order by name";
    let rows = client.query(sql, &[&names]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// Rows of a source that events about the subject came from: table and key.
pub async fn rows_about(
    client: &Client,
    source: &str,
    subject: &str,
) -> Result<Vec<(String, String)>, LedgerError> {
    let sql = "with body(json) as (
                 select convert_from(body, 'UTF8')::jsonb from entry where refs @> array[$1::text] and kind = 'event')
               select c ->> 'relation', c ->> 'key' from body
               cross join jsonb_array_elements(case jsonb_typeof(json -> 'changes') when 'array' then json -> 'changes' end) c
               where json #>> '{source,name}' = $2
               union select relation, key from archived_subject where subject = $1 and source = $2 and relation is not null";
    let rows = client.query(sql, &[&subject, &source]).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// Names that an object of `source` had before it was known to be one of ours: of events that its row made, and that end with its id there,
/// as ids do that are made of it. `event_types`: what rows of its table are.
pub async fn names_before(
    client: &Client,
    (source, table, external_id): (&str, &str, &str),
    event_types: &[String],
    subject: &str,
) -> Result<Vec<String>, LedgerError> {
    let sql = "with named(id) as (
                 select json ->> 'id' from (
                   select convert_from(body, 'UTF8')::jsonb as json from entry
                   where refs @> array[$2::text || '/' || $4::text] and kind = 'event') e
                 where json #>> '{source,name}' = $1 and json ->> 'type' = any ($3) and json -> 'subjects' ? (json ->> 'id')
                 union
                 select id from archived_subject
                 where source = $1 and relation = $2 and key = $4 and event_type = any ($3) and subject = id)
               select id from named where right(id, length($4) + 1) = '-' || $4 and id <> $5 order by 1";
    let found = client.query(sql, &[&source, &table, &event_types, &external_id, &subject]).await?;
    found.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// Takes what is in clear out of the tables that are state.
pub(super) fn erase(erasure: Erasure, out: &mut Vec<Prepared>) {
    let names = erasure.names();
    let Erasure { rows, fields, .. } = erasure;
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
            parameters![source.clone(), relation.clone(), key.clone(), columns.clone()],
        ));
        // Whoever guesses well finds what a digest is of. Without it the next change is told anew.
        out.push((
            "update image set emitted = (
               select jsonb_agg(jsonb_build_array(e -> 0, e -> 1, '') || case when e ->> 3 = 'held' then '[\"held\"]' else '[]' end::jsonb)
               from jsonb_array_elements(emitted::jsonb) e)::text
             where source = $1 and relation = $2 and key = $3 and emitted is not null",
            parameters![source.clone(), relation.clone(), key.clone()],
        ));
        // What a large transaction has still to be worked out of.
        out.push((
            "update spill set causes = (
               select jsonb_agg(case when c ->> 'table' = $2 and c ->> 'key' = $3
                                     then c || jsonb_build_object('before', case jsonb_typeof(c -> 'before') when 'object' then (c -> 'before') - $4::text[] end,
                                                                  'after', case jsonb_typeof(c -> 'after') when 'object' then (c -> 'after') - $4::text[] end)
                                     else c end)
               from jsonb_array_elements(causes) c)
             where source = $1 and causes @> jsonb_build_array(jsonb_build_object('table', $2::text, 'key', $3::text))",
            parameters![source, relation, key, columns],
        ));
    }
    for (event_type, fields) in fields {
        out.push((
            about!(
                "update said s set data = s.data - $3::text[] from object o where s.canonical_id = o.id and s.event_type = $2"
            ),
            parameters![names.clone(), event_type, fields],
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
    out.extend(statements.into_iter().map(|sql| (sql, parameters![names.clone()])));
    rehead(None, out);
}
