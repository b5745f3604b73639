//! The way back: what happens at billing and support systems reaches a real Odoo through its API.

use std::time::Duration;

use serde_json::json;

use crate::polling::STRIPE_POLLED;
use crate::support::eventually;
use crate::support::odoo_api::OdooApi;
use crate::support::real_odoo::{Running, running};

/// A world with a running Odoo as source and target, and a polled Stripe. `older`: it is spoken to as an Odoo before 19.
async fn world(flows: &str, older: bool) -> Option<(Running, OdooApi)> {
    let odoo = running().await?;
    let api = OdooApi::found(&odoo.world)?;
    odoo.world.edit_settings("[ledger]", &format!("flows = {flows}\n[ledger]"));
    let target = if older { api.older_target().await } else { api.target() };
    odoo.world.add_settings(&target);
    odoo.world.add_source("stripe", STRIPE_POLLED);
    Some((odoo, api))
}

/// The number of the customer at Stripe, once it is there.
async fn at_stripe(odoo: &Running, partner: i64) -> String {
    let ours = format!("ERP-P-{partner}");
    eventually(Duration::from_secs(30), "the customer at Stripe", async || {
        let there = odoo.world.stripe.with(|stripe| stripe.customers().contains_key(&ours));
        if there { Ok(()) } else { Err(odoo.world.log()) }
    })
    .await;
    odoo.world.stripe.with(|stripe| stripe.customers()[&ours]["id"].as_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_paid_at_stripe_is_paid_in_a_real_odoo_and_what_failed_is_noted_there() {
    for older in [false, true] {
        let Some((odoo, api)) = world("[\"payments\", \"standing\"]", older).await else { return };
        run(odoo, api).await;
    }
}

async fn run(odoo: Running, api: OdooApi) {
    let world = &odoo.world;
    let daemon_settings = [("TAILWATER__SOURCES__ERP__URL", odoo.source.as_str())];
    let mut daemon = world.daemon_with(&daemon_settings);
    world.streaming().await;
    let partner = api.customer("Way Back", "back@example.test").await;
    let invoice = api.invoice(partner, 121.0).await;
    let customer = at_stripe(&odoo, partner).await;
    let failed = world.stripe.with(|stripe| stripe.books.charge(&customer, (12_100, "usd"), false, ""));
    // The same Odoo has notes of earlier runs.
    let message = format!("<tailwater.STRIPE-Y-{failed}:rejected@tailwater.invalid>");
    let note = json!([["message_id", "=", message], ["res_id", "=", partner]]);
    eventually(Duration::from_secs(30), "the note", async || {
        let notes = api.count("mail.message", note.clone()).await;
        if notes == 1 { Ok(()) } else { Err(format!("{notes} notes: {}", world.log())) }
    })
    .await;
    let document = format!("ERP-I-{invoice}");
    let paid = world.stripe.with(|stripe| stripe.books.charge(&customer, (12_100, "usd"), true, &document));
    eventually(Duration::from_secs(30), "the payment", async || {
        let state = api.field("account.move", invoice, "payment_state").await;
        if state == "paid" { Ok(()) } else { Err(format!("{state}: {}", world.log())) }
    })
    .await;
    world.settled_to(&odoo.erp, Duration::from_secs(30)).await;
    let memo = format!("tailwater:STRIPE-Y-{paid}");
    assert_eq!(
        api.count("account.payment", json!([["memo", "=", memo], ["partner_id", "=", partner]])).await,
        1
    );
    assert_eq!(api.count("mail.message", note).await, 1);
    let zendesk = world.zendesk.with(|zendesk| zendesk.organizations()[&format!("ERP-P-{partner}")].clone());
    assert_eq!(zendesk["organization_fields"]["tailwater_standing"], "good");
    assert_eq!((world.stripe.journal().nil_effects(), world.zendesk.journal().nil_effects()), (0, 0));
    assert!(daemon.terminate().success());
    world.verify();
}
