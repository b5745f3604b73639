//! How rows of a table become events of one type.

use std::sync::Arc;

use serde_json::Value;

use super::Constants;
use super::expression::{EvaluationError, Expression};
use super::join::Join;
use super::personal::Policy;
use super::schema::Schema;
use super::scope::{Joined, Scope, Variable};
use super::template::Template;
use crate::event::Row;

/// Whether only the newest event of an object counts, or each one (INV-6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// May be coalesced to the newest.
    State,
    /// Each must arrive.
    Fact,
}

/// See the module's text.
#[derive(Debug)]
pub struct EventSpec {
    /// Type with version: `customer.v1`.
    pub event_type: String,
    /// Type without version: `customer`.
    pub object: String,
    /// Index of the file it stands in.
    pub part: usize,
    /// Root table.
    pub table: Arc<str>,
    /// State or fact.
    pub kind: EventKind,
    /// The event is made when a root row goes, and tells of the row as it was.
    pub on_delete: bool,
    /// Rows of other tables.
    pub joins: Vec<Join>,
    /// Canonical id of the object.
    pub id: Expression,
    /// The company it belongs to, null for all.
    pub company: Option<Expression>,
    /// Values that several expressions use, in their order.
    pub lets: Vec<(String, Template)>,
    /// Which rows are such an object.
    pub when: Expression,
    /// `when` and `company` need nothing but the row itself.
    pub early: bool,
    /// The data.
    pub data: Template,
    /// What the data must satisfy.
    pub schema: Schema,
    /// Fields that the source knows anything of; all when `None`.
    pub says: Option<Vec<String>>,
    /// What of its data is personal.
    pub personal: Policy,
}

impl EventSpec {
    /// The canonical id of the object behind `row`.
    pub fn canonical_id(&self, constants: &Constants, row: &Row) -> Result<String, EvaluationError> {
        let own = [("row", Variable::Row(row))];
        match self.id.evaluate(&Scope::over(own.into_iter().chain(constants.variables())))? {
            Value::String(id) if !id.is_empty() => Ok(id),
            _ => Err(EvaluationError { text: "id".into(), reason: "the canonical id is not a text".into() }),
        }
    }

    /// False when `row` alone shows that it is no such object; an error is left to [`EventSpec::evaluate`].
    #[must_use]
    pub fn may_be(&self, constants: &Constants, row: &Row) -> bool {
        if !self.early {
            return true;
        }
        let own = [("row", Variable::Row(row))];
        let scope = Scope::over(own.into_iter().chain(constants.variables()));
        self.belongs(constants, &scope).unwrap_or(true)
    }

    fn belongs(&self, constants: &Constants, scope: &Scope<'_>) -> Result<bool, EvaluationError> {
        let wanted = match &self.company {
            Some(company) if !constants.companies.is_empty() => match company.evaluate(scope)? {
                Value::Null => true,
                company => company.as_i64().is_some_and(|company| constants.companies.contains(&company)),
            },
            _ => true,
        };
        Ok(wanted && self.when.holds(scope)?)
    }

    /// The data of the object, `None` when the row is not such an object.
    pub fn evaluate(
        &self,
        constants: &Constants,
        row: &Row,
        joined: &[(Arc<str>, Joined)],
    ) -> Result<Option<Value>, EvaluationError> {
        let own = [("row", Variable::Row(row))].into_iter().chain(constants.variables());
        let joined = joined.iter().map(|(alias, joined)| (&**alias, Variable::of(joined)));
        self.with_values(constants, &Scope::over(own.chain(joined)), &self.lets)
    }

    fn with_values(
        &self,
        constants: &Constants,
        scope: &Scope<'_>,
        lets: &[(String, Template)],
    ) -> Result<Option<Value>, EvaluationError> {
        if let Some(((name, template), rest)) = lets.split_first() {
            let value = template.render(scope)?;
            return self.with_values(constants, &Scope::with(scope, name, Variable::Value(&value)), rest);
        }
        if !self.belongs(constants, scope)? {
            return Ok(None);
        }
        self.data.render(scope).map(Some)
    }
}
