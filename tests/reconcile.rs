//! What a target holds, compared with what it should.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::triangle::Triangle;
use crate::support::{World, WorldOptions};

const PATIENCE: Duration = Duration::from_secs(120);

fn objects() -> usize {
    std::env::var("TAILWATER_OBJECTS").ok().and_then(|text| text.parse().ok()).unwrap_or(1_500)
}

/// Resident memory of a process, in MiB.
fn resident_mib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

fn reconcile(world: &World, more: &[&str]) -> Value {
    reconcile_of(world, &[], "stripe", more)
}

fn reconcile_of(world: &World, environment: &[(&str, &str)], target: &str, more: &[&str]) -> Value {
    let arguments: Vec<&str> = ["reconcile", target, "--json"].iter().chain(more).copied().collect();
    let output = world.run_with(&arguments, environment);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Found differences by kind: canonical id, or the target's where we have none.
fn by_kind(found: &Value) -> BTreeMap<String, Vec<String>> {
    let mut kinds: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for difference in found["differences"].as_array().unwrap() {
        let id = difference["id"].as_str().filter(|id| !id.is_empty()).unwrap_or("-").to_owned();
        kinds.entry(difference["kind"].as_str().unwrap().to_owned()).or_default().push(id);
    }
    kinds.values_mut().for_each(|ids| ids.sort());
    kinds
}

#[tokio::test(flavor = "multi_thread")]
async fn planted_differences_of_every_kind_are_found_exactly_and_what_may_be_is_put_right() {
    let count = objects();
    let world = World::start(WorldOptions {
        stripe_quota: "100000/s",
        stripe_limit: tailwater::demo::vendor::server::Limit { requests: 100_000, window_s: 1.0 },
        ..WorldOptions::default()
    })
    .await;
    let odoo = world.odoo().await;
    odoo.client()
        .batch_execute(&format!(
            "insert into res_partner (name, complete_name, email, is_company, city)
             select 'Customer ' || n, 'Customer ' || n, 'c' || n || '@example.test', true, 'Ulm' from generate_series(1, {count}) n;
             update res_partner set commercial_partner_id = id"
        ))
        .await
        .unwrap();
    let mut daemon = world.daemon();
    world.streaming_within(Duration::from_secs(120)).await;
    world.settled(Duration::from_secs(1_200)).await;
    assert_eq!(by_kind(&reconcile(&world, &[])), BTreeMap::new(), "nothing differs at first");
    let before_mib = resident_mib(daemon.child.id());
    // A fifth of each kind: changed, lost, doubled, carrying an id of ours that nobody knows, and somebody else's.
    let planted = (count / 15).min(100);
    let mut expected: BTreeMap<String, Vec<String>> = BTreeMap::new();
    world.stripe.with(|stripe| {
        let all: Vec<(String, Value)> = stripe.customers().into_iter().collect();
        let id = |customer: &Value| customer["id"].as_str().unwrap().to_owned();
        let mut next = all.iter().filter(|(ours, _)| ours.starts_with("ERP-P-"));
        let mut plant = |kind: &str, ours: &str| expected.entry(kind.into()).or_default().push(ours.into());
        for number in 0..planted {
            let (ours, customer) = next.next().unwrap();
            let members = match number % 3 {
                0 => json!({"name": "Somebody else wrote this"}),
                1 => json!({"address": {"city": "Elsewhere"}}),
                _ => json!({"email": "", "metadata": {"active": "false"}}),
            };
            stripe.edit(&id(customer), &members);
            plant("different", ours);
            let (ours, customer) = next.next().unwrap();
            stripe.lose(&id(customer));
            plant("missing", ours);
            let (ours, _) = next.next().unwrap();
            stripe.made_with(ours);
            plant("doubled", ours);
            let unknown = format!("ERP-P-9{number:06}");
            stripe.made_with(&unknown);
            plant("extra", &unknown);
            stripe.made_by_hand(&format!("theirs-{number}@example.test"));
        }
    });
    expected.values_mut().for_each(|ids| ids.sort());
    // What may not be looked at is not taken for lost, and nothing is made a second time.
    let effects = world.stripe.effects();
    world.stripe.with(|stripe| stripe.books.forbidden = Some("customers"));
    let refused = world.run(&["reconcile", "stripe", "--repair"]);
    assert_eq!(refused.status.code(), Some(69));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("customer") && said.contains("status 403"), "{said}");
    world.stripe.with(|stripe| stripe.books.forbidden = Some("customers/"));
    let refused = reconcile(&world, &["--repair"]);
    let mut certain = expected.clone();
    certain.retain(|kind, _| kind == "doubled" || kind == "extra");
    assert_eq!(by_kind(&refused), certain);
    assert_eq!(refused["report"]["customer"]["unread"], 2 * planted as u64);
    assert_ne!(refused["report"]["customer"]["coverage_percent"], "100");
    world.stripe.with(|stripe| stripe.books.forbidden = None);
    world.settled(Duration::from_secs(120)).await;
    assert_eq!(world.stripe.effects(), effects);
    let found = reconcile(&world, &[]);
    assert_eq!(by_kind(&found), expected);
    let report = &found["report"]["customer"];
    assert_eq!(report["others"], planted as u64);
    assert_eq!(report["differences"]["missing"], planted as u64);
    let grown = resident_mib(daemon.child.id()).saturating_sub(before_mib);
    println!("# {count} objects, {} planted: all found; {grown} MiB more memory", planted * 5);
    assert!(grown < 64, "memory grew by {grown} MiB");
    // What is different and what is missing is the ERP's to say.
    let effects = world.stripe.effects();
    assert_eq!(by_kind(&reconcile(&world, &["--repair"])), expected);
    world.settled(Duration::from_secs(120)).await;
    assert_eq!(world.stripe.effects() - effects, planted * 2, "one request for each");
    let left = by_kind(&reconcile(&world, &[]));
    expected.remove("different");
    expected.remove("missing");
    assert_eq!(left, expected, "what is not ours to put right stays as it is");
    assert_eq!(world.count("select count(*) from entry where kind = 'reconcile'").await, 6);
    assert!(daemon.terminate().success());
    world.verify();
    // Without a daemon the command does it itself.
    assert_eq!(by_kind(&reconcile(&world, &[])), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_compares_and_puts_right_without_being_asked() {
    let world = World::start(WorldOptions::default()).await;
    world.edit_settings(
        "[targets.zendesk]",
        "reconcile = { every = \"1s\", repair = true }\n[targets.zendesk]",
    );
    let mut odoo = world.odoo().await;
    let mut daemon = world.daemon();
    world.streaming().await;
    let company = odoo.create_company("Alpine", "a@example.test", 1).await.unwrap();
    world.settled(Duration::from_secs(30)).await;
    let ours = format!("ERP-P-{company}");
    let id = world.stripe.with(|stripe| stripe.customers()[&ours]["id"].as_str().unwrap().to_owned());
    world.stripe.with(|stripe| stripe.edit(&id, &json!({"name": "Wrong"})));
    crate::support::eventually(Duration::from_secs(30), "the name", async || {
        let name = world.stripe.with(|stripe| stripe.customers()[&ours]["name"].clone());
        if name == "Alpine" { Ok(()) } else { Err(format!("{name}; {}", world.log())) }
    })
    .await;
    assert!(daemon.terminate().success());
    world.verify();
}

/// The ERP owns its customers, but for their e-mail, which is the billing system's.
const OWNERS: &str = "{ customer: { \"*\": odoo, email: stripe } }";

#[tokio::test(flavor = "multi_thread")]
async fn what_the_erp_holds_of_others_is_compared_and_put_right() {
    the_erp(Triangle::start(OWNERS, "[\"customers\"]").await).await;
}

/// The same with a running Odoo, over both of its interfaces.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_real_odoo_holds_of_others_is_compared_and_put_right() {
    for older in [false, true] {
        let Some(systems) = Triangle::real(OWNERS, "[\"customers\"]", older).await else { return };
        the_erp(systems).await;
    }
}

/// The comparison, as a command beside whatever runs.
fn compared(systems: &Triangle, target: &str, more: &[&str]) -> Value {
    reconcile_of(&systems.world, &systems.environment(), target, more)
}

async fn the_erp(mut systems: Triangle) {
    let mut daemon = systems.daemon();
    systems.world.streaming().await;
    let name = format!("Reconciled {}", rand::random::<u32>());
    let company = systems.create_company(&name, "erp@example.test").await;
    systems.at_rest(PATIENCE).await;
    let customer = systems.at_stripe(company)["id"].as_str().unwrap().to_owned();
    let members = json!({"email": "billing@example.test"});
    systems.world.stripe.with(|stripe| stripe.edit(&customer, &members));
    systems.at_rest(PATIENCE).await;
    assert!(daemon.terminate().success());
    let ours = format!("ERP-P-{company}");
    let found = compared(&systems, "odoo", &[]);
    assert_eq!(found["differences"], json!([]), "{found:#}");
    assert_eq!(found["report"]["partner"]["coverage_percent"], "100");
    // While nobody looks.
    systems.write(company, "email", "wrong@example.test").await;
    let found = compared(&systems, "odoo", &["--type", "partner", "--repair"]);
    assert_eq!(by_kind(&found), BTreeMap::from([("different".to_owned(), vec![ours.clone()])]), "{found:#}");
    assert_eq!(
        found["differences"][0]["fields"],
        json!([{"field": "email", "ours": "billing@example.test", "theirs": "wrong@example.test"}])
    );
    let mut daemon = systems.daemon();
    systems.world.streaming().await;
    systems.at_rest(PATIENCE).await;
    assert_eq!(systems.partner(company, "email").await.as_deref(), Some("billing@example.test"));
    assert_eq!(compared(&systems, "odoo", &[])["differences"], json!([]));
    assert!(daemon.terminate().success());
    // A partner that is gone cannot be made again under its number, and nobody tries for ever.
    systems.remove(company).await;
    let members = json!({"email": "later@example.test"});
    systems.world.stripe.with(|stripe| stripe.edit(&customer, &members));
    let found = compared(&systems, "odoo", &["--type", "partner", "--repair"]);
    assert_eq!(by_kind(&found), BTreeMap::from([("missing".to_owned(), vec![ours])]), "{found:#}");
    assert_eq!(found["differences"][0]["repaired"], false);
    let mut daemon = systems.daemon();
    systems.world.streaming().await;
    systems.at_rest(PATIENCE).await;
    assert!(daemon.terminate().success());
    systems.world.verify();
}
