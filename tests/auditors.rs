//! What an auditor can do with nothing but the auditor's role, and what nobody can do.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;
use tokio_postgres::{Client, NoTls};

use crate::support::world::Daemon;
use crate::support::{World, WorldOptions, eventually};

const PATIENCE: Duration = Duration::from_secs(30);

/// A ledger with its three roles, a daemon that writes it, and something that happened.
struct Audited {
    world: World,
    daemon: Daemon,
    company: i32,
}

impl Audited {
    async fn start() -> Self {
        let world = World::start(WorldOptions::default()).await;
        let url = world.ledger.url("postgres", "tailwater");
        let said =
            world.printed_without_settings(&["ledger", "migrate", "--url", &url, "--auditor", "alice"]);
        assert!(said.contains("is up to date; tailwater writes it"), "{said}");
        let daemon = world.daemon();
        world.streaming().await;
        let mut odoo = world.odoo().await;
        let company = odoo.create_company("Acme", "info@acme.example", 1).await.unwrap();
        world.settled(PATIENCE).await;
        let erp = world.erp.client("erp").await.unwrap();
        let written =
            "update res_partner set vat = 'BE0123456789', write_uid = 7, write_date = now() where id = $1";
        erp.execute(written, &[&company]).await.unwrap();
        world.settled(PATIENCE).await;
        Self { world, daemon, company }
    }

    /// A command of somebody who has no settings file.
    fn alice(&self, arguments: &[&str]) -> Output {
        let url = self.world.ledger.url("alice", "tailwater");
        let mut command = Command::new(env!("CARGO_BIN_EXE_tailwater"));
        command.arg("ledger").args(arguments).args(["--url", &url]).env("TZ", "Europe/Brussels");
        command.output().unwrap()
    }

    fn answer(&self, arguments: &[&str]) -> String {
        let output = self.alice(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    async fn session(&self, role: &str) -> Client {
        let config = format!("host=127.0.0.1 port={} user={role} dbname=tailwater", self.world.ledger.port);
        let (client, connection) = tokio_postgres::connect(&config, NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    fn file(&self, name: &str) -> PathBuf {
        self.world.directory.path().join(name)
    }

    /// `--log`, `--pubkey`: what an auditor was given.
    fn outside(&self) -> [String; 4] {
        let (log, key) = (self.file("log"), self.file("ledger.pub"));
        ["--log".into(), log.display().to_string(), "--pubkey".into(), key.display().to_string()]
    }

    /// Waits until everything so far is covered by a checkpoint, and nothing more comes.
    async fn published(&self) {
        let client = self.world.ledger_client().await;
        eventually(PATIENCE, "a checkpoint", async || {
            let size: i64 = client.query_one("select size from tree", &[]).await.unwrap().get(0);
            let note = std::fs::read_to_string(self.file("log/checkpoint")).unwrap_or_default();
            let covered = note.lines().nth(1).and_then(|line| line.parse::<i64>().ok());
            if covered == Some(size) { Ok(()) } else { Err(format!("{covered:?} of {size}")) }
        })
        .await;
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_can_change_what_is_written_and_auditors_can_only_read() {
    let audited = Audited::start().await;
    let owner = audited.session("postgres").await;
    owner.batch_execute("set role tailwater_owner; set search_path = tailwater").await.unwrap();
    let changes = [
        "update entry set kind = 'gap' where seq = 1",
        "delete from entry where seq = 1",
        "truncate entry",
        "truncate subtree",
        "delete from tree",
        "update tree set size = size - 1",
    ];
    for sql in changes {
        let refused = owner.batch_execute(sql).await.unwrap_err().as_db_error().unwrap().clone();
        assert!(refused.message().contains("of the ledger"), "{sql}: {refused}");
    }
    // A clock that is months ahead would leave every later entry in that month.
    let ahead = "update tree set size = size + 1, month = (month + interval '2 months')::date";
    let refused = owner.batch_execute(ahead).await.unwrap_err().as_db_error().unwrap().clone();
    assert!(refused.message().contains("the clock of tailwater says"), "{refused}");
    let partition: String =
        owner.query_one("select to_char(month, '\"entry_\"YYYY_MM') from tree", &[]).await.unwrap().get(0);
    for sql in [format!("truncate {partition}"), format!("delete from {partition}")] {
        assert!(owner.batch_execute(&sql).await.is_err(), "{sql}");
    }
    let writer = audited.session("tailwater").await;
    writer.batch_execute("set search_path = tailwater").await.unwrap();
    let denied = [
        "update entry set kind = 'gap'",
        "delete from entry",
        "truncate entry",
        "truncate delivery",
        "drop table entry",
        "alter table entry disable trigger all",
        "update subtree set hash = hash",
        "set session_replication_role = replica",
        "set role tailwater_owner",
        "create table tailwater.mine ()",
        "delete from tailwater_keys.subject_key",
        "select destroy_keys(array['ERP-P-1'])",
        "delete from hold",
        "insert into hold (name, reason, held_by) values ('mine', 'x', 'x')",
        "select lift_hold('case-7')",
        "select place_hold('mine', '{}', '{}', 'x', 'x')",
    ];
    for sql in denied {
        let refused = writer.batch_execute(sql).await.unwrap_err();
        assert_eq!(refused.code().unwrap().code(), "42501", "{sql}: {refused}");
    }
    // Who ordered is said by the server, and stays.
    let forged = "insert into command (kind, arguments, requested_by, peer_uid, role, done_at)
                  values ('release', '{\"kind\": \"release\"}', 'ceo (uid 1000)', 1000, 'tailwater_owner', now()) returning id, role, done_at is null";
    let row = writer.query_one(forged, &[]).await.unwrap();
    assert_eq!((row.get::<_, &str>(1), row.get::<_, bool>(2)), ("tailwater", true));
    let id: i64 = row.get(0);
    let changed = writer.execute("update command set requested_by = 'cfo' where id = $1", &[&id]).await;
    assert_eq!(changed.unwrap_err().code().unwrap().code(), "42501");
    for sql in [
        "select open_month('9999-01-01')",
        "select index_images('x', 'res_partner', 'name')",
        // A clock that is behind, or ahead, by more than minutes.
        "update tree set recorded_at = recorded_at + interval '1 hour'",
    ] {
        assert!(writer.batch_execute(sql).await.is_err(), "{sql}");
    }
    let alice = audited.session("alice").await;
    for sql in [
        "select * from tailwater.entry",
        "select * from tailwater.image",
        "select * from tailwater.delivery",
        "insert into tailwater.command (kind, arguments, requested_by) values ('release', '{}', 'x')",
        "delete from tailwater_audit.entry",
    ] {
        let refused = alice.batch_execute(sql).await.unwrap_err();
        assert_eq!(refused.code().unwrap().code(), "42501", "{sql}: {refused}");
    }
    let forged = "select tailwater_audit.noted('x', null, 'release')";
    assert!(alice.batch_execute(forged).await.is_err());
    let unnoted = "begin read only; select count(*) from tailwater_audit.entry";
    assert!(alice.batch_execute(unnoted).await.is_err(), "what leaves no trace is not shown");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_auditor_answers_every_question_from_the_readme() {
    let mut audited = Audited::start().await;
    let company = audited.company.to_string();
    // Who changed this customer's VAT number, and where did it go?
    let history = audited.answer(&["history", "res_partner", &company]);
    assert!(history.contains("vat: - -> BE0123456789") && history.contains("by user 7"), "{history}");
    let trace = audited.answer(&["trace", &format!("ERP-P-{company}")]);
    for word in
        ["vat: - -> BE0123456789", "stripe customer", "zendesk organization", "applied status 200", "cus_"]
    {
        assert!(trace.contains(word), "{word}: {trace}");
    }
    let stripe_id =
        trace.split_whitespace().find(|word| word.starts_with("cus_")).unwrap().trim_end_matches(',');
    for backwards in [stripe_id.to_owned(), format!("stripe/{stripe_id}"), format!("res_partner/{company}")] {
        assert_eq!(audited.answer(&["trace", &backwards]), trace, "{backwards}");
    }
    let alice = audited.session("alice").await;
    let rows = alice
        .query(
            "select changed_by, old_value, new_value from tailwater_audit.field_change
                where refs @> array['res_partner/' || $1::text] and field = 'vat' and operation = 'update'",
            &[&company],
        )
        .await
        .unwrap();
    let found: Vec<(Option<&str>, Option<&str>, Option<&str>)> =
        rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
    assert_eq!(found, [(Some("7"), None, Some("BE0123456789"))]);
    // What did we send to Stripe on a day?
    let sent = "select count(*), count(*) filter (where class = 'applied'), min(request_sha256) from tailwater_audit.sent
                where target = 'stripe' and sent_at >= current_date and sent_at < current_date + 1";
    let row = alice.query_one(sent, &[]).await.unwrap();
    let calls = i64::try_from(audited.world.stripe.calls()).unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (calls, calls));
    // Was anything sent twice? Which deliveries did a person touch?
    let count = async |view: &str| -> i64 {
        alice.query_one(&format!("select count(*) from tailwater_audit.{view}"), &[]).await.unwrap().get(0)
    };
    assert_eq!(count("sent_twice").await, 0);
    assert_eq!(count("touched_delivery").await, 0);
    audited.world.printed(&[
        "identity",
        "unlink",
        "--target",
        "stripe",
        "--object",
        "customer",
        &format!("ERP-P-{company}"),
    ]);
    let people =
        "select role, requested_by, peer_uid from tailwater_audit.intervention where action = 'unlink'";
    let row = alice.query_one(people, &[]).await.unwrap();
    let uid = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").unwrap());
    assert_eq!(
        (row.get::<_, &str>(0), row.get::<_, Option<i64>>(2)),
        ("tailwater", Some(uid.into())),
        "as the kernel says"
    );
    assert!(row.get::<_, &str>(1).ends_with(&format!("(uid {uid})")));
    let alone = "select people, interventions from tailwater_audit.four_eyes where target = 'stripe'";
    let row = alice.query_one(alone, &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (1, 1));
    // As it was, and what differs.
    let past = audited.answer(&["as-of", "res_partner", &company, "2020-01-01"]);
    assert!(past.contains("it did not exist"), "{past}");
    let elsewhere = audited.answer(&["as-of", "res_partner", &company, "2099-01-01", "--source", "another"]);
    assert!(elsewhere.contains("no change of it is known"), "{elsewhere}");
    let now = audited.answer(&["as-of", "res_partner", &company, "2099-01-01 12:00"]);
    assert!(
        now.contains("vat: BE0123456789") && now.contains("2099-01-01T11:00:00Z (2099-01-01 12:00:00 CET)"),
        "{now}"
    );
    let diff = audited.answer(&["diff", "2020-01-01", "2099-01-01", "--table", "res_partner", "--json"]);
    let lines: Vec<Value> = diff.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ours = lines.iter().find(|row| row["key"] == company.as_str()).unwrap();
    assert_eq!(
        (&ours["before"], &ours["after"]["vat"], &ours["changes"]),
        (&Value::Null, &"BE0123456789".into(), &2.into())
    );
    let shown = audited.answer(&["show", "1"]);
    assert!(shown.contains("\"kind\": \"start\""), "{shown}");
    assert_eq!(audited.alice(&["show", "999999"]).status.code(), Some(64));
    // Everything that was read stands there, also what others than auditors were shown of a person, and by which user of the machine.
    audited.world.printed(&["explain", "res_partner", &company, "--values"]);
    eventually(PATIENCE, "the readings", async || {
        let rows = alice.query("select what, requested_by from tailwater_audit.reading", &[]).await.unwrap();
        let read: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        let wanted = [
            "history",
            "trace",
            "as-of",
            "diff",
            "show",
            "sent",
            "change",
            "sent_twice",
            "intervention",
            "explain",
        ];
        let is_named = |row: &tokio_postgres::Row| {
            let (what, by): (&str, &str) = (row.get(0), row.get(1));
            let role = if what == "explain" { "tailwater at " } else { "alice at 127.0.0.1" };
            by.starts_with(role)
                && (!["show", "explain"].contains(&what) || by.contains(&format!("(uid {uid})")))
        };
        match wanted.iter().find(|what| !read.iter().any(|read| read == *what)) {
            None if rows.iter().all(is_named) => Ok(()),
            missing => Err(format!("{missing:?} of {rows:?}")),
        }
    })
    .await;
    assert!(audited.daemon.terminate().success());
    let outside = audited.outside();
    let arguments: Vec<&str> = ["verify"].into_iter().chain(outside.iter().map(String::as_str)).collect();
    let verified = audited.answer(&arguments);
    assert!(verified.contains("sound") && !verified.contains("nothing outside"), "{verified}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_shows_by_itself_that_it_is_complete_and_unaltered() {
    let audited = Audited::start().await;
    audited.published().await;
    let (outside, bundle) = (audited.outside(), audited.file("bundle.tar"));
    let path = bundle.display().to_string();
    let mut arguments = vec!["export", "--with-proofs", "--from", "3", "--to", "11", "--out", &path];
    arguments.extend(outside.iter().map(String::as_str));
    let said = audited.answer(&arguments);
    assert!(said.contains("entries 3 to 11"), "{said}");
    let key = std::fs::read_to_string(audited.file("ledger.pub")).unwrap();
    let ours = |path: &str, key: Option<&str>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tailwater-verify"));
        command.arg(path).args(key.map(|key| ["--pubkey", key]).into_iter().flatten()).output().unwrap()
    };
    let python = |path: &str, key: Option<&str>| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/verify.py");
        Command::new("python3").args([script, path]).args(key).output().unwrap()
    };
    let sound = ours(&path, Some(&key));
    assert_eq!(sound.status.code(), Some(0), "{}", text(&sound));
    assert!(text(&sound).contains("entries 3 to 11, all of them") && text(&sound).contains("has signed"));
    let sound = python(&path, Some(&key));
    assert!(
        sound.status.success() && text(&sound).contains("signed by example.com/ledger"),
        "{}",
        text(&sound)
    );
    assert!(python(&path, None).status.success() && ours(&path, None).status.success());
    let (_, stranger) = tailwater::audit::checkpoint::generate("example.com/ledger").unwrap();
    assert_eq!(ours(&path, Some(&stranger)).status.code(), Some(1));
    assert!(!python(&path, Some(&stranger)).status.success());
    // One file of the bundle after the other, changed at one byte after the other.
    let unpacked = audited.file("unpacked");
    std::fs::create_dir(&unpacked).unwrap();
    let tar = |arguments: &[&str]| {
        let done = Command::new("tar").arg("-C").arg(&unpacked).args(arguments).output().unwrap();
        assert!(done.status.success(), "{}", text(&done));
    };
    tar(&["-xf", &path]);
    let files = ["manifest.json", "proof.json", "checkpoint", "entries.jsonl"];
    let changed = audited.file("changed.tar").display().to_string();
    let mut tried = 0;
    for file in files {
        let whole = std::fs::read(unpacked.join(file)).unwrap();
        for at in (0..whole.len()).step_by((whole.len() / 12).max(1)) {
            let mut bytes = whole.clone();
            // Blanks, letter case of names and the time of the export mean nothing.
            if !bytes[at].is_ascii_alphanumeric() || (file == "manifest.json" && !bytes[at].is_ascii_digit())
            {
                continue;
            }
            bytes[at] = if bytes[at] == b'1' { b'2' } else { b'1' };
            std::fs::write(unpacked.join(file), &bytes).unwrap();
            tar(&["-cf", &changed, "manifest.json", "proof.json", "checkpoint", "entries.jsonl"]);
            let verdict = ours(&changed, Some(&key));
            let in_time = file == "manifest.json" && text(&verdict).contains("sound");
            assert!(
                in_time || [Some(1), Some(2)].contains(&verdict.status.code()),
                "{file} at {at}: {}",
                text(&verdict)
            );
            if file != "manifest.json" {
                let theirs = python(&changed, Some(&key));
                assert!(!theirs.status.success(), "{file} at {at}: {}", text(&theirs));
            }
            tried += 1;
        }
        std::fs::write(unpacked.join(file), &whole).unwrap();
    }
    assert!(tried > 20, "{tried}");
    let lines = std::fs::read_to_string(unpacked.join("entries.jsonl")).unwrap();
    let cut: Vec<&str> = lines.split_inclusive('\n').collect();
    for (kept, code) in
        [(cut[..8].concat(), 2), (cut[1..].concat(), 1), ([&cut[..4], &cut[5..]].concat().concat(), 1)]
    {
        std::fs::write(unpacked.join("entries.jsonl"), kept).unwrap();
        tar(&["-cf", &changed, "manifest.json", "proof.json", "checkpoint", "entries.jsonl"]);
        assert_eq!(ours(&changed, Some(&key)).status.code(), Some(code));
        assert!(!python(&changed, Some(&key)).status.success());
    }
    // The other forms hold the same entries.
    let csv = audited.answer(&["export", "--format", "csv", "--from", "3", "--to", "11"]);
    assert_eq!(csv.lines().count(), 10);
    let jsonl = audited.answer(&["export", "--from", "3", "--to", "11"]);
    assert_eq!(jsonl, lines);
    let parquet = audited.file("entries.parquet").display().to_string();
    audited.answer(&["export", "--format", "parquet", "--from", "3", "--to", "11", "--out", &parquet]);
    let bytes = std::fs::read(&parquet).unwrap();
    assert!(bytes.starts_with(b"PAR1") && bytes.ends_with(b"PAR1"));
}
