//! A whole installation on loopback, for the demo: ERP, ledger, Redis, vendors, settings, and the daemon as a process.

use std::io;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::odoo::SCHEMA;
use super::private::{PrivateError, PrivatePostgres, PrivateRedis, TemporaryDirectory, write_secret};
use super::shipped;
use super::vendor::server::{Limit, VendorServer};
use super::vendor::stripe::Stripe;
use super::vendor::zendesk::Zendesk;
use crate::audit::checkpoint;

const STRIPE_KEY: &str = "sk_test_demo";
const ZENDESK_USER: &str = "bot@example.test";
const ZENDESK_KEY: &str = "demo-token";

/// See the module's text.
pub struct Installation {
    /// One server for both databases, `erp` and `tailwater`.
    pub postgres: PrivatePostgres,
    /// Redis.
    pub redis: PrivateRedis,
    /// Simulated Stripe.
    pub stripe: VendorServer<Stripe>,
    /// Simulated Zendesk.
    pub zendesk: VendorServer<Zendesk>,
    /// Settings file.
    pub config: PathBuf,
    /// Everything lives below.
    pub directory: TemporaryDirectory,
    daemon: Option<Child>,
}

impl Installation {
    /// Starts everything but the daemon.
    pub async fn start() -> Result<Self, PrivateError> {
        let directory = TemporaryDirectory::new("tailwater-demo")?;
        let postgres = PrivatePostgres::start(directory.path(), "postgres", &[]).await?;
        let redis = PrivateRedis::start(directory.path()).await?;
        // The limits that Stripe (live mode) and a Zendesk Suite Enterprise plan document.
        let stripe =
            VendorServer::start(Stripe::new(STRIPE_KEY, 5.0), Limit { requests: 100, window_s: 1.0 }).await?;
        let limit = Limit { requests: 700, window_s: 60.0 };
        let zendesk = VendorServer::start(Zendesk::new(ZENDESK_USER, ZENDESK_KEY), limit).await?;
        let admin = postgres.client("postgres").await?;
        for sql in [
            "create role tailwater_src login replication",
            "create role tailwater login",
            "create database erp",
            "create database tailwater owner tailwater",
        ] {
            admin.batch_execute(sql).await?;
        }
        postgres.client("erp").await?.batch_execute(SCHEMA).await?;
        shipped::write(&directory.path().join("mappings"))?;
        let config = directory.path().join("tailwater.toml");
        let mut installation = Self { postgres, redis, stripe, zendesk, config, directory, daemon: None };
        installation.write_settings()?;
        installation.prepare_source().await?;
        Ok(installation)
    }

    fn write_settings(&mut self) -> io::Result<()> {
        let path = |name: &str| self.directory.path().join(name);
        write_secret(path("stripe.key"), STRIPE_KEY)?;
        write_secret(path("zendesk.key"), ZENDESK_KEY)?;
        let (key, public) = checkpoint::generate("demo.example/ledger").map_err(io::Error::other)?;
        write_secret(path("ledger.key"), key)?;
        std::fs::write(path("ledger.pub"), public)?;
        let text = format!(
            "[ledger]\nurl = \"{}\"\n\n[ledger.checkpoints]\nkey = {{ file = \"{}\" }}\ndirectory = \"{}\"\nevery = \"5s\"\n\n[redis]\nurl = \"{}\"\n\n\
             [sources.erp]\nkind = \"postgres\"\nurl = \"{}\"\nslot = \"tailwater\"\npublication = \"tailwater\"\n\
             mapping = \"odoo\"\n\n\
             [targets.stripe]\nconnector = \"stripe\"\nbase_url = \"{}\"\napi_key = {{ file = \"{}\" }}\nquota = \"80/s\"\nquotas = {{ endpoint = \"80/s\" }}\n\n\
             [targets.zendesk]\nconnector = \"zendesk\"\nbase_url = \"{}\"\nuser = \"{ZENDESK_USER}\"\n\
             api_key = {{ file = \"{}\" }}\nquota = \"600/min\"\n",
            self.postgres.url("tailwater", "tailwater"),
            path("ledger.key").display(),
            path("log").display(),
            self.redis.url(),
            self.postgres.url("tailwater_src", "erp"),
            self.stripe.url(),
            path("stripe.key").display(),
            self.zendesk.url(),
            path("zendesk.key").display(),
        );
        std::fs::write(&self.config, text)
    }

    /// Runs what `tailwater source sql` prints, but for the role, which exists.
    async fn prepare_source(&self) -> Result<(), PrivateError> {
        let printed = self.command(&["source", "sql"])?.output()?;
        let sql = String::from_utf8_lossy(&printed.stdout).replace("create role", "-- create role");
        Ok(self.postgres.client("erp").await?.batch_execute(&sql).await?)
    }

    /// A session on the ledger.
    pub async fn ledger(&self) -> Result<tokio_postgres::Client, PrivateError> {
        let client = self.postgres.client("tailwater").await?;
        client.batch_execute(&format!("set search_path = {}", crate::ledger::SCHEMA)).await?;
        Ok(client)
    }

    /// This program with the settings of the installation.
    pub fn command(&self, arguments: &[&str]) -> io::Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(arguments).arg("--config").arg(&self.config).stdin(Stdio::null());
        Ok(command)
    }

    /// Starts the daemon; its log goes to `daemon.log`.
    pub fn start_daemon(&mut self) -> io::Result<()> {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.directory.path().join("daemon.log"))?;
        self.daemon = Some(self.command(&["run"])?.stdout(Stdio::null()).stderr(log).spawn()?);
        Ok(())
    }

    /// Kills the daemon without warning.
    pub fn kill_daemon(&mut self) -> io::Result<()> {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill()?;
            daemon.wait()?;
        }
        Ok(())
    }
}

impl Drop for Installation {
    fn drop(&mut self) {
        // Nothing it could still write is worth waiting for.
        let _ = self.kill_daemon();
    }
}
