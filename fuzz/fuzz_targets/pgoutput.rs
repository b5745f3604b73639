//! pgoutput messages from any bytes, through the assembler: lengths of 16 bits in front of each message.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use tailwater::event::Lsn;
use tailwater::mapping::{Constants, Ownership, Policy, SourceMapping, TableSpec, ValueBounds};
use tailwater::source::postgres::transaction::{Assembler, Consumer, SliceLimits};
use tailwater::source::postgres::types::Types;

fuzz_target!(|data: &[u8]| {
    let table = TableSpec {
        schema: "s".into(),
        name: "t".into(),
        key: vec!["k".into()],
        columns: vec!["k".into(), "v".into()],
        author: Some("v".into()),
        personal: Policy::default(),
        digest_key: None,
        bounds: ValueBounds::default(),
    };
    let mapping = SourceMapping {
        name: "m".into(),
        sha256: String::new(),
        parts: Vec::new(),
        tables: vec![table],
        events: Vec::new(),
        constants: Constants::of("s"),
        ownership: Ownership::default(),
    };
    let limits = SliceLimits { rows: 8, bytes: 1 << 10 };
    let mut assembler = Assembler::new(Arc::new(mapping), Types::default(), limits, (Lsn(0), None));
    let mut rest = data;
    while let Some((length, after)) = rest.split_first_chunk::<2>() {
        let (message, after) = after.split_at(usize::from(u16::from_be_bytes(*length)).min(after.len()));
        rest = after;
        if assembler.push(message).is_err() {
            return;
        }
    }
});
