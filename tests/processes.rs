//! Several processes on one ledger: they share the work, one takes over what another did, and one that was only asleep does
//! nothing more.

use std::process::Command;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::{Instant, sleep};

use crate::support::expected::{assert_same, expected, held};
use crate::support::workload::{Workload, seed};
use crate::support::world::Daemon;
use crate::support::{World, WorldOptions, eventually};

const PATIENCE: Duration = Duration::from_secs(90);

fn signal(daemon: &Daemon, name: &str) {
    let status = Command::new("kill").args([name, &daemon.child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

async fn living(world: &World, processes: i64) {
    eventually(PATIENCE, "processes", async || {
        let sql = "select count(*) from process where ended_at is null and expires_at > now()";
        let count = world.count(sql).await;
        if count == processes { Ok(()) } else { Err(format!("{count} of {processes}; {}", world.log())) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_share_the_lanes_of_a_target_and_one_follows_the_source() {
    let world = World::start(WorldOptions::default()).await;
    let mut capture = world.process("capture", &[]);
    world.streaming().await;
    let mut first = world.process("dispatch", &[]);
    let mut second = world.process("dispatch", &[]);
    living(&world, 3).await;
    eventually(PATIENCE, "shares", async || {
        let sql = "select count(*) from (select epoch, count(*) from lease where name like 'lanes/stripe/%' group by 1 having count(*) = 4) l";
        let halves = world.count(sql).await;
        if halves == 2 { Ok(()) } else { Err(format!("{halves}; {}", world.log())) }
    })
    .await;
    let mut odoo = world.odoo().await;
    let mut workload = Workload::new(seed());
    for _ in 0..200 {
        workload.step(&mut odoo).await;
    }
    world.settled(PATIENCE).await;
    let erp = world.erp.client("erp").await.unwrap();
    assert_same(&held(&world), &expected(&erp, &[]).await);
    assert_eq!(world.stripe.with(|stripe| stripe.doubled()), Vec::<String>::new());
    assert_eq!(world.zendesk.with(|zendesk| zendesk.merged.clone()), Vec::<String>::new());
    assert!(first.terminate().success());
    assert!(second.terminate().success());
    assert!(capture.terminate().success());
    world.verify();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hot_standby_takes_over_within_seconds() {
    let world = World::start(WorldOptions::default()).await;
    let mut first = world.daemon();
    world.streaming().await;
    let mut second = world.daemon();
    living(&world, 2).await;
    let mut odoo = world.odoo().await;
    let mut times = Vec::new();
    for round in 0..3 {
        first.kill();
        let killed = Instant::now();
        let before = world.stripe.with(|stripe| stripe.customers().len());
        odoo.create_company(&format!("After {round}"), &format!("after{round}@example.com"), 1)
            .await
            .unwrap();
        eventually(PATIENCE, "the standby", async || {
            let now = world.stripe.with(|stripe| stripe.customers().len());
            if now > before { Ok(()) } else { Err(world.log()) }
        })
        .await;
        times.push(killed.elapsed().as_secs_f64());
        std::mem::swap(&mut first, &mut second);
        second = world.daemon();
        living(&world, 2).await;
    }
    println!("a standby delivers after {times:.1?} s");
    assert!(times.iter().all(|seconds| *seconds < 10.0), "{times:?}");
    world.settled(PATIENCE).await;
    drop(first);
    drop(second);
    world.verify();
}

/// Sleepers; `make soak` sets more.
fn sleeps() -> usize {
    std::env::var("TAILWATER_SLEEPS").ok().and_then(|text| text.parse().ok()).unwrap_or(4)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_sleeps_for_longer_than_its_lease_does_nothing_more_when_it_wakes() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let world = World::start(WorldOptions::default()).await;
    let mut processes = [world.daemon(), world.daemon()];
    world.streaming().await;
    living(&world, 2).await;
    let mut odoo = world.odoo().await;
    let mut workload = Workload::new(seed);
    for round in 0..sleeps() {
        let until = Instant::now() + Duration::from_millis(random.random_range(100..1_500));
        while Instant::now() < until {
            workload.step(&mut odoo).await;
        }
        let sleeper = &processes[round % 2];
        signal(sleeper, "-STOP");
        // Longer than a process may be silent.
        let wakes = Instant::now() + Duration::from_millis(8_500);
        while Instant::now() < wakes {
            workload.step(&mut odoo).await;
            sleep(Duration::from_millis(20)).await;
        }
        signal(sleeper, "-CONT");
        living(&world, 2).await;
    }
    world.settled(PATIENCE).await;
    let erp = world.erp.client("erp").await.unwrap();
    assert_same(&held(&world), &expected(&erp, &[]).await);
    assert_eq!(world.stripe.with(|stripe| stripe.doubled()), Vec::<String>::new());
    assert_eq!(world.zendesk.with(|zendesk| zendesk.merged.clone()), Vec::<String>::new());
    assert!(world.log().contains("another process has died"), "{}", world.log());
    for process in &mut processes {
        assert!(process.terminate().success());
    }
    world.verify();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_source_of_a_process_that_hangs_is_followed_by_another() {
    let world = World::start(WorldOptions::default()).await;
    let mut first = world.daemon();
    world.streaming().await;
    let mut second = world.daemon();
    living(&world, 2).await;
    signal(&first, "-STOP");
    let stopped = Instant::now();
    let mut odoo = world.odoo().await;
    odoo.create_company("While it hangs", "hangs@example.com", 1).await.unwrap();
    eventually(PATIENCE, "the standby", async || {
        let there = world.stripe.with(|stripe| stripe.customers().len());
        if there == 1 { Ok(()) } else { Err(world.log()) }
    })
    .await;
    println!("a standby takes over from a process that hangs after {:.1} s", stopped.elapsed().as_secs_f64());
    assert!(stopped.elapsed() < Duration::from_secs(20), "{:?}", stopped.elapsed());
    signal(&first, "-CONT");
    living(&world, 2).await;
    world.settled(PATIENCE).await;
    assert!(first.terminate().success());
    assert!(second.terminate().success());
    world.verify();
}
