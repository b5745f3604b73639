//! A mass change is held for a person.

use std::time::Duration;

use crate::support::{World, WorldOptions, eventually};

const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn a_mass_change_is_held_until_it_is_released_and_order_is_kept() {
    let world = World::start(WorldOptions::default()).await;
    world.add_settings("[sources.erp.mass]\nobjects = 10\nendings = 3\nwithin = \"10min\"");
    let odoo = world.odoo().await;
    let mut daemon = world.daemon();
    world.streaming().await;
    let client = odoo.client();
    // One customer that changes all the time is one.
    client
        .batch_execute(
            "insert into res_partner (name, complete_name, is_company) values ('Busy', 'Busy', true)",
        )
        .await
        .unwrap();
    for round in 0..15 {
        client
            .execute(
                "update res_partner set name = $1 where complete_name = 'Busy'",
                &[&format!("Busy {round}")],
            )
            .await
            .unwrap();
    }
    world.settled(PATIENCE).await;
    assert_eq!(world.stripe.with(|stripe| stripe.customers().len()), 1);
    // What came before a restart is not forgotten, and none of a mass goes.
    daemon.kill();
    let mut daemon = world.daemon();
    client
        .batch_execute("insert into res_partner (name, complete_name, is_company) select 'Mass ' || n, 'Mass ' || n, true from generate_series(1, 10) n")
        .await
        .unwrap();
    world.settled(PATIENCE).await;
    let held = "select count(*) from delivery where target = 'stripe' and state = 'held'";
    assert_eq!((world.count(held).await, world.stripe.with(|stripe| stripe.customers().len())), (10, 1));
    // A later change that is no mass itself waits behind one that is held, and nothing else does.
    assert!(daemon.terminate().success());
    world.edit_settings("objects = 10", "objects = 1000");
    let _daemon = world.daemon();
    client.batch_execute("update res_partner set name = 'Later' where name = 'Mass 10'").await.unwrap();
    for others in 2..4 {
        let sentinel =
            "insert into res_partner (name, complete_name, is_company) values ('Other', 'Other', true)";
        client.batch_execute(sentinel).await.unwrap();
        eventually(PATIENCE, "the others at Stripe", async || {
            let there = world.stripe.with(|stripe| stripe.customers().len());
            if there == others { Ok(()) } else { Err(world.log()) }
        })
        .await;
    }
    assert_eq!(world.count(held).await, 10);
    let planned = world.printed(&["plan", "--target", "stripe"]);
    assert!(planned.contains("held: upsert customer: 10 deliveries: mass change"), "{planned}");
    assert!(!planned.contains("zendesk"), "{planned}");
    assert_eq!(world.run(&["plan", "--target", "strip"]).status.code(), Some(64));
    let listed = world.printed(&["release"]);
    assert!(
        listed
            .contains("stripe: upsert 10 x customer: mass change: more than 10 of customer.v1 within 10 min"),
        "{listed}"
    );
    let released = world.printed(&["release", "--all"]);
    assert!(released.contains("0 are held"), "{released}");
    world.settled(PATIENCE).await;
    let customers = world.stripe.with(|stripe| stripe.customers());
    assert_eq!(customers.len(), 13);
    assert_eq!(customers.values().filter(|customer| customer["name"] == "Later").count(), 1);
    let operator = "select count(*) from entry where kind = 'operator' and convert_from(body, 'UTF8') like '%\"action\":\"release\"%'";
    assert_eq!(world.count(operator).await, 1);
    // After a release it is counted anew; of endings, fewer are a mass.
    let more = "insert into res_partner (name, complete_name, is_company) select 'More ' || n, 'More', true from generate_series(1, 4) n";
    client.batch_execute(more).await.unwrap();
    world.settled(PATIENCE).await;
    assert_eq!(world.stripe.with(|stripe| stripe.customers().len()), 17);
    client.batch_execute("update res_partner set active = false where complete_name = 'More'").await.unwrap();
    world.settled(PATIENCE).await;
    assert_eq!(world.count(held).await, 4);
    assert!(world.printed(&["release"]).contains("more than 3 of customer.v1 end within 10 min"));
    world.printed(&["release", "--all", "--discard"]);
    world.settled(PATIENCE).await;
    assert_eq!(world.count(held).await, 0);
    assert_eq!(world.stripe.with(|stripe| stripe.customers().len()), 17);
    assert_eq!(world.stripe.with(|stripe| stripe.doubled()), Vec::<String>::new());
    world.verify();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mass_change_in_a_transaction_too_large_for_a_slice_is_held_from_its_first_object_on() {
    let world = World::start(WorldOptions::default()).await;
    world.add_settings("[sources.erp.mass]\nobjects = 2000");
    let odoo = world.odoo().await;
    let _daemon = world.daemon();
    world.streaming().await;
    let insert = |name: &str, count: u32| {
        format!(
            "insert into res_partner (name, complete_name, is_company) select '{name} ' || n, '{name}', true from generate_series(1, {count}) n"
        )
    };
    odoo.client().batch_execute(&insert("Mass", 2500)).await.unwrap();
    world.settled(PATIENCE).await;
    let held = "select count(*) from delivery where target = 'stripe' and state = 'held'";
    assert_eq!((world.count(held).await, world.stripe.with(|stripe| stripe.customers().len())), (2500, 0));
    let discarded = world.printed(&["release", "--all", "--discard"]);
    assert!(discarded.contains("deliveries are thrown away, 0 are held"), "{discarded}");
    world.verify();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mass_change_in_a_backlog_is_judged_by_the_time_of_its_commits() {
    let world = World::start(WorldOptions::default()).await;
    world.add_settings("[sources.erp.mass]\nendings = 3\nwithin = \"1s\"");
    let odoo = world.odoo().await;
    let mut daemon = world.daemon();
    world.streaming().await;
    let client = odoo.client();
    let insert = "insert into res_partner (name, complete_name, is_company) select 'Old ' || n, 'Old', true from generate_series(1, 9) n";
    client.batch_execute(insert).await.unwrap();
    world.settled(PATIENCE).await;
    assert!(daemon.terminate().success());
    // All of this comes at once when the daemon is back: one ended long before the mass, one long after it.
    let end = |numbers: &str| {
        format!(
            "update res_partner set active = false where complete_name = 'Old' and split_part(name, ' ', 2)::int in ({numbers})"
        )
    };
    client.batch_execute(&end("1")).await.unwrap();
    client.batch_execute("select pg_sleep(1.2)").await.unwrap();
    client.batch_execute(&end("2, 3, 4, 5, 6")).await.unwrap();
    client.batch_execute("select pg_sleep(1.2)").await.unwrap();
    client.batch_execute(&end("7")).await.unwrap();
    let _daemon = world.daemon();
    world.settled(PATIENCE).await;
    let held = "select count(*) from delivery where target = 'stripe' and state = 'held'";
    assert_eq!(world.count(held).await, 5, "the mass, and nothing else");
    assert!(world.printed(&["release"]).contains("more than 3 of customer.v1 end within 1 s"));
    world.verify();
}
