//! Whole business documents: what a recorded day of a real Odoo becomes.

use std::collections::{BTreeMap, HashSet};
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::documents::{Changes, Told, assert_same_documents, changes, documents, told};
use crate::support::real_odoo::{Running, recorded, running};

/// A transaction of the recorded day: the business action, its SQL, its row changes.
struct Step {
    action: String,
    sql: String,
    rows: usize,
}

fn steps(path: &std::path::Path) -> (String, Vec<Step>) {
    let mut zcat = Command::new("zcat").arg(path).stdout(Stdio::piped()).spawn().unwrap();
    let mut text = String::new();
    zcat.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(zcat.wait().unwrap().success());
    let (settings, rest) = text.split_once("\n-- ").unwrap();
    let step = |block: &str| {
        let (action, sql) = block.split_once('\n').unwrap();
        let changes = ["insert into ", "update \"", "delete from "];
        let rows = sql.lines().filter(|line| changes.iter().any(|verb| line.starts_with(verb))).count();
        Step { action: action.to_owned(), sql: sql.to_owned(), rows }
    };
    (settings.to_owned(), rest.split("\n-- ").map(step).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_transaction_of_a_recorded_day_makes_exactly_the_documents_it_changed() {
    let Some((world, recorded)) = recorded().await else { return };
    let erp = world.erp.client("erp").await.unwrap();
    let mut daemon = world.daemon();
    world.streaming().await;
    world.settled(Duration::from_secs(30)).await;
    let ledger = world.ledger_client().await;
    let mut now = documents(&erp).await;
    let (first, loaded) = told(&ledger, 0).await;
    let first: Changes = first.into_iter().map(|told| (told.key, told.data)).collect();
    assert_same_documents("first load", &first, &changes(&Default::default(), &now));

    let (settings, steps) = steps(&recorded.join("small.sql.gz"));
    erp.batch_execute(&settings).await.unwrap();
    let mut expected: Vec<(&Step, Changes)> = Vec::new();
    for step in &steps {
        erp.batch_execute(&step.sql).await.unwrap_or_else(|error| panic!("{}: {error:?}", step.action));
        let after = documents(&erp).await;
        let changed = changes(&now, &after);
        now = after;
        if !changed.is_empty() {
            expected.push((step, changed));
        }
    }
    world.settled(Duration::from_secs(20)).await;
    let (events, _) = told(&ledger, loaded).await;
    let faults: Vec<&Told> = events.iter().filter(|told| told.fault.is_some()).collect();
    assert!(faults.is_empty(), "{faults:#?}");
    report(&steps, &events);
    let (merges, events): (Vec<Told>, Vec<Told>) =
        events.into_iter().partition(|told| told.key.0 == "merge.v1");
    let merged: Vec<_> = merges
        .iter()
        .map(|told| (&told.data.as_ref().unwrap()["from"], &told.data.as_ref().unwrap()["into"]))
        .collect();
    let gone = erp
        .query("select 'ERP-P-' || dst_partner_id from base_partner_merge_automatic_wizard where state = 'finished'", &[])
        .await
        .unwrap();
    assert_eq!(merged.len(), gone.len());
    assert!(merged.iter().zip(&gone).all(|((_, into), row)| *into == row.get::<_, &str>(0)), "{merged:?}");
    assert!(merged.iter().all(|(from, _)| now.keys().all(|(_, id)| id != from.as_str().unwrap())));

    let mut transactions = events.chunk_by(|a, b| a.commit_lsn == b.commit_lsn);
    for (step, expected) in &expected {
        let told = transactions.next().unwrap_or_default();
        let told_once: Changes = told.iter().map(|told| (told.key.clone(), told.data.clone())).collect();
        assert_eq!(told_once.len(), told.len(), "{}: a document was told twice", step.action);
        assert_same_documents(&step.action, &told_once, expected);
    }
    assert!(transactions.next().is_none(), "a transaction that changed nothing made events");
    assert!(daemon.terminate().success());
    world.verify();
}

/// The same of a running Odoo that is driven.
#[tokio::test(flavor = "multi_thread")]
async fn a_driven_odoo_ends_in_the_documents_that_its_tables_say() {
    let Some(odoo) = running().await else { return };
    let Running { world, erp, source, .. } = &odoo;
    let mut daemon = world.daemon_with(&[("TAILWATER__SOURCES__ERP__URL", source)]);
    world.streaming().await;
    let ledger = world.ledger_client().await;
    let (first, loaded) = told(&ledger, 0).await;
    let first: Changes = first.into_iter().map(|told| (told.key, told.data)).collect();
    assert_same_documents("first load", &first, &changes(&Default::default(), &documents(erp).await));
    odoo.drive().await;
    let (events, _) = told(&ledger, loaded).await;
    let mut held = first;
    let mut seen = HashSet::new();
    for told in &events {
        assert!(
            seen.insert((&told.commit_lsn, &told.key)),
            "{:?} was told twice in one transaction",
            told.key
        );
        if told.key.0 == "merge.v1" {
            continue;
        }
        assert_ne!(held.get(&told.key), Some(&told.data), "{:?} says what was said before", told.key);
        assert_eq!(told.fault, None, "{:?}", told.key);
        held.insert(told.key.clone(), told.data.clone());
    }
    held.retain(|_, data| data.is_some());
    assert_same_documents("the day", &held, &changes(&Default::default(), &documents(erp).await));
    println!("{} events: {:?}", events.len(), by_type(&events));
    assert!(daemon.terminate().success());
    world.verify();
}

fn by_type(events: &[Told]) -> BTreeMap<&str, usize> {
    let mut by_type = BTreeMap::new();
    for told in events {
        *by_type.entry(told.key.0.as_str()).or_default() += 1;
    }
    by_type
}

/// Rows and events, by type.
fn report(steps: &[Step], events: &[Told]) {
    let by_type = by_type(events);
    let rows: usize = steps.iter().map(|step| step.rows).sum();
    println!(
        "row changes : transactions : events = {rows} : {} : {}; {by_type:?}",
        steps.len(),
        events.len()
    );
    let moves = |verb: &str| {
        steps.iter().flat_map(|step| step.sql.lines()).filter(|line| line.starts_with(verb)).count()
    };
    let tables = ["account_move", "account_move_line"];
    let of_moves: usize = tables
        .iter()
        .map(|table| {
            moves(&format!("insert into \"{table}\" "))
                + moves(&format!("update \"{table}\" "))
                + moves(&format!("delete from \"{table}\" "))
        })
        .sum();
    let invoices =
        ["invoice.v1", "credit_note.v1"].iter().filter_map(|name| by_type.get(name)).sum::<usize>();
    println!("rows of moves and their lines : invoices and credit notes = {of_moves} : {invoices}");
}
