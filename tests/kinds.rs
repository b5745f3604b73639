//! What is lost and what is doubled, counted at vendors of all four kinds: one that knows a key, one that takes our id, one that can
//! be asked, and one that can do nothing of it.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tailwater::demo::vendor::faults::Faults;
use tailwater::demo::vendor::server::{Limit, VendorServer};
use tokio::time::{Instant, sleep};

use crate::support::plain::{Plain, connectors};
use crate::support::workload::seed;
use crate::support::{World, WorldOptions, eventually};

fn from_environment(name: &str, otherwise: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// After so many kills everything is brought to its end and counted, so that what is owed does not grow with the campaign.
const A_ROUND: usize = 50;

/// A world whose rows go to vendors of all four kinds.
async fn world() -> (World, VendorServer<Plain>) {
    let world =
        World::start(WorldOptions { data: Some("wide"), odoo_schema: false, ..WorldOptions::default() })
            .await;
    let limit = Limit { requests: 1_000_000, window_s: 1.0 };
    let vendor = VendorServer::start(Plain::default(), limit).await.unwrap();
    let mut routes = String::from("format: 1\nroutes:\n");
    for (kind, text) in connectors() {
        world.add_connector(kind, &text);
        world.add_target(kind, &vendor.url(), "quota = \"100000/s\"");
        routes += &format!("  - {{ event: customer.v1, system: {kind}, object: thing, when: \"true\" }}\n");
    }
    std::fs::write(world.directory.path().join("mappings/routes/routes.yaml"), routes).unwrap();
    (world, vendor)
}

async fn insert(world: &World, from: usize, to: usize) {
    let client = world.erp.client("erp").await.unwrap();
    client.batch_execute(&format!("select wide_rows({from}, {to})")).await.unwrap();
}

/// Every row is at each vendor once; where that cannot be known, it waits for a person.
async fn assert_once(world: &World, vendor: &VendorServer<Plain>, rows: usize) -> i64 {
    for kind in ["keyed", "upsert", "found"] {
        let (count, doubled) = vendor.with(|vendor| (vendor.count(kind), vendor.doubled(kind)));
        assert_eq!(doubled, Vec::<String>::new(), "doubled at {kind}");
        assert_eq!(count, rows, "lost at {kind}: {}", world.log());
    }
    assert_eq!(vendor.with(|vendor| vendor.doubled("bare")), Vec::<String>::new(), "doubled at bare");
    let sql = "select count(*) filter (where state = 'applied'), count(*) filter (where state = 'parked' and cause = 'doubt'), count(*)
               from delivery where target = 'bare'";
    let row = world.ledger_client().await.query_one(sql, &[]).await.unwrap();
    let (applied, parked, all): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
    assert_eq!((applied + parked, all), (rows as i64, rows as i64), "each is there, or waits for a person");
    let there = vendor.with(|vendor| vendor.count("bare")) as i64;
    assert!(there >= applied && there <= all, "{there} of {applied} and {parked}");
    println!(
        "# at the vendor that can do nothing: {applied} applied, {parked} parked in doubt, {there} there"
    );
    parked
}

#[tokio::test(flavor = "multi_thread")]
async fn swallowed_answers_lose_nothing_and_double_nothing() {
    let wanted = from_environment("TAILWATER_SWALLOWED", 500);
    let (world, vendor) = world().await;
    vendor.set_faults(Faults { swallow: 0.2, ..Faults::default() });
    let mut daemon = world.daemon();
    world.streaming().await;
    let swallowed = |vendor: &VendorServer<Plain>| vendor.swallowed();
    let mut rows = 0;
    while swallowed(&vendor) < wanted {
        insert(&world, rows + 1, rows + 100).await;
        rows += 100;
        let target = rows;
        eventually(Duration::from_secs(60), "most of it", async || {
            let made = vendor.with(|vendor| vendor.count("upsert"));
            if made + 50 >= target { Ok(()) } else { Err(format!("{made} of {target}; {}", world.log())) }
        })
        .await;
    }
    world.settled(Duration::from_secs(120)).await;
    println!("# {} answers swallowed, {rows} rows at four vendors", swallowed(&vendor));
    assert!(
        assert_once(&world, &vendor, rows).await > 0,
        "some answers of the one that can do nothing were swallowed"
    );
    assert!(daemon.terminate().success());
    world.verify();
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_at_random_instants_lose_nothing_and_double_nothing() {
    let kills = from_environment("TAILWATER_KILLS", 50);
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let (world, vendor) = world().await;
    // Long enough under way that a kill finds some of them there.
    vendor.set_faults(Faults { latency: Duration::from_millis(15), ..Faults::default() });
    let (mut rows, mut killed, mut in_doubt) = (0, 0, 0);
    while killed < kills {
        for _ in 0..A_ROUND.min(kills - killed) {
            let mut daemon = world.daemon();
            let dies_at = Instant::now() + Duration::from_millis(random.random_range(50..1_800));
            while Instant::now() < dies_at {
                let more = random.random_range(1..4);
                insert(&world, rows + 1, rows + more).await;
                rows += more;
                sleep(Duration::from_millis(random.random_range(0..20))).await;
            }
            daemon.kill();
            killed += 1;
        }
        let mut daemon = world.daemon();
        world.streaming().await;
        world.settled(Duration::from_secs(180)).await;
        println!("# {killed} kills, {rows} rows at four vendors");
        in_doubt = assert_once(&world, &vendor, rows).await;
        assert!(daemon.terminate().success());
    }
    assert!(in_doubt > 0, "some kills came while requests were under way");
    world.verify();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_nothing_changes_but_a_little_speed() {
    let rows = from_environment("TAILWATER_ROWS", 1_500);
    let mut seconds = Vec::new();
    for with_redis in [true, false] {
        let (mut world, vendor) = world().await;
        if !with_redis {
            world.redis.stop();
        }
        let mut daemon = world.daemon();
        world.streaming().await;
        let started = Instant::now();
        insert(&world, 1, rows).await;
        world.settled(Duration::from_secs(180)).await;
        seconds.push(started.elapsed().as_secs_f64());
        assert_once(&world, &vendor, rows).await;
        assert!(daemon.terminate().success());
    }
    let share = seconds[0] / seconds[1];
    println!("# {rows} rows at four vendors: {:.1} s with Redis, {:.1} s without", seconds[0], seconds[1]);
    println!(
        "bench throughput_without_redis {share:.2} of 1 bar > 0.8 {}",
        if share > 0.8 { "ok" } else { "short" }
    );
    assert!(share > 0.6, "{seconds:?}");
}
