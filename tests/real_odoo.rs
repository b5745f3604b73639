//! A recorded working day of a real Odoo 19: see `../shared/odoo/recorded`.

use std::process::{Command, Stdio};
use std::time::Duration;

use tokio_postgres::Client;

use crate::support::expected::{archived, assert_same, expected, held};
use crate::support::images::assert_images_equal;
use crate::support::real_odoo::{Running, recorded, running};

#[tokio::test(flavor = "multi_thread")]
async fn a_recorded_day_of_odoo_arrives_field_by_field_and_no_call_is_wasted() {
    let Some((world, recorded)) = recorded().await else { return };
    let erp = world.erp.client("erp").await.unwrap();
    let archived = archived(&erp).await;
    let mut daemon = world.daemon();
    world.streaming().await;
    world.settled(Duration::from_secs(30)).await;
    assert_same(&held(&world), &expected(&erp, &archived).await);
    let mut script =
        Command::new("zcat").arg(recorded.join("small.sql.gz")).stdout(Stdio::piped()).spawn().unwrap();
    let psql = Command::new(world.erp.program("psql"))
        .args(["-q", "-v", "ON_ERROR_STOP=1", &world.erp.url("postgres", "erp")])
        .stdin(script.stdout.take().unwrap())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(psql.success() && script.wait().unwrap().success());
    world.settled(Duration::from_secs(10)).await;
    assert_images_equal(&world, &erp).await;
    assert_same(&held(&world), &expected(&erp, &archived).await);
    assert_eq!(world.stripe.with(|stripe| stripe.doubled()), Vec::<String>::new());
    assert_eq!(world.stripe.journal().nil_effects(), 0);
    assert_eq!(world.zendesk.journal().nil_effects(), 0);
    assert_eq!(world.zendesk.with(|zendesk| (zendesk.merged.clone(), zendesk.mails)), (vec![], 0));
    let ledger = world.ledger_client().await;
    let events: i64 =
        ledger.query_one("select count(*) from entry where kind = 'event'", &[]).await.unwrap().get(0);
    let calls = world.stripe.journal().calls.len() + world.zendesk.journal().calls.len();
    println!("row changes : events : calls = 2829 : {events} : {calls}");
    assert_everybody_is_named(&ledger, &erp).await;
    assert!(daemon.terminate().success());
    world.verify();
}

/// A longer day of a running Odoo that is driven.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_day_of_a_running_odoo_arrives_field_by_field() {
    let Some(odoo) = running().await else { return };
    let Running { world, erp, source, .. } = &odoo;
    let archived = archived(erp).await;
    let _daemon = world.daemon_with(&[("TAILWATER__SOURCES__ERP__URL", source)]);
    world.streaming().await;
    odoo.drive().await;
    println!(
        "Stripe calls {}, Zendesk calls {}",
        world.stripe.journal().calls.len(),
        world.zendesk.journal().calls.len()
    );
    assert_images_equal(world, erp).await;
    assert_same(&held(world), &expected(erp, &archived).await);
    assert_eq!(world.stripe.with(|stripe| stripe.doubled()), Vec::<String>::new());
    assert_eq!((world.stripe.journal().nil_effects(), world.zendesk.journal().nil_effects()), (0, 0));
    world.verify();
}

/// Whoever wrote a partner is in the ledger with it; of who deleted one Odoo's rows say nothing.
async fn assert_everybody_is_named(ledger: &Client, erp: &Client) {
    let sql = "select key, changed_by from tailwater_audit.change where table_name = 'res_partner' and operation <> 'delete'";
    let changes = ledger.query(sql, &[]).await.unwrap();
    let users = erp.query("select id::text from res_users", &[]).await.unwrap();
    let users: Vec<String> = users.iter().map(|row| row.get(0)).collect();
    assert!(changes.len() > 20, "{}", changes.len());
    for row in &changes {
        let (key, by): (&str, Option<&str>) = (row.get(0), row.get(1));
        assert!(by.is_some_and(|by| users.iter().any(|user| user == by)), "partner {key} by {by:?}");
    }
    let authors: std::collections::BTreeSet<&str> = changes.iter().map(|row| row.get(1)).collect();
    println!("{} changes of partners, by users {authors:?}", changes.len());
}
