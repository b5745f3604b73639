//! Whatever is done to a ledger behind its back is found, and the first entry that is not what it was is named.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tailwater::event::canonical_bytes;
use tailwater::ledger::batch::Batch;
use tailwater::ledger::entry::{EntryKind, NewEntry};
use tailwater::ledger::tree::{Subtree, Tree};
use tailwater::ledger::verify::{Evidence, Span, Verdict, verify_within};
use tlog_tiles::tlog::{Hash, record_hash};
use tokio_postgres::{Client, Row, Transaction};

use crate::support::entries::LedgerAlone;

/// Every kind of tampering, by what it does.
const KINDS: [&str; 20] = [
    "byte of a body",
    "byte of a leaf",
    "kind",
    "time",
    "correlation id",
    "references",
    "month",
    "row deleted",
    "tail cut",
    "rows swapped",
    "row doubled",
    "subtree",
    "tree head",
    "frontier",
    "rewritten with its tree",
    "tail cut with its tree",
    "rewritten and tail cut with its tree",
    "rewritten and tail cut, the tree left alone",
    "row inserted with its tree",
    "archive that never was",
];

/// What is kept outside: the head at some sizes, and all leaves.
struct Outside {
    checkpoints: BTreeMap<u64, Hash>,
    leaves: Vec<Hash>,
}

impl Outside {
    /// As the ledger is now, with a checkpoint of each size that is signed.
    async fn of(client: &Client, is_signed: impl Fn(u64) -> bool) -> Self {
        let rows = client.query("select leaf from entry order by seq", &[]).await.unwrap();
        let leaf = |row: &Row| Hash(row.get::<_, &[u8]>(0).try_into().unwrap());
        let leaves: Vec<Hash> = rows.iter().map(leaf).collect();
        let (mut tree, mut checkpoints) = (Tree::default(), BTreeMap::new());
        for leaf in &leaves {
            tree.append(*leaf);
            if is_signed(tree.size()) {
                checkpoints.insert(tree.size(), tree.root());
            }
        }
        Self { checkpoints, leaves }
    }
}

/// Somebody who may do anything, past triggers.
async fn owner(alone: &LedgerAlone) -> Client {
    let client = alone.server.client("postgres").await.unwrap();
    client
        .batch_execute("set search_path = tailwater; set session_replication_role = replica")
        .await
        .unwrap();
    client
}

async fn verdict(transaction: &Transaction<'_>, span: Span, outside: &Outside) -> Verdict {
    let mut leaf = |seq: u64| outside.leaves.get(usize::try_from(seq).unwrap() - 1).copied();
    let evidence = Evidence { checkpoints: outside.checkpoints.clone(), leaf: Some(&mut leaf) };
    verify_within(transaction, span, evidence, |_, _| {}).await.unwrap()
}

/// Does it; gives the entry that has to be named.
async fn tamper(t: &Transaction<'_>, kind: &str, size: i64, random: &mut StdRng) -> i64 {
    let seq = random.random_range(1..=size);
    let run = async |sql: &str| assert!(t.execute(sql, &[]).await.unwrap() > 0, "{sql}");
    match kind {
        "byte of a body" | "byte of a leaf" => {
            let column = if kind == "byte of a body" { "body" } else { "leaf" };
            let length: i32 = t
                .query_one(&format!("select length({column}) from entry where seq = $1"), &[&seq])
                .await
                .unwrap()
                .get(0);
            let (at, bits) = (random.random_range(0..length), random.random_range(1..256));
            run(&format!(
                "update entry set {column} = set_byte({column}, {at}, get_byte({column}, {at}) # {bits}) where seq = {seq}"
            ))
            .await;
            seq
        }
        "kind" => {
            run(&format!("update entry set kind = case kind when 'event' then 'attempt' else 'event' end where seq = {seq}")).await;
            seq
        }
        "time" => {
            run(&format!(
                "update entry set recorded_at = recorded_at + interval '1 microsecond' where seq = {seq}"
            ))
            .await;
            seq
        }
        "correlation id" => {
            run(&format!("update entry set correlation_id = left(correlation_id, -1) where seq = {seq}"))
                .await;
            seq
        }
        "references" => {
            run(&format!("update entry set refs = refs[2:] where seq = {seq}")).await;
            seq
        }
        // In another partition it would be dropped with the wrong month.
        "month" if seq == size => {
            run(&format!("update entry set recorded_at = recorded_at - interval '1 s' where seq = {seq}"))
                .await;
            seq
        }
        "month" => {
            run(&format!("update entry set month = month + interval '1 month' where seq = {seq}")).await;
            seq + 1
        }
        "row deleted" => {
            run(&format!("delete from entry where seq = {seq}")).await;
            seq
        }
        "tail cut" => {
            run(&format!("delete from entry where seq >= {seq}")).await;
            seq
        }
        "rows swapped" => {
            let other = if seq == size { 1 } else { seq + 1 };
            run(&format!(
                "update entry e set kind = o.kind, recorded_at = o.recorded_at, correlation_id = o.correlation_id, refs = o.refs,
                        body = o.body, leaf = o.leaf
                 from entry o where (e.seq, o.seq) in (({seq}, {other}), ({other}, {seq}))"
            ))
            .await;
            seq.min(other)
        }
        "row doubled" => {
            run(&format!(
                "insert into entry select {size} + 1, month, kind, recorded_at, correlation_id, refs, body, leaf from entry where seq = {seq}"
            ))
            .await;
            size + 1
        }
        "subtree" => {
            let index = random.random_range(0..size / 256);
            run(&format!("update subtree set hash = sha256(hash) where level = 1 and index = {index}")).await;
            (index + 1) * 256
        }
        "tree head" => {
            run("update tree set root = sha256(root)").await;
            size
        }
        "archive that never was" => {
            // What is in its place here, nobody would look at.
            run(&format!(
                "insert into archived_leaves (first_seq, last_seq, hashes)
                 select min(seq), max(seq), string_agg(leaf, ''::bytea order by seq) from entry where seq <= {seq} group by (seq - 1) / 256"
            ))
            .await;
            match seq % 2 {
                0 => run(&format!("update entry set body = '{{}}' where seq = {seq}")).await,
                _ => run(&format!("delete from entry where seq <= {seq}")).await,
            }
            1
        }
        "frontier" => {
            run("update tree set frontier[1] = sha256(frontier[1])").await;
            size
        }
        "rewritten with its tree" => {
            rewrite(t, seq, random).await;
            seal(t).await;
            seq
        }
        "rewritten and tail cut with its tree" => {
            rewrite(t, seq, random).await;
            t.execute("delete from entry where seq > $1", &[&random.random_range(seq..=size)]).await.unwrap();
            seal(t).await;
            seq
        }
        "rewritten and tail cut, the tree left alone" => {
            rewrite(t, seq, random).await;
            t.execute("delete from entry where seq > $1", &[&seq]).await.unwrap();
            seq
        }
        "tail cut with its tree" => {
            run(&format!("delete from entry where seq >= {seq}")).await;
            seal(t).await;
            seq
        }
        _ => {
            let seq = size - seq % 200;
            insert(t, seq, size).await;
            seal(t).await;
            seq
        }
    }
}

/// Says something else, in the form of an entry.
async fn rewrite(t: &Transaction<'_>, seq: i64, random: &mut StdRng) {
    let body: Vec<u8> = t.query_one("select body from entry where seq = $1", &[&seq]).await.unwrap().get(0);
    let mut body: Value = serde_json::from_slice(&body).unwrap();
    body["reason"] = format!("another {}", random.random::<u32>()).into();
    let body = canonical_bytes(&body);
    let leaf = record_hash(&body).0.to_vec();
    t.execute("update entry set body = $1, leaf = $2 where seq = $3", &[&body, &leaf, &seq]).await.unwrap();
}

/// Puts an entry that never was before entry `seq`, one of the last; those behind it move on.
async fn insert(t: &Transaction<'_>, seq: i64, size: i64) {
    let rows =
        t.query("select seq, body from entry where seq >= $1 order by seq desc", &[&seq]).await.unwrap();
    t.execute("update entry set seq = seq + $2 where seq >= $1", &[&seq, &(size * 2)]).await.unwrap();
    for row in &rows {
        let old: i64 = row.get(0);
        let mut body: Value = serde_json::from_slice(row.get(1)).unwrap();
        body["seq"] = (old + 1).into();
        let body = canonical_bytes(&body);
        let leaf = record_hash(&body).0.to_vec();
        let sql = "update entry set seq = $1, body = $2, leaf = $3 where seq = $4";
        t.execute(sql, &[&(old + 1), &body, &leaf, &(old + size * 2)]).await.unwrap();
    }
    let sql = "insert into entry select $1::bigint, month, kind, recorded_at, correlation_id, refs, body, leaf from entry where seq = $1::bigint + 1";
    t.execute(sql, &[&seq]).await.unwrap();
    let body: Vec<u8> = t.query_one("select body from entry where seq = $1", &[&seq]).await.unwrap().get(0);
    let mut body: Value = serde_json::from_slice(&body).unwrap();
    body["seq"] = seq.into();
    body["reason"] = "never was".into();
    let body = canonical_bytes(&body);
    let leaf = record_hash(&body).0.to_vec();
    t.execute("update entry set body = $1, leaf = $2 where seq = $3", &[&body, &leaf, &seq]).await.unwrap();
}

/// Makes tree and subtrees those of the entries as they are now, as the owner of the tables can.
async fn seal(t: &Transaction<'_>) {
    let mut tree = Tree::default();
    for row in t.query("select leaf from entry order by seq", &[]).await.unwrap() {
        tree.append(Hash(row.get::<_, &[u8]>(0).try_into().unwrap()));
    }
    t.execute("delete from subtree", &[]).await.unwrap();
    for Subtree { level, index, hash } in tree.take_completed() {
        let (level, index) = (i16::from(level), i64::try_from(index).unwrap());
        let sql = "insert into subtree (level, index, hash) values ($1, $2, $3)";
        t.execute(sql, &[&level, &index, &hash.0.as_slice()]).await.unwrap();
    }
    let frontier: Vec<&[u8]> = tree.frontier().iter().map(|hash| hash.0.as_slice()).collect();
    let (size, root) = (i64::try_from(tree.size()).unwrap(), tree.root());
    let sql = "update tree set size = $1, frontier = $2, root = $3";
    t.execute(sql, &[&size, &frontier, &root.0.as_slice()]).await.unwrap();
}

#[tokio::test(flavor = "current_thread")]
async fn random_tampering_is_found_and_its_first_entry_named() {
    let number =
        |name: &str, default| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (entries, times) = (number("TAILWATER_ENTRIES", 1_500), number("TAILWATER_TAMPERINGS", 85));
    let alone = LedgerAlone::start().await;
    alone.fill(entries).await;
    let size = i64::try_from(entries).unwrap();
    let mut client = owner(&alone).await;
    let outside = Outside::of(&client, |size| size.is_multiple_of(400) || size == entries as u64).await;
    let agreeing = outside.checkpoints.len();
    let seed = number("TAILWATER_SEED", rand::random::<u32>() as usize);
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed as u64);
    let mut found: BTreeMap<&str, usize> = BTreeMap::new();
    for round in 0..times {
        let clean = client.transaction().await.unwrap();
        if round % 100 == 0 {
            let verdict = verdict(&clean, Span::ALL, &outside).await;
            assert!(
                matches!(verdict, Verdict::Sound { checkpoints, misprinted: None, .. } if checkpoints == agreeing),
                "{verdict:?}"
            );
        }
        let kind = KINDS[round % KINDS.len()];
        let expected = tamper(&clean, kind, size, &mut random).await;
        match verdict(&clean, Span::ALL, &outside).await {
            Verdict::Tampered { seq, what } | Verdict::Incomplete { seq, what } => {
                assert_eq!(seq, expected, "{kind}: {what}");
            }
            verdict @ Verdict::Sound { .. } => panic!("{kind} at {expected}: {verdict:?}"),
        }
        if kind == "rewritten with its tree" {
            // Also where it stands before the entries that are asked about.
            let from = u64::try_from(random.random_range(expected..=size)).unwrap();
            let found = verdict(&clean, Span { from, to: None }, &outside).await;
            assert!(
                matches!(found, Verdict::Tampered { seq, .. } if seq == expected),
                "{expected}, from {from}: {found:?}"
            );
        }
        *found.entry(kind).or_default() += 1;
        clean.rollback().await.unwrap();
        if round % 50 == 49 {
            // What was rolled back would have to be gone through every time.
            client.batch_execute("vacuum entry, subtree, tree").await.unwrap();
        }
    }
    println!("# {times} tamperings of {entries} entries, all found: {found:?}");
    assert_eq!(found.values().sum::<usize>(), times);
}

#[tokio::test(flavor = "current_thread")]
async fn what_was_changed_in_the_published_log_alone_is_told_as_such() {
    let alone = LedgerAlone::start().await;
    alone.fill(1_000).await;
    let mut client = owner(&alone).await;
    let mut outside = Outside::of(&client, |size| [400, 900].contains(&size)).await;
    outside.leaves[599] = Hash([7; 32]);
    let transaction = client.transaction().await.unwrap();
    for to in [None, Some(700)] {
        // Up to 700 no checkpoint speaks of it, but a later one does.
        let verdict = verdict(&transaction, Span { from: 1, to }, &outside).await;
        assert!(matches!(verdict, Verdict::Sound { misprinted: Some(600), .. }), "{to:?}: {verdict:?}");
    }
    let mut random = StdRng::seed_from_u64(1);
    rewrite(&transaction, 500, &mut random).await;
    seal(&transaction).await;
    match verdict(&transaction, Span::ALL, &outside).await {
        // What was published does not make what was signed: it does not tell which entry was changed.
        Verdict::Tampered { seq: 401, what } => assert!(what.contains("up to 900"), "{what}"),
        verdict => panic!("{verdict:?}"),
    }
}

#[tokio::test(flavor = "current_thread")]
async fn hashes_that_are_kept_twice_hide_nothing_and_a_range_begins_and_ends_where_something_is_signed() {
    let alone = LedgerAlone::start().await;
    alone.fill(1_000).await;
    // An honest archive, as `ledger archive` makes it.
    let mut batch = Batch::default();
    let fields = json!({"month": "2026-01-01", "first": 1, "last": 512, "file": "f", "sha256": "0", "restored": false});
    batch.entry(NewEntry::new(EntryKind::Archive, None, fields));
    alone.ledger.writer().write(batch).await.unwrap();
    let mut client = owner(&alone).await;
    let outside = Outside::of(&client, |size| [200, 700, 800, 1_001].contains(&size)).await;
    // Nothing but checkpoints.
    let outside = Outside { leaves: Vec::new(), ..outside };
    let spans = [
        Span::ALL,
        Span { from: 1, to: Some(750) },
        Span { from: 300, to: Some(600) },
        Span { from: 650, to: None },
    ];
    let all = async |t: &Transaction<'_>| {
        let mut found = Vec::new();
        for span in spans {
            found.push(verdict(t, span, &outside).await);
        }
        found
    };
    let kept = "insert into archived_leaves (first_seq, last_seq, hashes)
                select min(seq), max(seq), string_agg(leaf, ''::bytea order by seq) from entry where seq between ";
    let archive = format!("{kept} 1 and 512 group by (seq - 1) / 256; delete from entry where seq <= 512");
    let transaction = client.transaction().await.unwrap();
    transaction.batch_execute(&archive).await.unwrap();
    for verdict in all(&transaction).await {
        assert!(matches!(verdict, Verdict::Sound { .. }), "{verdict:?}");
    }
    // What is not there any more, and hashes of it in the place of others: the walk would go on behind it.
    let hidden = "create temporary table mine on commit drop as select string_agg(leaf, ''::bytea order by seq) as hashes from entry where seq between 513 and 612;
         insert into archived_leaves (first_seq, last_seq, hashes) select 401, 500, hashes from mine;
         delete from entry where seq between 513 and 612";
    transaction.batch_execute(hidden).await.unwrap();
    for verdict in all(&transaction).await.into_iter().take(3) {
        assert!(matches!(verdict, Verdict::Tampered { seq: 401, .. }), "{verdict:?}");
    }
    transaction.rollback().await.unwrap();
    // Taken away without a word: also where only a part is asked about.
    let transaction = client.transaction().await.unwrap();
    transaction.batch_execute(&archive).await.unwrap();
    let silently = format!("{kept} 513 and 600; delete from entry where seq between 513 and 600");
    transaction.batch_execute(&silently).await.unwrap();
    for verdict in all(&transaction).await {
        assert!(matches!(verdict, Verdict::Incomplete { seq: 513, .. }), "{verdict:?}");
    }
    transaction.rollback().await.unwrap();
    // What was rewritten behind a range is no fault of the range.
    let transaction = client.transaction().await.unwrap();
    rewrite(&transaction, 780, &mut StdRng::seed_from_u64(1)).await;
    seal(&transaction).await;
    let up_to = verdict(&transaction, Span { from: 1, to: Some(700) }, &outside).await;
    assert!(matches!(up_to, Verdict::Sound { .. }), "{up_to:?}");
    let behind = verdict(&transaction, Span { from: 1, to: Some(750) }, &outside).await;
    assert!(matches!(behind, Verdict::Tampered { seq: 701, .. }), "{behind:?}");
    transaction.rollback().await.unwrap();
    // What is missing before a range, and behind its end.
    let transaction = client.transaction().await.unwrap();
    transaction.batch_execute("delete from entry where seq = 790").await.unwrap();
    let before = verdict(&transaction, Span { from: 900, to: None }, &outside).await;
    assert!(matches!(before, Verdict::Incomplete { seq: 790, .. }), "{before:?}");
    transaction.batch_execute("delete from entry where seq > 900").await.unwrap();
    seal(&transaction).await;
    let cut = verdict(&transaction, Span { from: 950, to: None }, &outside).await;
    assert!(matches!(cut, Verdict::Incomplete { seq: 900, .. }), "{cut:?}");
}
