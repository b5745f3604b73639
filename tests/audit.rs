//! The ledger proves itself (INV-10), and nothing secret or personal is in the log (INV-12).

use std::time::Duration;

use serde_json::Value;
use tailwater::ledger::tree::{Subtree, Tree};
use tlog_tiles::tlog::{Hash, node_hash, record_hash};

use crate::support::world::{STRIPE_KEY, ZENDESK_KEY};
use crate::support::{World, WorldOptions};

/// RFC 6962 section 2.1, word for word.
fn merkle_tree_hash(leaves: &[Hash]) -> Hash {
    match leaves {
        [single] => *single,
        _ => {
            let split = leaves.len().next_power_of_two() / 2;
            let (left, right) = leaves.split_at(split);
            node_hash(merkle_tree_hash(left), merkle_tree_hash(right))
        }
    }
}

#[test]
fn the_tree_kept_as_its_frontier_equals_the_definition_at_every_size() {
    let leaves: Vec<Hash> = (0..700_u32).map(|n| record_hash(&n.to_be_bytes())).collect();
    let mut tree = Tree::default();
    for (index, leaf) in leaves.iter().enumerate() {
        tree.append(*leaf);
        assert_eq!(tree.root(), merkle_tree_hash(&leaves[..=index]), "size {}", index + 1);
        for Subtree { level, index, hash } in tree.take_completed() {
            let first = usize::try_from(index).unwrap() * 256;
            assert_eq!((level, hash), (1, merkle_tree_hash(&leaves[first..first + 256])));
        }
        tree = Tree::restore(tree.size(), tree.frontier().to_vec()).unwrap();
    }
    assert!(Tree::restore(3, vec![Hash([0; 32])]).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn any_change_to_the_ledger_is_found_and_its_entry_named() {
    let world = World::start(WorldOptions::default()).await;
    let mut daemon = world.daemon();
    world.streaming().await;
    let mut odoo = world.odoo().await;
    for number in 0..5 {
        odoo.create_company(&format!("C{number}"), &format!("c{number}@example.com"), 1).await.unwrap();
    }
    world.settled(Duration::from_secs(20)).await;
    assert!(daemon.terminate().success());
    world.verify();
    let ledger = world.tamperer().await;
    let size: i64 = ledger.query_one("select size from tree", &[]).await.unwrap().get(0);
    let cases = [
        ("update entry set body = set_byte(body, 20, get_byte(body, 20) # 1) where seq = 5", 1, "entry 5"),
        ("update entry set leaf = sha256('x') where seq = 6", 1, "entry 6"),
        ("update entry set recorded_at = recorded_at + interval '1 s' where seq = 7", 1, "entry 7"),
        ("update entry set kind = 'gap' where seq = 8", 1, "entry 8"),
        ("update entry set refs = refs || '{x}' where seq = 8", 1, "entry 8"),
        ("update entry set body = '{}', leaf = sha256('\\x00' || '{}'::bytea) where seq = 9", 1, "entry 9"),
        ("delete from entry where seq = 4", 2, "entry 4"),
        ("delete from entry where seq = (select max(seq) from entry)", 2, "missing"),
        (
            "insert into entry select seq + 1, month, kind, recorded_at, correlation_id, refs, body, leaf from entry order by seq desc limit 1",
            2,
            "not covered",
        ),
        ("update tree set root = sha256('x')", 1, "tree head"),
    ];
    for (sql, code, expected) in cases {
        ledger
            .batch_execute("create table entry_saved as table entry; create table tree_saved as table tree")
            .await
            .unwrap();
        ledger.batch_execute(sql).await.unwrap();
        let output = world.run(&["ledger", "verify"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(code), "{sql}: {text}");
        assert!(text.contains(expected), "{sql}: {text}");
        let restore =
            "truncate entry, tree; insert into entry table entry_saved; insert into tree table tree_saved;
                       drop table entry_saved, tree_saved";
        ledger.batch_execute(restore).await.unwrap();
    }
    world.verify();
    assert!(size > 15, "{size}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_followed_from_the_row_to_the_answer_and_the_log_holds_nothing_personal() {
    let world = World::start(WorldOptions::default()).await;
    let mut daemon = world.daemon();
    world.streaming().await;
    let mut odoo = world.odoo().await;
    let company = odoo.create_company("Canary Personal Ltd", "canary-personal@example.com", 1).await.unwrap();
    odoo.write(company, "email", &"nonsense-canary").await.unwrap();
    world.settled(Duration::from_secs(20)).await;
    let ledger = world.ledger_client().await;
    let rows = ledger
        .query("select kind, body from entry where correlation_id is not null order by seq", &[])
        .await
        .unwrap();
    let bodies: Vec<(String, Value)> = rows
        .iter()
        .map(|row| (row.get(0), serde_json::from_slice(&row.get::<_, Vec<u8>>(1)).unwrap()))
        .collect();
    let event = &bodies.iter().find(|(kind, _)| kind == "event").unwrap().1;
    assert_eq!(event["changes"][0]["relation"], "res_partner");
    assert_eq!(event["changes"][0]["before"], Value::Null);
    assert_eq!(event["changes"][0]["after"]["name"], "Canary Personal Ltd");
    assert!(event["source"]["xid"].is_u64() && event["source"]["commit_lsn"].is_string());
    for kind in ["attempt", "outcome"] {
        let found =
            bodies.iter().filter(|(k, body)| k == kind && body["correlation_id"] == event["event_id"]);
        assert_eq!(found.count(), 2, "{kind} at Stripe and at Zendesk");
    }
    let outcome = &bodies.iter().find(|(kind, _)| kind == "outcome").unwrap().1;
    assert_eq!((&outcome["class"], outcome["external_id"].is_string()), (&"applied".into(), true));
    assert!(daemon.terminate().success());
    let log = world.log();
    for secret in [STRIPE_KEY, ZENDESK_KEY, "canary-personal", "Canary Personal", "nonsense-canary"] {
        assert!(!log.contains(secret), "{secret} is in the log:\n{log}");
    }
    let kinds: Vec<String> = ledger
        .query("select kind from entry where kind in ('start', 'stop') order by seq", &[])
        .await
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(kinds, ["start", "stop"]);
}
