//! What is personal is in clear nowhere but where it has to be, and in no place at all once it is erased.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::support::world::{STRIPE_KEY, ZENDESK_KEY};
use crate::support::{World, WorldOptions, eventually};
use tailwater::demo::private::write_secret;

const PATIENCE: Duration = Duration::from_secs(30);
const SEALING_KEY: &str = "sealing-key-canary-0123456789abcdef";
const DIGEST_KEY: &str = "digest-key-canary-0123456789abcdefg";

/// Unique in everything that is written.
const SEALED: [(&str, &str); 7] = [
    ("name", "Qanary Sealed Name"),
    ("complete_name", "Qanary Sealed Complete"),
    ("email", "qanary.sealed@mail.example"),
    ("email_normalized", "qanary.normal@mail.example"),
    ("phone", "+3212345987"),
    ("street", "Qanarystraat 77"),
    ("function", "Qanary Taster"),
];
const OTHERS: [(&str, &str); 3] = [
    ("website", "https://qanary-masked.example"),
    ("ref", "QANARY-HMAC-4711"),
    ("comment", "qanary dropped comment"),
];

/// Sealed as shipped, and something that is masked and replaced by a digest.
pub async fn world() -> World {
    let world = World::start(WorldOptions::default()).await;
    let mappings = world.directory.path().join("own-mappings");
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/mappings");
    assert!(Command::new("cp").args(["-r", shipped]).arg(&mappings).status().unwrap().success());
    let partners = mappings.join("sources/odoo/partners.yaml");
    let yaml = std::fs::read_to_string(&partners).unwrap();
    let protected =
        "seal: [name, complete_name, email, email_normalized, phone, function, street, street2, zip, city]
      mask: [website]
      hmac: [ref]";
    let shipped_seal = "seal: [name, complete_name, email, email_normalized, phone, website, function, street, street2, zip, city]";
    assert!(yaml.contains(shipped_seal));
    std::fs::write(&partners, yaml.replace(shipped_seal, protected)).unwrap();
    world.edit_settings(shipped, mappings.to_str().unwrap());
    for (name, key) in [("sealing.key", SEALING_KEY), ("digest.key", DIGEST_KEY)] {
        write_secret(world.directory.path().join(name), key).unwrap();
    }
    let path = |name: &str| world.directory.path().join(name).display().to_string();
    world.edit_settings(
        "[ledger.checkpoints]",
        &format!("sealing_key = {{ file = \"{}\" }}\n[ledger.checkpoints]", path("sealing.key")),
    );
    world.edit_settings(
        "slot = \"tailwater\"",
        &format!("slot = \"tailwater\"\ndigest_key = {{ file = \"{}\" }}", path("digest.key")),
    );
    world
}

async fn plant(world: &World, sql: &str) -> i32 {
    let erp = world.erp.client("erp").await.unwrap();
    let values: Vec<&(dyn tokio_postgres::types::ToSql + Sync)> =
        SEALED.iter().chain(&OTHERS).map(|(_, value)| value as _).collect();
    erp.query_one(sql, &values).await.unwrap().get(0)
}

fn planted() -> impl Iterator<Item = &'static str> {
    SEALED.iter().chain(&OTHERS).map(|(_, value)| *value)
}

/// What stands in `text` that must not.
fn hits(text: &str) -> Vec<&'static str> {
    let secrets = [STRIPE_KEY, ZENDESK_KEY, SEALING_KEY, DIGEST_KEY];
    planted().chain(secrets).filter(|secret| text.contains(secret)).collect()
}

pub fn dump(world: &World, more: &[&str]) -> String {
    let url = world.ledger.url("postgres", "tailwater");
    let dumped = Command::new(world.ledger.program("pg_dump")).args(more).arg(&url).output().unwrap();
    assert!(dumped.status.success());
    // Bytes are printed in hexadecimal.
    let text = String::from_utf8(dumped.stdout).unwrap();
    let decoded = text.split("\\\\x").skip(1).map(|rest| {
        let digits: String = rest.chars().take_while(char::is_ascii_hexdigit).collect();
        let bytes = digits.as_bytes().chunks_exact(2);
        let bytes: Vec<u8> =
            bytes.filter_map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    });
    let decoded: Vec<String> = decoded.collect();
    assert!(decoded.iter().any(|body| body.contains("\"kind\":\"event\"")), "bodies are read");
    text + &decoded.join("\n")
}

const COMPANY: &str = "insert into res_partner (name, complete_name, email, email_normalized, phone, street, function, website, ref, comment,
   is_company, vat) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, true, 'BE0999') returning id";

#[tokio::test(flavor = "multi_thread")]
async fn planted_values_are_found_nowhere_after_they_were_erased() {
    let world = world().await;
    let mut daemon = world.daemon();
    world.streaming().await;
    let company = plant(&world, COMPANY).await;
    let erp = world.erp.client("erp").await.unwrap();
    erp.execute("update res_partner set commercial_partner_id = id where id = $1", &[&company])
        .await
        .unwrap();
    world.settled(PATIENCE).await;
    let key = company.to_string();
    // The targets have it in clear, but for what nobody shall see.
    let customers = world.stripe.with(|stripe| stripe.customers());
    let customer = customers.values().find(|customer| customer["name"] == SEALED[0].1).unwrap().to_string();
    for clear in ["Qanary Sealed Name", "qanary.sealed@mail.example", "+3212345987", "Qanarystraat 77"] {
        assert!(customer.contains(clear), "{clear}: {customer}");
    }
    // So does the ledger's state, and its lines do not.
    let entries = dump(&world, &["-t", "tailwater.entry*"]);
    assert_eq!(hits(&entries), Vec::<&str>::new());
    assert!(entries.contains("~sealed") && entries.contains("h***") && entries.contains("hmac:v1:"));
    assert!(!hits(&dump(&world, &[])).is_empty(), "the test would find them");
    let shown = world.printed(&["ledger", "history", "res_partner", &key]);
    assert!(
        shown.contains("email: (sealed)") && shown.contains("vat: - -> BE0999") && hits(&shown).is_empty(),
        "{shown}"
    );
    let opened = world.printed(&["ledger", "history", "res_partner", &key, "--unseal"]);
    assert!(opened.contains("email: - -> qanary.sealed@mail.example"), "{opened}");
    // A delivery that is still owed, and one that was refused.
    world.stripe.with(|stripe| stripe.refuse_name("Qanary Sealed Name 2"));
    world.edit_settings("[targets.zendesk]", "[targets.zendesk]\nmode = \"shadow\"");
    assert!(daemon.terminate().success());
    let mut daemon = world.daemon();
    world.streaming().await;
    erp.execute("update res_partner set name = name || ' 2' where id = $1", &[&company]).await.unwrap();
    world.settled(PATIENCE).await;
    let refused = world.printed(&["deliveries", "list"]);
    let said = [
        refused,
        world.printed(&["status"]),
        world.printed(&["status", "--json"]),
        world.printed(&["check"]),
        world.printed(&["plan"]),
        world.printed(&["explain", "res_partner", &key]),
        world.printed(&["deliveries", "list", "--each", "50"]),
        world.log(),
    ];
    for text in &said {
        assert_eq!(hits(text), Vec::<&str>::new(), "{text}");
    }
    assert!(said[0].contains("refused"), "{}", said[0]);
    let subject = format!("ERP-P-{company}");
    // A dead request of the same person waits on.
    let erased = world.printed(&["ledger", "erase", &subject, "--reason", "asked for on paper"]);
    assert!(
        erased.contains("the source still had") && erased.contains("stripe holds it as customer cus_"),
        "{erased}"
    );
    assert_eq!(hits(&dump(&world, &[])), Vec::<&str>::new());
    let opened = world.printed(&["ledger", "history", "res_partner", &key, "--unseal"]);
    assert!(opened.contains("email: (sealed)") && hits(&opened).is_empty(), "{opened}");
    let ledger = world.ledger_client().await;
    let open = "select count(*) from delivery where canonical_id = $1 and (open or aside)";
    assert_eq!(ledger.query_one(open, &[&subject]).await.unwrap().get::<_, i64>(0), 0);
    // What changes there afterwards has nothing of it before, and a key of its own.
    erp.execute(
        "update res_partner set name = 'Nobody', complete_name = null, email = null, email_normalized = null, phone = null, street = null,
           function = null, website = null, ref = null where id = $1",
        &[&company],
    )
    .await
    .unwrap();
    world.settled(PATIENCE).await;
    let opened = world.printed(&["ledger", "history", "res_partner", &key, "--unseal"]);
    assert!(opened.contains("name: - -> Nobody"), "{opened}");
    eventually(PATIENCE, "the customer without a name", async || {
        let names: Vec<Value> = world
            .stripe
            .with(|stripe| stripe.customers().values().map(|customer| customer["name"].clone()).collect());
        if names.contains(&"Nobody".into()) { Ok(()) } else { Err(format!("{names:?}")) }
    })
    .await;
    assert!(daemon.terminate().success());
    assert_eq!(hits(&dump(&world, &[])), Vec::<&str>::new());
    assert_eq!(hits(&world.log()), Vec::<&str>::new());
    world.verify();
    let erasure = "select convert_from(body, 'UTF8')::jsonb ->> 'reason' from entry where kind = 'erase' and refs @> array[$1::text]";
    assert_eq!(ledger.query_one(erasure, &[&subject]).await.unwrap().get::<_, &str>(0), "asked for on paper");
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_in_what_is_personal_stop_the_start() {
    let world = world().await;
    world.edit_settings("digest_key = ", "digest_key_of_another = ");
    let mappings = world.directory.path().join("own-mappings/sources/odoo/partners.yaml");
    let yaml = std::fs::read_to_string(&mappings).unwrap();
    std::fs::write(
        &mappings,
        yaml.replace("mask: [website]", "mask: [websites]")
            .replace("seal: [name, email, phone, website", "seal: [nam, email, phone, website"),
    )
    .unwrap();
    write_secret(world.directory.path().join("sealing.key"), "short").unwrap();
    let output = world.run(&["check"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(78), "{text}");
    for said in ["`websites` is not there", "`nam` is not there", "too short", "digest_key"] {
        assert!(text.contains(said), "{said}: {text}");
    }
    assert!(!text.contains("short\""), "{text}");
}
