//! The WAL guard: looks at the slot from outside, whatever becomes of the stream and of the ledger, and speaks up before
//! the ERP's disk or the server's limit decides. Only if the settings say so it lets go of the slot.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_postgres::Client;

use super::Source;
use super::error::CaptureError;
use crate::config::GuardSettings;
use crate::source::postgres::chunk::emit;
use crate::source::postgres::slot;

/// How often the slot is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// Longest wait for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How far back the present rate is measured.
const RATE_WINDOW: Duration = Duration::from_secs(600);
/// An alarm is repeated after this time.
const REPEAT: Duration = Duration::from_secs(600);

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing to say.
    Fine,
    /// Worth a look.
    Warn,
    /// Somebody has to act.
    Alarm,
    /// The settings say to let go of the slot.
    Release,
}

/// The slot at one instant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sight {
    /// WAL that the slot holds back.
    pub retained_bytes: u64,
    /// WAL that may still be written before the slot is lost; `None` without a limit.
    pub safe_bytes: Option<u64>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: String,
    /// Somebody reads it.
    pub active: bool,
    /// WAL written so far by the whole server.
    pub written_bytes: u64,
}

/// What is decided. Pure.
#[must_use]
pub fn judge(settings: &GuardSettings, sight: &Sight, bytes_per_second: Option<u64>) -> (Level, String) {
    let left = sight.safe_bytes.zip(bytes_per_second.filter(|rate| *rate > 0));
    let left = left.map(|(safe, rate)| Duration::from_secs(safe / rate));
    let within = |limit: Duration| left.is_some_and(|left| left < limit);
    let beyond = |limit: u64| sight.retained_bytes >= limit;
    let level = match () {
        () if settings.release_bytes.is_some_and(beyond) => Level::Release,
        () if matches!(sight.wal_status.as_str(), "unreserved" | "lost") => Level::Alarm,
        () if beyond(settings.alarm_bytes) || within(settings.alarm_time) => Level::Alarm,
        () if beyond(settings.warn_bytes) || within(settings.warn_time) => Level::Warn,
        () => Level::Fine,
    };
    let mut text =
        format!("the slot holds back {}, wal_status {}", size(sight.retained_bytes), sight.wal_status);
    if let Some(safe) = sight.safe_bytes {
        text.push_str(&format!(", {} until it is lost", size(safe)));
    }
    if let Some(left) = left {
        text.push_str(&format!(", reached in {} min at the present rate", left.as_secs() / 60));
    }
    if !sight.active {
        text.push_str(", nobody reads it");
    }
    (level, text)
}

fn size(bytes: u64) -> String {
    match bytes {
        0..0x10_0000 => format!("{} kB", bytes >> 10),
        0x10_0000..0x4000_0000 => format!("{} MB", bytes >> 20),
        _ => format!("{}.{} GB", bytes >> 30, (bytes >> 20) % 1024 * 10 / 1024),
    }
}

/// Set while the slot is being let go of: the follower closes its connection and keeps away.
#[derive(Debug, Clone, Default)]
pub struct Releasing(Arc<AtomicBool>);

impl Releasing {
    /// True while it is.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self, releasing: bool) {
        self.0.store(releasing, Ordering::Relaxed);
    }
}

/// Guards one source until the process ends.
pub struct Guard {
    source: Arc<Source>,
    client: Option<Client>,
    /// WAL written at these instants.
    samples: Vec<(Instant, u64)>,
    said: Option<(Level, Instant)>,
    beaten: Instant,
}

impl Guard {
    /// A guard that has seen nothing yet.
    #[must_use]
    pub fn new(source: Arc<Source>) -> Self {
        Self { source, client: None, samples: Vec::new(), said: None, beaten: Instant::now() }
    }

    /// Runs for ever.
    pub async fn run(mut self) {
        let mut ticks = interval(self.source.guard.heartbeat.unwrap_or(LOOK_INTERVAL).min(LOOK_INTERVAL));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if self.source.stands_by.load(Ordering::Relaxed) {
                continue;
            }
            let looked = timeout(ANSWER_TIMEOUT, self.look()).await;
            let looked = looked.unwrap_or_else(|_| Err(CaptureError::Away("no answer in time".into())));
            if let Err(error) = looked {
                // The follower reports that the source is away.
                tracing::debug!(%error, "the slot could not be looked at");
                self.client = None;
            }
        }
    }

    async fn look(&mut self) -> Result<(), CaptureError> {
        let client = match self.client.take() {
            Some(client) if !client.is_closed() => client,
            _ => self.source.database.connect("tailwater-guard").await?,
        };
        let sight = sight(&client, &self.source.slot).await?;
        if let Some(every) = self.source.guard.heartbeat
            && self.beaten.elapsed() >= every
        {
            self.beaten = Instant::now();
            emit(&client, "heartbeat").await?;
        }
        match sight {
            Some(sight) => self.act(&client, &sight).await?,
            None => self.source.releasing.set(false),
        }
        self.client = Some(client);
        Ok(())
    }

    async fn act(&mut self, client: &Client, sight: &Sight) -> Result<(), CaptureError> {
        let now = Instant::now();
        self.samples.retain(|(at, _)| now.duration_since(*at) <= RATE_WINDOW);
        self.samples.push((now, sight.written_bytes));
        let rate = self.samples.first().and_then(|(at, written)| {
            let seconds = now.duration_since(*at).as_secs();
            (seconds >= 30).then(|| sight.written_bytes.saturating_sub(*written) / seconds)
        });
        let (level, text) = judge(&self.source.guard, sight, rate);
        self.say(level, &text, now);
        if level == Level::Release || self.source.releasing.is_set() {
            self.source.releasing.set(true);
            // As long as the follower's connection stands the server refuses; then it is tried again.
            if !sight.active && slot::drop(client, &self.source.slot).await.is_ok() {
                tracing::error!(slot = %self.source.slot, "the slot was let go; the tables are read again through a new one");
                self.source.releasing.set(false);
            }
        }
        Ok(())
    }

    /// Says it when it changes, and an alarm again and again.
    fn say(&mut self, level: Level, text: &str, now: Instant) {
        let news = match self.said {
            None => level > Level::Fine,
            Some((said, at)) => said != level || level >= Level::Alarm && now.duration_since(at) >= REPEAT,
        };
        if !news {
            return;
        }
        self.said = Some((level, now));
        let source_name = &self.source.flow.name;
        match level {
            Level::Fine => tracing::info!(%source_name, text, "WAL guard: fine again"),
            Level::Warn => tracing::warn!(%source_name, text, "WAL guard: warning"),
            Level::Alarm => tracing::error!(%source_name, text, "WAL guard: alarm"),
            Level::Release => tracing::error!(%source_name, text, "WAL guard: the slot is let go"),
        }
    }
}

/// Looks at the slot; `None` when there is none.
pub async fn sight(client: &Client, slot: &str) -> Result<Option<Sight>, tokio_postgres::Error> {
    let sql = "select coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::bigint, safe_wal_size,
                 coalesce(wal_status, 'lost'), active, pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint
               from pg_replication_slots where slot_name = $1";
    let Some(row) = client.query_opt(sql, &[&slot]).await? else { return Ok(None) };
    let bytes = |value: i64| u64::try_from(value).unwrap_or_default();
    Ok(Some(Sight {
        retained_bytes: bytes(row.try_get(0)?),
        safe_bytes: row.try_get::<_, Option<i64>>(1)?.map(bytes),
        wal_status: row.try_get(2)?,
        active: row.try_get(3)?,
        written_bytes: bytes(row.try_get(4)?),
    }))
}
