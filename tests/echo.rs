//! What we wrote comes back and ends there; what somebody else changed in the same row does not.

use std::time::Duration;

use serde_json::json;

use crate::support::triangle::Triangle;

const PATIENCE: Duration = Duration::from_secs(30);

/// The ERP owns its customers, but for their e-mail, which is the billing system's, and their contacts' telephone, which is the desk's.
const OWNERS: &str = "{ customer: { \"*\": odoo, email: stripe }, contact: { \"*\": odoo, phone: zendesk } }";

#[tokio::test(flavor = "multi_thread")]
async fn each_field_follows_its_owner_everywhere_and_no_call_is_an_echo() {
    let systems = Triangle::start(OWNERS, "[\"customers\"]").await;
    let world = &systems.world;
    let mut daemon = world.daemon();
    world.streaming().await;
    let mut odoo = world.odoo().await;
    let company = odoo.create_company("Alpine", "erp@example.test", 1).await.unwrap();
    let contact = odoo.create_contact(company, "Ann", "ann@example.test").await.unwrap();
    systems.at_rest(PATIENCE).await;
    assert_eq!(systems.at_stripe(company)["name"], "Alpine");
    assert_eq!(systems.organization(company)["name"], "Alpine");
    // Its owner speaks: everybody hears of it.
    let customer = systems.at_stripe(company)["id"].as_str().unwrap().to_owned();
    world.stripe.with(|stripe| stripe.edit(&customer, &json!({"email": "billing@example.test"})));
    world
        .zendesk
        .with(|zendesk| zendesk.edit_user(&format!("ERP-P-{contact}"), &json!({"phone": "+49 30 1"})));
    odoo.rename(company, "Alps").await.unwrap();
    systems.at_rest(PATIENCE).await;
    assert_eq!(
        systems.partner(company, "email").await.as_deref(),
        Some("billing@example.test"),
        "{}",
        world.log()
    );
    assert_eq!(systems.partner(contact, "phone").await.as_deref(), Some("+49 30 1"));
    assert_eq!(
        (&systems.at_stripe(company)["name"], &systems.organization(company)["name"]),
        (&"Alps".into(), &"Alps".into())
    );
    assert_eq!(systems.nil_effects(), (0, 0, 0), "{}", world.log());
    // Somebody else speaks: it is put right where it was said.
    world.stripe.with(|stripe| stripe.edit(&customer, &json!({"name": "Wrong", "phone": "+1 555"})));
    world.zendesk.with(|zendesk| {
        zendesk.edit_organization(&format!("ERP-P-{company}"), &json!({"name": "Wrong, too"}))
    });
    odoo.client()
        .execute(
            "update res_partner set email = 'wrong@example.test', city = 'Ulm' where id = $1",
            &[&company],
        )
        .await
        .unwrap();
    systems.at_rest(PATIENCE).await;
    assert_eq!(systems.at_stripe(company)["name"], "Alps", "{}", world.log());
    assert_eq!(systems.organization(company)["name"], "Alps");
    assert_eq!(
        systems.partner(company, "email").await.as_deref(),
        Some("billing@example.test"),
        "{}",
        world.log()
    );
    // And what is the ERP's of the same change is told.
    assert_eq!(systems.at_stripe(company)["address"]["city"], "Ulm");
    assert_eq!(systems.nil_effects(), (0, 0, 0), "{}", world.log());
    assert!(daemon.terminate().success());
    world.verify();
}
