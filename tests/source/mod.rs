//! What happens to a source: restarts, cut and silent networks, slots dropped, advanced and invalidated, publications
//! altered, tables made again, ledgers restored, servers promoted. Nothing is lost, nothing doubled, nothing silent.

mod loss;
mod servers;

use std::process::Output;
use std::time::Duration;

use tokio_postgres::Client;

use crate::support::expected::{assert_same, expected, held};
use crate::support::images::assert_images_equal;
use crate::support::workload::{Workload, seed};
use crate::support::{World, WorldOptions};

const PATIENCE: Duration = Duration::from_secs(60);

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Repetitions in `make test`; `make soak` sets more.
fn times(short: usize) -> usize {
    std::env::var("TAILWATER_TIMES").ok().and_then(|text| text.parse().ok()).unwrap_or(short)
}

async fn everything_arrived(world: &World, erp: &Client) {
    world.settled_to(erp, PATIENCE).await;
    assert_images_equal(world, erp).await;
    assert_same(&held(world), &expected(erp, &[]).await);
    assert_eq!(world.stripe.with(|stripe| stripe.doubled()), Vec::<String>::new());
}

/// Runs `run` to its refusal, then `recover`, and starts the daemon again.
fn refused(world: &World, expected: &str) {
    let output = world.run(&["run"]);
    assert_eq!(output.status.code(), Some(78), "{}", text(&output));
    assert!(
        text(&output).contains(expected) && text(&output).contains("tailwater recover"),
        "{}",
        text(&output)
    );
}

fn recovered(world: &World) {
    let output = world.run(&["recover", "--source", "erp"]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("the gap after"), "{}", text(&output));
}

async fn gaps(world: &World) -> i64 {
    let sql = "select count(*) from entry where kind = 'gap'";
    world.ledger_client().await.query_one(sql, &[]).await.unwrap().get(0)
}

async fn lived_in() -> World {
    lived_in_by().await.0
}

/// Names are used once: the workload goes on where it was.
async fn lived_in_by() -> (World, Workload) {
    let world = World::start(WorldOptions::default()).await;
    let mut odoo = world.odoo().await;
    let mut workload = Workload::new(seed());
    for _ in 0..40 {
        workload.step(&mut odoo).await;
    }
    // What is archived before the first load stays away from the targets; that is another test's matter.
    odoo.client().batch_execute("update res_partner set active = true").await.unwrap();
    (world, workload)
}

/// Changes of every kind that a gap may hide: new, changed, deleted.
async fn unheard(world: &World) {
    let mut odoo = world.odoo().await;
    let company = odoo.create_company("Made in the gap", "gap@example.com", 2).await.unwrap();
    odoo.create_contact(company, "Contact of the gap", "contact@example.com").await.unwrap();
    let erp = world.erp.client("erp").await.unwrap();
    erp.batch_execute(
        "update res_partner set city = 'Gap' where id = (select max(id) - 4 from res_partner);
         delete from res_partner where id = (select max(id) from res_partner p where not is_company and parent_id is not null
           and name not like '%gap%' and id not in (select partner_id from res_users))",
    )
    .await
    .unwrap();
}
