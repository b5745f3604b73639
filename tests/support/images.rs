//! Compares the ledger's images with the ERP's own tables, row by row, for every table that a mapping reads.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use tailwater::config::load;
use tailwater::source::postgres::presence::Presence;
use tokio_postgres::Client;

use super::World;

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// 10 and 10.0 are one number.
fn plain(value: Value) -> Value {
    match value {
        Value::Number(number) => number.as_f64().into(),
        Value::Array(items) => items.into_iter().map(plain).collect(),
        Value::Object(map) => map.into_iter().map(|(key, value)| (key, plain(value))).collect(),
        other => other,
    }
}

/// Fails with the differences.
pub async fn assert_images_equal(world: &World, erp: &Client) {
    let config = load(&world.config, std::iter::empty()).unwrap();
    let ledger = world.ledger_client().await;
    let mut differences = Vec::new();
    let source = &config.sources[0];
    let presence = Presence::of(erp, &source.mapping, &source.publication, BTreeSet::new()).await.unwrap();
    for table in &presence.narrow(&source.mapping).tables {
        // PostgreSQL's own view of the row as JSON: independent of our decoding.
        // What JSON cannot hold exactly, and times, are kept as PostgreSQL prints them.
        let typed = "select attname::text from pg_attribute where attrelid = $1::text::regclass
                     and atttypid in ('numeric'::regtype, 'timestamp'::regtype, 'timestamptz'::regtype)";
        let name = format!("{}.{}", quoted(&table.schema), quoted(&table.name));
        let typed = erp.query(typed, &[&name]).await.unwrap();
        let typed: BTreeSet<String> = typed.iter().map(|row| row.get(0)).collect();
        let column = |column: &std::sync::Arc<str>| match typed.contains(&**column) {
            true => format!("{0}::text as {0}", quoted(column)),
            false => quoted(column),
        };
        let columns: Vec<String> = table.columns.iter().map(column).collect();
        let key: Vec<String> = table.key.iter().map(|column| format!("{}::text", quoted(column))).collect();
        let sql = format!(
            "select array[{}], to_jsonb(r) from (select {} from {name}) r",
            key.join(", "),
            columns.join(", "),
        );
        let mut expected = BTreeMap::new();
        for row in erp.query(&sql, &[]).await.unwrap() {
            let key: Vec<String> = row.get(0);
            let key = if key.len() == 1 { key[0].clone() } else { serde_json::to_string(&key).unwrap() };
            expected.insert(key, plain(row.get(1)));
        }
        let mut found = BTreeMap::new();
        let sql = "select key, row from image where relation = $1 and row is not null";
        for row in ledger.query(sql, &[&&*table.name]).await.unwrap() {
            found.insert(row.get::<_, String>(0), plain(row.get(1)));
        }
        for key in found.keys().chain(expected.keys().filter(|key| !found.contains_key(*key))) {
            if found.get(key) != expected.get(key) {
                differences.push(format!(
                    "{} {key}:\n  image  {:?}\n  source {:?}",
                    table.name,
                    found.get(key),
                    expected.get(key)
                ));
            }
        }
    }
    assert!(
        differences.is_empty(),
        "{} differences:\n{}",
        differences.len(),
        differences[..differences.len().min(10)].join("\n")
    );
}
