//! How fast targets are spoken to: as set while it runs, as the targets say, and as they show. Measured at the targets.

use std::process::Command;
use std::time::Duration;

use tailwater::demo::vendor::journal::Journal;
use tailwater::demo::vendor::server::{Limit, VendorServer};
use tokio::time::sleep;

use crate::support::expected::{assert_same, expected, held};
use crate::support::plain::Plain;
use crate::support::{World, WorldOptions, eventually};

const PATIENCE: Duration = Duration::from_secs(90);

/// Companies in one transaction.
async fn companies(world: &World, count: usize) {
    let sql = format!(
        "with made as (
           insert into res_partner (name, is_company, email, active) select 'Many ' || n, true, 'many' || n || '@example.com', true
           from generate_series(1, {count}) n returning id)
         select count(*) from made"
    );
    let client = world.erp.client("erp").await.unwrap();
    client.batch_execute(&format!("begin; {sql}; update res_partner set commercial_partner_id = id where commercial_partner_id is null; commit")).await.unwrap();
}

async fn calls_reach(world: &World, count: usize) {
    eventually(PATIENCE, "calls", async || {
        let calls = world.stripe.journal().calls.len();
        if calls >= count { Ok(()) } else { Err(format!("{calls} calls; {}", world.log())) }
    })
    .await;
}

/// Calls in `(from, to]` seconds of the vendor's clock.
fn between(journal: &Journal, from: f64, to: f64) -> usize {
    journal.calls.iter().filter(|call| call.at_s > from && call.at_s <= to).count()
}

/// When `rate` calls per second are reached after `from`, over a quarter of a second.
fn reached(journal: &Journal, from: f64, rate: f64) -> Option<f64> {
    let after = journal.calls.iter().map(|call| call.at_s).filter(|at| *at > from);
    after.into_iter().find(|at| between(journal, at - 0.001, at + 0.25) as f64 >= rate * 0.25)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_that_is_set_holds_within_a_second_and_is_in_the_ledger() {
    let world = World::start(WorldOptions { stripe_quota: "20/s", ..WorldOptions::default() }).await;
    let _daemon = world.daemon();
    world.streaming().await;
    companies(&world, 600).await;
    calls_reach(&world, 20).await;
    let asked_s = world.stripe.now_s();
    world.printed(&["quota", "set", "stripe", "200/s"]);
    world.printed(&["quota", "set", "stripe", "endpoint", "200/s"]);
    let done_s = world.stripe.now_s();
    calls_reach(&world, 200).await;
    let faster_s = reached(&world.stripe.journal(), asked_s, 80.0).unwrap();
    println!(
        "bench quota_change_takes_effect {:.2} s bar < 1 {}",
        faster_s - done_s,
        if faster_s - done_s < 1.0 { "ok" } else { "short" }
    );
    assert!(faster_s - done_s < 1.0, "{asked_s} {done_s} {faster_s}");
    world.printed(&["quota", "set", "stripe", "5/s"]);
    let slower_s = world.stripe.now_s();
    sleep(Duration::from_millis(3_000)).await;
    let counted = between(&world.stripe.journal(), slower_s + 1.0, slower_s + 3.0);
    assert!(counted <= 12, "{counted} calls in two seconds at 5/s");
    let shown = world.printed(&["quota", "show", "stripe"]);
    assert!(shown.contains("account: 20/s; set to 5/s by") && shown.contains("process"), "{shown}");
    let reset = world.printed(&["quota", "reset", "stripe"]);
    assert!(reset.contains("account, endpoint: as the settings say"), "{reset}");
    world.printed(&["quota", "set", "stripe", "account", "1000/s,90000000/d"]);
    world.printed(&["quota", "set", "stripe", "endpoint", "1000/s"]);
    world.settled(PATIENCE).await;
    let sql = "select count(*) from entry where kind = 'operator'
               and convert_from(body, 'UTF8')::jsonb @> '{\"action\": \"quota\", \"target\": \"stripe\"}'
               and convert_from(body, 'UTF8')::jsonb ->> 'requested_by' like '%uid%'";
    assert_eq!(world.count(sql).await, 7);
    let erp = world.erp.client("erp").await.unwrap();
    assert_same(&held(&world), &expected(&erp, &[]).await);
    assert_eq!(world.stripe.with(|stripe| stripe.doubled()), Vec::<String>::new());
    for (arguments, what) in [
        (vec!["quota", "set", "stripe", "fast"], "`fast` is not a rate"),
        (vec!["quota", "set", "strip", "5/s"], "there is no target"),
        (vec!["quota", "set", "stripe", "nowhere", "5/s"], "has no limit"),
    ] {
        let refused = world.run(&arguments);
        assert_eq!(refused.status.code(), Some(64));
        assert!(String::from_utf8_lossy(&refused.stderr).contains(what), "{refused:?}");
    }
    world.verify();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_puts_other_rates_in_force_and_wrong_settings_change_nothing() {
    let world = World::start(WorldOptions { stripe_quota: "10/s", ..WorldOptions::default() }).await;
    let daemon = world.daemon();
    world.streaming().await;
    companies(&world, 300).await;
    calls_reach(&world, 10).await;
    let hang_up = || {
        let status = Command::new("kill").args(["-HUP", &daemon.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    };
    let settings = std::fs::read_to_string(&world.config).unwrap();
    world.edit_settings("\"10/s\"", "\"ten\"");
    hang_up();
    eventually(PATIENCE, "the refusal", async || {
        let log = world.log();
        if log.contains("not a rate") && log.contains("nothing has changed") { Ok(()) } else { Err(log) }
    })
    .await;
    std::fs::write(&world.config, settings.replace("\"10/s\"", "\"300/s\"")).unwrap();
    let asked_s = world.stripe.now_s();
    hang_up();
    calls_reach(&world, 150).await;
    let faster_s = reached(&world.stripe.journal(), asked_s, 100.0).unwrap();
    assert!(faster_s - asked_s < 1.0, "{asked_s} {faster_s}");
    world.settled(PATIENCE).await;
    let sql = "select count(*) from entry where kind = 'config'
               and convert_from(body, 'UTF8')::jsonb @> '{\"action\": \"reload\", \"requested_by\": \"SIGHUP\"}'";
    assert_eq!(world.count(sql).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_target_says_it_allows_is_never_exceeded_whatever_the_settings_say() {
    let world = World::start(WorldOptions {
        zendesk_quota: "60000/min",
        zendesk_limit: Limit { requests: 40, window_s: 10.0 },
        ..WorldOptions::default()
    })
    .await;
    world.add_settings("[targets.zendesk.quotas]");
    let _daemon = world.daemon();
    world.streaming().await;
    let mut odoo = world.odoo().await;
    // One by one, so that most go by themselves.
    for n in 0..60 {
        odoo.create_company(&format!("Told {n}"), &format!("told{n}@example.com"), 1).await.unwrap();
        sleep(Duration::from_millis(20)).await;
    }
    world.settled(PATIENCE).await;
    let journal = world.zendesk.journal();
    println!("calls to Zendesk by status {:?}", journal.by_status());
    assert_eq!(journal.by_status().get(&429), None, "{:?}", journal.by_status());
    let shown = world.printed(&["quota", "show", "zendesk"]);
    assert!(shown.contains("the target says 40"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_allows_less_than_it_says_is_found_out_at_the_price_of_few_refusals() {
    let world = World::start(WorldOptions {
        stripe_quota: "200/s",
        stripe_limit: Limit { requests: 25, window_s: 1.0 },
        ..WorldOptions::default()
    })
    .await;
    let _daemon = world.daemon();
    world.streaming().await;
    let count = 900;
    companies(&world, count).await;
    world.settled(Duration::from_secs(240)).await;
    let journal = world.stripe.journal();
    let refused = journal.by_status().get(&429).copied().unwrap_or_default();
    let share = refused as f64 / journal.calls.len() as f64;
    let seconds = journal.calls.last().unwrap().at_s - journal.calls[0].at_s;
    println!(
        "bench refused_in_a_storm {:.4} of 1 bar < 0.01 {}\n# {refused} of {} calls; {count} customers in {seconds:.0} s at 25/s allowed",
        share,
        if share < 0.01 { "ok" } else { "short" },
        journal.calls.len()
    );
    assert!(share <= 0.01, "{refused} of {}", journal.calls.len());
    assert!(seconds < 2.0 * count as f64 / 25.0, "{seconds} s");
    assert_eq!(world.stripe.with(|stripe| stripe.doubled()), Vec::<String>::new());
}

/// Two kinds of objects, one of them slow.
const TWO_SPEEDS: &str = "
format: 1
system: two-speeds
auth: { kind: bearer }
encoding: json
timeout_s: 5
concurrency: 16
limits:
  - { name: account, rate: 20/s }
  - { name: slow, rate: 4/s, when: \"object == 'slow'\" }
idempotency: { header: Idempotency-Key, window_s: 3600 }
outcomes:
  - { when: 'status >= 200 && status < 300', outcome: applied }
  - { when: 'status >= 400', outcome: uncertain }
objects:
  slow:
    body: { ref: event.id }
    create: { request: POST /keyed/things, id: answer.id }
    update: { request: 'PUT /keyed/things/{external_id}', id: answer.id }
    delete: 'DELETE /keyed/things/{external_id}'
  quick:
    body: { name: event.name }
    upsert: { request: 'PUT /upsert/things/{event.id}', id: answer.id }
    delete: 'DELETE /upsert/things/{event.id}'
";

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_limit_of_its_own_holds_up_nothing_else() {
    let options = WorldOptions { data: Some("wide"), odoo_schema: false, ..WorldOptions::default() };
    let world = World::start(options).await;
    let limit = Limit { requests: 1_000, window_s: 1.0 };
    let vendor = VendorServer::start(Plain::default(), limit).await.unwrap();
    world.add_connector("two-speeds", TWO_SPEEDS);
    world.add_target("two-speeds", &vendor.url(), "");
    let route = |object: &str| {
        format!("  - {{ event: customer.v1, system: two-speeds, object: {object}, when: \"true\" }}\n")
    };
    let routes = format!("format: 1\nroutes:\n{}{}", route("slow"), route("quick"));
    std::fs::write(world.directory.path().join("mappings/routes/routes.yaml"), routes).unwrap();
    let _daemon = world.daemon();
    world.streaming().await;
    let erp = world.erp.client("erp").await.unwrap();
    erp.batch_execute("select wide_rows(1, 40)").await.unwrap();
    eventually(PATIENCE, "the quick ones", async || {
        let count = vendor.with(|vendor| vendor.count("upsert"));
        if count == 40 { Ok(()) } else { Err(format!("{count}; {}", world.log())) }
    })
    .await;
    let slow = vendor.with(|vendor| vendor.count("keyed"));
    println!("# {slow} of 40 slow ones were there when all quick ones were");
    assert!(slow < 20, "{slow}: the quick ones waited for the slow ones");
    world.settled(PATIENCE).await;
    assert_eq!(vendor.with(|vendor| (vendor.count("keyed"), vendor.doubled("keyed"))), (40, Vec::new()));
    let journal = vendor.journal();
    let first = journal.calls[0].at_s;
    let last = journal.calls.iter().map(|call| call.at_s).fold(first, f64::max);
    for second in 0..=(last - first) as usize {
        let from = first + second as f64 - 0.001;
        let slow = journal.calls.iter().filter(|call| call.line.contains("/keyed/"));
        let slow = slow.filter(|call| call.at_s > from && call.at_s <= from + 1.0).count();
        assert!(slow <= 4, "{slow} within a second");
    }
}
