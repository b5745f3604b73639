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

/// Fails with the differences.
pub async fn assert_images_equal(world: &World, erp: &Client) {
    let config = load(&world.config, std::iter::empty()).unwrap();
    let ledger = world.ledger_client().await;
    let mut differences = Vec::new();
    let source = &config.sources[0];
    let presence = Presence::of(erp, &source.mapping, &source.publication, BTreeSet::new()).await.unwrap();
    for table in &presence.narrow(&source.mapping).tables {
        // PostgreSQL's own view of the row as JSON: independent of our decoding.
        let columns: Vec<String> = table.columns.iter().map(|column| quoted(column)).collect();
        let key: Vec<String> = table.key.iter().map(|column| format!("{}::text", quoted(column))).collect();
        let sql = format!(
            "select array[{}], to_jsonb(r) from (select {} from {}.{}) r",
            key.join(", "),
            columns.join(", "),
            quoted(&table.schema),
            quoted(&table.name)
        );
        let mut expected = BTreeMap::new();
        for row in erp.query(&sql, &[]).await.unwrap() {
            let key: Vec<String> = row.get(0);
            let key = if key.len() == 1 { key[0].clone() } else { serde_json::to_string(&key).unwrap() };
            expected.insert(key, row.get::<_, Value>(1));
        }
        let mut found = BTreeMap::new();
        let sql = "select key, row from image where relation = $1 and row is not null";
        for row in ledger.query(sql, &[&&*table.name]).await.unwrap() {
            found.insert(row.get::<_, String>(0), row.get::<_, Value>(1));
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
