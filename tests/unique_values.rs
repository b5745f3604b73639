//! The written rule for what a vendor wants unique: two customers of one name both arrive, two people are never merged.

use std::time::Duration;

use serde_json::Value;

use crate::support::{World, WorldOptions};

const PATIENCE: Duration = Duration::from_secs(20);

fn organization(world: &World, id: i32) -> Value {
    world.zendesk.with(|zendesk| zendesk.organizations()).remove(&format!("ERP-P-{id}")).unwrap_or_default()
}

fn user(world: &World, id: i32) -> Value {
    world.zendesk.with(|zendesk| zendesk.users()).remove(&format!("ERP-P-{id}")).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_customers_of_one_name_both_arrive_and_the_name_passes_on_when_it_is_free() {
    let world = World::start(WorldOptions::default()).await;
    let _daemon = world.daemon();
    world.streaming().await;
    let mut odoo = world.odoo().await;
    let first = odoo.create_company("Acme", "a@example.com", 1).await.unwrap();
    let second = odoo.create_company("ACME", "b@example.com", 1).await.unwrap();
    world.settled(PATIENCE).await;
    assert_eq!(organization(&world, first)["name"], "Acme");
    assert_eq!(organization(&world, second)["name"], format!("ACME (ERP-P-{second})"));
    assert_eq!(world.stripe.with(|stripe| stripe.customers().len()), 2);
    odoo.rename(first, "Acme Holding").await.unwrap();
    world.settled(PATIENCE).await;
    assert_eq!(organization(&world, first)["name"], "Acme Holding");
    assert_eq!(organization(&world, second)["name"], "ACME");
    let refused = world.zendesk.journal().by_status().get(&422).copied().unwrap_or_default();
    assert_eq!(refused, 0, "the collision was foreseen, not found out by a refusal");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_somebody_else_made_at_the_vendor_is_avoided() {
    let world = World::start(WorldOptions::default()).await;
    world.zendesk.with(|zendesk| zendesk.add_foreign_organization("Taken"));
    let _daemon = world.daemon();
    world.streaming().await;
    let mut odoo = world.odoo().await;
    let company = odoo.create_company("Taken", "t@example.com", 1).await.unwrap();
    world.settled(PATIENCE).await;
    assert_eq!(organization(&world, company)["name"], format!("Taken (ERP-P-{company})"));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_people_with_one_address_stay_two_and_the_address_passes_on() {
    let world = World::start(WorldOptions::default()).await;
    let _daemon = world.daemon();
    world.streaming().await;
    let mut odoo = world.odoo().await;
    let company = odoo.create_company("Shared Mailbox", "office@example.com", 1).await.unwrap();
    let first = odoo.create_contact(company, "First", "info@example.com").await.unwrap();
    let second = odoo.create_contact(company, "Second", "Info@example.com").await.unwrap();
    world.settled(PATIENCE).await;
    assert_eq!(user(&world, first)["email"], "info@example.com");
    assert_eq!(
        (&user(&world, second)["email"], &user(&world, second)["name"]),
        (&Value::Null, &"Second".into())
    );
    odoo.unlink(first).await.unwrap();
    world.settled(PATIENCE).await;
    assert_eq!(user(&world, first), Value::Null);
    assert_eq!(user(&world, second)["email"], "info@example.com");
    assert_eq!(world.zendesk.with(|zendesk| zendesk.merged.clone()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_address_becomes_the_primary_one_and_the_old_one_is_free_for_another_person() {
    let world = World::start(WorldOptions::default()).await;
    let _daemon = world.daemon();
    world.streaming().await;
    let mut odoo = world.odoo().await;
    let company = odoo.create_company("Movers", "movers@example.com", 1).await.unwrap();
    let first = odoo.create_contact(company, "First", "old@example.com").await.unwrap();
    world.settled(PATIENCE).await;
    odoo.write(first, "email", &"new@example.com").await.unwrap();
    world.settled(PATIENCE).await;
    assert_eq!(user(&world, first)["email"], "new@example.com");
    let second = odoo.create_contact(company, "Second", "old@example.com").await.unwrap();
    world.settled(PATIENCE).await;
    assert_eq!(user(&world, second)["email"], "old@example.com");
    assert_eq!(user(&world, first)["email"], "new@example.com");
    assert_eq!(world.zendesk.with(|zendesk| zendesk.mails), 0, "no verification mail went out");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_swapped_in_one_transaction_end_up_swapped() {
    let world = World::start(WorldOptions::default()).await;
    let _daemon = world.daemon();
    world.streaming().await;
    let mut odoo = world.odoo().await;
    let first = odoo.create_company("North", "n@example.com", 1).await.unwrap();
    let second = odoo.create_company("South", "s@example.com", 1).await.unwrap();
    world.settled(PATIENCE).await;
    let swap = format!(
        "update res_partner set name = case id when {first} then 'South' else 'North' end where id in ({first}, {second})"
    );
    odoo.client().batch_execute(&swap).await.unwrap();
    world.settled(PATIENCE).await;
    assert_eq!(organization(&world, first)["name"], "South");
    assert_eq!(organization(&world, second)["name"], "North");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_cleared_is_free_for_another_person() {
    let world = World::start(WorldOptions::default()).await;
    let _daemon = world.daemon();
    world.streaming().await;
    let mut odoo = world.odoo().await;
    let company = odoo.create_company("Cleared", "cleared@example.com", 1).await.unwrap();
    let first = odoo.create_contact(company, "First", "desk@example.com").await.unwrap();
    world.settled(PATIENCE).await;
    let clear = format!("update res_partner set email = null, email_normalized = null where id = {first}");
    odoo.client().batch_execute(&clear).await.unwrap();
    world.settled(PATIENCE).await;
    let second = odoo.create_contact(company, "Second", "desk@example.com").await.unwrap();
    world.settled(PATIENCE).await;
    assert_eq!(user(&world, first)["email"], Value::Null);
    assert_eq!(user(&world, second)["email"], "desk@example.com");
    assert_eq!(world.zendesk.with(|zendesk| zendesk.merged.clone()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn names_swapped_while_the_target_is_down_do_not_wait_for_each_other() {
    let world = World::start(WorldOptions::default()).await;
    let _daemon = world.daemon();
    world.streaming().await;
    let mut odoo = world.odoo().await;
    let first = odoo.create_company("East", "e@example.com", 1).await.unwrap();
    let second = odoo.create_company("West", "w@example.com", 1).await.unwrap();
    world.settled(PATIENCE).await;
    world.zendesk.set_faults(tailwater::demo::vendor::faults::Faults { down: true, ..Default::default() });
    odoo.rename(first, "West").await.unwrap();
    odoo.rename(second, "East").await.unwrap();
    odoo.tag(first, &[1]).await.unwrap();
    odoo.tag(second, &[2]).await.unwrap();
    world.zendesk.set_faults(Default::default());
    world.settled(PATIENCE).await;
    assert_eq!(
        (&organization(&world, first)["name"], &organization(&world, second)["name"]),
        (&"West".into(), &"East".into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_of_absurd_length_stops_nobody() {
    let world = World::start(WorldOptions::default()).await;
    let _daemon = world.daemon();
    world.streaming().await;
    let mut odoo = world.odoo().await;
    let long: String = (0..400).map(|n: u32| format!("{:x}", n.wrapping_mul(2_654_435_761))).collect();
    let first = odoo.create_company(&long, "long@example.com", 1).await.unwrap();
    let second = odoo.create_company("Short", "short@example.com", 1).await.unwrap();
    world.settled(PATIENCE).await;
    assert_eq!(organization(&world, first)["name"], long);
    assert_eq!(organization(&world, second)["name"], "Short");
}
