//! A whole installation on loopback: ERP, ledger, Redis, Stripe, Zendesk, settings.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tailwater::audit::checkpoint;
use tailwater::demo::odoo::{Odoo, SCHEMA as ODOO_SCHEMA};
use tailwater::demo::private::write_secret;
use tailwater::demo::private::{PrivatePostgres, PrivateRedis, TemporaryDirectory};
use tailwater::demo::vendor::server::{Limit, VendorServer};
use tailwater::demo::vendor::stripe::Stripe;
use tailwater::demo::vendor::zendesk::Zendesk;
use tailwater::ledger::SCHEMA;
use tailwater::pg::Database;
use tailwater::pg_tls::TlsMode;
use tokio_postgres::Client;

use super::eventually;

pub const STRIPE_KEY: &str = "sk_test_51SecretOfStripe";
pub const ZENDESK_KEY: &str = "zendesk-secret-token";
/// Name of the ledger's log.
pub const LOG_NAME: &str = "example.com/ledger";
pub const ZENDESK_USER: &str = "bot@example.test";

/// What differs between tests.
pub struct WorldOptions {
    pub stripe_quota: &'static str,
    pub zendesk_quota: &'static str,
    pub stripe_limit: Limit,
    pub zendesk_limit: Limit,
    /// Create the Odoo-shaped schema; otherwise the ERP database is empty.
    pub odoo_schema: bool,
    /// Mapping and routes from this directory of `tests/data` instead of the shipped ones; its `*.sql` makes the tables.
    pub data: Option<&'static str>,
    /// Settings of the ERP's PostgreSQL.
    pub erp_settings: &'static [&'static str],
    /// Settings of the ledger's PostgreSQL.
    pub ledger_settings: &'static [&'static str],
}

impl Default for WorldOptions {
    fn default() -> Self {
        Self {
            stripe_quota: "1000/s",
            zendesk_quota: "60000/min",
            stripe_limit: Limit { requests: 1000, window_s: 1.0 },
            zendesk_limit: Limit { requests: 60_000, window_s: 60.0 },
            odoo_schema: true,
            data: None,
            erp_settings: &[],
            ledger_settings: &[],
        }
    }
}

pub struct World {
    pub erp: PrivatePostgres,
    pub ledger: PrivatePostgres,
    pub redis: PrivateRedis,
    pub stripe: VendorServer<Stripe>,
    pub zendesk: VendorServer<Zendesk>,
    pub config: PathBuf,
    pub directory: TemporaryDirectory,
}

/// The daemon as a process; killed when dropped.
pub struct Daemon {
    pub child: Child,
}

impl Daemon {
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn terminate(&mut self) -> std::process::ExitStatus {
        let status = Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
        assert!(status.success());
        self.child.wait().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl World {
    pub async fn start(options: WorldOptions) -> Self {
        let directory = TemporaryDirectory::new("tailwater-test").unwrap();
        // `make test-matrix` runs the ERP on other versions.
        let erp = match std::env::var_os("TAILWATER_ERP_POSTGRES") {
            Some(binaries) => {
                let binaries = PathBuf::from(binaries);
                PrivatePostgres::start_from(&binaries, directory.path(), "erp", options.erp_settings).await
            }
            None => PrivatePostgres::start(directory.path(), "erp", options.erp_settings).await,
        };
        let erp = erp.unwrap();
        let ledger =
            PrivatePostgres::start(directory.path(), "ledger", options.ledger_settings).await.unwrap();
        let redis = PrivateRedis::start(directory.path()).await.unwrap();
        let stripe = VendorServer::start(Stripe::new(STRIPE_KEY, 1.0), options.stripe_limit).await.unwrap();
        let zendesk = VendorServer::start(Zendesk::new(ZENDESK_USER, ZENDESK_KEY), options.zendesk_limit)
            .await
            .unwrap();
        let admin = erp.client("postgres").await.unwrap();
        for sql in
            ["create role tailwater_src login replication", "create role odoo login", "create role cdc"]
        {
            admin.batch_execute(sql).await.unwrap();
        }
        admin.batch_execute("create database erp owner odoo").await.unwrap();
        let admin = ledger.client("postgres").await.unwrap();
        admin.batch_execute("create role tailwater login").await.unwrap();
        admin.batch_execute("create database tailwater owner tailwater").await.unwrap();
        let mut world = Self { erp, ledger, redis, stripe, zendesk, config: PathBuf::new(), directory };
        let mappings = match options.data {
            Some(data) => world.copy_mappings(data),
            None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("mappings"),
        };
        world.write_config(&options, &mappings);
        if let Some(data) = options.data {
            let sql = std::fs::read_to_string(data_directory(data).join(format!("{data}.sql"))).unwrap();
            world.erp.client("erp").await.unwrap().batch_execute(&sql).await.unwrap();
            world.prepare_source().await;
        } else if options.odoo_schema {
            let client = world.erp.client("erp").await.unwrap();
            client.batch_execute(ODOO_SCHEMA).await.unwrap();
            world.prepare_source().await;
        }
        world
    }

    /// Runs the SQL that `tailwater source sql` prints.
    pub async fn prepare_source(&self) {
        let printed = self.run(&["source", "sql"]);
        assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
        let sql = String::from_utf8(printed.stdout).unwrap().replace("create role", "-- create role");
        self.erp.client("erp").await.unwrap().batch_execute(&sql).await.unwrap();
    }

    /// The shipped schemas and connectors with the mapping and routes of a test.
    fn copy_mappings(&self, data: &str) -> PathBuf {
        let shipped = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("mappings");
        let mappings = self.directory.path().join("mappings");
        for part in ["canonical", "connectors"] {
            std::fs::create_dir_all(mappings.join(part)).unwrap();
            for file in std::fs::read_dir(shipped.join(part)).unwrap().flatten() {
                std::fs::copy(file.path(), mappings.join(part).join(file.file_name())).unwrap();
            }
        }
        let own = data_directory(data);
        // Connectors of its own take the place of shipped ones.
        for file in std::fs::read_dir(own.join("connectors")).into_iter().flatten().flatten() {
            std::fs::copy(file.path(), mappings.join("connectors").join(file.file_name())).unwrap();
        }
        for (file, place) in
            [(format!("{data}.yaml"), format!("sources/{data}")), ("routes.yaml".into(), "routes".into())]
        {
            std::fs::create_dir_all(mappings.join(&place)).unwrap();
            std::fs::copy(own.join(&file), mappings.join(&place).join(&file)).unwrap();
        }
        mappings
    }

    fn write_config(&mut self, options: &WorldOptions, mappings: &std::path::Path) {
        let path = |name: &str| self.directory.path().join(name);
        write_secret(path("stripe.key"), STRIPE_KEY).unwrap();
        write_secret(path("zendesk.key"), ZENDESK_KEY).unwrap();
        let (private, public) = checkpoint::generate(LOG_NAME).unwrap();
        write_secret(path("ledger.key"), private).unwrap();
        std::fs::write(path("ledger.pub"), public).unwrap();
        let text = format!(
            r#"
mappings = "{mappings}"
[ledger]
url = "{ledger}"
[ledger.checkpoints]
key = {{ file = "{ledger_key}" }}
directory = "{log}"
every = "1s"
[admin]
socket = "{admin}"
[redis]
url = "{redis}"
[sources.erp]
kind = "postgres"
url = "{erp}"
slot = "tailwater"
publication = "tailwater"
mapping = "{mapping}"
[targets.stripe]
connector = "stripe"
base_url = "{stripe}"
api_key = {{ file = "{stripe_key}" }}
quota = "{stripe_quota}"
quotas = {{ endpoint = "{stripe_quota}", search = "{stripe_quota}" }}
[targets.zendesk]
connector = "zendesk"
base_url = "{zendesk}"
user = "{ZENDESK_USER}"
api_key = {{ file = "{zendesk_key}" }}
quota = "{zendesk_quota}"
"#,
            mappings = mappings.display(),
            ledger_key = path("ledger.key").display(),
            log = path("log").display(),
            admin = path("admin.sock").display(),
            mapping = options.data.unwrap_or("odoo"),
            ledger = self.ledger.url("tailwater", "tailwater"),
            redis = self.redis.url(),
            erp = self.erp.url("tailwater_src", "erp"),
            stripe = self.stripe.url(),
            stripe_key = path("stripe.key").display(),
            stripe_quota = options.stripe_quota,
            zendesk = self.zendesk.url(),
            zendesk_key = path("zendesk.key").display(),
            zendesk_quota = options.zendesk_quota,
        );
        self.config = path("tailwater.toml");
        std::fs::write(&self.config, text).unwrap();
    }

    /// Runs a command of the program to its end.
    pub fn run(&self, arguments: &[&str]) -> std::process::Output {
        self.run_with(arguments, &[])
    }

    /// The same with settings from the environment.
    pub fn run_with(&self, arguments: &[&str], environment: &[(&str, &str)]) -> std::process::Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tailwater"));
        command.args(arguments).arg("--config").arg(&self.config).stdin(Stdio::null());
        command.envs(environment.iter().copied());
        command.output().unwrap()
    }

    /// Starts the daemon; its log goes to `daemon.log`.
    pub fn daemon(&self) -> Daemon {
        self.daemon_with(&[])
    }

    /// The same with settings from the environment.
    pub fn daemon_with(&self, environment: &[(&str, &str)]) -> Daemon {
        self.process("all", environment)
    }

    /// A daemon with one part of the work.
    pub fn process(&self, role: &str, environment: &[(&str, &str)]) -> Daemon {
        let log = std::fs::File::options().create(true).append(true).open(self.log_path()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tailwater"));
        command.args(["run", "--role", role, "--config"]).arg(&self.config);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        command.env("NO_COLOR", "1").envs(environment.iter().copied());
        Daemon { child: command.spawn().unwrap() }
    }

    pub fn log_path(&self) -> PathBuf {
        self.directory.path().join("daemon.log")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    pub async fn odoo(&self) -> Odoo {
        Odoo::new(self.erp.client("erp").await.unwrap())
    }

    pub async fn ledger_client(&self) -> Client {
        let client = self.ledger.client("tailwater").await.unwrap();
        client.batch_execute("set search_path = tailwater").await.unwrap();
        client
    }

    /// A session of somebody who may do anything to the ledger, as its owner may.
    pub async fn tamperer(&self) -> Client {
        let client = self.ledger_client().await;
        client.batch_execute("set session_replication_role = replica").await.unwrap();
        client
    }

    /// Waits until the daemon streams.
    pub async fn streaming(&self) {
        self.streaming_within(Duration::from_secs(60)).await;
    }

    pub async fn streaming_within(&self, patience: Duration) {
        eventually(patience, "streaming", async || {
            let client = self.ledger_client().await;
            let sql = "select phase from position where source = 'erp'";
            let phase = match client.query_opt(sql, &[]).await {
                Ok(Some(row)) => row.get::<_, String>(0),
                _ => "none".into(),
            };
            if phase == "streaming" { Ok(()) } else { Err(format!("phase {phase}\n{}", self.log())) }
        })
        .await;
    }

    /// What a command prints that must succeed.
    pub fn printed(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        text
    }

    /// The same of one that needs no settings.
    pub fn printed_without_settings(&self, arguments: &[&str]) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_tailwater")).args(arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        text
    }

    /// A count in the ledger.
    pub async fn count(&self, sql: &str) -> i64 {
        self.ledger_client().await.query_one(sql, &[]).await.unwrap().get(0)
    }

    /// The ledger's database, for code that works on it directly.
    pub fn ledger_database(&self) -> Database {
        Database {
            host: "127.0.0.1".into(),
            port: self.ledger.port,
            user: "tailwater".into(),
            dbname: "tailwater".into(),
            password: None,
            tls: TlsMode::Disable,
            root_certificates: None,
            certificate: None,
            schema: SCHEMA,
        }
    }

    /// Waits until the source is ledgered up to now and nothing is open.
    pub async fn settled(&self, patience: Duration) {
        self.settled_to(&self.erp.client("erp").await.unwrap(), patience).await;
    }

    /// The same for an ERP elsewhere.
    pub async fn settled_to(&self, erp: &Client, patience: Duration) {
        let lsn: String = erp.query_one("select pg_current_wal_lsn()::text", &[]).await.unwrap().get(0);
        let ledger = self.ledger_client().await;
        eventually(patience, "settled", async || {
            let sql = "select end_lsn >= $1::text::pg_lsn,
                       (select count(*) from delivery where state in ('pending', 'sending')) from position";
            let row = ledger.query_opt(sql, &[&lsn]).await.map_err(|e| e.to_string())?;
            let row = row.ok_or("no position")?;
            match (row.get::<_, bool>(0), row.get::<_, i64>(1)) {
                (true, 0) => Ok(()),
                (reached, open) => Err(format!(
                    "reached {reached}, open {open}: {}; log:\n{}",
                    open_deliveries(&ledger).await,
                    tail(&self.log())
                )),
            }
        })
        .await;
    }

    /// Waits until no command waits, and everything that came of them is delivered.
    pub async fn settled_after_backfill(&self) {
        let ledger = self.ledger_client().await;
        eventually(Duration::from_secs(30), "the backfill", async || {
            let sql = "select (select count(*) from command where done_at is null),
                       (select count(*) from position where phase <> 'streaming')";
            let row = ledger.query_one(sql, &[]).await.map_err(|e| e.to_string())?;
            match (row.get::<_, i64>(0), row.get::<_, i64>(1)) {
                (0, 0) => Ok(()),
                left => Err(format!("{left:?}; {}", tail(&self.log()))),
            }
        })
        .await;
        self.settled(Duration::from_secs(30)).await;
    }

    /// `tailwater ledger verify`.
    pub fn verify(&self) {
        let output = self.run(&["ledger", "verify"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
}

fn data_directory(data: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(data)
}

async fn open_deliveries(ledger: &Client) -> String {
    let sql = "select coalesce(string_agg(format('%s %s/%s %s %s round %s attempts %s due %s (%s) requires %s', id, object, canonical_id,
               operation, state, round, attempts, due_at - now(), reason, requires), E'\\n'), '')
               from (select * from delivery where state in ('pending', 'sending') order by id limit 10) d";
    ledger.query_one(sql, &[]).await.map(|row| row.get(0)).unwrap_or_default()
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
