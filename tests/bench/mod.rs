//! Figures, as ratios against a baseline of the same run: `make bench` prints them, one line each.
//!
//! `bench name value unit bar OP NUMBER ok|short`. The tests run a short version and hold a looser bound: other tests
//! share the machine with them.

mod convergence;
mod dispatch;
mod drain;
mod ledger;
mod load;
mod process;
mod stages;

use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::support::{World, WorldOptions, eventually};

fn long() -> bool {
    std::env::var_os("TAILWATER_BENCH").is_some()
}

fn report(name: &str, value: f64, unit: &str, op: &str, bar: f64) {
    let holds = if op == "<" { value < bar } else { value > bar };
    println!("\nbench {name} {value:.2} {unit} bar {op} {bar} {}", if holds { "ok" } else { "short" });
}

/// Memory of a process now, in MiB.
pub fn memory_mib(pid: u32) -> f64 {
    process::memory_mib(pid, "VmRSS")
}

fn quantile(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * part) as usize]
}

#[tokio::test(flavor = "multi_thread")]
async fn commit_to_request_latency_on_an_idle_machine() {
    let world = World::start(WorldOptions::default()).await;
    let _daemon = world.daemon();
    world.streaming().await;
    let mut odoo = world.odoo().await;
    let company = odoo.create_company("Latency", "latency@example.com", 1).await.unwrap();
    world.settled(Duration::from_secs(20)).await;
    let ledger = world.ledger_client().await;
    ledger.batch_execute("create table baseline (n int)").await.unwrap();
    let (mut latencies, mut commits) = (Vec::new(), Vec::new());
    for round in 0..if long() { 200 } else { 20 } {
        let started = Instant::now();
        ledger.batch_execute("insert into baseline values (1)").await.unwrap();
        commits.push(started.elapsed().as_secs_f64() * 1000.0);
        let seen = world.stripe.journal().calls.len();
        odoo.write(company, "phone", &format!("+1 555 {round:04}")).await.unwrap();
        let committed_s = world.stripe.now_s();
        eventually(Duration::from_secs(10), "the request", async || {
            if world.stripe.journal().calls.len() > seen { Ok(()) } else { Err("none".into()) }
        })
        .await;
        latencies.push((world.stripe.journal().calls[seen].at_s - committed_s) * 1000.0);
        sleep(Duration::from_millis(20)).await;
    }
    let commit = quantile(&mut commits, 0.5);
    let p50 = quantile(&mut latencies, 0.5);
    println!("# baseline: one durable commit on the ledger's server takes {commit:.2} ms (median)");
    report("commit_to_request_p50", p50, "ms", "<", 25.0);
    report("commit_to_request_p99", quantile(&mut latencies, 0.99), "ms", "<", 100.0);
    // Two commits are necessary: the event before it is confirmed, the attempt before the request leaves.
    report("commit_to_request_p50_per_ledger_commit", p50 / commit, "x", "<", 12.0);
    assert!(p50 < 250.0, "{p50} ms");
}

/// Drains the same WAL by `pg_recvlogical` into nothing and by the daemon into the ledger.
#[tokio::test(flavor = "multi_thread")]
async fn draining_a_backlog_compared_with_pg_recvlogical() {
    let world = World::start(WorldOptions::default()).await;
    let odoo = world.odoo().await;
    let rows = if long() { 60_000 } else { 10_000 };
    let client = odoo.client();
    let fill = format!(
        "insert into res_partner (name, is_company, comment) select 'Row ' || n, true, repeat(md5(n::text), 15)
         from generate_series(1, {rows}) n; update res_partner set commercial_partner_id = id, active = false"
    );
    client.batch_execute(&fill).await.unwrap();
    let started = Instant::now();
    let mut daemon = world.daemon();
    world.streaming_within(Duration::from_secs(300)).await;
    report("first_load", f64::from(rows) / started.elapsed().as_secs_f64(), "rows/s", ">", 2_000.0);
    world.settled(Duration::from_secs(120)).await;
    assert!(daemon.terminate().success());
    client.batch_execute("select pg_create_logical_replication_slot('baseline', 'pgoutput')").await.unwrap();
    // What an ERP mostly writes: rows of which nothing mapped changes.
    for n in 0..10 {
        let noise = format!(
            "update res_partner set credit_limit = '{{\"1\": {n}}}', write_date = now() where id % 10 = {n}"
        );
        client.batch_execute(&noise).await.unwrap();
    }
    let end: String = client.query_one("select pg_current_wal_lsn()::text", &[]).await.unwrap().get(0);
    let started = Instant::now();
    let status = Command::new(world.erp.program("pg_recvlogical"))
        .args([
            "-d",
            &world.erp.url("postgres", "erp"),
            "--slot",
            "baseline",
            "--start",
            "-f",
            "-",
            "--endpos",
            &end,
        ])
        .args(["-o", "proto_version=1", "-o", "publication_names=tailwater"])
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    let baseline_s = started.elapsed().as_secs_f64();
    let started = Instant::now();
    let _daemon = world.daemon();
    let ledger = world.ledger_client().await;
    eventually(Duration::from_secs(300), "the backlog to be drained", async || {
        let sql = "select end_lsn >= $1::text::pg_lsn from position";
        let done: bool = ledger.query_one(sql, &[&end]).await.unwrap().get(0);
        if done { Ok(()) } else { Err("behind".into()) }
    })
    .await;
    let drained_s = started.elapsed().as_secs_f64();
    println!(
        "# baseline: pg_recvlogical drains {rows} updates in {baseline_s:.2} s; tailwater in {drained_s:.2} s, start included"
    );
    report("drain_unchanged_rows_per_recvlogical", drained_s / baseline_s, "x", "<", 4.0);
    report("drain_unchanged_rows", f64::from(rows) / drained_s, "rows/s", ">", 10_000.0);
    assert!(world.stripe.journal().calls.is_empty(), "nothing mapped changed");
}
