//! A recorded working day of a real Odoo 19: see `../shared/odoo/recorded`.

use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::expected::{archived, assert_same, expected, held};
use crate::support::images::assert_images_equal;
use crate::support::{World, WorldOptions, shared};

#[tokio::test(flavor = "multi_thread")]
async fn a_recorded_day_of_odoo_arrives_field_by_field_and_no_call_is_wasted() {
    let Some(recorded) = shared("odoo/recorded") else { return };
    let world = World::start(WorldOptions { odoo_schema: false, ..WorldOptions::default() }).await;
    let restore = Command::new(world.erp.program("pg_restore"))
        .args(["--no-publications", "-d", &world.erp.url("postgres", "erp")])
        .arg(recorded.join("base.dump"))
        .status()
        .unwrap();
    assert!(restore.success());
    world.prepare_source().await;
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
    assert!(daemon.terminate().success());
    world.verify();
}

/// A longer day: bulk loads, a mass write, a merge, a language, modules installed, upgraded and uninstalled with their DDL. Needs a running Odoo as `../shared/odoo` sets
/// one up, and its superuser's URL in TAILWATER_ODOO.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_day_of_a_running_odoo_arrives_field_by_field() {
    let (Ok(url), Some(driver)) = (std::env::var("TAILWATER_ODOO"), shared("odoo/drive_odoo.py")) else {
        eprintln!("SKIPPED: TAILWATER_ODOO does not name a running Odoo's database");
        return;
    };
    let world = World::start(WorldOptions { odoo_schema: false, ..WorldOptions::default() }).await;
    let (erp, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    let source = url.replace("pgadmin@", "tailwater_src@");
    let printed = world.run_with(&["source", "sql"], &[("TAILWATER__SOURCES__ERP__URL", &source)]);
    let sql = String::from_utf8(printed.stdout).unwrap();
    erp.batch_execute(&sql).await.unwrap();
    let archived = archived(&erp).await;
    let _daemon = world.daemon_with(&[("TAILWATER__SOURCES__ERP__URL", &source)]);
    world.streaming().await;
    let arguments = std::env::var("TAILWATER_DRIVE").unwrap_or_else(|_| "-n 2 --bulk 200 --mass 400".into());
    let driven = Command::new("python3").arg(driver).args(arguments.split(' ')).status().unwrap();
    // A step of Odoo's that fails would end it otherwise: nothing of ours may stand in its way.
    assert!(driven.success(), "driver: {driven}");
    world.settled_to(&erp, Duration::from_secs(280)).await;
    println!(
        "Stripe calls {}, Zendesk calls {}",
        world.stripe.journal().calls.len(),
        world.zendesk.journal().calls.len()
    );
    assert_images_equal(&world, &erp).await;
    assert_same(&held(&world), &expected(&erp, &archived).await);
    assert_eq!(world.stripe.with(|stripe| stripe.doubled()), Vec::<String>::new());
    assert_eq!((world.stripe.journal().nil_effects(), world.zendesk.journal().nil_effects()), (0, 0));
    world.verify();
}
