//! What people ask of a daemon: look before anything is sent, shadow, release of a mass change, waves, identities.

use std::time::Duration;
use tailwater::demo::private::write_secret;

use tailwater::demo::private::TemporaryDirectory;
use tailwater::demo::shipped;
use tailwater::demo::vendor::server::{Limit, VendorServer};
use tailwater::demo::vendor::stripe::Stripe;

use crate::support::{World, WorldOptions, eventually};

const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn a_target_in_shadow_mode_gets_nothing_and_everything_once_it_is_live() {
    let world = World::start(WorldOptions::default()).await;
    world.edit_settings("connector = \"stripe\"", "connector = \"stripe\"\nmode = \"shadow\"");
    let mut odoo = world.odoo().await;
    let mut daemon = world.daemon();
    world.streaming().await;
    let first = odoo.create_company("Shadow One", "one@example.com", 1).await.unwrap();
    odoo.create_company("Shadow Two", "two@example.com", 2).await.unwrap();
    odoo.rename(first, "Shadow First").await.unwrap();
    world.settled(PATIENCE).await;
    assert_eq!(world.stripe.journal().calls.len(), 0);
    assert_eq!(world.zendesk.with(|zendesk| zendesk.organizations().len()), 2);
    assert!(
        world.count("select count(*) from delivery where target = 'stripe' and state = 'shadowed'").await
            >= 2
    );
    let recorded = "select count(*) from entry where kind = 'outcome' and convert_from(body, 'UTF8') like '%\"class\":\"shadowed\"%'";
    assert!(world.count(recorded).await >= 2);
    assert!(daemon.terminate().success());
    world.edit_settings("mode = \"shadow\"", "mode = \"live\"");
    let _daemon = world.daemon();
    eventually(PATIENCE, "what was shadowed", async || {
        let there = world.stripe.with(|stripe| stripe.customers().len());
        if there == 2 { Ok(()) } else { Err(world.log()) }
    })
    .await;
    world.settled(PATIENCE).await;
    let names: Vec<String> = world
        .stripe
        .with(|stripe| stripe.customers())
        .values()
        .map(|customer| customer["name"].to_string())
        .collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(names.contains(&"\"Shadow First\"".to_owned()), "{names:?}");
    assert_eq!(world.stripe.with(|stripe| stripe.doubled()), Vec::<String>::new());
    world.verify();
}

#[tokio::test(flavor = "multi_thread")]
async fn plan_and_explain_show_the_exact_request_and_send_nothing() {
    let world = World::start(WorldOptions::default()).await;
    let mut odoo = world.odoo().await;
    let mut daemon = world.daemon();
    world.streaming().await;
    let company = odoo.create_company("Explained", "private@example.com", 1).await.unwrap();
    world.settled(PATIENCE).await;
    assert!(daemon.terminate().success());
    let calls = world.stripe.journal().calls.len();
    let text = world.printed(&["explain", "res_partner", &company.to_string()]);
    for expected in [
        format!("customer.v1 ERP-P-{company}"),
        "country: res_country 1".to_owned(),
        "-> stripe customer: nothing to send: the target has it so".to_owned(),
        "-> zendesk organization: nothing to send: the target has it so".to_owned(),
    ] {
        assert!(text.contains(&expected), "{expected}: {text}");
    }
    assert!(!text.contains("private@example.com") && !text.contains("Explained"), "{text}");
    assert!(
        world
            .printed(&["explain", "res_partner", &company.to_string(), "--values"])
            .contains("private@example.com")
    );
    // A country is part of every customer in it.
    assert!(world.printed(&["explain", "res_country", "1"]).contains(&format!("ERP-P-{company}")));
    let unknown = world.run(&["explain", "res_partner", "999999"]);
    assert_eq!(unknown.status.code(), Some(64));
    // Owed, and not delivered yet: the daemon has seen it and not sent it.
    let ledger = world.ledger_client().await;
    ledger.batch_execute("update delivery set state = 'pending', due_at = now(), head = true where target = 'stripe'; update applied set sha256 = null").await.unwrap();
    let text = world.printed(&["plan", "--first", "5"]);
    assert!(text.contains("stripe (1000/s): 1 request, about a second"), "{text}");
    assert!(text.contains(&format!("ERP-P-{company}: POST /v1/customers/cus_")), "{text}");
    assert!(!text.contains("private@example.com"), "{text}");
    assert_eq!(world.stripe.journal().calls.len(), calls);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_columns_of_a_mapping_are_found_in_the_live_database() {
    let world = World::start(WorldOptions::default()).await;
    let directory = TemporaryDirectory::new("tailwater-columns").unwrap();
    shipped::write(directory.path()).unwrap();
    let check = || {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_tailwater"))
            .args(["mappings", "check", "--dir"])
            .arg(directory.path())
            .arg("--against")
            .arg(&world.config)
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (code, text) = check();
    assert!(code == Some(0) && text.contains("source erp: every table and column is there"), "{text}");
    let path = directory.path().join("sources/odoo/partners.yaml");
    let mapping = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, mapping.replacen("columns: [id, code]", "columns: [id, code, iso_code]", 1))
        .unwrap();
    let (code, text) = check();
    assert!(code == Some(78) && text.contains("has no column \"iso_code\""), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wave_moves_to_the_new_billing_system_and_back_while_the_daemon_runs() {
    let world = World::start(WorldOptions::default()).await;
    let limit = Limit { requests: 10_000, window_s: 1.0 };
    let new = VendorServer::start(Stripe::new("sk_test_new", 1.0), limit).await.unwrap();
    let directory = TemporaryDirectory::new("tailwater-waves").unwrap();
    shipped::write(directory.path()).unwrap();
    let routes = "format: 1
waves:
  pilot: \"bucket(customer, 2) == 0\"
routes:
  - { event: customer.v1, system: stripe, target: stripe, object: customer, when: \"true\", unless_wave: pilot }
  - { event: customer.v1, system: stripe, target: billing_new, object: customer, when: \"true\", wave: pilot }
";
    std::fs::write(directory.path().join("routes/default.yaml"), routes).unwrap();
    let key = directory.path().join("new.key");
    write_secret(&key, "sk_test_new").unwrap();
    let shipped = format!("{}/mappings", env!("CARGO_MANIFEST_DIR"));
    world.edit_settings(
        &format!("mappings = \"{shipped}\""),
        &format!("mappings = \"{}\"", directory.path().display()),
    );
    world.add_settings(
        &format!(
            "[targets.billing_new]\nconnector = \"stripe\"\nbase_url = \"{}\"\napi_key = {{ file = \"{}\" }}\nquota = \"1000/s\"\nquotas = {{ endpoint = \"1000/s\" }}",
            new.url(),
            key.display()
        ),
    );
    let mut odoo = world.odoo().await;
    let _daemon = world.daemon();
    world.streaming().await;
    let mut companies = Vec::new();
    for n in 0..12 {
        companies
            .push(odoo.create_company(&format!("Wave {n}"), &format!("w{n}@example.com"), 1).await.unwrap());
    }
    world.settled(PATIENCE).await;
    assert_eq!(
        (world.stripe.with(|stripe| stripe.customers().len()), new.with(|stripe| stripe.customers().len())),
        (12, 0)
    );
    assert!(world.printed(&["wave", "list"]).contains("pilot: not moved"));
    world.printed(&["wave", "move", "pilot"]);
    world.settled_after_backfill().await;
    let moved = new.with(|stripe| stripe.customers());
    assert!((1..12).contains(&moved.len()), "{}", moved.len());
    let listed = world.printed(&["wave", "list"]);
    assert!(listed.contains("pilot: moved at"), "{listed}");
    // From now on each goes where it belongs.
    let calls = world.stripe.journal().calls.len();
    for company in &companies {
        odoo.write(*company, "phone", &"+1 555 0100").await.unwrap();
    }
    world.settled(PATIENCE).await;
    let with_phone = |customers: std::collections::BTreeMap<String, serde_json::Value>| {
        customers.values().filter(|customer| customer["phone"] == "+1 555 0100").count()
    };
    assert_eq!(with_phone(new.with(|stripe| stripe.customers())), moved.len());
    assert_eq!(world.stripe.journal().calls.len() - calls, 12 - moved.len());
    world.printed(&["wave", "back", "pilot"]);
    world.settled_after_backfill().await;
    assert_eq!(
        with_phone(world.stripe.with(|stripe| stripe.customers())),
        12,
        "what changed meanwhile is made up for"
    );
    let operator = "select count(*) from entry where kind = 'operator' and convert_from(body, 'UTF8') like '%\"action\":\"wave\"%'";
    assert_eq!(world.count(operator).await, 2);
    assert_eq!(world.stripe.with(|stripe| stripe.doubled()), Vec::<String>::new());
    assert_eq!(new.with(|stripe| stripe.doubled()), Vec::<String>::new());
    world.verify();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_is_shown_unlinked_and_linked_and_each_change_is_in_the_ledger() {
    let world = World::start(WorldOptions::default()).await;
    let mut odoo = world.odoo().await;
    let _daemon = world.daemon();
    world.streaming().await;
    let company = odoo.create_company("Linked", "linked@example.com", 1).await.unwrap();
    world.settled(PATIENCE).await;
    let id = format!("ERP-P-{company}");
    let shown = world.printed(&["identity", "show", &id]);
    let external =
        shown.lines().find(|line| line.contains("stripe customer cus_")).unwrap_or_else(|| panic!("{shown}"));
    let external = external.split_whitespace().find(|word| word.starts_with("cus_")).unwrap().to_owned();
    assert!(world.printed(&["identity", "show", &external]).contains(&id));
    world.printed(&["identity", "unlink", "--target", "stripe", "--object", "customer", &id]);
    assert!(!world.printed(&["identity", "show", &id]).contains("cus_"));
    world.printed(&["identity", "link", "--target", "stripe", "--object", "customer", &id, &external]);
    let calls = world.stripe.journal().calls.len();
    odoo.rename(company, "Linked Again").await.unwrap();
    world.settled(PATIENCE).await;
    assert_eq!(world.stripe.with(|stripe| stripe.customers().len()), 1);
    assert_eq!(world.stripe.journal().calls.len(), calls + 1, "an update of the linked object");
    let other = odoo.create_company("Other", "other@example.com", 1).await.unwrap();
    world.settled(PATIENCE).await;
    let taken = [
        "identity",
        "link",
        "--target",
        "stripe",
        "--object",
        "customer",
        &format!("ERP-P-{other}"),
        &external,
    ];
    assert_eq!(world.run(&taken).status.code(), Some(64), "it stands for another");
    let wrong = world.run(&["identity", "link", "--target", "strip", "--object", "customer", &id, &external]);
    assert_eq!(wrong.status.code(), Some(64));
    let operator = "select count(*) from entry where kind = 'operator' and convert_from(body, 'UTF8') ~ '\"action\":\"(un)?link\"'";
    assert_eq!(world.count(operator).await, 2);
    world.verify();
}

#[tokio::test(flavor = "multi_thread")]
async fn customers_that_stood_at_the_target_before_are_adopted_and_doubtful_ones_wait_for_a_person() {
    let world = World::start(WorldOptions::default()).await;
    world.edit_settings("connector = \"stripe\"", "connector = \"stripe\"\nadopt = true");
    let (sure, twin, first, second) = world.stripe.with(|stripe| {
        (
            stripe.made_by_hand("sure@example.com"),
            stripe.made_by_hand("twin@example.com"),
            stripe.made_by_hand("twice@example.com"),
            stripe.made_by_hand("twice@example.com"),
        )
    });
    let mut odoo = world.odoo().await;
    let _daemon = world.daemon();
    world.streaming().await;
    let known = odoo.create_company("Known", "sure@example.com", 1).await.unwrap();
    // Two of ours, one of theirs: one takes it, the other is made.
    odoo.client()
        .batch_execute("insert into res_partner (name, complete_name, email, is_company) select 'Twin', 'Twin', 'twin@example.com', true from generate_series(1, 2)")
        .await
        .unwrap();
    let doubtful = odoo.create_company("Doubtful", "twice@example.com", 1).await.unwrap();
    let fresh = odoo.create_company("Fresh", "fresh@example.com", 1).await.unwrap();
    world.settled(PATIENCE).await;
    let by_id = |id: i32| world.stripe.with(|stripe| stripe.customers()).get(&format!("ERP-P-{id}")).cloned();
    assert_eq!(by_id(known).unwrap()["id"], sure.as_str());
    assert_eq!(by_id(known).unwrap()["name"], "Known", "what is adopted is brought up to date");
    assert!(by_id(fresh).is_some());
    assert_eq!(by_id(doubtful), None);
    let twins: Vec<_> = world
        .stripe
        .with(|stripe| stripe.customers())
        .into_values()
        .filter(|customer| customer["name"] == "Twin")
        .collect();
    assert_eq!(twins.len(), 2, "{twins:?}");
    assert_eq!(twins.iter().filter(|customer| customer["id"] == twin.as_str()).count(), 1, "{twins:?}");
    let status = world.printed(&["status"]);
    let reason =
        format!("2 objects match by e-mail: {second}, {first}; choose with `tailwater identity link`");
    assert!(status.contains(&reason), "{status}");
    let id = format!("ERP-P-{doubtful}");
    world.printed(&["identity", "link", "--target", "stripe", "--object", "customer", &id, &second]);
    world.settled(PATIENCE).await;
    assert_eq!(by_id(doubtful).unwrap()["id"], second.as_str());
    assert_eq!(world.stripe.with(|stripe| stripe.doubled()), Vec::<String>::new());
    world.verify();
}
