//! `tailwater demo`: the whole way of a change, on private servers, within half a minute.
//!
//! An Odoo-shaped database is written to as Odoo writes; simulated Stripe and Zendesk keep the vendors' contracts. On the
//! way answers get lost, Redis is emptied and the daemon is killed; at the end the vendors say whether anything was
//! doubled.

pub mod feed;
pub mod installation;
pub mod odoo;
pub mod private;
pub mod scenario;
pub mod shipped;
pub mod vendor;
pub mod view;

use std::process::ExitCode;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_postgres::Client;

use crate::ledger::verify::{Evidence, Span, Verdict, verify};
use feed::Feed;
use installation::Installation;
use odoo::Odoo;
use private::PrivateError;
use scenario::Scenario;
use vendor::faults::Faults;
use view::{View, median, print};

/// Between looks at the ledger.
const LOOK: Duration = Duration::from_millis(100);
/// Between business actions.
const ACT: Duration = Duration::from_millis(150);
/// How long everything may take to come to rest at the end.
const SETTLE: Duration = Duration::from_secs(30);

/// What ended the demo early.
#[derive(Debug, thiserror::Error)]
enum DemoError {
    #[error(transparent)]
    Private(#[from] PrivateError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Odoo(#[from] odoo::OdooError),
    #[error("{}", crate::pg::describe(.0))]
    Sql(#[from] tokio_postgres::Error),
    #[error(transparent)]
    Ledger(#[from] crate::ledger::LedgerError),
    #[error("deliveries were still open after {SETTLE:?}")]
    Unsettled,
}

/// Runs the demo.
pub async fn run(keep: bool, seconds: u64, plain: bool) -> ExitCode {
    // An interrupted demo leaves nothing behind either: what it started ends with it.
    let played = tokio::select! {
        played = play(keep, Duration::from_secs(seconds), plain) => played,
        () = crate::supervise::wait_for_signal() => {
            print("stopped\n");
            return ExitCode::SUCCESS;
        }
    };
    match played {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            print(&format!("error: {error}\n"));
            ExitCode::from(69)
        }
    }
}

async fn play(keep: bool, length: Duration, plain: bool) -> Result<bool, DemoError> {
    let mut view = View::new(plain);
    view.say("starting a private PostgreSQL and Redis, simulated Stripe and Zendesk");
    let mut installation = Installation::start().await?;
    let mut odoo = Odoo::new(installation.postgres.client("erp").await?);
    let mut scenario = Scenario::default();
    for _ in 0..8 {
        scenario.step(&mut odoo).await?;
    }
    installation.start_daemon()?;
    view.say("the daemon is started; it loads what is there and then follows every change");
    let ledger = installation.ledger().await?;
    let mut feed = Feed::default();
    let started = Instant::now();
    let mut acted = started;
    let mut mishaps = Mishaps::default();
    while started.elapsed() < length {
        if acted.elapsed() >= ACT {
            acted = Instant::now();
            scenario.step(&mut odoo).await?;
        }
        mishaps
            .happen(started.elapsed().as_secs_f64() / length.as_secs_f64(), &mut installation, &mut view)
            .await?;
        show(&mut feed, &ledger, &installation, &odoo, &mut view).await?;
        sleep(LOOK).await;
    }
    installation.stripe.set_faults(Faults::default());
    installation.zendesk.set_faults(Faults::default());
    settle(&mut feed, &ledger, &installation, &odoo, &mut view).await?;
    view.end();
    let sound = summary(&feed, &installation, &odoo).await?;
    if keep {
        wait_for_person(&installation).await;
    }
    Ok(sound)
}

/// What goes wrong on the way, each once.
#[derive(Default)]
struct Mishaps {
    done: usize,
}

impl Mishaps {
    async fn happen(
        &mut self,
        part: f64,
        installation: &mut Installation,
        view: &mut View,
    ) -> Result<(), DemoError> {
        let due = [0.25, 0.45, 0.65].iter().filter(|at| part >= **at).count();
        while self.done < due {
            match self.done {
                0 => {
                    view.say(
                        "from now on every tenth answer of the vendors is lost after it was carried out",
                    );
                    let faults = Faults { swallow: 0.1, ..Faults::default() };
                    installation.stripe.set_faults(faults.clone());
                    installation.zendesk.set_faults(faults);
                }
                1 => {
                    view.say("Redis: FLUSHALL");
                    installation.redis.command("FLUSHALL").await;
                }
                _ => {
                    view.say("the daemon is killed (SIGKILL) and started again");
                    installation.kill_daemon()?;
                    installation.start_daemon()?;
                }
            }
            self.done += 1;
        }
        Ok(())
    }
}

async fn show(
    feed: &mut Feed,
    ledger: &Client,
    installation: &Installation,
    odoo: &Odoo,
    view: &mut View,
) -> Result<(), DemoError> {
    // Before the daemon has made its tables there is nothing to read.
    let known = ledger
        .query_one("select to_regclass('delivery') is not null and to_regclass('entry') is not null", &[]);
    if !known.await?.try_get::<_, bool>(0)? {
        return Ok(());
    }
    for line in feed.read(ledger).await? {
        view.add(line);
    }
    view.draw(&feed.counts, row_changes(odoo).await?, calls(installation));
    Ok(())
}

fn calls(installation: &Installation) -> usize {
    installation.stripe.journal().calls.len() + installation.zendesk.journal().calls.len()
}

/// Rows inserted, updated and deleted, as PostgreSQL itself counts them.
async fn row_changes(odoo: &Odoo) -> Result<i64, tokio_postgres::Error> {
    let sql = "select coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del), 0)::bigint from pg_stat_user_tables";
    odoo.client().query_one(sql, &[]).await?.try_get(0)
}

/// Waits until the source is ledgered to its end and nothing is owed.
async fn settle(
    feed: &mut Feed,
    ledger: &Client,
    installation: &Installation,
    odoo: &Odoo,
    view: &mut View,
) -> Result<(), DemoError> {
    let target: String =
        odoo.client().query_one("select pg_current_wal_lsn()::text", &[]).await?.try_get(0)?;
    let sql = "select coalesce((select bool_and(end_lsn >= $1::text::pg_lsn) from position), false)
               and not exists (select from delivery where state in ('pending', 'sending'))";
    let started = Instant::now();
    loop {
        show(feed, ledger, installation, odoo, view).await?;
        if ledger.query_one(sql, &[&target]).await?.try_get::<_, bool>(0)? {
            return show(feed, ledger, installation, odoo, view).await;
        }
        if started.elapsed() > SETTLE {
            return Err(DemoError::Unsettled);
        }
        sleep(LOOK).await;
    }
}

/// Prints the figures; true when nothing was doubled and the ledger is sound.
async fn summary(feed: &Feed, installation: &Installation, odoo: &Odoo) -> Result<bool, DemoError> {
    let mut client = installation.ledger().await?;
    let verdict = verify(&mut client, Span::ALL, Evidence::default(), |_, _| {}).await?;
    let doubled = installation.stripe.with(|stripe| stripe.doubled().len());
    let merged = installation.zendesk.with(|zendesk| zendesk.merged.len());
    let (customers, organizations, users) = (
        installation.stripe.with(|stripe| stripe.customers().len()),
        installation.zendesk.with(|zendesk| zendesk.organizations().len()),
        installation.zendesk.with(|zendesk| zendesk.users().len()),
    );
    let counts = &feed.counts;
    let rows = row_changes(odoo).await?;
    let ledger = match &verdict {
        Verdict::Sound { size, root, .. } => {
            format!("verified: {size} entries, tree head {}", root.get(..16).unwrap_or(root))
        }
        other => format!("NOT SOUND: {other:?}"),
    };
    print(&format!(
        "
row changes in the ERP                 {rows}
canonical events                       {}
calls to the vendors                   {}
  replaced by a newer state, not sent  {}
  unchanged at the vendor, not sent    {}
  answers lost or refused, made good   {}
customers at Stripe                    {customers}
organizations, users at Zendesk        {organizations}, {users}
duplicates at the vendors              {}
commit to result, median               {:.0} ms
ledger                                 {ledger}
",
        counts.events,
        calls(installation),
        counts.superseded,
        counts.unchanged,
        counts.setbacks,
        doubled + merged,
        median(&counts.lags_ms),
    ));
    Ok(doubled + merged == 0 && matches!(verdict, Verdict::Sound { .. }))
}

async fn wait_for_person(installation: &Installation) {
    print(&format!(
        "\nEverything keeps running until Ctrl-C:\n  ERP       psql {}\n  ledger    psql {}\n  Redis     {}\n  \
         Stripe    {}\n  Zendesk   {}\n  settings  {}\n  log       {}\n",
        installation.postgres.url("postgres", "erp"),
        installation.postgres.url("tailwater", "tailwater"),
        installation.redis.url(),
        installation.stripe.url(),
        installation.zendesk.url(),
        installation.config.display(),
        installation.directory.path().join("daemon.log").display(),
    ));
    crate::supervise::wait_for_signal().await;
}
