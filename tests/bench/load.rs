//! A large transaction, many small ones, and none at all: memory, latency, and what idling costs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::drain::{ledgered, wal_end, wide_world};
use super::process::{cpu_s, memory_mib};
use super::{long, quantile, report};
use crate::support::{World, WorldOptions, eventually};

/// Rows of the large transaction: 30,000 in the tests, a million in `make bench`, ten million in `make soak`.
fn large_rows() -> i64 {
    let asked = std::env::var("TAILWATER_LARGE_ROWS").ok().and_then(|text| text.parse().ok());
    asked.unwrap_or(if long() { 1_000_000 } else { 30_000 })
}

async fn events(world: &World) -> i64 {
    let sql = "select count(*) from entry where kind = 'event'";
    world.ledger_client().await.query_one(sql, &[]).await.unwrap().get(0)
}

/// Last ordinal ledgered, objects that wait for the rest of their transaction, events so far: all of one instant.
async fn midway(world: &World, before: i64) -> (Option<i64>, i64, i64) {
    let sql =
        "select ordinal, (select count(*) from spill), (select count(*) from entry where kind = 'event')
               from position";
    let row = world.ledger_client().await.query_one(sql, &[]).await.unwrap();
    (row.get(0), row.get(1), row.get::<_, i64>(2) - before)
}

/// One transaction of `rows`; the daemon's peak memory, in MiB. Killed once when a third of the rows is ledgered, and once when a
/// third of the events is made.
async fn one_transaction(world: &World, first: i64, rows: i64, kill: bool) -> f64 {
    let client = world.erp.client("erp").await.unwrap();
    let before = events(world).await;
    let last = first + rows - 1;
    client.execute(&format!("select wide_rows({first}, {last})"), &[]).await.unwrap();
    let end = wal_end(&client).await;
    let mut daemon = world.daemon();
    if kill {
        let patience = Duration::from_secs(3_600);
        eventually(patience, "a third of the rows", async || {
            let (_, waiting, _) = midway(world, before).await;
            if waiting * 3 > rows { Ok(()) } else { Err(format!("{waiting}\n{}", world.log())) }
        })
        .await;
        daemon.kill();
        let (ordinal, waiting, made) = midway(world, before).await;
        assert!(waiting < rows, "killed too late: {waiting} of {rows}");
        assert_eq!(ordinal, Some(waiting - 1), "it resumes inside the transaction");
        assert_eq!(made, 0, "nothing is told of half a transaction");
        daemon = world.daemon();
        eventually(patience, "a third of the events", async || {
            let (_, _, made) = midway(world, before).await;
            if made * 3 > rows { Ok(()) } else { Err(format!("{made}\n{}", world.log())) }
        })
        .await;
        daemon.kill();
        let (ordinal, waiting, made) = midway(world, before).await;
        assert!(made < rows, "killed too late: {made} of {rows}");
        assert_eq!(
            (ordinal, waiting + made),
            (Some(rows - 1), rows),
            "it goes on with the objects that are left"
        );
        daemon = world.daemon();
    }
    ledgered(world, &end).await;
    let peak = memory_mib(daemon.child.id(), "VmHWM");
    assert!(daemon.terminate().success());
    assert_eq!(events(world).await - before, rows, "as many row changes ledgered as sent");
    peak
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_transaction_costs_no_more_memory_than_a_small_one_and_resumes_inside() {
    let world = wide_world().await;
    let rows = large_rows();
    let small = one_transaction(&world, 1, 10_000, false).await;
    let large = one_transaction(&world, 10_001, rows, true).await;
    println!("\n# peak memory: {small:.0} MiB for 10,000 rows in one transaction, {large:.0} MiB for {rows}");
    report("large_transaction_peak_memory", large, "MiB", "<", 128.0);
    report("large_transaction_memory_per_small_one", large / small, "x", "<", 1.1);
    let sql = "select count(*) from entry where kind = 'tx_end'";
    let ends: i64 = world.ledger_client().await.query_one(sql, &[]).await.unwrap().get(0);
    assert_eq!(ends, 2, "each large transaction is closed by an entry");
    assert!(large < 256.0, "{large} MiB");
    world.verify();
}

#[tokio::test(flavor = "multi_thread")]
async fn small_transactions_are_ledgered_within_milliseconds_at_a_thousand_a_second() {
    let world = wide_world().await;
    let daemon = world.daemon();
    let erp = world.erp.client("erp").await.unwrap();
    // Once what was there before is read, and the stream goes on behind it.
    eventually(Duration::from_secs(30), "the stream", async || {
        let sql = "select active from pg_replication_slots where slot_name = 'tailwater'";
        let log = world.log();
        let is_read = log.split_once("all events of the load are made");
        let goes_on = is_read.is_some_and(|(_, then)| then.contains("streaming source_name"));
        let row = erp.query_opt(sql, &[]).await.unwrap();
        if goes_on && row.is_some_and(|row| row.get(0)) { Ok(()) } else { Err(log) }
    })
    .await;
    let stop = Arc::new(AtomicBool::new(false));
    let started = Instant::now();
    let mut writers = Vec::new();
    for number in 0..4 {
        let client = world.erp.client("erp").await.unwrap();
        let stop = stop.clone();
        writers.push(tokio::spawn(async move {
            let mut commits: Vec<(u64, f64)> = Vec::new();
            let mut ticks = interval(Duration::from_millis(4));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
            let mut row = number * 1_000_000;
            while !stop.load(Ordering::Relaxed) {
                ticks.tick().await;
                row += 1;
                client.execute("select wide_rows($1, $1)", &[&row]).await.unwrap();
                let at = started.elapsed().as_secs_f64() * 1_000.0;
                let sql = "select pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint";
                let lsn: i64 = client.query_one(sql, &[]).await.unwrap().get(0);
                commits.push((lsn.unsigned_abs(), at));
            }
            commits
        }));
    }
    // What the server has been told is durable, as it knows it itself.
    let mut confirmed: Vec<(u64, f64)> = Vec::new();
    let sql = "select pg_wal_lsn_diff(flush_lsn, '0/0')::bigint from pg_stat_replication";
    let statement = erp.prepare(sql).await.unwrap();
    let lasts = Duration::from_secs(if long() { 20 } else { 3 });
    while started.elapsed() < lasts + Duration::from_secs(1) {
        if started.elapsed() > lasts {
            stop.store(true, Ordering::Relaxed);
        }
        let row = erp.query_one(&statement, &[]).await.unwrap();
        let at = started.elapsed().as_secs_f64() * 1_000.0;
        confirmed.push((row.get::<_, Option<i64>>(0).unwrap_or(0).unsigned_abs(), at));
        sleep(Duration::from_millis(1)).await;
    }
    let mut latencies = Vec::new();
    for writer in writers {
        for (lsn, at) in writer.await.unwrap() {
            let place = confirmed.partition_point(|(known, _)| *known < lsn);
            if let Some((_, seen)) = confirmed.get(place) {
                latencies.push((seen - at).max(0.0));
            }
        }
    }
    let ledger = world.ledger_client().await;
    ledger.batch_execute("create table baseline (n int)").await.unwrap();
    let mut flushes = Vec::new();
    for _ in 0..50 {
        let begun = Instant::now();
        ledger.batch_execute("insert into baseline values (1)").await.unwrap();
        flushes.push(begun.elapsed().as_secs_f64() * 1_000.0);
    }
    let (flush, rate) = (quantile(&mut flushes, 0.5), latencies.len() as f64 / lasts.as_secs_f64());
    let (p50, p99) = (quantile(&mut latencies, 0.5), quantile(&mut latencies, 0.99));
    println!(
        "\n# {rate:.0} transactions/s; baseline: one durable commit on the ledger's server takes {flush:.2} ms (median), \
         commit to ledgered {:.0} times that",
        p50 / flush
    );
    report("commit_to_ledgered_p50", p50, "ms", "<", 5.0);
    report("commit_to_ledgered_p99", p99, "ms", "<", 25.0);
    assert!(p50 < f64::max(250.0, 100.0 * flush), "{p50} ms where a commit takes {flush} ms");
    drop(daemon);
}

#[tokio::test(flavor = "multi_thread")]
async fn idling_costs_next_to_nothing_and_a_busy_neighbour_pins_no_wal() {
    let world = World::start(WorldOptions::default()).await;
    let daemon = world.daemon();
    world.streaming().await;
    world.settled(Duration::from_secs(20)).await;
    let pid = daemon.child.id();
    let lasts = Duration::from_secs(if long() { 30 } else { 5 });
    let before = cpu_s(pid);
    sleep(lasts).await;
    let share = (cpu_s(pid) - before) / lasts.as_secs_f64() * 100.0;
    println!("\n# baseline: one core");
    report("idle_cpu", share, "%", "<", 1.0);
    report("idle_memory", memory_mib(pid, "VmRSS"), "MiB", "<", 40.0);
    let erp = world.erp.client("postgres").await.unwrap();
    erp.batch_execute("create database neighbour").await.unwrap();
    let neighbour = world.erp.client("neighbour").await.unwrap();
    neighbour.batch_execute("create table busy (n int, t text)").await.unwrap();
    let written = wal_end(&erp).await;
    for _ in 0..if long() { 60 } else { 6 } {
        neighbour
            .batch_execute(
                "insert into busy select n, repeat('x', 500) from generate_series(1, 8000) n; checkpoint",
            )
            .await
            .unwrap();
    }
    let mut kept = 0.0;
    eventually(Duration::from_secs(60), "the WAL to be let go", async || {
        erp.batch_execute("checkpoint").await.unwrap();
        let sql = "select pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::float8 / 1048576,
                     pg_wal_lsn_diff(pg_current_wal_lsn(), $1::text::pg_lsn)::float8 / 1048576
                   from pg_replication_slots";
        let row = erp.query_one(sql, &[&written]).await.unwrap();
        kept = row.get(0);
        if kept < 16.0 {
            Ok(())
        } else {
            Err(format!("{kept} MiB of {} written\n{}", row.get::<_, f64>(1), world.log()))
        }
    })
    .await;
    report("idle_wal_kept_beside_a_busy_neighbour", kept, "MiB", "<", 16.0);
    assert!(share < 10.0, "{share} %");
}
