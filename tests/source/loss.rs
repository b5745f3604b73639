//! Slots, publications, tables and ledgers that are not what they were.

use std::process::Command;

use tokio_postgres::Client;

use super::{PATIENCE, everything_arrived, gaps, lived_in, recovered, refused, text, unheard};
use crate::support::{World, WorldOptions, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_was_dropped_is_refused_and_recovery_finds_what_was_made_changed_and_deleted() {
    let world = lived_in().await;
    let mut daemon = world.daemon();
    world.streaming().await;
    world.settled(PATIENCE).await;
    assert!(daemon.terminate().success());
    let erp = world.erp.client("erp").await.unwrap();
    drop_slot(&erp).await;
    unheard(&world).await;
    refused(&world, "does not exist any more");
    recovered(&world);
    // A crash in the middle of the recovery changes nothing.
    let mut daemon = world.daemon();
    eventually(PATIENCE, "the recovery to begin", async || {
        let sql = "select phase from position where phase <> 'creating'";
        let row = world.ledger_client().await.query_opt(sql, &[]).await.unwrap();
        row.map(|_| ()).ok_or_else(|| world.log())
    })
    .await;
    daemon.kill();
    let _daemon = world.daemon();
    world.streaming().await;
    everything_arrived(&world, &erp).await;
    assert_eq!(gaps(&world).await, 1);
    world.verify();
}

async fn drop_slot(erp: &Client) {
    eventually(PATIENCE, "the slot to be free", async || {
        let drop = "select pg_drop_replication_slot('tailwater')";
        erp.batch_execute(drop).await.map_err(|error| error.to_string())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_advanced_slot_and_a_ledger_from_an_older_dump_are_refused_and_nothing_is_made_twice() {
    let world = lived_in().await;
    let mut daemon = world.daemon();
    world.streaming().await;
    world.settled(PATIENCE).await;
    assert!(daemon.terminate().success());
    let dump = world.directory.path().join("ledger.dump");
    let url = world.ledger.url("postgres", "tailwater");
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(world.ledger.program(program)).args(arguments).output().unwrap();
        assert!(output.status.success(), "{program}: {}", text(&output));
    };
    run("pg_dump", &["-Fc", "-f", dump.to_str().unwrap(), &url]);
    let mut daemon = world.daemon();
    let mut odoo = world.odoo().await;
    odoo.create_company("After the dump", "after@example.com", 1).await.unwrap();
    world.settled(PATIENCE).await;
    assert!(daemon.terminate().success());
    let admin = world.ledger.client("postgres").await.unwrap();
    admin.batch_execute("drop database tailwater with (force)").await.unwrap();
    admin.batch_execute("create database tailwater owner tailwater").await.unwrap();
    run("pg_restore", &["-d", &url, dump.to_str().unwrap()]);
    refused(&world, "it is an older copy");
    let not_yet = world.run(&["recover", "--source", "erp"]);
    assert!(text(&not_yet).contains("older copy") && not_yet.status.code() == Some(78), "{}", text(&not_yet));
    let missing = world.printed(&["recover", "--ledger"]);
    assert!(missing.contains("are missing; that is in the ledger"), "{missing}");
    let ended = world.run(&["run"]);
    assert!(text(&ended).contains("has ended") && ended.status.code() == Some(78), "{}", text(&ended));
    let key = world.directory.path().join("ledger-2.key");
    world.printed_without_settings(&[
        "ledger",
        "key",
        "--name",
        "example.com/ledger-2",
        "--out",
        key.to_str().unwrap(),
    ]);
    world.edit_settings("ledger.key", "ledger-2.key");
    refused(&world, "ahead of the ledger");
    unheard(&world).await;
    // Nobody waits an hour for Stripe's search here; the simulated one shows a customer after a second.
    let mappings = world.directory.path().join("own-mappings");
    let copied = Command::new("cp")
        .arg("-r")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/mappings"))
        .arg(&mappings)
        .status();
    assert!(copied.unwrap().success());
    let connector = mappings.join("connectors/stripe.yaml");
    let yaml = std::fs::read_to_string(&connector).unwrap();
    std::fs::write(&connector, yaml.replace("fresh_after_s: 3600", "fresh_after_s: 3")).unwrap();
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/mappings");
    world.edit_settings(shipped, mappings.to_str().unwrap());
    recovered(&world);
    let _daemon = world.daemon();
    world.streaming().await;
    let erp = world.erp.client("erp").await.unwrap();
    everything_arrived(&world, &erp).await;
    assert_eq!(gaps(&world).await, 2, "of the ledger and of the source");
    world.verify();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_invalidated_by_size_is_recovered_without_asking_when_the_settings_say_so() {
    let world = World::start(WorldOptions {
        erp_settings: &["max_slot_wal_keep_size = '16MB'", "max_wal_size = '64MB'", "min_wal_size = '32MB'"],
        ..WorldOptions::default()
    })
    .await;
    let mut daemon = world.daemon();
    world.streaming().await;
    let mut odoo = world.odoo().await;
    odoo.create_company("One", "one@example.com", 1).await.unwrap();
    world.settled(PATIENCE).await;
    assert!(daemon.terminate().success());
    unheard(&world).await;
    let erp = world.erp.client("erp").await.unwrap();
    eventually(PATIENCE, "the slot to be lost", async || {
        erp.batch_execute("insert into mail_message (body) select repeat('x', 1000) from generate_series(1, 20000); checkpoint")
            .await
            .unwrap();
        let sql = "select wal_status from pg_replication_slots where slot_name = 'tailwater'";
        let status: String = erp.query_one(sql, &[]).await.unwrap().get(0);
        if status == "lost" { Ok(()) } else { Err(status) }
    })
    .await;
    let check = world.run(&["check"]);
    assert!(text(&check).contains("lost") && check.status.code() == Some(78), "{}", text(&check));
    refused(&world, "is lost");
    let guard = "[sources.erp.wal]\nwhen_lost = \"recover\"\n[targets.stripe]";
    world.edit_settings("[targets.stripe]", guard);
    let _daemon = world.daemon();
    eventually(PATIENCE, "the gap", async || if gaps(&world).await == 1 { Ok(()) } else { Err(world.log()) })
        .await;
    world.streaming().await;
    everything_arrived(&world, &erp).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guard_lets_go_of_the_slot_when_told_to_and_everything_is_read_again() {
    let world = lived_in().await;
    let guard = "[sources.erp.wal]\nwarn_at = \"1MB\"\nalarm_at = \"2MB\"\nrelease_slot_at = \"8MB\"\nheartbeat = \"1s\"\n[targets.stripe]";
    world.edit_settings("[targets.stripe]", guard);
    let mut daemon = world.daemon();
    world.streaming().await;
    world.settled(PATIENCE).await;
    // The ledger goes away: nothing is confirmed, the WAL piles up.
    let mut world = world;
    world.ledger.stop("fast").unwrap();
    let erp = world.erp.client("erp").await.unwrap();
    unheard(&world).await;
    erp.batch_execute(
        "insert into mail_message (body) select repeat('x', 1000) from generate_series(1, 12000)",
    )
    .await
    .unwrap();
    eventually(PATIENCE, "the slot to be let go", async || {
        let count: i64 =
            erp.query_one("select count(*) from pg_replication_slots", &[]).await.unwrap().get(0);
        if count == 0 { Ok(()) } else { Err(world.log()) }
    })
    .await;
    let log = world.log();
    assert!(log.contains("WAL guard: the slot is let go"), "{log}");
    world.ledger.resume().await.unwrap();
    eventually(PATIENCE, "the gap", async || {
        let client = world.ledger.client("tailwater").await.map_err(|error| error.to_string())?;
        let sql = "select 1 from tailwater.entry where kind = 'gap'";
        client.query_opt(sql, &[]).await.unwrap().map(|_| ()).ok_or_else(|| world.log())
    })
    .await;
    world.streaming().await;
    everything_arrived(&world, &erp).await;
    assert!(daemon.terminate().success());
}

async fn re_read(world: &World, times: i64) {
    eventually(PATIENCE, "the re-read", async || {
        let sql = "select count(*) from load where kind = 'reread' and state = 'done'";
        let done: i64 = world.ledger_client().await.query_one(sql, &[]).await.unwrap().get(0);
        if done >= times { Ok(()) } else { Err(world.log()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_out_of_the_publication_or_made_again_is_noticed_and_read_again() {
    let world = lived_in().await;
    world.edit_settings("mapping = \"odoo\"", "recheck = \"1s\"\nmapping = \"odoo\"");
    let mut daemon = world.daemon();
    world.streaming().await;
    world.settled(PATIENCE).await;
    let erp = world.erp.client("erp").await.unwrap();
    erp.batch_execute("alter publication tailwater drop table res_partner").await.unwrap();
    unheard(&world).await;
    let status = daemon.child.wait().unwrap();
    assert_eq!(status.code(), Some(78), "{}", world.log());
    assert!(world.log().contains("the publication does not have it"), "{}", world.log());
    assert_eq!(gaps(&world).await, 1);
    erp.batch_execute("alter publication tailwater add table res_partner").await.unwrap();
    let mut daemon = world.daemon();
    world.streaming().await;
    re_read(&world, 1).await;
    everything_arrived(&world, &erp).await;
    // A column of another type is written anew without a word in the stream.
    erp.batch_execute("alter table res_partner alter column city type text using upper(city)").await.unwrap();
    re_read(&world, 2).await;
    everything_arrived(&world, &erp).await;
    // A table that is dropped and made again leaves the publication without a word.
    erp.batch_execute(
        "begin; create table kept as table res_partner_res_partner_category_rel; drop table res_partner_res_partner_category_rel;
         create table res_partner_res_partner_category_rel (category_id int, partner_id int, primary key (category_id, partner_id));
         insert into res_partner_res_partner_category_rel select * from kept where category_id <> 1; drop table kept;
         grant select on res_partner_res_partner_category_rel to tailwater_src; commit;
         alter publication tailwater add table res_partner_res_partner_category_rel",
    )
    .await
    .unwrap();
    eventually(PATIENCE, "the images", async || {
        let count = "select count(*) from image where relation = 'res_partner_res_partner_category_rel'";
        let known: i64 = world.ledger_client().await.query_one(count, &[]).await.unwrap().get(0);
        let real = "select count(*) from res_partner_res_partner_category_rel";
        let real: i64 = erp.query_one(real, &[]).await.unwrap().get(0);
        if daemon.child.try_wait().unwrap().is_some() {
            // The recheck met it between leaving the publication and coming back.
            daemon = world.daemon();
        }
        if known == real { Ok(()) } else { Err(format!("{known} {real}\n{}", world.log())) }
    })
    .await;
    everything_arrived(&world, &erp).await;
}
