//! Many objects in one request, each with an outcome of its own: in the answer, or in that of a job that the vendor works off
//! later. Pure.

use std::time::Duration;

use serde_json::{Map, Value};

use super::classify::{Class, OutcomeRule};
use super::file::read_rules;
use super::request::RequestLine;
use crate::bounds::is_id;
use crate::config::node::{Fields, Node, Problems};
use crate::mapping::expression::{EvaluationError, Expression};
use crate::mapping::scope::Scope;
use crate::mapping::shape::open_variables;

/// One way to write many objects of a kind.
#[derive(Debug)]
pub struct Bulk {
    /// Request.
    pub line: RequestLine,
    /// Which objects may go this way, over `known` (the target's id is known), `body`, `released` (unique values, folded, that the
    /// object lets go of) and `event`.
    pub when: Expression,
    /// Sent twice it is the same as sent once.
    pub repeatable: bool,
    /// As many at the most.
    pub at_most: usize,
    /// Fewer go one by one: a job is not worth it.
    pub at_least: usize,
    /// Member of the body that holds the list.
    pub list: String,
    /// One of the list, over `body`.
    pub item: Expression,
    /// Member of an item that is the target's own id, as a number where it is one.
    pub id_as: Option<String>,
    /// Outcomes by object, from the answer; from the job when `None`.
    pub results: Option<Expression>,
    /// How to read them.
    pub result: ResultReader,
}

/// How the outcome of one object of many is read.
#[derive(Debug)]
pub struct ResultReader {
    /// Which object it is, counted from 0; its place in the list when `None`.
    pub index: Option<Expression>,
    /// The target's own id of it.
    pub id: Expression,
    /// Our id as the result carries it; null where it does not.
    pub ours: Option<Expression>,
    /// What it means, over `result`, first match wins; what none matches is uncertain.
    pub outcomes: Vec<OutcomeRule>,
}

/// Jobs that a vendor works off after it has answered.
#[derive(Debug)]
pub struct Jobs {
    /// Number of the job, over `answer`.
    pub id: Expression,
    /// Asks for several at once, over `jobs` (their numbers with commas).
    pub line: RequestLine,
    /// The jobs, a list, over `answer`.
    pub list: Expression,
    /// Number of one, over `job`.
    pub key: Expression,
    /// It has ended, over `job`.
    pub done: Expression,
    /// Outcomes by object of one, over `job`.
    pub results: Expression,
    /// How often it is asked at first; less and less often for long ones.
    pub every: Duration,
    /// Jobs at once.
    pub at_once: usize,
    /// A job that says nothing for so long is given up: its objects are written one by one.
    pub patience: Duration,
}

/// What one of many came to.
#[derive(Debug, Clone, PartialEq)]
pub struct ItemOutcome<'a> {
    /// Class.
    pub class: Class,
    /// For a conflict: the body path of the value.
    pub field: Option<&'a str>,
    /// The target's own id.
    pub external_id: Option<String>,
    /// Our id as it carries it.
    pub ours: Option<String>,
    /// What the target said.
    pub result: Value,
}

impl Bulk {
    /// One of the list.
    pub fn item(&self, body: &Value, external_id: Option<&str>) -> Result<Value, EvaluationError> {
        let mut item = self.item.evaluate(&Scope::new([("body", body)]))?;
        if let (Some(key), Some(id), Value::Object(map)) = (&self.id_as, external_id, &mut item) {
            map.insert(key.clone(), id.parse::<u64>().map_or_else(|_| Value::from(id), Value::from));
        }
        Ok(item)
    }

    /// The body of the request.
    #[must_use]
    pub fn body(&self, items: Vec<Value>) -> Value {
        Value::Object(Map::from_iter([(self.list.clone(), Value::Array(items))]))
    }
}

impl ResultReader {
    /// Outcomes of `count` objects; `None` where nothing is said of one.
    #[must_use]
    pub fn read(&self, results: &[Value], count: usize) -> Vec<Option<ItemOutcome<'_>>> {
        let mut outcomes: Vec<Option<ItemOutcome<'_>>> = (0..count).map(|_| None).collect();
        let mut told = vec![0_usize; count];
        for (place, result) in results.iter().enumerate() {
            let scope = Scope::new([("result", result)]);
            let index = match &self.index {
                Some(index) => {
                    index.evaluate(&scope).ok().and_then(|index| usize::try_from(index.as_u64()?).ok())
                }
                None => Some(place),
            };
            let Some(index) = index else { continue };
            let Some(slot) = outcomes.get_mut(index) else { continue };
            told.iter_mut().skip(index).take(1).for_each(|told| *told += 1);
            let rule = self.outcomes.iter().find(|rule| rule.when.holds(&scope).unwrap_or(false));
            let external_id = match self.id.evaluate(&scope) {
                Ok(Value::String(id)) if is_id(&id) => Some(id),
                Ok(Value::Number(id)) => Some(id.to_string()),
                _ => None,
            };
            let ours = self.ours.as_ref().and_then(|ours| match ours.evaluate(&scope) {
                Ok(Value::String(ours)) => Some(ours),
                _ => None,
            });
            *slot = Some(ItemOutcome {
                class: rule.map_or(Class::Uncertain, |rule| rule.class),
                field: rule.and_then(|rule| rule.field.as_deref()),
                external_id,
                ours,
                result: result.clone(),
            });
        }
        // Of what is told twice, and differently, nobody knows which is true.
        for (slot, _) in outcomes.iter_mut().zip(told).filter(|(_, told)| *told > 1) {
            *slot = None;
        }
        outcomes
    }
}

/// Reads the ways of one object.
pub fn read_bulk(node: &Node, problems: &mut Problems) -> Vec<Bulk> {
    node.list(problems).iter().filter_map(|item| read_one(item, problems)).collect()
}

fn read_one(node: &Node, problems: &mut Problems) -> Option<Bulk> {
    let mut fields = node.fields(problems);
    let line = fields.required("request", "POST /api/v2/users/create_or_update_many", problems);
    let line = line.and_then(|node| RequestLine::compile(&node, &open_variables(&[]), problems));
    let when = compiled(&mut fields, "when", "\"known\"", &["known", "body", "released", "event"], problems);
    let repeatable = fields.optional("repeatable").and_then(|node| node.boolean(problems)).unwrap_or(false);
    let at_most = fields.required("at_most", "100", problems).and_then(|node| node.whole(2, problems));
    let at_least = fields.optional("at_least").and_then(|node| node.whole(2, problems)).unwrap_or(2);
    let list = fields.string("list", "users", problems);
    let item = compiled(&mut fields, "item", "body.user", &["body"], problems);
    let id_as = fields.optional("id_as").and_then(|node| node.string(problems));
    let results = fields.optional("results");
    let results = results.and_then(|node| Expression::compile(&node, &open_variables(&["answer"]), problems));
    let result = fields.required("result", "{ id: result.id, outcomes: […] }", problems);
    let result = result.and_then(|node| read_result(&node, problems));
    fields.finish(problems);
    let size = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
    Some(Bulk {
        line: line?,
        when: when?,
        repeatable,
        at_most: size(at_most?),
        at_least: size(at_least),
        list: list?,
        item: item?,
        id_as,
        results,
        result: result?,
    })
}

fn read_result(node: &Node, problems: &mut Problems) -> Option<ResultReader> {
    let mut fields = node.fields(problems);
    let index = fields.optional("index");
    let index = index.and_then(|node| Expression::compile(&node, &open_variables(&["result"]), problems));
    let id = compiled(&mut fields, "id", "result.id", &["result"], problems);
    let ours = fields.optional("ours");
    let ours = ours.and_then(|node| Expression::compile(&node, &open_variables(&["result"]), problems));
    let outcomes = fields.required("outcomes", "a list of rules", problems);
    let outcomes = outcomes.map(|node| read_rules(&node, &["result"], problems)).unwrap_or_default();
    fields.finish(problems);
    Some(ResultReader { index, id: id?, ours, outcomes })
}

/// Reads `jobs`.
pub fn read_jobs(node: &Node, problems: &mut Problems) -> Option<Jobs> {
    let mut fields = node.fields(problems);
    let id = compiled(&mut fields, "id", "answer.job_status.id", &["answer"], problems);
    let line = fields.required("request", "GET /api/v2/job_statuses/show_many?ids={jobs}", problems);
    let line = line.and_then(|node| RequestLine::compile(&node, &open_variables(&["jobs"]), problems));
    let list = compiled(&mut fields, "list", "answer.job_statuses", &["answer"], problems);
    let key = compiled(&mut fields, "key", "job.id", &["job"], problems);
    let done = compiled(&mut fields, "done", "job.status == 'completed'", &["job"], problems);
    let results = compiled(&mut fields, "results", "job.results", &["job"], problems);
    let every = fields.optional("every_s").and_then(|node| node.whole(1, problems)).unwrap_or(1);
    let at_once = fields.required("at_once", "30", problems).and_then(|node| node.whole(1, problems));
    let patience = fields.optional("patience_s").and_then(|node| node.whole(1, problems)).unwrap_or(3_600);
    fields.finish(problems);
    Some(Jobs {
        id: id?,
        line: line?,
        list: list?,
        key: key?,
        done: done?,
        results: results?,
        every: Duration::from_secs(every),
        at_once: usize::try_from(at_once?).unwrap_or(usize::MAX),
        patience: Duration::from_secs(patience),
    })
}

fn compiled(
    fields: &mut Fields,
    key: &'static str,
    example: &str,
    variables: &[&str],
    problems: &mut Problems,
) -> Option<Expression> {
    let node = fields.required(key, example, problems)?;
    Expression::compile(&node, &open_variables(variables), problems)
}
