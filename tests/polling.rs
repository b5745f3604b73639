//! What systems say when they are asked: streams that are polled, lists that are read, and what becomes of them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use tailwater::demo::vendor::server::{Limit, VendorServer};
use tailwater::demo::vendor::stripe_books::Price;
use tokio::time::Instant;

use crate::support::lists::{Kind, Lists};
use crate::support::triangle::Triangle;
use crate::support::world::STRIPE_KEY;
use crate::support::{World, WorldOptions, eventually};

/// Settings of a polled Stripe.
pub const STRIPE_POLLED: &str = "kind = \"poll\"\ntarget = \"stripe\"\nevery = \"1s\"\nshare = 100\n";

const SILVER: Price<'_> =
    Price { lookup_key: "silver", amount: 4_900, plan: "silver", first_response_minutes: 240 };
const GOLD: Price<'_> = Price { lookup_key: "gold", amount: 9_900, plan: "gold", first_response_minutes: 30 };

/// Events of a type from a source, in the order of the ledger.
pub async fn events(world: &World, source: &str, event_type: &str) -> Vec<Value> {
    let ledger = world.ledger_client().await;
    let rows = ledger.query("select body from entry where kind = 'event' order by seq", &[]).await.unwrap();
    let bodies = rows.iter().map(|row| serde_json::from_slice::<Value>(row.get(0)).unwrap());
    bodies.filter(|body| body["source"]["name"] == source && body["type"] == event_type).collect()
}

/// Waits until so many events of a type have come from a source.
pub async fn await_events(world: &World, source: &str, event_type: &str, count: usize) -> Vec<Value> {
    eventually(Duration::from_secs(20), event_type, async || {
        let found = events(world, source, event_type).await;
        if found.len() >= count {
            Ok(())
        } else {
            Err(format!("{} of {count}; {}", found.len(), world.log()))
        }
    })
    .await;
    events(world, source, event_type).await
}

/// The last event of each of so many objects, once it is known of all of them whose they are: what they are joined to may come later.
async fn await_owned(world: &World, source: &str, event_type: &str, count: usize) -> Vec<Value> {
    let latest = async || {
        let found = events(world, source, event_type).await;
        let by_id = found.into_iter().map(|event| (event["id"].as_str().unwrap().to_owned(), event));
        by_id.collect::<BTreeMap<_, _>>().into_values().collect::<Vec<_>>()
    };
    eventually(Duration::from_secs(20), event_type, async || {
        let found = latest().await;
        let owned = found.iter().filter(|event| event["data"]["customer"].is_string()).count();
        if owned == count { Ok(()) } else { Err(format!("{owned} of {count}; {}", world.log())) }
    })
    .await;
    latest().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_at_stripe_becomes_canonical_events() {
    let world = World::start(WorldOptions::default()).await;
    world.add_source("stripe", STRIPE_POLLED);
    // What was there before is listed.
    let (customer, early) = world.stripe.with(|stripe| {
        stripe.books.events.skew_s = -3_600;
        let customer = stripe.made_by_hand("early@example.test");
        let early = stripe.books.charge(&customer, (12_100, "eur"), true, "ERP-I-4");
        stripe.books.events.skew_s = 0;
        (customer, early)
    });
    let mut daemon = world.daemon();
    world.streaming().await;
    let paid = await_events(&world, "stripe", "payment.v1", 1).await;
    assert_eq!(paid[0]["id"], format!("STRIPE-Y-{early}"));
    assert_eq!(paid[0]["data"]["status"], "paid");
    assert_eq!(paid[0]["data"]["amount"], "121.00");
    assert_eq!(paid[0]["data"]["settles"][0]["document"], "ERP-I-4");
    assert_eq!(paid[0]["data"]["customer"], format!("STRIPE-P-{customer}"));
    assert_eq!(paid[0]["source"]["snapshot"], true);
    // What happens from now on is told by events.
    let (subscription, failed) = world.stripe.with(|stripe| {
        let books = &mut stripe.books;
        let subscription = books.subscribe(&customer, SILVER, "eur");
        let failed = books.charge(&customer, (4_900, "eur"), false, "");
        books.refund(&early, 100);
        books.dispute(&early, 12_000);
        books.invoice(&customer, (4_900, "eur"), "ERP-I-9");
        (subscription, failed)
    });
    let payments = await_events(&world, "stripe", "payment.v1", 3).await;
    let failed = payments.iter().find(|event| event["id"] == format!("STRIPE-Y-{failed}")).unwrap();
    assert_eq!(
        (&failed["data"]["status"], &failed["data"]["failure"]),
        (&"rejected".into(), &"card_declined".into())
    );
    assert_eq!(failed["source"]["snapshot"], false);
    assert!(
        payments
            .iter()
            .any(|event| event["data"]["direction"] == "refunded" && event["data"]["amount"] == "1.00")
    );
    assert_eq!(await_events(&world, "stripe", "dispute.v1", 1).await[0]["data"]["status"], "needs_response");
    assert_eq!(
        await_events(&world, "stripe", "invoice_status.v1", 1).await[0]["data"]["document"],
        "ERP-I-9"
    );
    assert_eq!(await_events(&world, "stripe", "entitlement.v1", 1).await[0]["data"]["plan"], "silver");
    // Two events of one second: the object is read as it is now.
    world.stripe.with(|stripe| {
        stripe.books.change(
            "subscriptions",
            &subscription,
            "customer.subscription.updated",
            json!({"status": "past_due"}),
        );
        stripe.books.upgrade(&subscription, GOLD);
    });
    eventually(Duration::from_secs(10), "the upgrade", async || {
        let told = events(&world, "stripe", "subscription.v1").await;
        let last = &told.last().unwrap()["data"];
        let now = (last["status"].clone(), last["lines"][0]["product_code"].clone());
        if now == ("past_due".into(), "gold".into()) {
            Ok(())
        } else {
            Err(format!("{now:?}; {}", world.log()))
        }
    })
    .await;
    world.settled(Duration::from_secs(20)).await;
    assert!(daemon.terminate().success());
    world.verify();
    // A restart tells nothing again.
    let before = world.count("select count(*) from entry where kind = 'event'").await;
    let calls = world.stripe.calls();
    let mut daemon = world.daemon();
    eventually(Duration::from_secs(20), "polls", async || {
        if world.stripe.calls() > calls + 2 { Ok(()) } else { Err("not asked".into()) }
    })
    .await;
    assert_eq!(world.count("select count(*) from entry where kind = 'event'").await, before);
    assert!(daemon.terminate().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_key_may_not_read_holds_up_neither_other_lists_nor_what_is_written() {
    let world = World::start(WorldOptions::default()).await;
    world.add_source("stripe", STRIPE_POLLED);
    let charge = world.stripe.with(|stripe| {
        stripe.books.events.skew_s = -3_600;
        stripe.books.forbidden = Some("refunds");
        let customer = stripe.made_by_hand("early@example.test");
        let charge = stripe.books.charge(&customer, (12_100, "eur"), true, "ERP-I-4");
        stripe.books.refund(&charge, 100);
        stripe.books.subscribe(&customer, SILVER, "eur");
        stripe.books.events.skew_s = 0;
        charge
    });
    let mut daemon = world.daemon();
    world.streaming().await;
    // Lists before and behind the one that is refused.
    await_events(&world, "stripe", "subscription.v1", 1).await;
    let paid = await_events(&world, "stripe", "payment.v1", 1).await;
    assert_eq!(paid[0]["id"], format!("STRIPE-Y-{charge}"));
    eventually(Duration::from_secs(20), "a word about it", async || {
        let log = world.log();
        if log.contains("a list cannot be read") && log.contains("status 403") { Ok(()) } else { Err(log) }
    })
    .await;
    let mut odoo = world.odoo().await;
    let company = odoo.create_company("Alpine", "a@example.test", 1).await.unwrap();
    world.settled(Duration::from_secs(20)).await;
    assert!(world.stripe.with(|stripe| stripe.customers().contains_key(&format!("ERP-P-{company}"))));
    assert!(!world.log().contains("it is paused"), "{}", world.log());
    let open = "select count(*) from load where source = 'stripe' and state in ('requested', 'reading')";
    assert_eq!(world.count(open).await, 1);
    // Who asks for others does not wait for it, and it is not forgotten.
    world.printed(&["source", "reread", "--source", "stripe", "--table", "charge"]);
    assert_eq!(world.count(open).await, 1);
    // Once it may, it is read without a word from anybody.
    world.stripe.with(|stripe| stripe.books.forbidden = None);
    let payments = await_events(&world, "stripe", "payment.v1", 2).await;
    assert_eq!(payments.last().unwrap()["data"]["direction"], "refunded");
    eventually(Duration::from_secs(20), "the end of the load", async || {
        if world.count(open).await == 0 { Ok(()) } else { Err(world.log()) }
    })
    .await;
    assert!(daemon.terminate().success());
    world.verify();
}

#[tokio::test(flavor = "multi_thread")]
async fn chargebee_and_freshdesk_are_written_and_what_happens_there_becomes_canonical_events() {
    let world = World::start(WorldOptions::default()).await;
    let mappings = world.directory.path().join("mappings");
    tailwater::demo::shipped::write(&mappings).unwrap();
    let routes = "format: 1\nroutes:\n  - { event: customer.v1, system: chargebee, object: customer, when: \"true\" }\n  \
                  - { event: customer.v1, system: freshdesk, object: company, when: \"true\" }\n";
    std::fs::write(mappings.join("routes/more.yaml"), routes).unwrap();
    world.edit_settings(&format!("{}/mappings", env!("CARGO_MANIFEST_DIR")), &mappings.display().to_string());
    let limit = || Limit { requests: 100_000, window_s: 1.0 };
    let chargebee = VendorServer::start(Lists::new(Kind::Chargebee, STRIPE_KEY), limit()).await.unwrap();
    let freshdesk = VendorServer::start(Lists::new(Kind::Freshdesk, STRIPE_KEY), limit()).await.unwrap();
    world.add_target("chargebee", &chargebee.url(), "quota = \"1000/s\"");
    world.add_target("freshdesk", &freshdesk.url(), "quota = \"1000/s\"\nquotas = { lists = \"1000/s\" }");
    for name in ["chargebee", "freshdesk"] {
        let polled = format!("kind = \"poll\"\ntarget = \"{name}\"\nevery = \"1s\"\nshare = 100\n");
        world.add_source(name, &polled);
    }
    let mut daemon = world.daemon();
    world.streaming().await;
    let mut odoo = world.odoo().await;
    let company = odoo.create_company("Alpine", "a@example.test", 1).await.unwrap();
    world.settled(Duration::from_secs(20)).await;
    let ours = format!("ERP-P-{company}");
    let customer = chargebee.with(|vendor| vendor.get("customers", &ours)).unwrap();
    assert_eq!(
        (&customer["company"], &customer["cf_tailwater_id"]),
        (&"Alpine".into(), &ours.as_str().into())
    );
    let desk = freshdesk.with(|vendor| vendor.all("companies")).remove(0);
    assert_eq!(
        (&desk["name"], &desk["custom_fields"]["tailwater_id"]),
        (&"Alpine".into(), &ours.as_str().into())
    );
    // More than a page of each, and what is joined to them.
    chargebee.with(|vendor| {
        for number in 0..250 {
            let members = json!({"customer_id": ours, "type": "payment", "status": "success", "amount": 100, "currency_code": "EUR"});
            vendor.set("transactions", &format!("t{number:03}"), members);
        }
        let items = json!([{"item_price_id": "gold", "quantity": 1, "unit_price": 9900}]);
        vendor.set("subscriptions", "s1", json!({"customer_id": ours, "status": "active", "currency_code": "EUR", "subscription_items": items}));
    });
    freshdesk.with(|vendor| {
        for number in 1..=250 {
            let members = json!({"subject": "Help", "status": 2, "priority": 4, "company_id": desk["id"], "requester_id": 1});
            vendor.set("tickets", &number.to_string(), members);
        }
    });
    let payments = await_owned(&world, "chargebee", "payment.v1", 250).await;
    assert!(payments.iter().all(|event| event["data"]["customer"] == ours.as_str()));
    let subscription = await_owned(&world, "chargebee", "subscription.v1", 1).await.remove(0);
    assert_eq!(subscription["data"]["customer"], ours.as_str());
    let cases = await_owned(&world, "freshdesk", "support_case.v1", 250).await;
    assert!(
        cases
            .iter()
            .all(|event| event["data"]["customer"] == ours.as_str() && event["data"]["priority"] == "urgent")
    );
    freshdesk.with(|vendor| vendor.set("tickets", "7", json!({"status": 4})));
    eventually(Duration::from_secs(20), "the end of a case", async || {
        let found = events(&world, "freshdesk", "support_case.v1").await;
        let last = found.last().unwrap();
        let ended = (&last["id"], &last["data"]["status"]) == (&"FRESHDESK-K-7".into(), &"closed".into());
        if ended { Ok(()) } else { Err(last.to_string()) }
    })
    .await;
    assert_eq!(
        (payments.len(), chargebee.journal().nil_effects(), freshdesk.journal().nil_effects()),
        (250, 0, 0)
    );
    assert!(daemon.terminate().success());
    world.verify();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_reaches_the_erp_within_an_interval_and_an_idle_system_is_asked_once_in_each() {
    let systems = Triangle::start("{ customer: { \"*\": odoo, email: stripe } }", "[\"customers\"]").await;
    let mut systems = systems;
    let mut daemon = systems.daemon();
    systems.world.streaming().await;
    let company = systems.create_company("Alpine", "a@example.test").await;
    systems.at_rest(Duration::from_secs(60)).await;
    let customer = systems.at_stripe(company)["id"].as_str().unwrap().to_owned();
    let mut waits = Vec::new();
    for number in 0..15 {
        // Each begins behind the poll that found the one before: it waits for the longest part of an interval.
        let email = format!("new-{number}@example.test");
        let started = Instant::now();
        systems.world.stripe.with(|stripe| stripe.edit(&customer, &json!({"email": email})));
        eventually(Duration::from_secs(20), "the e-mail", async || {
            let there = systems.partner(company, "email").await;
            if there.as_deref() == Some(&email) {
                Ok(())
            } else {
                Err(format!("{there:?}; {}", systems.world.log()))
            }
        })
        .await;
        waits.push(started.elapsed());
    }
    waits.sort();
    let median = waits[waits.len() / 2];
    println!(
        "# from Stripe to Odoo: median {median:?}, longest {:?}; polled every second",
        waits.last().unwrap()
    );
    assert!(median < Duration::from_secs(2), "{waits:?}");
    // Nothing happens: one call for each stream and interval.
    systems.at_rest(Duration::from_secs(60)).await;
    let (calls, from) = (systems.world.stripe.calls(), systems.world.stripe.now_s());
    eventually(Duration::from_secs(60), "five polls", async || {
        let asked = systems.world.stripe.calls() - calls;
        if asked >= 5 { Ok(()) } else { Err(format!("{asked} calls")) }
    })
    .await;
    let (calls, seconds) = (systems.world.stripe.calls() - calls, systems.world.stripe.now_s() - from);
    assert!(calls as f64 <= seconds + 1.0, "{calls} calls in {seconds} s");
    assert!(daemon.terminate().success());
    systems.world.verify();
}
