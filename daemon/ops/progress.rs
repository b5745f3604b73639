//! How far a load has come, and when it will be done.

use jiff::Timestamp;
use tokio_postgres::Client;

use crate::ledger::LedgerError;

/// Characters of the bar.
const BAR: usize = 24;

/// See the module's text.
#[derive(Debug, Clone)]
pub struct Progress {
    /// State of the load in the ledger.
    pub state: String,
    /// Rows read.
    pub rows: i64,
    /// Rows expected.
    pub estimated: i64,
    /// Seconds left at the rate so far; none before anything was read.
    pub seconds_left: Option<i64>,
    /// For people.
    pub line: String,
}

/// The progress of a load; `None` when there is no such load.
pub async fn progress(client: &Client, load: i64) -> Result<Option<Progress>, LedgerError> {
    let sql = "select l.state, l.kind, l.started_at, coalesce(sum(p.rows), 0)::bigint,
                 coalesce(sum(case when p.done then p.rows else greatest(p.rows, p.estimated) end), 0)::bigint,
                 coalesce(string_agg(distinct p.relation, ', ') filter (where not p.done and p.rows > 0), ''),
                 coalesce(l.finished_at, now())
               from load l left join load_part p on p.load = l.id where l.id = $1 group by l.id";
    let Some(row) = client.query_opt(sql, &[&load]).await? else { return Ok(None) };
    let (state, kind): (String, String) = (row.try_get(0)?, row.try_get(1)?);
    let started_at: Option<Timestamp> = row.try_get(2)?;
    let (rows, estimated): (i64, i64) = (row.try_get(3)?, row.try_get(4)?);
    let reading: String = row.try_get(5)?;
    let now: Timestamp = row.try_get(6)?;
    let elapsed_ms =
        started_at.map_or(0, |at| i64::try_from(now.duration_since(at).as_millis()).unwrap_or(0)).max(1);
    let seconds_left =
        (rows > 0).then(|| (estimated - rows).max(0).saturating_mul(elapsed_ms) / rows / 1_000);
    let percent = if state == "done" { 100 } else { (rows * 100 / estimated.max(1)).clamp(0, 99) };
    let filled = BAR * usize::try_from(percent).unwrap_or(0) / 100;
    let bar = format!("{}{}", "#".repeat(filled), ".".repeat(BAR - filled));
    let rest = match (state.as_str(), seconds_left) {
        ("done", _) => format!("{rows} rows in {:.1} s", seconds(elapsed_ms)),
        (_, Some(left)) => format!("{rows} of about {estimated} rows, {} left, {reading}", duration(left)),
        (_, None) => "waiting".to_owned(),
    };
    let line = format!("load {load} ({kind}) [{bar}] {percent} % {rest}");
    Ok(Some(Progress { state, rows, estimated, seconds_left, line }))
}

#[allow(clippy::cast_precision_loss)] // Milliseconds of a load, shown with one digit.
fn seconds(ms: i64) -> f64 {
    ms as f64 / 1_000.0
}

fn duration(seconds: i64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        _ => format!("{} h {} min", seconds / 3_600, seconds / 60 % 60),
    }
}
