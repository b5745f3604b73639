//! Commands. With `supervise`, the only file that knows every module.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::auditing;
use crate::cache::Cache;
use crate::cli::{Cli, Command, ConfigArgs, MappingsCommand, SourceCommand};
use crate::config::files;
use crate::config::secret::Secret;
use crate::config::source::SourceConfig;
use crate::config::{Config, load};
use crate::ledger::command::Command as LedgerOrder;
use crate::operate::{Reread, drain_slot, recover, reread, source_named};
use crate::ops::status;
use crate::orders::{backfill, identity, release, wave};
use crate::reconciling::{Reconcile, reconcile};
use crate::source::postgres::catalog::{self, Severity};
use crate::source::postgres::connection::ReplicationConnection;
use crate::source::postgres::presence::Presence;
use crate::source::postgres::script::{Names, source_sql, uninstall_sql};
use crate::supervise::run;
use crate::terminal::escaped;
use crate::tuning::quota;
use crate::work_list::{deliveries, parked};
use crate::workbench;

/// Wrong usage of the command line.
pub const EX_USAGE: u8 = 64;
/// A database or service is down.
pub const EX_UNAVAILABLE: u8 = 69;
/// A fault of our own.
pub const EX_SOFTWARE: u8 = 70;
/// Somebody else is at it.
pub const EX_TEMPORARY: u8 = 75;
/// Wrong settings, or not safe to start.
pub const EX_CONFIG: u8 = 78;

/// Parses the command line and runs the command.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(EX_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    // One provider for all TLS in the process; a second call cannot happen.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(EX_SOFTWARE, &format!("the runtime could not be started: {error}")),
    };
    runtime.block_on(dispatch(cli.command))
}

async fn dispatch(command: Command) -> ExitCode {
    match command {
        Command::Run { config, role } => {
            let settings = config.config.clone();
            with_config(&config, |config| run(config, settings, role.into())).await
        }
        Command::Check { config, json } => check(&config, json).await,
        Command::Status { config, json } => with_config(&config, |config| show_status(config, json)).await,
        Command::Recover { config, source, accept_new_cluster, .. } => {
            with_config(&config, |config| recover(config, source, accept_new_cluster)).await
        }
        Command::Source(SourceCommand::Sql { config, source, uninstall }) => {
            let print = |config| async move { print_source_sql(config, source.as_deref(), uninstall) };
            with_config(&config, print).await
        }
        Command::Source(SourceCommand::Reread { config, source, tables, after, to, no_wait }) => {
            let what = Reread { tables, after, to, wait: !no_wait };
            with_config(&config, |config| reread(config, source, what)).await
        }
        Command::Source(SourceCommand::Drain { config, source, slot, until }) => {
            with_config(&config, |config| drain_slot(config, source, slot, until)).await
        }
        Command::Ledger(command) => auditing::ledger(command).await,
        Command::Mappings(MappingsCommand::Check { files, against: Some(settings) }) => {
            check_against(&files.dir, &settings).await
        }
        Command::Mappings(command) => mappings(&command),
        Command::Release { config, all, target, object, discard } => {
            let what = (all || target.is_some() || object.is_some()).then_some(LedgerOrder::Release {
                target,
                object,
                discard,
            });
            with_config(&config, |config| release(config, what)).await
        }
        Command::Identity(command) => identity(command).await,
        Command::Wave(command) => wave(command).await,
        Command::Quota(command) => quota(command).await,
        Command::Deliveries(command) => deliveries(command).await,
        Command::Parked(command) => parked(command).await,
        Command::Backfill { config, events, source } => {
            with_config(&config, |config| backfill(config, source, events)).await
        }
        Command::Reconcile { config, target, objects, repair, json } => {
            let what = Reconcile { target, objects, repair, json };
            with_config(&config, |config| reconcile(config, what)).await
        }
        Command::Explain { config, table, key, source, values } => {
            with_config(&config, |config| workbench::answers::explain(config, source, table, key, values))
                .await
        }
        Command::Plan { config, target, first, values } => {
            with_config(&config, |config| workbench::answers::plan(config, target, first, values)).await
        }
        Command::Demo { keep, seconds, plain } => crate::demo::run(keep, seconds, plain).await,
        Command::Man => print_man(),
    }
}

fn mappings(command: &MappingsCommand) -> ExitCode {
    match command {
        MappingsCommand::Check { files, .. } => workbench::mappings::check(&files.dir),
        MappingsCommand::Test { files } => workbench::mappings::test(&files.dir),
        MappingsCommand::Diff { files, against } => workbench::mappings::diff(&files.dir, against),
        MappingsCommand::Docs { files, format } => workbench::mappings::docs(&files.dir, *format),
    }
}

/// `tailwater mappings check --against`: the files, and then what the databases say of them.
async fn check_against(directory: &Path, settings: &Path) -> ExitCode {
    let named = ("TAILWATER__MAPPINGS".to_owned(), absolute(directory));
    let files = workbench::mappings::check(directory);
    if files != ExitCode::SUCCESS {
        return files;
    }
    let config = match load(settings, std::env::vars().chain([named])) {
        Ok(config) => config,
        Err(problems) => return workbench::mappings::refuse(&problems),
    };
    let mut code = ExitCode::SUCCESS;
    for source in &config.sources {
        let looked = async {
            let client =
                source.database.connect("tailwater-check").await.map_err(|error| error.to_string())?;
            let presence = Presence::of(&client, &source.mapping, &source.publication, BTreeSet::new()).await;
            let presence = presence.map_err(|error| crate::pg::describe(&error))?;
            let mapping = presence.wanted(&source.mapping);
            catalog::columns(&client, &mapping).await.map_err(|error| crate::pg::describe(&error))
        };
        match looked.await {
            Ok(findings) if findings.is_empty() => {
                say(&format!("source {}: every table and column is there\n", source.name))
            }
            Ok(findings) => {
                code = ExitCode::from(EX_CONFIG);
                for finding in findings {
                    say(&format!("{}: {}\n  next: {}\n", finding.subject, finding.what, finding.remedy));
                }
            }
            Err(reason) => return fail(EX_UNAVAILABLE, &format!("source {}: {reason}", source.name)),
        }
    }
    code
}

fn absolute(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf()).display().to_string()
}

/// Says what is wrong; gives the exit code.
#[allow(clippy::print_stderr)]
#[must_use]
pub fn fail(code: u8, message: &str) -> ExitCode {
    eprintln!("error: {}", escaped(message));
    ExitCode::from(code)
}

/// Prints to standard output.
pub fn say(text: &str) {
    // Whoever read it may have seen enough (`| head`).
    let _ = std::io::stdout().write_all(escaped(text).as_bytes());
}

fn print_man() -> ExitCode {
    let mut page = Vec::new();
    match clap_mangen::Man::new(Cli::command()).render(&mut page) {
        Ok(()) => {
            say(&String::from_utf8_lossy(&page));
            ExitCode::SUCCESS
        }
        Err(error) => fail(EX_SOFTWARE, &error.to_string()),
    }
}

fn read_config(path: &Path) -> Result<Config, ExitCode> {
    load(path, std::env::vars()).map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        fail(
            EX_CONFIG,
            &format!("{} in the settings:\n{}", count(problems.len(), "mistake"), lines.join("\n")),
        )
    })
}

fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

/// Reads the settings, and carries the command out with them.
pub async fn with_config<F: Future<Output = ExitCode>>(
    args: &ConfigArgs,
    command: impl FnOnce(Config) -> F,
) -> ExitCode {
    match read_config(&args.config) {
        Ok(config) => command(config).await,
        Err(code) => code,
    }
}

async fn show_status(config: Config, as_json: bool) -> ExitCode {
    match status::gather(&config, Timestamp::now()).await {
        Ok(status) if as_json => say(&format!("{status:#}\n")),
        Ok(status) => say(&status::render(&status)),
        Err(error) => return fail(EX_UNAVAILABLE, &error.to_string()),
    }
    ExitCode::SUCCESS
}

fn print_source_sql(config: Config, name: Option<&str>, uninstall: bool) -> ExitCode {
    let source = match source_named(&config.sources, name) {
        Ok(source) => source,
        Err(code) => return code,
    };
    let database = &source.database;
    let names = Names {
        role: &database.user,
        database: &database.dbname,
        publication: &source.publication,
        slot: &source.slot,
    };
    say(&if uninstall { uninstall_sql(&names) } else { source_sql(&source.mapping, &names) });
    ExitCode::SUCCESS
}

/// `tailwater check`: everything `run` would refuse, and everything worth mending.
async fn check(args: &ConfigArgs, as_json: bool) -> ExitCode {
    let config = match load(&args.config, std::env::vars()) {
        Ok(config) => config,
        Err(problems) if as_json => {
            let list: Vec<Value> = problems
                .iter()
                .map(|p| json!({"severity": "error", "subject": format!("{}:{}", p.file.display(), p.line), "what": p.what, "remedy": p.instead}))
                .collect();
            say(&format!("{:#}\n", Value::Array(list)));
            return ExitCode::from(EX_CONFIG);
        }
        Err(_) => return read_config(&args.config).map_or_else(|code| code, |_| ExitCode::SUCCESS),
    };
    let (mut findings, down) = findings(&config).await;
    for path in [&args.config, &config.mappings] {
        for (path, what) in files::writable(path) {
            let subject = path.display().to_string();
            let what = format!("{what}: they could send what they like to every target");
            findings.push(finding(Severity::Warning, &subject, what, "chmod o-w"));
        }
    }
    if as_json {
        say(&format!("{:#}\n", json!(findings)));
    } else {
        for finding in &findings {
            let severity = if finding.severity == Severity::Error { "error" } else { "warning" };
            say(&format!("{severity}: {}: {}\n  next: {}\n", finding.subject, finding.what, finding.remedy));
        }
        if findings.is_empty() {
            say("everything is in order\n");
        }
    }
    if findings.iter().any(|finding| finding.severity == Severity::Error && !down.contains(&finding.subject))
    {
        ExitCode::from(EX_CONFIG)
    } else if down.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EX_UNAVAILABLE)
    }
}

/// Findings, and the subjects among them that are merely down.
async fn findings(config: &Config) -> (Vec<catalog::Finding>, Vec<String>) {
    let (mut found, mut down) = (Vec::new(), Vec::new());
    match config.ledger.connect("tailwater-check").await {
        Ok(client) => found.extend(auditing::check::findings(config, &client).await),
        Err(cause) => {
            let remedy = "start the server, or correct `url` in [ledger]";
            found.push(finding(Severity::Error, "ledger", cause.to_string(), remedy));
            down.push("ledger".to_owned());
        }
    }
    let cache = Cache::new(config.redis.clone());
    if !cache.is_up().await {
        let what = "does not answer; the ledger decides alone, which is slower".to_owned();
        found.push(finding(Severity::Warning, "redis", what, "start Redis, or correct `url` in [redis]"));
    }
    if let Some(policy) = cache.eviction_policy().await.filter(|policy| policy.starts_with("allkeys")) {
        let what = format!("maxmemory-policy {policy} throws shared quotas away when it is full");
        let remedy = "CONFIG SET maxmemory-policy volatile-ttl, or noeviction";
        found.push(finding(Severity::Warning, "redis", what, remedy));
    }
    for source in &config.sources {
        let (findings, is_down) = source_findings(source, config).await;
        found.extend(findings);
        down.extend(is_down);
    }
    for target in &config.targets {
        if let Some(Err(cause)) = target.api_key.as_ref().map(Secret::read) {
            found.push(finding(
                Severity::Error,
                &format!("target {}", target.name),
                cause.to_string(),
                "write the key into that file, mode 0600",
            ));
        }
    }
    (found, down)
}

/// Findings of a source, and its subject when it is merely down.
async fn source_findings(source: &SourceConfig, config: &Config) -> (Vec<catalog::Finding>, Option<String>) {
    let subject = format!("source {}", source.name);
    let error = |what, remedy| finding(Severity::Error, &subject, what, remedy);
    let client = match source.database.connect("tailwater-check").await {
        Ok(client) => client,
        Err(cause) => {
            return (vec![error(cause.to_string(), "start the server, or correct `url`")], Some(subject));
        }
    };
    let looked = async {
        let known = known_tables(config, &source.name).await;
        let presence = Presence::of(&client, &source.mapping, &source.publication, known).await?;
        let mapping = presence.narrow(&source.mapping);
        let mut found = catalog::check(&client, &mapping, &source.publication, &source.slot).await?;
        found.extend(presence.findings(&source.mapping, &source.publication));
        Ok(found)
    };
    let mut found = looked.await.unwrap_or_else(|cause: tokio_postgres::Error| {
        vec![error(crate::pg::describe(&cause), "see `tailwater source sql`")]
    });
    if ReplicationConnection::may_copy_the_cluster(&source.database).await {
        let what =
            "the role is let in for physical replication, so it could copy the whole cluster".to_owned();
        let remedy = "put the lines for pg_hba.conf from `tailwater source sql` before all others";
        found.push(finding(Severity::Warning, &subject, what, remedy));
    }
    (found, None)
}

/// Tables of which the ledger has images; none when it does not answer, which is a finding of its own.
async fn known_tables(config: &Config, source: &str) -> BTreeSet<String> {
    let known = async {
        let client = config.ledger.connect("tailwater-check").await?;
        crate::ledger::loads::relations(&client, source).await
    };
    known.await.map(|tables| tables.into_keys().collect()).unwrap_or_default()
}

fn finding(severity: Severity, subject: &str, what: String, remedy: &str) -> catalog::Finding {
    catalog::Finding { severity, subject: subject.to_owned(), what, remedy: remedy.to_owned(), parks: false }
}
