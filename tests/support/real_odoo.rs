//! Worlds whose ERP is a real Odoo's database: a recorded day, or a running one. See `../shared/odoo`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tokio_postgres::Client;

use super::{World, WorldOptions, shared};

/// The database as it stood before the recorded day, and where the recording is; `None` when it is not there.
pub async fn recorded() -> Option<(World, PathBuf)> {
    let recorded = shared("odoo/recorded")?;
    let world = World::start(WorldOptions { odoo_schema: false, ..WorldOptions::default() }).await;
    let restore = Command::new(world.erp.program("pg_restore"))
        .args(["--no-publications", "-d", &world.erp.url("postgres", "erp")])
        .arg(recorded.join("base.dump"))
        .status()
        .unwrap();
    assert!(restore.success());
    world.prepare_source().await;
    Some((world, recorded))
}

/// Takes away what an earlier run has left.
const LEFT: [&str; 6] = [
    "drop trigger tailwater_nil_write on res_partner",
    "drop function tailwater_nil_write",
    "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = 'tailwater' and not active",
    "drop publication if exists tailwater",
    "drop owned by tailwater_src",
    "drop role tailwater_src",
];

/// A running Odoo, whose superuser's URL stands in TAILWATER_ODOO.
pub struct Running {
    pub world: World,
    /// Its database.
    pub erp: Client,
    /// Our URL of it.
    pub source: String,
    driver: PathBuf,
}

/// Prepared for us; `None` when there is none.
pub async fn running() -> Option<Running> {
    let (Ok(url), Some(driver)) = (std::env::var("TAILWATER_ODOO"), shared("odoo/drive_odoo.py")) else {
        eprintln!("SKIPPED: TAILWATER_ODOO does not name a running Odoo's database");
        return None;
    };
    let world = World::start(WorldOptions { odoo_schema: false, ..WorldOptions::default() }).await;
    let (erp, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    for sql in LEFT {
        // What there is not cannot be dropped.
        let _ = erp.batch_execute(sql).await;
    }
    let source = url.replace("pgadmin@", "tailwater_src@");
    let printed = world.run_with(&["source", "sql"], &[("TAILWATER__SOURCES__ERP__URL", &source)]);
    erp.batch_execute(&String::from_utf8(printed.stdout).unwrap()).await.unwrap();
    Some(Running { world, erp, source, driver })
}

impl Running {
    /// Business steps with bulk loads, mass writes, a merge, a language and modules; waits until all of it is delivered.
    pub async fn drive(&self) {
        let arguments =
            std::env::var("TAILWATER_DRIVE").unwrap_or_else(|_| "-n 2 --bulk 200 --mass 400".into());
        let driven =
            Command::new("python3").arg(Path::new(&self.driver)).args(arguments.split(' ')).status().unwrap();
        // A step of Odoo's that fails would end it otherwise: nothing of ours may stand in its way.
        assert!(driven.success(), "driver: {driven}");
        self.world.settled_to(&self.erp, Duration::from_secs(280)).await;
    }
}
