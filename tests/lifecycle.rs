//! Archive, delete, merge, change of kind: what they mean at the targets.

use std::time::Duration;

use crate::support::expected::{assert_same, expected, held};
use crate::support::{World, WorldOptions};

const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn what_was_archived_before_the_first_load_is_not_created_until_it_comes_back() {
    let world = World::start(WorldOptions::default()).await;
    let mut odoo = world.odoo().await;
    let old = odoo.create_company("Long gone", "gone@example.com", 1).await.unwrap();
    odoo.write(old, "active", &false).await.unwrap();
    let kept = odoo.create_company("Kept", "kept@example.com", 1).await.unwrap();
    let _daemon = world.daemon();
    world.streaming().await;
    // A change of an archived partner does not bring it to the targets either.
    odoo.write(old, "city", &"Nowhere").await.unwrap();
    odoo.write(kept, "active", &false).await.unwrap();
    world.settled(PATIENCE).await;
    let erp = world.erp.client("erp").await.unwrap();
    assert_same(&held(&world), &expected(&erp, &[old]).await);
    let customers = world.stripe.with(|stripe| stripe.customers());
    assert_eq!(customers.keys().collect::<Vec<_>>(), [&format!("ERP-P-{kept}")]);
    assert_eq!(customers[&format!("ERP-P-{kept}")]["metadata"]["active"], "false");
    odoo.write(old, "active", &true).await.unwrap();
    world.settled(PATIENCE).await;
    assert_same(&held(&world), &expected(&erp, &[]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_contact_of_a_customer_that_is_not_there_joins_it_when_it_comes() {
    let world = World::start(WorldOptions::default()).await;
    let mut odoo = world.odoo().await;
    let company = odoo.create_company("Dormant", "dormant@example.com", 1).await.unwrap();
    odoo.write(company, "active", &false).await.unwrap();
    let contact = odoo.create_contact(company, "Awake", "awake@example.com").await.unwrap();
    let _daemon = world.daemon();
    world.streaming().await;
    world.settled(PATIENCE).await;
    let user = || world.zendesk.with(|zendesk| zendesk.users()).remove(&format!("ERP-P-{contact}")).unwrap();
    assert!(user()["organization_id"].is_null());
    odoo.write(company, "active", &true).await.unwrap();
    world.settled(PATIENCE).await;
    assert!(user()["organization_id"].is_u64());
    let erp = world.erp.client("erp").await.unwrap();
    assert_same(&held(&world), &expected(&erp, &[]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merge_ends_with_one_customer_and_a_new_user_of_the_erp_is_none() {
    let world = World::start(WorldOptions::default()).await;
    let _daemon = world.daemon();
    world.streaming().await;
    let mut odoo = world.odoo().await;
    let winner = odoo.create_company("Winner", "w@example.com", 1).await.unwrap();
    let loser = odoo.create_company("Loser", "l@example.com", 1).await.unwrap();
    odoo.create_contact(loser, "Child", "child@example.com").await.unwrap();
    odoo.tag(loser, &[1, 2]).await.unwrap();
    world.settled(PATIENCE).await;
    odoo.merge(winner, loser).await.unwrap();
    world.settled(PATIENCE).await;
    let erp = world.erp.client("erp").await.unwrap();
    assert_same(&held(&world), &expected(&erp, &[]).await);
    assert_eq!(world.stripe.with(|stripe| stripe.customers().len()), 1);
    let user = format!("insert into res_users (partner_id, login) values ({winner}, 'w')");
    odoo.client().batch_execute(&user).await.unwrap();
    world.settled(PATIENCE).await;
    assert_eq!(world.stripe.with(|stripe| stripe.customers().len()), 0);
    odoo.client().batch_execute("delete from res_users where login = 'w'").await.unwrap();
    world.settled(PATIENCE).await;
    assert_same(&held(&world), &expected(&erp, &[]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_renamed_a_country_corrected_and_a_table_truncated_reach_every_customer_they_belong_to() {
    let world = World::start(WorldOptions::default()).await;
    let _daemon = world.daemon();
    world.streaming().await;
    let mut odoo = world.odoo().await;
    for number in 0..5 {
        let id =
            odoo.create_company(&format!("C{number}"), &format!("c{number}@example.com"), 4).await.unwrap();
        odoo.tag(id, &[3]).await.unwrap();
    }
    world.settled(PATIENCE).await;
    let before = world.stripe.journal().calls.len();
    let change = "begin; update res_country set code = 'UK' where code = 'GB';
                  update res_partner_category set name = '{\"en_US\": \"Trade\"}' where id = 3; commit";
    odoo.client().batch_execute(change).await.unwrap();
    world.settled(PATIENCE).await;
    let erp = world.erp.client("erp").await.unwrap();
    assert_same(&held(&world), &expected(&erp, &[]).await);
    assert_eq!(world.stripe.journal().calls.len() - before, 5, "one call per customer and transaction");
    odoo.client().batch_execute("truncate res_partner_res_partner_category_rel").await.unwrap();
    world.settled(PATIENCE).await;
    assert_same(&held(&world), &expected(&erp, &[]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_larger_than_a_slice_arrives_whole_and_survives_a_kill_in_its_middle() {
    let world = World::start(WorldOptions::default()).await;
    let mut daemon = world.daemon();
    world.streaming().await;
    let odoo = world.odoo().await;
    let bulk = "begin;
      insert into res_partner (name, is_company, email) select 'Bulk ' || n, true, 'bulk' || n || '@example.com' from generate_series(1, 400) n;
      update res_partner set commercial_partner_id = id, complete_name = name, email_normalized = email where name like 'Bulk %';
      insert into mail_message (body) select 'noise' from generate_series(1, 30000);
      insert into res_country_state (country_id, code, name) select 1, 'S' || n, 'State ' || n from generate_series(1, 30000) n;
      update res_partner set city = 'Last' where name like 'Bulk %'; commit";
    odoo.client().batch_execute(bulk).await.unwrap();
    let ledger = world.ledger_client().await;
    crate::support::eventually(PATIENCE, "a slice", async || {
        let row = ledger.query_one("select count(*) from entry where kind = 'event'", &[]).await.unwrap();
        if row.get::<_, i64>(0) > 0 { Ok(()) } else { Err("none".into()) }
    })
    .await;
    daemon.kill();
    let _daemon = world.daemon();
    world.settled(Duration::from_secs(60)).await;
    let erp = world.erp.client("erp").await.unwrap();
    assert_same(&held(&world), &expected(&erp, &[]).await);
    assert_eq!(world.stripe.with(|stripe| stripe.doubled()), Vec::<String>::new());
    let states: i64 = ledger
        .query_one("select count(*) from image where relation = 'res_country_state'", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(states, 30_003);
}

#[tokio::test(flavor = "multi_thread")]
async fn unchanged_toast_is_kept_and_never_becomes_null() {
    let world = World::start(WorldOptions::default()).await;
    let _daemon = world.daemon();
    world.streaming().await;
    let mut odoo = world.odoo().await;
    let company = odoo.create_company("Long address", "long@example.com", 1).await.unwrap();
    // Stored out of line: it does not compress below the page's limit.
    let long = "update res_partner set street2 = (select string_agg(md5(n::text), '') from generate_series(1, 500) n)
                where name = 'Long address'";
    odoo.client().batch_execute(long).await.unwrap();
    world.settled(PATIENCE).await;
    odoo.write(company, "city", &"Elsewhere").await.unwrap();
    world.settled(PATIENCE).await;
    let erp = world.erp.client("erp").await.unwrap();
    assert_same(&held(&world), &expected(&erp, &[]).await);
    let customer =
        world.stripe.with(|stripe| stripe.customers()).remove(&format!("ERP-P-{company}")).unwrap();
    assert_eq!(customer["address"]["line2"].as_str().unwrap().len(), 16_000);
    assert_eq!(customer["address"]["city"], "Elsewhere");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_key_takes_unchanged_toast_along() {
    let world = World::start(WorldOptions::default()).await;
    let _daemon = world.daemon();
    world.streaming().await;
    let mut odoo = world.odoo().await;
    let company = odoo.create_company("Renumbered", "renumbered@example.com", 1).await.unwrap();
    let long = "update res_partner set street2 = (select string_agg(md5(n::text), '') from generate_series(1, 500) n)
                where name = 'Renumbered'";
    odoo.client().batch_execute(long).await.unwrap();
    world.settled(PATIENCE).await;
    let renumber =
        format!("update res_partner set id = 5000, commercial_partner_id = null where id = {company}");
    odoo.client().batch_execute(&renumber).await.unwrap();
    world.settled(PATIENCE).await;
    let erp = world.erp.client("erp").await.unwrap();
    assert_same(&held(&world), &expected(&erp, &[]).await);
    assert!(world.stripe.with(|stripe| stripe.customers()).contains_key("ERP-P-5000"));
}

#[tokio::test(flavor = "multi_thread")]
async fn contacts_of_a_customer_that_the_vendor_refuses_arrive_without_it_and_join_it_later() {
    let world = World::start(WorldOptions::default()).await;
    let _daemon = world.daemon();
    world.streaming().await;
    let mut odoo = world.odoo().await;
    // Zendesk refuses an organization without a name.
    let company = odoo.create_company(" ", "blank@example.com", 1).await.unwrap();
    let contact = odoo.create_contact(company, "Waiting", "waiting@example.com").await.unwrap();
    world.settled(PATIENCE).await;
    let user = || world.zendesk.with(|zendesk| zendesk.users()).remove(&format!("ERP-P-{contact}")).unwrap();
    assert!(user()["organization_id"].is_null());
    odoo.rename(company, "Named at last").await.unwrap();
    world.settled(PATIENCE).await;
    assert!(user()["organization_id"].is_u64());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_field_with_a_name_or_nonsense_does_not_cost_the_customer() {
    let world = World::start(WorldOptions::default()).await;
    let _daemon = world.daemon();
    world.streaming().await;
    let mut odoo = world.odoo().await;
    let cases = [
        ("plain@example.com", None, Some("plain@example.com")),
        ("Ann <ann@example.com>", Some("ann@example.com"), Some("ann@example.com")),
        ("a@example.com, b@example.com", Some("a@example.com"), Some("a@example.com")),
        ("see notes", None, None),
        ("root@localhost", Some("root@localhost"), None),
    ];
    let mut ids = Vec::new();
    for (index, (email, normalized, _)) in cases.iter().enumerate() {
        let id = odoo.create_company(&format!("Mail {index}"), email, 1).await.unwrap();
        let sql = "update res_partner set email_normalized = $2 where id = $1";
        odoo.client().execute(sql, &[&id, normalized]).await.unwrap();
        ids.push(id);
    }
    world.settled(PATIENCE).await;
    let customers = world.stripe.with(|stripe| stripe.customers());
    for (id, (email, _, expected)) in ids.iter().zip(cases) {
        assert_eq!(customers[&format!("ERP-P-{id}")]["email"].as_str(), expected, "{email}");
    }
}
