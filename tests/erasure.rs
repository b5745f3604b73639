//! Who is forgotten is forgotten under every name, in every row, and by what is under way.

use std::time::Duration;

use tailwater::config::load;
use tailwater::demo::vendor::faults::Faults;
use tailwater::dispatch::deliver::Delivery;
use tailwater::dispatch::plan::{Plan, plan};
use tailwater::ledger::Ledger;
use tailwater::ledger::command::{Asked, Command, carry_out};
use tailwater::ledger::erase::Erasure;
use tailwater::ledger::outbox::by_ids;
use tailwater::ops::commands::Waves;
use tailwater::prepare::prepare;

use crate::personal::{dump, world};
use crate::polling::{STRIPE_POLLED, await_events, events};
use crate::support::{World, eventually};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);
const ZENDESK_POLLED: &str = "kind = \"poll\"\ntarget = \"zendesk\"\nevery = \"1s\"\nshare = 100\n";

/// Planted texts that a dump of the ledger has.
fn found(world: &World, planted: &[&'static str]) -> Vec<&'static str> {
    let dumped = dump(world, &[]);
    planted.iter().copied().filter(|text| dumped.contains(text)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_forgotten_is_so_under_the_name_of_before_and_with_tickets_about_them() {
    forgotten_everywhere(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_forgotten_is_so_in_archived_months_too() {
    forgotten_everywhere(true).await;
}

/// Puts everything that was written so far into a file.
async fn archive(world: &World) {
    // The next month begins.
    let tamperer = world.tamperer().await;
    tamperer.batch_execute("update tree set month = (month + interval '1 month')::date").await.unwrap();
    let starts = "select count(*) from entry where kind = 'start' and month = (select month from tree)";
    let mut daemon = world.daemon();
    eventually(
        PATIENCE,
        "the start",
        async || {
            if world.count(starts).await > 0 { Ok(()) } else { Err(world.log()) }
        },
    )
    .await;
    assert!(daemon.terminate().success(), "{}", world.log());
    let (out, url) = (world.directory.path().join("archive"), world.ledger.url("postgres", "tailwater"));
    std::fs::create_dir(&out).unwrap();
    let out = out.to_str().unwrap();
    let said = world.printed(&["ledger", "archive", "--before", "2099-01", "--out", out, "--url", &url]);
    assert!(said.contains(": entries 1 to "), "{said}");
    let tickets = "select count(*) from entry where refs && array['ticket/1', 'ticket/2']";
    assert_eq!(world.count(tickets).await, 0);
}

async fn forgotten_everywhere(archived: bool) {
    let world = world().await;
    let url = world.ledger.url("postgres", "tailwater");
    world.printed_without_settings(&["ledger", "migrate", "--url", &url]);
    world.add_source("stripe", STRIPE_POLLED);
    world.add_source("zendesk", ZENDESK_POLLED);
    world.edit_settings("quota = \"60000/min\"", "quota = \"60000/min\"\nquotas = { export = \"1000/s\" }");
    let mut daemon = world.daemon();
    world.streaming().await;
    let mut odoo = world.odoo().await;
    let company = odoo.create_company("Qanary Works", "qanary.works@example.test", 1).await.unwrap();
    let other = odoo.create_company("Uqanary Works", "another@example.test", 1).await.unwrap();
    let (id, another) = (format!("ERP-P-{company}"), format!("ERP-P-{other}"));
    world.settled(PATIENCE).await;
    // Somebody is known at Stripe before it is known that they are the same.
    let by_hand = world.stripe.with(|stripe| stripe.made_by_hand("qanary.before@example.test"));
    let before = format!("STRIPE-P-{by_hand}");
    eventually(PATIENCE, "the customer made by hand", async || {
        let told = await_events(&world, "stripe", "customer.v1", 1).await;
        if told.iter().any(|event| event["id"] == before.as_str()) { Ok(()) } else { Err(world.log()) }
    })
    .await;
    // Tickets of both; whose they are is in no row of them, and not known from the beginning.
    let ticket_of = async |customer: &str, text: &str| {
        let ticket = world.zendesk.with(|zendesk| zendesk.exports.ticket(4_711, None, text, "normal"));
        let about = format!("ZENDESK-K-{ticket}");
        let told = async |customer: &Value| {
            eventually(PATIENCE, "the ticket", async || {
                let told = events(&world, "zendesk", "support_case.v1").await;
                let is_there = told
                    .iter()
                    .any(|case| case["id"] == about.as_str() && case["data"]["customer"] == *customer);
                if is_there { Ok(()) } else { Err(format!("{customer}: {told:?}")) }
            })
            .await;
        };
        told(&Value::Null).await;
        world.zendesk.with(|zendesk| {
            let organization = zendesk.organizations()[customer]["id"].clone();
            zendesk.exports.change_ticket(ticket, json!({"organization_id": organization}));
        });
        told(&customer.into()).await;
        ticket.to_string()
    };
    // Somebody else has the number at Zendesk that the company has among organizations.
    let number = world.zendesk.with(|zendesk| {
        let number = zendesk.organizations()[&id]["id"].as_u64().unwrap();
        let of = zendesk.organizations()[&another]["id"].clone();
        let user = json!({"id": number, "name": "A stranger", "email": "stranger@example.test", "external_id": null,
                          "role": "end-user", "active": true, "tags": [], "organization_id": of});
        zendesk.exports.note("users", number, user);
        number
    });
    await_events(&world, "zendesk", "contact.v1", 1).await;
    let ticket = ticket_of(&id, "qanary ticket text").await;
    let others = ticket_of(&another, "uqanary ticket text").await;
    world.settled(PATIENCE).await;
    assert!(daemon.terminate().success());
    let opened = |ticket: &str| world.printed(&["ledger", "history", "ticket", ticket, "--unseal"]);
    assert!(opened(&ticket).contains("qanary ticket text"), "{}", opened(&ticket));
    if archived {
        archive(&world).await;
    }
    let planted =
        ["Qanary Works", "qanary.works@example.test", "qanary.before@example.test", "qanary ticket text"];
    assert_eq!(found(&world, &planted), planted, "the test would find them");
    world.printed(&["identity", "link", "--target", "stripe", "--object", "customer", &id, &by_hand]);
    // Held under any of its names it stays.
    let first_name = format!("ZENDESK-K-{ticket}");
    world.printed(&["ledger", "hold", "add", "case-9", "--about", &first_name, "--reason", "a court asks"]);
    let refused = world.run(&["ledger", "erase", &id, "--reason", "asked for", "--now"]);
    assert!(
        refused.status.code() == Some(78) && String::from_utf8_lossy(&refused.stderr).contains("case-9"),
        "{refused:?}"
    );
    world.printed(&["ledger", "hold", "release", "case-9", "--reason", "it is over"]);
    let erased = world.printed(&["ledger", "erase", &id, "--reason", "asked for", "--now"]);
    assert!(erased.contains(&format!("so is what it was called before: {before}\n")), "{erased}");
    let keys = "select array(select subject from tailwater_keys.subject_key order by 1)";
    let kept: Vec<String> = world.ledger_client().await.query_one(keys, &[]).await.unwrap().get(0);
    for gone in [id.clone(), before, format!("zendesk:ticket/{ticket}"), format!("ZENDESK-K-{ticket}")] {
        assert!(!kept.contains(&gone), "{gone}: {kept:?}");
    }
    assert!(kept.contains(&format!("ZENDESK-U-{number}")), "{kept:?}");
    assert!(kept.contains(&another) && kept.contains(&format!("zendesk:ticket/{others}")), "{kept:?}");
    let left = found(&world, &planted);
    // What begins with another letter is another company's.
    assert!(left.iter().all(|text| *text == "qanary ticket text"), "{left:?}");
    assert_eq!(
        dump(&world, &[]).matches("qanary ticket text").count(),
        dump(&world, &[]).matches("uqanary ticket text").count()
    );
    if archived {
        world.verify();
        return;
    }
    assert!(
        opened(&ticket).contains("(sealed)") && !opened(&ticket).contains("qanary"),
        "{}",
        opened(&ticket)
    );
    assert!(opened(&others).contains("uqanary ticket text"), "{}", opened(&others));
    world.verify();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_taken_up_before_its_subject_was_forgotten_does_not_leave_any_more() {
    let world = world().await;
    world.stripe.set_faults(Faults { down: true, ..Faults::default() });
    let mut daemon = world.daemon();
    world.streaming().await;
    let mut odoo = world.odoo().await;
    let company = odoo.create_company("Qanary Late", "qanary.late@example.test", 1).await.unwrap();
    let id = format!("ERP-P-{company}");
    let owed =
        format!("select count(*) from delivery where target = 'stripe' and canonical_id = '{id}' and open");
    eventually(PATIENCE, "the delivery", async || match world.count(&owed).await {
        1 => Ok(()),
        count => Err(format!("{count}; {}", world.log())),
    })
    .await;
    assert!(daemon.terminate().success());
    // A test is no process of ours that has seen to this.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // As another process has it in hand when the order comes.
    let config = load(&world.config, std::iter::empty()).unwrap();
    let prepared = prepare(config, &Waves::default()).unwrap();
    let ledger = Ledger::open(&prepared.ledger, &prepared.master).await.unwrap();
    let sql = "select id from delivery where target = 'stripe' and canonical_id = $1 and open";
    let delivery: i64 = world.ledger_client().await.query_one(sql, &[&id]).await.unwrap().get(0);
    let due = by_ids(&ledger, &[delivery]).await.unwrap().remove(&delivery).unwrap();
    assert!(due.event.to_string().contains("Qanary Late"), "in clear, for the request");
    let target = prepared.targets.iter().find(|target| target.name == "stripe").unwrap().clone();
    let erasure = Erasure {
        subject: id.clone(),
        reason: "asked for".into(),
        also: Vec::new(),
        rows: Vec::new(),
        fields: Vec::new(),
    };
    let asked = Asked {
        id: 0,
        command: Command::Erase(erasure),
        requested_by: "a test".into(),
        peer_uid: None,
        role: "tailwater".into(),
    };
    carry_out(ledger.reader(), ledger.writer(), asked, || {}).await.unwrap();
    world.stripe.set_faults(Faults::default());
    let calls = world.stripe.calls();
    let planned = plan(&target.connector, false, &due, jiff::Timestamp::now(), &|_| None).unwrap();
    assert!(matches!(planned, Plan::Send { .. }), "{planned:?}");
    Delivery::new(ledger.clone(), target, due, None).run(planned).await.unwrap();
    assert_eq!(world.stripe.calls(), calls, "nothing left");
    let state = format!(
        "select count(*) from delivery where id = {delivery} and state = 'superseded' and request is null"
    );
    assert_eq!(world.count(&state).await, 1);
    for table in ["reservation", "wish"] {
        assert_eq!(
            world.count(&format!("select count(*) from {table} where canonical_id = '{id}'")).await,
            0,
            "{table}"
        );
    }
    let told = "select count(*) from entry where kind = 'outcome' and convert_from(body, 'UTF8')::jsonb ->> 'reason' = 'erased by an operator'";
    assert_eq!(world.count(told).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_opened_any_more_is_parked_and_says_why() {
    let world = world().await;
    world.stripe.set_faults(Faults { down: true, ..Faults::default() });
    let mut daemon = world.daemon();
    world.streaming().await;
    let mut odoo = world.odoo().await;
    let company = odoo.create_company("Qanary Locked", "qanary.locked@example.test", 1).await.unwrap();
    let owed =
        format!("select count(*) from delivery where target = 'stripe' and canonical_id = 'ERP-P-{company}'");
    eventually(PATIENCE, "the delivery", async || match world.count(&owed).await {
        1 => Ok(()),
        count => Err(format!("{count}; {}", world.log())),
    })
    .await;
    assert!(daemon.terminate().success());
    let tamperer = world.tamperer().await;
    // As where a copy of the ledger is put back without these keys.
    tamperer.batch_execute("delete from tailwater_keys.subject_key; update delivery set request = null, state = 'pending' where open").await.unwrap();
    world.stripe.set_faults(Faults::default());
    let calls = world.stripe.calls();
    let mut daemon = world.daemon();
    world.settled(PATIENCE).await;
    let listed = world.printed(&["deliveries", "list"]);
    assert!(listed.contains("its subject was forgotten"), "{listed}");
    assert_eq!(world.stripe.calls(), calls);
    assert!(daemon.terminate().success());
}

/// Several in one request that waits for its turn: only whoever is forgotten meanwhile is left out.
#[tokio::test(flavor = "multi_thread")]
async fn of_many_in_one_request_only_who_was_forgotten_is_left_out() {
    let world = world().await;
    world.edit_settings("quota = \"60000/min\"", "quota = \"1/h\"");
    let mut daemon = world.daemon();
    world.streaming().await;
    // In one transaction, so that they are owed at once.
    let erp = world.erp.client("erp").await.unwrap();
    erp.batch_execute(
        "begin;
         insert into res_partner (name, complete_name, email, is_company)
           select 'Qanary ' || n, 'Qanary ' || n, 'qanary' || n || '@example.test', true from generate_series(1, 6) n;
         update res_partner set commercial_partner_id = id where name like 'Qanary %';
         commit",
    )
    .await
    .unwrap();
    let rows = erp.query("select id from res_partner where name like 'Qanary %'", &[]).await.unwrap();
    let companies: Vec<i32> = rows.iter().map(|row| row.get(0)).collect();
    let together =
        "select count(*) from bulk_call c cross join unnest(c.deliveries) where c.state = 'sending'";
    eventually(PATIENCE, "the bulk request", async || match world.count(together).await {
        count if count >= 4 => Ok(()),
        count => Err(format!("{count}; {}", world.log())),
    })
    .await;
    let among = "select split_part(d.canonical_id, '-', 3)::int from bulk_call c cross join unnest(c.deliveries) u(id)
                 join delivery d on d.id = u.id order by 1 limit 1";
    let company: i32 = world.ledger_client().await.query_one(among, &[]).await.unwrap().get(0);
    let id = format!("ERP-P-{company}");
    world.printed(&["ledger", "erase", &id, "--reason", "asked for", "--now"]);
    world.printed(&["quota", "set", "zendesk", "60000/min"]);
    world.settled(PATIENCE).await;
    let organizations = world.zendesk.with(|zendesk| zendesk.organizations());
    assert!(!organizations.contains_key(&id), "{organizations:?}");
    for other in companies.iter().filter(|other| **other != company) {
        assert!(organizations.contains_key(&format!("ERP-P-{other}")), "{other}: {organizations:?}");
    }
    let wrong = format!(
        "select count(*) from delivery where reason = 'erased by an operator' and canonical_id <> '{id}'"
    );
    assert_eq!(world.count(&wrong).await, 0);
    let told = format!("select count(*) from entry where kind = 'outcome' and convert_from(body, 'UTF8')::jsonb ->> 'reason' = 'erased by an operator'
                          and convert_from(body, 'UTF8')::jsonb ->> 'id' <> '{id}'");
    assert_eq!(world.count(&told).await, 0);
    assert!(daemon.terminate().success());
    world.verify();
}
