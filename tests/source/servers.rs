//! Servers and networks that go away and come back, or come back as others.

use std::process::Command;

use tailwater::demo::private::PrivatePostgres;

use super::{
    PATIENCE, everything_arrived, gaps, lived_in, lived_in_by, recovered, refused, text, times, unheard,
};
use crate::support::eventually;
use crate::support::proxy::Proxy;

#[tokio::test(flavor = "multi_thread")]
async fn restarts_of_the_server_and_killed_walsenders_lose_nothing() {
    let (mut world, mut workload) = lived_in_by().await;
    let _daemon = world.daemon();
    world.streaming().await;
    for _ in 0..times(4) {
        let mut odoo = world.odoo().await;
        for _ in 0..5 {
            workload.step(&mut odoo).await;
        }
        drop(odoo);
        world.erp.stop("fast").unwrap();
        world.erp.resume().await.unwrap();
    }
    let mut odoo = world.odoo().await;
    let erp = world.erp.client("erp").await.unwrap();
    for _ in 0..times(15) {
        workload.step(&mut odoo).await;
        let kill = "select pg_terminate_backend(pid) from pg_stat_activity where backend_type = 'walsender'";
        eventually(PATIENCE, "a walsender", async || {
            let killed = erp.query(kill, &[]).await.unwrap();
            if killed.is_empty() { Err(world.log()) } else { Ok(()) }
        })
        .await;
    }
    everything_arrived(&world, &erp).await;
    world.verify();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_is_cut_or_swallows_everything_is_got_over() {
    let (world, mut workload) = lived_in_by().await;
    let erp = world.erp.client("erp").await.unwrap();
    erp.batch_execute("alter system set wal_sender_timeout = '4s'").await.unwrap();
    erp.batch_execute("select pg_reload_conf()").await.unwrap();
    let proxy = Proxy::start(world.erp.port).await;
    world.read_from(proxy.port);
    let _daemon = world.daemon();
    world.streaming().await;
    let mut odoo = world.odoo().await;
    for _ in 0..5 {
        workload.step(&mut odoo).await;
        proxy.cut();
    }
    world.settled(PATIENCE).await;
    let noticed = || world.log().matches("source is away").count();
    let refused = || world.log().matches("no session within").count();
    let (before, none) = (noticed(), refused());
    assert_eq!(none, 0);
    proxy.black_hole(true);
    for _ in 0..10 {
        workload.step(&mut odoo).await;
    }
    // The server gives up on us, or we on the server; and we do not wait for ever for a new session.
    eventually(PATIENCE, "the break to be noticed and a session to be given up", async || {
        if noticed() > before && refused() > 0 { Ok(()) } else { Err(world.log()) }
    })
    .await;
    proxy.black_hole(false);
    proxy.cut();
    everything_arrived(&world, &erp).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_standby_without_the_slot_is_refused_and_recovered() {
    let mut world = lived_in().await;
    let mut daemon = world.daemon();
    world.streaming().await;
    world.settled(PATIENCE).await;
    let mut standby: PrivatePostgres =
        world.erp.standby(world.directory.path(), "standby", &[]).await.unwrap();
    unheard(&world).await;
    world.settled(PATIENCE).await;
    let erp = world.erp.client("erp").await.unwrap();
    let end: String = erp.query_one("select pg_current_wal_lsn()::text", &[]).await.unwrap().get(0);
    let replica = standby.client("erp").await.unwrap();
    eventually(PATIENCE, "the standby", async || {
        let sql = "select pg_last_wal_replay_lsn() >= $1::text::pg_lsn";
        let caught: bool = replica.query_one(sql, &[&end]).await.unwrap().get(0);
        if caught { Ok(()) } else { Err("behind".into()) }
    })
    .await;
    world.read_from(standby.port);
    let check = world.run(&["check"]);
    assert!(text(&check).contains("is a standby"), "{}", text(&check));
    assert!(daemon.terminate().success());
    world.erp.stop("fast").unwrap();
    standby.promote().unwrap();
    replica
        .batch_execute(
            "update res_partner set city = 'After the failover' where id = (select max(id) from res_partner)",
        )
        .await
        .unwrap();
    refused(&world, "does not exist any more");
    recovered(&world);
    let _daemon = world.daemon();
    world.streaming().await;
    everything_arrived(&world, &replica).await;
    assert_eq!(gaps(&world).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_erp_restored_from_a_dump_is_another_cluster_and_has_to_be_accepted() {
    let world = lived_in().await;
    let mut daemon = world.daemon();
    world.streaming().await;
    world.settled(PATIENCE).await;
    assert!(daemon.terminate().success());
    let restored = PrivatePostgres::start(world.directory.path(), "restored", &[]).await.unwrap();
    let admin = restored.client("postgres").await.unwrap();
    for sql in [
        "create role tailwater_src login replication",
        "create role odoo login",
        "create database erp owner odoo",
    ] {
        admin.batch_execute(sql).await.unwrap();
    }
    let dump = world.directory.path().join("erp.dump");
    for (program, arguments) in [
        ("pg_dump", vec!["-Fc", "-f", dump.to_str().unwrap(), &world.erp.url("postgres", "erp")]),
        ("pg_restore", vec!["-d", &restored.url("postgres", "erp"), dump.to_str().unwrap()]),
    ] {
        let output = Command::new(world.erp.program(program)).args(arguments).output().unwrap();
        assert!(output.status.success(), "{program}: {}", text(&output));
    }
    let erp = restored.client("erp").await.unwrap();
    erp.batch_execute(
        "update res_partner set city = 'Restored' where id = (select max(id) from res_partner)",
    )
    .await
    .unwrap();
    world.read_from(restored.port);
    refused(&world, "another database cluster");
    assert_eq!(world.run(&["recover", "--source", "erp"]).status.code(), Some(78));
    let accepted = world.run(&["recover", "--source", "erp", "--accept-new-cluster"]);
    assert!(accepted.status.success(), "{}", text(&accepted));
    let _daemon = world.daemon();
    world.streaming().await;
    everything_arrived(&world, &erp).await;
}

/// A standby of version 17 and later keeps a copy of the slot.
#[tokio::test(flavor = "multi_thread")]
async fn a_failover_to_a_standby_that_has_the_slot_goes_on_without_a_gap() {
    let (mut world, mut workload) = lived_in_by().await;
    let erp = world.erp.client("erp").await.unwrap();
    let version: String = erp.query_one("show server_version_num", &[]).await.unwrap().get(0);
    if version.as_str() < "170000" {
        println!("skipped: failover slots come with PostgreSQL 17; `make test-matrix` runs this");
        return;
    }
    let mut daemon = world.daemon();
    world.streaming().await;
    erp.batch_execute("select pg_create_physical_replication_slot('standby', true)").await.unwrap();
    let settings =
        ["primary_slot_name = 'standby'", "hot_standby_feedback = on", "sync_replication_slots = on"];
    let mut standby = world.erp.standby(world.directory.path(), "standby", &settings).await.unwrap();
    let mut odoo = world.odoo().await;
    for _ in 0..20 {
        workload.step(&mut odoo).await;
    }
    world.settled(PATIENCE).await;
    let replica = standby.client("erp").await.unwrap();
    let erp = world.erp.client("erp").await.unwrap();
    eventually(PATIENCE, "the standby to have the slot and everything that is ledgered", async || {
        let sql = "select confirmed_flush_lsn::text from pg_replication_slots where slot_name = 'tailwater'";
        let confirmed: String = erp.query_one(sql, &[]).await.unwrap().get(0);
        let sql = "select synced and not temporary and confirmed_flush_lsn >= $1::text::pg_lsn
                   from pg_replication_slots where slot_name = 'tailwater'";
        let row = replica.query_opt(sql, &[&confirmed]).await.unwrap();
        if row.is_some_and(|row| row.get(0)) { Ok(()) } else { Err(world.log()) }
    })
    .await;
    assert!(daemon.terminate().success());
    world.erp.stop("fast").unwrap();
    standby.promote().unwrap();
    replica.batch_execute("update res_partner set city = 'After the failover'").await.unwrap();
    world.read_from(standby.port);
    let _daemon = world.daemon();
    world.streaming().await;
    everything_arrived(&world, &replica).await;
    assert_eq!(gaps(&world).await, 0);
    assert!(world.log().contains("the server was promoted"), "{}", world.log());
}
