//! What each stage costs of the full path's CPU, and that a document costs what its lines cost.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tailwater::config::load;
use tailwater::event::{Cluster, Columns, Lsn, Row, Transaction};
use tailwater::image::{Image, Images, KeysByValue, Missing, Overlay, Projection};
use tailwater::mapping::SourceMapping;
use tailwater::source::postgres::presence::Presence;
use tailwater::source::postgres::transaction::{Assembler, Consumer, SliceLimits};
use tailwater::source::postgres::types::Types;
use tailwater::source::postgres::wire::pgoutput;
use tokio::time::Instant;

use super::drain::{backend_cpu_s, ledgered, wal_end};
use super::process::cpu_s;
use super::{long, report};
use crate::support::{World, WorldOptions};

/// Nothing of what is missing is anywhere.
fn answer(missing: Missing, images: &mut Images) {
    for id in missing.rows {
        images.insert(id, Image::default());
    }
    for (table, column, value) in missing.index {
        images.insert_keys(table, column, KeysByValue::from_iter([(value, BTreeSet::new())]));
    }
}

/// Seconds for the images alone, and for images and mapping, of transactions of new rows.
fn worked_out(mapping: &SourceMapping, transactions: &[Transaction]) -> (f64, f64) {
    let cluster = Cluster { system_identifier: "0".into(), timeline: 1 };
    let projection = Projection { mapping, source: "erp", cluster: &cluster };
    let mut images = Images::new(&mapping.lookup_columns());
    let (mut imaging, mut all) = (0.0, 0.0);
    let mut events = 0;
    for transaction in transactions {
        loop {
            let started = Instant::now();
            let mut overlay = Overlay::new(&images);
            std::hint::black_box(projection.touched(&mut overlay, transaction));
            drop(overlay.finish());
            imaging += started.elapsed().as_secs_f64();
            let started = Instant::now();
            let mut overlay = Overlay::new(&images);
            let emitted = projection.transaction(&mut overlay, transaction, usize::MAX).unwrap();
            let (missing, changes) = overlay.finish();
            all += started.elapsed().as_secs_f64();
            if missing.is_empty() {
                events += emitted.len();
                images.absorb(changes);
                break;
            }
            answer(missing, &mut images);
        }
        if images.is_full() {
            images.age();
        }
    }
    assert!(events > 0);
    (imaging, all)
}

#[tokio::test(flavor = "multi_thread")]
async fn mapping_takes_a_small_share_of_the_full_path() {
    let rows = if long() { 60_000 } else { 4_000 };
    let world =
        World::start(WorldOptions { stripe_quota: "1/d", zendesk_quota: "1/d", ..WorldOptions::default() })
            .await;
    let mut daemon = world.daemon();
    world.streaming().await;
    assert!(daemon.terminate().success());
    let client = world.erp.client("erp").await.unwrap();
    client.batch_execute("select pg_create_logical_replication_slot('probe', 'pgoutput')").await.unwrap();
    for first in (0..rows).step_by(100) {
        let sql = format!(
            "insert into res_partner (name, complete_name, is_company, active, ref, vat, email, email_normalized, phone, street, zip, city, country_id)
             select 'Company ' || n, 'Company ' || n, true, true, 'C' || n, 'DE' || n, 'a' || n || '@example.com', 'a' || n || '@example.com',
               '+49 30 ' || n, 'Street ' || n, '10115', 'Berlin', 1 + n % 5 from generate_series({first}, {first} + 99) n"
        );
        client.batch_execute(&sql).await.unwrap();
    }
    let end = wal_end(&client).await;
    let sql = "select data from pg_logical_slot_peek_binary_changes('probe', null, null, 'proto_version', '1', 'publication_names', 'tailwater')";
    let payloads: Vec<Vec<u8>> = client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    client.batch_execute("select pg_drop_replication_slot('probe')").await.unwrap();

    let mut daemon = world.daemon();
    world.streaming_within(Duration::from_secs(60)).await;
    ledgered(&world, &end).await;
    let writer_s = backend_cpu_s(&world.ledger_client().await, "tailwater-ledger-writer").await;
    let daemon_s = cpu_s(daemon.child.id());
    assert!(daemon.terminate().success());

    let config = load(&world.config, std::iter::empty()).unwrap();
    let source = &config.sources[0];
    let presence =
        Presence::of(&client, &source.mapping, &source.publication, BTreeSet::new()).await.unwrap();
    let mapping = Arc::new(presence.narrow(&source.mapping));
    let started = Instant::now();
    for payload in &payloads {
        std::hint::black_box(pgoutput::decode(payload).unwrap());
    }
    let decode = started.elapsed().as_secs_f64();
    let types = Types::load(&client).await.unwrap();
    let mut assembler = Assembler::new(mapping.clone(), types, SliceLimits::default(), (Lsn(0), None));
    let started = Instant::now();
    let transactions: Vec<Transaction> =
        payloads.iter().filter_map(|payload| assembler.push(payload).unwrap()).collect();
    let fold = started.elapsed().as_secs_f64() - decode;
    let (image, image_and_map) = worked_out(&mapping, &transactions);
    let map = image_and_map - image;
    let full = daemon_s + writer_s;
    let ledger = full - decode - fold - image_and_map;
    let micros = |seconds: f64| seconds / f64::from(rows) * 1e6;
    println!(
        "\n# CPU per new customer: {:.1} us (daemon {:.1}, ledger's writing session {:.1})",
        micros(full),
        micros(daemon_s),
        micros(writer_s)
    );
    for (name, seconds) in
        [("decode", decode), ("fold", fold), ("image", image), ("map", map), ("ledger_and_the_rest", ledger)]
    {
        println!("# share of {name}: {:.1} % ({:.2} us)", seconds / full * 100.0, micros(seconds));
    }
    report("mapping_share_of_full_path", map / full, "of 1", "<", 0.25);
    assert!(map / full < 0.5, "{}", map / full);
}

/// An invoice with so many lines, each with a product of its own.
fn invoice(lines: i64) -> (Vec<(&'static str, String, Value)>, Transaction) {
    let mut rows =
        vec![("res_currency", "1".to_owned(), json!({"id": 1, "name": "EUR", "decimal_places": 2}))];
    for line in 1..=lines {
        rows.push(("account_move_line", line.to_string(), json!({"id": line, "move_id": 1, "sequence": line, "display_type": "product", "name": "Line",
            "product_id": line, "quantity": "1.0", "price_unit": "10.0", "discount": "0.0", "amount_currency": "-10.00"})));
        rows.push((
            "product_product",
            line.to_string(),
            json!({"id": line, "product_tmpl_id": line, "default_code": "X"}),
        ));
        rows.push(("product_template", line.to_string(), json!({"id": line, "name": {"en_US": "Plan"}})));
    }
    let total = format!("{}.00", lines * 10);
    let root = json!({"id": 1, "move_type": "out_invoice", "state": "posted", "payment_state": "not_paid", "partner_id": 1, "commercial_partner_id": 1,
        "company_id": 1, "currency_id": 1, "amount_untaxed": total, "amount_tax": "0.00", "amount_total": total, "amount_residual": total});
    rows.push(("account_move", "1".to_owned(), root));
    let transaction = tailwater::source::postgres::transaction::begun(Lsn(1), 0, 1).unwrap();
    (rows, transaction)
}

/// Seconds to make the document once.
fn document_s(mapping: &SourceMapping, lines: i64) -> f64 {
    let (rows, _) = invoice(lines);
    let cluster = Cluster { system_identifier: "0".into(), timeline: 1 };
    let projection = Projection { mapping, source: "erp", cluster: &cluster };
    let mut images = Images::new(&mapping.lookup_columns());
    let mut by_move = BTreeSet::new();
    for (table, key, row) in rows {
        let spec = mapping.table_named(table).unwrap();
        let values = spec.columns.iter().map(|column| row.get(&**column).cloned().unwrap_or_default());
        let row = Row::new(Columns::from(spec.columns.as_slice()), values.collect());
        if table == "account_move_line" {
            by_move.insert(key.clone());
        }
        images.insert((spec.name.clone(), key), Image { row: Some(Arc::new(row)), emitted: Vec::new() });
    }
    images.insert_keys(
        "account_move_line".into(),
        "move_id".into(),
        KeysByValue::from_iter([("1".to_owned(), by_move)]),
    );
    let spec = mapping.events.iter().find(|spec| spec.event_type == "invoice.v1").unwrap();
    let keys = ["1".to_owned()];
    let mut best = f64::MAX;
    for _ in 0..12 {
        let started = Instant::now();
        let mut overlay = Overlay::new(&images);
        let emitted =
            projection.snapshot(&mut overlay, spec, &keys, (Lsn(1), 0), jiff::Timestamp::UNIX_EPOCH);
        let (missing, _) = overlay.finish();
        let took = started.elapsed().as_secs_f64();
        if missing.is_empty() {
            assert_eq!(emitted[0].fault, None);
            assert_eq!(emitted[0].event.data["lines"].as_array().unwrap().len() as i64, lines);
            best = best.min(took);
        } else {
            answer(missing, &mut images);
        }
    }
    best
}

#[test]
fn a_document_costs_what_its_lines_cost() {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("mappings");
    let files = tailwater::workbench::mappings::read(&directory).ok().unwrap();
    let is_erp = |mapping: &&SourceMapping| mapping.table_named("account_move").is_some();
    let mapping = files.sources.iter().map(|source| &source.0).find(is_erp).unwrap();
    let (small, large) = (document_s(mapping, 50), document_s(mapping, 500));
    println!(
        "\n# baseline: an invoice of 50 lines takes {:.0} us, one of 500 lines {:.0} us",
        small * 1e6,
        large * 1e6
    );
    report("document_cost_per_line_500_per_50", large / 10.0 / small, "x", "<", 1.5);
    assert!(large < small * 30.0);
}
