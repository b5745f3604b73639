//! Vendors that lose answers, throttle, break and vanish.

use std::time::Duration;

use tailwater::demo::vendor::faults::Faults;
use tailwater::demo::vendor::server::Limit;
use tokio::time::{Instant, sleep};

use crate::support::expected::{assert_same, expected, held};
use crate::support::workload::{Workload, seed};
use crate::support::{World, WorldOptions};

async fn retained_wal_bytes(world: &World) -> i64 {
    let sql = "select pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint from pg_replication_slots";
    world.erp.client("erp").await.unwrap().query_one(sql, &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_answer_in_five_swallowed_doubles_nothing() {
    let world = World::start(WorldOptions::default()).await;
    let swallow = Faults { swallow: 0.2, ..Faults::default() };
    world.stripe.set_faults(swallow.clone());
    world.zendesk.set_faults(swallow);
    let _daemon = world.daemon();
    world.streaming().await;
    let mut odoo = world.odoo().await;
    let mut workload = Workload::new(seed());
    for _ in 0..250 {
        workload.step(&mut odoo).await;
    }
    // A bulk request whose answer was lost is given thirty seconds to be over. Ten lost in a row are one in ten million.
    world.settled(Duration::from_secs(300)).await;
    let swallowed = world.log().matches("no answer").count();
    println!(
        "Stripe calls {}, Zendesk calls {}",
        world.stripe.journal().calls.len(),
        world.zendesk.journal().calls.len()
    );
    let erp = world.erp.client("erp").await.unwrap();
    assert_same(&held(&world), &expected(&erp, &[]).await);
    assert_eq!(world.stripe.with(|stripe| stripe.doubled()), Vec::<String>::new(), "{swallowed}");
    assert_eq!(world.zendesk.with(|zendesk| zendesk.merged.clone()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_stored_under_the_key_is_got_over_by_looking_or_by_a_new_key_and_nothing_is_doubled() {
    let world = World::start(WorldOptions::default()).await;
    let _daemon = world.daemon();
    world.streaming().await;
    let mut odoo = world.odoo().await;
    world.stripe.with(|stripe| stripe.store_errors(1));
    let company = odoo.create_company("Replayed", "replayed@example.com", 1).await.unwrap();
    world.settled(Duration::from_secs(60)).await;
    world.stripe.with(|stripe| stripe.store_errors(1));
    odoo.write(company, "city", &"Elsewhere").await.unwrap();
    world.settled(Duration::from_secs(60)).await;
    let erp = world.erp.client("erp").await.unwrap();
    assert_same(&held(&world), &expected(&erp, &[]).await);
    assert_eq!(world.stripe.with(|stripe| stripe.doubled()), Vec::<String>::new());
    // A change back to what was applied before the doubtful one must not be taken for unchanged.
    odoo.write(company, "city", &"First").await.unwrap();
    world.settled(Duration::from_secs(60)).await;
    world.stripe.with(|stripe| stripe.store_errors(1));
    odoo.write(company, "city", &"Second").await.unwrap();
    odoo.write(company, "city", &"First").await.unwrap();
    world.settled(Duration::from_secs(60)).await;
    assert_same(&held(&world), &expected(&erp, &[]).await);
    let searches = world.stripe.journal().calls.iter().filter(|call| call.line.contains("search")).count();
    assert_eq!(searches, 1, "the create was looked up, the update was not");
}

#[tokio::test(flavor = "multi_thread")]
async fn throttling_errors_and_resets_lose_nothing_and_the_quota_holds() {
    let world = World::start(WorldOptions {
        stripe_quota: "40/s",
        zendesk_quota: "2400/min",
        stripe_limit: Limit { requests: 40, window_s: 1.0 },
        zendesk_limit: Limit { requests: 2400, window_s: 60.0 },
        ..WorldOptions::default()
    })
    .await;
    let faults = Faults { throttle: 0.02, error: 0.05, reset: 0.05, ..Faults::default() };
    world.stripe.set_faults(faults.clone());
    world.zendesk.set_faults(faults);
    let _daemon = world.daemon();
    world.streaming().await;
    let mut odoo = world.odoo().await;
    let mut workload = Workload::new(seed());
    for _ in 0..300 {
        workload.step(&mut odoo).await;
    }
    world.settled(Duration::from_secs(120)).await;
    let (stripe, zendesk) = (world.stripe.journal(), world.zendesk.journal());
    println!(
        "busiest second at Stripe: {} of 40; calls by status {:?}",
        stripe.busiest(1.0),
        stripe.by_status()
    );
    assert!(stripe.busiest(1.0) <= 40, "{}", stripe.busiest(1.0));
    assert!(zendesk.busiest(60.0) <= 2400, "{}", zendesk.busiest(60.0));
    let erp = world.erp.client("erp").await.unwrap();
    assert_same(&held(&world), &expected(&erp, &[]).await);
    assert_eq!(world.stripe.with(|stripe| stripe.doubled()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_down_holds_up_neither_the_other_target_nor_the_wal() {
    let world = World::start(WorldOptions::default()).await;
    let _daemon = world.daemon();
    world.streaming().await;
    world.zendesk.set_faults(Faults { down: true, ..Faults::default() });
    let seconds: u64 =
        std::env::var("TAILWATER_DOWN_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(12);
    let mut odoo = world.odoo().await;
    let mut workload = Workload::new(seed());
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut most_wal = 0;
    let mut customers = 0;
    while Instant::now() < until {
        for _ in 0..20 {
            workload.step(&mut odoo).await;
        }
        // WAL that has nothing to do with us must not be kept either.
        let noise = "insert into mail_message (body) select repeat(md5(random()::text), 30) from generate_series(1, 100)";
        odoo.client().batch_execute(noise).await.unwrap();
        sleep(Duration::from_millis(200)).await;
        most_wal = most_wal.max(retained_wal_bytes(&world).await);
        customers = world.stripe.with(|stripe| stripe.customers().len());
    }
    assert!(customers > 5, "Stripe went on: {customers}");
    println!("most WAL retained while Zendesk was down for {seconds} s: {:.1} MB", most_wal as f64 / 1e6);
    assert!(most_wal < 16 << 20, "{most_wal} bytes of WAL retained");
    let refused = world.zendesk.journal().calls.len();
    assert!(
        refused < 60 + 5 * usize::try_from(seconds).unwrap(),
        "{refused} requests to a target that is down"
    );
    world.zendesk.set_faults(Faults::default());
    world.settled(Duration::from_secs(60)).await;
    let erp = world.erp.client("erp").await.unwrap();
    assert_same(&held(&world), &expected(&erp, &[]).await);
}
