//! The shipped flows that end in the ERP's log, its activities and its timesheets, or at the support desk, once each.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use tailwater::demo::vendor::stripe_books::Price;

use crate::polling::{await_events, events};
use crate::support::eventually;
use crate::support::triangle::{People, Triangle};

const OWNERS: &str = "{ customer: { \"*\": odoo }, contact: { \"*\": odoo } }";
const FLOWS: &str = "[\"entitlements\", \"cases\", \"time\"]";
const PATIENCE: Duration = Duration::from_secs(60);

/// Number of the field in which the time that was spent stands, in seconds.
const TIME_FIELD: u64 = 4_711;

const SILVER: Price<'_> =
    Price { lookup_key: "silver", amount: 4_900, plan: "silver", first_response_minutes: 240 };
const GOLD: Price<'_> = Price { lookup_key: "gold", amount: 9_900, plan: "gold", first_response_minutes: 30 };

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sold_and_what_is_asked_for_is_known_where_it_matters() {
    let systems = Triangle::start(OWNERS, FLOWS).await;
    run(systems).await;
}

/// The same with a running Odoo: `TAILWATER_ODOO`, `TAILWATER_ODOO_API`, `TAILWATER_ODOO_KEYS`.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_sold_and_what_is_asked_for_is_known_in_a_real_odoo() {
    for older in [false, true] {
        let Some(systems) = Triangle::real(OWNERS, FLOWS, older).await else { return };
        run(systems).await;
    }
}

async fn run(mut systems: Triangle) {
    systems.world.edit_settings(
        "connector = \"zendesk\"",
        &format!("connector = \"zendesk\"\nsettings = {{ time_field = {TIME_FIELD} }}"),
    );
    let mut daemon = systems.daemon();
    systems.world.streaming().await;
    let company = systems.create_company("Flows", "flows@example.test").await;
    systems.at_rest(PATIENCE).await;
    sold(&systems, company).await;
    asked_for(&systems, company).await;
    systems.at_rest(PATIENCE).await;
    assert_eq!(systems.echoes([&[], &[], &[]]), Vec::<String>::new());
    assert!(daemon.terminate().success());
    systems.world.verify();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_before_is_known_and_not_done_again_and_of_payments_the_newest_counts() {
    let mut systems = Triangle::start(OWNERS, "[\"payments\", \"standing\"]").await;
    let mut daemon = systems.daemon();
    systems.world.streaming().await;
    let company = systems.create_company("Before", "before@example.test").await;
    systems.at_rest(PATIENCE).await;
    let customer = systems.at_stripe(company)["id"].as_str().unwrap().to_owned();
    let stripe = &systems.world.stripe;
    let charge = |paid: bool, document: &str, ago_s: i64| {
        stripe.with(|stripe| {
            stripe.books.events.skew_s = -ago_s;
            let charge = stripe.books.charge(&customer, (12_100, "usd"), paid, document);
            stripe.books.events.skew_s = 0;
            charge
        })
    };
    let standing = || systems.organization(company)["organization_fields"]["tailwater_standing"].clone();
    // Of a time before the source was first read: only lists show it.
    let invoice = systems.invoice(company, 12_100).await;
    let failed = charge(false, "", 7_200);
    let paid = charge(true, &format!("ERP-I-{invoice}"), 3_600);
    let reread = ["source", "reread", "--source", "stripe", "--table", "charge"];
    systems.world.printed(&reread);
    systems.at_rest(PATIENCE).await;
    assert_eq!(events(&systems.world, "stripe", "payment.v1").await.len(), 2);
    assert_eq!(systems.payments(invoice, &format!("tailwater:STRIPE-Y-{paid}")).await, 0);
    assert_eq!(systems.notes(&format!("<tailwater.STRIPE-Y-{failed}:rejected@tailwater.invalid>")).await, 0);
    assert_eq!(standing(), "good", "{}", systems.world.log());
    // A card fails, another one does not: both are heard of at once, the newest first.
    assert!(daemon.terminate().success());
    let failed = charge(false, "", 1);
    charge(true, "", 0);
    let mut daemon = systems.daemon();
    systems.world.streaming().await;
    await_events(&systems.world, "stripe", "payment.v1", 4).await;
    systems.at_rest(PATIENCE).await;
    assert_eq!(systems.notes(&format!("<tailwater.STRIPE-Y-{failed}:rejected@tailwater.invalid>")).await, 1);
    assert_eq!(standing(), "good", "{}", systems.world.log());
    // What a list does not show is not gone when it can be looked at.
    let unlisted = charge(true, "", 0);
    await_events(&systems.world, "stripe", "payment.v1", 5).await;
    stripe.with(|stripe| stripe.books.unlisted = Some(unlisted.clone()));
    systems.world.printed(&reread);
    systems.at_rest(PATIENCE).await;
    let of_it = |event: &&Value| event["id"] == format!("STRIPE-Y-{unlisted}");
    let all = events(&systems.world, "stripe", "payment.v1").await;
    assert_eq!(all.iter().filter(of_it).count(), 1, "{all:?}");
    assert!(daemon.terminate().success());
    systems.world.verify();
}

/// A payment whose invoice is another system's is registered nowhere here, whatever its number.
#[tokio::test(flavor = "multi_thread")]
async fn a_payment_of_another_systems_invoice_is_registered_on_none_of_ours() {
    let mut systems = Triangle::start(OWNERS, "[\"payments\"]").await;
    let mut daemon = systems.daemon();
    systems.world.streaming().await;
    let company = systems.create_company("Elsewhere", "elsewhere@example.test").await;
    systems.at_rest(PATIENCE).await;
    let customer = systems.at_stripe(company)["id"].as_str().unwrap().to_owned();
    let invoice = systems.invoice(company, 12_100).await;
    let charge = |document: String| {
        systems.world.stripe.with(|stripe| stripe.books.charge(&customer, (12_100, "usd"), true, &document))
    };
    let others = [
        format!("XXX-I-{invoice}"),
        format!("AB-I-1{invoice}"),
        format!("A-I-12345{invoice}"),
        format!("ERP2-I-5{invoice}"),
        format!("ERP-I-{invoice}-1"),
        "ERP-I-".into(),
    ];
    let others: Vec<String> = others.into_iter().map(charge).collect();
    let ours = charge(format!("ERP-I-{invoice}"));
    let _ = await_events(&systems.world, "stripe", "payment.v1", others.len() + 1).await;
    let paid =
        async |charge: &String| systems.payments(invoice, &format!("tailwater:STRIPE-Y-{charge}")).await;
    eventually(PATIENCE, "the payment of ours", async || {
        if paid(&ours).await == 1 { Ok(()) } else { Err(systems.world.log()) }
    })
    .await;
    for other in &others {
        assert_eq!(paid(other).await, 0, "{other}");
    }
    assert!(daemon.terminate().success());
    systems.world.verify();
}

/// A subscription, and a larger one.
async fn sold(systems: &Triangle, company: i32) {
    let customer = systems.at_stripe(company)["id"].as_str().unwrap().to_owned();
    let stripe = &systems.world.stripe;
    let subscription = stripe.with(|stripe| stripe.books.subscribe(&customer, SILVER, "eur"));
    shown(systems, company, &json!(["silver", "high", 240])).await;
    stripe.with(|stripe| stripe.books.upgrade(&subscription, GOLD));
    shown(systems, company, &json!(["gold", "urgent", 30])).await;
}

/// Waits until the support desk shows a plan, a priority and a time to respond.
async fn shown(systems: &Triangle, company: i32, expected: &Value) {
    eventually(PATIENCE, "what was sold", async || {
        let fields = systems.organization(company)["organization_fields"].clone();
        let names = ["tailwater_plan", "tailwater_priority", "tailwater_response"];
        let shown = Value::from_iter(names.map(|name| fields[name].clone()));
        if shown == *expected { Ok(()) } else { Err(format!("{shown}: {}", systems.world.log())) }
    })
    .await;
}

/// A case that becomes urgent, and takes time twice.
async fn asked_for(systems: &Triangle, company: i32) {
    let zendesk = &systems.world.zendesk;
    let organization = systems.organization(company)["id"].as_u64().unwrap();
    // A running Odoo knows the tickets of earlier runs.
    zendesk.with(|zendesk| zendesk.exports.last_ticket = Timestamp::now().as_second().unsigned_abs());
    let ticket =
        zendesk.with(|zendesk| zendesk.exports.ticket(organization, None, "Nothing works", "normal"));
    let spent = |seconds: u64| json!({"custom_fields": [{"id": TIME_FIELD, "value": seconds.to_string()}]});
    zendesk.with(|zendesk| zendesk.exports.change_ticket(ticket, spent(900)));
    hours(systems, ticket, 0.25).await;
    zendesk.with(|zendesk| zendesk.exports.change_ticket(ticket, json!({"priority": "urgent"})));
    zendesk.with(|zendesk| zendesk.exports.change_ticket(ticket, spent(4_000)));
    hours(systems, ticket, 1.25).await;
    let note = format!("<tailwater.ZENDESK-K-{ticket}:urgent@tailwater.invalid>");
    eventually(PATIENCE, "a note and an activity", async || {
        let found = (systems.notes(&note).await, activities(systems, ticket, company).await);
        if found == (1, 1) { Ok(()) } else { Err(format!("{found:?}: {}", systems.world.log())) }
    })
    .await;
    systems.at_rest(PATIENCE).await;
    assert_eq!((systems.notes(&note).await, activities(systems, ticket, company).await), (1, 1));
}

/// Waits until one line of a timesheet has so many hours.
async fn hours(systems: &Triangle, ticket: u64, expected: f64) {
    eventually(PATIENCE, "a timesheet", async || {
        let lines = match &systems.people {
            People::Simulated(_, api) => api.with(|api| {
                let line = api.lines.get(&format!("tailwater.ZENDESK_U_{ticket}"));
                line.into_iter().map(|line| line["unit_amount"].as_str().unwrap().parse().unwrap()).collect()
            }),
            People::Real(api) => {
                let name = format!("Support case {ticket}: Nothing works");
                let asked = json!({"domain": [["name", "=", name]], "fields": ["unit_amount"]});
                let found = api.call("account.analytic.line", "search_read", asked).await;
                let lines = found.as_array().unwrap().iter();
                lines.map(|line| line["unit_amount"].as_f64().unwrap()).collect::<Vec<f64>>()
            }
        };
        if lines == [expected] { Ok(()) } else { Err(format!("{lines:?}: {}", systems.world.log())) }
    })
    .await;
}

async fn activities(systems: &Triangle, ticket: u64, company: i32) -> i64 {
    match &systems.people {
        People::Simulated(_, api) => api.with(|api| {
            let id = format!("tailwater.activity_ZENDESK_K_{ticket}~3Aurgent");
            i64::from(api.lines.contains_key(&id))
        }),
        People::Real(api) => {
            let summary = format!("Support case {ticket} is urgent");
            api.count("mail.activity", json!([["summary", "=", summary], ["res_id", "=", company]])).await
        }
    }
}
