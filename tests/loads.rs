//! Loads: read in chunks while the stream runs, resumed wherever they stopped, asked for again at any time.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::sleep;

use crate::support::expected::{assert_same, expected, held};
use crate::support::images::assert_images_equal;
use crate::support::workload::{Workload, seed};
use crate::support::{World, WorldOptions, eventually};

const PATIENCE: Duration = Duration::from_secs(60);

async fn fill(world: &World, partners: i32) {
    let sql = format!(
        "insert into res_partner (name, complete_name, is_company, email, email_normalized, country_id)
         select 'Partner ' || n, 'Partner ' || n, true, 'p' || n || '@example.com', 'p' || n || '@example.com', 1 + n % 5
         from generate_series(1, {partners}) n;
         update res_partner set commercial_partner_id = id where commercial_partner_id is null;
         insert into res_partner_res_partner_category_rel
         select 1 + id % 3, id from res_partner where id % 4 = 0;
         analyze res_partner"
    );
    world.erp.client("erp").await.unwrap().batch_execute(&sql).await.unwrap();
}

fn set_load(world: &World, settings: &str) {
    world.edit_settings("[targets.stripe]", &format!("[sources.erp.load]\n{settings}\n[targets.stripe]"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_load_killed_again_and_again_goes_on_while_the_erp_writes_and_reads_nothing_twice() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let world =
        World::start(WorldOptions { stripe_quota: "1/d", zendesk_quota: "1/d", ..WorldOptions::default() })
            .await;
    let partners = 6_000;
    fill(&world, partners).await;
    set_load(&world, "parallel = 3\nrows_per_second = 3000");
    let erp = world.erp.client("erp").await.unwrap();
    let ledger = loop {
        // The ledger's tables are made by the first start.
        let mut daemon = world.daemon();
        sleep(Duration::from_millis(random.random_range(300..900))).await;
        daemon.kill();
        let client = world.ledger_client().await;
        if client
            .query_opt("select from load_part where rows > 0 limit 1", &[])
            .await
            .is_ok_and(|row| row.is_some())
        {
            break client;
        }
    };
    for round in 0..6 {
        let mut daemon = world.daemon();
        for _ in 0..20 {
            let id: i32 = random.random_range(3..partners);
            let change = match random.random_range(0..4) {
                0 => format!(
                    "delete from res_partner_res_partner_category_rel where partner_id = {id}; delete from res_partner where id = {id} and parent_id is null and id > 10"
                ),
                1 => format!(
                    "update res_partner set id = {} where id = {id} and id > 10 and not exists (select from res_partner_res_partner_category_rel where partner_id = {id})",
                    100_000 + round * 1_000 + id % 1_000
                ),
                _ => format!("update res_partner set city = 'Round {round}' where id = {id}"),
            };
            // A change may meet a row that is referred to; then the ERP refuses it, as it should.
            let _ = erp.batch_execute(&change).await;
            sleep(Duration::from_millis(random.random_range(5..30))).await;
        }
        daemon.kill();
    }
    let mut daemon = world.daemon();
    world.streaming_within(Duration::from_secs(120)).await;
    let erp_rows: i64 = erp.query_one("select count(*) from res_partner", &[]).await.unwrap().get(0);
    let end: String = erp.query_one("select pg_current_wal_lsn()::text", &[]).await.unwrap().get(0);
    eventually(PATIENCE, "everything ledgered", async || {
        let done =
            ledger.query_one("select end_lsn >= $1::text::pg_lsn from position", &[&end]).await.unwrap();
        if done.get(0) { Ok(()) } else { Err(world.log()) }
    })
    .await;
    assert_images_equal(&world, &erp).await;
    let row = ledger
        .query_one("select sum(rows)::bigint, count(*) from load_part where relation = 'res_partner'", &[])
        .await
        .unwrap();
    let (read, parts): (i64, i64) = (row.get(0), row.get(1));
    println!("rows read {read} of {erp_rows} at the end, in {parts} ranges");
    assert_eq!(parts, 3, "a large table is divided");
    // Rows moved and deleted meanwhile may count on either side; nothing was begun anew.
    assert!((read - erp_rows).abs() < 300, "{read} rows were read of {erp_rows}");
    let events: i64 = ledger
        .query_one("select count(distinct correlation_id) - count(*) from entry where kind = 'event'", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(events, 0, "no event twice");
    assert!(daemon.terminate().success());
    world.verify();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_re_read_heals_what_differs_and_finds_what_is_gone_while_the_erp_writes() {
    let world = World::start(WorldOptions::default()).await;
    let mut odoo = world.odoo().await;
    let mut workload = Workload::new(seed());
    for _ in 0..60 {
        workload.step(&mut odoo).await;
    }
    odoo.client().batch_execute("update res_partner set active = true").await.unwrap();
    let gone = odoo.create_company("Gone", "gone@example.com", 1).await.unwrap();
    let differs = odoo.create_company("Differs", "differs@example.com", 1).await.unwrap();
    let _daemon = world.daemon();
    world.streaming().await;
    world.settled(PATIENCE).await;
    let erp = world.erp.client("erp").await.unwrap();
    // What an older version or a hand in the ledger could have left: changes that never came by in the stream.
    erp.batch_execute("alter publication tailwater drop table res_partner").await.unwrap();
    erp.batch_execute(&format!(
        "delete from res_partner where id = {gone}; update res_partner set city = 'Unheard' where id = {differs}"
    ))
    .await
    .unwrap();
    erp.batch_execute("alter publication tailwater add table res_partner").await.unwrap();
    let output = world.run(&["source", "reread", "--table", "res_partner", "--table", "res_country"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("100 %") && said.contains("rows in"), "{said}");
    for _ in 0..40 {
        workload.step(&mut odoo).await;
    }
    world.settled(PATIENCE).await;
    assert_images_equal(&world, &erp).await;
    assert_same(&held(&world), &expected(&erp, &[]).await);
    let customers = world.stripe.with(|stripe| stripe.customers());
    assert!(!customers.contains_key(&format!("ERP-P-{gone}")));
    assert_eq!(customers[&format!("ERP-P-{differs}")]["address"]["city"], "Unheard");
    let ranged = ["source", "reread", "--table", "res_partner", "--after", "0", "--to", "5"];
    assert!(world.run(&ranged).status.success());
    let nonsense = world.run(&["source", "reread", "--table", "res_partners"]);
    assert_eq!(nonsense.status.code(), Some(64));
    let ledger = world.ledger_client().await;
    let sql =
        "select convert_from(body, 'UTF8') from entry where kind = 'operator' order by seq desc limit 1";
    let entry: String = ledger.query_one(sql, &[]).await.unwrap().get(0);
    assert!(entry.contains("\"requested_by\"") && entry.contains("uid"), "{entry}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_new_to_the_mapping_is_read_by_itself_and_a_vanished_one_parks_only_what_reads_it() {
    let world = World::start(WorldOptions { data: Some("types"), ..WorldOptions::default() }).await;
    let erp = world.erp.client("erp").await.unwrap();
    erp.batch_execute(
        "insert into thing (id, name) values (1, 'One'); insert into other (id, name) values (1, 'First')",
    )
    .await
    .unwrap();
    let mut daemon = world.daemon();
    world.streaming().await;
    world.settled(PATIENCE).await;
    let ledger = world.ledger_client().await;
    // The column goes away while the stream runs, in the middle of a transaction.
    erp.batch_execute(
        "begin; update thing set name = 'Before' where id = 1; alter table thing drop column note;
         update thing set name = 'After' where id = 1; update other set name = 'Second' where id = 1; commit",
    )
    .await
    .unwrap();
    world.settled(PATIENCE).await;
    let sql = "select string_agg(canonical_id || ' ' || state, ', ' order by canonical_id) from
               (select distinct on (canonical_id) canonical_id, state || coalesce(': ' || reason, '') as state
                from delivery order by canonical_id, id desc) d";
    let states: String = ledger.query_one(sql, &[]).await.unwrap().get(0);
    assert!(states.starts_with("ERP-O-1 applied, ERP-T-1 parked: expression `row.note`"), "{states}");
    assert!(daemon.terminate().success());
    // It does not stop the next start either.
    let mut daemon = world.daemon();
    erp.batch_execute("update other set name = 'Third' where id = 1").await.unwrap();
    world.settled(PATIENCE).await;
    assert!(daemon.terminate().success());
    // Mended: the mapping reads another column, which is read for all rows without being asked for.
    let file = world.directory.path().join("mappings/sources/types/types.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(
        &file,
        text.replace(", note]", ", flag]")
            .replace("reference: row.note", "reference: \"row.flag ? 'yes' : 'no'\""),
    )
    .unwrap();
    erp.batch_execute(
        "grant select (flag) on thing to tailwater_src; update thing set flag = true where id = 1",
    )
    .await
    .unwrap();
    let _daemon = world.daemon();
    eventually(PATIENCE, "the customer", async || {
        let customer = world.stripe.with(|stripe| stripe.customers()).remove("ERP-T-1").unwrap_or_default();
        if customer["name"] == "After" { Ok(()) } else { Err(format!("{customer}\n{}", world.log())) }
    })
    .await;
    world.settled(PATIENCE).await;
    assert_images_equal(&world, &erp).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_common_type_comes_alike_by_copy_by_stream_in_text_and_in_binary() {
    let world = World::start(WorldOptions { data: Some("types"), ..WorldOptions::default() }).await;
    let erp = world.erp.client("erp").await.unwrap();
    let row = |id: i32, numeric: &str, timestamp: &str| {
        format!(
            r#"insert into "My Schema"."Mixed ""Case""" values ({id}, true, -5, 2147, 9007199254740993, 0.1, -1e300, '{numeric}', 434.08,
              'ab', 'Ünïcode «quoted» \t', E'line\nbreak\ttab \\ back', '\xdeadbeef', '{{"a": [1, 2.5, null]}}', '{{"en_US": "Alpine"}}',
              'infinity', '{timestamp}', '{timestamp}', '23:59:59.5', '1 day 2 hours', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '10.0.0.1',
              'so so', 12.30, 7, '{{1,NULL,3}}', '{{"a,b","c\"d",NULL,"NULL"}}', '{{1.50,NaN}}', '{{happy,"so so"}}',
              array['{{"k": 1}}'::jsonb], '<x/>', '[1,5)');
              insert into parted values ({id}, 'eu', 'Europe'), ({id}, 'us', 'America')"#
        )
    };
    erp.batch_execute(&row(1, "12345678901234567890.123456789", "2026-11-21 12:34:56.789")).await.unwrap();
    let mut daemon = world.daemon();
    world.streaming().await;
    erp.batch_execute(&row(2, "NaN", "infinity")).await.unwrap();
    erp.batch_execute(&row(3, "Infinity", "-infinity")).await.unwrap();
    // A key changes, a row moves between partitions, a table is emptied: all in one transaction, and a message among it.
    erp.batch_execute(
        r#"begin; update "My Schema"."Mixed ""Case""" set "Id" = 30, v = 'moved' where "Id" = 3;
           update parted set region = 'us', id = 20 where id = 2 and region = 'eu';
           insert into other values (1, 'x'); truncate other; insert into other values (2, 'after');
           select pg_logical_emit_message(true, 'foreign', 'not for us'); commit"#,
    )
    .await
    .unwrap();
    world.settled(PATIENCE).await;
    let ledger = world.ledger_client().await;
    let image = async |key: &str| {
        let sql = r#"select row from image where relation = 'Mixed "Case"' and key = $1"#;
        ledger.query_one(sql, &[&key]).await.unwrap().get::<_, serde_json::Value>(0)
    };
    let one = image("1").await;
    let expected = serde_json::json!({
        "Id": 1, "b": true, "i2": -5, "i4": 2147, "i8": "9007199254740993", "f4": 0.1, "f8": -1e300,
        "n": "12345678901234567890.123456789", "money_": "434.08", "c": "ab   ", "v": "Ünïcode «quoted» \\t",
        "t": "line\nbreak\ttab \\ back", "by": "\\xdeadbeef", "j": {"a": [1, 2.5, null]}, "jb": {"en_US": "Alpine"},
        "d": "infinity", "ts": "2026-11-21 12:34:56.789", "tz": "2026-11-21 12:34:56.789+00", "ti": "23:59:59.5",
        "iv": "1 day 02:00:00", "u": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "ip": "10.0.0.1", "m": "so so", "e": "12.30",
        "s": 7, "ia": [1, null, 3], "ta": ["a,b", "c\"d", null, "NULL"], "na": ["1.50", "NaN"], "ma": ["happy", "so so"],
        "ja": [{"k": 1}], "x": "<x/>", "r": "[1,5)"
    });
    assert_eq!(one, expected, "by COPY");
    let mut two = image("2").await;
    assert_eq!(
        (two["n"].as_str(), two["ts"].as_str(), two["tz"].as_str()),
        (Some("NaN"), Some("infinity"), Some("infinity"))
    );
    for column in ["Id", "n", "ts", "tz"] {
        two[column] = expected[column].clone();
    }
    assert_eq!(two, expected, "by the stream");
    let moved = image("30").await;
    assert_eq!(
        (&moved["v"], &moved["n"], &moved["ta"]),
        (&"moved".into(), &"Infinity".into(), &expected["ta"])
    );
    let keys = "select string_agg(relation || key, ' ' order by relation, key) from image where relation in ('parted', 'other')";
    let keys: String = ledger.query_one(keys, &[]).await.unwrap().get(0);
    assert_eq!(
        keys,
        r#"other2 parted["1","eu"] parted["1","us"] parted["2","us"] parted["20","us"] parted["3","eu"] parted["3","us"]"#
    );
    assert!(daemon.terminate().success());
    // The same in binary: a re-read of every row by COPY finds no difference.
    world.edit_settings("mapping = \"types\"", "mapping = \"types\"\nbinary = true");
    let _daemon = world.daemon();
    let insert = row(4, "0.00012", "2000-01-01 00:00:00");
    let without_text_only =
        insert.replace("'1 day 2 hours'", "null").replace("'10.0.0.1'", "null").replace("'[1,5)'", "null");
    erp.batch_execute(&without_text_only).await.unwrap();
    world.settled(PATIENCE).await;
    let mut four = image("4").await;
    assert_eq!((four["n"].as_str(), four["ts"].as_str()), (Some("0.00012"), Some("2000-01-01 00:00:00")));
    for column in ["Id", "n", "ts", "tz", "iv", "ip", "r"] {
        four[column] = expected[column].clone();
    }
    assert_eq!(four, expected, "in binary");
}
