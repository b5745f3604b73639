//! What waits for a person, as a list of work: grouped by cause, delivered again, resolved, given up, all of it in the ledger.

use std::time::Duration;
use tailwater::demo::private::write_secret;

use tailwater::demo::vendor::faults::Faults;
use tailwater::demo::vendor::server::{Limit, VendorServer};

use crate::support::plain::Plain;
use crate::support::{World, WorldOptions, eventually};

const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn what_a_target_refused_is_grouped_and_delivered_again_as_it_is_now() {
    let world = World::start(WorldOptions::default()).await;
    let _daemon = world.daemon();
    world.streaming().await;
    let mut odoo = world.odoo().await;
    world.stripe.with(|stripe| stripe.refuse_name("Refused"));
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.push(odoo.create_company("Refused", &format!("refused{n}@example.com"), 1).await.unwrap());
    }
    world.settled(PATIENCE).await;
    let listed = world.printed(&["deliveries", "list", "--target", "stripe"]);
    assert!(listed.contains("stripe customer: 5 rejected, refused: status 400"), "{listed}");
    assert!(
        listed.contains("tailwater deliveries retry --target stripe --object customer --cause refused"),
        "{listed}"
    );
    let each = world.printed(&["deliveries", "list", "--target", "stripe", "--each", "10", "--json"]);
    assert_eq!(each.lines().count(), 5, "{each}");
    let first: serde_json::Value = serde_json::from_str(each.lines().next().unwrap()).unwrap();
    let number = first["delivery"].to_string();
    let story = world.printed(&["deliveries", "show", &number]);
    assert!(story.contains("\"kind\":\"attempt\"") && story.contains("\"class\":\"rejected\""), "{story}");
    assert!(!story.contains("refused0@example.com"), "{story}");
    // One is corrected in the ERP: the newer state settles the older one.
    odoo.rename(ids[0], "Corrected").await.unwrap();
    world.settled(PATIENCE).await;
    assert_eq!(world.count("select count(*) from delivery where state = 'rejected'").await, 4);
    // The target has changed its mind.
    world.stripe.with(|stripe| stripe.refuse_name("nobody is called so"));
    let done = world.printed(&[
        "deliveries",
        "retry",
        "--target",
        "stripe",
        "--cause",
        "refused",
        "--reason",
        "allowed now",
    ]);
    assert!(done.contains("4 deliveries are delivered again"), "{done}");
    world.settled(PATIENCE).await;
    assert_eq!(world.stripe.with(|stripe| stripe.customers().len()), 5);
    assert_eq!(world.printed(&["deliveries", "list"]), "nothing is owed, and nothing waits for a person\n");
    let sql = "select count(*) from entry where kind = 'operator'
               and convert_from(body, 'UTF8')::jsonb @> '{\"action\": \"retry\", \"reason\": \"allowed now\"}'
               and jsonb_array_length(convert_from(body, 'UTF8')::jsonb -> 'deliveries') = 4";
    assert_eq!(world.count(sql).await, 1);
    assert_eq!(world.stripe.with(|stripe| stripe.doubled()), Vec::<String>::new());
    for (arguments, what) in [
        (vec!["deliveries", "retry", "--reason", "all"], "say which"),
        (vec!["deliveries", "show", "999999"], "there is no delivery"),
        (vec!["deliveries", "list", "--state", "lost"], "there is no state"),
        (vec!["deliveries", "resolve", "1", "--applied", "--reason", "seen"], "does not wait for that"),
    ] {
        let refused = world.run(&arguments);
        assert_eq!(refused.status.code(), Some(64), "{refused:?}");
        assert!(String::from_utf8_lossy(&refused.stderr).contains(what), "{refused:?}");
    }
    world.verify();
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_credentials_pause_the_target_at_once_and_burn_no_delivery() {
    let world = World::start(WorldOptions::default()).await;
    let key = world.directory.path().join("stripe.key");
    let right = std::fs::read_to_string(&key).unwrap();
    write_secret(&key, "sk_test_wrong").unwrap();
    let _daemon = world.daemon();
    world.streaming().await;
    let mut odoo = world.odoo().await;
    for n in 0..30 {
        odoo.create_company(&format!("Locked out {n}"), &format!("out{n}@example.com"), 1).await.unwrap();
    }
    eventually(PATIENCE, "the pause", async || {
        let log = world.log();
        if log.contains("refuses our credentials") { Ok(()) } else { Err(log) }
    })
    .await;
    eventually(PATIENCE, "the other target", async || {
        let there = world.zendesk.with(|zendesk| zendesk.organizations().len());
        if there == 30 { Ok(()) } else { Err(format!("{there}")) }
    })
    .await;
    let refused = world.stripe.journal().calls.len();
    assert!(refused <= 32, "{refused} requests with a key that is refused");
    assert_eq!(world.count("select count(*) from delivery where target = 'stripe' and open").await, 30);
    let shown = world.printed(&["quota", "show", "stripe"]);
    assert!(shown.contains("paused: unauthorised"), "{shown}");
    write_secret(&key, right).unwrap();
    world.settled(PATIENCE).await;
    assert_eq!(world.stripe.with(|stripe| stripe.customers().len()), 30);
    assert_eq!(world.stripe.with(|stripe| stripe.doubled()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_million_parked_deliveries_are_listed_and_decided_on_in_bounded_memory() {
    let world = World::start(WorldOptions::default()).await;
    let count = if std::env::var_os("TAILWATER_BENCH").is_some() { 1_000_000 } else { 30_000 };
    let mut daemon = world.daemon();
    world.streaming().await;
    let client = world.ledger_client().await;
    let fill = format!(
        "insert into delivery (event_seq, event_month, target, object, canonical_id, operation, fact, state, cause, reason)
         select 1, (select month from tree), 'stripe', 'customer', 'ERP-P-' || n, 'upsert', false, 'rejected', 'refused', 'status 400 parameter_invalid'
         from generate_series(1, {count}) n"
    );
    client.batch_execute(&fill).await.unwrap();
    let listed = world.printed(&["deliveries", "list"]);
    assert!(listed.contains(&format!("stripe customer: {count} rejected, refused")), "{listed}");
    let before = crate::bench::memory_mib(daemon.child.id());
    let output = world.run(&[
        "deliveries",
        "discard",
        "--target",
        "stripe",
        "--cause",
        "refused",
        "--reason",
        "test data",
    ]);
    // With a million the command says that the daemon is still at it.
    assert!(output.status.success() || output.status.code() == Some(75), "{output:?}");
    eventually(Duration::from_secs(300), "all of them", async || {
        let sql = "select count(*) from delivery where state = 'rejected'";
        let left = world.count(sql).await;
        if left == 0 { Ok(()) } else { Err(format!("{left} left; {}", world.log())) }
    })
    .await;
    let after = crate::bench::memory_mib(daemon.child.id());
    println!(
        "# {count} deliveries given up; the daemon's memory {before:.0} MiB before, {after:.0} MiB after"
    );
    assert!(after < before + 64.0, "{before} {after}");
    assert!(daemon.terminate().success());
    world.verify();
}

/// Companies that can only be made, and people who refer to them.
const DESK: &str = "
format: 1
system: desk
auth: { kind: bearer }
encoding: json
timeout_s: 2
concurrency: 4
outcomes:
  - { when: 'status >= 200 && status < 300', outcome: applied }
  - { when: 'status >= 500', outcome: uncertain }
  - { when: 'status >= 400', outcome: rejected }
objects:
  company:
    body: { ref: event.id, name: event.name }
    create: { request: POST /bare/things, id: answer.id }
    update: { request: 'PUT /upsert/things/{external_id}', id: answer.id }
    delete: 'DELETE /upsert/things/{external_id}'
  person:
    body: { company: references.company }
    upsert: { request: 'PUT /upsert/things/{event.id}', id: answer.id }
    delete: 'DELETE /upsert/things/{event.id}'
";

const DESK_ROUTES: &str = "
format: 1
routes:
  - { event: customer.v1, system: desk, object: company, when: 'true' }
  - event: contact.v1
    system: desk
    object: person
    when: 'true'
    requires: [{ object: company, id: event.customer }]
";

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_doubt_is_resolved_by_a_person_and_what_waited_for_it_goes_on() {
    let world = World::start(WorldOptions::default()).await;
    let limit = Limit { requests: 1_000, window_s: 1.0 };
    let vendor = VendorServer::start(Plain::default(), limit).await.unwrap();
    let mappings = world.own_mappings();
    world.add_connector("desk", DESK);
    std::fs::write(mappings.join("routes/default.yaml"), DESK_ROUTES).unwrap();
    world.add_target("desk", &vendor.url(), "quota = \"100/s\"");
    let _daemon = world.daemon();
    world.streaming().await;
    let mut odoo = world.odoo().await;
    let mut doubtful = Vec::new();
    for (name, faults) in [
        ("Carried out", Faults { swallow: 1.0, ..Faults::default() }),
        ("Cut off", Faults { reset: 1.0, ..Faults::default() }),
    ] {
        vendor.set_faults(faults);
        let company = odoo.create_company(name, "doubt@example.com", 1).await.unwrap();
        let parked =
            "select coalesce(max(id) filter (where state = 'parked' and cause = 'doubt'), 0) from delivery";
        eventually(PATIENCE, "the doubt", async || {
            let id = world.count(parked).await;
            if id > doubtful.last().map_or(0, |(_, id)| *id) { Ok(()) } else { Err(world.log()) }
        })
        .await;
        doubtful.push((company, world.count(parked).await));
    }
    vendor.set_faults(Faults::default());
    for (company, _) in &doubtful {
        odoo.create_contact(*company, "Somebody", &format!("{company}@example.com")).await.unwrap();
    }
    world.settled(PATIENCE).await;
    let told = "select count(*) from delivery where object = 'person' and state = 'applied'";
    assert_eq!(world.count(told).await, 2, "people go without their companies");
    let listed = world.printed(&["deliveries", "list", "--target", "desk"]);
    assert!(listed.contains("desk company: 2 parked, doubt"), "{listed}");
    let [(carried_out, first), (_, second)] = doubtful[..] else { panic!("{doubtful:?}") };
    let resolve = |id: i64, how: &[&str]| {
        let id = id.to_string();
        world.printed(&[&["deliveries", "resolve", &id], how, &["--reason", "looked there"]].concat());
    };
    let refused = world.run(&["deliveries", "resolve", &first.to_string(), "--applied", "--reason", "there"]);
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("its id at desk has to be known"),
        "{refused:?}"
    );
    resolve(first, &["--applied", "seen-there"]);
    resolve(second, &["--not-applied"]);
    world.settled(PATIENCE).await;
    assert_eq!(world.count(told).await, 4, "each person is told again, with the company");
    let known = "select count(*) from identity where system = 'desk' and object = 'company' and external_id = 'seen-there'";
    assert_eq!(world.count(known).await, 1);
    assert_eq!(vendor.with(|vendor| (vendor.count("bare"), vendor.doubled("bare"))), (2, Vec::new()));
    odoo.rename(carried_out, "Renamed").await.unwrap();
    world.settled(PATIENCE).await;
    assert!(vendor.journal().calls.iter().any(|call| call.line == "PUT /upsert/things/seen-there"));
    assert_eq!(world.printed(&["deliveries", "list"]), "nothing is owed, and nothing waits for a person\n");
    world.verify();
}
