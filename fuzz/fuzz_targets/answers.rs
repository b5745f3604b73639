//! Answers of any status, header and bytes, as the shipped connectors read them: two bytes of status, a line of a header, the body.
#![no_main]

use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use tailwater::config::node::Problems;
use tailwater::connector::classify::{Answer, Flaw};
use tailwater::connector::{Connector, lenient};

static CONNECTORS: LazyLock<Vec<Connector>> = LazyLock::new(|| {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../mappings");
    let load = |name: &&str| tailwater::connector::file::load(&directory, name, &mut Problems::default());
    ["stripe", "zendesk", "chargebee", "freshdesk", "odoo", "odoo-rpc"].iter().filter_map(load).collect()
});

fuzz_target!(|data: &[u8]| {
    let Some((status, rest)) = data.split_first_chunk::<2>() else { return };
    let mut parts = rest.splitn(2, |byte| *byte == b'\n');
    let header = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let header = header.split_once(':').map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()));
    let body = lenient::parse(parts.next().unwrap_or_default());
    let flaw = body.is_none().then_some(Flaw::NotJson);
    let answer = Answer {
        status: u16::from_be_bytes(*status),
        headers: header.into_iter().collect(),
        body: body.unwrap_or_default(),
        flaw,
    };
    let now = Timestamp::from_second(1_796_000_000).unwrap();
    let longest = Duration::from_secs(900);
    assert!(answer.retry_after(now, longest).is_none_or(|wait| wait <= longest));
    assert!((answer.clock_ms(now) - now.as_millisecond()).abs() <= 120_000);
    for connector in CONNECTORS.iter() {
        for step in ["create", "update", "delete", "find", "poll"] {
            let _ = answer.classify(step, &connector.outcomes);
        }
    }
});
