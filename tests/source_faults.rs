//! What happens to a source: restarts, cut and silent networks, slots dropped, advanced and invalidated, publications
//! altered, tables made again, ledgers restored, servers promoted. Nothing is lost, nothing doubled, nothing silent.

use std::process::{Command, Output};
use std::time::Duration;

use tailwater::demo::private::PrivatePostgres;
use tokio_postgres::Client;

use crate::support::expected::{assert_same, expected, held};
use crate::support::images::assert_images_equal;
use crate::support::proxy::Proxy;
use crate::support::workload::{Workload, seed};
use crate::support::{World, WorldOptions, eventually};

const PATIENCE: Duration = Duration::from_secs(60);

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Repetitions in `make test`; `make soak` sets more.
fn times(short: usize) -> usize {
    std::env::var("TAILWATER_TIMES").ok().and_then(|text| text.parse().ok()).unwrap_or(short)
}

async fn everything_arrived(world: &World, erp: &Client) {
    world.settled_to(erp, PATIENCE).await;
    assert_images_equal(world, erp).await;
    assert_same(&held(world), &expected(erp, &[]).await);
    assert_eq!(world.stripe.with(|stripe| stripe.doubled()), Vec::<String>::new());
}

/// Runs `run` to its refusal, then `recover`, and starts the daemon again.
fn refused(world: &World, expected: &str) {
    let output = world.run(&["run"]);
    assert_eq!(output.status.code(), Some(78), "{}", text(&output));
    assert!(
        text(&output).contains(expected) && text(&output).contains("tailwater recover"),
        "{}",
        text(&output)
    );
}

fn recovered(world: &World) {
    let output = world.run(&["recover", "--source", "erp"]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("the gap after"), "{}", text(&output));
}

async fn gaps(world: &World) -> i64 {
    let sql = "select count(*) from entry where kind = 'gap'";
    world.ledger_client().await.query_one(sql, &[]).await.unwrap().get(0)
}

async fn lived_in() -> World {
    lived_in_by().await.0
}

/// Names are used once: the workload goes on where it was.
async fn lived_in_by() -> (World, Workload) {
    let world = World::start(WorldOptions::default()).await;
    let mut odoo = world.odoo().await;
    let mut workload = Workload::new(seed());
    for _ in 0..40 {
        workload.step(&mut odoo).await;
    }
    // What is archived before the first load stays away from the targets; that is another test's matter.
    odoo.client().batch_execute("update res_partner set active = true").await.unwrap();
    (world, workload)
}

/// Changes of every kind that a gap may hide: new, changed, deleted.
async fn unheard(world: &World) {
    let mut odoo = world.odoo().await;
    let company = odoo.create_company("Made in the gap", "gap@example.com", 2).await.unwrap();
    odoo.create_contact(company, "Contact of the gap", "contact@example.com").await.unwrap();
    let erp = world.erp.client("erp").await.unwrap();
    erp.batch_execute(
        "update res_partner set city = 'Gap' where id = (select max(id) - 4 from res_partner);
         delete from res_partner where id = (select max(id) from res_partner p where not is_company and parent_id is not null
           and name not like '%gap%' and id not in (select partner_id from res_users))",
    )
    .await
    .unwrap();
}

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
    let settings = std::fs::read_to_string(&world.config).unwrap();
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/mappings");
    std::fs::write(&world.config, settings.replace(shipped, mappings.to_str().unwrap())).unwrap();
    recovered(&world);
    let _daemon = world.daemon();
    world.streaming().await;
    let erp = world.erp.client("erp").await.unwrap();
    everything_arrived(&world, &erp).await;
    assert_eq!(gaps(&world).await, 1);
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
    let settings = std::fs::read_to_string(&world.config).unwrap();
    let guard = "[sources.erp.wal]\nwhen_lost = \"recover\"\n[targets.stripe]";
    std::fs::write(&world.config, settings.replace("[targets.stripe]", guard)).unwrap();
    let _daemon = world.daemon();
    eventually(PATIENCE, "the gap", async || if gaps(&world).await == 1 { Ok(()) } else { Err(world.log()) })
        .await;
    world.streaming().await;
    everything_arrived(&world, &erp).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guard_lets_go_of_the_slot_when_told_to_and_everything_is_read_again() {
    let world = lived_in().await;
    let settings = std::fs::read_to_string(&world.config).unwrap();
    let guard = "[sources.erp.wal]\nwarn_at = \"1MB\"\nalarm_at = \"2MB\"\nrelease_slot_at = \"8MB\"\nheartbeat = \"1s\"\n[targets.stripe]";
    std::fs::write(&world.config, settings.replace("[targets.stripe]", guard)).unwrap();
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

#[tokio::test(flavor = "multi_thread")]
async fn a_table_out_of_the_publication_or_made_again_is_noticed_and_read_again() {
    let world = lived_in().await;
    let settings = std::fs::read_to_string(&world.config).unwrap();
    let often = "recheck = \"1s\"\nmapping = \"odoo\"";
    std::fs::write(&world.config, settings.replace("mapping = \"odoo\"", often)).unwrap();
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
    eventually(PATIENCE, "the re-read", async || {
        let sql = "select count(*) from load where kind = 'reread' and state = 'done'";
        let done: i64 = world.ledger_client().await.query_one(sql, &[]).await.unwrap().get(0);
        if done > 0 { Ok(()) } else { Err(world.log()) }
    })
    .await;
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
    let settings = std::fs::read_to_string(&world.config).unwrap();
    let through = settings.replace(&format!(":{}/erp", world.erp.port), &format!(":{}/erp", proxy.port));
    std::fs::write(&world.config, through).unwrap();
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
    let mut standby: PrivatePostgres = world.erp.standby(world.directory.path(), "standby").await.unwrap();
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
    let settings = std::fs::read_to_string(&world.config).unwrap();
    let moved = settings.replace(&format!(":{}/erp", world.erp.port), &format!(":{}/erp", standby.port));
    std::fs::write(&world.config, &moved).unwrap();
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
    let settings = std::fs::read_to_string(&world.config).unwrap();
    let moved = settings.replace(&format!(":{}/erp", world.erp.port), &format!(":{}/erp", restored.port));
    std::fs::write(&world.config, &moved).unwrap();
    refused(&world, "another database cluster");
    assert_eq!(world.run(&["recover", "--source", "erp"]).status.code(), Some(78));
    let accepted = world.run(&["recover", "--source", "erp", "--accept-new-cluster"]);
    assert!(accepted.status.success(), "{}", text(&accepted));
    let _daemon = world.daemon();
    world.streaming().await;
    everything_arrived(&world, &erp).await;
}
