//! Months go into files and come back, and every proof holds all the while.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::support::{World, WorldOptions, eventually};

const PATIENCE: Duration = Duration::from_secs(30);

async fn published(world: &World) {
    let client = world.ledger_client().await;
    eventually(PATIENCE, "a checkpoint", async || {
        let size: i64 = client.query_one("select size from tree", &[]).await.unwrap().get(0);
        let note = std::fs::read_to_string(world.directory.path().join("log/checkpoint")).unwrap_or_default();
        let covered = note.lines().nth(1).and_then(|line| line.parse::<i64>().ok());
        if covered == Some(size) { Ok(()) } else { Err(format!("{covered:?} of {size}")) }
    })
    .await;
}

/// The bundle holds by itself, for who has nothing but the public key.
fn stands_alone(world: &World, file: &PathBuf) -> bool {
    let key = world.directory.path().join("ledger.pub");
    let mut command = Command::new(env!("CARGO_BIN_EXE_tailwater-verify"));
    command.arg(file).arg("--pubkey").arg(key).output().unwrap().status.success()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archived_month_is_proven_without_the_database_and_comes_back() {
    let world = World::start(WorldOptions::default()).await;
    let url = world.ledger.url("postgres", "tailwater");
    world.printed_without_settings(&["ledger", "migrate", "--url", &url]);
    let mut daemon = world.daemon();
    world.streaming().await;
    let mut odoo = world.odoo().await;
    let mut companies = Vec::new();
    for number in 0..12 {
        companies.push(
            odoo.create_company(&format!("Old {number}"), &format!("old{number}@example.com"), 1)
                .await
                .unwrap(),
        );
    }
    world.settled(PATIENCE).await;
    assert!(daemon.terminate().success());
    // The next month begins; one that has begun does not go back.
    let tamperer = world.tamperer().await;
    tamperer.batch_execute("update tree set month = (month + interval '1 month')::date").await.unwrap(); // as its owner
    let mut daemon = world.daemon();
    world.streaming().await;
    odoo.create_company("New", "new@example.com", 1).await.unwrap();
    odoo.write(companies[0], "phone", &"+1 555 0001").await.unwrap();
    world.settled(PATIENCE).await;
    published(&world).await;
    let ledger = world.ledger_client().await;
    let first_month =
        "select to_char(min(month), 'YYYY-MM'), count(*) from entry where month < (select month from tree)";
    let row = ledger.query_one(first_month, &[]).await.unwrap();
    let (month, count): (String, i64) = (row.get(0), row.get(1));
    assert!(count > 40, "{count}");
    let size: i64 = ledger.query_one("select size from tree", &[]).await.unwrap().get(0);
    let proof = |seq: i64| -> Value {
        let printed =
            world.printed(&["ledger", "proof", "inclusion", &seq.to_string(), "--size", &size.to_string()]);
        let mut proof: Value = serde_json::from_str(&printed).unwrap();
        proof.as_object_mut().unwrap().remove("checkpoint");
        proof
    };
    let before: Vec<Value> = [1, 17, count].map(proof).into();
    let rows = "select count(*), md5(string_agg(seq || kind || recorded_at || coalesce(correlation_id, '') || refs::text || md5(body) || md5(leaf), ',' order by seq))
                from entry where seq <= $1";
    let digest = async || -> (i64, Option<String>) {
        let row = ledger.query_one(rows, &[&count]).await.unwrap();
        (row.get(0), row.get(1))
    };
    let whole = digest().await;
    // Nothing is taken away that somebody holds.
    let subject = format!("ERP-P-{}", companies[3]);
    world.printed(&["ledger", "hold", "add", "case-7", "--about", &subject, "--reason", "a court asks"]);
    let out = world.directory.path().join("archive");
    std::fs::create_dir(&out).unwrap();
    let archive = ["ledger", "archive", "--before", "2099-01", "--out", out.to_str().unwrap(), "--url", &url];
    let refused = world.run(&archive);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("it is held (case-7)"), "{refused:?}");
    let without = world.run(&["ledger", "archive", "--before", "2099-01", "--out", out.to_str().unwrap()]);
    assert!(!without.status.success(), "the daemon's role takes nothing away");
    world.printed(&["ledger", "hold", "release", "case-7", "--reason", "the case is closed"]);
    let said = world.printed(&archive);
    assert!(said.contains(&format!("{month}: entries 1 to {count} are in")), "{said}");
    assert_eq!(digest().await, (0, None), "they are gone from the database");
    assert_eq!(
        world
            .count(&format!(
                "select count(*) from pg_class where relname = 'entry_{}'",
                month.replace('-', "_")
            ))
            .await,
        0
    );
    let file = out.join(format!("tailwater-{month}.tar"));
    assert!(stands_alone(&world, &file));
    assert_eq!(Vec::from([1, 17, count].map(proof)), before, "the same proofs");
    let verified = world.printed(&["ledger", "verify"]);
    assert!(
        verified.contains("sound") && verified.contains(&format!("{count} of them lie in files")),
        "{verified}"
    );
    let export = world.run(&["ledger", "export", "--from", "1", "--to", "20"]);
    assert!(String::from_utf8_lossy(&export.stderr).contains("lacks entry 1"), "{export:?}");
    // What objects should be is known all the same, and goes on.
    let compared = world.printed(&["reconcile", "stripe"]);
    assert!(!compared.contains("missing: 1") && !compared.contains("extra: 1"), "{compared}");
    odoo.write(companies[5], "phone", &"+1 555 0005").await.unwrap();
    world.settled(PATIENCE).await;
    let phones = world.stripe.with(|stripe| serde_json::to_string(&stripe.customers()).unwrap());
    assert!(phones.contains("+1 555 0005"));
    assert_eq!(world.stripe.with(|stripe| stripe.doubled()), Vec::<String>::new());
    // A hash of what is gone cannot be changed without notice.
    tamperer.batch_execute("create table saved as table archived_leaves").await.unwrap();
    tamperer
        .batch_execute("update archived_leaves set hashes = set_byte(hashes, 32, get_byte(hashes, 32) # 1)")
        .await
        .unwrap();
    let tampered = world.run(&["ledger", "verify"]);
    assert!(String::from_utf8_lossy(&tampered.stdout).contains("tampered: entry 2:"), "{tampered:?}");
    tamperer.batch_execute("update archived_leaves a set hashes = s.hashes from saved s where s.first_seq = a.first_seq; drop table saved").await.unwrap();
    // Another file is not put back; the right one is, whole.
    let changed = world.directory.path().join("changed.tar");
    let mut bytes = std::fs::read(&file).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    std::fs::write(&changed, bytes).unwrap();
    assert!(!stands_alone(&world, &changed));
    let other = world.run(&["ledger", "restore", &month, "--url", &url, "--file", changed.to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&other.stderr).contains("is not the file that was written"), "{other:?}");
    world.printed(&["ledger", "restore", &month, "--url", &url]);
    assert_eq!(digest().await, whole);
    assert!(daemon.terminate().success());
    let verified = world.printed(&["ledger", "verify"]);
    assert!(verified.contains("sound") && !verified.contains("lie in files"), "{verified}");
    let kinds = "select string_agg(convert_from(body, 'UTF8')::jsonb ->> 'restored', ' ' order by seq) from entry where kind = 'archive'";
    let noted: String = ledger.query_one(kinds, &[]).await.unwrap().get(0);
    assert_eq!(noted, "false true");
    world.verify();
}
