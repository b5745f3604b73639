//! The daemon's supervision: starts every loop on a ledger, and starts them all again when the ledger was away.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sd_notify::NotifyState;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::app::{EX_CONFIG, fail};
use crate::audit::publish::{CHECKPOINTS, CheckpointSettings, PublishError, Publisher};
use crate::capture::error::CaptureError;
use crate::capture::flow::Flow;
use crate::capture::follow::Follower;
use crate::capture::guard::Guard;
use crate::capture::mass::MassGuard;
use crate::capture::poll::Poller;
use crate::config::Config;
use crate::dispatch::Dispatcher;
use crate::dispatch::job::JobFollower;
use crate::dispatch::retry::backoff;
use crate::ledger::batch::Batch;
use crate::ledger::entry::{EntryKind, NewEntry};
use crate::ledger::head::Head;
use crate::ledger::membership::{Ambition, Membership};
use crate::ledger::process::{Role, installation};
use crate::ledger::{Ledger, LedgerError, recent};
use crate::ops::commands::{COMMANDS, Watched, Waves, serve};
use crate::ops::pulse::{Pulse, Pulses};
use crate::ops::systemd::{feed_watchdog, notify};
use crate::ops::{admin, log};
use crate::prepare::{Prepared, prepare};
use crate::reconcile;
use crate::reload::{note_reloads, reload_on_hangup, tune};

/// How long requests in flight may take when the daemon stops.
const DRAIN_PATIENCE: Duration = Duration::from_secs(20);
/// Lease of the process that follows the sources.
const CAPTURE: &str = "capture";

/// How a run of all loops ended.
enum End {
    /// A signal.
    Stopped,
    /// The ledger: start again once it is back.
    LedgerLost(LedgerError),
    /// A person has to act.
    Refused(String),
}

/// `tailwater run`. `settings`: where they are read again from.
pub async fn run(config: Config, settings: PathBuf, role: Role) -> ExitCode {
    log::start();
    let pulses = Arc::new(Pulses::default());
    tokio::spawn(feed_watchdog(pulses.clone()));
    let (stop, stopping) = watch::channel(false);
    tokio::spawn(async move {
        wait_for_signal().await;
        stop.send_replace(true);
    });
    let waves = Waves::default();
    let prepared = match prepare(config, &waves) {
        Ok(prepared) => prepared,
        Err(message) => return fail(EX_CONFIG, &message),
    };
    let (reloads, reloaded) = mpsc::channel(1);
    tokio::spawn(reload_on_hangup(settings, prepared.targets.clone(), reloads));
    let reloaded = Arc::new(Mutex::new(reloaded));
    if role.captures() {
        for source in &prepared.sources {
            tokio::spawn(Guard::new(source.clone()).run());
        }
    }
    let mut failures = 0;
    loop {
        pulses.clear();
        let supervisor = Supervisor {
            prepared: &prepared,
            role,
            waves: &waves,
            pulses: &pulses,
            stopping: &stopping,
            reloaded: &reloaded,
        };
        match supervisor.run().await {
            End::Stopped => return ExitCode::SUCCESS,
            End::Refused(message) => {
                notify(&[NotifyState::Status("refused; see the log")]);
                tracing::error!("{message}");
                return fail(EX_CONFIG, &message);
            }
            End::LedgerLost(error) => {
                failures += 1;
                let wait = backoff(failures.min(8), rand::random()).min(Duration::from_secs(5));
                if error.is_away() {
                    tracing::warn!(%error, wait_ms = %wait.as_millis(), "the ledger is away");
                    notify(&[NotifyState::Status("waiting for the ledger")]);
                } else {
                    // What it is asked for, or what it holds, is wrong: every loop begins anew, and a person should look.
                    tracing::error!(%error, wait_ms = %wait.as_millis(), "the ledger refuses what it is asked; everything starts again");
                    notify(&[NotifyState::Status("the ledger refuses what it is asked")]);
                }
                let mut stopping = stopping.clone();
                tokio::select! {
                    () = sleep(wait) => {}
                    _ = stopping.wait_for(|stop| *stop) => return ExitCode::SUCCESS,
                }
            }
        }
    }
}

struct Supervisor<'a> {
    prepared: &'a Prepared,
    role: Role,
    waves: &'a Waves,
    pulses: &'a Pulses,
    stopping: &'a watch::Receiver<bool>,
    reloaded: &'a Arc<Mutex<mpsc::Receiver<Value>>>,
}

impl Supervisor<'_> {
    /// Opens the ledger, and takes up what it says of earlier runs.
    async fn open(&self, wake: &watch::Sender<u64>) -> Result<(Ledger, Membership), LedgerError> {
        let mut single = vec![COMMANDS.to_owned()];
        single.extend(self.prepared.checkpoints.is_some().then(|| CHECKPOINTS.to_owned()));
        if self.role.captures() {
            single.push(CAPTURE.to_owned());
        }
        let names = self.prepared.targets.iter().map(|target| target.name.clone());
        let targets = if self.role.dispatches() { names.collect() } else { Vec::new() };
        let wake = wake.clone();
        let heard = move || wake.send_modify(|count| *count = count.wrapping_add(1));
        let ambition = Ambition { single, targets };
        let ledger =
            Ledger::join((&self.prepared.ledger, &self.prepared.master), self.role, ambition, heard).await?;
        let membership = ledger.membership().cloned().ok_or(LedgerError::WriterGone)?;
        if let Some(checkpoints) = &self.prepared.checkpoints {
            checkpoints.guard(ledger.reader()).await.map_err(refused)?;
        }
        note(&ledger, EntryKind::Start, self.describe(membership.process.epoch)).await?;
        self.waves.refresh(&ledger).await?;
        let installation = installation(ledger.reader()).await?;
        self.prepared.targets.iter().for_each(|target| target.quotas.belong_to(&installation));
        Ok((ledger, membership))
    }

    /// Starts every loop, and waits for the first reason to end.
    async fn run(&self) -> End {
        let (wake, woken) = watch::channel(0);
        let (ledger, membership) = match self.open(&wake).await {
            Ok(opened) => opened,
            Err(LedgerError::Refused(message)) => return End::Refused(message),
            Err(error) => return End::LedgerLost(error),
        };
        let mut dispatchers = JoinSet::new();
        if self.role.dispatches() {
            for target in &self.prepared.targets {
                let pulse = self.pulses.register(&format!("target {}", target.name));
                let stopping = self.stopping.clone();
                let dispatcher =
                    Dispatcher::new(ledger.clone(), target.clone(), woken.clone(), pulse, stopping);
                dispatchers.spawn(dispatcher.run());
                if target.connector.jobs.is_some() {
                    let pulse = self.pulses.register(&format!("jobs {}", target.name));
                    let (ledger, target) = (ledger.clone(), target.clone());
                    let follower = JobFollower { ledger, target, pulse, stopping: self.stopping.clone() };
                    dispatchers.spawn(follower.run());
                }
            }
        }
        let (mut followers, streaming) = self.follow(&ledger, &membership, &wake);
        let ready = tokio::spawn(report_ready(membership.clone(), streaming));
        let (pulse, stopping) = (self.pulses.register("reconcile"), self.stopping.clone());
        let compared = (self.prepared.targets.clone(), self.prepared.schedules.clone());
        dispatchers.spawn(reconcile::serve::serve(ledger.clone(), compared, wake.clone(), pulse, stopping));
        let (pulse, stopping) = (self.pulses.register("commands"), self.stopping.clone());
        dispatchers.spawn(serve(ledger.clone(), self.watched(), wake, pulse, stopping.clone()));
        dispatchers.spawn(note_reloads(ledger.clone(), self.reloaded.clone(), stopping.clone()));
        self.publish(&ledger, &membership, &mut dispatchers);
        dispatchers.spawn(divide(membership, self.prepared.targets.clone(), stopping));
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
                // Before others may take over what they are about.
                dispatchers.shutdown().await;
            }
            let left = async {
                note(&ledger, EntryKind::Stop, json!({})).await?;
                self.publish_last(&ledger).await?;
                ledger.leave().await
            };
            if let Err(error) = left.await {
                tracing::warn!(%error, "the stop could not be ledgered");
            }
        }
        dispatchers.shutdown().await;
        end
    }

    /// Starts what speaks to people: the admin socket, and checkpoints, if the settings want any.
    fn publish(
        &self,
        ledger: &Ledger,
        membership: &Membership,
        loops: &mut JoinSet<Result<(), LedgerError>>,
    ) {
        if let Some(socket) = self.prepared.admin_socket.clone() {
            let (ledger, stopping) = (ledger.clone(), self.stopping.clone());
            let judge = self.prepared.judge();
            loops.spawn(async move { admin::serve(&socket, ledger, judge, stopping).await });
        }
        let Some(settings) = &self.prepared.checkpoints else { return };
        let (settings, stopping) = ((settings.clone(), ledger.clone()), self.stopping.clone());
        let pulse = self.pulses.register("checkpoints");
        loops.spawn(publish_in_turn(membership.clone(), settings, pulse, stopping));
    }

    /// The stop is covered by a checkpoint, too.
    async fn publish_last(&self, ledger: &Ledger) -> Result<(), LedgerError> {
        let publishes = |membership: &Membership| membership.standing().borrow().single.contains(CHECKPOINTS);
        let settings =
            self.prepared.checkpoints.as_ref().filter(|_| ledger.membership().is_some_and(publishes));
        let Some(settings) = settings else { return Ok(()) };
        settings.guard(ledger.reader()).await.map_err(refused)?;
        let tree = Head::load(ledger.reader()).await?.tree;
        let published = async { Publisher::new(settings.clone(), ledger.clone())?.publish(&tree).await };
        published.await.map_err(refused)
    }

    /// Sources are followed by one process; the others stand by.
    fn follow(
        &self,
        ledger: &Ledger,
        membership: &Membership,
        wake: &watch::Sender<u64>,
    ) -> (JoinSet<Result<(), CaptureError>>, Vec<watch::Receiver<bool>>) {
        let mut followers = JoinSet::new();
        let mut streaming = Vec::new();
        let sources = if self.role.captures() { self.prepared.sources.as_slice() } else { &[] };
        for source in sources {
            let (is_streaming, watched) = watch::channel(false);
            streaming.push(watched);
            let follower = Follower {
                source: source.clone(),
                ledger: ledger.clone(),
                wake: wake.clone(),
                pulse: self.pulses.register(&format!("source {}", source.flow.name)),
                streaming: is_streaming,
            };
            followers.spawn(follow_in_turn(membership.clone(), follower));
        }
        let polls = if self.role.captures() { self.prepared.polls.as_slice() } else { &[] };
        for source in polls {
            let (is_streaming, watched) = watch::channel(false);
            streaming.push(watched);
            let poller = Poller {
                source: source.clone(),
                ledger: ledger.clone(),
                wake: wake.clone(),
                pulse: self.pulses.register(&format!("source {}", source.flow.name)),
                streaming: is_streaming,
            };
            followers.spawn(poll_in_turn(membership.clone(), poller));
        }
        (followers, streaming)
    }

    /// Of all sources.
    fn flows(&self) -> impl Iterator<Item = &Flow> {
        let followed = self.prepared.sources.iter().map(|source| &*source.flow);
        followed.chain(self.prepared.polls.iter().map(|source| &*source.flow))
    }

    /// What is done about what operators change.
    fn watched(&self) -> Watched {
        let guards: Vec<MassGuard> = self.flows().map(|flow| flow.mass_guard.clone()).collect();
        let targets = if self.role.dispatches() { self.prepared.targets.clone() } else { Vec::new() };
        let (shown, lifted) = (targets.clone(), targets.clone());
        Watched {
            waves: self.waves.clone(),
            released: Box::new(move || guards.iter().for_each(MassGuard::reset)),
            tuned: Box::new(move |tunings| targets.iter().for_each(|target| tune(target, tunings))),
            lifted: Box::new(move |name| {
                lifted.iter().filter(|target| target.name == name).for_each(|target| target.lift());
            }),
            states: Box::new(move || {
                shown.iter().map(|target| (target.name.clone(), target.describe())).collect()
            }),
        }
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
                Ok(Err(LedgerError::Refused(message))) => End::Refused(message),
                Ok(Err(error)) => End::LedgerLost(error),
                Ok(Ok(())) => End::Stopped,
                Err(error) => End::Refused(format!("a work loop ended: {error}")),
            },
        }
    }

    fn describe(&self, epoch: i64) -> Value {
        let targets = &self.prepared.targets;
        let sources = self.flows().map(|flow| (flow.name.clone(), json!(flow.mapping.sha256)));
        let targets: Vec<&str> = targets.iter().map(|target| target.name.as_str()).collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "epoch": epoch,
            "role": self.role.as_str(),
            "mappings": sources.collect::<serde_json::Map<_, _>>(),
            "targets": targets,
        })
    }
}

/// Follows a source once this process is the one that does.
async fn follow_in_turn(membership: Membership, follower: Follower) -> Result<(), CaptureError> {
    let Follower { source, ledger, .. } = &follower;
    source.stands_by.store(!membership.standing().borrow().single.contains(CAPTURE), Ordering::Relaxed);
    follower.pulse.clone().during(membership.has(CAPTURE)).await;
    source.stands_by.store(false, Ordering::Relaxed);
    resume(ledger, &source.flow).await?;
    follower.run().await
}

/// Polls a source once this process is the one that does.
async fn poll_in_turn(membership: Membership, poller: Poller) -> Result<(), CaptureError> {
    poller.pulse.clone().during(membership.has(CAPTURE)).await;
    resume(&poller.ledger, &poller.source.flow).await?;
    poller.run().await
}

/// Publishes checkpoints once this process is the one that does.
async fn publish_in_turn(
    membership: Membership,
    (settings, ledger): (Arc<CheckpointSettings>, Ledger),
    pulse: Pulse,
    mut stopping: watch::Receiver<bool>,
) -> Result<(), LedgerError> {
    tokio::select! {
        () = pulse.during(membership.has(CHECKPOINTS)) => {}
        _ = stopping.wait_for(|stop| *stop) => return Ok(()),
    }
    // Another process may have published meanwhile.
    settings.guard(ledger.reader()).await.map_err(refused)?;
    Publisher::new(settings, ledger).map_err(refused)?.run(pulse, stopping).await
}

/// A ledger that is away comes back; everything else is for a person.
fn refused(error: PublishError) -> LedgerError {
    match error {
        PublishError::Ledger(error) => error,
        other => LedgerError::Refused(other.to_string()),
    }
}

/// Takes up what changed before this process followed the source.
async fn resume(ledger: &Ledger, flow: &Flow) -> Result<(), LedgerError> {
    if flow.mass.is_set() {
        let events = recent::events(ledger.reader(), &flow.name, flow.mass.window).await?;
        flow.mass_guard.resume(events);
    }
    Ok(())
}

/// Tells each target among how many processes it is divided.
async fn divide(
    membership: Membership,
    targets: Vec<Arc<crate::dispatch::Target>>,
    mut stopping: watch::Receiver<bool>,
) -> Result<(), LedgerError> {
    let mut standing = membership.standing();
    loop {
        let processes =
            u32::try_from(standing.borrow_and_update().others.dispatching + 1).unwrap_or(u32::MAX);
        targets.iter().for_each(|target| target.divide(processes));
        tokio::select! {
            changed = standing.changed() => changed.map_err(|_| LedgerError::WriterGone)?,
            _ = stopping.wait_for(|stop| *stop) => return Ok(()),
        }
    }
}

/// READY=1 once every source streams, for then ledger, slot and mapping are proven; or once this process stands by.
async fn report_ready(membership: Membership, streaming: Vec<watch::Receiver<bool>>) {
    let follows = membership.standing().borrow().single.contains(CAPTURE);
    for mut watched in streaming.into_iter().filter(|_| follows) {
        if watched.wait_for(|streaming| *streaming).await.is_err() {
            return;
        }
    }
    let status = if follows { "streaming" } else { "standing by" };
    tracing::info!(status, "ready");
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

pub(crate) async fn note(ledger: &Ledger, kind: EntryKind, fields: Value) -> Result<(), LedgerError> {
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
