//! Reads what a slice needs from images and documents, in one batch of queries.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use serde_json::Value;
use tokio_postgres::Client;

use super::LedgerError;
use crate::event::{Columns, Row};
use crate::image::{Emission, Image, Images, KeysByValue, Missing};

/// Loads everything in `missing` into `images`.
pub async fn load(
    client: &Client,
    source: &str,
    missing: Missing,
    images: &mut Images,
) -> Result<(), LedgerError> {
    load_rows(client, source, &missing, images).await?;
    load_index(client, source, &missing, images).await
}

async fn load_rows(
    client: &Client,
    source: &str,
    missing: &Missing,
    images: &mut Images,
) -> Result<(), LedgerError> {
    if missing.rows.is_empty() {
        return Ok(());
    }
    let (relations, keys): (Vec<&str>, Vec<&str>) =
        missing.rows.iter().map(|(table, key)| (&**table, key.as_str())).unzip();
    let sql = "select w.relation, w.key, i.row, i.emitted
               from unnest($2::text[], $3::text[]) as w(relation, key)
               left join image i on i.source = $1 and i.relation = w.relation and i.key = w.key";
    let mut known: HashMap<String, Columns> = HashMap::new();
    for row in client.query(sql, &[&source, &relations, &keys]).await? {
        let table: String = row.try_get(0)?;
        let unreadable = || LedgerError::Unreadable(format!("an image of table \"{table}\""));
        let columns = match row.try_get::<_, Option<Value>>(2)? {
            Some(Value::Object(map)) => {
                Some(Arc::new(Row::from_map(map, known.entry(table.clone()).or_default())))
            }
            Some(_) => return Err(unreadable()),
            None => None,
        };
        let emitted: Option<String> = row.try_get(3)?;
        let emitted = emitted.map_or(Some(Vec::new()), |text| emissions(&text)).ok_or_else(unreadable)?;
        images.insert((table.into(), row.try_get(1)?), Image { row: columns, emitted });
    }
    Ok(())
}

/// Rows as a source last showed them, by table and key.
pub async fn rows(
    client: &Client,
    source: &str,
    wanted: &[(String, String)],
) -> Result<HashMap<(String, String), Value>, LedgerError> {
    if wanted.is_empty() {
        return Ok(HashMap::new());
    }
    let (relations, keys): (Vec<&str>, Vec<&str>) =
        wanted.iter().map(|(table, key)| (table.as_str(), key.as_str())).unzip();
    let sql = "select i.relation, i.key, i.row from unnest($2::text[], $3::text[]) as w(relation, key)
               join image i on i.source = $1 and i.relation = w.relation and i.key = w.key
               where i.row is not null";
    let found = client.query(sql, &[&source, &relations, &keys]).await?;
    found.iter().map(|row| Ok(((row.try_get(0)?, row.try_get(1)?), row.try_get(2)?))).collect()
}

/// The form in which statements write it.
fn emissions(text: &str) -> Option<Vec<Emission>> {
    let lists: Vec<Vec<String>> = serde_json::from_str(text).ok()?;
    let emission = |list: Vec<String>| {
        let held = list.get(3).is_some_and(|mark| mark == "held");
        let foreign = list.get(4).cloned().unwrap_or_default();
        let [event_type, id, sha256] =
            <[String; 3]>::try_from(list.into_iter().take(3).collect::<Vec<_>>()).ok()?;
        Some(Emission { event_type, id, sha256, held, foreign })
    };
    lists.into_iter().map(emission).collect()
}

/// One query for each (table, column), so that its partial index is used.
async fn load_index(
    client: &Client,
    source: &str,
    missing: &Missing,
    images: &mut Images,
) -> Result<(), LedgerError> {
    let pairs: BTreeSet<(Arc<str>, Arc<str>)> =
        missing.index.iter().map(|(table, column, _)| (table.clone(), column.clone())).collect();
    for (table, column) in pairs {
        let wanted = missing.index.iter().filter(|(t, c, _)| *t == table && *c == column);
        let values: Vec<&str> = wanted.map(|(_, _, value)| value.as_str()).collect();
        let mut found: KeysByValue =
            values.iter().map(|value| ((*value).to_owned(), BTreeSet::new())).collect();
        let rows = if column.is_empty() {
            let sql =
                "select ''::text, key from image where source = $1 and relation = $2 and row is not null";
            client.query(sql, &[&source, &&*table]).await?
        } else {
            // Table and column come from mapping files, checked against the source's catalogue; quoted as literals
            // because a partial index is only used when the planner sees them.
            let sql = format!(
                "select row ->> {column}, key from image
                 where relation = {table} and source = $1 and row ->> {column} = any ($2::text[])",
                column = literal(&column),
                table = literal(&table),
            );
            client.query(&sql, &[&source, &values]).await?
        };
        for row in rows {
            found.entry(row.try_get(0)?).or_default().insert(row.try_get(1)?);
        }
        images.insert_keys(table, column, found);
    }
    Ok(())
}

/// Creates the indexes that the mapping's joins need on images.
pub async fn create_indexes(client: &Client, lookups: &[(Arc<str>, Arc<str>)]) -> Result<(), LedgerError> {
    for (table, column) in lookups {
        let digest = crate::event::sha256_hex(format!("{table}.{column}").as_bytes());
        let name = format!("image_by_{}", digest.get(..16).unwrap_or_default());
        client.execute("select index_images($1, $2, $3)", &[&name, &&**table, &&**column]).await?;
    }
    Ok(())
}

/// Keys of a table's images, in order, after `after`.
pub async fn keys_after(
    client: &Client,
    source: &str,
    table: &str,
    after: Option<&str>,
    limit: i64,
) -> Result<Vec<String>, LedgerError> {
    let sql = "select key from image where source = $1 and relation = $2 and ($3::text is null or key > $3)
               order by key limit $4";
    let rows = client.query(sql, &[&source, &table, &after, &limit]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// How many rows of a table are objects of this type.
pub async fn objects(
    client: &Client,
    source: &str,
    table: &str,
    event_type: &str,
) -> Result<u64, LedgerError> {
    let sql = "select count(*) from image where source = $1 and relation = $2 and emitted like '%[\"' || $3 || '\",%'";
    let count: i64 = client.query_one(sql, &[&source, &table, &event_type]).await?.try_get(0)?;
    Ok(u64::try_from(count).unwrap_or_default())
}

/// Which of these lanes a target holds or is owed.
pub async fn owed(
    client: &Client,
    lanes: &[super::batch::Lane],
) -> Result<std::collections::HashSet<super::batch::Lane>, LedgerError> {
    if lanes.is_empty() {
        return Ok(std::collections::HashSet::new());
    }
    let targets: Vec<&str> = lanes.iter().map(|lane| lane.target.as_str()).collect();
    let objects: Vec<&str> = lanes.iter().map(|lane| lane.object.as_str()).collect();
    let ids: Vec<&str> = lanes.iter().map(|lane| lane.canonical_id.as_str()).collect();
    // An object that is gone there counts as well while it is on its way back.
    let sql = "select w.target, w.object, w.canonical_id
               from unnest($1::text[], $2::text[], $3::text[]) as w(target, object, canonical_id)
               where exists (select from applied a where a.target = w.target and a.object = w.object
                             and a.canonical_id = w.canonical_id and a.state = 'present')
                  or exists (select from delivery d where d.target = w.target and d.object = w.object
                             and d.canonical_id = w.canonical_id and d.operation = 'upsert'
                             and d.state in ('pending', 'sending', 'parked', 'rejected', 'shadowed', 'held'))";
    let rows = client.query(sql, &[&targets, &objects, &ids]).await?;
    let lane = |row: &tokio_postgres::Row| -> Result<super::batch::Lane, LedgerError> {
        Ok(super::batch::Lane {
            target: row.try_get(0)?,
            object: row.try_get(1)?,
            canonical_id: row.try_get(2)?,
        })
    };
    rows.iter().map(lane).collect()
}

fn literal(text: &str) -> String {
    postgres_protocol::escape::escape_literal(text)
}
