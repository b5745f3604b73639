//! Whose word counts for which field, and events of another version than their reader's.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tailwater::demo::private::TemporaryDirectory;
use tailwater::demo::shipped;
use tailwater::workbench::mappings::read;

use crate::support::{World, WorldOptions};

const PATIENCE: Duration = Duration::from_secs(30);

/// The shipped files in a directory of their own, and a world that reads them there.
async fn world() -> (World, TemporaryDirectory) {
    let world = World::start(WorldOptions::default()).await;
    let directory = TemporaryDirectory::new("tailwater-versions").unwrap();
    shipped::write(directory.path()).unwrap();
    let shipped = format!("{}/mappings", env!("CARGO_MANIFEST_DIR"));
    let own = directory.path().display().to_string();
    world.edit_settings(&format!("mappings = \"{shipped}\""), &format!("mappings = \"{own}\""));
    (world, directory)
}

fn owners(directory: &Path, owners: &str) {
    std::fs::write(directory.join("ownership.yaml"), format!("format: 1\nowners: {owners}\n")).unwrap();
}

#[test]
fn an_owner_of_what_no_event_has_is_refused_at_load() {
    let directory = TemporaryDirectory::new("tailwater-versions").unwrap();
    shipped::write(directory.path()).unwrap();
    let check = |said: &str, expected: &[&str]| {
        owners(directory.path(), said);
        let problems = read(directory.path()).err().unwrap_or_default();
        let printed: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(printed.len(), expected.len(), "{said}: {printed:#?}");
        for (line, expected) in printed.iter().zip(expected) {
            assert!(line.contains(expected) && line.contains("ownership.yaml:2"), "{line}");
        }
    };
    check("{ customer: { name: odoo } }", &[]);
    check("{ customer: { website: stripe } }", &[]);
    check("{ customer: { email: stripe } }", &[]);
    check("{ custmer: { email: stripe } }", &["no event is about `custmer`"]);
    check("{ customer: { emial: odoo } }", &["did you mean `email`?"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_by_who_does_not_own_the_field_is_drift_and_goes_nowhere() {
    let (world, directory) = world().await;
    owners(directory.path(), "{ customer: { website: stripe } }");
    let mut odoo = world.odoo().await;
    let mut daemon = world.daemon();
    world.streaming().await;
    let company = odoo.create_company("Drift", "drift@example.com", 1).await.unwrap();
    world.settled(PATIENCE).await;
    let ledger = world.ledger_client().await;
    let sql = "select count(*) from entry where kind = 'event'";
    let before: i64 = ledger.query_one(sql, &[]).await.unwrap().get(0);
    odoo.write(company, "website", &"https://drift.example").await.unwrap();
    world.settled(PATIENCE).await;
    assert_eq!(ledger.query_one(sql, &[]).await.unwrap().get::<_, i64>(0), before);
    let sql = "select convert_from(body, 'UTF8')::jsonb from entry where kind = 'drift'";
    let drifts: Vec<Value> = ledger.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(drifts.len(), 1, "{drifts:?}");
    assert_eq!(
        (&drifts[0]["id"], &drifts[0]["fields"]),
        (&json!(format!("ERP-P-{company}")), &json!(["website"]))
    );
    // Beside a change of what Odoo owns it still goes nowhere.
    odoo.write(company, "phone", &"+1 555 0199").await.unwrap();
    world.settled(PATIENCE).await;
    let sql =
        "select convert_from(body, 'UTF8')::jsonb from entry where kind = 'event' order by seq desc limit 1";
    let event: Value = ledger.query_one(sql, &[]).await.unwrap().get(0);
    assert_eq!((&event["data"]["phone"], &event["data"]["website"]), (&json!("+1 555 0199"), &Value::Null));
    assert!(daemon.terminate().success());
    world.verify();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_the_new_version_gets_older_events_in_its_form() {
    let (world, directory) = world().await;
    let path = directory.path().join("canonical/customer.v1.json");
    let mut schema: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    schema["properties"]["title"] = json!({"type": "string"});
    schema["properties"].as_object_mut().unwrap().remove("name");
    schema["x-upcast"] =
        json!({"from": "customer.v1", "data": {"title": "data.name + ' & Co.'"}, "drop": ["name"]});
    std::fs::write(directory.path().join("canonical/customer.v2.json"), schema.to_string()).unwrap();
    let edit = |name: &str, from: &str, to: &str| {
        let path = directory.path().join(name);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{from}");
        std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
    };
    edit(
        "routes/default.yaml",
        "event: customer.v1\n    system: stripe",
        "event: customer.v2\n    system: stripe",
    );
    edit(
        "connectors/stripe.yaml",
        "      name: \"event.name",
        "      name: event.title\n      description: \"event.title",
    );
    edit(
        "connectors/stripe.yaml",
        "== null ? null : event.name.substring(0, size(event.name) < 256 ? size(event.name) : 256)\"",
        "\"",
    );
    let mut odoo = world.odoo().await;
    let mut daemon = world.daemon();
    world.streaming().await;
    let company = odoo.create_company("Pinned", "pinned@example.com", 1).await.unwrap();
    world.settled(PATIENCE).await;
    let id = format!("ERP-P-{company}");
    let customer = world.stripe.with(|stripe| stripe.customers()).get(&id).cloned().unwrap();
    assert_eq!(customer["name"], "Pinned & Co.");
    let organization = world.zendesk.with(|zendesk| zendesk.organizations()).get(&id).cloned().unwrap();
    assert_eq!(organization["name"], "Pinned", "who pins the older version gets it");
    let ledger = world.ledger_client().await;
    // What is owed is shown in the version that would be sent.
    assert!(daemon.terminate().success());
    let owed = "update delivery set state = 'pending', due_at = now(), head = true where target = 'stripe'; update applied set sha256 = null";
    ledger.batch_execute(owed).await.unwrap();
    let planned = world.printed(&["plan", "--target", "stripe", "--first", "5", "--values"]);
    assert!(planned.contains("\"name\":\"Pinned & Co.\""), "{planned}");
    let sql = "select count(*) from entry where kind = 'event' and convert_from(body, 'UTF8') like '%\"type\":\"customer.v1\"%'";
    assert!(ledger.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) > 0);
    world.verify();
}
