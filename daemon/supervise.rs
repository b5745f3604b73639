//! The daemon's supervision: starts every loop on a ledger, and starts them all again when the ledger was away.

use std::collections::HashMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::app::{EX_CONFIG, fail};
use crate::cache::Cache;
use crate::capture::Source;
use crate::capture::error::CaptureError;
use crate::capture::follow::Follower;
use crate::capture::guard::Guard;
use crate::capture::mass::MassGuard;
use crate::config::secret::Secret;
use crate::config::{Config, TargetConfig};
use crate::connector::Transport;
use crate::dispatch::dedup::Dedup;
use crate::dispatch::gate::Gates;
use crate::dispatch::quota::Quotas;
use crate::dispatch::quota::shared::SharedBuckets;
use crate::dispatch::retry::backoff;
use crate::dispatch::target::Versions;
use crate::dispatch::{Dispatcher, Target};
use crate::ledger::batch::Batch;
use crate::ledger::entry::{EntryKind, NewEntry};
use crate::ledger::{Ledger, LedgerError, recent};
use crate::ops::commands::{Waves, serve};
use crate::ops::log;
use crate::ops::pulse::Pulses;
use crate::ops::systemd::{feed_watchdog, notify};
use crate::target::{HttpTarget, Way};

/// How long requests in flight may take when the daemon stops.
const DRAIN_PATIENCE: Duration = Duration::from_secs(20);

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
pub async fn run(config: Config) -> ExitCode {
    log::start();
    let pulses = Arc::new(Pulses::default());
    tokio::spawn(feed_watchdog(pulses.clone()));
    let (stop, stopping) = watch::channel(false);
    tokio::spawn(async move {
        wait_for_signal().await;
        stop.send_replace(true);
    });
    let waves = Waves::default();
    let (sources, targets) = match prepare(config, &waves) {
        Ok(parts) => parts,
        Err(message) => return fail(EX_CONFIG, &message),
    };
    for source in &sources.0 {
        tokio::spawn(Guard::new(source.clone()).run());
    }
    let mut failures = 0;
    loop {
        pulses.clear();
        let supervisor = Supervisor {
            sources: &sources.0,
            targets: &targets,
            waves: &waves,
            pulses: &pulses,
            stopping: &stopping,
        };
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
fn prepare(config: Config, waves: &Waves) -> Result<(Sources, Vec<Arc<Target>>), String> {
    let mut by_system: HashMap<String, Vec<String>> = HashMap::new();
    for target in &config.targets {
        by_system.entry(target.connector.system.clone()).or_default().push(target.name.clone());
    }
    let routes = Arc::new(config.routes);
    let sources = config.sources.into_iter();
    let upcasters = Arc::new(config.upcasters);
    let source =
        |source| Source::new(source, (routes.clone(), upcasters.clone()), by_system.clone(), waves.clone());
    let sources = sources.map(|config| Arc::new(source(config)));
    let sources = sources.collect();
    let versions = Versions { routes: routes.clone(), upcasters: upcasters.clone() };
    let cache = Arc::new(Cache::new(config.redis));
    let prepare = |target| prepare_target(target, &cache, versions.clone());
    let targets = config.targets.into_iter().map(prepare);
    let targets = targets.collect::<Result<_, String>>()?;
    Ok(((sources, config.ledger), targets))
}

fn prepare_target(
    target: TargetConfig,
    cache: &Arc<Cache>,
    versions: Versions,
) -> Result<Arc<Target>, String> {
    // A secret that cannot be read now would only be found out at the first delivery.
    let failed = |error: String| format!("target \"{}\": {error}", target.name);
    target.api_key.as_ref().map(Secret::read).transpose().map_err(|error| failed(error.to_string()))?;
    let way = match target.connector.transport {
        Transport::Http => {
            let (user, key) = (target.user.as_deref(), target.api_key.clone());
            let http = HttpTarget::new(&target.connector, &target.base_url, user, key);
            Way::Http(http.map_err(|error| failed(error.to_string()))?)
        }
        Transport::Discard => Way::Discard,
    };
    let limits = target.connector.limits.clone();
    let shared = SharedBuckets::new(cache.clone(), &target.name);
    Ok(Arc::new(Target {
        way,
        quotas: Quotas::new(limits, &target.quota, Some(shared)),
        name: target.name,
        connector: target.connector,
        unsent: Arc::default(),
        dedup: Dedup::new(cache.clone()),
        shadow: target.shadow,
        versions,
        adopts: target.adopts,
        adopting: Mutex::new(()),
        gates: Gates::default(),
    }))
}

struct Supervisor<'a> {
    sources: &'a [Arc<Source>],
    targets: &'a [Arc<Target>],
    waves: &'a Waves,
    pulses: &'a Pulses,
    stopping: &'a watch::Receiver<bool>,
}

impl Supervisor<'_> {
    /// Opens the ledger, and takes up what it says of earlier runs.
    async fn open(&self, database: &crate::pg::Database) -> Result<Ledger, LedgerError> {
        let ledger = Ledger::open(database).await?;
        note(&ledger, EntryKind::Start, self.describe()).await?;
        self.waves.refresh(&ledger).await?;
        for source in self.sources.iter().filter(|source| source.mass.is_set()) {
            source
                .mass_guard
                .resume(recent::events(ledger.reader(), &source.name, source.mass.window).await?);
        }
        Ok(ledger)
    }

    /// Starts every loop, and waits for the first reason to end.
    async fn run(&self, database: &crate::pg::Database) -> End {
        let ledger = match self.open(database).await {
            Ok(ledger) => ledger,
            Err(error) => return End::LedgerLost(error),
        };
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
        let pulse = self.pulses.register("commands");
        let guards: Vec<MassGuard> = self.sources.iter().map(|source| source.mass_guard.clone()).collect();
        dispatchers.spawn(serve(
            ledger.clone(),
            self.waves.clone(),
            move || guards.iter().for_each(MassGuard::reset),
            wake.clone(),
            pulse,
            self.stopping.clone(),
        ));
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

/// Ends at SIGTERM or SIGINT.
pub async fn wait_for_signal() {
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
