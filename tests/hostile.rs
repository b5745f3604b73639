//! What somebody may do to us from outside, fault by fault: the ERP's roles, its database, vendors, local users.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tailwater::demo::vendor::Incoming;
use tailwater::demo::vendor::server::{Limit, Raw, VendorServer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::polling::{STRIPE_POLLED, await_events, events};
use crate::support::plain::Plain;
use crate::support::world::{STRIPE_KEY, ZENDESK_KEY};
use crate::support::{World, WorldOptions, eventually};

const PATIENCE: Duration = Duration::from_secs(60);

/// What `tailwater check` says, and its exit code.
fn check(world: &World) -> (String, Option<i32>) {
    let output = world.run(&["check"]);
    let text = [output.stdout, output.stderr].concat();
    (String::from_utf8_lossy(&text).into_owned(), output.status.code())
}

fn peak_kb(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_others_unmapped_columns_and_huge_values_cost_no_memory() {
    let world = World::start(WorldOptions::default()).await;
    let daemon = world.daemon();
    world.streaming().await;
    let erp = world.erp.client("erp").await.unwrap();
    let mut odoo = world.odoo().await;
    // Anybody may write one, without a right on anything.
    erp.batch_execute(
        "create role nobody login; set role nobody;
         select pg_logical_emit_message(false, 'x', repeat('a', 400 << 20));
         select pg_logical_emit_message(true, 'tailwater', repeat('a', 100 << 20)); reset role",
    )
    .await
    .unwrap();
    let unmapped = odoo.create_company("Unmapped", "u@example.test", 1).await.unwrap();
    erp.execute(
        "update res_partner set comment = repeat('b', 300 << 20), city = 'There' where id = $1",
        &[&unmapped],
    )
    .await
    .unwrap();
    let mapped = odoo.create_company("Mapped", "m@example.test", 1).await.unwrap();
    erp.execute("update res_partner set street = repeat('c', 100 << 20) where id = $1", &[&mapped])
        .await
        .unwrap();
    // It is unchanged and not sent any more; nobody asks the ERP for it.
    erp.execute("update res_partner set city = 'Later' where id = $1", &[&mapped]).await.unwrap();
    let behind = odoo.create_company("Behind", "b@example.test", 1).await.unwrap();
    eventually(PATIENCE, "what is behind", async || {
        let customers = world.stripe.with(|stripe| stripe.customers());
        let city =
            customers.get(&format!("ERP-P-{unmapped}")).map(|customer| customer["address"]["city"].clone());
        match (customers.contains_key(&format!("ERP-P-{behind}")), city) {
            (true, Some(city)) if city == "There" => Ok(()),
            other => Err(format!("{other:?} {}", world.log())),
        }
    })
    .await;
    let reason = "select count(*) from delivery where state = 'parked' and canonical_id = $1
                  and reason like '%column \"street\" has 104 MB%'";
    let ledger = world.ledger_client().await;
    let parked: i64 = ledger.query_one(reason, &[&format!("ERP-P-{mapped}")]).await.unwrap().get(0);
    assert!(parked > 0);
    let peak = peak_kb(daemon.child.id());
    println!("peak {} MB", peak >> 10);
    assert!(peak < 512 << 10, "{peak} kB");
    // A load reads it no more than the stream does.
    world.printed(&["source", "reread", "--source", "erp", "--table", "res_partner"]);
    eventually(PATIENCE, "the load", async || {
        let open = world.count("select count(*) from load where state <> 'done'").await;
        if open == 0 { Ok(()) } else { Err(world.log()) }
    })
    .await;
    let peak = peak_kb(daemon.child.id());
    assert!(peak < 512 << 10, "{peak} kB");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_many_rows_is_emptied_in_slices_and_what_was_written_afterwards_stays() {
    let rows = 20_000;
    let world =
        World::start(WorldOptions { data: Some("wide"), odoo_schema: false, ..WorldOptions::default() })
            .await;
    let erp = world.erp.client("erp").await.unwrap();
    let sql = format!("select wide_rows(1, {rows})");
    erp.batch_execute(&sql).await.unwrap();
    let mut daemon = world.daemon();
    world.streaming_within(Duration::from_secs(120)).await;
    daemon.kill();
    let daemon = world.process("capture", &[]);
    erp.batch_execute(
        "begin; truncate wide; select setval('wide_id_seq', 1, false); select wide_rows(1, 5); commit",
    )
    .await
    .unwrap();
    let gone = "select count(*) from entry where kind = 'event' and convert_from(body, 'utf8')::jsonb ->> 'op' = 'delete'";
    eventually(Duration::from_secs(120), "the deletions", async || {
        let found = world.count(gone).await;
        if found == rows - 5 { Ok(()) } else { Err(format!("{found}: {}", world.log())) }
    })
    .await;
    assert_eq!(world.count("select count(*) from image where relation like '%wide'").await, 5);
    assert!(peak_kb(daemon.child.id()) < 512 << 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_of_a_transaction_that_was_open_when_its_table_was_published_arrives() {
    let world = World::start(WorldOptions::default()).await;
    let mut daemon = world.daemon();
    world.streaming().await;
    let admin = world.erp.client("erp").await.unwrap();
    admin.batch_execute("alter publication tailwater drop table res_partner").await.unwrap();
    let _ = daemon.terminate();
    let mut open = world.erp.client("erp").await.unwrap();
    let transaction = open.transaction().await.unwrap();
    let sql = "insert into res_partner (name, complete_name, is_company, email) values ('InFlight', 'InFlight', true, 'f@example.test')
               returning id";
    let id: i32 = transaction.query_one(sql, &[]).await.unwrap().get(0);
    admin.batch_execute("alter publication tailwater add table res_partner").await.unwrap();
    let _daemon = world.daemon();
    eventually(PATIENCE, "the load", async || {
        let reading = world.count("select count(*) from load where state = 'reading'").await;
        if reading > 0 { Ok(()) } else { Err(world.log()) }
    })
    .await;
    transaction.commit().await.unwrap();
    eventually(PATIENCE, "the row", async || {
        let there = world.stripe.with(|stripe| stripe.customers().contains_key(&format!("ERP-P-{id}")));
        if there { Ok(()) } else { Err(world.log()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_gone_with_one_partition_is_gone() {
    let world =
        World::start(WorldOptions { data: Some("wide"), odoo_schema: false, ..WorldOptions::default() })
            .await;
    world.edit_settings("slot = \"tailwater\"", "slot = \"tailwater\"\nrecheck = \"1s\"");
    let erp = world.erp.client("erp").await.unwrap();
    erp.batch_execute(
        "drop publication tailwater; alter table wide rename to flat;
         create table wide (like flat including defaults, primary key (id)) partition by range (id);
         create table wide_a partition of wide for values from (0) to (100);
         create table wide_b partition of wide for values from (100) to (200); select wide_rows(1, 1);
         insert into wide (id, name, is_company, active) values (150, 'Second', true, true)",
    )
    .await
    .unwrap();
    world.prepare_source().await;
    let _daemon = world.daemon();
    world.streaming().await;
    world.settled(PATIENCE).await;
    assert!(world.stripe.with(|stripe| stripe.customers().contains_key("ERP-W-150")));
    erp.batch_execute("truncate wide_b").await.unwrap();
    eventually(PATIENCE, "the end of it", async || {
        let customers = world.stripe.with(|stripe| stripe.customers());
        if customers.contains_key("ERP-W-150") || customers.len() != 1 { Err(world.log()) } else { Ok(()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_type_that_is_new_is_read_and_stops_nothing() {
    let world = World::start(WorldOptions::default()).await;
    world.edit_settings("slot = \"tailwater\"", "slot = \"tailwater\"\nbinary = true");
    let mut daemon = world.daemon();
    world.streaming().await;
    let mut odoo = world.odoo().await;
    let id = odoo.create_company("Domain", "d@example.test", 1).await.unwrap();
    world.settled(PATIENCE).await;
    let erp = world.erp.client("erp").await.unwrap();
    erp.batch_execute("create domain zipd as text; alter table res_partner alter column zip type zipd")
        .await
        .unwrap();
    odoo.write(id, "city", &"Moved").await.unwrap();
    erp.execute("update res_partner set zip = '54321'::zipd where id = $1", &[&id]).await.unwrap();
    eventually(PATIENCE, "the change", async || {
        let customers = world.stripe.with(|stripe| stripe.customers());
        let address = customers[&format!("ERP-P-{id}")]["address"].clone();
        let is_there = address["postal_code"] == "54321" && address["city"] == "Moved";
        if is_there { Ok(()) } else { Err(format!("{address} {}", world.log())) }
    })
    .await;
    assert!(daemon.child.try_wait().unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_roles_timeouts_do_not_count_and_what_leaves_our_settings_out_is_refused() {
    let world = World::start(WorldOptions::default()).await;
    for (server, role) in [(&world.erp, "tailwater_src"), (&world.ledger, "tailwater")] {
        let admin = server.client("postgres").await.unwrap();
        for setting in [
            "statement_timeout",
            "lock_timeout",
            "idle_session_timeout",
            "idle_in_transaction_session_timeout",
        ] {
            admin.batch_execute(&format!("alter role {role} set {setting} = '1ms'")).await.unwrap();
        }
    }
    let _daemon = world.daemon();
    world.streaming().await;
    world.odoo().await.create_company("Timely", "t@example.test", 1).await.unwrap();
    world.settled(PATIENCE).await;
    assert!(!world.log().contains("is away"), "{}", world.log());
    {
        world
            .ledger
            .client("postgres")
            .await
            .unwrap()
            .batch_execute("alter role tailwater reset all")
            .await
            .unwrap();
    }
    // pgbouncer with `ignore_startup_parameters = options`.
    let port = pooler(world.ledger.port).await;
    let straight = world.ledger.url("tailwater", "tailwater");
    world.edit_settings(&straight, &straight.replace(&world.ledger.port.to_string(), &port.to_string()));
    let (said, code) = check(&world);
    assert!(said.contains("search_path") && said.contains("pooler"), "{said}");
    assert_ne!(code, Some(0));
}

/// A proxy that leaves `options` out of the startup packet.
/// <https://www.postgresql.org/docs/current/protocol-message-formats.html> (StartupMessage)
async fn pooler(server: u16) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let length = client.read_u32().await.unwrap();
                let mut packet = vec![0; length as usize - 4];
                client.read_exact(&mut packet).await.unwrap();
                let mut kept = packet[..4].to_vec();
                let parts: Vec<&[u8]> = packet[4..].split(|byte| *byte == 0).collect();
                for pair in parts.chunks(2).filter(|pair| !pair[0].is_empty() && pair[0] != b"options") {
                    pair.iter().for_each(|text| kept.extend([text, &b"\0"[..]].concat()));
                }
                kept.push(0);
                let mut to = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
                to.write_u32(u32::try_from(kept.len()).unwrap() + 4).await.unwrap();
                to.write_all(&kept).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut to).await;
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_without_an_encoding_is_refused_and_names_with_quotes_are_not() {
    let world = World::start(WorldOptions { odoo_schema: false, ..WorldOptions::default() }).await;
    let admin = world.erp.client("postgres").await.unwrap();
    admin.batch_execute("drop database erp").await.unwrap();
    admin
        .batch_execute("create database erp owner odoo encoding 'SQL_ASCII' template template0")
        .await
        .unwrap();
    let client = world.erp.client("erp").await.unwrap();
    client.batch_execute(tailwater::demo::odoo::SCHEMA).await.unwrap();
    world.edit_settings("publication = \"tailwater\"", "publication = \"Pub 'z' \\\"q\\\"\"");
    world.prepare_source().await;
    let published =
        client.query_one("select count(*) from pg_publication_tables where pubname = 'Pub ''z'' \"q\"'", &[]);
    assert!(published.await.unwrap().get::<_, i64>(0) > 5);
    let (said, code) = check(&world);
    assert!(said.contains("SQL_ASCII"), "{said}");
    assert_eq!(code, Some(78), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_log_level_says_personal_values_or_keys() {
    let world = World::start(WorldOptions::default()).await;
    let key = world.directory.path().join("sealing.key");
    tailwater::demo::private::write_secret(&key, "c2VhbGluZy1rZXktb2YtdGhpcnR5LXR3by1ieXRlcyE=").unwrap();
    world.edit_settings(
        "[ledger]\n",
        &format!("[ledger]\nsealing_key = {{ file = \"{}\" }}\n", key.display()),
    );
    let mut daemon = world
        .daemon_with(&[("RUST_LOG", "trace,tokio_postgres=trace,hyper=trace,reqwest=trace,rustls=trace")]);
    world.streaming().await;
    world.odoo().await.create_company("Zq7Personal", "zq7personal@example.test", 1).await.unwrap();
    world.settled(PATIENCE).await;
    assert!(daemon.terminate().success());
    let log = world.log();
    assert!(log.contains("streaming"), "{log}");
    let ledger = world.ledger.client("tailwater").await.unwrap();
    let salts = ledger.query("select salt from tailwater_keys.subject_key", &[]).await.unwrap();
    let salts: Vec<String> = salts.iter().map(|row| format!("{:?}", row.get::<_, Vec<u8>>(0))).collect();
    assert!(!salts.is_empty());
    for told in
        ["Zq7Personal", "zq7personal", STRIPE_KEY, ZENDESK_KEY].into_iter().map(str::to_owned).chain(salts)
    {
        assert!(!log.contains(told.trim_matches(['[', ']'])), "{told} is in the log");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_none_or_that_others_may_read_or_write_are_told_of() {
    let world = World::start(WorldOptions::default()).await;
    let key = world.directory.path().join("stripe.key");
    let mode = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap()
    };
    for bits in [0o644, 0o604, 0o620, 0o666, 0o777] {
        mode(&key, bits);
        let (said, code) = check(&world);
        assert!(said.contains("stripe.key") && said.contains(&format!("{bits:04o}")), "{bits:o}: {said}");
        assert_eq!(code, Some(78), "{said}");
    }
    for bits in [0o600, 0o400, 0o640] {
        mode(&key, bits);
        assert_eq!(check(&world).1, Some(0));
    }
    let own = world.own_mappings();
    mode(&own, 0o777);
    mode(&world.config, 0o666);
    let (said, _) = check(&world);
    assert!(said.contains("tailwater.toml: mode 0666") && said.contains("mappings: mode 0777"), "{said}");
    // None of these is waited for, or read without end; a text of two lines is no key, and neither is one that no header takes.
    for (text, what) in [("one\ntwo\n", "two lines"), ("k\u{e9}y\u{1}", "control"), ("", "empty")] {
        tailwater::demo::private::write_secret(&key, text).unwrap();
        let (said, code) = check(&world);
        assert_eq!(code, Some(78), "{what}: {said}");
    }
    std::fs::remove_file(&key).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&key).status().unwrap().success());
    let (said, code) = check(&world);
    assert!(said.contains("regular file"), "{said}");
    assert_eq!(code, Some(78), "{said}");
    std::fs::remove_file(&key).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &key).unwrap();
    assert!(check(&world).0.contains("regular file"));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_leave_for_no_address_but_the_one_that_is_meant() {
    let world = World::start(WorldOptions::default()).await;
    let at = world.stripe.url();
    let mut was = format!("base_url = \"{at}\"");
    for (address, said) in [
        ("http://localhost:1@192.0.2.1", "user"),
        ("http://127.0.0.1:x@192.0.2.1/", "user"),
        ("http://localhost:\\\\@192.0.2.1", ""),
        ("https://user:Zq7Password@api.example.test", "user"),
        ("http://user:Zq7Password@127.0.0.1:1", "user"),
        ("https://api.example.test/?key=Zq7Password", "`?`"),
        ("http://192.0.2.1", "https"),
        ("https:///x", "names no host"),
        ("ftp://api.example.test", ""),
    ] {
        let now = format!("base_url = \"{address}\"");
        world.edit_settings(&was, &now);
        was = now;
        let (text, code) = check(&world);
        assert_eq!(code, Some(78), "{address}: {text}");
        assert!(text.contains(said) && !text.contains("Zq7Password"), "{address}: {text}");
    }
    for address in ["http://[::1]:9", "HTTPS://api.example.test", "http://localhost:9", &at] {
        let now = format!("base_url = \"{address}\"");
        world.edit_settings(&was, &now);
        was = now;
        let (text, code) = check(&world);
        assert_eq!(code, Some(0), "{address}: {text}");
    }
    // A proxy of the environment sees nothing of what goes to this machine.
    let proxy = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = format!("http://{}", proxy.local_addr().unwrap());
    let _daemon =
        world.daemon_with(&[("HTTP_PROXY", &address), ("ALL_PROXY", &address), ("http_proxy", &address)]);
    world.streaming().await;
    world.odoo().await.create_company("Straight", "s@example.test", 1).await.unwrap();
    world.settled(PATIENCE).await;
    assert_eq!(world.stripe.with(|stripe| stripe.customers().len()), 1);
    assert!(tokio::time::timeout(Duration::from_millis(200), proxy.accept()).await.is_err());
}

/// A system whose key goes in the body.
const BODIED: &str = "format: 1
system: bodied
auth: { kind: body, at: /auth/key }
encoding: json
timeout_s: 5
outcomes:
  - { when: 'status >= 200 && status < 300', outcome: applied }
  - { when: 'status >= 400', outcome: rejected }
objects:
  thing:
    body: { ref: event.id, name: event.name }
    create: { request: POST /bare/things, id: answer.id, body: { auth: { key: \"'$api_key'\" }, ref: body.ref, name: body.name } }
    update: { request: 'PUT /bare/things/{external_id}', id: answer.id, body: { auth: { key: \"'$api_key'\" }, name: body.name } }
    delete: never
";

#[tokio::test(flavor = "multi_thread")]
async fn a_customer_whose_name_is_the_keys_placeholder_has_that_name() {
    let world =
        World::start(WorldOptions { data: Some("wide"), odoo_schema: false, ..WorldOptions::default() })
            .await;
    let limit = Limit { requests: 1_000, window_s: 1.0 };
    let vendor = VendorServer::start(Plain::default(), limit).await.unwrap();
    let sent = Arc::new(std::sync::Mutex::new(Vec::<Value>::new()));
    let seen = sent.clone();
    vendor.set_tamper(Some(Arc::new(move |request: &Incoming, _: &mut Raw| {
        seen.lock().unwrap().push(serde_json::from_slice(&request.body).unwrap());
    })));
    world.add_connector("bodied", BODIED);
    world.add_target("bodied", &vendor.url(), "quota = \"1000/s\"");
    let routes =
        "format: 1\nroutes:\n  - { event: customer.v1, system: bodied, object: thing, when: \"true\" }\n";
    std::fs::write(world.directory.path().join("mappings/routes/routes.yaml"), routes).unwrap();
    let _daemon = world.daemon();
    world.streaming().await;
    let erp = world.erp.client("erp").await.unwrap();
    erp.batch_execute("begin; select wide_rows(1, 1); update wide set name = '$api_key'; commit")
        .await
        .unwrap();
    world.settled(PATIENCE).await;
    let sent = sent.lock().unwrap().clone();
    assert_eq!(sent.len(), 1, "{sent:?}");
    assert_eq!((&sent[0]["auth"]["key"], &sent[0]["name"]), (&json!(STRIPE_KEY), &json!("$api_key")));
    let ledger = world.ledger_client().await;
    let said: i64 = ledger
        .query_one(
            "select count(*) from entry where position($1::bytea in body) > 0",
            &[&STRIPE_KEY.as_bytes()],
        )
        .await
        .unwrap()
        .get(0);
    assert_eq!(said, 0, "the key stands in the ledger");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_search_finds_is_adopted_only_if_it_is_what_was_asked_for() {
    let world = World::start(WorldOptions::default()).await;
    world.edit_settings("connector = \"stripe\"", "connector = \"stripe\"\nadopt = true");
    let by_hand = |reference: &str| {
        world.stripe.with(|stripe| {
            let id = stripe.made_by_hand(&format!("{reference}@elsewhere.test"));
            stripe.edit(&id, &json!({"metadata": {"reference": reference}}));
            id
        })
    };
    let others: Vec<String> = ["ACME", "OBrien", "VICTIM", "aBc-1"].map(by_hand).into();
    let others: Vec<&str> = others.iter().map(String::as_str).collect();
    let theirs = by_hand("O'Brien");
    let was = world.stripe.with(|stripe| stripe.raw(&others));
    let _daemon = world.daemon();
    world.streaming().await;
    let erp = world.erp.client("erp").await.unwrap();
    let insert = "insert into res_partner (name, complete_name, is_company, email, ref) values ($1, $1, true, $2, $1) returning id";
    let mut ours = Vec::new();
    for (number, reference) in
        ["AC'ME", "O'Brien", "VIC'TIM", "ABC-1", "ends in \\", "\\' OR email:'x"].into_iter().enumerate()
    {
        let id: i32 =
            erp.query_one(insert, &[&reference, &format!("ref{number}@ours.test")]).await.unwrap().get(0);
        ours.push(id);
    }
    world.settled(PATIENCE).await;
    assert_eq!(world.stripe.with(|stripe| stripe.raw(&others)), was, "others' customers are as they were");
    let customers = world.stripe.with(|stripe| stripe.customers());
    let made: Vec<&Value> = ours
        .iter()
        .map(|id| &customers.get(&format!("ERP-P-{id}")).expect("each of ours is there")["id"])
        .collect();
    assert_eq!(made[1], &json!(theirs), "the one that was asked for is adopted");
}

#[tokio::test(flavor = "multi_thread")]
async fn shipped_routes_count_as_far_as_there_are_events() {
    let world = World::start(WorldOptions::default()).await;
    let settings = std::fs::read_to_string(&world.config).unwrap();
    let (start, rest) = settings.split_once("[sources.erp]").unwrap();
    let (_, targets) = rest.split_once("[targets.stripe]").unwrap();
    let redis = world.redis.url();
    std::fs::write(
        &world.config,
        format!(
            "{start}[targets.stripe]{targets}\n[sources.stripe]\n{STRIPE_POLLED}\n[targets.stream]\nconnector = \"redis-stream\"\nbase_url = \"{redis}\"\n"
        ),
    )
    .unwrap();
    let (text, code) = check(&world);
    assert_eq!(code, Some(0), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_that_go_round_one_record_and_one_page_too_large_hold_up_nothing_behind_them() {
    let world = World::start(WorldOptions::default()).await;
    world.add_source("stripe", STRIPE_POLLED);
    let round = Arc::new(AtomicUsize::new(0));
    let asked = round.clone();
    // Two pages of charges that name each other, for ever.
    world.stripe.set_tamper(Some(Arc::new(move |request: &Incoming, raw: &mut Raw| {
        if request.path == "/v1/charges" {
            let first = asked.fetch_add(1, Ordering::SeqCst).is_multiple_of(2);
            let row = |id: &str| json!({"id": id, "object": "charge", "amount": 1, "currency": "eur", "created": 1_700_000_000});
            let row = row(if first { "ch_a" } else { "ch_b" });
            raw.body = json!({"data": [row], "has_more": true}).to_string().into_bytes();
        }
    })));
    world.stripe.with(|stripe| stripe.made_by_hand("listed@example.test"));
    let daemon = world.daemon();
    world.streaming().await;
    // Lists behind it are read, and it is told.
    await_events(&world, "stripe", "customer.v1", 1).await;
    eventually(PATIENCE, "a word of it", async || {
        let listed = world.printed(&["status"]);
        let told = listed.contains("list charge") && listed.contains("the same page again and again");
        if told { Ok(()) } else { Err(listed) }
    })
    .await;
    let after = round.load(Ordering::SeqCst);
    assert!(after < 40, "{after} requests");
    // One record of a page cannot be read: a lone surrogate is replaced, an id beyond any is parked, the others come.
    world.stripe.set_tamper(Some(Arc::new(|request: &Incoming, raw: &mut Raw| {
        if request.path == "/v1/events" {
            let text = String::from_utf8(std::mem::take(&mut raw.body)).unwrap();
            raw.body = text.replace("cut@example.test", "cut \\ud83d").into_bytes();
        }
    })));
    let cut = world.stripe.with(|stripe| stripe.made_by_hand("cut@example.test"));
    let behind = world.stripe.with(|stripe| stripe.made_by_hand("behind@example.test"));
    eventually(PATIENCE, "both", async || {
        let told = events(&world, "stripe", "customer.v1").await;
        let has = |id: &str| told.iter().any(|event| event["id"] == format!("STRIPE-P-{id}"));
        if has(&cut) && has(&behind) { Ok(()) } else { Err(world.log()) }
    })
    .await;
    // A page of more than 16 MB: fewer are asked for at once.
    world.stripe.set_tamper(None);
    let large: Vec<String> = (0..40)
        .map(|n| {
            world.stripe.with(|stripe| {
                let id = stripe.made_by_hand(&format!("large{n}@example.test"));
                stripe.edit(&id, &json!({"description": "d".repeat(600_000)}));
                id
            })
        })
        .collect();
    eventually(PATIENCE, "all of them", async || {
        let told = events(&world, "stripe", "customer.v1").await;
        let missing = large
            .iter()
            .filter(|id| !told.iter().any(|event| event["id"] == format!("STRIPE-P-{id}")))
            .count();
        if missing == 0 { Ok(()) } else { Err(format!("{missing} are missing: {}", world.log())) }
    })
    .await;
    assert!(peak_kb(daemon.child.id()) < 512 << 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_cannot_be_read_is_told_of_and_healed_and_a_clock_that_is_ahead_loses_nothing() {
    let world = World::start(WorldOptions::default()).await;
    world.add_source("stripe", STRIPE_POLLED);
    // The first answers come from the future.
    world.stripe.set_tamper(Some(Arc::new(|_: &Incoming, raw: &mut Raw| {
        raw.headers.push(("date".into(), "Thu, 31 Dec 2099 23:59:59 GMT".into()));
    })));
    world.stripe.with(|stripe| stripe.made_by_hand("first@example.test"));
    let _daemon = world.daemon();
    world.streaming().await;
    await_events(&world, "stripe", "customer.v1", 1).await;
    eventually(PATIENCE, "a word of it", async || {
        if world.log().contains("the clock of the target and ours differ") {
            Ok(())
        } else {
            Err(world.log())
        }
    })
    .await;
    // Then they are no JSON at all.
    world.stripe.set_tamper(Some(Arc::new(|request: &Incoming, raw: &mut Raw| {
        if request.path == "/v1/events" {
            raw.body = b"<html>We are down for maintenance</html>".to_vec();
        }
    })));
    eventually(PATIENCE, "a word of that", async || {
        let status = world.printed(&["status"]);
        if status.contains("parked") && status.contains("not JSON") { Ok(()) } else { Err(status) }
    })
    .await;
    let hidden = world.stripe.with(|stripe| stripe.made_by_hand("hidden@example.test"));
    world.stripe.set_tamper(None);
    eventually(PATIENCE, "what came meanwhile", async || {
        let told = events(&world, "stripe", "customer.v1").await;
        let there = told.iter().any(|event| event["id"] == format!("STRIPE-P-{hidden}"));
        let parked = world.count("select count(*) from parked where state in ('parked', 'retry')").await;
        if there && parked == 0 { Ok(()) } else { Err(format!("{there} {parked} {}", world.log())) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_years_to_wait_are_a_quarter_of_an_hour_and_an_operator_ends_them() {
    let world = World::start(WorldOptions::default()).await;
    let _daemon = world.daemon();
    world.streaming().await;
    let once = Arc::new(AtomicUsize::new(0));
    let armed = once.clone();
    world.stripe.set_tamper(Some(Arc::new(move |_: &Incoming, raw: &mut Raw| {
        let take = |left: usize| left.checked_sub(1);
        if once.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok() {
            raw.status = 429;
            raw.headers.retain(|(name, _)| name != "retry-after");
            raw.headers.push(("retry-after".into(), "315360000".into()));
            raw.body = b"{}".to_vec();
        }
    })));
    let mut odoo = world.odoo().await;
    let reset: &[&str] = &["quota", "reset", "stripe"];
    let retry = &["deliveries", "retry", "--target", "stripe", "--reason", "they are back"];
    for (number, lifts) in [reset, retry].into_iter().enumerate() {
        armed.store(1, Ordering::SeqCst);
        odoo.create_company(&format!("Waits {number}"), "w@example.test", 1).await.unwrap();
        eventually(PATIENCE, "the pause", async || {
            let shown = world.printed(&["quota", "show", "stripe"]);
            if shown.contains("until") { Ok(()) } else { Err(shown) }
        })
        .await;
        world.printed(lifts);
        world.settled(Duration::from_secs(20)).await;
        assert_eq!(world.stripe.with(|stripe| stripe.customers().len()), number + 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_at_the_admin_socket_are_judged_before_they_are_noted() {
    let world = World::start(WorldOptions::default()).await;
    let _daemon = world.daemon();
    world.streaming().await;
    let long = "x".repeat(4_000);
    let quota = |rate: &str| json!({"command": {"kind": "quota", "target": "stripe", "limit": "account", "rates": [rate]}});
    let asks = [
        quota("0/s"),
        quota("-1/s"),
        quota("x"),
        json!({"reconcile": {"target": "nowhere", "objects": [], "repair": false}}),
        json!({"command": {"kind": "link", "target": "stripe", "object": "customer", "id": long, "external_id": "cus_1"}}),
        json!({"command": {"kind": "link", "target": "nowhere", "object": "customer", "id": "a", "external_id": "cus_1"}}),
        json!({"command": {"kind": "archive", "month": "2026-01-01", "first": 0, "last": 1, "file": "f", "sha256": "00", "restored": false}}),
        json!({"command": {"kind": "hold", "name": "h", "months": [], "refs": [], "reason": "r".repeat(5_000)}}),
        json!("nonsense"),
    ];
    for asking in asks {
        let answer = asked(&world, &asking).await;
        assert!(answer.get("refused").is_some(), "{asking}: {answer}");
    }
    assert_eq!(
        world.count("select count(*) from command").await
            + world.count("select count(*) from reconcile").await,
        0
    );
    let answer = asked(&world, &quota("40/s")).await;
    assert!(answer.get("noted").is_some(), "{answer}");
    // Connections that say nothing keep nobody out.
    let socket = world.directory.path().join("admin.sock");
    let mut idle = Vec::new();
    for _ in 0..100 {
        idle.push(tokio::net::UnixStream::connect(&socket).await.unwrap());
    }
    let answer = tokio::time::timeout(Duration::from_secs(50), asked(&world, &quota("41/s"))).await.unwrap();
    assert!(answer.get("noted").is_some(), "{answer}");
}

async fn asked(world: &World, asking: &Value) -> Value {
    let socket = world.directory.path().join("admin.sock");
    let mut stream = tokio::net::UnixStream::connect(socket).await.unwrap();
    stream.write_all(format!("{asking}\n").as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    serde_json::from_str(&text).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_is_shown_no_control_characters() {
    let world = World::start(WorldOptions::default()).await;
    let _daemon = world.daemon();
    world.streaming().await;
    let name = "Zq\u{1b}[31m\u{7}\u{202e}evil\r\nentry 99 forged";
    let id = world.odoo().await.create_company(name, "e@example.test", 1).await.unwrap();
    world.settled(PATIENCE).await;
    let of = format!("ERP-P-{id}");
    for command in [
        vec!["ledger", "history", &of, "--unseal"],
        vec!["ledger", "trace", &of],
        vec!["explain", "--values", "res_partner", &of[6..]],
    ] {
        let output = world.run(&command);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let odd = text.chars().find(|c| {
            (c.is_control() && *c != '\n') || matches!(*c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        });
        assert_eq!(odd, None, "{command:?}: {text}");
        assert!(!text.contains("\nentry 99 forged"), "{command:?}: {text}");
    }
}
