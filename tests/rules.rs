//! The pure rules of dispatching: quotas, waits, doubts.

use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tailwater::config::node::{Node, Problems};
use tailwater::connector::classify::Answer;
use tailwater::connector::limit::{Limit, Rate, read_limits};
use tailwater::connector::request::Request;
use tailwater::connector::request::percent_encode;
use tailwater::demo::vendor::form;
use tailwater::dispatch::gate::{Closed, Gates};
use tailwater::dispatch::retry::{Doubt, Resolution, backoff, resolve};
use tokio::time::Instant;

#[test]
fn a_request_in_doubt_is_resolved_by_the_first_rung_that_is_safe() {
    let doubt = Doubt {
        repeatable: false,
        key_window: Some(Duration::from_secs(100)),
        age: Duration::from_secs(10),
        attempts: 1,
        server_error: false,
        can_find: true,
    };
    let check = |doubt: Doubt, expected: Resolution| assert_eq!(resolve(&doubt), expected, "{doubt:?}");
    check(doubt, Resolution::Resend);
    check(Doubt { attempts: 5, ..doubt }, Resolution::Resend);
    check(Doubt { attempts: 5, server_error: true, ..doubt }, Resolution::Find);
    check(Doubt { attempts: 6, server_error: true, ..doubt }, Resolution::Resend);
    check(Doubt { attempts: 5, server_error: true, can_find: false, ..doubt }, Resolution::Resend);
    check(Doubt { age: Duration::from_secs(100), ..doubt }, Resolution::Find);
    check(Doubt { age: Duration::from_secs(100), can_find: false, ..doubt }, Resolution::Park);
    check(Doubt { key_window: None, ..doubt }, Resolution::Find);
    check(Doubt { key_window: None, can_find: false, ..doubt }, Resolution::Park);
    check(Doubt { key_window: None, can_find: false, repeatable: true, ..doubt }, Resolution::Resend);
}

#[test]
fn a_gate_closes_after_failures_in_a_row_only_and_no_longer_than_its_bound() {
    let now = Instant::now();
    let gates = Gates::default();
    let opens_at = |at| gates.opens_at("customer", at);
    gates.silent(now, 0.0);
    gates.silent(now, 0.0);
    assert_eq!(opens_at(now), None);
    gates.silent(now, 0.0);
    assert!(opens_at(now).is_some());
    assert_eq!(gates.probing(), Some(Closed::Failing));
    for _ in 0..100 {
        gates.silent(now, 0.0);
    }
    assert!(opens_at(now).unwrap() - now <= Duration::from_secs(15));
    assert_eq!(opens_at(now + Duration::from_secs(15)), None);
    gates.answered("customer");
    assert_eq!(gates.probing(), None);
}

#[test]
fn an_hour_without_the_target_costs_few_requests_and_its_end_is_soon_seen() {
    let began = Instant::now();
    for seed in 0..20 {
        let mut random = StdRng::seed_from_u64(seed);
        let gates = Gates::default();
        let (mut at, mut requests, mut longest) = (began, 0, Duration::ZERO);
        while at < began + Duration::from_secs(3_600) {
            gates.silent(at, random.random_range(0.0..1.0));
            requests += 1;
            let next = gates.opens_at("customer", at).unwrap_or(at + Duration::from_millis(1));
            if at < began + Duration::from_secs(600) {
                longest = longest.max(next - at);
            }
            at = next;
        }
        println!("{requests} requests in an hour; at most {longest:?} between two in ten minutes");
        assert!((100..=333).contains(&requests), "{requests}");
        assert!(longest <= Duration::from_secs(15), "{longest:?}");
        gates.answered("customer");
        (0..8).for_each(|_| gates.silent(at, 0.0));
        assert!(gates.opens_at("customer", at).unwrap() - at <= Duration::from_secs(5), "a new outage");
    }
}

#[test]
fn a_kind_of_object_that_the_target_cannot_take_does_not_hold_up_the_others() {
    let now = Instant::now();
    let gates = Gates::default();
    for _ in 0..3 {
        gates.failed("invoice", now, 0.0);
    }
    assert!(gates.opens_at("invoice", now).is_some() && gates.probing_object("invoice"));
    assert_eq!((gates.opens_at("customer", now), gates.all_open_at(now)), (None, None));
    gates.answered("customer");
    assert!(gates.probing_object("invoice"), "an answer about another object says nothing of it");
    gates.answered("invoice");
    assert!(!gates.probing_object("invoice"));
}

#[test]
fn a_pause_lasts_as_long_as_was_asked_for_and_grows_where_nothing_was() {
    let now = Instant::now();
    let gates = Gates::default();
    gates.throttled(now, Some(Duration::from_secs(30)));
    gates.throttled(now, Some(Duration::from_secs(5)));
    let until = gates.all_open_at(now).unwrap();
    assert_eq!(until - now, Duration::from_secs(30), "a shorter pause does not cut a longer one");
    assert_eq!(gates.probing(), Some(Closed::Throttled));
    gates.answered("customer");
    let mut at = until;
    let mut pauses = Vec::new();
    for _ in 0..8 {
        gates.throttled(at, None);
        let next = gates.all_open_at(at).unwrap();
        pauses.push((next - at).as_secs());
        at = next;
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
    gates.answered("customer");
    gates.unauthorised(at);
    assert_eq!(gates.all_open_at(at).unwrap() - at, Duration::from_secs(30));
}

#[test]
fn retry_after_is_read_as_seconds_or_as_a_date_and_nonsense_is_ignored() {
    let now: jiff::Timestamp = "2026-11-21T10:00:00Z".parse().unwrap();
    let check = |text: &str, expected: Option<u64>| {
        let headers = [("retry-after".to_owned(), text.to_owned())].into();
        let answer = Answer { status: 429, headers, body: serde_json::Value::Null, flaw: None };
        assert_eq!(
            answer.retry_after(now, Duration::from_secs(86_400)),
            expected.map(Duration::from_secs),
            "{text}"
        );
    };
    check("7", Some(7));
    check(" 0 ", Some(0));
    check("Sat, 21 Nov 2026 10:00:30 GMT", Some(30));
    check("Sat, 21 Nov 2026 09:00:00 GMT", Some(0));
    check("99999999999999999999", Some(86_400));
    for nonsense in ["-5", "NaN", "inf", "soon", ""] {
        check(nonsense, None);
    }
}

proptest! {
    #[test]
    fn a_bucket_never_lets_more_than_the_quota_pass_in_a_window(requests in 1_u32..100_000, unit in 0_usize..4) {
        let quota = Rate::parse(&format!("{requests}/{}", ["s", "min", "h", "d"][unit])).unwrap();
        let (burst, interval) = quota.bucket();
        let refilled = quota.window.as_secs_f64() / interval.as_secs_f64();
        // A quota of one or two has no room for a margin.
        let most = f64::from(quota.requests.get()).max(2.0) + 0.01;
        prop_assert!(f64::from(burst.get()) + refilled <= most, "{burst} + {refilled}");
    }

    #[test]
    fn a_wait_grows_to_a_minute_and_jitter_only_shortens_it(attempts in 0_i32..1000, draw in 0.0_f64..1.0) {
        let wait = backoff(attempts, draw);
        prop_assert!(wait <= Duration::from_secs(60) && wait >= Duration::from_millis(100));
        prop_assert!(wait <= backoff(attempts, 0.0) && wait >= backoff(attempts, 1.0));
    }

    #[test]
    fn what_is_percent_encoded_decodes_to_itself(text in any::<String>()) {
        prop_assert_eq!(form::decode_component(&percent_encode(&text)), text);
    }

    #[test]
    fn quotas_parse_or_are_refused_without_panic(text in any::<String>()) {
        if let Some(quota) = Rate::parse(&text) {
            prop_assert_eq!(Rate::parse(&quota.to_string()), Some(quota));
        }
    }
}

#[test]
fn canonical_bytes_are_those_of_rfc_8785_whether_or_not_the_short_way_is_taken() {
    use serde_json::json;
    for value in [
        json!({"b": 1, "a": [true, null, "x"], "B": {"z": -5, "y": ""}}),
        json!({"text": "quote \" backslash \\ tab \t newline \n bell \u{7} euro € rocket 🚀 del \u{7f}"}),
        json!({"float": 1e21, "small": 0.000_000_1, "whole": 5.0, "minus": -0.5}),
        json!({"\u{10000}": 1, "\u{e000}": 2, "é": 3}),
        json!([]),
    ] {
        let expected = serde_json_canonicalizer::to_vec(&value).unwrap();
        assert_eq!(tailwater::event::canonical_bytes(&value), expected, "{value}");
    }
}

#[test]
fn a_snapshot_sees_what_was_committed_before_it_also_where_transaction_ids_wrap() {
    use tailwater::source::postgres::chunk::Snapshot;
    let check = |snapshot: &str, xid: u32, expected: bool| {
        assert_eq!(Snapshot::parse(snapshot).unwrap().sees(xid), expected, "{snapshot} {xid}");
    };
    check("10:20:12,15", 9, true);
    check("10:20:12,15", 11, true);
    check("10:20:12,15", 12, false);
    check("10:20:12,15", 20, false);
    check("10:10:", 9, true);
    check("4294967290:4294967300:4294967295", 4_294_967_295, false);
    check("4294967290:4294967300:4294967295", 4_294_967_291, true);
    check("4294967290:4294967300:4294967295", 3, true);
    check("4294967290:4294967300:4294967295", 4, false);
    assert_eq!(Snapshot::parse("10:x:"), None);
    assert_eq!(Snapshot::parse(""), None);
}

#[test]
fn the_guard_speaks_up_by_size_by_time_and_by_status() {
    use std::time::Duration;
    use tailwater::capture::guard::{Level, Sight, judge};
    use tailwater::config::GuardSettings;
    const GB: u64 = 1 << 30;
    let settings = GuardSettings { release_bytes: Some(40 * GB), ..GuardSettings::default() };
    let check = |retained, safe, status: &str, rate, expected| {
        let sight = Sight {
            retained_bytes: retained,
            safe_bytes: safe,
            wal_status: status.into(),
            active: true,
            written_bytes: 0,
        };
        assert_eq!(judge(&settings, &sight, rate).0, expected, "{retained} {safe:?} {status} {rate:?}");
    };
    check(0, None, "reserved", None, Level::Fine);
    check(5 * GB, None, "reserved", None, Level::Warn);
    check(20 * GB, None, "reserved", None, Level::Alarm);
    check(40 * GB, None, "reserved", None, Level::Release);
    check(0, Some(GB), "unreserved", None, Level::Alarm);
    let hour = |hours: u64| Some(GB / (hours * Duration::from_secs(3_600).as_secs()));
    check(0, Some(GB), "extended", hour(2), Level::Alarm);
    check(0, Some(GB), "extended", hour(12), Level::Warn);
    check(0, Some(GB), "extended", hour(100), Level::Fine);
    check(0, Some(GB), "extended", Some(0), Level::Fine);
}

/// The limits of a connector file with these lines under `limits`.
fn limits(text: &str) -> Vec<Limit> {
    let text = format!("limits:\n{text}");
    let mut problems = Problems::default();
    let node = Node::from_yaml(Path::new("limits.yaml"), &text, &mut problems).unwrap();
    let mut fields = node.fields(&mut problems);
    let limits = read_limits(&mut fields, &mut problems);
    fields.finish(&mut problems);
    assert!(problems.is_empty(), "{:?}", problems.sorted());
    limits
}

#[test]
fn what_vendors_say_of_their_limits_is_read_in_each_of_their_ways() {
    let check = |limit: &str,
                 headers: &[(&str, &str)],
                 status: u16,
                 expected: (Option<f64>, Option<f64>, Option<u64>)| {
        let limit = limits(limit).remove(0);
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let report = limit.read(&Answer { status, headers, body: serde_json::Value::Null, flaw: None });
        assert_eq!((report.limit, report.remaining, report.reset.map(|reset| reset.as_secs())), expected);
    };
    let plain = "  - { name: a, rate: 10/s, limit: \"headers['x-ratelimit-limit']\", remaining: \"headers['x-ratelimit-remaining']\", reset_s: \"headers['x-ratelimit-reset']\" }";
    let told = [("x-ratelimit-limit", "700"), ("x-ratelimit-remaining", "12"), ("x-ratelimit-reset", " 41 ")];
    check(plain, &told, 200, (Some(700.0), Some(12.0), Some(41)));
    check(plain, &[("x-ratelimit-remaining", "-1"), ("x-ratelimit-limit", "many")], 200, (None, None, None));
    check(plain, &[("x-ratelimit-reset", "1e300")], 200, (None, None, Some(86_400)));
    // Salesforce: Sforce-Limit-Info: api-usage=4998/5000
    let used = "  - name: daily
    rate: 5000/d
    limit: \"headers['sforce-limit-info'].split('=')[1].split('/')[1]\"
    remaining: \"int(headers['sforce-limit-info'].split('/')[1]) - int(headers['sforce-limit-info'].split('=')[1].split('/')[0])\"";
    check(used, &[("sforce-limit-info", "api-usage=4998/5000")], 200, (Some(5000.0), Some(2.0), None));
    check(used, &[("sforce-limit-info", "nonsense")], 200, (None, None, None));
    // Zendesk, of one endpoint: total=100; remaining=99; resets=41
    let endpoint = "  - name: tickets
    rate: 100/min
    remaining: \"headers['zendesk-ratelimit-tickets-index'].split('remaining=')[1].split(';')[0]\"
    reset_s: \"headers['zendesk-ratelimit-tickets-index'].split('resets=')[1]\"";
    check(
        endpoint,
        &[("zendesk-ratelimit-tickets-index", "total=100; remaining=99; resets=41")],
        200,
        (None, Some(99.0), Some(41)),
    );
}

#[test]
fn a_refusal_is_about_the_limit_that_the_answer_names_and_requests_about_those_they_match() {
    let shipped = "  - { name: account, rate: 100/s, exceeded: \"headers['stripe-rate-limited-reason'].startsWith('global-')\" }
  - { name: endpoint, rate: 25/s, per: endpoint, exceeded: \"headers['stripe-rate-limited-reason'].startsWith('endpoint-')\" }
  - { name: search, rate: [20/s, 1000/h], when: \"endpoint.endsWith('/search')\", weight: \"step == 'find' ? 5 : 1\" }";
    let limits = limits(shipped);
    let headers = [("stripe-rate-limited-reason".to_owned(), "endpoint-rate".to_owned())].into();
    let answer = Answer { status: 429, headers, body: serde_json::Value::Null, flaw: None };
    assert_eq!(
        limits.iter().map(|limit| limit.is_exceeded(&answer)).collect::<Vec<_>>(),
        [false, true, false]
    );
    let request = |step: &str, endpoint: &str| Request {
        step: step.into(),
        method: "GET".into(),
        path: String::new(),
        endpoint: endpoint.into(),
        content_type: None,
        body: None,
        sha256: None,
        holds: Vec::new(),
        says: None,
    };
    let find = request("find", "GET /v1/customers/search");
    let applies: Vec<_> = limits.iter().map(|limit| limit.applies("customer", &find)).collect();
    let key = |index: usize| applies[index].as_ref().map(|(key, weight)| (key.as_str(), weight.get()));
    assert_eq!(
        (key(0), key(1), key(2)),
        (Some(("", 1)), Some(("GET /v1/customers/search", 1)), Some(("", 5)))
    );
    assert!(limits[2].applies("customer", &request("create", "POST /v1/customers")).is_none());
}
