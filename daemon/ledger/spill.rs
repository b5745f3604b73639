//! Objects touched by a transaction that is too large to be worked out at once: see `sql/ledger/V7__documents.sql`.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio_postgres::Client;

use super::LedgerError;
use super::batch::{Batch, SpillDone, SpillWrite};
use super::statements::{Prepared, parameters};
use crate::event::{Cause, Columns, Row};

/// A spilled object, as the ledger gives it back.
#[derive(Debug, Clone)]
pub struct Spilled {
    /// Key of the row that the object is.
    pub key: String,
    /// Ordinal of the last change.
    pub ordinal: u64,
    /// The row changes behind it, one for each row.
    pub causes: Vec<Cause>,
}

/// The statements of what a batch spills and has worked out.
pub fn spill(batch: &mut Batch, out: &mut Vec<Prepared>) {
    if !batch.spilled.is_empty() {
        out.push(spilled(std::mem::take(&mut batch.spilled)));
    }
    for SpillDone { source, of, keys } in batch.unspilled.drain(..) {
        out.push(match of {
            None => ("delete from spill where source = $1", parameters![source]),
            Some((event_type, root)) => (
                "delete from spill where source = $1 and event_type = $2 and root = $3 and key = any ($4)",
                parameters![source, event_type, root, keys],
            ),
        });
    }
}

fn spilled(writes: Vec<SpillWrite>) -> Prepared {
    let (mut sources, mut types, mut roots, mut keys) = (vec![], vec![], vec![], vec![]);
    let (mut ordinals, mut causes) = (vec![], vec![]);
    for write in writes {
        sources.push(write.source);
        types.push(write.event_type);
        roots.push(write.root);
        keys.push(write.key);
        ordinals.push(i64::try_from(write.ordinal).unwrap_or(i64::MAX));
        causes.push(Value::Array(write.causes.iter().map(to_json).collect()));
    }
    (
        "insert into spill (source, event_type, root, key, ordinal, causes)
         select * from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::jsonb[])",
        parameters![sources, types, roots, keys, ordinals, causes],
    )
}

/// Row changes read at once, as the ledger keeps them; one object comes whole however large it is.
const MAX_BYTES: i64 = 8 << 20;

/// Lines looked at to find out which objects fit.
const LINES: i64 = 2_000;

/// Keys of the next objects, as many as fit; at least one while there is any.
async fn fitting(
    client: &Client,
    source: &str,
    event_type: &str,
    root: &str,
    after: &str,
    limit: i64,
) -> Result<Vec<String>, LedgerError> {
    let sql = "select key, pg_column_size(causes)::bigint from spill
               where source = $1 and event_type = $2 and root = $3 and key > $4 order by key, ordinal limit $5";
    let rows = client.query(sql, &[&source, &event_type, &root, &after, &LINES]).await?;
    let cut_off = i64::try_from(rows.len()).unwrap_or(LINES) == LINES;
    let (mut keys, mut bytes): (Vec<String>, i64) = (Vec::new(), 0);
    for row in &rows {
        let (key, size): (String, i64) = (row.try_get(0)?, row.try_get(1)?);
        if keys.last() != Some(&key) {
            if bytes > MAX_BYTES || i64::try_from(keys.len()).unwrap_or(limit) >= limit {
                return Ok(keys);
            }
            keys.push(key);
        }
        bytes += size;
    }
    // The last one may have more lines; it comes with the next look, or alone.
    if cut_off && keys.len() > 1 {
        keys.pop();
    }
    Ok(keys)
}

/// Some of the spilled objects of one type, in the order of their keys, beginning behind `after`.
pub async fn read(
    client: &Client,
    source: &str,
    event_type: &str,
    root: &str,
    after: &str,
    limit: i64,
) -> Result<Vec<Spilled>, LedgerError> {
    let keys = fitting(client, source, event_type, root, after, limit).await?;
    let sql = "select key, ordinal, causes from spill
               where source = $1 and event_type = $2 and root = $3 and key = any ($4) order by key, ordinal";
    let mut found: Vec<Spilled> = Vec::new();
    let mut like = Columns::default();
    for row in client.query(sql, &[&source, &event_type, &root, &keys]).await? {
        let (key, ordinal): (String, i64) = (row.try_get(0)?, row.try_get(1)?);
        let causes: Value = row.try_get(2)?;
        let causes = causes.as_array().into_iter().flatten().map(|cause| from_json(cause, &mut like));
        let causes = causes.collect::<Option<Vec<_>>>();
        let causes = causes.ok_or_else(|| LedgerError::Unreadable("a spilled object".into()))?;
        let ordinal = u64::try_from(ordinal).unwrap_or_default();
        match found.last_mut().filter(|object| object.key == key) {
            Some(object) => {
                object.ordinal = ordinal;
                object.causes.extend(causes);
            }
            None => found.push(Spilled { key, ordinal, causes }),
        }
    }
    for object in &mut found {
        object.causes = merged(std::mem::take(&mut object.causes));
    }
    Ok(found)
}

fn to_json(cause: &Cause) -> Value {
    let row = |row: &Option<Arc<Row>>| row.as_ref().and_then(|row| serde_json::to_value(&**row).ok());
    json!({"table": &*cause.table, "key": cause.key, "before": row(&cause.before), "after": row(&cause.after),
           "by": cause.by})
}

fn from_json(value: &Value, like: &mut Columns) -> Option<Cause> {
    let text = |name: &str| value.get(name).and_then(Value::as_str);
    let mut row = |name: &str| match value.get(name) {
        Some(Value::Object(map)) => Some(Some(Arc::new(Row::from_map(map.clone(), like)))),
        Some(Value::Null) | None => Some(None),
        Some(_) => None,
    };
    let (before, after) = (row("before")?, row("after")?);
    Some(Cause {
        table: text("table")?.into(),
        key: text("key")?.to_owned(),
        before,
        after,
        by: text("by").map(Box::from),
    })
}

/// Several slices may have changed a row: what it was before the first and after the last counts.
fn merged(causes: Vec<Cause>) -> Vec<Cause> {
    let mut merged: Vec<Cause> = Vec::with_capacity(causes.len());
    let mut places: HashMap<(Arc<str>, String), usize> = HashMap::new();
    for cause in causes {
        let id = (cause.table.clone(), cause.key.clone());
        match places.get(&id).and_then(|place| merged.get_mut(*place)) {
            Some(earlier) => {
                earlier.after = cause.after;
                earlier.by = cause.by;
            }
            None => {
                places.insert(id, merged.len());
                merged.push(cause);
            }
        }
    }
    merged.retain(|cause| cause.before != cause.after);
    merged
}
