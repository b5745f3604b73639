//! One bad item stops nothing: every field that is read, with every kind of value that nobody wants there, while a canary of another
//! source and one of another target are watched. Fields come from the mappings and the catalogue, so a new one is tried unasked.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tailwater::config::node::Problems;
use tailwater::demo::vendor::Incoming;
use tailwater::demo::vendor::server::Raw;
use tailwater::mapping::{Constants, SourceMapping};
use tokio::time::Instant;

use crate::polling::{STRIPE_POLLED, events};
use crate::support::expected::{Holdings, assert_same, expected, held};
use crate::support::workload::{Workload, seed};
use crate::support::{World, WorldOptions, eventually};

/// In every poisoned value; nothing that is printed may hold it.
const PERSONAL: &str = "Zq7Personal";
/// Longest silence of a canary.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most memory that the daemon may have had, in kB.
const PEAK_KB: u64 = 512 << 10;

/// A kind of value, and the SQL of it for texts and for JSON; none where a type has no such value.
struct Poison {
    name: &'static str,
    text: Option<&'static str>,
    json: Option<&'static str>,
    /// It is beyond what is kept: the object waits by name.
    left_out: bool,
}

const POISONS: [Poison; 9] = [
    Poison {
        name: "too large",
        text: Some("repeat('Zq7Personal', 400000)"),
        json: Some("to_jsonb(repeat('Zq7Personal', 400000))"),
        left_out: true,
    },
    Poison {
        name: "longer than an index",
        text: Some(
            "'Zq7Personal' || (select string_agg(md5(random()::text), '') from generate_series(1, 100))",
        ),
        json: Some(
            "to_jsonb('Zq7Personal' || (select string_agg(md5(random()::text), '') from generate_series(1, 100)))",
        ),
        left_out: false,
    },
    Poison {
        name: "too deep",
        text: Some("repeat('[', 126) || 'Zq7Personal' || repeat(']', 126)"),
        json: Some("(repeat('[', 126) || repeat(']', 126))::jsonb"),
        left_out: false,
    },
    Poison {
        name: "too deep for anybody",
        text: Some("repeat('{\"a\":', 3000) || repeat('}', 3000)"),
        json: Some("(repeat('{\"a\":', 3000) || '1' || repeat('}', 3000))::jsonb"),
        left_out: false,
    },
    Poison {
        name: "too many",
        text: Some("repeat('Zq7Personal,', 3000)"),
        json: Some("(select jsonb_agg(n) from generate_series(1, 60000) n)"),
        left_out: false,
    },
    Poison {
        name: "control characters",
        text: Some("E'Zq7Personal\\u001b]0;x\\u0007\\u202e\\u0085\\r\\n\\ud83d\\ude00'"),
        json: Some("to_jsonb(E'Zq7Personal\\u001b]0;x\\u0007\\u202e\\r\\n'::text)"),
        left_out: false,
    },
    Poison {
        name: "the name of the key",
        text: Some("'$api_key {api_key} ${api_key} Zq7Personal'"),
        json: Some("to_jsonb('$api_key Zq7Personal'::text)"),
        left_out: false,
    },
    Poison {
        name: "a path",
        text: Some("'../../..?x=Zq7Personal#'' or metadata[''tailwater_id'']:''ERP-P-1'"),
        json: Some("to_jsonb('..'::text)"),
        left_out: false,
    },
    Poison {
        name: "a number beyond any",
        text: Some("repeat('9', 500)"),
        json: Some("('1' || repeat('0', 400))::jsonb"),
        left_out: false,
    },
];

fn mapping(name: &str) -> SourceMapping {
    let mut problems = Problems::default();
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("mappings");
    let loaded = tailwater::mapping::file::load(&directory, name, Constants::of("erp"), &mut problems);
    assert!(problems.is_empty(), "{problems:?}");
    loaded.unwrap()
}

/// Fields of the demo's Odoo that the shipped mapping reads and that can hold any text or JSON: table, column, whether it is JSON, and
/// the most characters.
async fn fields(world: &World) -> Vec<(String, String, bool, Option<i32>)> {
    let client = world.erp.client("erp").await.unwrap();
    let sql = "select data_type, character_maximum_length from information_schema.columns
               where table_schema = 'public' and table_name = $1 and column_name = $2
                 and data_type in ('character varying', 'text', 'jsonb', 'json')";
    let mut found = Vec::new();
    for table in &mapping("odoo").tables {
        for column in &table.columns {
            if let Some(row) = client.query_opt(sql, &[&&*table.name, &&**column]).await.unwrap() {
                let is_json = row.get::<_, String>(0).starts_with("json");
                found.push((table.name.to_string(), column.to_string(), is_json, row.get(1)));
            }
        }
    }
    found
}

/// What shows that everybody else is served: a row of the same source goes to the target that is not poisoned, and an object of
/// another source becomes an event.
struct Canary {
    number: u32,
    longest: Duration,
}

impl Canary {
    async fn sings(&mut self, world: &World, what: &str) {
        self.number += 1;
        let started = Instant::now();
        let name = format!("Canary {}", self.number);
        let id = world.odoo().await.create_company(&name, "canary@example.test", 1).await.unwrap();
        let email = format!("canary{}@example.test", self.number);
        let customer = world.stripe.with(|stripe| stripe.made_by_hand(&email));
        let (ours, theirs) = (format!("ERP-P-{id}"), format!("STRIPE-P-{customer}"));
        eventually(PATIENCE, what, async || {
            let at_zendesk = world.zendesk.with(|zendesk| zendesk.organizations().contains_key(&ours));
            let told = events(world, "stripe", "customer.v1").await.iter().any(|event| event["id"] == theirs);
            if at_zendesk && told { Ok(()) } else { Err(format!("{at_zendesk} {told} {}", world.log())) }
        })
        .await;
        self.longest = self.longest.max(started.elapsed());
    }
}

/// Most memory that a process has had so far, in kB (`VmHWM`, proc_pid_status(5)).
fn peak_kb(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Whatever a person can be shown, and the log.
fn shown(world: &World) -> String {
    let mut text = world.log();
    for command in [
        vec!["status"],
        vec!["parked", "list"],
        vec!["deliveries", "list"],
        vec!["check"],
        vec!["quota", "show"],
    ] {
        let output = world.run(&command);
        text += &String::from_utf8_lossy(&output.stdout);
        text += &String::from_utf8_lossy(&output.stderr);
    }
    text
}

fn keeps_secrets(world: &World) {
    let text = shown(world);
    for secret in [PERSONAL, crate::support::world::STRIPE_KEY, crate::support::world::ZENDESK_KEY] {
        if let Some(at) = text.find(secret) {
            let from = text.floor_char_boundary(at.saturating_sub(300));
            let to = text.floor_char_boundary((at + 100).min(text.len()));
            panic!("{secret} is shown: {}", &text[from..to]);
        }
    }
    assert!(!text.contains("the ledger is away"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_with_any_value_in_any_field_holds_up_nobody_else() {
    let world = World::start(WorldOptions::default()).await;
    world.add_source("stripe", STRIPE_POLLED);
    let daemon = world.daemon();
    world.streaming().await;
    let mut canary = Canary { number: 0, longest: Duration::ZERO };
    canary.sings(&world, "before").await;
    let fields = fields(&world).await;
    let erp = world.erp.client("erp").await.unwrap();
    let mut waiting = Vec::new();
    let file =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/mappings/sources/odoo/partners.yaml"));
    let file = file.unwrap();
    let customer = file.split("  customer.v1:").nth(1).unwrap().split("  contact.v1:").next().unwrap();
    for poison in &POISONS {
        for (table, column, is_json, most) in &fields {
            let Some(value) = (if *is_json { poison.json } else { poison.text }) else { continue };
            let value = most.map_or_else(|| value.to_owned(), |most| format!("left({value}, {most})"));
            if table == "res_partner" {
                let sql = "insert into res_partner (name, is_company, email) values ('Poisoned', true, 'p@example.test') returning id";
                let id: i32 = erp.query_one(sql, &[]).await.unwrap().get(0);
                let sql = format!(
                    "update res_partner set commercial_partner_id = id, {column} = {value} where id = {id}"
                );
                erp.batch_execute(&sql).await.unwrap();
                // Of a column that the customer is not made of nothing is missing.
                let is_read = |text: &str| {
                    text.match_indices(&format!("row.{column}")).any(|(at, found)| {
                        !text[at + found.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_')
                    })
                };
                if poison.left_out && is_read(customer) {
                    waiting.push((format!("ERP-P-{id}"), column.clone()));
                }
                continue;
            }
            // A row that documents are joined to; it is put right again.
            let sql = format!("select {column}::text from {table} where id = (select min(id) from {table})");
            let was: Option<String> = erp.query_one(&sql, &[]).await.unwrap().get(0);
            let cast = if *is_json { "::jsonb" } else { "" };
            erp.batch_execute(&format!(
                "update {table} set {column} = {value} where id = (select min(id) from {table})"
            ))
            .await
            .unwrap();
            let sql = format!(
                "update {table} set {column} = $1::text{cast} where id = (select min(id) from {table})"
            );
            erp.execute(&sql, &[&was]).await.unwrap();
        }
        canary.sings(&world, poison.name).await;
    }
    // By name, with the reason: table, row, column, size.
    let ledger = world.ledger_client().await;
    eventually(PATIENCE, "the work list", async || {
        for (id, column) in &waiting {
            let sql = "select count(*) from delivery where canonical_id = $1 and state = 'parked' and reason like $2";
            let like = format!("%table \"res_partner\", row {}%column \"{column}\" has %", &id[6..]);
            if ledger.query_one(sql, &[id, &like]).await.unwrap().get::<_, i64>(0) == 0 {
                let reasons = ledger.query("select state || ': ' || reason from delivery where canonical_id = $1", &[id]).await;
                let reasons: Vec<Option<String>> = reasons.unwrap().iter().map(|row| row.get(0)).collect();
                return Err(format!("{id} {column}: {reasons:?}"));
            }
        }
        Ok(())
    })
    .await;
    // What is put right goes its way by itself.
    let (id, _) = &waiting[0];
    erp.batch_execute(&format!(
        "update res_partner set name = 'Cured', complete_name = 'Cured' where id = {}",
        &id[6..]
    ))
    .await
    .unwrap();
    eventually(PATIENCE, "the cure", async || {
        match world.zendesk.with(|zendesk| zendesk.organizations().get(id).cloned()) {
            Some(_) => Ok(()),
            None => Err(world.log()),
        }
    })
    .await;
    keeps_secrets(&world);
    let peak = peak_kb(daemon.child.id());
    println!(
        "{} fields x {} poisons: 0 stops, peak {} MB, longest silence {:.1} s",
        fields.len(),
        POISONS.len(),
        peak >> 10,
        canary.longest.as_secs_f64()
    );
    assert!(peak < PEAK_KB, "{peak} kB");
    world.verify();
}

/// Values that an object of another system may have, by name.
fn objects() -> Vec<(&'static str, Value)> {
    let mut deep = json!(PERSONAL);
    for _ in 0..100 {
        deep = json!([deep]);
    }
    vec![
        ("too large", json!(PERSONAL.repeat(200_000))),
        (
            "longer than an index",
            json!((0..700_u32).map(|n| format!("{:x}", n.wrapping_mul(2_654_435_761))).collect::<String>()),
        ),
        ("too deep", deep),
        ("too many", Value::Array((0..30_000).map(Value::from).collect())),
        ("control characters", json!(format!("{PERSONAL}\u{1b}]0;x\u{7}\u{202e}\u{0}\r\n"))),
        ("the name of the key", json!(format!("$api_key {PERSONAL}"))),
        ("a path", json!("../..?x=#")),
        ("another type", json!({"a": [1, {"b": null}]})),
        ("a number beyond any", json!(1e308)),
        ("the past", json!(-62_135_596_800_i64)),
        ("the future", json!(253_402_300_799_i64)),
        ("nothing", Value::Null),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_with_any_value_in_any_field_holds_up_nobody_else() {
    let world = World::start(WorldOptions::default()).await;
    world.add_source("stripe", STRIPE_POLLED);
    let mut daemon = world.daemon();
    world.streaming().await;
    let mut canary = Canary { number: 0, longest: Duration::ZERO };
    canary.sings(&world, "before").await;
    let mapping = mapping("stripe");
    let columns = &mapping.table_named("customer").unwrap().columns;
    let mut fields = columns.len();
    for (name, value) in objects() {
        for column in columns.iter() {
            let id = world.stripe.with(|stripe| stripe.made_by_hand("p@example.test"));
            // An id of its own is what the answer is about; nothing else may stand under it.
            let members = json!({&**column: value});
            world.stripe.with(|stripe| stripe.edit(&id, &members));
        }
        canary.sings(&world, name).await;
    }
    // What is around an object: the row of the event log that tells of it.
    for member in ["id", "created", "type", "data"] {
        for (name, value) in objects() {
            let told = Arc::new(AtomicUsize::new(0));
            world.stripe.set_tamper(Some(spoiled_row(member, value, told.clone())));
            world.stripe.with(|stripe| stripe.made_by_hand("row@example.test"));
            eventually(PATIENCE, name, async || {
                if told.load(Ordering::SeqCst) > 0 { Ok(()) } else { Err(world.log()) }
            })
            .await;
            world.stripe.set_tamper(None);
        }
        canary.sings(&world, member).await;
        fields += 1;
    }
    let ledger = world.ledger_client().await;
    let named = "select count(*) from parked where kind = 'record' and place = 'customer'";
    let held = "select count(*) from delivery where state = 'parked' and reason like '%is left out%'";
    let unreadable: i64 = ledger.query_one(named, &[]).await.unwrap().get(0);
    let left_out: i64 = ledger.query_one(held, &[]).await.unwrap().get(0);
    assert!(unreadable > 0 && left_out > 0, "{unreadable} {left_out}");
    keeps_secrets(&world);
    let peak = peak_kb(daemon.child.id());
    println!(
        "{fields} fields x {} poisons: 0 stops, peak {} MB, longest silence {:.1} s",
        objects().len(),
        peak >> 10,
        canary.longest.as_secs_f64()
    );
    assert!(peak < PEAK_KB, "{peak} kB");
    assert!(daemon.terminate().success());
    world.verify();
}

/// Spoils answers.
type Tamper = Arc<dyn Fn(&Incoming, &mut Raw) + Send + Sync>;

/// Replaces a member of the first row of a page; `told`: how often.
fn spoiled_row(member: &'static str, value: Value, told: Arc<AtomicUsize>) -> Tamper {
    Arc::new(move |request, raw| {
        if request.path != "/v1/events" {
            return;
        }
        let Ok(mut body) = serde_json::from_slice::<Value>(&raw.body) else { return };
        if let Some(row) = body.pointer_mut("/data/0").and_then(Value::as_object_mut) {
            row.insert(member.to_owned(), value.clone());
            told.fetch_add(1, Ordering::SeqCst);
        }
        raw.body = body.to_string().into_bytes();
    })
}

/// What becomes of an answer, by name.
type Spoiling = (&'static str, fn(&mut Raw));

/// Answers that say what is not so, or nothing at all.
fn answers() -> Vec<Spoiling> {
    fn with_id(raw: &mut Raw, id: &str) {
        let mut body: Value = serde_json::from_slice(&raw.body).unwrap_or_default();
        body["id"] = json!(id);
        raw.body = body.to_string().into_bytes();
    }
    vec![
        ("a sign of maintenance", |raw| raw.body = b"<html>We are down for maintenance".to_vec()),
        ("nothing", |raw| raw.body.clear()),
        ("an empty object", |raw| raw.body = b"{}".to_vec()),
        ("accepted", |raw| (raw.status, raw.body) = (202, Vec::new())),
        ("no content", |raw| (raw.status, raw.body) = (204, Vec::new())),
        ("blanks without end", |raw| raw.body = vec![b' '; 20 << 20]),
        ("an id that no index takes", |raw| {
            with_id(
                raw,
                &(0..700_u32).map(|n| format!("{:x}", n.wrapping_mul(2_654_435_761))).collect::<String>(),
            );
        }),
        ("an id that climbs", |raw| with_id(raw, "..")),
        ("somebody else's object", |raw| {
            raw.body =
                json!({"id": "cus_99999999", "object": "customer", "metadata": {}}).to_string().into_bytes();
        }),
        ("too deep", |raw| raw.body = [b"[".repeat(200), b"]".repeat(200)].concat()),
        ("half of it", |raw| raw.body.truncate(raw.body.len() / 2)),
        ("a moved address", |raw| {
            raw.status = 301;
            raw.headers.push(("location".into(), "http://192.0.2.1/".into()));
        }),
        ("a clock that is ahead", |raw| {
            raw.headers.push(("date".into(), "Thu, 31 Dec 2099 23:59:59 GMT".into()))
        }),
        ("ten years to wait", |raw| {
            raw.status = 503;
            raw.headers.push(("retry-after".into(), "315360000".into()));
        }),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_any_kind_is_evidence_at_the_most() {
    let world = World::start(WorldOptions::default()).await;
    world.add_source("stripe", STRIPE_POLLED);
    let daemon = world.daemon();
    world.streaming().await;
    let mut canary = Canary { number: 0, longest: Duration::ZERO };
    canary.sings(&world, "before").await;
    let theirs = world.stripe.with(|stripe| stripe.made_by_hand("theirs@example.test"));
    let was = world.stripe.with(|stripe| stripe.raw(&[&theirs]));
    let mut odoo = world.odoo().await;
    let changed = odoo.create_company("Changed", "c@example.test", 1).await.unwrap();
    world.settled(Duration::from_secs(30)).await;
    for (index, (name, spoil)) in answers().into_iter().enumerate() {
        // The first three answers to what is written are spoiled, whatever they are about.
        let left = Arc::new(AtomicUsize::new(3));
        let spoiling = left.clone();
        world.stripe.set_tamper(Some(Arc::new(move |request, raw| {
            let writes = request.method != "GET" && request.path.starts_with("/v1/customers");
            let take = |left: usize| left.checked_sub(1);
            if writes && spoiling.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok() {
                spoil(raw);
            }
        })));
        let gone = odoo.create_company(&format!("Gone {index}"), "g@example.test", 1).await.unwrap();
        odoo.write(changed, "city", &format!("City {index}")).await.unwrap();
        odoo.unlink(gone).await.unwrap();
        canary.sings(&world, name).await;
        eventually(Duration::from_secs(30), name, async || {
            if left.load(Ordering::SeqCst) < 3 { Ok(()) } else { Err(world.log()) }
        })
        .await;
    }
    world.stripe.set_tamper(None);
    converges(&world).await;
    assert_eq!(world.stripe.with(|stripe| stripe.raw(&[&theirs])), was);
    keeps_secrets(&world);
    println!("{} answers: 0 stops, longest silence {:.1} s", answers().len(), canary.longest.as_secs_f64());
    assert!(peak_kb(daemon.child.id()) < PEAK_KB);
    world.verify();
}

/// What the targets hold of ours.
fn ours(world: &World) -> Holdings {
    let mut held = held(world);
    held.customers.remove("");
    held
}

/// A person takes up what waits for one, and everything is as the ERP has it. Of what is in doubt they look at the target.
async fn converges(world: &World) {
    let erp = world.erp.client("erp").await.unwrap();
    let ledger = world.ledger_client().await;
    let started = Instant::now();
    loop {
        for target in ["stripe", "zendesk"] {
            world.run(&["deliveries", "retry", "--target", target, "--reason", "they behave"]);
        }
        let doubtful =
            "select id, target, canonical_id from delivery where state = 'parked' and request is not null";
        for row in ledger.query(doubtful, &[]).await.unwrap() {
            let (id, target): (i64, String) = (row.get(0), row.get(1));
            let customers = world.stripe.with(|stripe| stripe.customers());
            let there = customers.get(row.get::<_, &str>(2)).filter(|_| target == "stripe");
            let (id, there) = (id.to_string(), there.and_then(|customer| customer["id"].as_str()));
            let mut command = vec!["deliveries", "resolve", &id, "--reason", "looked"];
            command.extend(there.map_or(vec!["--not-applied"], |there| vec!["--applied", there]));
            world.run(&command);
        }
        // What a record said that nothing can be made of, and that Stripe says no more, is given up.
        let given_up = ["deliveries", "discard", "--cause", "mapping", "--reason", "it was never true"];
        if started.elapsed() > Duration::from_secs(30) {
            world.run(&given_up);
        }
        let sql = "select count(*) from delivery where state in ('pending', 'sending', 'parked')";
        let open: i64 = ledger.query_one(sql, &[]).await.unwrap().get(0);
        if open == 0 {
            world.settled(Duration::from_secs(60)).await;
            if ours(world) == expected(&erp, &[]).await {
                break;
            }
        }
        if started.elapsed() > Duration::from_secs(120) {
            println!("{}", told_of_the_first_that_differs(world).await);
            assert_same(&ours(world), &expected(&erp, &[]).await);
            world.settled(Duration::from_secs(1)).await;
            panic!("{open} are open: {}", world.printed(&["deliveries", "list"]));
        }
    }
    assert_eq!(world.stripe.with(|stripe| stripe.doubled()), Vec::<String>::new());
}

/// What the ledger says of a customer that is not as the ERP has it.
async fn told_of_the_first_that_differs(world: &World) -> String {
    let erp = world.erp.client("erp").await.unwrap();
    let (held, expected) = (ours(world), expected(&erp, &[]).await);
    let differs = |id: &&String| held.customers.get(*id) != expected.customers.get(*id);
    let Some(id) = held.customers.keys().chain(expected.customers.keys()).find(differs) else {
        return String::new();
    };
    let sql = "select seq || ' ' || kind || ' ' || convert_from(body, 'utf8') from entry
               where $1 = any (refs) or convert_from(body, 'utf8')::jsonb ->> 'id' = $1 order by seq";
    let rows = world.ledger_client().await.query(sql, &[&id]).await.unwrap();
    rows.iter().map(|row| row.get::<_, String>(0) + "\n").collect()
}

/// An answer at random within the grammar of HTTP and JSON. One that names another object and agrees in everything else cannot be told
/// from the truth: what would prove it is taken out of it as well.
fn fuzzed(random: &mut StdRng, raw: &mut Raw) {
    // What only a lenient reader takes may have become any id.
    let ids = |raw: &Raw| Some(named(&serde_json::from_slice(&raw.body).ok()?, "id"));
    let was = ids(raw);
    spoiled(random, raw);
    let now = ids(raw);
    if now.is_none() || now != was {
        unnamed(&mut raw.body);
    }
}

/// Every value of a name, wherever it stands.
fn named(body: &Value, name: &str) -> Vec<Value> {
    let below =
        |values: &mut dyn Iterator<Item = &Value>| values.flat_map(|value| named(value, name)).collect();
    match body {
        Value::Object(map) => {
            let below: Vec<Value> = below(&mut map.values());
            map.get(name).cloned().into_iter().chain(below).collect()
        }
        Value::Array(items) => below(&mut items.iter()),
        _ => Vec::new(),
    }
}

/// Takes our ids out, by other names for what they stand under.
fn unnamed(body: &mut [u8]) {
    for name in ["\"tailwater_id\"", "\"external_id\""] {
        let found = body.windows(name.len()).enumerate().filter(|(_, text)| *text == name.as_bytes());
        let found: Vec<usize> = found.map(|(at, _)| at).collect();
        found.into_iter().for_each(|at| body[at + 1] = b'_');
    }
}

/// Status, a header, or some of the body.
fn spoiled(random: &mut StdRng, raw: &mut Raw) {
    const COMMON: [u16; 18] =
        [200, 200, 200, 201, 202, 204, 206, 301, 302, 304, 400, 402, 404, 405, 409, 410, 413, 422];
    // These pause a whole target, which costs time.
    const PAUSING: [u16; 6] = [401, 403, 429, 500, 502, 503];
    match random.random_range(0..6) {
        0 if random.random_bool(0.05) => raw.status = PAUSING[random.random_range(0..PAUSING.len())],
        0 => raw.status = COMMON[random.random_range(0..COMMON.len())],
        1 => raw.body = value(random, 0).to_string().into_bytes(),
        2 => {
            let mut body: Value = serde_json::from_slice(&raw.body).unwrap_or_default();
            spoil(random, &mut body);
            raw.body = body.to_string().into_bytes();
        }
        3 => {
            let at = random.random_range(0..=raw.body.len());
            raw.body.truncate(at);
        }
        4 => {
            let name = [
                "date",
                "retry-after",
                "ratelimit-reset",
                "x-rate-limit-remaining",
                "location",
                "content-type",
                "stripe-should-retry",
            ];
            let said = [
                "0",
                "-1",
                "1e308",
                "Thu, 01 Jan 1970 00:00:00 GMT",
                "Fri, 31 Dec 9999 23:59:59 GMT",
                "text/html",
                "true",
                "/v1/customers/..",
            ];
            let pair = (name[random.random_range(0..name.len())], said[random.random_range(0..said.len())]);
            raw.headers.retain(|(known, _)| known != pair.0);
            raw.headers.push((pair.0.to_owned(), pair.1.to_owned()));
        }
        _ => {
            for _ in 0..random.random_range(1..9) {
                if !raw.body.is_empty() {
                    let at = random.random_range(0..raw.body.len());
                    raw.body[at] = random.random();
                }
            }
        }
    }
}

/// Changes many companies at once, and makes some.
async fn many(world: &World, count: i32) {
    let erp = world.erp.client("erp").await.unwrap();
    let sql = format!(
        "insert into res_partner (name, complete_name, is_company, email, email_normalized)
         select name, name, true, 'many@example.test', 'many@example.test'
         from (select 'Many ' || md5(random()::text) as name from generate_series(1, {count} / 4)) n;
         update res_partner set commercial_partner_id = id where commercial_partner_id is null;
         update res_partner set city = md5(random()::text) where id in
           (select id from res_partner where name like 'Many %' order by random() limit {count})"
    );
    erp.batch_execute(&sql).await.unwrap();
}

/// Any value.
fn value(random: &mut StdRng, depth: usize) -> Value {
    match random.random_range(0..if depth > 4 { 6 } else { 8 }) {
        0 => Value::Null,
        1 => random.random::<bool>().into(),
        2 => random.random::<i64>().into(),
        3 => json!(random.random::<f64>() * 1e300),
        4 => json!(format!("cus_{:08}", random.random_range(0..40))),
        5 => json!("\u{202e}é".repeat(random.random_range(0..2_000))),
        6 => (0..random.random_range(0..6)).map(|_| value(random, depth + 1)).collect(),
        _ => {
            const NAMES: [&str; 10] = [
                "id",
                "object",
                "data",
                "error",
                "organization",
                "users",
                "deleted",
                "results",
                "has_more",
                "metadata",
            ];
            let pair = |_| (NAMES[random.random_range(0..NAMES.len())].to_owned(), Value::Null);
            let mut map: serde_json::Map<String, Value> = (0..4).map(pair).collect();
            map.values_mut().for_each(|member| *member = value(random, depth + 1));
            Value::Object(map)
        }
    }
}

/// Replaces some value in an answer by any other.
fn spoil(random: &mut StdRng, body: &mut Value) {
    let members: Vec<&mut Value> = match body {
        Value::Array(items) => items.iter_mut().collect(),
        Value::Object(map) => map.values_mut().collect(),
        _ => Vec::new(),
    };
    let chosen = (!members.is_empty()).then(|| random.random_range(0..members.len()));
    match members.into_iter().nth(chosen.unwrap_or_default()) {
        Some(member) if random.random_bool(0.6) => spoil(random, member),
        Some(member) => *member = value(random, 0),
        None => *body = value(random, 0),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn vendors_that_answer_at_random_destroy_nothing_and_all_is_well_once_they_behave() {
    let wanted =
        std::env::var("TAILWATER_FUZZED_ANSWERS").ok().and_then(|text| text.parse().ok()).unwrap_or(2_000);
    let seed = seed();
    println!("seed {seed}");
    let world = World::start(WorldOptions::default()).await;
    world.add_source("stripe", STRIPE_POLLED);
    let daemon = world.daemon();
    world.streaming().await;
    let mut odoo = world.odoo().await;
    let mut workload = Workload::new(seed);
    for _ in 0..20 {
        workload.step(&mut odoo).await;
    }
    world.settled(Duration::from_secs(60)).await;
    let theirs: Vec<String> = (0..20)
        .map(|n| world.stripe.with(|stripe| stripe.made_by_hand(&format!("theirs{n}@example.test"))))
        .collect();
    let theirs: Vec<&str> = theirs.iter().map(String::as_str).collect();
    let was = world.stripe.with(|stripe| stripe.raw(&theirs));
    let spoiled = Arc::new(AtomicUsize::new(0));
    let tamper = |salt: u64| {
        let (spoiled, random) = (spoiled.clone(), std::sync::Mutex::new(StdRng::seed_from_u64(seed ^ salt)));
        Arc::new(move |_: &Incoming, raw: &mut Raw| {
            let mut random = random.lock().unwrap();
            // Some go through, so that the work goes on to other steps.
            if random.random_bool(0.7) {
                fuzzed(&mut random, raw);
                spoiled.fetch_add(1, Ordering::SeqCst);
            }
        })
    };
    world.stripe.set_tamper(Some(tamper(1)));
    world.zendesk.set_tamper(Some(tamper(2)));
    let mut last = (0, Instant::now());
    while spoiled.load(Ordering::SeqCst) < wanted {
        workload.step(&mut odoo).await;
        many(&world, 40).await;
        // Waits are asked for at random, too: an operator lifts them.
        world.run(&["quota", "reset", "stripe"]);
        world.run(&["quota", "reset", "zendesk"]);
        world.run(&["deliveries", "retry", "--target", "stripe", "--reason", "they behave"]);
        world.run(&["deliveries", "retry", "--target", "zendesk", "--reason", "they behave"]);
        let now = spoiled.load(Ordering::SeqCst);
        if now > last.0 {
            last = (now, Instant::now());
        }
        assert!(last.1.elapsed() < Duration::from_secs(60), "nothing is sent any more: {}", world.log());
    }
    world.stripe.set_tamper(None);
    world.zendesk.set_tamper(None);
    world.run(&["quota", "reset", "stripe"]);
    world.run(&["quota", "reset", "zendesk"]);
    converges(&world).await;
    assert_eq!(world.stripe.with(|stripe| stripe.raw(&theirs)), was);
    keeps_secrets(&world);
    let peak = peak_kb(daemon.child.id());
    println!("{} spoiled answers: 0 stops, peak {} MB", spoiled.load(Ordering::SeqCst), peak >> 10);
    assert!(peak < PEAK_KB, "{peak} kB");
    world.verify();
}
