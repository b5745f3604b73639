//! Bytes from the network: every message decodes to what was sent, and no truncation or flip of bytes panics.

use bytes::{BufMut, Bytes, BytesMut};
use proptest::prelude::*;
use tailwater::event::Lsn;
use tailwater::source::postgres::types::Types;
use tailwater::source::postgres::wire::pgoutput::{
    LogicalMessage, OldTuple, RelationColumn, RelationMessage, Tuple, TupleValue, decode,
};
use tailwater::source::postgres::wire::{
    StreamMessage, decode_stream_message, encode_status_update, take_frame,
};

fn put_tuple(out: &mut BytesMut, tuple: Tuple<'_>) {
    out.put_u16(tuple.len() as u16);
    put_values(out, &tuple.values().collect::<Vec<_>>());
}

fn put_values(out: &mut BytesMut, values: &[TupleValue<'_>]) {
    for value in values {
        match value {
            TupleValue::Null => out.put_u8(b'n'),
            TupleValue::Unchanged => out.put_u8(b'u'),
            TupleValue::LeftOut(length) => {
                out.put_u8(b'!');
                out.put_u64(*length);
            }
            TupleValue::Text(bytes) => {
                out.put_u8(b't');
                out.put_u32(bytes.len() as u32);
                out.put_slice(bytes);
            }
            TupleValue::Binary(bytes) => {
                out.put_u8(b'b');
                out.put_u32(bytes.len() as u32);
                out.put_slice(bytes);
            }
        }
    }
}

fn put_string(out: &mut BytesMut, text: &str) {
    out.put_slice(text.as_bytes());
    out.put_u8(0);
}

/// What the server would send for a message.
#[allow(clippy::too_many_lines)] // One arm for each message reads best in one place.
fn encode(message: &LogicalMessage<'_>) -> Bytes {
    let mut out = BytesMut::new();
    match message {
        LogicalMessage::Begin { commit_lsn, committed_at_us, xid } => {
            out.put_u8(b'B');
            out.put_u64(commit_lsn.0);
            out.put_i64(*committed_at_us);
            out.put_u32(*xid);
        }
        LogicalMessage::Commit { commit_lsn, end_lsn, committed_at_us } => {
            out.put_slice(b"C\0");
            out.put_u64(commit_lsn.0);
            out.put_u64(end_lsn.0);
            out.put_i64(*committed_at_us);
        }
        LogicalMessage::Origin { name } => {
            out.put_u8(b'O');
            out.put_u64(9);
            put_string(&mut out, name);
        }
        LogicalMessage::Relation(relation) => {
            out.put_u8(b'R');
            out.put_u32(relation.oid);
            put_string(&mut out, &relation.schema);
            put_string(&mut out, &relation.name);
            out.put_u8(relation.replica_identity);
            out.put_u16(relation.columns.len() as u16);
            for column in &relation.columns {
                out.put_u8(u8::from(column.key));
                put_string(&mut out, &column.name);
                out.put_u32(column.type_oid);
                out.put_i32(-1);
            }
        }
        LogicalMessage::Type { oid, schema, name } => {
            out.put_u8(b'Y');
            out.put_u32(*oid);
            put_string(&mut out, schema);
            put_string(&mut out, name);
        }
        LogicalMessage::Insert { relation_oid, new } => {
            out.put_u8(b'I');
            out.put_u32(*relation_oid);
            out.put_u8(b'N');
            put_tuple(&mut out, *new);
        }
        LogicalMessage::Update { relation_oid, old, new } => {
            out.put_u8(b'U');
            out.put_u32(*relation_oid);
            if let Some(old) = old {
                out.put_u8(if matches!(old, OldTuple::Key(_)) { b'K' } else { b'O' });
                put_tuple(&mut out, old.tuple());
            }
            out.put_u8(b'N');
            put_tuple(&mut out, *new);
        }
        LogicalMessage::Delete { relation_oid, old } => {
            out.put_u8(b'D');
            out.put_u32(*relation_oid);
            out.put_u8(if matches!(old, OldTuple::Key(_)) { b'K' } else { b'O' });
            put_tuple(&mut out, old.tuple());
        }
        LogicalMessage::Truncate { relation_oids } => {
            out.put_u8(b'T');
            out.put_u32(relation_oids.len() as u32);
            out.put_u8(0);
            relation_oids.iter().for_each(|oid| out.put_u32(*oid));
        }
        LogicalMessage::Message { transactional, prefix, content } => {
            out.put_u8(b'M');
            out.put_u8(u8::from(*transactional));
            out.put_u64(9);
            put_string(&mut out, prefix);
            out.put_u32(content.len() as u32);
            out.put_slice(content);
        }
    }
    out.freeze()
}

/// An insert of these columns, from which tuples for other messages are taken.
fn insert_of(values: &[TupleValue<'_>]) -> Bytes {
    let mut out = BytesMut::from(&b"I\0\0\0\x01N"[..]);
    out.put_u16(values.len() as u16);
    put_values(&mut out, values);
    out.freeze()
}

fn examples(insert: &Bytes) -> Vec<LogicalMessage<'_>> {
    let LogicalMessage::Insert { new: row, .. } = decode(insert).unwrap() else { panic!("not an insert") };
    vec![
        LogicalMessage::Begin { commit_lsn: Lsn(7), committed_at_us: -5, xid: 9 },
        LogicalMessage::Commit { commit_lsn: Lsn(7), end_lsn: Lsn(8), committed_at_us: 1 },
        LogicalMessage::Origin { name: "elsewhere".into() },
        LogicalMessage::Relation(RelationMessage {
            oid: 1,
            schema: "public".into(),
            name: "Products".into(),
            replica_identity: b'd',
            columns: vec![RelationColumn { key: true, name: "id".into(), type_oid: 23 }],
        }),
        LogicalMessage::Type { oid: 4, schema: "public".into(), name: "mood".into() },
        LogicalMessage::Insert { relation_oid: 1, new: row },
        LogicalMessage::Update { relation_oid: 1, old: None, new: row },
        LogicalMessage::Update { relation_oid: 1, old: Some(OldTuple::Key(row)), new: row },
        LogicalMessage::Update { relation_oid: 1, old: Some(OldTuple::Full(row)), new: row },
        LogicalMessage::Delete { relation_oid: 1, old: OldTuple::Key(row) },
        LogicalMessage::Truncate { relation_oids: vec![1, 2] },
        LogicalMessage::Message { transactional: true, prefix: "p".into(), content: b"\0\xff" },
    ]
}

fn row() -> Bytes {
    let text = |text: &'static str| TupleValue::Text(text.as_bytes());
    insert_of(&[
        text("8"),
        TupleValue::Null,
        TupleValue::Unchanged,
        TupleValue::Binary(b"\x01"),
        text("ООО «Ромашка» 🚀"),
    ])
}

#[test]
fn every_message_decodes_to_what_was_sent() {
    for message in examples(&row()) {
        assert_eq!(decode(&encode(&message)).unwrap(), message);
    }
}

#[test]
fn a_message_cut_at_any_byte_or_with_one_byte_more_is_an_error() {
    for message in examples(&row()) {
        let whole = encode(&message);
        for length in 0..whole.len() {
            assert!(decode(&whole[..length]).is_err(), "{message:?} cut at {length}");
        }
        let mut longer = BytesMut::from(&whole[..]);
        longer.put_u8(0);
        assert!(decode(&longer).is_err(), "{message:?} with one byte more");
    }
}

#[test]
fn frames_are_taken_whole_or_not_at_all_and_absurd_lengths_are_refused() {
    let mut status = BytesMut::new();
    encode_status_update(Lsn(0x0102_0304_0506_0708), 42, true, &mut status);
    assert_eq!(status.len(), 1 + 4 + 34);
    for length in 0..status.len() {
        let mut part = BytesMut::from(&status[..length]);
        assert_eq!(take_frame(&mut part).unwrap(), None, "at {length}");
    }
    let frame = take_frame(&mut status.clone()).unwrap().unwrap();
    assert_eq!((frame.tag, frame.body.len()), (b'd', 34));
    for length in [0_u32, 3, 0x7FFF_FFFF, u32::MAX] {
        let mut bytes = BytesMut::from(&b"d"[..]);
        bytes.put_u32(length);
        assert!(take_frame(&mut bytes).is_err(), "length {length}");
    }
}

#[test]
fn keepalives_and_data_are_told_apart() {
    let mut keepalive = BytesMut::from(&b"k"[..]);
    keepalive.put_u64(77);
    keepalive.put_i64(0);
    keepalive.put_u8(1);
    let decoded = decode_stream_message(&keepalive).unwrap();
    assert_eq!(decoded, StreamMessage::Keepalive { wal_end: Lsn(77), reply_requested: true });
    assert!(decode_stream_message(b"x").is_err());
    assert!(decode_stream_message(b"").is_err());
}

/// Found by fuzzing: a hundred million rows of no columns took gigabytes.
#[test]
fn an_array_that_promises_more_than_it_holds_is_an_error() {
    let array = |lengths: &[u32]| {
        let mut bytes = BytesMut::new();
        bytes.put_u32(lengths.len() as u32);
        bytes.put_u64(23);
        for length in lengths {
            bytes.put_u32(*length);
            bytes.put_u32(1);
        }
        Types::default().form(1007).decode_binary(&bytes).ok()
    };
    assert_eq!(array(&[]), Some(serde_json::json!([])));
    assert_eq!(array(&[100_000_000, 0]), None);
    assert_eq!(array(&[1 << 31, 1 << 31, 1 << 31]), None);
    assert_eq!(array(&[3]), None);
}

fn decode_text(oid: u32, bytes: &[u8]) -> Option<serde_json::Value> {
    Types::default().form(oid).decode_text(bytes).ok()
}

#[test]
fn values_keep_what_json_cannot_hold_as_text() {
    let check = |oid: u32, text: &str, expected: serde_json::Value| {
        assert_eq!(decode_text(oid, text.as_bytes()), Some(expected), "{oid} {text}");
    };
    check(114, r#"{"a": "\u0000"}"#, r#"{"a": "\u0000"}"#.into());
    check(114, r#"{"a": "\\u0000"}"#, serde_json::json!({"a": "\\u0000"}));
    check(3802, r#"{"a": 1e400}"#, r#"{"a": 1e400}"#.into());
    check(16, "t", true.into());
    check(23, "-5", (-5).into());
    check(20, "9007199254740993", "9007199254740993".into());
    check(1700, "434.080", "434.080".into());
    check(1700, "NaN", "NaN".into());
    check(701, "Infinity", "Infinity".into());
    check(701, "0.5", 0.5.into());
    check(1114, "infinity", "infinity".into());
    check(3802, r#"{"en_US": "Alpine"}"#, serde_json::json!({"en_US": "Alpine"}));
    check(1007, "{1,NULL,{2,3}}", serde_json::json!([1, null, [2, 3]]));
    check(1009, r#"[0:1]={"a \"b\" \\",NULL}"#, serde_json::json!(["a \"b\" \\", null]));
    check(1009, "{}", serde_json::json!([]));
    for (oid, bytes) in [
        (16, &b"yes"[..]),
        (23, b"five"),
        (25, b"\xff"),
        (3802, b"{"),
        (1007, b"{1"),
        (1007, b"1}"),
        (1007, b"{1}x"),
    ] {
        assert_eq!(decode_text(oid, bytes), None, "{oid} {bytes:?}");
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&bytes);
        let _ = decode_stream_message(&bytes);
        let mut buffer = BytesMut::from(&bytes[..]);
        while let Ok(Some(_)) = take_frame(&mut buffer) {}
    }

    #[test]
    fn a_flipped_byte_never_panics(index in 0_usize..12, place in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = encode(&examples(&row())[index]).to_vec();
        let place = place.index(bytes.len());
        bytes[place] = byte;
        let _ = decode(&bytes);
    }

    #[test]
    fn arbitrary_values_of_any_type_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60), oid in 0_u32..4000) {
        let form = Types::default().form(oid);
        let decoded = form.decode_text(&bytes);
        prop_assert_eq!(form.check_text(&bytes).is_ok(), decoded.is_ok());
        let _ = form.decode_binary(&bytes);
    }

    #[test]
    fn arrays_of_texts_are_read_as_they_are_written(items in proptest::collection::vec(proptest::option::of(".{0,8}"), 0..6)) {
        let quoted = |item: &Option<String>| match item {
            None => "NULL".to_owned(),
            Some(text) => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
        };
        let literal = format!("{{{}}}", items.iter().map(quoted).collect::<Vec<_>>().join(","));
        prop_assert_eq!(decode_text(1009, literal.as_bytes()), Some(serde_json::json!(items)));
    }

    #[test]
    fn whatever_a_server_says_of_snapshots_and_timelines_never_panics(text in ".{0,60}") {
        let _ = tailwater::source::postgres::chunk::Snapshot::parse(&text);
        let _ = tailwater::source::postgres::slot::switched_at(&text, 1);
    }

    #[test]
    fn an_lsn_prints_and_parses_to_itself(value in any::<u64>()) {
        prop_assert_eq!(Lsn(value).to_string().parse::<Lsn>().unwrap(), Lsn(value));
    }
}
