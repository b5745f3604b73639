//! Frames and stream messages from any bytes.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use tailwater::source::postgres::wire::{decode_stream_message, take_frame};

fuzz_target!(|data: &[u8]| {
    let mut buffer = BytesMut::from(data);
    while let Ok(Some(frame)) = take_frame(&mut buffer) {
        let _ = decode_stream_message(&frame.body);
    }
});
