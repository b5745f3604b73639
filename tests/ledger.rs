//! The ledger by itself: what its writing session and its queries promise.

use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;
use refinery::{Migration, Runner};
use serde_json::json;
use tailwater::demo::private::{PrivatePostgres, TemporaryDirectory};
use tailwater::event::{Keys, Priority};
use tailwater::ledger::Ledger;
use tailwater::ledger::batch::Batch;
use tailwater::ledger::entry::{EntryKind, NewEntry};
use tailwater::ledger::hashes::{inclusion, root_at};
use tailwater::ledger::keyring::Master;
use tailwater::ledger::outbox::{Outbox, SHARDS, Wanted};
use tailwater::ledger::tree::Tree;
use tailwater::ledger::verify::{Evidence, Span, Verdict, verify};
use tlog_tiles::tlog::check_record;
use tokio::time::timeout;

use crate::support::entries::{LedgerAlone, database, lines};

fn note(text: &str) -> Batch {
    let mut batch = Batch::default();
    batch.entry(NewEntry::new(EntryKind::Operator, None, json!({"action": text})));
    batch
}

/// The writer sends a batch before it knows what became of the one before. What is refused for its content is found, and only whoever
/// brought it hears of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_cannot_be_written_fails_alone() {
    let LedgerAlone { ledger, server, directory: _directory, .. } = LedgerAlone::start().await;
    ledger.writer().write(note("first")).await.unwrap();
    // PostgreSQL stores no NUL in a text. The batch has no entry, so the tree does not show that it is missing.
    let mut batches: Vec<Batch> = (0..20).map(|_| note("with it")).collect();
    batches.insert(7, Batch { forget: vec!["\0".into()], ..Batch::default() });
    let writes = join_all(batches.into_iter().map(|batch| ledger.writer().write(batch)));
    let results = timeout(Duration::from_secs(30), writes).await.expect("nobody waits for ever");
    let failed: Vec<usize> = (0..results.len()).filter(|at| results[*at].is_err()).collect();
    assert_eq!(failed, [7], "{results:?}");
    ledger.writer().write(note("behind")).await.unwrap();
    let mut client = server.client("postgres").await.unwrap();
    client.batch_execute("set search_path = tailwater").await.unwrap();
    let count: i64 = client.query_one("select count(*) from entry", &[]).await.unwrap().get(0);
    assert_eq!(count, 22);
    let verdict = verify(&mut client, Span::ALL, Evidence::default(), |_, _| {}).await.unwrap();
    assert!(matches!(verdict, Verdict::Sound { size: 22, .. }), "{verdict:?}");
}

/// What is due is found in the same few steps however much is owed, even where no statistics tell the planner so.
#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_does_not_slow_its_own_working_off() {
    let LedgerAlone { ledger, server, directory: _directory, .. } = LedgerAlone::start().await;
    let client = server.client("postgres").await.unwrap();
    client
        .batch_execute(
            "set search_path = tailwater;
             insert into entry (seq, month, kind, recorded_at, refs, body, leaf)
             select 1, month, 'event', now(), '{}', '{}', sha256('') from tree;
             insert into delivery (event_seq, event_month, target, object, canonical_id, operation, fact, state, head)
             select 1, (select month from tree), 'stripe', 'customer', 'ERP-P-' || n % 20000, 'upsert', false, 'pending', n <= 20000
             from generate_series(1, 40000) n",
        )
        .await
        .unwrap();
    let outbox = Outbox::prepare(ledger.reader(), ledger.master(), ledger.erasures()).await.unwrap();
    let shards: Vec<i16> = (0..SHARDS).collect();
    let wanted = Wanted {
        target: "stripe",
        objects: &["customer"],
        shards: &shards,
        classes: &Priority::ALL,
        most: 10,
        busy: &[],
    };
    let due = outbox.due(ledger.reader(), &wanted).await.unwrap();
    assert_eq!(due.len(), 10);
    assert!(due.iter().all(|due| due.supersedes.len() == 1), "the newer state replaces the older one");
    assert_eq!(
        outbox.next_due_at(ledger.reader(), "stripe", &["customer".to_owned()], &shards).await.unwrap(),
        None
    );
    ledger.reader().batch_execute("select pg_stat_force_next_flush()").await.unwrap();
    let sql = "select sum(idx_tup_read)::bigint from pg_stat_user_indexes where relname = 'delivery'";
    let read: i64 = client.query_one(sql, &[]).await.unwrap().get(0);
    assert!(read > 0 && read < 1_000, "{read} index entries read for 10 deliveries");
}

/// What was written before there were months, subtrees and references can be proven and found as well.
#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_of_an_earlier_version_is_taken_over_whole() {
    let directory = TemporaryDirectory::new("test").unwrap();
    let server = PrivatePostgres::start(directory.path(), "ledger", &[]).await.unwrap();
    let mut client = server.client("postgres").await.unwrap();
    client.batch_execute("create schema tailwater; set search_path = tailwater").await.unwrap();
    let files = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("sql/ledger");
    let mut migrations = Vec::new();
    for file in std::fs::read_dir(files).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let version = name.strip_prefix('V').and_then(|rest| rest.split_once("__")?.0.parse::<u32>().ok());
        if version.is_some_and(|version| version <= 15) {
            migrations.push(Migration::unapplied(&name, &std::fs::read_to_string(path).unwrap()).unwrap());
        }
    }
    assert_eq!(migrations.len(), 15);
    Runner::new(&migrations).run_async(&mut client).await.unwrap();
    let mut tree = Tree::default();
    for (seq, entry) in (1..).zip(lines(0, 700).entries) {
        let entry = entry.seal(seq, Timestamp::from_second(1_764_000_000 + seq).unwrap(), &Keys::new());
        tree.append(entry.leaf);
        let sql = "insert into entry (seq, kind, recorded_at, correlation_id, body, leaf) values ($1, $2, $3, $4, $5, $6)";
        let kind = entry.kind.as_str();
        client
            .execute(
                sql,
                &[
                    &seq,
                    &kind,
                    &entry.recorded_at,
                    &entry.correlation_id,
                    &entry.body,
                    &entry.leaf.0.as_slice(),
                ],
            )
            .await
            .unwrap();
    }
    let frontier: Vec<&[u8]> = tree.frontier().iter().map(|hash| hash.0.as_slice()).collect();
    let root = tree.root();
    let sql = "update tree set size = 700, frontier = $1, root = $2";
    client.execute(sql, &[&frontier, &root.0.as_slice()]).await.unwrap();
    let ledger = Ledger::open(&database(server.port), &Master::default()).await.unwrap();
    ledger.writer().write(lines(700, 400)).await.unwrap();
    let verdict = verify(&mut client, Span::ALL, Evidence::default(), |_, _| {}).await.unwrap();
    assert!(matches!(verdict, Verdict::Sound { size: 1100, .. }), "{verdict:?}");
    for seq in [1, 255, 256, 257, 700, 701, 1100] {
        let (leaf, proof) = inclusion(&client, seq, 1100).await.unwrap();
        let root = root_at(&client, 1100).await.unwrap();
        check_record(&proof, 1100, root, seq - 1, leaf).unwrap();
    }
    let found = "select count(*) from entry where refs @> array['res_partner/5'] and seq <= 700";
    assert_eq!(client.query_one(found, &[]).await.unwrap().get::<_, i64>(0), 1);
}
