//! Rows of any JSON, through every event of the shipped mappings, and HTML of any bytes.
#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use tailwater::config::node::Problems;
use tailwater::connector::lenient;
use tailwater::event::Row;
use tailwater::mapping::{Constants, SourceMapping};

static MAPPINGS: LazyLock<Vec<SourceMapping>> = LazyLock::new(|| {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../mappings");
    let load = |name: &&str| {
        tailwater::mapping::file::load(&directory, name, Constants::of("erp"), &mut Problems::default())
    };
    ["odoo", "stripe", "zendesk", "chargebee", "freshdesk"].iter().filter_map(load).collect()
});

fuzz_target!(|data: &[u8]| {
    let value = lenient::parse(data).unwrap_or_else(|| Value::String(String::from_utf8_lossy(data).into_owned()));
    for mapping in MAPPINGS.iter() {
        for spec in &mapping.events {
            let Some(table) = mapping.table_named(&spec.table) else { continue };
            let member = |name: &std::sync::Arc<str>| match &value {
                Value::Object(map) => map.get(&**name).cloned().unwrap_or_default(),
                other => other.clone(),
            };
            let row: Row = table.columns.iter().map(|name| (name.clone(), member(name))).collect();
            let _ = spec.canonical_id(&mapping.constants, &row);
            let _ = spec.evaluate(&mapping.constants, &row, &[]);
        }
    }
});
