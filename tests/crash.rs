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
    assert_same(&held(&world), &expected(&erp, &archived_at_load(&world).await).await);
    assert_eq!(world.stripe.with(|stripe| stripe.doubled()), Vec::<String>::new());
    assert_eq!(world.zendesk.with(|zendesk| zendesk.merged.clone()), Vec::<String>::new());
    assert!(daemon.terminate().success());
    world.verify();
}

/// Partners that the first load found archived and that have not been in use since: they are created nowhere. Kills may put the end of
/// the first load off for as long as the ERP writes.
async fn archived_at_load(world: &World) -> Vec<i32> {
    let sql = "select body ->> 'id'
               from (select seq, convert_from(body, 'UTF8')::jsonb as body from entry where kind = 'event') e
               group by 1
               having (array_agg((body -> 'source' ->> 'snapshot')::boolean order by seq))[1]
                 and (array_agg(body -> 'data' ->> 'active' order by seq))[1] = 'false'
                 and count(*) filter (where body -> 'data' ->> 'active' = 'true') = 0";
    let rows = world.ledger_client().await.query(sql, &[]).await.unwrap();
    rows.iter().map(|row| row.get::<_, &str>(0).rsplit_once('-').unwrap().1.parse().unwrap()).collect()
}

/// Makes the first insert of an image of `res_users`, or of any emission, wait for an advisory lock.
const HOLD: &str = "
  create function hold() returns trigger language plpgsql as $$
    begin perform pg_advisory_xact_lock(tg_argv[0]::bigint); return new; end $$;
  create trigger hold_copy before insert on image for each row when (new.relation = 'res_users') execute function hold(1);
  create trigger hold_map before update on image for each row execute function hold(2)";

async fn reaches(world: &World, phase: &str) {
    eventually(Duration::from_secs(30), phase, async || {
        let client = world.ledger_client().await;
        let found = client.query_opt("select phase from position", &[]).await.ok().flatten();
        let found = found.map_or_else(String::new, |row| row.get(0));
        if found == phase { Ok(()) } else { Err(format!("phase {found}\n{}", world.log())) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_in_each_phase_of_the_first_load_leaves_one_slot_and_doubles_nothing() {
    let world = World::start(WorldOptions::default()).await;
    let mut odoo = world.odoo().await;
    for number in 0..50 {
        odoo.create_company(&format!("Company {number}"), &format!("c{number}@example.com"), 2)
            .await
            .unwrap();
    }
    // A slot is not consistent before every open transaction has ended.
    let open = world.erp.client("erp").await.unwrap();
    open.batch_execute("begin; insert into mail_message (body) values ('open')").await.unwrap();
    let mut daemon = world.daemon();
    reaches(&world, "creating").await;
    daemon.kill();
    open.batch_execute("rollback").await.unwrap();
    let ledger = world.ledger_client().await;
    ledger.batch_execute(HOLD).await.unwrap();
    for (phase, lock) in [("copying", 1_i64), ("mapping", 2)] {
        ledger.execute("select pg_advisory_lock($1)", &[&lock]).await.unwrap();
        let mut daemon = world.daemon();
        reaches(&world, phase).await;
        daemon.kill();
        ledger.execute("select pg_advisory_unlock($1)", &[&lock]).await.unwrap();
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
