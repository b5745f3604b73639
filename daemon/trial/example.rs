//! Golden examples: `mappings/sources/<name>/examples/*.yaml`. Rows in, events and requests out.
//!
//! ```yaml
//! format: 1
//! only: [customer.v1]                               # optional: other events are not looked at
//! rows:                                             # what is there at first
//!   res_partner: [{ id: 8, name: Alpine, is_company: true }]
//! expect:                                           # what the first load makes of it
//!   - { event: customer.v1, id: ERP-P-8, data: { name: Alpine } }
//! steps:                                            # transactions, one after the other
//!   - change: { res_partner: [{ id: 8, name: Alps }] }
//!     delete: { res_partner: [{ id: 9 }] }
//!     expect:
//!       - { event: customer.v1, id: ERP-P-8, op: update, data: { name: Alps } }
//!       - { event: customer.v1, id: ERP-P-9, op: delete }
//!     requests:                                     # optional: what the routes make of these events
//!       - { system: stripe, request: POST /v1/customers, body: "name=Alps" }
//! ```
//!
//! A step without `expect` expects nothing; `rows` without `expect` are not looked at. Of `data` only the members that are given are compared; of lists all items. `held: text` expects a document that is held
//! back, with that text in the reason.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::Store;
use crate::config::node::{At, Node, Problems};
use crate::event::Operation;
use crate::image::Emitted;
use crate::mapping::SourceMapping;
use crate::mapping::file::{check_format, read, yaml_files};
use crate::mapping::shape::suggestion;

/// What an example expects of an event.
#[derive(Debug, Clone, PartialEq)]
pub struct Expected {
    /// Where it stands in the file.
    pub at: At,
    /// Type, canonical id, operation and the given members of the data, as they are compared.
    pub shown: Value,
    /// Part of the reason why it is held back.
    pub held: Option<String>,
}

/// A request that a route makes of an event.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// Where it stands in the file.
    pub at: At,
    /// System, request line and body.
    pub shown: Value,
}

/// One transaction of an example.
#[derive(Debug, Default)]
pub struct Step {
    changes: Vec<(String, Map<String, Value>, bool)>,
    /// `None`: not looked at.
    expect: Option<Vec<Expected>>,
    requests: Option<Vec<Asked>>,
    at: Option<At>,
}

/// A file.
#[derive(Debug)]
pub struct Example {
    /// The file.
    pub path: PathBuf,
    /// Event types that it is about; all when empty.
    only: Vec<String>,
    first: Step,
    steps: Vec<Step>,
}

/// What did not come out as an example says.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// Where the expectation stands.
    pub at: At,
    /// What was expected, as pretty JSON.
    pub expected: String,
    /// What came.
    pub found: String,
}

/// Makes the requests of an event: system, request line, body.
pub type Requests<'a> = &'a mut dyn FnMut(&Emitted) -> Vec<Value>;

/// All examples of a source; none when it has no directory for them.
pub fn load(mappings: &Path, name: &str, mapping: &SourceMapping, problems: &mut Problems) -> Vec<Example> {
    let directory = mappings.join("sources").join(name).join("examples");
    if !directory.is_dir() {
        return Vec::new();
    }
    yaml_files(&directory, problems).iter().filter_map(|path| read_example(path, mapping, problems)).collect()
}

fn read_example(path: &Path, mapping: &SourceMapping, problems: &mut Problems) -> Option<Example> {
    let text = read(path, problems)?;
    let node = Node::from_yaml(path, &text, problems)?;
    let mut fields = node.fields(problems);
    check_format(&mut fields, problems);
    let only = fields.optional("only").map(|node| node.strings(problems)).unwrap_or_default();
    let mut first = Step::default();
    if let Some(rows) = fields.optional("rows") {
        read_rows(&rows, mapping, false, &mut first, problems);
    }
    if let Some(node) = fields.optional("expect") {
        first.expect = Some(read_expected(&node, problems));
    }
    let steps = fields.optional("steps").map(|node| node.list(problems)).unwrap_or_default();
    fields.finish(problems);
    let steps = steps.iter().map(|node| read_step(node, mapping, problems)).collect();
    Some(Example { path: path.to_path_buf(), only, first, steps })
}

fn read_step(node: &Node, mapping: &SourceMapping, problems: &mut Problems) -> Step {
    let mut step = Step::default();
    let mut fields = node.fields(problems);
    for (key, delete) in [("change", false), ("delete", true)] {
        if let Some(rows) = fields.optional(key) {
            read_rows(&rows, mapping, delete, &mut step, problems);
        }
    }
    let expect = fields.optional("expect").map(|node| read_expected(&node, problems));
    step.expect = Some(expect.unwrap_or_default());
    step.at = Some(node.at.clone());
    if let Some(node) = fields.optional("requests") {
        step.requests =
            Some(node.list(problems).iter().filter_map(|node| read_asked(node, problems)).collect());
    }
    fields.finish(problems);
    step
}

fn read_rows(node: &Node, mapping: &SourceMapping, delete: bool, step: &mut Step, problems: &mut Problems) {
    for (table, rows) in node.entries(problems) {
        let Some(spec) = mapping.table_named(&table) else {
            let known: Vec<&str> = mapping.tables.iter().map(|table| &*table.name).collect();
            let what = format!("the mapping reads no table `{table}`");
            problems.add(&rows.at, what, suggestion(&table, &known, "one of"));
            continue;
        };
        let columns: Vec<&str> = spec.columns.iter().map(|column| &**column).collect();
        for row in rows.list(problems) {
            if let Value::Object(given) = row.to_json() {
                for name in given.keys().filter(|name| !columns.contains(&name.as_str())) {
                    let what = format!("table `{table}` declares no column `{name}`");
                    problems.add(&row.at, what, suggestion(name, &columns, "one of"));
                }
                step.changes.push((table.clone(), given, delete));
            } else {
                problems.add(&row.at, "a row is a map of columns", "{ id: 1, name: x }");
            }
        }
    }
}

fn read_expected(node: &Node, problems: &mut Problems) -> Vec<Expected> {
    let items = node.list(problems);
    let read_one = |node: &Node| {
        let mut fields = node.fields(problems);
        let event = fields.string("event", "customer.v1", problems)?;
        let id = fields.string("id", "ERP-P-8", problems)?;
        let op = fields.optional("op").map(|node| node.to_json());
        let data = fields.optional("data").map(|node| node.to_json());
        let held = fields.optional("held").and_then(|node| node.string(problems));
        fields.finish(problems);
        let mut shown = Map::from_iter([("event".to_owned(), event.into()), ("id".to_owned(), id.into())]);
        shown.extend(op.map(|op| ("op".to_owned(), op)));
        shown.extend(data.map(|data| ("data".to_owned(), data)));
        Some(Expected { at: node.at.clone(), shown: Value::Object(shown), held })
    };
    items.iter().filter_map(read_one).collect()
}

fn read_asked(node: &Node, problems: &mut Problems) -> Option<Asked> {
    let mut fields = node.fields(problems);
    let system = fields.string("system", "stripe", problems)?;
    let request = fields.string("request", "POST /v1/customers", problems)?;
    let body = fields.optional("body").map(|node| node.to_json());
    fields.finish(problems);
    let mut shown =
        Map::from_iter([("system".to_owned(), system.into()), ("request".to_owned(), request.into())]);
    shown.extend(body.map(|body| ("body".to_owned(), body)));
    Some(Asked { at: node.at.clone(), shown: Value::Object(shown) })
}

impl Example {
    /// Tries the mapping out; gives what differs, or the table that is not mapped.
    pub fn run(
        &self,
        mapping: &SourceMapping,
        source: &str,
        requests: Requests<'_>,
    ) -> Result<Vec<Failure>, String> {
        let mut store = Store::new(mapping, source);
        let mut failures = Vec::new();
        for step in std::iter::once(&self.first).chain(&self.steps) {
            let mut changes = Vec::with_capacity(step.changes.len());
            for (table, columns, delete) in &step.changes {
                let change = store.change(table, columns, *delete);
                changes.push(change.ok_or_else(|| format!("the mapping reads no table `{table}`"))?);
            }
            let transaction = store.transaction(changes);
            let mut emitted = store.commit(&transaction);
            emitted.retain(|emitted| self.only.is_empty() || self.only.contains(&emitted.event.event_type));
            // What stands at first matters to the requests of what follows.
            let made = emitted.iter().flat_map(&mut *requests).collect();
            if step.expect.is_some() {
                compare(&self.path, step, &emitted, made, &mut failures);
            }
        }
        Ok(failures)
    }
}

fn compare(path: &Path, step: &Step, emitted: &[Emitted], made: Vec<Value>, failures: &mut Vec<Failure>) {
    let expect = step.expect.as_deref().unwrap_or_default();
    let whole = step.at.clone().unwrap_or_else(|| At::file(path));
    let place = |index: usize| expect.get(index).or(expect.last()).map(|expected| expected.at.clone());
    for index in 0..expect.len().max(emitted.len()) {
        let (expected, found) = (expect.get(index), emitted.get(index));
        let wanted = expected.map(|expected| expected.shown.clone());
        let shown = found.map(|found| shown(found, wanted.as_ref()));
        let held = expected.and_then(|expected| expected.held.as_deref());
        let fault = found.and_then(|found| found.fault.as_deref());
        let as_held = match (held, fault) {
            (None, None) => true,
            (Some(held), Some(fault)) => fault.contains(held),
            _ => false,
        };
        if wanted != shown || !as_held {
            failures.push(Failure {
                at: place(index).unwrap_or_else(|| whole.clone()),
                expected: printed(wanted.as_ref(), held),
                found: printed(shown.as_ref(), fault),
            });
        }
    }
    if let Some(asked) = &step.requests {
        for index in 0..asked.len().max(made.len()) {
            let (wanted, found) = (asked.get(index), made.get(index));
            let found = found.map(|found| as_given(found, wanted.map(|wanted| &wanted.shown)));
            if wanted.map(|wanted| &wanted.shown) != found.as_ref() {
                let at = wanted.or(asked.last()).map_or_else(|| whole.clone(), |asked| asked.at.clone());
                let expected = printed(wanted.map(|wanted| &wanted.shown), None);
                failures.push(Failure { at, expected, found: printed(found.as_ref(), None) });
            }
        }
    }
}

/// An event with the members that the example names.
fn shown(emitted: &Emitted, wanted: Option<&Value>) -> Value {
    let event = &emitted.event;
    let mut shown = Map::from_iter([
        ("event".to_owned(), Value::from(event.event_type.as_str())),
        ("id".to_owned(), Value::from(event.id.as_str())),
    ]);
    let names = |name: &str| wanted.is_none_or(|wanted| wanted.get(name).is_some());
    if names("op") || event.operation == Operation::Delete {
        shown.insert("op".into(), event.operation.as_str().into());
    }
    if names("data") {
        let wanted = wanted.and_then(|wanted| wanted.get("data"));
        shown.insert("data".into(), as_given(&event.data, wanted));
    }
    Value::Object(shown)
}

/// Of objects only the members that are given, at any depth.
fn as_given(found: &Value, given: Option<&Value>) -> Value {
    match (found, given) {
        (Value::Object(found), Some(Value::Object(given))) => {
            let member = |(name, given): (&String, &Value)| {
                found.get(name).map(|found| (name.clone(), as_given(found, Some(given))))
            };
            Value::Object(given.iter().filter_map(member).collect())
        }
        (Value::Array(found), Some(Value::Array(given))) => {
            let item = |(index, found): (usize, &Value)| as_given(found, given.get(index));
            Value::Array(found.iter().enumerate().map(item).collect())
        }
        (found, _) => found.clone(),
    }
}

fn printed(value: Option<&Value>, held: Option<&str>) -> String {
    let text = value.map_or_else(|| "nothing".to_owned(), |value| format!("{value:#}"));
    held.map_or_else(|| text.clone(), |held| format!("{text}\nheld back: {held}"))
}
