//! The ERP's PostgreSQL can always stop (INV-9), and so can we.

use std::process::Command;
use std::time::Duration;

use crate::support::expected::{assert_same, expected, held};
use crate::support::images::assert_images_equal;
use crate::support::{World, WorldOptions};

#[tokio::test(flavor = "multi_thread")]
async fn the_erp_stops_at_once_with_the_ledger_up_and_the_daemon_comes_back() {
    let mut world = World::start(WorldOptions::default()).await;
    let _daemon = world.daemon();
    world.streaming().await;
    let mut odoo = world.odoo().await;
    odoo.create_company("Before", "before@example.com", 1).await.unwrap();
    world.settled(Duration::from_secs(20)).await;
    odoo.create_company("Just before the stop", "just@example.com", 1).await.unwrap();
    let took = world.erp.stop("fast").unwrap();
    println!("pg_ctl stop -m fast with the ledger up: {took:?}");
    assert!(took < Duration::from_secs(2), "{took:?}");
    world.erp.resume().await.unwrap();
    world.settled(Duration::from_secs(30)).await;
    let erp = world.erp.client("erp").await.unwrap();
    assert_same(&held(&world), &expected(&erp, &[]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_erp_stops_at_once_with_the_ledger_down_and_with_the_ledger_frozen() {
    let mut world = World::start(WorldOptions::default()).await;
    let _daemon = world.daemon();
    world.streaming().await;
    let mut odoo = world.odoo().await;
    world.ledger.stop("immediate").unwrap();
    odoo.create_company("While the ledger is down", "down@example.com", 1).await.unwrap();
    let took = world.erp.stop("fast").unwrap();
    println!("pg_ctl stop -m fast with the ledger down: {took:?}");
    assert!(took < Duration::from_secs(2), "{took:?}");
    world.ledger.resume().await.unwrap();
    world.erp.resume().await.unwrap();
    world.settled(Duration::from_secs(60)).await;

    // A ledger that takes connections and never answers.
    let ledger = world.ledger_client().await;
    let pids =
        ledger.query("select pid from pg_stat_activity where pid <> pg_backend_pid()", &[]).await.unwrap();
    let pids: Vec<String> = pids.iter().map(|row| row.get::<_, i32>(0).to_string()).collect();
    signal("-STOP", &pids);
    let took = world.erp.stop("fast").unwrap();
    signal("-CONT", &pids);
    println!("pg_ctl stop -m fast with the ledger frozen: {took:?}");
    assert!(took < Duration::from_secs(2), "{took:?}");
    world.erp.resume().await.unwrap();
    world.settled(Duration::from_secs(60)).await;
    let erp = world.erp.client("erp").await.unwrap();
    assert_same(&held(&world), &expected(&erp, &[]).await);
    assert_eq!(world.stripe.with(|stripe| stripe.doubled()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_erp_stops_with_the_ledger_frozen_in_the_middle_of_traffic() {
    let mut world = World::start(WorldOptions::default()).await;
    let _daemon = world.daemon();
    world.streaming().await;
    world.settled(Duration::from_secs(20)).await;
    let ledger = world.ledger_client().await;
    let pids = ledger
        .query("select pid from pg_stat_activity where application_name like 'tailwater-ledger%'", &[])
        .await
        .unwrap();
    let pids: Vec<String> = pids.iter().map(|row| row.get::<_, i32>(0).to_string()).collect();
    signal("-STOP", &pids);
    // More than the daemon takes in: it does not even hear what the server wants any more.
    let erp = world.erp.client("erp").await.unwrap();
    let sql = "insert into res_country_state (country_id, name, code)
               select 1, repeat(md5(n::text), 10), 'S' || n from generate_series(1, 500) n";
    for _ in 0..40 {
        erp.batch_execute(sql).await.unwrap();
    }
    drop(erp);
    let took = world.erp.stop("fast").unwrap();
    signal("-CONT", &pids);
    println!("pg_ctl stop -m fast with the ledger frozen under traffic: {took:?}");
    assert!(took < Duration::from_secs(20), "{took:?}");
    world.erp.resume().await.unwrap();
    world.settled(Duration::from_secs(60)).await;
    assert_images_equal(&world, &world.erp.client("erp").await.unwrap()).await;
}

fn signal(name: &str, pids: &[String]) {
    assert!(Command::new("kill").arg(name).args(pids).status().unwrap().success());
}
