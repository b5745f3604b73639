//! Answers of any bytes, as pages of every stream and every list of the shipped connectors.
#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use tailwater::config::node::Problems;
use tailwater::connector::classify::Answer;
use tailwater::connector::{Connector, lenient};
use tailwater::source::poll::Pass;

static CONNECTORS: LazyLock<Vec<Connector>> = LazyLock::new(|| {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../mappings");
    let load = |name: &&str| tailwater::connector::file::load(&directory, name, &mut Problems::default());
    ["stripe", "zendesk", "chargebee", "freshdesk"].iter().filter_map(load).collect()
});

fuzz_target!(|data: &[u8]| {
    let Some(body) = lenient::parse(data) else { return };
    let answer = Answer { status: 200, headers: Default::default(), body, flaw: None };
    let (now, base) = (1_796_000_000_000, "https://system.example.test");
    for connector in CONNECTORS.iter() {
        for stream in &connector.reading.streams {
            let mut pass = Pass::new(0, Timestamp::UNIX_EPOCH);
            while pass.take(stream, &answer, (now, base)).is_ok_and(|page| page.more) {
                let _ = pass.request("poll", &stream.listing, connector);
            }
        }
        for table in &connector.reading.tables {
            let Some(listing) = &table.list else { continue };
            let mut pass = Pass::new(0, Timestamp::UNIX_EPOCH);
            while pass.take_listed(table, listing, &answer, (now, base)).is_ok_and(|page| page.more) {
                let _ = pass.request("list", listing, connector);
            }
        }
    }
});
