//! Mapping files: which tables are read, which canonical events their rows make, where events are routed.
//!
//! Pure: no sockets, no SQL, no clock. What is wrong in a file is found at load, all of it at once (INV-11).

pub mod expression;
pub mod file;
pub mod route;
pub mod schema;
mod simple;
pub mod template;

use std::sync::Arc;

use serde_json::Value;

use crate::event::Row;
use expression::{EvaluationError, Expression, Scope, Variable};
use schema::Schema;
use template::Template;

/// A table the mapping reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableSpec {
    /// Schema at the source.
    pub schema: Arc<str>,
    /// Table name at the source; also its name in mappings and images.
    pub name: Arc<str>,
    /// Columns of the primary key.
    pub key: Vec<Arc<str>>,
    /// Columns that are kept, in the order of their bytes; all others are dropped in the decoder and stored nowhere.
    pub columns: Vec<Arc<str>>,
}

/// How rows of another table belong to the root row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JoinKind {
    /// The one row whose key stands in this column of the root row.
    By(Arc<str>),
    /// All rows that hold the root's key in this column.
    Children(Arc<str>),
    /// For each row of another join (`alias`), the row whose key stands in its `column`.
    Through {
        /// Alias of a `Children` join.
        alias: Arc<str>,
        /// Column of that join's table.
        column: Arc<str>,
    },
}

/// Rows of another table that an event needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Join {
    /// Name in expressions.
    pub alias: Arc<str>,
    /// Table.
    pub table: Arc<str>,
    /// Its columns.
    pub columns: Vec<Arc<str>>,
    /// How they belong.
    pub kind: JoinKind,
}

/// Whether only the newest event of an object counts, or each one (INV-6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// May be coalesced to the newest.
    State,
    /// Each must arrive.
    Fact,
}

/// How rows of a table become events of one type.
#[derive(Debug)]
pub struct EventSpec {
    /// Type with version: `customer.v1`.
    pub event_type: String,
    /// Type without version: `customer`.
    pub object: String,
    /// Root table.
    pub table: Arc<str>,
    /// State or fact.
    pub kind: EventKind,
    /// Rows of other tables.
    pub joins: Vec<Join>,
    /// Canonical id of the object.
    pub id: Expression,
    /// Which rows are such an object.
    pub when: Expression,
    /// The data.
    pub data: Template,
    /// What the data must satisfy.
    pub schema: Schema,
}

impl EventSpec {
    /// The canonical id of the object behind `row`.
    pub fn canonical_id(&self, source: &Value, row: &Row) -> Result<String, EvaluationError> {
        let scope = Scope::over([("row", Variable::Row(row)), ("source", Variable::Value(source))]);
        match self.id.evaluate(&scope)? {
            Value::String(id) if !id.is_empty() => Ok(id),
            _ => Err(EvaluationError { text: "id".into(), reason: "the canonical id is not a text".into() }),
        }
    }

    /// The data of the object, `None` when the row is not such an object.
    pub fn evaluate(
        &self,
        source: &Value,
        row: &Row,
        joined: &[(Arc<str>, Joined)],
    ) -> Result<Option<Value>, EvaluationError> {
        let own = [("row", Variable::Row(row)), ("source", Variable::Value(source))];
        let joined = joined.iter().map(|(alias, joined)| (&**alias, Variable::Joined(joined)));
        let scope = Scope::over(own.into_iter().chain(joined));
        if !self.when.holds(&scope)? {
            return Ok(None);
        }
        self.data.render(&scope).map(Some)
    }
}

/// Rows that a join found.
#[derive(Debug, Clone, PartialEq)]
pub enum Joined {
    /// The row of a `by` join.
    One(Arc<Row>),
    /// The rows of a `children` or `through` join.
    Many(Vec<Arc<Row>>),
}

/// All mapping files of one source.
#[derive(Debug)]
pub struct SourceMapping {
    /// Directory name: `odoo`.
    pub name: String,
    /// SHA-256 over the files, recorded with each event.
    pub sha256: String,
    /// Tables by order of declaration.
    pub tables: Vec<TableSpec>,
    /// Events by order of declaration, which is also their order within a transaction.
    pub events: Vec<EventSpec>,
}

impl SourceMapping {
    /// The table with this name at the source.
    #[must_use]
    pub fn table(&self, schema: &str, name: &str) -> Option<&TableSpec> {
        self.tables.iter().find(|table| &*table.schema == schema && &*table.name == name)
    }

    /// The table with this name in the mapping.
    #[must_use]
    pub fn table_named(&self, name: &str) -> Option<&TableSpec> {
        self.tables.iter().find(|table| &*table.name == name)
    }

    /// Columns by whose value images are looked up: (table, column), each once.
    #[must_use]
    pub fn lookup_columns(&self) -> Vec<(Arc<str>, Arc<str>)> {
        let mut found = Vec::new();
        for event in &self.events {
            for join in &event.joins {
                let wanted = match &join.kind {
                    JoinKind::By(column) => Some((event.table.clone(), column.clone())),
                    JoinKind::Children(column) => Some((join.table.clone(), column.clone())),
                    JoinKind::Through { alias, column } => {
                        event.join(alias).map(|links| (links.table.clone(), column.clone()))
                    }
                };
                if let Some(pair) = wanted
                    && !found.contains(&pair)
                {
                    found.push(pair);
                }
            }
        }
        found
    }
}

impl EventSpec {
    /// The join with this alias.
    #[must_use]
    pub fn join(&self, alias: &str) -> Option<&Join> {
        self.joins.iter().find(|join| &*join.alias == alias)
    }
}
