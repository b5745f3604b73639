//! Many objects in one request: each with an outcome of its own, whatever becomes of the others and of the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;
use tailwater::demo::vendor::Incoming;
use tailwater::demo::vendor::server::Raw;

use crate::support::expected::{assert_same, expected, held};
use crate::support::{World, WorldOptions, eventually};

const PATIENCE: Duration = Duration::from_secs(90);

/// Companies in one transaction, by name.
async fn companies(world: &World, names: &[String]) {
    let mut client = world.erp.client("erp").await.unwrap();
    let transaction = client.transaction().await.unwrap();
    for (n, name) in names.iter().enumerate() {
        let sql = "with made as (insert into res_partner (name, is_company, email, active) values ($1, true, $2, true) returning id)
                   select id from made";
        let id: i32 =
            transaction.query_one(sql, &[name, &format!("bulk{n}@example.com")]).await.unwrap().get(0);
        transaction
            .execute("update res_partner set commercial_partner_id = id where id = $1", &[&id])
            .await
            .unwrap();
    }
    transaction.commit().await.unwrap();
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("Bulk {n}")).collect()
}

fn singly(world: &World) -> usize {
    world.zendesk.journal().calls.iter().filter(|call| call.line.ends_with("/create_or_update")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_runs_when_the_daemon_dies_is_followed_to_its_end_and_not_sent_again() {
    let world = World::start(WorldOptions::default()).await;
    world.zendesk.with(|zendesk| zendesk.jobs.takes_s = 3.0);
    let mut daemon = world.daemon();
    world.streaming().await;
    companies(&world, &names(40)).await;
    eventually(PATIENCE, "the job", async || {
        let running = world.count("select count(*) from bulk_call where state = 'running'").await;
        if running > 0 { Ok(()) } else { Err(world.log()) }
    })
    .await;
    let client = world.ledger_client().await;
    let sql =
        "select array_agg(d) from bulk_call c cross join unnest(c.deliveries) d where c.state = 'running'";
    let in_job: Vec<i64> = client.query_one(sql, &[]).await.unwrap().get(0);
    daemon.kill();
    let accepted = world.zendesk.with(|zendesk| zendesk.jobs.accepted);
    let alone = singly(&world);
    daemon = world.daemon();
    world.settled(PATIENCE).await;
    let in_jobs = world.zendesk.with(|zendesk| zendesk.jobs.effects);
    println!(
        "# {accepted} bulk requests before the kill, {alone} objects by themselves; changed by jobs {in_jobs:?}"
    );
    let sql = "select count(*) from delivery where id = any ($1) and state = 'applied' and attempts = 1";
    let once: i64 = client.query_one(sql, &[&in_job]).await.unwrap().get(0);
    assert_eq!(once, in_job.len() as i64, "what the job did was not done again");
    assert_eq!(
        world.count("select count(*) from bulk_call").await,
        0,
        "bulk requests that are over are forgotten"
    );
    assert_eq!(in_jobs.1, 0, "nothing was written twice");
    let erp = world.erp.client("erp").await.unwrap();
    assert_same(&held(&world), &expected(&erp, &[]).await);
    assert!(daemon.terminate().success());
    world.verify();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_object_among_many_holds_up_nobody_else() {
    let world = World::start(WorldOptions::default()).await;
    world.zendesk.with(|zendesk| zendesk.add_foreign_organization("Taken"));
    let _daemon = world.daemon();
    world.streaming().await;
    let mut list = names(30);
    list.insert(11, "Taken".into());
    companies(&world, &list).await;
    world.settled(PATIENCE).await;
    let there: Vec<String> = world
        .zendesk
        .with(|zendesk| zendesk.organizations())
        .values()
        .map(|o| o["name"].to_string())
        .collect();
    assert_eq!(there.iter().filter(|name| name.starts_with("\"Bulk ")).count(), 30);
    assert_eq!(there.iter().filter(|name| name.starts_with("\"Taken (ERP-P-")).count(), 1, "{there:?}");
    assert!(world.zendesk.with(|zendesk| zendesk.jobs.accepted) > 0);
    assert_eq!(world.count("select count(*) from delivery where state in ('rejected', 'parked')").await, 0);
    world.verify();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_without_bulk_imports_gets_one_by_one() {
    let world = World::start(WorldOptions::default()).await;
    world.zendesk.with(|zendesk| zendesk.jobs.are_allowed = false);
    let _daemon = world.daemon();
    world.streaming().await;
    companies(&world, &names(50)).await;
    world.settled(PATIENCE).await;
    let refused = world.zendesk.journal().by_status().get(&403).copied().unwrap_or_default();
    assert!((1..=4).contains(&refused), "{refused} bulk requests were tried");
    let erp = world.erp.client("erp").await.unwrap();
    assert_same(&held(&world), &expected(&erp, &[]).await);
    assert!(world.log().contains("refuses bulk requests"));
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_cannot_be_asked_for_are_given_up_and_their_objects_go_one_by_one() {
    let world = World::start(WorldOptions::default()).await;
    let connector = world.own_mappings().join("connectors/zendesk.yaml");
    let text = std::fs::read_to_string(&connector).unwrap();
    let patient = text.replace("  every_s: 1\n", "  every_s: 1\n  patience_s: 4\n");
    assert_ne!(patient, text);
    std::fs::write(&connector, patient).unwrap();
    world.zendesk.with(|zendesk| zendesk.jobs.are_silent = true);
    let mut daemon = world.daemon();
    world.streaming().await;
    companies(&world, &names(40)).await;
    world.settled(PATIENCE).await;
    let accepted = world.zendesk.with(|zendesk| zendesk.jobs.accepted);
    println!("# {accepted} jobs given up, {} objects by themselves", singly(&world));
    assert!(accepted > 0 && singly(&world) >= 36, "{accepted} {}", singly(&world));
    assert_eq!(world.count("select count(*) from bulk_call").await, 0);
    let erp = world.erp.client("erp").await.unwrap();
    assert_same(&held(&world), &expected(&erp, &[]).await);
    assert!(daemon.terminate().success());
    world.verify();
}

/// Changes the results of finished jobs; gives how many it has changed.
fn spoil_results(world: &World, spoil: fn(&mut [Value])) -> Arc<AtomicUsize> {
    let count = Arc::new(AtomicUsize::new(0));
    let spoiled = count.clone();
    world.zendesk.set_tamper(Some(Arc::new(move |request: &Incoming, raw: &mut Raw| {
        if !request.path.contains("job_statuses") {
            return;
        }
        let mut body: Value = serde_json::from_slice(&raw.body).unwrap();
        for job in body["job_statuses"].as_array_mut().into_iter().flatten() {
            if let Some(results) = job["results"].as_array_mut() {
                spoiled.fetch_add(results.len(), Ordering::SeqCst);
                spoil(results);
            }
        }
        raw.body = body.to_string().into_bytes();
    })));
    count
}

#[tokio::test(flavor = "multi_thread")]
async fn results_that_are_told_twice_or_of_another_object_are_believed_of_nobody() {
    let world = World::start(WorldOptions::default()).await;
    let mut daemon = world.daemon();
    world.streaming().await;
    let erp = world.erp.client("erp").await.unwrap();
    let spoiled =
        spoil_results(&world, |results| results.iter_mut().for_each(|result| result["index"] = 0.into()));
    companies(&world, &names(12)).await;
    world.settled(PATIENCE).await;
    assert!(spoiled.load(Ordering::SeqCst) >= 12, "{}", world.log());
    assert_same(&held(&world), &expected(&erp, &[]).await);
    let spoiled = spoil_results(&world, |results| {
        for pair in results.chunks_exact_mut(2) {
            let (first, second) = (pair[0]["id"].clone(), pair[1]["id"].clone());
            (pair[0]["id"], pair[1]["id"]) = (second, first);
        }
    });
    erp.batch_execute("update res_partner set city = 'City ' || id").await.unwrap();
    world.settled(PATIENCE).await;
    assert!(spoiled.load(Ordering::SeqCst) >= 12, "{}", world.log());
    world.zendesk.set_tamper(None);
    // Whoever took another's id would be written over it now.
    erp.batch_execute("update res_partner set street = 'Street ' || id").await.unwrap();
    world.settled(PATIENCE).await;
    assert_same(&held(&world), &expected(&erp, &[]).await);
    assert!(daemon.terminate().success());
    world.verify();
}
