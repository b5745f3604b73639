//! Values of any type, in text and in binary: the first four bytes are the type.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tailwater::source::postgres::types::Types;

fuzz_target!(|data: &[u8]| {
    let Some((type_oid, value)) = data.split_first_chunk::<4>() else { return };
    let form = Types::default().form(u32::from_be_bytes(*type_oid) % 4_000);
    assert_eq!(form.check_text(value).is_ok(), form.decode_text(value).is_ok());
    let _ = form.decode_binary(value);
});
