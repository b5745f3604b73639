//! Processes that work on one ledger: who lives, who does what, and how one that has died is kept from coming back.
//!
//! A process is alive while its writing session stands and it says so every second. One that is not is ended by another: its
//! session is cut off first, so that nothing it has begun can still be committed, and only then is taken over what it did. A
//! process that was only paused finds its session gone, and its [`Tenure`] over: it starts nothing new with what it knew.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::time::{Instant, sleep};
use tokio_postgres::Client;

use super::LedgerError;
use super::calls::forget;

/// How often a process says that it lives.
pub const HEARTBEAT: Duration = Duration::from_secs(1);
/// After which silence it is dead.
const TIME_TO_LIVE: Duration = Duration::from_secs(6);
/// Longer than any session stands.
const FOR_EVER_S: f64 = 3e9;
/// It stops earlier itself: two clocks are never quite the same.
const MARGIN: Duration = Duration::from_secs(1);
/// How long it is waited, at each look, until sessions that were cut off are gone: much less than this process may be silent.
const CUT_OFF_PATIENCE: Duration = Duration::from_millis(500);

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Follows sources and delivers.
    All,
    /// Follows sources.
    Capture,
    /// Delivers.
    Dispatch,
    /// Carries out one command while no daemon runs.
    Command,
}

impl Role {
    /// In the ledger and on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Capture => "capture",
            Self::Dispatch => "dispatch",
            Self::Command => "command",
        }
    }

    /// Follows sources.
    #[must_use]
    pub fn captures(self) -> bool {
        matches!(self, Self::All | Self::Capture)
    }

    /// Delivers.
    #[must_use]
    pub fn dispatches(self) -> bool {
        matches!(self, Self::All | Self::Dispatch)
    }
}

/// Until when this process may begin something with what it knows of the ledger.
#[derive(Debug, Clone)]
pub struct Tenure {
    /// Microseconds of [`uptime`].
    until: Arc<AtomicU64>,
}

/// Since the machine was started, the time that it has slept included: other machines did not sleep meanwhile.
fn uptime() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(
        u64::try_from(now.tv_sec).unwrap_or_default(),
        u32::try_from(now.tv_nsec).unwrap_or_default(),
    )
}

impl Tenure {
    fn new() -> Self {
        Self { until: Arc::default() }
    }

    /// One without an end, for a process that is alone by force.
    #[must_use]
    pub fn endless() -> Self {
        let tenure = Self::new();
        tenure.until.store(u64::MAX, Ordering::Relaxed);
        tenure
    }

    /// A heartbeat that was sent at `sent` has arrived.
    fn renew(&self, sent: Duration) {
        let until = sent + (TIME_TO_LIVE - MARGIN);
        self.until.store(u64::try_from(until.as_micros()).unwrap_or(u64::MAX), Ordering::Release);
    }

    /// True while nobody else can have taken over.
    #[must_use]
    pub fn holds(&self) -> bool {
        uptime().as_micros() < u128::from(self.until.load(Ordering::Acquire))
    }

    /// Carries `work` on while this holds; nothing when it ends first, or has ended while the process was paused.
    pub async fn during<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = std::pin::pin!(work);
        std::future::poll_fn(|context| {
            // Looked at before each step: after a pause everything that was waited for may be ready at once.
            if !self.holds() {
                return std::task::Poll::Ready(None);
            }
            work.as_mut().poll(context).map(Some)
        })
        .await
    }
}

/// This process, as the ledger knows it.
#[derive(Debug, Clone)]
pub struct Process {
    /// Its number.
    pub epoch: i64,
    /// What it does.
    pub role: Role,
    /// See there.
    pub tenure: Tenure,
}

impl Process {
    /// Enters a process whose writing session is `writer`.
    pub async fn enter(writer: &Client, role: Role) -> Result<Self, LedgerError> {
        let tenure = Tenure::new();
        let sent = uptime();
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let sql = "insert into process (role, version, host, backend_pid, backend_start, expires_at)
                   select $1, $2, $3, pid, backend_start, now() + make_interval(secs => $4)
                   from pg_stat_activity where pid = pg_backend_pid() returning epoch";
        // A command lives as long as its session: nobody waits for it to say so.
        let lives = if role == Role::Command { FOR_EVER_S } else { TIME_TO_LIVE.as_secs_f64() };
        let version = env!("CARGO_PKG_VERSION");
        let row = writer.query_one(sql, &[&role.as_str(), &version, &host.trim(), &lives]).await?;
        tenure.renew(sent);
        Ok(Self { epoch: row.try_get(0)?, role, tenure })
    }

    /// Says that it lives. Refused when another one has found it dead.
    pub async fn beat(&self, client: &Client) -> Result<(), LedgerError> {
        let sent = uptime();
        let sql = "update process set expires_at = now() + make_interval(secs => $2)
                   where epoch = $1 and ended_at is null";
        if client.execute(sql, &[&self.epoch, &TIME_TO_LIVE.as_secs_f64()]).await? == 0 {
            return Err(LedgerError::Fenced);
        }
        self.tenure.renew(sent);
        Ok(())
    }

    /// Ends by itself; what it did is free at once.
    pub async fn end(&self, client: &Client) -> Result<(), LedgerError> {
        client.execute("update process set ended_at = now() where epoch = $1", &[&self.epoch]).await?;
        forget(client, self.epoch).await
    }

    /// Takes `name` if nobody alive has it; true when it is ours.
    pub async fn take(&self, client: &Client, name: &str) -> Result<bool, LedgerError> {
        let sql = "insert into lease (name, epoch) values ($1, $2)
                   on conflict (name) do update set epoch = excluded.epoch
                   where lease.epoch = excluded.epoch
                      or exists (select from process p where p.epoch = lease.epoch and p.ended_at is not null)
                   returning epoch";
        Ok(client.query_opt(sql, &[&name, &self.epoch]).await?.is_some())
    }

    /// Lets go of `names`.
    pub async fn release(&self, client: &Client, names: &[String]) -> Result<(), LedgerError> {
        client
            .execute("delete from lease where name = any ($1) and epoch = $2", &[&names, &self.epoch])
            .await?;
        Ok(())
    }
}

/// What a look at the other processes showed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Others {
    /// Processes that write, this one not counted.
    pub writing: usize,
    /// Those of them that deliver.
    pub dispatching: usize,
}

const DEAD: &str = "p.expires_at < now() or not exists (
    select from pg_stat_activity a where a.pid = p.backend_pid and a.backend_start = p.backend_start)";

/// Looks at the others, and ends those that are dead.
pub async fn look(client: &Client, own: i64) -> Result<Others, LedgerError> {
    let sql = format!(
        "select p.epoch, p.role, p.backend_pid, ({DEAD}) from process p
                       where p.ended_at is null and p.epoch <> $1 order by p.epoch"
    );
    let mut others = Others::default();
    let until = Instant::now() + CUT_OFF_PATIENCE;
    for row in client.query(&sql, &[&own]).await? {
        let (epoch, role): (i64, String) = (row.try_get(0)?, row.try_get(1)?);
        if row.try_get(3)? {
            if fence(client, epoch, until).await? && role != Role::Command.as_str() {
                tracing::warn!(epoch, "another process has died; what it did is free");
            }
            continue;
        }
        others.writing += 1;
        others.dispatching += usize::from(role == "all" || role == "dispatch");
    }
    Ok(others)
}

/// Cuts off the session of a dead process, waits until it is gone, and ends the process; true when that was done here. A session
/// that is not gone by `until` is looked at again the next time.
async fn fence(client: &Client, epoch: i64, until: Instant) -> Result<bool, LedgerError> {
    let session = "select a.pid from process p join pg_stat_activity a
                   on a.pid = p.backend_pid and a.backend_start = p.backend_start where p.epoch = $1";
    loop {
        let Some(row) = client.query_opt(session, &[&epoch]).await? else { break };
        let pid: i32 = row.try_get(0)?;
        client.execute("select pg_terminate_backend($1)", &[&pid]).await?;
        if Instant::now() > until {
            tracing::warn!(epoch, pid, "the session of a process that is silent has not ended yet");
            return Ok(false);
        }
        sleep(Duration::from_millis(20)).await;
    }
    let sql =
        format!("update process p set ended_at = now() where epoch = $1 and ended_at is null and ({DEAD})");
    let ended = client.execute(&sql, &[&epoch]).await? > 0;
    forget(client, epoch).await?;
    Ok(ended)
}

/// What tells this ledger from others that share a Redis.
pub async fn installation(client: &Client) -> Result<String, LedgerError> {
    Ok(client.query_one("select id::text from installation", &[]).await?.try_get(0)?)
}

/// True when a daemon works on this ledger.
pub async fn is_served(client: &Client) -> Result<bool, LedgerError> {
    let known = client.query_one("select to_regclass('process') is not null", &[]).await?;
    if !known.try_get::<_, bool>(0)? {
        return Ok(false);
    }
    let sql = format!(
        "select exists (select from process p where p.ended_at is null and p.role <> 'command' and not ({DEAD}))"
    );
    Ok(client.query_one(&sql, &[]).await?.try_get(0)?)
}

/// Names of what is leased of a target's lanes.
#[must_use]
pub fn lanes(target: &str, shard: i16) -> String {
    format!("lanes/{target}/{shard}")
}
