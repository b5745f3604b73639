//! What we wrote comes back and ends there; what somebody else changed in the same row does not.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tailwater::demo::vendor::faults::Faults;
use tailwater::event::words::Word;

use crate::support::eventually;
use crate::support::triangle::{People, Triangle};
use crate::support::workload::seed;

const PATIENCE: Duration = Duration::from_secs(60);

/// The ERP owns its customers, but for their e-mail, which is the billing system's, and their contacts' telephone, which is the desk's.
const OWNERS: &str = "{ customer: { \"*\": odoo, email: stripe }, contact: { \"*\": odoo, phone: zendesk } }";

#[tokio::test(flavor = "multi_thread")]
async fn each_field_follows_its_owner_everywhere_and_no_call_is_an_echo() {
    let mut systems = Triangle::start(OWNERS, "[\"customers\"]").await;
    let mut daemon = systems.daemon();
    systems.world.streaming().await;
    let company = systems.create_company("Alpine", "erp@example.test").await;
    let contact = systems.create_contact(company, "Ann", "ann@example.test").await;
    systems.at_rest(PATIENCE).await;
    assert_eq!(systems.at_stripe(company)["name"], "Alpine");
    assert_eq!(systems.organization(company)["name"], "Alpine");
    // Its owner speaks: everybody hears of it.
    let customer = systems.at_stripe(company)["id"].as_str().unwrap().to_owned();
    let world = &systems.world;
    world.stripe.with(|stripe| stripe.edit(&customer, &json!({"email": "billing@example.test"})));
    world
        .zendesk
        .with(|zendesk| zendesk.edit_user(&format!("ERP-P-{contact}"), &json!({"phone": "+49 30 1"})));
    systems.write(company, "name", "Alps").await;
    systems.at_rest(PATIENCE).await;
    let log = || systems.world.log();
    assert_eq!(systems.partner(company, "email").await.as_deref(), Some("billing@example.test"), "{}", log());
    assert_eq!(systems.partner(contact, "phone").await.as_deref(), Some("+49 30 1"), "{}", log());
    assert_eq!(systems.at_stripe(company)["name"], "Alps");
    assert_eq!(systems.organization(company)["name"], "Alps");
    assert_eq!(systems.echoes([&[]; 3]), Vec::<String>::new(), "{}", log());
    assert_eq!(written(&systems, "drift").await, Vec::<Value>::new(), "what comes back is nobody's change");
    let explained = systems.world.printed(&["explain", "res_partner", &company.to_string()]);
    assert!(explained.contains("-> stripe ") && !explained.contains("-> odoo "), "{explained}");
    // Somebody else speaks: it is put right where it was said.
    let world = &systems.world;
    world.stripe.with(|stripe| stripe.edit(&customer, &json!({"name": "Wrong", "phone": "+1 555"})));
    let organization = format!("ERP-P-{company}");
    world.zendesk.with(|zendesk| zendesk.edit_organization(&organization, &json!({"name": "Wrong, too"})));
    systems.at_rest(PATIENCE).await;
    // And what is the ERP's of the same change is told.
    systems
        .erp
        .execute(
            "update res_partner set email = 'wrong@example.test', city = 'Ulm' where id = $1",
            &[&company],
        )
        .await
        .unwrap();
    systems.at_rest(PATIENCE).await;
    let log = || systems.world.log();
    assert_eq!(systems.at_stripe(company)["name"], "Alps", "{}", log());
    assert_eq!(systems.organization(company)["name"], "Alps");
    assert_eq!(systems.partner(company, "email").await.as_deref(), Some("billing@example.test"), "{}", log());
    assert_eq!(systems.at_stripe(company)["address"]["city"], "Ulm");
    // Both values stand in the ledger.
    let drifts = written(&systems, "drift").await;
    let values = |source: &str, field: &str| {
        let of_source = drifts.iter().filter(|drift| drift["source"] == source);
        of_source.map(|drift| drift["values"][field].clone()).find(|values| !values.is_null())
    };
    assert_eq!(values("stripe", "name"), Some(json!({"stripe": "Wrong", "erp": "Alps"})), "{drifts:?}");
    assert_eq!(values("zendesk", "name"), Some(json!({"zendesk": "Wrong, too", "erp": "Alps"})));
    let emails = json!({"erp": "wrong@example.test", "stripe": "billing@example.test"});
    assert_eq!(values("erp", "email"), Some(emails));
    assert_eq!(systems.echoes([&[]; 3]), Vec::<String>::new(), "{}", log());
    assert!(daemon.terminate().success());
    systems.world.verify();
}

/// Entries of a kind.
async fn written(systems: &Triangle, kind: &str) -> Vec<Value> {
    let sql = "select convert_from(body, 'UTF8')::jsonb from entry where kind = $1 order by seq";
    let rows = systems.world.ledger_client().await.query(sql, &[&kind]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// The ERP's name counts; for everything else the newest word does, but for an e-mail that two have changed.
const NEWEST: &str =
    "{ customer: { name: odoo }, contact: { \"*\": odoo } }\nconflicts: { customer: { email: park } }";

#[tokio::test(flavor = "multi_thread")]
async fn of_two_changes_that_did_not_know_of_each_other_the_newest_counts_or_neither_and_both_are_recorded() {
    let mut systems = Triangle::start(NEWEST, "[\"customers\"]").await;
    let mut daemon = systems.daemon();
    systems.world.streaming().await;
    let company = systems.create_company("Alpine", "first@example.test").await;
    systems.at_rest(PATIENCE).await;
    let customer = systems.at_stripe(company)["id"].as_str().unwrap().to_owned();
    assert!(daemon.terminate().success());
    systems.write(company, "phone", "+49 1").await;
    systems.write(company, "email", "erp@example.test").await;
    systems.world.stripe.with(|stripe| {
        // Stripe's clock has whole seconds only.
        stripe.books.events.skew_s = 2;
        stripe.edit(&customer, &json!({"phone": "+49 2", "email": "stripe@example.test"}));
        stripe.books.events.skew_s = 0;
    });
    let mut daemon = systems.daemon();
    systems.world.streaming().await;
    systems.at_rest(PATIENCE).await;
    let log = || systems.world.log();
    assert_eq!(systems.partner(company, "phone").await.as_deref(), Some("+49 2"), "{}", log());
    let conflicts = written(&systems, "conflict").await;
    let of = |field: &str| conflicts.iter().find(|conflict| conflict["field"] == field).cloned().unwrap();
    let (phone, email) = (of("phone"), of("email"));
    assert_eq!(phone["values"], json!({"erp": "+49 1", "stripe": "+49 2"}));
    assert_eq!((&phone["rule"], &phone["kept"]), (&"newest".into(), &"stripe".into()));
    assert_eq!(email["values"], json!({"erp": "erp@example.test", "stripe": "stripe@example.test"}));
    assert_eq!((&email["rule"], &email["kept"]), (&"park".into(), &Value::Null));
    let of_no_event =
        "select count(*) from delivery d join entry e on e.seq = d.event_seq where e.kind <> 'event'";
    assert_eq!(systems.world.count(of_no_event).await, 0, "a conflict is no event");
    assert_eq!(systems.world.count("select count(*) from delivery where state = 'parked'").await, 0);
    // What was written before the second was heard of stays; whoever speaks again settles it.
    systems.write(company, "email", "settled@example.test").await;
    systems.at_rest(PATIENCE).await;
    assert_eq!(systems.at_stripe(company)["email"], "settled@example.test", "{}", systems.world.log());
    assert_eq!(systems.echoes([&[]; 3]), Vec::<String>::new(), "{}", systems.world.log());
    assert!(daemon.terminate().success());
    systems.world.verify();
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_somebody_holds_at_the_erp_are_written_when_they_are_free_and_nobody_else_waits_for_them() {
    let mut systems = Triangle::start(OWNERS, FLOWS).await;
    let mut daemon = systems.daemon();
    systems.world.streaming().await;
    let mut companies = Vec::new();
    for number in 0..6 {
        companies.push(systems.create_company(&format!("C{number}"), "first@example.test").await);
    }
    systems.at_rest(PATIENCE).await;
    let mut person = systems.world.erp.client("erp").await.unwrap();
    let held = person.transaction().await.unwrap();
    held.execute("update res_partner set city = 'Ulm' where id = any ($1)", &[&companies]).await.unwrap();
    for company in &companies {
        let customer = systems.at_stripe(*company)["id"].as_str().unwrap().to_owned();
        let members = json!({"email": format!("billing-{company}@example.test")});
        systems.world.stripe.with(|stripe| stripe.edit(&customer, &members));
    }
    eventually(PATIENCE, "writes under way", async || {
        let sql = "select count(*) from delivery where target = 'odoo' and state = 'sending' and last_attempt_at is not null";
        let under_way = systems.world.count(sql).await;
        if under_way >= 3 { Ok(()) } else { Err(systems.world.log()) }
    })
    .await;
    systems.called_again(8).await;
    held.commit().await.unwrap();
    systems.at_rest(PATIENCE).await;
    for company in &companies {
        let email = Some(format!("billing-{company}@example.test"));
        assert_eq!(systems.partner(*company, "email").await, email, "{}", systems.world.log());
        assert_eq!(systems.at_stripe(*company)["address"]["city"], "Ulm");
    }
    assert!(daemon.terminate().success());
    systems.world.verify();
}

#[tokio::test(flavor = "multi_thread")]
async fn mixed_changes_on_all_sides_with_faults_and_kills_agree_with_their_owners_in_the_end() {
    let changes = changes(60);
    let systems = Triangle::start(OWNERS, FLOWS).await;
    campaign(systems, changes).await;
}

#[test]
fn what_a_load_shows_anew_may_always_have_been_so_and_what_it_shows_otherwise_is_newer_than_before() {
    let first = Word::now(&json!({"phone": "1"}), &[], (1_000, true), None);
    assert_eq!(first.changed["phone"], 0);
    let same = Word::now(&json!({"phone": "1"}), &[], (2_000, true), Some(&first));
    assert_eq!(same.changed["phone"], 0);
    let other = Word::now(&json!({"phone": "2"}), &[], (2_000, true), Some(&first));
    assert_eq!(other.changed["phone"], 2_000);
    let streamed = Word::now(&json!({"phone": "2"}), &[], (3_000, false), None);
    assert_eq!(streamed.changed["phone"], 3_000);
}

/// The same beside a running Odoo: `TAILWATER_ODOO`, `TAILWATER_ODOO_API`, `TAILWATER_ODOO_KEYS`.
#[tokio::test(flavor = "multi_thread")]
async fn mixed_changes_with_a_real_odoo_agree_with_their_owners_in_the_end() {
    let Some(systems) = Triangle::real(OWNERS, FLOWS, false).await else { return };
    campaign(systems, changes(500)).await;
}

const FLOWS: &str = "[\"customers\", \"payments\", \"standing\"]";

fn changes(otherwise: usize) -> usize {
    std::env::var("TAILWATER_CHANGES").ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// What was paid, or failed to be.
struct Charge {
    id: String,
    /// The invoice it is for; it failed when there is none.
    invoice: Option<i64>,
}

async fn campaign(mut systems: Triangle, changes: usize) {
    let mut random = StdRng::seed_from_u64(seed());
    let mut daemon = systems.daemon();
    systems.world.streaming().await;
    let mut customers = Vec::new();
    let tag = random.random_range(0..1_000_000);
    systems.world.stripe.with(|stripe| stripe.books.tag = format!("{tag}a"));
    for number in 0..6 {
        let company = systems.create_company(&format!("C{tag}-{number}"), "first@example.test").await;
        let email = format!("c{tag}-{number}@example.test");
        customers.push((company, systems.create_contact(company, "Somebody", &email).await));
    }
    systems.at_rest(PATIENCE).await;
    let faults = Faults { swallow: 0.04, reset: 0.02, error: 0.02, throttle: 0.01, ..Faults::default() };
    systems.world.stripe.set_faults(faults.clone());
    systems.world.zendesk.set_faults(faults.clone());
    if let People::Simulated(_, api) = &systems.people {
        api.set_faults(faults);
    }
    let (mut charges, mut kills) = (Vec::new(), [Vec::new(), Vec::new(), Vec::new()]);
    for change in 0..changes {
        let (company, contact) = customers[random.random_range(0..customers.len())];
        one_change(&mut systems, (company, contact), (change, &mut random), &mut charges).await;
        systems.called_again(random.random_range(0..2)).await;
        if change % 20 == 19 {
            daemon.kill();
            for (kills, now) in kills.iter_mut().zip(clocks(&systems)) {
                kills.push(now);
            }
            daemon = systems.daemon();
        }
    }
    systems.world.stripe.set_faults(Faults::default());
    systems.world.zendesk.set_faults(Faults::default());
    if let People::Simulated(_, api) = &systems.people {
        api.set_faults(Faults::default());
    }
    systems.world.streaming().await;
    systems.at_rest(Duration::from_secs(180)).await;
    for (company, contact) in &customers {
        agree(&systems, *company, *contact).await;
    }
    for Charge { id, invoice } in &charges {
        match invoice {
            Some(invoice) => {
                assert_eq!(systems.payments(*invoice, &format!("tailwater:{id}")).await, 1, "{id}")
            }
            None => assert_eq!(
                systems.notes(&format!("<tailwater.{id}:rejected@tailwater.invalid>")).await,
                1,
                "{id}"
            ),
        }
    }
    assert_eq!(systems.world.stripe.with(|stripe| stripe.doubled()), Vec::<String>::new());
    let mut echoes = systems.echoes([&kills[0], &kills[1], &kills[2]]);
    echoes.extend(systems.nil_writes().await);
    println!(
        "# {changes} changes, {} kills, {} payments and notes; calls {} and {}, conflicts {}",
        kills[0].len(),
        charges.len(),
        systems.world.stripe.calls(),
        systems.world.zendesk.calls(),
        systems.world.count("select count(*) from entry where kind = 'conflict'").await
    );
    assert_eq!(echoes, Vec::<String>::new(), "{}", systems.world.log());
    assert!(daemon.terminate().success());
    systems.world.verify();
}

/// The clocks of Stripe, Zendesk and the ERP's API.
fn clocks(systems: &Triangle) -> [f64; 3] {
    let odoo = if let People::Simulated(_, api) = &systems.people { api.now_s() } else { 0.0 };
    [systems.world.stripe.now_s(), systems.world.zendesk.now_s(), odoo]
}

/// Somebody changes something somewhere, whether or not it is theirs to change.
async fn one_change(
    systems: &mut Triangle,
    (company, contact): (i32, i32),
    (number, random): (usize, &mut StdRng),
    charges: &mut Vec<Charge>,
) {
    let customer = systems.at_stripe(company)["id"].as_str().unwrap_or_default().to_owned();
    match random.random_range(0..9) {
        0 => systems.write(company, "name", &format!("Name {company} {number}")).await,
        1 => systems.write(company, "city", &format!("City {number}")).await,
        2 => systems.write(contact, "name", &format!("Person {number}")).await,
        3 => systems.write(company, "email", &format!("not-theirs-{number}@example.test")).await,
        4 => {
            let members = json!({"email": format!("billing-{number}@example.test")});
            systems.world.stripe.with(|stripe| stripe.edit(&customer, &members));
        }
        5 => {
            let members = json!({"name": format!("Not Stripe's {number}")});
            systems.world.stripe.with(|stripe| stripe.edit(&customer, &members));
        }
        6 => {
            let members = json!({"phone": format!("+49 30 {number}")});
            systems.world.zendesk.with(|zendesk| zendesk.edit_user(&format!("ERP-P-{contact}"), &members));
        }
        7 => {
            let invoice = systems.invoice(company, 12_100).await;
            let document = format!("ERP-I-{invoice}");
            let charge = systems
                .world
                .stripe
                .with(|stripe| stripe.books.charge(&customer, (12_100, "usd"), true, &document));
            charges.push(Charge { id: format!("STRIPE-Y-{charge}"), invoice: Some(invoice) });
        }
        _ => {
            let charge =
                systems.world.stripe.with(|stripe| stripe.books.charge(&customer, (500, "usd"), false, ""));
            charges.push(Charge { id: format!("STRIPE-Y-{charge}"), invoice: None });
        }
    }
}

/// What each system has of a customer is what its owner says.
async fn agree(systems: &Triangle, company: i32, contact: i32) {
    let log = || systems.world.log();
    let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
    let (stripe, organization, user) =
        (systems.at_stripe(company), systems.organization(company), systems.user(contact));
    let name = systems.partner(company, "name").await;
    assert_eq!(text(&stripe["name"]), name, "name of {company} at Stripe; {}", log());
    let shown = text(&organization["name"]);
    let at_desk = shown == name || shown == name.as_ref().map(|name| format!("{name} (ERP-P-{company})"));
    assert!(at_desk, "name of {company} at Zendesk: {shown:?}, {name:?}; {}", log());
    assert_eq!(text(&stripe["address"]["city"]), systems.partner(company, "city").await, "city of {company}");
    assert_eq!(
        systems.partner(company, "email").await,
        text(&stripe["email"]),
        "e-mail of {company}; {}",
        log()
    );
    assert_eq!(text(&user["name"]), systems.partner(contact, "name").await, "name of {contact}; {}", log());
    assert_eq!(
        systems.partner(contact, "phone").await,
        text(&user["phone"]),
        "phone of {contact}; {}",
        log()
    );
}
