//! What several sources say of one object: for each field whose word is the newest.

use std::collections::HashMap;

use serde_json::Value;
use tokio_postgres::Client;

use super::LedgerError;
use super::batch::EntryIndex;
use super::statements::{Prepared, parameters};
use crate::event::words::{Word, Words};

/// An object that several sources may speak of: type with version, canonical id.
pub type Subject = (String, String);

/// A source says something of an object.
#[derive(Debug, Clone)]
pub struct SaidWrite {
    /// Of what.
    pub subject: Subject,
    /// Who.
    pub source: String,
    /// In which event.
    pub event: EntryIndex,
    /// What; `None` when the object has left.
    pub word: Option<Word>,
}

/// The words about these objects.
pub async fn words(client: &Client, subjects: &[Subject]) -> Result<HashMap<Subject, Words>, LedgerError> {
    if subjects.is_empty() {
        return Ok(HashMap::new());
    }
    let (types, ids): (Vec<&str>, Vec<&str>) =
        subjects.iter().map(|(event_type, id)| (event_type.as_str(), id.as_str())).unzip();
    let sql = "select s.event_type, s.canonical_id, s.source, s.data, s.changed
               from (select distinct * from unnest($1::text[], $2::text[]) as w(event_type, canonical_id)) w
               join said s using (event_type, canonical_id)";
    let mut found: HashMap<Subject, Words> = HashMap::new();
    for row in client.query(sql, &[&types, &ids]).await? {
        let unreadable = || LedgerError::Unreadable("what a source says of an object".into());
        let Value::Object(data) = row.try_get(3)? else { return Err(unreadable()) };
        let changed = serde_json::from_value(row.try_get(4)?).map_err(|_| unreadable())?;
        let words = found.entry((row.try_get(0)?, row.try_get(1)?)).or_default();
        words.insert(row.try_get(2)?, Word { data, changed });
    }
    Ok(found)
}

pub(super) fn said(writes: Vec<SaidWrite>, seq_of: &dyn Fn(EntryIndex) -> i64, out: &mut Vec<Prepared>) {
    for SaidWrite { subject: (event_type, id), source, event, word } in writes {
        match word {
            Some(Word { data, changed }) => out.push((
                "insert into said (event_type, canonical_id, source, seq, data, changed) values ($1, $2, $3, $4, $5, $6)
                 on conflict (event_type, canonical_id, source) do update set
                   seq = excluded.seq, data = excluded.data, changed = excluded.changed",
                parameters![
                    event_type,
                    id,
                    source,
                    seq_of(event),
                    Value::Object(data),
                    serde_json::to_value(changed).unwrap_or_default()
                ],
            )),
            None => out.push((
                "delete from said where event_type = $1 and canonical_id = $2 and source = $3",
                parameters![event_type, id, source],
            )),
        }
    }
}
