//! What is refused before any harm, and how it is said.

use std::time::Duration;

use crate::support::{World, WorldOptions, eventually};
use tailwater::demo::private::write_secret;

fn exit_code(output: &std::process::Output) -> i32 {
    output.status.code().unwrap()
}

fn text(output: &std::process::Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_published_table_without_a_replica_identity_is_refused_with_the_remedy() {
    let world = World::start(WorldOptions::default()).await;
    let erp = world.erp.client("erp").await.unwrap();
    let shapes = "create table nopk (a int, b text);
                  create table nothing (id int primary key); alter table nothing replica identity nothing;
                  create table dropped (id int not null); create unique index dropped_id on dropped (id);
                  alter table dropped replica identity using index dropped_id; drop index dropped_id;
                  create table fine (id int primary key); create table full_rows (a int); alter table full_rows replica identity full;
                  alter publication tailwater add table nopk, nothing, dropped, fine, full_rows";
    erp.batch_execute(shapes).await.unwrap();
    for command in ["check", "run"] {
        let output = world.run(&[command]);
        let text = text(&output);
        assert_eq!(exit_code(&output), 78, "{command}: {text}");
        for table in ["nopk", "nothing", "dropped"] {
            assert!(text.contains(&format!("public.{table}")), "{command}: {table}: {text}");
        }
        assert!(text.contains("alter publication \"tailwater\" drop table public.nopk"), "{text}");
        assert!(!text.contains("fine") && !text.contains("full_rows"), "{text}");
    }
    let slots: i64 = erp.query_one("select count(*) from pg_replication_slots", &[]).await.unwrap().get(0);
    assert_eq!(slots, 0, "nothing was created");
    erp.batch_execute("alter publication tailwater drop table nopk, nothing, dropped").await.unwrap();
    let output = world.run(&["check"]);
    assert_eq!(exit_code(&output), 0, "{}", text(&output));
    // What the role could do beyond what it must is worth a warning.
    assert!(text(&output).contains("copy the whole cluster"), "{}", text(&output));
    let hba = world.directory.path().join("erp/data/pg_hba.conf");
    let lines = std::fs::read_to_string(&hba).unwrap();
    std::fs::write(&hba, format!("host replication tailwater_src all reject\n{lines}")).unwrap();
    erp.batch_execute("select pg_reload_conf()").await.unwrap();
    eventually(Duration::from_secs(10), "the line to hold", async || {
        let output = world.run(&["check"]);
        if text(&output).contains("copy the whole cluster") { Err(text(&output)) } else { Ok(()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn column_lists_row_filters_missing_tables_and_all_tables_are_found() {
    let world = World::start(WorldOptions::default()).await;
    let erp = world.erp.client("erp").await.unwrap();
    let cases = [
        ("alter table res_country enable row level security", "row-level security"),
        ("alter publication tailwater set table res_partner (id, name), res_country", "column list"),
        ("alter publication tailwater set table res_partner where (active)", "row filter"),
        ("alter publication tailwater set table res_partner", "the publication does not have it"),
        ("drop publication tailwater; create publication tailwater for all tables", "FOR ALL TABLES"),
        ("drop publication tailwater", "does not exist"),
        ("alter table res_country rename column code to iso", "no column \"code\""),
        (
            "revoke select on res_country from tailwater_src; revoke select (id, iso) on res_country from tailwater_src",
            "may not read",
        ),
    ];
    let version: i32 =
        erp.query_one("select current_setting('server_version_num')::int", &[]).await.unwrap().get(0);
    for (sql, expected) in cases {
        if version < 150_000 && matches!(expected, "column list" | "row filter") {
            // PostgreSQL 14 has neither.
            continue;
        }
        erp.batch_execute(sql).await.unwrap();
        let output = world.run(&["check"]);
        assert_eq!(exit_code(&output), 78, "{sql}: {}", text(&output));
        assert!(text(&output).contains(expected), "{sql}: {}", text(&output));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_does_not_fit_the_ledger_is_refused() {
    let world = World::start(WorldOptions::default()).await;
    let mut daemon = world.daemon();
    world.streaming().await;
    let mut odoo = world.odoo().await;
    odoo.create_company("One", "one@example.com", 1).await.unwrap();
    world.settled(Duration::from_secs(20)).await;
    assert!(daemon.terminate().success());
    odoo.create_company("Two", "two@example.com", 1).await.unwrap();
    let erp = world.erp.client("erp").await.unwrap();
    let advance = "select pg_replication_slot_advance('tailwater', pg_current_wal_lsn())";
    eventually(Duration::from_secs(10), "the slot to be free", async || {
        erp.batch_execute(advance).await.map_err(|error| error.to_string())
    })
    .await;
    let output = world.run(&["run"]);
    assert_eq!(exit_code(&output), 78, "{}", text(&output));
    assert!(text(&output).contains("ahead of the ledger"), "{}", text(&output));
    world.edit_settings("slot = \"tailwater\"", "slot = \"other\"");
    let output = world.run(&["run"]);
    assert_eq!(exit_code(&output), 78, "{}", text(&output));
    assert!(text(&output).contains("put the old name back"), "{}", text(&output));
    world.edit_settings("slot = \"other\"", "slot = \"tailwater\"");
    erp.batch_execute("select pg_drop_replication_slot('tailwater')").await.unwrap();
    let output = world.run(&["run"]);
    assert_eq!(exit_code(&output), 78, "{}", text(&output));
    assert!(text(&output).contains("does not exist any more"), "{}", text(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_not_ours_is_left_alone() {
    let world = World::start(WorldOptions::default()).await;
    let erp = world.erp.client("erp").await.unwrap();
    erp.batch_execute("select pg_create_logical_replication_slot('tailwater', 'pgoutput')").await.unwrap();
    let output = world.run(&["run"]);
    assert_eq!(exit_code(&output), 78, "{}", text(&output));
    assert!(text(&output).contains("pg_drop_replication_slot('tailwater')"), "{}", text(&output));
    let slots: i64 = erp.query_one("select count(*) from pg_replication_slots", &[]).await.unwrap().get(0);
    assert_eq!(slots, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_credentials_pause_the_target_and_burn_nothing() {
    let world = World::start(WorldOptions::default()).await;
    write_secret(world.directory.path().join("stripe.key"), "wrong").unwrap();
    let _daemon = world.daemon();
    world.streaming().await;
    let mut odoo = world.odoo().await;
    for number in 0..10 {
        odoo.create_company(&format!("C{number}"), &format!("c{number}@example.com"), 1).await.unwrap();
    }
    eventually(Duration::from_secs(20), "Zendesk goes on", async || {
        let count = world.zendesk.with(|zendesk| zendesk.organizations().len());
        if count == 10 { Ok(()) } else { Err(format!("{count} organizations")) }
    })
    .await;
    assert!(world.stripe.journal().calls.len() <= 8, "{}", world.stripe.journal().calls.len());
    let ledger = world.ledger_client().await;
    let sql = "select count(*) from delivery where target = 'stripe' and state not in ('pending', 'sending')";
    assert_eq!(ledger.query_one(sql, &[]).await.unwrap().get::<_, i64>(0), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_the_vendor_refuses_parks_its_own_lane_only() {
    let world = World::start(WorldOptions::default()).await;
    let _daemon = world.daemon();
    world.streaming().await;
    let mut odoo = world.odoo().await;
    world.stripe.with(|stripe| stripe.refuse_name("Bad"));
    let bad = odoo.create_company("Bad", "bad@example.com", 1).await.unwrap();
    let good = odoo.create_company("Good", "good@example.com", 1).await.unwrap();
    world.settled(Duration::from_secs(20)).await;
    let customers = world.stripe.with(|stripe| stripe.customers());
    assert_eq!(customers.keys().collect::<Vec<_>>(), [&format!("ERP-P-{good}")]);
    let output = world.run(&["status"]);
    let status = text(&output);
    assert!(status.contains("rejected") && status.contains("parameter_invalid"), "{status}");
    assert!(!status.contains("bad@example.com"), "no personal value: {status}");
    // Healed by a later change.
    odoo.rename(bad, "Better").await.unwrap();
    world.settled(Duration::from_secs(20)).await;
    assert_eq!(world.stripe.with(|stripe| stripe.customers().len()), 2);
}
