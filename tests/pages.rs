//! Lists whose next page is an address in the answer: it is followed at the system, and nowhere else.

use jiff::Timestamp;
use serde_json::{Value, json};
use tailwater::config::node::Problems;
use tailwater::connector::Connector;
use tailwater::connector::classify::Answer;
use tailwater::connector::file::load;
use tailwater::demo::private::TemporaryDirectory;
use tailwater::source::poll::page::local_path;
use tailwater::source::poll::{Page, PageError, Pass};

const BASE: &str = "https://desk.example.test";

const LINKED: &str = r#"
format: 1
system: linked
auth: { kind: bearer }
encoding: json
limits: [{ name: account, rate: 10/s }]
outcomes: [{ when: "true", outcome: applied }]
objects:
  thing: { body: { name: event.name }, upsert: { request: POST /things, id: answer.id }, delete: never }
tables:
  thing:
    list: { request: GET /things, pages: { by: link, next: answer.next }, rows: answer.things }
    record: answer
    key: record.id
evidence: [{ what: a test, url: "https://example.test", seen: "2026-11-28" }]
"#;

fn connector() -> Connector {
    let directory = TemporaryDirectory::new("tailwater-pages").unwrap();
    std::fs::create_dir(directory.path().join("connectors")).unwrap();
    std::fs::write(directory.path().join("connectors/linked.yaml"), LINKED).unwrap();
    let mut problems = Problems::default();
    let connector = load(directory.path(), "linked", &mut problems);
    assert!(problems.is_empty(), "{problems:?}");
    connector.unwrap()
}

/// The page that says so of the next one, and where the pass stands behind it.
fn page(pass: &mut Pass, next: &Value) -> Result<Page, PageError> {
    let connector = connector();
    let table = connector.reading.table("thing").unwrap();
    let body = json!({"things": [{"id": 1}], "next": next});
    let answer = Answer { status: 200, headers: Default::default(), body, flaw: None };
    pass.take_listed(table, table.list.as_ref().unwrap(), &answer, (0, BASE))
}

#[test]
fn the_address_of_the_next_page_is_followed_as_it_was_given_until_there_is_none() {
    let mut pass = Pass::new(0, Timestamp::UNIX_EPOCH);
    let next = json!(format!("{BASE}/things?after=a%2Fb&x=1"));
    assert!(page(&mut pass, &next).unwrap().more);
    let connector = connector();
    let listing = connector.reading.table("thing").unwrap().list.as_ref().unwrap();
    assert_eq!(pass.request("list", listing, &connector).unwrap().path, "/things?after=a%2Fb&x=1");
    assert_eq!(page(&mut pass.clone(), &next), Err(PageError::Stuck));
    assert!(!page(&mut pass, &Value::Null).unwrap().more);
}

#[test]
fn credentials_are_sent_to_no_address_but_the_systems_own() {
    for elsewhere in [
        "https://evil.example.test/things",
        "https://desk.example.test.evil.test/things",
        "https://desk.example.test@evil.test/things",
        "http://desk.example.test/things",
        "//evil.example.test/things",
        "/\\evil.example.test",
        "/things\r\nHost: evil.example.test",
        "things",
    ] {
        assert_eq!(local_path(elsewhere, BASE), None, "{elsewhere}");
        let mut pass = Pass::new(0, Timestamp::UNIX_EPOCH);
        assert_eq!(page(&mut pass, &json!(elsewhere)), Err(PageError::Elsewhere), "{elsewhere}");
        assert_eq!(pass.token, None);
    }
    assert_eq!(local_path("/things?page=2", BASE).as_deref(), Some("/things?page=2"));
}
