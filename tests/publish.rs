//! Canonical events on a bus: each once, in the order of its object's changes, as CloudEvents 1.0.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::Value;

use crate::support::nats::PrivateNats;
use crate::support::workload::{Workload, seed};
use crate::support::{World, WorldOptions, eventually};

const PATIENCE: Duration = Duration::from_secs(60);

/// Every event of the ledger, by object in the order of its changes: its id and what happened.
async fn told(world: &World) -> HashMap<String, Vec<String>> {
    let sql = "select body ->> 'type', body ->> 'id', body ->> 'event_id'
               from (select seq, convert_from(body, 'UTF8')::jsonb as body from entry where kind = 'event') e order by seq";
    let mut told: HashMap<String, Vec<String>> = HashMap::new();
    for row in world.ledger_client().await.query(sql, &[]).await.unwrap() {
        told.entry(row.get(1)).or_default().push(row.get(2));
    }
    told
}

fn received(messages: &[Value]) -> HashMap<String, Vec<String>> {
    let mut received: HashMap<String, Vec<String>> = HashMap::new();
    for message in messages {
        assert_eq!(message["specversion"], "1.0", "{message}");
        assert!(message["type"].as_str().unwrap().starts_with("tailwater."), "{message}");
        assert!(message["time"].is_string() && message["source"] == "/tailwater/erp", "{message}");
        let subject = message["subject"].as_str().unwrap().to_owned();
        received.entry(subject).or_default().push(message["id"].as_str().unwrap().to_owned());
    }
    received
}

async fn stream_of(world: &World) -> Vec<Value> {
    let client = redis::Client::open(world.redis.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let mut range = redis::cmd("XRANGE");
    range.arg("tailwater:events").arg("-").arg("+");
    let entries: Vec<(String, HashMap<String, String>)> = range.query_async(&mut connection).await.unwrap();
    entries.iter().map(|(_, fields)| serde_json::from_str(&fields["event"]).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_event_reaches_the_buses_once_and_in_order_though_the_daemon_is_killed() {
    let world = World::start(WorldOptions::default()).await;
    let nats = PrivateNats::start(world.directory.path()).await;
    world.add_settings(&format!(
        "[targets.bus]\nconnector = \"nats\"\nbase_url = \"{}\"\n[targets.stream]\nconnector = \"redis-stream\"\nbase_url = \"{}\"",
        nats.url(),
        world.redis.url()
    ));
    let mut odoo = world.odoo().await;
    let mut workload = Workload::new(seed());
    let mut daemon = world.daemon();
    world.streaming().await;
    for _ in 0..20 {
        workload.step(&mut odoo).await;
    }
    // Nothing is lost while no stream takes the subjects.
    eventually(PATIENCE, "the missing stream to be noticed", async || {
        let sql = "select count(*) from delivery where target = 'bus' and reason like '%no_stream_takes_this_subject%'";
        if world.count(sql).await > 0 { Ok(()) } else { Err(world.log()) }
    })
    .await;
    nats.make_stream().await;
    for _ in 0..6 {
        for _ in 0..25 {
            workload.step(&mut odoo).await;
        }
        daemon.kill();
        daemon = world.daemon();
    }
    world.settled(PATIENCE).await;
    let told = told(&world).await;
    let messages = nats.messages().await;
    assert!(messages.iter().any(|(subject, _)| subject == "tailwater.customer"), "{messages:?}");
    let bodies: Vec<Value> = messages.into_iter().map(|(_, body)| body).collect();
    assert_eq!(received(&bodies), told);
    assert!(bodies.iter().any(|body| body["tailwateroperation"] == "delete"), "an end is told as well");
    assert_eq!(received(&stream_of(&world).await), told);
    println!("# {} events on each bus after 6 kills", bodies.len());
    assert!(daemon.terminate().success());
    world.verify();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bus_that_crashes_loses_nothing_and_what_it_cannot_take_holds_up_nobody() {
    let world = World::start(WorldOptions::default()).await;
    let mut nats = PrivateNats::start(world.directory.path()).await;
    nats.make_stream().await;
    world.add_settings(&format!("[targets.bus]\nconnector = \"nats\"\nbase_url = \"{}\"", nats.url()));
    let mut daemon = world.daemon();
    world.streaming().await;
    let mut odoo = world.odoo().await;
    for n in 0..10 {
        odoo.create_company(&format!("Before {n}"), &format!("before{n}@example.com"), 1).await.unwrap();
    }
    world.settled(PATIENCE).await;
    nats.kill();
    for n in 0..10 {
        odoo.create_company(&format!("Meanwhile {n}"), &format!("meanwhile{n}@example.com"), 1)
            .await
            .unwrap();
    }
    eventually(PATIENCE, "the crash to be noticed", async || {
        let sql = "select count(*) from delivery where target = 'bus' and open and attempts > 0 and reason is not null";
        if world.count(sql).await > 0 { Ok(()) } else { Err(world.log()) }
    })
    .await;
    nats.restart(4_000).await;
    odoo.create_company(&"Too large ".repeat(500), "large@example.com", 1).await.unwrap();
    odoo.create_company("After", "after@example.com", 1).await.unwrap();
    world.settled(PATIENCE).await;
    let sql =
        "select count(*) from delivery where target = 'bus' and state = 'rejected' and cause = 'refused'
               and reason like '%max_payload_exceeded%'";
    let refused = world.count(sql).await;
    let bodies: Vec<Value> = nats.messages().await.into_iter().map(|(_, body)| body).collect();
    let (mut told, received) = (told(&world).await, received(&bodies));
    println!("# {} objects, {refused} message too large", told.len());
    told.retain(|object, events| received.get(object) != Some(events));
    assert_eq!((told.len(), refused), (1, 1), "{told:?}");
    assert!(daemon.terminate().success());
    world.verify();
}
