//! What systems say when they are asked: streams that are polled, lists that are read, and what becomes of them.

use std::time::Duration;

use serde_json::Value;
use tailwater::demo::vendor::stripe_books::Price;

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
            serde_json::json!({"status": "past_due"}),
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
