//! Rows of other tables that an event needs: joined to the root row, or to a joined row, to any depth that a document has.
//!
//! ```yaml
//! joins:
//!   currency: { table: res_currency, by: currency_id }        # the one row whose key stands in our column
//!   lines:
//!     table: account_move_line
//!     children: move_id                                       # all rows that hold our key in their column
//!     order: [sequence, id]
//!     joins:
//!       product: { table: product_product, by: product_id }   # line.product.default_code
//! ```

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::scope::{Joined, JoinedRow};
use super::shape::{Shape, suggestion};
use super::{TableSpec, Tables};
use crate::config::node::{At, Node, Problems};
use crate::event::Row;

/// Deeper joins would need more rounds of loading than a slice may take.
const MAX_DEPTH: usize = 6;

/// How rows of another table belong to a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JoinKind {
    /// The one row whose key stands in this column of ours.
    By(Arc<str>),
    /// All rows that hold our key in this column of theirs.
    Children(Arc<str>),
}

/// Rows of another table.
#[derive(Debug, Clone)]
pub struct Join {
    /// Name in expressions.
    pub alias: Arc<str>,
    /// Table.
    pub table: Arc<str>,
    /// How they belong.
    pub kind: JoinKind,
    /// Columns that children are sorted by; their key comes last.
    pub order: Vec<Arc<str>>,
    /// Rows joined to these.
    pub joins: Vec<Join>,
    /// A row of nulls, for a column that points nowhere.
    nulls: Arc<JoinedRow>,
}

impl Join {
    /// What stands for a row that is not there: each of its columns is null, it has no children.
    #[must_use]
    pub fn nothing(&self) -> Joined {
        match self.kind {
            JoinKind::By(_) => Joined::One(self.nulls.clone()),
            JoinKind::Children(_) => Joined::Many(Vec::new()),
        }
    }

    /// The order of two children.
    #[must_use]
    pub fn compare(&self, (key_a, a): &(String, Arc<Row>), (key_b, b): &(String, Arc<Row>)) -> Ordering {
        let by_columns = self.order.iter().map(|column| compare_values(a.get(column), b.get(column)));
        by_columns.fold(Ordering::Equal, Ordering::then).then_with(|| compare_keys(key_a, key_b))
    }
}

/// Numbers by size, texts by their bytes, nulls last.
fn compare_values(a: Option<&Value>, b: Option<&Value>) -> Ordering {
    match (a, b) {
        (Some(Value::Number(a)), Some(Value::Number(b))) => match (a.as_i64(), b.as_i64()) {
            (Some(a), Some(b)) => a.cmp(&b),
            _ => a.as_f64().partial_cmp(&b.as_f64()).unwrap_or(Ordering::Equal),
        },
        (Some(Value::String(a)), Some(Value::String(b))) => compare_keys(a, b),
        (Some(Value::Null) | None, Some(Value::Null) | None) => Ordering::Equal,
        (Some(Value::Null) | None, _) => Ordering::Greater,
        (_, Some(Value::Null) | None) => Ordering::Less,
        _ => Ordering::Equal,
    }
}

/// Whole numbers by size, anything else by its bytes.
fn compare_keys(a: &str, b: &str) -> Ordering {
    match (a.parse::<i64>(), b.parse::<i64>()) {
        (Ok(a), Ok(b)) => a.cmp(&b),
        _ => a.cmp(b),
    }
}

/// Joins with the shape that expressions see.
pub type Read = (Vec<Join>, BTreeMap<String, Shape>);

/// Reads the joins of a row of `parent`.
pub fn read(
    entries: &[(String, Node)],
    parent: &TableSpec,
    tables: &Tables<'_>,
    depth: usize,
    problems: &mut Problems,
) -> Read {
    let mut read = Read::default();
    for (alias, node) in entries {
        if depth == MAX_DEPTH {
            problems.add(
                &node.at,
                format!("joins go {MAX_DEPTH} levels deep"),
                "join what is needed from a nearer row",
            );
            break;
        }
        let found = read_one(alias, node, parent, tables, depth, problems);
        let (join, shape) = found.map_or((None, Shape::Any), |(join, shape)| (Some(join), shape));
        read.0.extend(join);
        // Of a join that is wrong nothing is known, and nothing more is said where it is used.
        read.1.insert(alias.clone(), shape);
    }
    read
}

fn read_one(
    alias: &str,
    node: &Node,
    parent: &TableSpec,
    tables: &Tables<'_>,
    depth: usize,
    problems: &mut Problems,
) -> Option<(Join, Shape)> {
    let mut fields = node.fields(problems);
    let table = fields.required("table", "res_country", problems);
    let table = table.and_then(|node| tables.find(&node, problems));
    let (by, children) = (fields.optional("by"), fields.optional("children"));
    let order = fields.optional("order").map(|node| (node.at.clone(), node.strings(problems)));
    let nested = fields.optional("joins").map(|node| node.entries(problems)).unwrap_or_default();
    fields.finish(problems);
    if depth > 0 && parent.columns.iter().any(|column| **column == *alias) {
        let what = format!("`{alias}` is also a column of table `{}`", parent.name);
        problems.add(&node.at, what, format!("another name, such as `the_{alias}`"));
    }
    let table = table?;
    let kind = match (by, children) {
        (Some(node), None) => JoinKind::By(column(parent, &node.string(problems)?, &node.at, problems)?),
        (None, Some(node)) => JoinKind::Children(column(table, &node.string(problems)?, &node.at, problems)?),
        _ => {
            problems.add(&node.at, "a join has either `by` or `children`", "by: country_id");
            return None;
        }
    };
    let (at, order) = order.unwrap_or_else(|| (node.at.clone(), Vec::new()));
    let order = order.iter().filter_map(|name| column(table, name, &at, problems)).collect();
    let (joins, shapes) = read(&nested, table, tables, depth + 1, problems);
    let nulls = JoinedRow {
        row: Arc::new(Row::new(table.columns.as_slice().into(), Vec::new())),
        joins: joins.iter().map(|join| (join.alias.clone(), join.nothing())).collect(),
    };
    let row = row_shape(table, shapes);
    let shape = if matches!(kind, JoinKind::By(_)) { row } else { Shape::List(Arc::new(row)) };
    let (alias, table, nulls) = (alias.into(), table.name.clone(), Arc::new(nulls));
    Some((Join { alias, table, kind, order, joins, nulls }, shape))
}

/// What expressions see of a row.
#[must_use]
pub fn row_shape(table: &TableSpec, joined: BTreeMap<String, Shape>) -> Shape {
    let columns = table.columns.iter().map(|column| (column.to_string(), Shape::Any));
    Shape::Members(Arc::new(joined.into_iter().chain(columns).collect()))
}

/// The column of that name, or a problem.
pub fn column(table: &TableSpec, name: &str, at: &At, problems: &mut Problems) -> Option<Arc<str>> {
    let found = table.columns.iter().find(|column| &***column == name).cloned();
    if found.is_none() {
        let known: Vec<&str> = table.columns.iter().map(|column| &**column).collect();
        let what = format!("table `{}` declares no column `{name}`", table.name);
        problems.add(at, what, suggestion(name, &known, "one of"));
    }
    found
}
