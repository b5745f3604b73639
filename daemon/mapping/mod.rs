//! Mapping files: which tables are read, which canonical events their rows make, where events are routed.
//!
//! Pure: no sockets, no SQL, no clock. What is wrong in a file is found at load, all of it at once (INV-11).

mod decimal;
pub mod event;
pub mod expression;
pub mod file;
pub mod function;
mod html;
pub mod join;

pub mod ownership;
pub mod personal;
pub mod route;
pub mod schema;
pub mod scope;
pub mod shape;
mod simple;
pub mod template;
pub mod upcast;

use std::sync::Arc;

use serde_json::Value;

pub use event::{EventKind, EventSpec};
pub use join::{Join, JoinKind};
pub use ownership::Ownership;
pub use personal::{DigestKey, Policy};
pub use scope::{Joined, JoinedRow};

use crate::config::node::{Node, Problems};
use shape::suggestion;

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
    /// Column that says who wrote a row, where the table has it. It is no part of the row: another author alone is no change.
    pub author: Option<Arc<str>>,
    /// What of it is personal.
    pub personal: Policy,
    /// Key of digests that stand for values.
    pub digest_key: Option<DigestKey>,
    /// How large its values may be.
    pub bounds: ValueBounds,
}

/// How large the values of a table may be; larger ones are left out of their rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValueBounds {
    /// Bytes of a value.
    pub value_bytes: usize,
    /// Columns by which rows are found: their values are ids.
    pub ids: Vec<Arc<str>>,
}

impl Default for ValueBounds {
    fn default() -> Self {
        Self { value_bytes: crate::bounds::VALUE_BYTES, ids: Vec::new() }
    }
}

impl TableSpec {
    /// Bytes that a value of `column` has at the most.
    #[must_use]
    pub fn most_bytes(&self, column: &Arc<str>) -> usize {
        let is_id = self.key.contains(column) || self.bounds.ids.contains(column);
        if is_id { crate::bounds::ID_BYTES } else { self.bounds.value_bytes }
    }

    /// Takes over the columns of another declaration of the same table.
    fn merge(&mut self, other: &Self) {
        self.columns.extend(other.columns.iter().cloned());
        self.columns.sort_unstable();
        self.columns.dedup();
        self.author = self.author.take().or_else(|| other.author.clone());
        self.personal.merge(&other.personal);
    }
}

/// Tables that the events of a file may name.
#[derive(Debug)]
pub struct Tables<'a>(pub &'a [TableSpec]);

impl<'a> Tables<'a> {
    /// The table that `node` names, or a problem.
    pub fn find(&self, node: &Node, problems: &mut Problems) -> Option<&'a TableSpec> {
        let name = node.string(problems)?;
        let found = self.0.iter().find(|table| *table.name == *name);
        if found.is_none() {
            let known: Vec<&str> = self.0.iter().map(|table| &*table.name).collect();
            let near = suggestion(&name, &known, "declare it under `tables`; declared are");
            problems.add(&node.at, format!("table `{name}` is not declared"), near);
        }
        found
    }
}

/// What of the settings of a source its mapping may refer to.
#[derive(Debug, Clone, PartialEq)]
pub struct Constants {
    /// `source`: the source's name in upper case, with which canonical ids begin.
    pub source: Value,
    /// `language`: in which translated texts are wanted.
    pub language: Value,
    /// `company`: whose values are taken where a row belongs to no company.
    pub company: Value,
    /// `settings`: what is set for the target that is the same system.
    pub settings: Value,
    /// Companies whose documents are wanted; all when empty.
    pub companies: Vec<i64>,
}

impl Constants {
    /// For the source of this name: Odoo's first company, in English.
    #[must_use]
    pub fn of(source: &str) -> Self {
        Self {
            source: Value::String(source.to_uppercase()),
            language: Value::from("en_US"),
            company: Value::from(1),
            settings: Value::Null,
            companies: Vec::new(),
        }
    }

    fn variables(&self) -> [(&'static str, scope::Variable<'_>); 4] {
        [
            ("source", &self.source),
            ("language", &self.language),
            ("company", &self.company),
            ("settings", &self.settings),
        ]
        .map(|(name, value)| (name, scope::Variable::Value(value)))
    }
}

/// One file below `mappings/sources/NAME/`.
#[derive(Debug, Clone)]
pub struct Part {
    /// File name.
    pub file: String,
    /// The file counts only where the source has these tables with these columns.
    pub only_with: Vec<TableSpec>,
    /// Tables it declares.
    pub tables: Vec<TableSpec>,
}

/// All mapping files of one source.
#[derive(Debug, Clone)]
pub struct SourceMapping {
    /// Directory name: `odoo`.
    pub name: String,
    /// SHA-256 over the files, recorded with each event.
    pub sha256: String,
    /// Files.
    pub parts: Vec<Part>,
    /// Tables by order of declaration.
    pub tables: Vec<TableSpec>,
    /// Events by order of declaration, which is also their order within a transaction.
    pub events: Vec<Arc<EventSpec>>,
    /// What expressions may refer to.
    pub constants: Constants,
    /// Whose word counts for which field.
    pub ownership: Ownership,
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

    /// The same with only those files for which `counts` holds.
    #[must_use]
    pub fn narrowed(&self, counts: impl Fn(&Part) -> bool) -> Self {
        let counting: Vec<bool> = self.parts.iter().map(counts).collect();
        let parts = self.parts.iter().zip(&counting).filter(|(_, counts)| **counts).map(|(part, _)| part);
        let events = self.events.iter().filter(|event| counting.get(event.part).copied().unwrap_or(false));
        Self { tables: merged(parts), events: events.cloned().collect(), ..self.clone() }
    }

    /// Bounds the values of its tables; what rows are found by is bounded as an id is.
    #[must_use]
    pub fn bounded(mut self, value_bytes: usize) -> Self {
        let lookups = self.lookup_columns();
        let of_parts = self.parts.iter_mut().flat_map(|part| &mut part.tables);
        for table in of_parts.chain(&mut self.tables) {
            let ids = lookups.iter().filter(|(of, _)| *of == table.name).map(|(_, column)| column.clone());
            table.bounds = ValueBounds { value_bytes, ids: ids.collect() };
        }
        self
    }

    /// Columns by whose value images are looked up: (table, column), each once.
    #[must_use]
    pub fn lookup_columns(&self) -> Vec<(Arc<str>, Arc<str>)> {
        let mut found = Vec::new();
        for event in &self.events {
            lookups(&event.table, &event.joins, &mut found);
        }
        found
    }
}

fn lookups(parent: &Arc<str>, joins: &[Join], found: &mut Vec<(Arc<str>, Arc<str>)>) {
    for join in joins {
        let pair = match &join.kind {
            JoinKind::By(column) => (parent.clone(), column.clone()),
            JoinKind::Children(column) => (join.table.clone(), column.clone()),
        };
        if !found.contains(&pair) {
            found.push(pair);
        }
        lookups(&join.table, &join.joins, found);
    }
}

/// The tables of several files, each once with all its columns.
fn merged<'a>(parts: impl Iterator<Item = &'a Part>) -> Vec<TableSpec> {
    let mut tables: Vec<TableSpec> = Vec::new();
    for table in parts.flat_map(|part| &part.tables) {
        match tables.iter_mut().find(|known| known.name == table.name && known.schema == table.schema) {
            Some(known) => known.merge(table),
            None => tables.push(table.clone()),
        }
    }
    tables
}
