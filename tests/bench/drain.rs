//! The same WAL read by `pg_recvlogical` into nothing, by our decoder into nothing, and by the daemon into the ledger.

use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::Client;

use super::process::{Used, cpu_s, median, memory_mib, thread_cpu_s, timed};
use super::{long, report};
use crate::support::{World, WorldOptions, eventually};

/// Settings that a ledger of this traffic should have; fsync stays on.
pub const LEDGER_SETTINGS: &[&str] = &[
    "wal_level = 'replica'",
    "max_wal_size = '8GB'",
    "shared_buffers = '256MB'",
    "checkpoint_timeout = '15min'",
];

/// A world with the wide table, its slot created and nothing in it.
pub async fn wide_world() -> World {
    let world = World::start(WorldOptions {
        data: Some("wide"),
        // Deliveries are made; none is to be sent.
        stripe_quota: "1/d",
        erp_settings: &["max_wal_size = '8GB'"],
        ledger_settings: LEDGER_SETTINGS,
        ..WorldOptions::default()
    })
    .await;
    let mut daemon = world.daemon();
    world.streaming().await;
    assert!(daemon.terminate().success());
    world
}

pub async fn wal_end(client: &Client) -> String {
    client.query_one("select pg_current_wal_lsn()::text", &[]).await.unwrap().get(0)
}

/// Waits until the ledger holds everything before `end`; gives the time it took.
pub async fn ledgered(world: &World, end: &str) -> f64 {
    let started = Instant::now();
    let ledger = world.ledger_client().await;
    eventually(Duration::from_secs(1_800), "everything to be ledgered", async || {
        let sql = "select end_lsn >= $1::text::pg_lsn from position";
        let done: bool = ledger.query_one(sql, &[&end]).await.unwrap().get(0);
        if done { Ok(()) } else { Err(world.log()) }
    })
    .await;
    started.elapsed().as_secs_f64()
}

/// CPU seconds of a server process so far.
pub async fn backend_cpu_s(client: &Client, application_name: &str) -> f64 {
    let sql = "select pid from pg_stat_activity where application_name = $1";
    let row = client.query_opt(sql, &[&application_name]).await.unwrap();
    row.map_or(0.0, |row| cpu_s(row.get::<_, i32>(0).unsigned_abs()))
}

fn recvlogical(world: &World, slot: &str, end: &str) -> Used {
    let url = world.erp.url("postgres", "erp");
    let arguments = ["-d", &url, "--slot", slot, "--start", "-f", "-", "--endpos", end];
    let options = ["-o", "proto_version=1", "-o", "publication_names=tailwater"];
    timed(&world.erp.program("pg_recvlogical"), &[&arguments[..], &options].concat())
}

/// Every column is sliced and typed.
fn decode(world: &World, slot: &str, end: &str) -> Used {
    let config = world.config.display().to_string();
    let arguments = ["source", "drain", "--config", &config, "--slot", slot, "--until", end];
    timed(Path::new(env!("CARGO_BIN_EXE_tailwater")), &arguments)
}

/// TAILWATER_ROWS asks for fewer, while something is being tried.
fn rows(default: i32) -> i32 {
    std::env::var("TAILWATER_ROWS").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_wide_inserts_side_by_side_with_pg_recvlogical() {
    let (rows, runs) = if long() { (rows(1_000_000), 3) } else { (20_000, 1) };
    let world = wide_world().await;
    let client = world.erp.client("erp").await.unwrap();
    let mut slots = Vec::new();
    for run in 0..runs {
        for reader in ["recvlogical", "decoder"] {
            slots.push((reader, format!("{reader}_{run}")));
        }
    }
    for (_, slot) in &slots {
        let sql = "select pg_create_logical_replication_slot($1, 'pgoutput')";
        client.execute(sql, &[slot]).await.unwrap();
    }
    client.batch_execute(&format!("call wide_load({rows}, 100)")).await.unwrap();
    client.batch_execute("checkpoint").await.unwrap();
    let end = wal_end(&client).await;
    let (mut baseline, mut decoder) = (Vec::new(), Vec::new());
    for (reader, slot) in &slots {
        match *reader {
            "recvlogical" => baseline.push(recvlogical(&world, slot, &end)),
            _ => decoder.push(decode(&world, slot, &end)),
        }
    }
    for (_, slot) in &slots {
        client.execute("select pg_drop_replication_slot($1)", &[slot]).await.unwrap();
    }
    let (baseline, decoder) = (median(baseline), median(decoder));
    let mut daemon = world.daemon();
    let full_s = ledgered(&world, &end).await;
    let writer_s = backend_cpu_s(&world.ledger_client().await, "tailwater-ledger-writer").await;
    let reader_s = backend_cpu_s(&world.ledger_client().await, "tailwater-ledger-reader").await;
    let walsender_s = backend_cpu_s(&client, "tailwater").await;
    println!(
        "# CPU: walsender {walsender_s:.2} s, ledger's writing session {writer_s:.2} s, reading session {reader_s:.2} s"
    );
    for (thread, seconds) in thread_cpu_s(daemon.child.id()) {
        println!("# CPU of the daemon's thread {thread}: {seconds:.2} s");
    }
    let (cpu, peak) = (cpu_s(daemon.child.id()), memory_mib(daemon.child.id(), "VmHWM"));
    assert!(daemon.terminate().success());
    println!(
        "# {rows} inserts of 40 columns, 100 per transaction: pg_recvlogical {:.2} s wall {:.2} s CPU; decoder {:.2} s wall \
         {:.2} s CPU; full path {full_s:.2} s wall {cpu:.2} s CPU, {peak:.0} MiB",
        baseline.wall_s, baseline.cpu_s, decoder.wall_s, decoder.cpu_s
    );
    report("decode_wall_per_recvlogical", decoder.wall_s / baseline.wall_s, "x", "<", 0.75);
    report("decode_cpu_per_recvlogical", decoder.cpu_s / baseline.cpu_s, "x", "<", 0.35);
    report("ledger_wall_per_recvlogical", full_s / baseline.wall_s, "x", "<", 2.4);
    let ledger = world.ledger_client().await;
    for (table, sql) in [
        ("events", "select count(*) from entry where kind = 'event'"),
        ("images", "select count(*) from image"),
        ("deliveries", "select count(*) from delivery"),
    ] {
        let count: i64 = ledger.query_one(sql, &[]).await.unwrap().get(0);
        assert_eq!(count, i64::from(rows), "{table}");
    }
    world.verify();
}
