//! What an expression is evaluated over: named values, rows of the source, rows with their joined rows.
//!
//! Nothing is copied for plain references. The CEL interpreter's own form of a variable is made when an expression first
//! needs it, and then kept for all others of the same scope; an inner scope (one row of many) adds to its outer one.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use cel::common::types::{CelBool, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString};
use cel::common::value::{CowVal, Val};
use cel::context::VariableResolver;
use serde_json::Value;

use crate::event::Row;

/// A row of a join, with what is joined to it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct JoinedRow {
    /// Its columns.
    pub row: Arc<Row>,
    /// Joined rows by alias.
    pub joins: Vec<(Arc<str>, Joined)>,
}

/// What a join found.
#[derive(Debug, Clone, PartialEq)]
pub enum Joined {
    /// The row of a `by` join; a row of nulls where the column points nowhere.
    One(Arc<JoinedRow>),
    /// The rows of a `children` join.
    Many(Vec<JoinedRow>),
}

/// A variable: JSON, or rows of the source as they are kept.
#[derive(Debug, Clone, Copy)]
pub enum Variable<'a> {
    /// Any value.
    Value(&'a Value),
    /// One row.
    Row(&'a Row),
    /// One row, with what is joined to it.
    Joined(&'a JoinedRow),
    /// Many rows.
    Many(&'a [JoinedRow]),
}

impl<'a> Variable<'a> {
    /// What a join found, as a variable.
    #[must_use]
    pub fn of(joined: &'a Joined) -> Self {
        match joined {
            Joined::One(row) => Self::Joined(row),
            Joined::Many(rows) => Self::Many(rows),
        }
    }

    /// A column, a joined row, or a member of an object; `None` when there is none of that name.
    #[must_use]
    pub fn member(self, name: &str) -> Option<Self> {
        match self {
            Self::Value(value) => value.get(name).map(Self::Value),
            Self::Row(row) => row.get(name).map(Self::Value),
            Self::Joined(joined) => match joined.row.get(name) {
                Some(value) => Some(Self::Value(value)),
                None => {
                    joined.joins.iter().find(|(alias, _)| &**alias == name).map(|(_, rows)| Self::of(rows))
                }
            },
            Self::Many(_) => None,
        }
    }

    fn to_val(self) -> Box<dyn Val> {
        match self {
            Self::Value(value) => to_val(value),
            Self::Row(row) => map_to_val(row.iter().map(|(name, value)| (&**name, to_val(value)))),
            Self::Joined(joined) => {
                let columns = joined.row.iter().map(|(name, value)| (&**name, to_val(value)));
                let joins = joined.joins.iter().map(|(alias, rows)| (&**alias, Self::of(rows).to_val()));
                map_to_val(joins.chain(columns))
            }
            Self::Many(rows) => {
                let items: Vec<Box<dyn Val>> = rows.iter().map(|row| Self::Joined(row).to_val()).collect();
                Box::new(CelList::from(items))
            }
        }
    }
}

/// A JSON value in the interpreter's form.
#[must_use]
pub fn to_val(value: &Value) -> Box<dyn Val> {
    match value {
        Value::Null => Box::new(CelNull),
        Value::Bool(value) => Box::new(CelBool::from(*value)),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => Box::new(CelInt::from(whole)),
            (None, Some(real)) => Box::new(CelDouble::from(real)),
            (None, None) => Box::new(CelNull),
        },
        Value::String(text) => Box::new(CelString::from(text.clone())),
        Value::Array(items) => Box::new(CelList::from(items.iter().map(to_val).collect::<Vec<_>>())),
        Value::Object(map) => map_to_val(map.iter().map(|(key, value)| (key.as_str(), to_val(value)))),
    }
}

fn map_to_val<'a>(members: impl Iterator<Item = (&'a str, Box<dyn Val>)>) -> Box<dyn Val> {
    let entries: HashMap<CelMapKey, Box<dyn Val>> =
        members.map(|(key, value)| (CelMapKey::from(key.to_owned()), value)).collect();
    Box::new(CelMap::from(entries))
}

#[derive(Debug)]
struct Binding<'a> {
    name: &'a str,
    variable: Variable<'a>,
    in_cel: OnceLock<Box<dyn Val>>,
}

/// Values for one evaluation, or for several over the same values.
#[derive(Debug, Default)]
pub struct Scope<'a> {
    outer: Option<&'a Scope<'a>>,
    bindings: Vec<Binding<'a>>,
}

impl<'a> Scope<'a> {
    /// A scope with these values.
    #[must_use]
    pub fn new(values: impl IntoIterator<Item = (&'a str, &'a Value)>) -> Self {
        Self::over(values.into_iter().map(|(name, value)| (name, Variable::Value(value))))
    }

    /// A scope with these variables, rows among them.
    #[must_use]
    pub fn over(variables: impl IntoIterator<Item = (&'a str, Variable<'a>)>) -> Self {
        let bind = |(name, variable)| Binding { name, variable, in_cel: OnceLock::new() };
        Self { outer: None, bindings: variables.into_iter().map(bind).collect() }
    }

    /// A scope with one more variable.
    #[must_use]
    pub fn with(outer: &'a Scope<'a>, name: &'a str, variable: Variable<'a>) -> Self {
        let binding = Binding { name, variable, in_cel: OnceLock::new() };
        Self { outer: Some(outer), bindings: vec![binding] }
    }

    /// The variable of this name, the innermost one.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<Variable<'a>> {
        self.binding(name).map(|binding| binding.variable)
    }

    fn binding(&self, name: &str) -> Option<&Binding<'a>> {
        let own = self.bindings.iter().find(|binding| binding.name == name);
        own.or_else(|| self.outer?.binding(name))
    }
}

impl VariableResolver for Scope<'_> {
    fn resolve<'b>(&'b self, variable: &str) -> Option<CowVal<'b, 'b>> {
        let binding = self.binding(variable)?;
        let val = binding.in_cel.get_or_init(|| binding.variable.to_val());
        Some(CowVal::Borrowed(&**val))
    }
}
