//! What a system tells late, twice, out of order, and on pages that shift while they are read, arrives once.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tailwater::demo::vendor::faults::Faults;
use tailwater::demo::vendor::server::{Limit, VendorServer};

use crate::support::feed::Feed;
use crate::support::workload::seed;
use crate::support::{World, WorldOptions, eventually};

/// As canonical ids tell of the three ways.
const LETTERS: [&str; 3] = ["E", "C", "T"];

fn from_environment(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

async fn world(late_s: u64) -> (World, VendorServer<Feed>) {
    let options = WorldOptions { data: Some("wide"), odoo_schema: false, ..WorldOptions::default() };
    let world = World::start(options).await;
    let data = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/feed");
    let mappings = world.directory.path().join("mappings");
    std::fs::create_dir_all(mappings.join("sources/feed")).unwrap();
    for file in ["feed.yaml", "more.yaml", "third.yaml"] {
        std::fs::copy(data.join(file), mappings.join("sources/feed").join(file)).unwrap();
    }
    let connector = std::fs::read_to_string(data.join("connectors/feed.yaml")).unwrap();
    world.add_connector("feed", &connector.replace("LATE", &late_s.to_string()));
    let feed =
        VendorServer::start(Feed::default(), Limit { requests: 100_000, window_s: 1.0 }).await.unwrap();
    world.add_target("feed", &feed.url(), "");
    world.add_source("feed", "kind = \"poll\"\ntarget = \"feed\"\nshare = 100\n");
    (world, feed)
}

/// Revisions by way and number, as events tell of them, in their order.
async fn told(world: &World) -> Vec<(String, u64, u64)> {
    let ledger = world.ledger_client().await;
    let sql = "select convert_from(body, 'utf8')::jsonb ->> 'id', convert_from(body, 'utf8')::jsonb #>> '{data,plan}'
               from entry where kind = 'event' and convert_from(body, 'utf8')::jsonb ->> 'op' <> 'delete' order by seq";
    let rows = ledger.query(sql, &[]).await.unwrap();
    let read = |row: &tokio_postgres::Row| {
        let id: String = row.get(0);
        let mut parts = id.split('-').skip(1);
        let (letter, number) = (parts.next().unwrap().to_owned(), parts.next().unwrap().parse().unwrap());
        (letter, number, row.get::<_, String>(1).parse().unwrap())
    };
    rows.iter().map(read).collect()
}

/// Waits until the newest revision of everything has been told.
async fn complete(world: &World, feed: &VendorServer<Feed>, patience: Duration) -> Vec<(String, u64, u64)> {
    eventually(patience, "everything is told", async || {
        let mut last: BTreeMap<(String, u64), u64> = BTreeMap::new();
        for (letter, number, revision) in told(world).await {
            last.insert((letter, number), revision);
        }
        for (way, letter) in LETTERS.iter().enumerate() {
            for (number, revision) in feed.with(|feed| feed.things(way)) {
                let known = last.get(&((*letter).to_owned(), number)).copied();
                if known != Some(revision) {
                    return Err(format!("{letter}-{number}: {known:?} of {revision}; {}", world.log()));
                }
            }
        }
        Ok(())
    })
    .await;
    told(world).await
}

/// Waits until so many more pages were asked for.
async fn asked_again(world: &World, feed: &VendorServer<Feed>, more: usize) {
    let enough = feed.calls() + more;
    eventually(Duration::from_secs(30), "polls", async || {
        if feed.calls() >= enough { Ok(()) } else { Err(world.log()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn late_doubled_and_shifting_records_are_told_once_each() {
    let records = from_environment("TAILWATER_RECORDS", 3_000);
    let late_s = from_environment("TAILWATER_LATE_SECONDS", 4);
    let mut random = StdRng::seed_from_u64(seed());
    let (world, feed) = world(late_s * 5).await;
    feed.with(|feed| feed.late_ms = i64::try_from(late_s).unwrap() * 1_000);
    feed.set_faults(Faults { error: 0.02, reset: 0.02, ..Faults::default() });
    let mut daemon = world.daemon();
    world.streaming().await;
    // Most are new, some change again while they are read.
    let mut made = 0;
    while made < records {
        let burst = random.random_range(1..120).min(records - made);
        feed.with(|feed| {
            for _ in 0..burst {
                made += 1;
                let way = random.random_range(0..3);
                let again = made > 100 && random.random_bool(0.2);
                feed.touch(way, if again { random.random_range(1..made) } else { made });
            }
        });
        asked_again(&world, &feed, random.random_range(0..2)).await;
        if random.random_bool(0.02) {
            daemon.kill();
            daemon = world.daemon();
        }
    }
    let told = complete(&world, &feed, Duration::from_secs(60 + late_s * 4)).await;
    let each: BTreeSet<_> = told.iter().cloned().collect();
    assert_eq!(each.len(), told.len(), "a revision was told twice");
    // Never backwards: what comes late and is old counts no more.
    let mut last: BTreeMap<(String, u64), u64> = BTreeMap::new();
    for (letter, number, revision) in &told {
        let before = last.insert((letter.clone(), *number), *revision).unwrap_or_default();
        assert!(before < *revision, "{letter}-{number} went from {before} to {revision}");
    }
    println!(
        "# {records} records in three ways, up to {late_s} s late: {} events, none missed, none doubled",
        told.len()
    );
    assert!(daemon.terminate().success());
    world.verify();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_that_expired_is_a_gap_and_everything_is_read_again_with_deletions() {
    let (world, feed) = world(10).await;
    feed.with(|feed| (1..=150).for_each(|id| (0..2).for_each(|way| feed.touch(way, id))));
    let mut daemon = world.daemon();
    world.streaming().await;
    complete(&world, &feed, Duration::from_secs(30)).await;
    assert!(daemon.terminate().success());
    // While nothing is read one thing goes without a word, and the cursor is forgotten.
    feed.with(|feed| {
        feed.lose(0, 7);
        feed.touch(1, 9);
        feed.expired = true;
    });
    let mut daemon = world.daemon();
    eventually(Duration::from_secs(30), "the gap", async || {
        let gaps = world.count("select count(*) from entry where kind = 'gap'").await;
        if gaps > 0 { Ok(()) } else { Err(world.log()) }
    })
    .await;
    feed.with(|feed| feed.expired = false);
    complete(&world, &feed, Duration::from_secs(30)).await;
    eventually(Duration::from_secs(30), "the deletion", async || {
        let sql = "select count(*) from entry where kind = 'event' and convert_from(body, 'utf8')::jsonb ->> 'op' = 'delete'
                   and convert_from(body, 'utf8')::jsonb ->> 'id' = 'FEED-E-7'";
        if world.count(sql).await == 1 { Ok(()) } else { Err(world.log()) }
    })
    .await;
    let deletions = "select count(*) from entry where kind = 'event' and convert_from(body, 'utf8')::jsonb ->> 'op' = 'delete'";
    assert_eq!(world.count(deletions).await, 1, "nothing else is gone");
    assert!(daemon.terminate().success());
    world.verify();
}
