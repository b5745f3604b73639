//! Lines of any bytes at the admin socket, and rates of any text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tailwater::connector::limit::Rate;
use tailwater::ledger::command::Asking;

fuzz_target!(|data: &[u8]| {
    if let Ok(asking) = serde_json::from_slice::<Asking>(data) {
        let _ = asking.flaw();
    }
    if let Ok(text) = std::str::from_utf8(data)
        && let Some(rate) = Rate::parse(text)
    {
        assert!(rate.per_second() > 0.0);
        assert_eq!(Rate::parse(&rate.to_string()), Some(rate));
    }
});
