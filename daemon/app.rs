//! Commands and the daemon's supervision: the only file that knows every module.

use std::collections::HashMap;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use jiff::Timestamp;
use sd_notify::NotifyState;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::capture::Source;
use crate::capture::follow::{CaptureError, Follower};
use crate::cli::{Cli, Command, ConfigArgs, LedgerCommand, SourceCommand};
use crate::config::{Config, TargetConfig, load};
use crate::dispatch::dedup::Dedup;
use crate::dispatch::gate::Gate;
use crate::dispatch::quota::Pacer;
use crate::dispatch::retry::backoff;
use crate::dispatch::{Dispatcher, Target};
use crate::ledger::batch::Batch;
use crate::ledger::entry::{EntryKind, NewEntry};
use crate::ledger::verify::{Verdict, verify};
use crate::ledger::{Ledger, LedgerError};
use crate::ops::pulse::Pulses;
use crate::ops::systemd::{feed_watchdog, notify};
use crate::ops::{log, status};
use crate::source::postgres::catalog::{self, Severity};
use crate::source::postgres::script::source_sql;
use crate::target::HttpTarget;

/// Wrong usage of the command line.
const EX_USAGE: u8 = 64;
/// A database or service is down.
const EX_UNAVAILABLE: u8 = 69;
/// A fault of our own.
const EX_SOFTWARE: u8 = 70;
/// Wrong settings, or not safe to start.
const EX_CONFIG: u8 = 78;
/// How long requests in flight may take when the daemon stops.
const DRAIN_PATIENCE: Duration = Duration::from_secs(20);

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
        Command::Run(args) => with_config(&args, run).await,
        Command::Check { config, json } => check(&config, json).await,
        Command::Status { config, json } => with_config(&config, |config| show_status(config, json)).await,
        Command::Source(SourceCommand::Sql { config, source }) => {
            with_config(&config, |config| async move { print_source_sql(&config, source.as_deref()) }).await
        }
        Command::Ledger(LedgerCommand::Verify { config, json }) => {
            with_config(&config, |config| verify_ledger(config, json)).await
        }
        Command::Demo { keep, seconds, plain } => crate::demo::run(keep, seconds, plain).await,
        Command::Man => print_man(),
    }
}

#[allow(clippy::print_stderr)]
fn fail(code: u8, message: &str) -> ExitCode {
    eprintln!("error: {message}");
    ExitCode::from(code)
}

#[allow(clippy::print_stdout)]
fn say(text: &str) {
    print!("{text}");
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

async fn with_config<F: Future<Output = ExitCode>>(
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

fn print_source_sql(config: &Config, name: Option<&str>) -> ExitCode {
    let found = match (name, config.sources.as_slice()) {
        (None, [only]) => Some(only),
        (None, _) => None,
        (Some(name), sources) => sources.iter().find(|source| source.name == name),
    };
    let Some(source) = found else {
        let names: Vec<&str> = config.sources.iter().map(|source| source.name.as_str()).collect();
        return fail(EX_USAGE, &format!("name one source: --source {}", names.join(" | ")));
    };
    let database = &source.database;
    say(&source_sql(&source.mapping, &database.user, &database.dbname, &source.publication));
    ExitCode::SUCCESS
}

async fn verify_ledger(config: Config, as_json: bool) -> ExitCode {
    let verdict = async {
        let mut client = config.ledger.connect("tailwater-verify").await?;
        verify(&mut client, |_, _| {}).await
    };
    let verdict: Verdict = match verdict.await {
        Ok(verdict) => verdict,
        Err(error @ LedgerError::Tree(_)) => return fail(1, &error.to_string()),
        Err(error) => return fail(EX_UNAVAILABLE, &error.to_string()),
    };
    let (word, details) = match &verdict {
        Verdict::Sound { size, root } => ("sound", json!({"size": size, "root": root})),
        Verdict::Tampered { seq, what } => ("tampered", json!({"seq": seq, "what": what})),
        Verdict::Incomplete { seq, what } => ("incomplete", json!({"seq": seq, "what": what})),
    };
    if as_json {
        say(&format!("{}\n", json!({"verdict": word, "details": details})));
    } else {
        match &verdict {
            Verdict::Sound { size, root } => say(&format!("sound: {size} entries, tree head {root}\n")),
            Verdict::Tampered { seq, what } | Verdict::Incomplete { seq, what } => {
                say(&format!("{word}: entry {seq}: {what}\n"));
            }
        }
    }
    ExitCode::from(verdict.exit_code())
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
    let (findings, down) = findings(&config).await;
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
    let error = |subject: &str, what: String, remedy: &str| catalog::Finding {
        severity: Severity::Error,
        subject: subject.to_owned(),
        what,
        remedy: remedy.to_owned(),
    };
    let (mut found, mut down) = (Vec::new(), Vec::new());
    if let Err(cause) = config.ledger.connect("tailwater-check").await {
        found.push(error("ledger", cause.to_string(), "start the server, or correct `url` in [ledger]"));
        down.push("ledger".to_owned());
    }
    if !Dedup::new(&config.redis_url).is_up().await {
        found.push(catalog::Finding {
            severity: Severity::Warning,
            subject: "redis".into(),
            what: "does not answer; the ledger decides alone, which is slower".into(),
            remedy: "start Redis, or correct `url` in [redis]".into(),
        });
    }
    for source in &config.sources {
        let subject = format!("source {}", source.name);
        match source.database.connect("tailwater-check").await {
            Err(cause) => {
                found.push(error(&subject, cause.to_string(), "start the server, or correct `url`"));
                down.push(subject);
            }
            Ok(client) => {
                match catalog::check(&client, &source.mapping, &source.publication, &source.slot).await {
                    Ok(findings) => found.extend(findings),
                    Err(cause) => {
                        found.push(error(&subject, crate::pg::describe(&cause), "see `tailwater source sql`"))
                    }
                }
            }
        }
    }
    for target in &config.targets {
        if let Err(cause) = target.api_key.read() {
            found.push(error(
                &format!("target {}", target.name),
                cause.to_string(),
                "write the key into that file, mode 0600",
            ));
        }
    }
    (found, down)
}

/// How a run of all loops ended.
enum End {
    /// A signal.
    Stopped,
    /// The ledger: start again once it is back.
    LedgerLost(LedgerError),
    /// A person has to act.
    Refused(String),
}

/// `tailwater run`.
async fn run(config: Config) -> ExitCode {
    log::start();
    let pulses = Arc::new(Pulses::default());
    tokio::spawn(feed_watchdog(pulses.clone()));
    let (stop, stopping) = watch::channel(false);
    tokio::spawn(async move {
        wait_for_signal().await;
        stop.send_replace(true);
    });
    let (sources, targets) = match prepare(config) {
        Ok(parts) => parts,
        Err(message) => return fail(EX_CONFIG, &message),
    };
    let mut failures = 0;
    loop {
        pulses.clear();
        let supervisor =
            Supervisor { sources: &sources.0, targets: &targets, pulses: &pulses, stopping: &stopping };
        match supervisor.run(&sources.1).await {
            End::Stopped => return ExitCode::SUCCESS,
            End::Refused(message) => {
                notify(&[NotifyState::Status("refused; see the log")]);
                tracing::error!("{message}");
                return fail(EX_CONFIG, &message);
            }
            End::LedgerLost(error) => {
                failures += 1;
                let wait = backoff(failures.min(8), rand::random()).min(Duration::from_secs(5));
                tracing::warn!(%error, wait_ms = %wait.as_millis(), "the ledger is away");
                notify(&[NotifyState::Status("waiting for the ledger")]);
                let mut stopping = stopping.clone();
                tokio::select! {
                    () = sleep(wait) => {}
                    _ = stopping.wait_for(|stop| *stop) => return ExitCode::SUCCESS,
                }
            }
        }
    }
}

type Sources = (Vec<Arc<Source>>, crate::pg::Database);

/// Turns settings into what runs.
fn prepare(config: Config) -> Result<(Sources, Vec<Arc<Target>>), String> {
    let mut by_system: HashMap<String, Vec<String>> = HashMap::new();
    for target in &config.targets {
        by_system.entry(target.connector.system.clone()).or_default().push(target.name.clone());
    }
    let routes = Arc::new(config.routes);
    let sources = config.sources.into_iter().map(|source| {
        Arc::new(Source {
            name: source.name,
            database: source.database,
            slot: source.slot,
            publication: source.publication,
            mapping: Arc::new(source.mapping),
            routes: routes.clone(),
            targets: by_system.clone(),
        })
    });
    let sources = sources.collect();
    let targets = config.targets.into_iter().map(|target| prepare_target(target, &config.redis_url));
    let targets = targets.collect::<Result<_, String>>()?;
    Ok(((sources, config.ledger), targets))
}

fn prepare_target(target: TargetConfig, redis_url: &str) -> Result<Arc<Target>, String> {
    // A secret that cannot be read now would only be found out at the first delivery.
    target.api_key.read().map_err(|error| format!("target \"{}\": {error}", target.name))?;
    let http = HttpTarget::new(&target.connector, &target.base_url, target.user.as_deref(), target.api_key);
    Ok(Arc::new(Target {
        http: http.map_err(|error| format!("target \"{}\": {error}", target.name))?,
        name: target.name,
        connector: target.connector,
        pacer: Pacer::new(target.quota),
        dedup: Dedup::new(redis_url),
        gate: Mutex::new(Gate::default()),
    }))
}

struct Supervisor<'a> {
    sources: &'a [Arc<Source>],
    targets: &'a [Arc<Target>],
    pulses: &'a Pulses,
    stopping: &'a watch::Receiver<bool>,
}

impl Supervisor<'_> {
    /// Opens the ledger, starts every loop, and waits for the first reason to end.
    async fn run(&self, database: &crate::pg::Database) -> End {
        let ledger = match Ledger::open(database).await {
            Ok(ledger) => ledger,
            Err(error) => return End::LedgerLost(error),
        };
        if let Err(error) = note(&ledger, EntryKind::Start, self.describe()).await {
            return End::LedgerLost(error);
        }
        let (wake, woken) = watch::channel(0);
        let mut dispatchers = JoinSet::new();
        for target in self.targets {
            let pulse = self.pulses.register(&format!("target {}", target.name));
            let dispatcher =
                Dispatcher::new(ledger.clone(), target.clone(), woken.clone(), pulse, self.stopping.clone());
            dispatchers.spawn(dispatcher.run());
        }
        let mut followers = JoinSet::new();
        let mut streaming = Vec::new();
        for source in self.sources {
            let (is_streaming, watched) = watch::channel(false);
            streaming.push(watched);
            let follower = Follower {
                source: source.clone(),
                ledger: ledger.clone(),
                wake: wake.clone(),
                pulse: self.pulses.register(&format!("source {}", source.name)),
                streaming: is_streaming,
            };
            followers.spawn(follower.run());
        }
        let ready = tokio::spawn(report_ready(streaming));
        let end = self.wait(&ledger, &mut followers, &mut dispatchers).await;
        ready.abort();
        // The connection to the ERP goes first, so that it can stop whatever becomes of the rest.
        followers.shutdown().await;
        if matches!(end, End::Stopped) {
            notify(&[NotifyState::Stopping]);
            let drained = timeout(DRAIN_PATIENCE, async { while dispatchers.join_next().await.is_some() {} });
            if drained.await.is_err() {
                tracing::warn!(
                    "requests in flight were abandoned; they are in doubt and will be resolved at the next start"
                );
            }
            if let Err(error) = note(&ledger, EntryKind::Stop, json!({})).await {
                tracing::warn!(%error, "the stop could not be ledgered");
            }
        }
        dispatchers.shutdown().await;
        end
    }

    async fn wait(
        &self,
        ledger: &Ledger,
        followers: &mut JoinSet<Result<(), CaptureError>>,
        dispatchers: &mut JoinSet<Result<(), LedgerError>>,
    ) -> End {
        let mut stopping = self.stopping.clone();
        tokio::select! {
            _ = stopping.wait_for(|stop| *stop) => End::Stopped,
            () = ledger.lost() => End::LedgerLost(LedgerError::WriterGone),
            Some(ended) = followers.join_next() => match ended {
                Ok(Err(CaptureError::Ledger(error))) => End::LedgerLost(error),
                Ok(Err(error)) => End::Refused(error.to_string()),
                Ok(Ok(())) => End::Stopped,
                Err(error) => End::Refused(format!("a work loop ended: {error}")),
            },
            Some(ended) = dispatchers.join_next() => match ended {
                Ok(Err(error)) => End::LedgerLost(error),
                Ok(Ok(())) => End::Stopped,
                Err(error) => End::Refused(format!("a work loop ended: {error}")),
            },
        }
    }

    fn describe(&self) -> Value {
        let sources = self.sources.iter().map(|source| (source.name.clone(), json!(source.mapping.sha256)));
        let targets: Vec<&str> = self.targets.iter().map(|target| target.name.as_str()).collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "mappings": sources.collect::<serde_json::Map<_, _>>(),
            "targets": targets,
        })
    }
}

/// READY=1 once every source streams: then ledger, slot and mapping are proven.
async fn report_ready(streaming: Vec<watch::Receiver<bool>>) {
    for mut watched in streaming {
        if watched.wait_for(|streaming| *streaming).await.is_err() {
            return;
        }
    }
    tracing::info!("ready");
    notify(&[NotifyState::Ready, NotifyState::Status("streaming")]);
}

async fn note(ledger: &Ledger, kind: EntryKind, fields: Value) -> Result<(), LedgerError> {
    let mut batch = Batch::default();
    batch.entry(NewEntry::new(kind, None, fields));
    ledger.writer().write(batch).await.map(|_| ())
}

async fn wait_for_signal() {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
