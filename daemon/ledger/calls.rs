//! Bulk requests whose jobs are still to be followed.

use std::time::Duration;

use jiff::Timestamp;
use tokio_postgres::Client;

use super::LedgerError;
use super::batch::CallWrite;
use super::statements::{Prepared, parameters};

/// A bulk request whose job runs.
#[derive(Debug, Clone)]
pub struct Running {
    /// Its key.
    pub key: String,
    /// Object of the connector.
    pub object: String,
    /// Which of the connector's bulk requests.
    pub way: usize,
    /// Deliveries in the order of the request.
    pub deliveries: Vec<i64>,
    /// The vendor's number of the job.
    pub job: String,
    /// When it was sent, by the ledger's clock, and how long ago.
    pub sent_at: Timestamp,
    /// See there.
    pub age: Duration,
}

/// Jobs of `target` that this process follows: its own, and those of processes that have ended. `most` of them, oldest first.
pub async fn running(
    client: &Client,
    target: &str,
    epoch: i64,
    most: i64,
) -> Result<Vec<Running>, LedgerError> {
    let sql = "update bulk_call c set epoch = $2
               where key in (
                 select o.key from bulk_call o where o.target = $1 and o.state = 'running'
                   and (o.epoch = $2 or exists (select from process p where p.epoch = o.epoch and p.ended_at is not null))
                 order by o.sent_at limit $3)
               returning key, object, way, deliveries, job, extract(epoch from now() - sent_at)::float8, sent_at";
    let rows = client.query(sql, &[&target, &epoch, &most]).await?;
    let running = |row: &tokio_postgres::Row| {
        Ok(Running {
            key: row.try_get(0)?,
            object: row.try_get(1)?,
            way: usize::try_from(row.try_get::<_, i16>(2)?).unwrap_or_default(),
            deliveries: row.try_get(3)?,
            job: row.try_get::<_, Option<String>>(4)?.unwrap_or_default(),
            age: Duration::from_secs_f64(row.try_get::<_, f64>(5)?.max(0.0)),
            sent_at: row.try_get(6)?,
        })
    };
    rows.iter().map(running).collect()
}

/// Forgets the requests that a process which has ended left without an answer: their deliveries are resolved one by one.
pub async fn forget(client: &Client, epoch: i64) -> Result<(), LedgerError> {
    client.execute("delete from bulk_call where epoch = $1 and state = 'sending'", &[&epoch]).await?;
    Ok(())
}

/// Statements of a bulk request.
pub fn call(write: CallWrite, out: &mut Vec<Prepared>) {
    match write {
        CallWrite::Begin { key, target, object, way, deliveries, request, epoch } => out.push((
            "insert into bulk_call (key, target, object, way, deliveries, request, state, epoch)
             select $1::text, $2::text, $3::text, $4::smallint, $5::bigint[],
                    case when not exists (select from delivery d where d.id = any ($5) and d.reason = 'erased by an operator')
                         then $6::text::json end, 'sending', $7::bigint
             on conflict (key) do update set
               state = 'sending', request = excluded.request, epoch = excluded.epoch, sent_at = now(), job = null",
            parameters![key, target, object, way, deliveries, request.to_string(), epoch],
        )),
        CallWrite::Running { key, job, patience } => {
            out.push((
                // Whoever follows the job gives it up long before.
                "update delivery set due_at = now() + make_interval(secs => $2) + interval '1 day'
                 where id in (select unnest(deliveries) from bulk_call where key = $1) and state = 'sending'",
                parameters![key.clone(), patience.as_secs_f64()],
            ));
            out.push((
                "update bulk_call set state = 'running', job = $2 where key = $1",
                parameters![key, job],
            ));
        }
        CallWrite::Waiting { key, settled_after } => out.push((
            "with c as (update bulk_call set sent_at = now() where key = $1 returning deliveries)
             update delivery set due_at = now() + make_interval(secs => $2)
             where id in (select unnest(deliveries) from c) and state = 'sending'",
            parameters![key, settled_after.as_secs_f64()],
        )),
        CallWrite::Done { key } => {
            out.push(("delete from bulk_call where key = $1", parameters![key]));
        }
    }
}
