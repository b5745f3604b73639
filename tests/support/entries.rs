//! A ledger by itself, filled with lines as the daemon writes them.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};
use tailwater::demo::private::{PrivatePostgres, TemporaryDirectory};
use tailwater::event::{
    CanonicalEvent, Cause, ChangePosition, Cluster, EventRecord, Lsn, Operation, Origin, Personal, Row,
};
use tailwater::ledger::batch::Batch;
use tailwater::ledger::entry::{EntryKind, NewEntry};
use tailwater::ledger::keyring::Master;
use tailwater::ledger::{Ledger, SCHEMA};
use tailwater::pg::Database;
use tailwater::pg_tls::TlsMode;

/// Entries of one batch.
const BATCH: usize = 400;

/// A server with an empty ledger, and somebody who may do anything to it.
pub struct LedgerAlone {
    pub ledger: Ledger,
    pub server: PrivatePostgres,
    pub directory: TemporaryDirectory,
}

impl LedgerAlone {
    pub async fn start() -> Self {
        let directory = TemporaryDirectory::new("test").unwrap();
        let server = PrivatePostgres::start(directory.path(), "ledger", &["autovacuum = off"]).await.unwrap();
        let ledger = Ledger::open(&database(server.port), &Master::default()).await.unwrap();
        Self { ledger, server, directory }
    }

    /// Writes `count` lines more.
    pub async fn fill(&self, count: usize) {
        let mut left = count;
        while left > 0 {
            let some = left.min(BATCH);
            self.ledger.writer().write(lines(count - left, some)).await.unwrap();
            left -= some;
        }
    }
}

/// A ledger in the database of a private server.
pub fn database(port: u16) -> Database {
    Database {
        host: "127.0.0.1".into(),
        port,
        user: "postgres".into(),
        dbname: "postgres".into(),
        password: None,
        tls: TlsMode::Disable,
        root_certificates: None,
        certificate: None,
        schema: SCHEMA,
    }
}

/// An event, its attempt and its outcome, and so on.
pub fn lines(first: usize, count: usize) -> Batch {
    let mut batch = Batch::default();
    for n in first..first + count {
        batch.entry(match n % 3 {
            0 => event(n),
            1 => attempt(n),
            _ => outcome(n),
        });
    }
    batch
}

fn event_id(n: usize) -> String {
    format!("{:016x}{:024x}", 0x2_0000_0000 + n / 3 * 64, n / 3 * 7919)
}

pub fn event(n: usize) -> NewEntry {
    let id = n / 3;
    let row = |vat: usize| -> Arc<Row> {
        let columns = [
            ("active", json!(true)),
            ("city", json!("Gent")),
            ("commercial_partner_id", json!(id)),
            ("email", json!(format!("customer-{id}@example.com"))),
            ("id", json!(id)),
            ("is_company", json!(true)),
            ("lang", json!("en_US")),
            ("name", json!(format!("Customer number {id}"))),
            ("parent_id", Value::Null),
            ("phone", json!("+32 9 000 00 00")),
            ("street", json!("Koningin Astridlaan 1")),
            ("vat", json!(format!("BE{vat:010}"))),
            ("zip", json!("9000")),
        ];
        Arc::new(columns.into_iter().map(|(name, value)| (Arc::from(name), value)).collect())
    };
    let address =
        json!({"street": "Koningin Astridlaan 1", "city": "Gent", "postal_code": "9000", "country": "BE"});
    let event = CanonicalEvent {
        event_id: event_id(n),
        event_type: "customer.v1".into(),
        operation: Operation::Update,
        id: format!("ERP-P-{id}"),
        data: json!({"id": format!("ERP-P-{id}"), "name": format!("Customer number {id}"), "company": true, "active": true,
                     "email": format!("customer-{id}@example.com"), "phone": "+32 9 000 00 00", "language": "en_US",
                     "vat": format!("BE{:010}", id + 1), "address": address, "tags": ["gold"]}),
        foreign: Vec::new(),
        position: ChangePosition { commit_lsn: Lsn(0x2_0000_0000 + n as u64 * 64), ordinal: 0 },
        committed_at: Timestamp::from_second(1_764_000_000 + n as i64).unwrap(),
        xid: Some(700 + n as u32),
        snapshot: false,
        causes: vec![Cause {
            table: "res_partner".into(),
            key: id.to_string(),
            before: Some(row(id)),
            after: Some(row(id + 1)),
            by: Some((n % 40).to_string().into()),
        }],
    };
    let cluster = Cluster { system_identifier: "7301234567890123456".into(), timeline: 1 };
    let origin = Origin { source: "erp".into(), cluster, mapping_sha256: "ab".repeat(32) };
    NewEntry::event(EventRecord {
        event,
        origin: Arc::new(origin),
        fault: None,
        heals: false,
        personal: Personal::default(),
    })
}

fn attempt(n: usize) -> NewEntry {
    let id = n / 3;
    let fields = json!({
        "delivery": id, "event_seq": n, "target": "stripe", "object": "customer", "id": format!("ERP-P-{id}"), "step": "update",
        "method": "POST", "path_sha256": "cd".repeat(32), "request_sha256": "ef".repeat(32),
        "idempotency_key": event_id(n), "attempt": 1, "call": null,
    });
    NewEntry::new(EntryKind::Attempt, Some(event_id(n)), fields)
}

fn outcome(n: usize) -> NewEntry {
    let id = n / 3;
    let fields = json!({
        "delivery": id, "event_seq": n - 1, "attempt_seq": n, "target": "stripe", "object": "customer",
        "id": format!("ERP-P-{id}"), "class": "applied", "status": 200, "external_id": format!("cus_{id:014x}"),
        "reason": "status 200", "response_sha256": "01".repeat(32),
    });
    NewEntry::new(EntryKind::Outcome, Some(event_id(n)), fields)
}
