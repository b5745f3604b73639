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

/// What else is named in entries in which something of the subject is sealed: rows among it.
pub async fn rows_about(client: &Client, subject: &str) -> Result<Vec<String>, LedgerError> {
    let sql = "select distinct unnest(refs) from entry where refs @> array[$1::text] and kind = 'event'";
    let rows = client.query(sql, &[&subject]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// Objects in whose events something of the subject is sealed, and these events.
macro_rules! about {
    ($rest:literal) => {
        concat!(
            "with event(seq, id) as (
               select seq, convert_from(body, 'UTF8')::jsonb ->> 'id' from entry where refs @> array[$1::text] and kind = 'event'),
             object(id) as (select id from event where id is not null union select $1) ",
            $rest
        )
    };
}

/// Takes what is in clear out of the tables that are state.
pub(super) fn erase(erasure: Erasure, out: &mut Vec<Prepared>) {
    let Erasure { subject, rows, fields, .. } = erasure;
    for ErasedRow { source, relation, key, columns } in rows {
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
               select from delivery d join event e on e.seq = d.event_seq where d.id = any (c.deliveries))"
        ),
        about!(
            "update delivery d set state = 'superseded', reason = 'erased by an operator', request = null, head = false, waits_for = null
             from event e where e.seq = d.event_seq and d.operation = 'upsert' and (d.open or d.aside)"
        ),
        about!("delete from reservation r using object o where r.canonical_id = o.id"),
        about!("delete from wish w using object o where w.canonical_id = o.id"),
        about!("update difference f set fields = '[]' from object o where f.canonical_id = o.id"),
    ];
    out.extend(statements.into_iter().map(|sql| (sql, parameters![subject.clone()])));
    rehead(None, out);
}
