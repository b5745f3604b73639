//! The pure rules of dispatching: quotas, waits, doubts.

use std::time::Duration;

use proptest::prelude::*;
use tailwater::connector::classify::Answer;
use tailwater::connector::request::percent_encode;
use tailwater::demo::vendor::form;
use tailwater::dispatch::gate::Gate;
use tailwater::dispatch::quota::Quota;
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
fn a_gate_opens_after_failures_in_a_row_only_and_closes_no_longer_than_its_bound() {
    let now = Instant::now();
    let mut gate = Gate::default();
    gate.failed(now, 0.0);
    gate.failed(now, 0.0);
    assert_eq!((gate.opens_at(now), gate.probing()), (None, false));
    gate.failed(now, 0.0);
    assert!(gate.opens_at(now).is_some() && gate.probing());
    for _ in 0..100 {
        gate.failed(now, 0.0);
    }
    assert!(gate.opens_at(now).unwrap() - now <= Duration::from_secs(15));
    assert_eq!(gate.opens_at(now + Duration::from_secs(15)), None);
    gate.answered();
    assert!(!gate.probing());
    gate.pause(now, Duration::from_secs(30));
    gate.pause(now, Duration::from_secs(5));
    assert_eq!(
        gate.opens_at(now).unwrap() - now,
        Duration::from_secs(30),
        "a shorter pause does not cut a longer one"
    );
}

#[test]
fn retry_after_is_read_as_seconds_or_as_a_date_and_nonsense_is_ignored() {
    let now: jiff::Timestamp = "2026-11-21T10:00:00Z".parse().unwrap();
    let check = |text: &str, expected: Option<u64>| {
        let headers = [("retry-after".to_owned(), text.to_owned())].into();
        let answer = Answer { status: 429, headers, body: serde_json::Value::Null };
        assert_eq!(answer.retry_after(now), expected.map(Duration::from_secs), "{text}");
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
        let quota = Quota::parse(&format!("{requests}/{}", ["s", "min", "h", "d"][unit])).unwrap();
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
        if let Some(quota) = Quota::parse(&text) {
            prop_assert_eq!(Quota::parse(&quota.to_string()), Some(quota));
        }
    }
}
