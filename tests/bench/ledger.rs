//! What it costs that the ledger proves itself: appending, verifying, proving, room.

use std::time::Duration;

use bytes::{BufMut, BytesMut};
use futures_util::future::join_all;
use futures_util::{SinkExt, StreamExt, pin_mut};
use rand::RngExt;
use rustix::time::{ClockId, clock_gettime};
use tailwater::ledger::hashes::inclusion;
use tailwater::ledger::tree::{Subtree, Tree};
use tailwater::ledger::verify::{Evidence, Span, Verdict, verify};
use tlog_tiles::tlog::{Hash, check_record};
use tokio::time::Instant;
use tokio_postgres::Client;

use super::{long, quantile, report};
use crate::support::entries::{LedgerAlone, lines};

/// Entries of a commit, as the writer gathers them.
const BATCH: usize = 400;

/// CPU time of this process.
fn cpu() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec.try_into().unwrap(), now.tv_nsec.try_into().unwrap())
}

/// The rows that are there already, without their leaves, as COPY BINARY of one commit each.
async fn copies(client: &Client, after: i64) -> Vec<BytesMut> {
    let sql = "copy (select seq, month, kind, recorded_at, correlation_id, refs, body from entry where seq > $1 order by seq) to stdout (format binary)";
    let stream = client.copy_out(&sql.replace("$1", &after.to_string())).await.unwrap();
    pin_mut!(stream);
    let mut rows: Vec<BytesMut> = Vec::new();
    let mut first = true;
    while let Some(row) = stream.next().await {
        let row = row.unwrap();
        let row = if std::mem::take(&mut first) { row.slice(19..) } else { row };
        if row.len() > 2 {
            rows.push(row.as_ref().into());
        }
    }
    let batch = |rows: &[BytesMut]| {
        let mut copy = BytesMut::from(&b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0"[..]);
        rows.iter().for_each(|row| copy.extend_from_slice(row));
        copy.put_i16(-1);
        copy
    };
    rows.chunks(BATCH).map(batch).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn appending_costs_little_more_than_a_copy_of_the_same() {
    let alone = LedgerAlone::start().await;
    let client = alone.ledger.reader();
    client
        .batch_execute(
            "create table plain (seq bigint not null, month date not null, kind text not null, recorded_at timestamptz not null,
               correlation_id text, refs text[] not null, body bytea not null, primary key (seq, month)) partition by range (month);
             create table plain_all partition of plain for values from (minvalue) to (maxvalue);
             create index on plain (correlation_id, seq) where correlation_id is not null;
             create index on plain using brin (recorded_at) with (autosummarize = on);
             create index on plain using gin (refs)",
        )
        .await
        .unwrap();
    let (rounds, count) = if long() { (9, 20_000) } else { (3, 4_000) };
    alone.fill(BATCH * 5).await;
    let (mut ratios, mut after) = (Vec::new(), BATCH * 5);
    for _ in 0..rounds {
        let batches: Vec<_> = (0..count / BATCH).map(|n| lines(after + n * BATCH, BATCH)).collect();
        let started = Instant::now();
        let writes = batches.into_iter().map(|batch| alone.ledger.writer().write(batch));
        assert!(join_all(writes).await.iter().all(Result::is_ok));
        let ours = started.elapsed();
        let copies = copies(client, after as i64).await;
        after += count;
        let started = Instant::now();
        for copy in copies {
            let sink = client.copy_in("copy plain from stdin (format binary)").await.unwrap();
            pin_mut!(sink);
            sink.send(copy.freeze()).await.unwrap();
            sink.finish().await.unwrap();
        }
        ratios.push(ours.as_secs_f64() / started.elapsed().as_secs_f64());
    }
    let sql = "select sum(pg_total_relation_size(inhrelid))::bigint, (select size from tree) from pg_inherits where inhparent = 'entry'::regclass";
    let row = client.query_one(sql, &[]).await.unwrap();
    let bytes = row.get::<_, i64>(0) as f64 / row.get::<_, i64>(1) as f64;
    let body: f64 =
        client.query_one("select avg(length(body))::float8 from entry", &[]).await.unwrap().get(0);
    println!(
        "# baseline: COPY BINARY of the same rows and indices, {BATCH} in a commit, without hashes and tree; bodies of {body:.0} bytes"
    );
    let ratio = quantile(&mut ratios, 0.5);
    report("append_time_per_copy", ratio, "x", "<", 1.25);
    report("bytes_per_entry_per_body", bytes / body, "x", "<", 2.0);
    println!("# an entry takes {bytes:.0} bytes with its indices");
    let copied = "select (select count(*) from plain), (select count(*) from entry where seq > $1)";
    let row = client.query_one(copied, &[&((BATCH * 5) as i64)]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), row.get::<_, i64>(1), "both hold the same rows");
    // Unoptimized code says nothing about time.
    assert!(!long() || ratio < 3.0, "{ratio}");
}

/// In one thread, as the command does it.
#[tokio::test(flavor = "current_thread")]
async fn verifying_goes_through_entries_fast() {
    let alone = LedgerAlone::start().await;
    let count = if long() { 600_000 } else { 20_000 };
    alone.fill(count).await;
    let mut client = alone.server.client("postgres").await.unwrap();
    client.batch_execute("set search_path = tailwater").await.unwrap();
    let (started, before) = (Instant::now(), cpu());
    let verdict = verify(&mut client, Span::ALL, Evidence::default(), |_, _| {}).await.unwrap();
    let (wall, used) = (started.elapsed().as_secs_f64(), (cpu() - before).as_secs_f64());
    assert!(matches!(verdict, Verdict::Sound { size, .. } if size == count as u64), "{verdict:?}");
    let (started, before) = (Instant::now(), cpu());
    let stream = client.copy_out("copy (select seq, month, kind, recorded_at, correlation_id, refs, body, leaf from entry order by seq) to stdout (format binary)");
    let stream = stream.await.unwrap();
    pin_mut!(stream);
    while let Some(row) = stream.next().await {
        row.unwrap();
    }
    let (read, reading) = (started.elapsed().as_secs_f64(), (cpu() - before).as_secs_f64());
    println!(
        "# baseline: reading the same bytes takes {read:.2} s ({reading:.2} s of CPU here), verifying {wall:.2} s ({used:.2} s): {:.0} entries/s",
        count as f64 / wall
    );
    report("verify_per_core", count as f64 / used, "entries/s", ">", 500_000.0);
    report("verify_time_per_reading", wall / read, "x", "<", 4.0);
    // Unoptimized code says nothing about time.
    assert!(!long() || wall / read < 20.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_from_a_large_ledger_takes_no_time() {
    let alone = LedgerAlone::start().await;
    let count: i64 = if long() { 10_000_000 } else { 70_000 };
    let client = alone.ledger.reader();
    client
        .batch_execute(&format!(
            "insert into entry (seq, month, kind, recorded_at, refs, body, leaf)
             select n, (select month from tree), 'event', now(), '{{}}', convert_to(n::text, 'UTF8'),
                    sha256('\\x00'::bytea || convert_to(n::text, 'UTF8'))
             from generate_series(1, {count}) n"
        ))
        .await
        .unwrap();
    let mut tree = Tree::default();
    let stream = client
        .copy_out("copy (select leaf from entry order by seq) to stdout (format binary)")
        .await
        .unwrap();
    pin_mut!(stream);
    let mut first = true;
    while let Some(row) = stream.next().await {
        let row = row.unwrap();
        let row = if std::mem::take(&mut first) { row.slice(19..) } else { row };
        if row.len() > 2 {
            tree.append(Hash(row[6..38].try_into().unwrap()));
        }
    }
    for part in tree.take_completed().chunks(10_000) {
        let column = |of: &dyn Fn(&Subtree) -> i64| part.iter().map(of).collect::<Vec<i64>>();
        let (levels, indexes) = (column(&|s| s.level.into()), column(&|s| s.index.try_into().unwrap()));
        let hashes: Vec<&[u8]> = part.iter().map(|subtree| subtree.hash.0.as_slice()).collect();
        let sql = "insert into subtree select * from unnest($1::bigint[], $2::bigint[], $3::bytea[])";
        client.execute(sql, &[&levels, &indexes, &hashes]).await.unwrap();
    }
    client.batch_execute("analyze subtree").await.unwrap();
    let size = count as u64;
    let mut times = Vec::new();
    for _ in 0..if long() { 300 } else { 30 } {
        let seq = rand::rng().random_range(1..=size);
        let started = Instant::now();
        let (leaf, proof) = inclusion(client, seq, size).await.unwrap();
        times.push(started.elapsed().as_secs_f64() * 1000.0);
        check_record(&proof, size, tree.root(), seq - 1, leaf).unwrap();
    }
    let (median, worst) = (quantile(&mut times, 0.5), quantile(&mut times, 1.0));
    println!("# baseline: of {count} entries; median {median:.1} ms, longest {worst:.1} ms");
    report("proof_of_ten_million", median, "ms", "<", 50.0);
    assert!(median < 500.0, "{median} ms");
}
