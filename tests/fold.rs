//! Transactions are folded as they are assembled; slices and re-reads change nothing about the result.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use serde_json::json;
use tailwater::capture::load::window::{Remainder, Windows};
use tailwater::event::{Columns, Field, Lsn, Row, RowState, Transaction};
use tailwater::mapping::{Constants, Ownership, Policy, SourceMapping, TableSpec, ValueBounds};
use tailwater::source::postgres::chunk::Snapshot;
use tailwater::source::postgres::transaction::{Assembler, Consumer, SliceLimits, StreamError};
use tailwater::source::postgres::types::Types;

fn mapping() -> Arc<SourceMapping> {
    let table = TableSpec {
        schema: "public".into(),
        name: "partner".into(),
        key: vec!["id".into()],
        columns: vec!["id".into(), "name".into(), "note".into()],
        author: None,
        personal: Policy::default(),
        digest_key: None,
        bounds: ValueBounds::default(),
    };
    Arc::new(SourceMapping {
        name: "m".into(),
        sha256: String::new(),
        parts: Vec::new(),
        tables: vec![table],
        events: Vec::new(),
        constants: Constants::of("erp"),
        ownership: Ownership::default(),
    })
}

struct Script(Vec<Bytes>);

impl Script {
    fn begin(lsn: u64) -> Self {
        let mut begin = BytesMut::from(&b"B"[..]);
        begin.put_u64(lsn);
        begin.put_i64(0);
        begin.put_u32(1);
        let mut relation = BytesMut::from(&b"R\0\0\0\x01public\0partner\0d\0\x04"[..]);
        for (key, name) in [(1, "id"), (0, "name"), (0, "other"), (0, "note")] {
            relation.put_u8(key);
            relation.put_slice(name.as_bytes());
            relation.put_u8(0);
            relation.put_u32(25);
            relation.put_i32(-1);
        }
        Self(vec![begin.freeze(), relation.freeze()])
    }

    fn tuple(out: &mut BytesMut, values: &[&str]) {
        out.put_u16(values.len() as u16);
        for value in values {
            match *value {
                "~" => out.put_u8(b'u'),
                "-" => out.put_u8(b'n'),
                text => {
                    out.put_u8(b't');
                    out.put_u32(text.len() as u32);
                    out.put_slice(text.as_bytes());
                }
            }
        }
    }

    fn insert(mut self, id: &str, name: &str, note: &str) -> Self {
        let mut out = BytesMut::from(&b"I\0\0\0\x01N"[..]);
        Self::tuple(&mut out, &[id, name, "x", note]);
        self.0.push(out.freeze());
        self
    }

    fn update(mut self, old_id: Option<&str>, id: &str, name: &str, note: &str) -> Self {
        let mut out = BytesMut::from(&b"U\0\0\0\x01"[..]);
        if let Some(old) = old_id {
            out.put_u8(b'K');
            Self::tuple(&mut out, &[old, "-", "-", "-"]);
        }
        out.put_u8(b'N');
        Self::tuple(&mut out, &[id, name, "x", note]);
        self.0.push(out.freeze());
        self
    }

    fn delete(mut self, id: &str) -> Self {
        let mut out = BytesMut::from(&b"D\0\0\0\x01K"[..]);
        Self::tuple(&mut out, &[id, "-", "-", "-"]);
        self.0.push(out.freeze());
        self
    }

    fn commit(mut self, end: u64) -> Vec<Bytes> {
        let mut out = BytesMut::from(&b"C\0"[..]);
        out.put_u64(end - 1);
        out.put_u64(end);
        out.put_i64(0);
        self.0.push(out.freeze());
        self.0
    }
}

fn assemble(messages: Vec<Bytes>, limits: SliceLimits, ledgered: (Lsn, Option<u64>)) -> Vec<Transaction> {
    let mut assembler = Assembler::new(mapping(), Types::default(), limits, ledgered);
    messages.into_iter().filter_map(|message| assembler.push(&message).unwrap()).collect()
}

fn states(transactions: &[Transaction]) -> Vec<(String, u64, String)> {
    let all = transactions.iter().flat_map(|transaction| &transaction.changes);
    all.map(|change| {
        let state = match &change.state {
            RowState::Absent => "gone".to_owned(),
            RowState::Present(sent) => {
                let fields = sent.iter();
                let texts = fields.map(|(_, field)| match field {
                    Field::Value(value) => value.as_str().unwrap_or("null").to_owned(),
                    Field::Unchanged => "~".to_owned(),
                });
                texts.collect::<Vec<_>>().join(",")
            }
        };
        (change.key.clone(), change.ordinal, state)
    })
    .collect()
}

const NOTHING: (Lsn, Option<u64>) = (Lsn(0), None);

#[test]
fn the_last_image_of_a_row_wins_and_unsent_columns_keep_what_the_transaction_said() {
    let script =
        Script::begin(10).insert("1", "a", "long").update(None, "1", "b", "~").update(None, "1", "c", "~");
    let transactions = assemble(script.commit(20), SliceLimits::default(), NOTHING);
    assert_eq!(states(&transactions), [("1".into(), 2, "1,c,long".into())]);
    assert_eq!((transactions[0].row_changes, transactions[0].end_lsn), (3, Lsn(20)));
}

#[test]
fn a_key_change_ends_the_old_row_and_carries_its_columns_over() {
    let script = Script::begin(10).insert("1", "a", "long").update(Some("1"), "2", "a", "~");
    let transactions = assemble(script.commit(20), SliceLimits::default(), NOTHING);
    assert_eq!(states(&transactions), [("1".into(), 1, "gone".into()), ("2".into(), 1, "2,a,long".into())]);
    let script = Script::begin(10).update(Some("1"), "2", "a", "~");
    let transactions = assemble(script.commit(20), SliceLimits::default(), NOTHING);
    assert_eq!(transactions[0].changes[1].moved_from.as_deref(), Some("1"));
}

#[test]
fn a_row_that_moves_twice_remembers_where_it_came_from() {
    let script = Script::begin(10).update(Some("1"), "3", "a", "~").update(Some("2"), "1", "b", "~").update(
        Some("1"),
        "4",
        "b",
        "~",
    );
    let transactions = assemble(script.commit(20), SliceLimits::default(), NOTHING);
    let moved: Vec<_> = transactions[0]
        .changes
        .iter()
        .filter(|change| change.state != RowState::Absent)
        .map(|change| (change.key.as_str(), change.moved_from.as_deref()))
        .collect();
    assert_eq!(moved, [("3", Some("1")), ("4", Some("2"))]);
}

/// A chunk is older than what the stream brought since its low watermark, column by column.
#[test]
fn a_chunk_completes_only_what_the_stream_never_brought_whole() {
    let row = |note: &str| {
        let map = json!({"id": "1", "name": "old", "note": note}).as_object().cloned().unwrap();
        ("1".to_owned(), Row::from_map(map, &mut Columns::default()))
    };
    let snapshot = Snapshot::parse("100:100:").unwrap();
    let whole = || Script::begin(10).update(None, "1", "b", "new");
    let part = || Script::begin(30).update(None, "1", "c", "~");
    let table = mapping().tables[0].name.clone();
    let closed = |scripts: Vec<Vec<Bytes>>| {
        let mut windows = Windows::default();
        windows.open(1, table.clone());
        for script in scripts {
            assemble(script, SliceLimits::default(), NOTHING)
                .iter()
                .for_each(|transaction| windows.note(transaction));
        }
        windows.close(1, &snapshot, vec![row("old")]).unwrap()
    };
    let remainder = closed(vec![part().commit(40)]);
    let completed: Vec<_> = remainder.completed.iter().map(|(_, row)| row.get("note").cloned()).collect();
    assert_eq!((remainder.rows.len(), completed), (0, vec![Some(json!("old"))]));
    let remainder = closed(vec![whole().commit(20), part().commit(40)]);
    assert_eq!(remainder, Remainder::default(), "the stream brought `note` since");
}

#[test]
fn a_row_deleted_and_made_again_stands() {
    let script = Script::begin(10).delete("1").insert("1", "again", "-");
    let transactions = assemble(script.commit(20), SliceLimits::default(), NOTHING);
    assert_eq!(states(&transactions), [("1".into(), 1, "1,again,null".into())]);
}

#[test]
fn a_large_transaction_comes_in_slices_and_a_re_read_skips_what_is_ledgered() {
    let script =
        || (0..10).fold(Script::begin(10), |script, n| script.insert(&n.to_string(), "n", "-")).commit(20);
    let limits = SliceLimits { rows: 4, bytes: u64::MAX };
    let slices = assemble(script(), limits, NOTHING);
    assert_eq!(slices.iter().map(|slice| slice.changes.len()).collect::<Vec<_>>(), [4, 4, 2]);
    assert_eq!(slices.iter().map(|slice| slice.complete).collect::<Vec<_>>(), [false, false, true]);
    assert_eq!(slices.iter().map(|slice| slice.last_ordinal).collect::<Vec<_>>(), [3, 7, 9]);
    // The slices after a restart need not be cut where they were before.
    for (rows, ledgered) in [(4, 3), (3, 3), (100, 7), (4, 9)] {
        let limits = SliceLimits { rows, bytes: u64::MAX };
        let again = assemble(script(), limits, (Lsn(10), Some(ledgered)));
        let ordinals: Vec<u64> = states(&again).into_iter().map(|(_, ordinal, _)| ordinal).collect();
        assert_eq!(ordinals, (ledgered + 1..10).collect::<Vec<_>>(), "{rows} {ledgered}");
    }
    assert_eq!(states(&assemble(script(), limits, (Lsn(10), None))), []);
    assert_eq!(states(&assemble(script(), limits, (Lsn(11), None))), []);
}

#[test]
fn what_the_mapping_does_not_read_is_counted_and_dropped() {
    let mut messages = Script::begin(10).commit(20);
    let row = Bytes::from_static(b"I\0\0\0\x02N\0\x01n");
    messages.insert(
        2,
        Bytes::from_static(b"R\0\0\0\x02public\0mail_message\0d\0\x01\x01id\0\0\0\0\x17\xff\xff\xff\xff"),
    );
    messages.insert(3, row);
    let transactions = assemble(messages, SliceLimits::default(), NOTHING);
    assert_eq!((transactions[0].row_changes, transactions[0].changes.len()), (1, 0));
}

#[test]
fn what_cannot_be_read_stops_the_stream() {
    let mut assembler = Assembler::new(mapping(), Types::default(), SliceLimits::default(), NOTHING);
    let row = Bytes::from_static(b"I\0\0\0\x09N\0\x01n");
    assert!(matches!(assembler.push(&row), Err(StreamError::OutOfPlace("a row"))));
    assembler.push(&Script::begin(10).0[0]).unwrap();
    assert!(matches!(assembler.push(&row), Err(StreamError::UnknownRelation(9))));
    let keyless =
        Bytes::from_static(b"R\0\0\0\x01public\0partner\0d\0\x01\x01name\0\0\0\0\x17\xff\xff\xff\xff");
    let error = assembler.push(&keyless).unwrap_err().to_string();
    assert!(error.contains("partner") && error.contains("no column \"id\""), "{error}");
}

#[test]
fn a_vanished_column_is_left_out_and_the_stream_goes_on() {
    let mut messages = Script::begin(10).commit(20);
    let narrow = b"R\0\0\0\x01public\0partner\0d\0\x02\x01id\0\0\0\0\x17\xff\xff\xff\xff\x00note\0\0\0\0\x19\xff\xff\xff\xff";
    messages.insert(2, Bytes::from_static(narrow));
    messages.insert(3, Bytes::from_static(b"I\0\0\0\x01N\0\x02t\0\0\0\x018t\0\0\0\x01x"));
    let transactions = assemble(messages, SliceLimits::default(), NOTHING);
    let RowState::Present(sent) = &transactions[0].changes[0].state else { panic!("gone") };
    assert_eq!(sent.get("name"), None);
    assert_eq!(sent.get("note"), Some(Field::Value(&json!("x"))));
}
