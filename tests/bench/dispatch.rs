//! Dispatching by itself: what a delivery costs when the target costs nothing, and what a backlog costs those who work it off.

use std::time::Duration;

use serde_json::json;
use tailwater::event::Priority;
use tailwater::ledger::Ledger;
use tailwater::ledger::batch::{Batch, DeliveryWrite, Lane};
use tailwater::ledger::entry::{EntryKind, NewEntry};
use tailwater::ledger::keyring::Master;
use tailwater::ledger::outbox::{Outbox, SHARDS, Wanted};
use tokio::time::Instant;
use tokio_postgres::Client;

use super::process::{cpu_s, memory_mib};
use super::{long, report};
use crate::support::{World, WorldOptions, eventually};

/// A target that takes everything and does nothing.
const SINK: &str = "
format: 1
system: sink
transport: discard
encoding: json
concurrency: 512
objects:
  customer:
    body: { name: event.name, active: event.active }
    upsert: { request: POST /customers, id: answer.id }
    delete: 'DELETE /customers/{external_id}'
";

async fn world() -> World {
    let world =
        World::start(WorldOptions { data: Some("wide"), odoo_schema: false, ..WorldOptions::default() })
            .await;
    world.add_connector("sink", SINK);
    world.add_settings("[targets.sink]\nconnector = \"sink\"");
    world
}

/// Events, each owed to the sink.
async fn owe(ledger: &Ledger, objects: std::ops::Range<usize>) {
    let objects: Vec<usize> = objects.collect();
    for part in objects.chunks(400) {
        let mut batch = Batch::default();
        for n in part {
            let fields = json!({
                "event_id": format!("bench-{n}"), "type": "customer.v1", "id": format!("ERP-P-{n}"),
                "data": {"name": format!("Customer {n}"), "active": true}, "correlation_id": format!("bench-{n}"),
            });
            let event = batch.entry(NewEntry::new(EntryKind::Event, Some(format!("bench-{n}")), fields));
            batch.deliveries.push(DeliveryWrite {
                lane: Lane {
                    target: "sink".into(),
                    object: "customer".into(),
                    canonical_id: format!("ERP-P-{n}"),
                },
                event,
                operation: "upsert",
                fact: false,
                priority: Priority::Profile,
                requires: Vec::new(),
                parked: None,
                held: None,
                look_first: false,
            });
        }
        ledger.writer().write(batch).await.unwrap();
    }
}

async fn worked_off(client: &Client, done: i64) -> Result<(), String> {
    let sql = "select count(*) from delivery where state = 'applied'";
    let count: i64 = client.query_one(sql, &[]).await.unwrap().get(0);
    if count >= done { Ok(()) } else { Err(format!("{count} of {done}")) }
}

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_per_second_to_a_target_that_costs_nothing() {
    let world = world().await;
    let count = if long() { 60_000 } else { 4_000 };
    {
        let ledger = Ledger::open(&world.ledger_database(), &Master::default()).await.unwrap();
        owe(&ledger, 0..count).await;
    }
    let client = world.ledger_client().await;
    client.batch_execute("create table baseline (n int)").await.unwrap();
    let started = Instant::now();
    for _ in 0..50 {
        client.batch_execute("insert into baseline values (1)").await.unwrap();
    }
    let commits = 50.0 / started.elapsed().as_secs_f64();
    let started = Instant::now();
    let daemon = world.process("dispatch", &[]);
    eventually(Duration::from_secs(300), "the deliveries", async || {
        worked_off(&client, i64::try_from(count).unwrap()).await
    })
    .await;
    let seconds = started.elapsed().as_secs_f64();
    let rate = count as f64 / seconds;
    println!(
        "# baseline: {commits:.0} durable commits/s of one row; {count} deliveries in {seconds:.1} s, daemon's CPU {:.1} s, {:.0} MiB",
        cpu_s(daemon.child.id()),
        memory_mib(daemon.child.id(), "VmHWM")
    );
    report("deliveries", rate, "deliveries/s", ">", 3_000.0);
    let entries = "select count(*) from entry where kind in ('attempt', 'outcome')";
    let written: i64 = client.query_one(entries, &[]).await.unwrap().get(0);
    assert_eq!(written, 2 * i64::try_from(count).unwrap(), "an attempt and an outcome each");
    world.verify();
    assert!(rate > 150.0, "{rate}");
}

/// Median time of asking for what is due, in milliseconds.
async fn claim_ms(ledger: &Ledger) -> f64 {
    let outbox = Outbox::prepare(ledger.outbox(), ledger.master(), ledger.erasures()).await.unwrap();
    let shards: Vec<i16> = (0..SHARDS).collect();
    let wanted = Wanted {
        target: "sink",
        objects: &["customer"],
        shards: &shards,
        classes: &Priority::ALL,
        most: 100,
        busy: &[],
    };
    let mut times = Vec::new();
    for _ in 0..21 {
        let started = Instant::now();
        assert_eq!(outbox.due(ledger.outbox(), &wanted).await.unwrap().len(), 100);
        times.push(started.elapsed().as_secs_f64() * 1000.0);
    }
    super::quantile(&mut times, 0.5)
}

/// Median time of writing down what 400 new objects are owed, in milliseconds.
async fn write_ms(ledger: &Ledger, objects: std::ops::Range<usize>) -> f64 {
    let mut times = Vec::new();
    for first in objects.step_by(400) {
        let started = Instant::now();
        owe(ledger, first..first + 400).await;
        times.push(started.elapsed().as_secs_f64() * 1000.0);
    }
    super::quantile(&mut times, 0.5)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_grows_fast_is_written_as_fast() {
    let world = world().await;
    let count = if long() { 1_000_000 } else { 80_000 };
    let ledger = Ledger::open(&world.ledger_database(), &Master::default()).await.unwrap();
    let first = write_ms(&ledger, 0..8_000).await;
    write_ms(&ledger, 8_000..count).await;
    let last = write_ms(&ledger, count..count + 8_000).await;
    println!(
        "# baseline: 400 new objects are written in {first:.2} ms at first, behind {count} deliveries in {last:.2} ms"
    );
    report("write_time_per_empty_ledger", last / first, "x", "<", 1.5);
    assert!(last < first * 2.0, "{first} ms, then {last} ms");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_of_millions_costs_neither_time_nor_memory() {
    let world = world().await;
    let small: i64 = 10_000;
    let large: i64 = if long() { 5_000_000 } else { 60_000 };
    let ledger = Ledger::open(&world.ledger_database(), &Master::default()).await.unwrap();
    owe(&ledger, 0..100).await;
    let client = world.ledger_client().await;
    // Every tenth has a second state behind it; a part waits for another object.
    let fill = async |from: i64, to: i64| {
        let sql = format!(
            "insert into delivery (event_seq, event_month, target, object, canonical_id, operation, fact, state, class, head,
                                   waits_for)
             select 1 + n % 100, (select month from tree), 'sink', 'customer', 'ERP-P-' || (n - n % 10 / 9), 'upsert', false, 'pending', 2 + n % 2,
                    n % 10 <> 9, case when n % 7 = 0 and n % 10 <> 9 then 'organization/' || n end
             from generate_series({from}, {to}) n where n >= 1000"
        );
        client.batch_execute(&sql).await.unwrap();
    };
    fill(1_000, small).await;
    let few = claim_ms(&ledger).await;
    fill(small + 1, large).await;
    let many = claim_ms(&ledger).await;
    drop(ledger);
    println!("# baseline: 100 of {small} deliveries are found in {few:.2} ms; of {large} in {many:.2} ms");
    report("claim_time_per_small_backlog", many / few, "x", "<", 1.5);
    let mut memory = Vec::new();
    let mut daemon = world.process("dispatch", &[]);
    for _ in 0..2 {
        let done: i64 =
            client.query_one("select count(*) from entry where kind = 'outcome'", &[]).await.unwrap().get(0);
        let more = if long() { 20_000 } else { 1_000 };
        eventually(Duration::from_secs(120), "outcomes", async || {
            let now: i64 = client
                .query_one("select count(*) from entry where kind = 'outcome'", &[])
                .await
                .unwrap()
                .get(0);
            if now >= done + more { Ok(()) } else { Err(format!("{now}")) }
        })
        .await;
        memory.push(memory_mib(daemon.child.id(), "VmRSS"));
    }
    daemon.kill();
    println!("# memory while it is worked off: {memory:?} MiB");
    report("memory_with_a_backlog", memory[1], "MiB", "<", 128.0);
    assert!(many < few * 6.0, "{few} ms, then {many} ms");
    assert!(memory[1] < 256.0);
}
