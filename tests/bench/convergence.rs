//! How fast a backlog drains under the vendors' quotas, in how few calls: against the best that the quotas allow, and against a
//! sender that makes one call for each row, which the WAL of the same run tells of.
//!
//! Four loads on one pair of vendors. Rates are `scale` times those of Stripe (100/s) and Zendesk (700/min), as if the vendors' clock
//! ran so much faster.

use std::time::Duration;

use tailwater::demo::vendor::faults::Faults;
use tailwater::demo::vendor::server::Limit;
use tokio::time::sleep;
use tokio_postgres::Client;

use super::report;
use crate::support::{World, WorldOptions, eventually};

/// Sizes; the tests run a short version.
struct Loads {
    backfill: (usize, u32),
    mass: (usize, u32),
    outage: (usize, usize, u32),
    billing: (usize, usize, u32),
}

impl Loads {
    fn of_this_run() -> Self {
        match std::env::var_os("TAILWATER_CONVERGENCE").is_some() {
            true => Self {
                backfill: (100_000, 2),
                mass: (5_000, 1),
                outage: (1_000, 20, 1),
                billing: (50_000, 10_000, 1),
            },
            false => {
                Self { backfill: (800, 2), mass: (300, 1), outage: (400, 15, 1), billing: (300, 150, 1) }
            }
        }
    }
}

struct Bench {
    world: World,
    erp: Client,
    ledger: Client,
    scale: u32,
}

/// What a load came to.
struct Drained {
    seconds: f64,
    stripe_calls: usize,
    zendesk_calls: usize,
    /// Row changes of the WAL, by table.
    customer_rows: i64,
    bill_rows: i64,
    /// Refusals by Stripe, and seconds in which nothing arrived there although more could have.
    refused: usize,
    idle_s: f64,
}

/// Longer gaps between two calls are counted as idle.
const GAP_S: f64 = 0.05;

impl Bench {
    async fn start(rows: usize, scale: u32) -> Self {
        let world = World::start(WorldOptions {
            data: Some("convergence"),
            odoo_schema: false,
            zendesk_quota: "700/min",
            stripe_quota: "100/s",
            ..WorldOptions::default()
        })
        .await;
        world.edit_settings("quota = \"700/min\"", "quota = \"700/min\"\nshare = 100");
        let erp = world.erp.client("erp").await.unwrap();
        erp.batch_execute(&format!("select customers(1, {rows})")).await.unwrap();
        let ledger = world.ledger_client().await;
        let bench = Self { world, erp, ledger, scale };
        bench.allow(scale);
        let settings = std::fs::read_to_string(&bench.world.config).unwrap();
        let scaled = settings
            .replace("\"100/s\"", &format!("\"{}/s\"", 100 * scale))
            .replace("\"700/min\"", &format!("\"{}/min\"", 700 * scale));
        std::fs::write(&bench.world.config, scaled).unwrap();
        bench
    }

    fn allow(&self, scale: u32) {
        let requests = |rate: u32| usize::try_from(rate * scale).unwrap();
        self.world.stripe.set_limit(Limit { requests: requests(100), window_s: 1.0 });
        self.world.zendesk.set_limit(Limit { requests: requests(700), window_s: 60.0 });
    }

    /// Lets the vendors' clock run `scale` times as fast from now on.
    async fn set_scale(&mut self, scale: u32) {
        self.allow(scale.max(self.scale));
        self.scale = scale;
        let stripe = format!("{}/s", 100 * scale);
        self.world.printed(&["quota", "set", "stripe", &stripe]);
        self.world.printed(&["quota", "set", "stripe", "endpoint", &stripe]);
        self.world.printed(&["quota", "set", "zendesk", &format!("{}/min", 700 * scale)]);
        sleep(Duration::from_millis(1_500)).await;
        self.allow(scale);
    }

    /// Runs `load`, which gives the time from when it counts, and waits until nothing is owed any more.
    async fn drained(&self, load: impl AsyncFnOnce(&Self) -> f64) -> Drained {
        let slot = "select pg_create_logical_replication_slot('naive', 'test_decoding')";
        self.erp.batch_execute(slot).await.unwrap();
        let (stripe, zendesk) = self.calls();
        let started = load(self).await;
        self.settled().await;
        let seconds = self.world.stripe.now_s() - started;
        let (stripe_after, zendesk_after) = self.calls();
        let calls = self.world.stripe.journal().calls.split_off(stripe);
        let gaps = calls.windows(2).map(|pair| pair[1].at_s - pair[0].at_s);
        let sql = "select count(*) filter (where data like 'table public.customer:%'),
                          count(*) filter (where data like 'table public.bill:%')
                   from pg_logical_slot_get_changes('naive', null, null)";
        let row = self.erp.query_one(sql, &[]).await.unwrap();
        self.erp.batch_execute("select pg_drop_replication_slot('naive')").await.unwrap();
        Drained {
            seconds,
            stripe_calls: stripe_after - stripe,
            zendesk_calls: zendesk_after - zendesk,
            customer_rows: row.get(0),
            bill_rows: row.get(1),
            refused: calls.iter().filter(|call| call.status == 429).count(),
            idle_s: gaps.filter(|gap| *gap > GAP_S).sum(),
        }
    }

    fn calls(&self) -> (usize, usize) {
        (self.world.stripe.calls(), self.world.zendesk.calls())
    }

    async fn settled(&self) {
        let lsn: String = self.erp.query_one("select pg_current_wal_lsn()::text", &[]).await.unwrap().get(0);
        eventually(Duration::from_secs(900), "convergence", async || {
            let sql = "select end_lsn >= $1::text::pg_lsn and not exists (select from delivery where open) from position";
            let done: bool = self.ledger.query_one(sql, &[&lsn]).await.unwrap().get(0);
            if done { Ok(()) } else { Err(self.world.log()) }
        })
        .await;
    }

    /// Waits until everything that was committed is in the ledger.
    async fn ledgered(&self) {
        let lsn: String = self.erp.query_one("select pg_current_wal_lsn()::text", &[]).await.unwrap().get(0);
        eventually(Duration::from_secs(300), "the changes to be ledgered", async || {
            let sql = "select end_lsn >= $1::text::pg_lsn from position";
            let there: bool = self.ledger.query_one(sql, &[&lsn]).await.unwrap().get(0);
            if there { Ok(()) } else { Err(self.world.log()) }
        })
        .await;
    }

    /// Prints a load; gives its ratio to the best. `effects`: distinct objects to be written at Stripe and at Zendesk.
    fn print(&self, name: &str, drained: &Drained, effects: (usize, usize)) -> f64 {
        let scale = f64::from(self.scale);
        let (stripe_s, zendesk_s) =
            (effects.0 as f64 / (100.0 * scale), effects.1.div_ceil(100) as f64 / (700.0 / 60.0 * scale));
        let best = stripe_s.max(zendesk_s);
        let naive_stripe = drained.customer_rows + drained.bill_rows;
        let naive_s = (naive_stripe as f64 / (100.0 * scale))
            .max(drained.customer_rows as f64 / (700.0 / 60.0 * scale));
        println!(
            "\n# {name}, {}x: {} row changes; calls to Stripe {} (naive {naive_stripe}), to Zendesk {} (naive {}); converged in {:.1} s, best {best:.1} s (Stripe {stripe_s:.1}, Zendesk {zendesk_s:.1}), naive {naive_s:.0} s",
            self.scale,
            drained.customer_rows + drained.bill_rows,
            drained.stripe_calls,
            drained.zendesk_calls,
            drained.customer_rows,
            drained.seconds,
        );
        println!(
            "# {name}: Stripe refused {} calls, and was idle for {:.1} s in gaps of more than {GAP_S} s",
            drained.refused, drained.idle_s
        );
        let ratio = drained.seconds / best;
        report(&format!("convergence_{name}_per_best"), ratio, "x", "<", 1.10);
        println!("# convergence_{name}: {:.1} times faster than naive", naive_s / drained.seconds);
        ratio
    }
}

fn fewer(name: &str, naive: i64, calls: usize, bar: f64) -> f64 {
    let fewer = naive as f64 / calls.max(1) as f64;
    report(name, fewer, "times fewer calls", ">", bar);
    fewer
}

#[tokio::test(flavor = "multi_thread")]
async fn convergence_under_the_vendors_quotas() {
    let Loads { backfill, mass, outage, billing } = Loads::of_this_run();
    let mut bench = Bench::start(backfill.0, backfill.1).await;

    let started = bench.world.stripe.now_s();
    let mut daemon = bench.world.daemon();
    bench.world.streaming_within(Duration::from_secs(900)).await;
    let read = bench.world.stripe.now_s() - started;
    let drained = bench.drained(async |bench| bench.world.stripe.now_s()).await;
    println!("# the first load was read within {read:.1} s");
    let drained = Drained { seconds: read + drained.seconds, customer_rows: backfill.0 as i64, ..drained };
    let drained = Drained { stripe_calls: bench.calls().0, zendesk_calls: bench.calls().1, ..drained };
    let mut ratios = vec![bench.print("backfill", &drained, (backfill.0, backfill.0))];

    bench.set_scale(mass.1).await;
    let update = format!("update customer set city = 'Elsewhere' where id <= {}", mass.0);
    let drained = bench
        .drained(async |bench| {
            bench.erp.batch_execute(&update).await.unwrap();
            bench.world.stripe.now_s()
        })
        .await;
    ratios.push(bench.print("mass_update", &drained, (mass.0, mass.0)));
    let fewer_mass =
        fewer("mass_update_calls_to_zendesk", drained.customer_rows, drained.zendesk_calls, 20.0);

    bench.set_scale(outage.2).await;
    let (customers, times, _) = outage;
    let drained = bench
        .drained(async |bench| {
            bench.world.stripe.set_faults(Faults { down: true, ..Faults::default() });
            bench.world.zendesk.set_faults(Faults { down: true, ..Faults::default() });
            for time in 0..times {
                let one = format!(
                    "update customer set city = 'Town {time}' where id % 100 = $1 and id <= {customers}"
                );
                let one = bench.erp.prepare(&one).await.unwrap();
                for part in 0..100_i32 {
                    bench.erp.execute(&one, &[&part]).await.unwrap();
                }
            }
            bench.ledgered().await;
            // What was under way when it began is settled by then; an hour would be no different.
            eventually(Duration::from_secs(120), "the beginning of the outage to be over", async || {
                let sql =
                    "select count(*) from delivery where open and due_at > now() + interval '3 seconds'";
                let left: i64 = bench.ledger.query_one(sql, &[]).await.unwrap().get(0);
                if left == 0 { Ok(()) } else { Err(format!("{left}")) }
            })
            .await;
            bench.world.stripe.set_faults(Faults::default());
            bench.world.zendesk.set_faults(Faults::default());
            // The clock starts with the first request that finds the vendors there again.
            let before = bench.world.stripe.effects();
            let back = bench.world.stripe.now_s();
            eventually(Duration::from_secs(60), "the end of the outage to be seen", async || {
                if bench.world.stripe.effects() > before { Ok(()) } else { Err(String::new()) }
            })
            .await;
            println!("# the end of the outage was seen after {:.1} s", bench.world.stripe.now_s() - back);
            bench.world.stripe.now_s()
        })
        .await;
    ratios.push(bench.print("outage", &drained, (customers, customers)));
    // What was tried while they were down is counted as well.
    let fewer_stripe = fewer("outage_calls_to_stripe", drained.customer_rows, drained.stripe_calls, 15.0);
    let fewer_zendesk = fewer("outage_calls_to_zendesk", drained.customer_rows, drained.zendesk_calls, 15.0);

    bench.set_scale(billing.2).await;
    let (profiles, invoices, scale) = billing;
    let mut billed_at = 0.0;
    let drained = bench
        .drained(async |bench| {
            let update = format!("update customer set phone = '+1 556' || id where id <= {profiles}");
            bench.erp.batch_execute(&update).await.unwrap();
            let updated = bench.world.stripe.now_s();
            bench.ledgered().await;
            billed_at = bench.world.stripe.now_s();
            // As an ERP bills: so many in a transaction.
            for first in (1..=invoices).step_by(100) {
                let bills = format!(
                    "insert into bill (customer_id, number, total)
                     select 1 + n % {profiles}, 'INV/' || n, n from generate_series({first}, least({first} + 99, {invoices})) n"
                );
                bench.erp.batch_execute(&bills).await.unwrap();
            }
            updated
        })
        .await;
    ratios.push(bench.print("billing_run", &drained, (profiles + invoices, profiles)));
    let made = bench.world.stripe.with(|stripe| stripe.invoices.clone());
    println!("# {}", bench.world.printed(&["deliveries", "list"]).trim().replace('\n', "\n# "));
    assert_eq!(made.len(), invoices);
    assert!(made.values().all(|(times, _)| *times == 1), "an invoice was made twice");
    let mut times: Vec<f64> = made.values().map(|(_, at)| at - billed_at).collect();
    times.sort_by(f64::total_cmp);
    // The first is possible at once, each further one when the quota allows one more; in the vendors' clock.
    let late = times
        .iter()
        .zip(1_u32..)
        .map(|(at, n)| (at - f64::from(n) / (100.0 * f64::from(scale))) * f64::from(scale));
    let mut late: Vec<f64> = late.collect();
    let in_time = late.iter().filter(|late| **late <= 5.0).count() as f64 / late.len() as f64;
    println!(
        "# the 99th of a hundred invoices was {:.1} s later than possible",
        super::quantile(&mut late, 0.99)
    );
    report("money_within_five_seconds", in_time, "of 1", ">", 0.99);

    let refused = bench.world.stripe.refused() + bench.world.zendesk.refused();
    println!("# answers 429 over all loads: {refused}");
    assert_eq!(bench.world.stripe.with(|stripe| stripe.doubled()), Vec::<String>::new());
    assert!(ratios.iter().all(|ratio| *ratio < 4.0), "{ratios:?}");
    assert!(fewer_mass > 5.0 && fewer_stripe > 4.0 && fewer_zendesk > 4.0);
    assert!(in_time > 0.9);
    assert!(daemon.terminate().success());
    bench.world.verify();
}
