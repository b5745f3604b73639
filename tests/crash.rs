//! The daemon is killed without warning, over and over: nothing may be lost, nothing done twice (INV-1..4).

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::{Instant, sleep};

use crate::support::expected::{assert_same, expected, held};
use crate::support::workload::{Workload, seed};
use crate::support::{World, WorldOptions, eventually};

/// Kills in `make test`; `make soak` sets more.
fn kills() -> usize {
    std::env::var("TAILWATER_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(25)
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_at_random_instants_loses_nothing_and_doubles_nothing() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let world = World::start(WorldOptions::default()).await;
    let mut odoo = world.odoo().await;
    let mut workload = Workload::new(seed);
    for _ in 0..30 {
        workload.step(&mut odoo).await;
    }
    let started = Instant::now();
    let mut flushes = 0;
    for kill in 0..kills() {
        let mut daemon = world.daemon();
        // The first kills hit the first load; later ones whatever is going on: the instant is random.
        let lives = Duration::from_millis(random.random_range(20..900));
        let dies_at = Instant::now() + lives;
        while Instant::now() < dies_at {
            workload.step(&mut odoo).await;
            sleep(Duration::from_millis(random.random_range(0..20))).await;
        }
        daemon.kill();
        if kill % 3 == 0 {
            world.redis.command("FLUSHALL").await.unwrap();
            flushes += 1;
        }
    }
    let resumed = Instant::now();
    let mut daemon = world.daemon();
    world.streaming().await;
    world.settled(Duration::from_secs(60)).await;
    println!(
        "kills {} in {:.0} s, Redis flushed {flushes} times, caught up after {:.1} s; Stripe calls {}, Zendesk calls {}",
        kills(),
        started.elapsed().as_secs_f64(),
        resumed.elapsed().as_secs_f64(),
        world.stripe.journal().calls.len(),
        world.zendesk.journal().calls.len()
    );
    let erp = world.erp.client("erp").await.unwrap();
    assert_same(&held(&world), &expected(&erp, &[]).await);
    assert_eq!(world.stripe.with(|stripe| stripe.doubled()), Vec::<String>::new());
    assert_eq!(world.zendesk.with(|zendesk| zendesk.merged.clone()), Vec::<String>::new());
    assert!(daemon.terminate().success());
    world.verify();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_in_the_first_load_does_not_leave_a_second_slot_or_a_second_customer() {
    let world = World::start(WorldOptions::default()).await;
    let mut odoo = world.odoo().await;
    for number in 0..200 {
        odoo.create_company(&format!("Company {number}"), &format!("c{number}@example.com"), 2)
            .await
            .unwrap();
    }
    let ledger = world.ledger_client().await;
    for phase in ["creating", "copying", "mapping"] {
        let mut daemon = world.daemon();
        eventually(Duration::from_secs(30), "a phase to be seen", async || {
            let sql = "select phase from position";
            let found = ledger.query_opt(sql, &[]).await.ok().flatten().map(|row| row.get::<_, String>(0));
            // A phase may pass between two looks; any later one will do.
            found.map(|_| ()).ok_or_else(|| format!("nothing yet, waiting for {phase}"))
        })
        .await;
        daemon.kill();
    }
    let _daemon = world.daemon();
    world.streaming().await;
    world.settled(Duration::from_secs(60)).await;
    let erp = world.erp.client("erp").await.unwrap();
    let slots: i64 = erp.query_one("select count(*) from pg_replication_slots", &[]).await.unwrap().get(0);
    assert_eq!(slots, 1);
    assert_eq!(world.stripe.with(|stripe| stripe.doubled()), Vec::<String>::new());
    assert_same(&held(&world), &expected(&erp, &[]).await);
}
