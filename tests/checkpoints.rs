//! What is published of the ledger, where, and what a ledger that does not fit it is refused for.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rand::RngExt;
use tailwater::audit::checkpoint::{PublicKey, split};
use tokio::time::sleep;

use crate::support::witness::Witness;
use crate::support::{World, WorldOptions, eventually};

const PATIENCE: Duration = Duration::from_secs(30);

fn log(world: &World) -> PathBuf {
    world.directory.path().join("log")
}

fn newest(world: &World) -> String {
    std::fs::read_to_string(log(world).join("checkpoint")).unwrap_or_default()
}

fn size(note: &str) -> u64 {
    note.lines().nth(1).and_then(|line| line.parse().ok()).unwrap_or_default()
}

async fn published_past(world: &World, past: u64) {
    eventually(PATIENCE, "a checkpoint", async || {
        let note = newest(world);
        if size(&note) > past { Ok(()) } else { Err(note) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_reach_files_journal_witness_and_store_and_one_that_was_away_catches_up() {
    let world = World::start(WorldOptions::default()).await;
    let public = std::fs::read_to_string(world.directory.path().join("ledger.pub")).unwrap();
    let witness = Witness::start(&public).await;
    let places = format!(
        "every = \"1s\"\nwitnesses = [{{ url = \"http://{0}/\", key = \"{1}\" }}]\nstores = [{{ url = \"http://{0}/bucket\" }}]",
        witness.address, witness.key
    );
    world.edit_settings("every = \"1s\"", &places);
    let mut daemon = world.daemon();
    world.streaming().await;
    published_past(&world, 1).await;
    let first = newest(&world);
    assert!(PublicKey::parse(&public).unwrap().verify(&first).is_ok());
    let by_witness = PublicKey::parse(&witness.key).unwrap();
    assert!(by_witness.has_signed(&first).unwrap(), "{first}");
    // Away, while the log grows.
    witness.known.lock().unwrap().broken = Some(503);
    let mut odoo = world.odoo().await;
    odoo.create_company("While it was away", "away@example.com", 1).await.unwrap();
    world.settled(PATIENCE).await;
    published_past(&world, size(&first)).await;
    assert!(!by_witness.has_signed(&newest(&world)).unwrap());
    witness.known.lock().unwrap().broken = None;
    let before = size(&newest(&world));
    odoo.create_company("And back", "back@example.com", 1).await.unwrap();
    published_past(&world, before).await;
    world.settled(PATIENCE).await;
    assert!(daemon.terminate().success());
    let last = newest(&world);
    assert!(by_witness.has_signed(&last).unwrap(), "{last}");
    let known = std::mem::take(&mut *witness.known.lock().unwrap());
    assert_eq!(known.head.0, size(&last), "the stop is covered");
    assert!(!known.answers.keys().any(|status| [400, 403, 422].contains(status)), "{:?}", known.answers);
    assert!(
        known.objects.contains_key(&format!("/bucket/checkpoint-{:020}", size(&last))),
        "{:?}",
        known.objects.keys()
    );
    assert!(world.log().contains("example.com/ledger"), "the journal has the notes");
    let days = std::fs::read_dir(log(&world).join("checkpoints")).unwrap();
    let notes: Vec<String> = days.map(|day| std::fs::read_to_string(day.unwrap().path()).unwrap()).collect();
    assert!(notes.iter().flat_map(|day| split(day)).count() >= 3);
    // What lies only at the witness is enough to verify with.
    let elsewhere = world.directory.path().join("elsewhere.txt");
    std::fs::write(&elsewhere, &last).unwrap();
    std::fs::rename(log(&world), world.directory.path().join("log-away")).unwrap();
    let verified = world.printed(&["ledger", "verify", "--checkpoint", elsewhere.to_str().unwrap()]);
    assert!(verified.contains("1 checkpoints agree"), "{verified}");
    let tamperer = world.tamperer().await;
    tamperer
        .batch_execute("update entry set body = '{}', leaf = sha256('\\x00' || '{}'::bytea) where seq = 9")
        .await
        .unwrap();
    assert_eq!(
        world.run(&["ledger", "verify", "--checkpoint", elsewhere.to_str().unwrap()]).status.code(),
        Some(1)
    );
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A copy of the server's files, as physical backups are; dumps are in `source::loss`.
#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_was_restored_from_files_or_rewritten_is_refused() {
    let mut world = World::start(WorldOptions::default()).await;
    let mut daemon = world.daemon();
    world.streaming().await;
    let mut odoo = world.odoo().await;
    odoo.create_company("Before", "before@example.com", 1).await.unwrap();
    world.settled(PATIENCE).await;
    assert!(daemon.terminate().success());
    let (data, copy) =
        (world.directory.path().join("ledger/data"), world.directory.path().join("ledger/copy"));
    let url = world.ledger.url("postgres", "tailwater");
    run(Command::new(world.ledger.program("pg_basebackup"))
        .arg("-D")
        .arg(&copy)
        .args(["-X", "stream", "-c", "fast", "-d", &url]));
    run(Command::new("chown").arg("-R").arg(format!("--reference={}", data.display())).arg(&copy));
    let mut daemon = world.daemon();
    world.streaming().await;
    odoo.create_company("After", "after@example.com", 1).await.unwrap();
    world.settled(PATIENCE).await;
    assert!(daemon.terminate().success());
    let newer = world.directory.path().join("ledger/newer");
    world.ledger.stop("fast").unwrap();
    std::fs::rename(&data, &newer).unwrap();
    std::fs::rename(&copy, &data).unwrap();
    world.ledger.resume().await.unwrap();
    let refused = world.run(&["run"]);
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(78) && text.contains("it is an older copy"), "{text}");
    assert!(text.contains("tailwater recover --ledger"), "{text}");
    let verified = world.run(&["ledger", "verify"]);
    assert_eq!(verified.status.code(), Some(2), "{}", String::from_utf8_lossy(&verified.stdout));
    // The newer one is taken as it is.
    world.ledger.stop("fast").unwrap();
    std::fs::rename(&data, &copy).unwrap();
    std::fs::rename(&newer, &data).unwrap();
    world.ledger.resume().await.unwrap();
    let starts = "select count(*) from entry where kind = 'start'";
    let before = world.count(starts).await;
    let mut daemon = world.daemon();
    eventually(PATIENCE, "the start", async || {
        if world.count(starts).await > before { Ok(()) } else { Err(world.log()) }
    })
    .await;
    assert!(daemon.terminate().success());
    world.verify();
    // A directory that is not mounted is no reason to begin another log of that name.
    let away = world.directory.path().join("log-away");
    std::fs::rename(log(&world), &away).unwrap();
    for (args, code) in [(&["run"][..], 78), (&["ledger", "verify"][..], 69)] {
        let refused = world.run(args);
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(
            refused.status.code() == Some(code) && text.contains("no checkpoint is there"),
            "{args:?}: {text}"
        );
    }
    std::fs::rename(&away, log(&world)).unwrap();
    world.verify();
    // A hash that proofs are made of, or the tree as a whole, is another one than was published.
    let tamperer = world.tamperer().await;
    tamperer.batch_execute("update entry set leaf = sha256(leaf) where seq = 2").await.unwrap();
    let refused = world.run(&["run"]);
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        refused.status.code() == Some(78) && text.contains("was rewritten, or is another ledger"),
        "{text}"
    );
}

/// No false alarm, whenever the daemon dies.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_killed_again_and_again_leaves_a_sound_ledger() {
    let runs: usize =
        std::env::var("TAILWATER_CLEAN_RUNS").ok().and_then(|text| text.parse().ok()).unwrap_or(5);
    let world = World::start(WorldOptions::default()).await;
    let mut daemon = world.daemon();
    world.streaming().await;
    let mut odoo = world.odoo().await;
    let mut agreed = 0;
    for run in 0..runs {
        for number in 0..8 {
            let name = format!("Company {run} {number}");
            odoo.create_company(&name, &format!("c{run}-{number}@example.com"), 1).await.unwrap();
        }
        // Any moment will do: this is what is varied, nothing is waited for.
        sleep(Duration::from_millis(rand::rng().random_range(0..1_500))).await;
        daemon.kill();
        let output = world.run(&["ledger", "verify", "--json"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "run {run}: {text}");
        let verdict: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(verdict["details"]["misprinted"], serde_json::Value::Null, "run {run}: {text}");
        agreed = verdict["details"]["checkpoints"].as_u64().unwrap();
        daemon = world.daemon();
    }
    world.settled(Duration::from_secs(60)).await;
    assert!(daemon.terminate().success());
    world.verify();
    assert!(agreed > 0, "checkpoints were compared");
    println!("# {runs} kills, every ledger sound, at last with {agreed} checkpoints");
}
