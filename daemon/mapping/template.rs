//! A JSON shape whose leaves are expressions: the data of an event, the body of a request.
//!
//! ```yaml
//! number: row.name                                  # an expression
//! address: { city: row.city }                       # an object
//! lines:                                            # a list: one item for each row, or each item of a list
//!   each: lines
//!   as: line
//!   when: "line.display_type == 'product'"          # optional
//!   item: { quantity: decimal(line.quantity) }
//! parts: { each: lines, as: line, items: { each: line.parts, item: item.id } }   # lists of each, joined into one
//! tax: { each: lines, as: line, sum: line.tax }     # an aggregate: sum, least, greatest, or count: true
//! plan:                                             # a decision table: the first that holds; null when none does
//!   rules:
//!     - { when: "row.code.startsWith('GOLD')", then: "'gold'" }
//!     - { otherwise: "'standard'" }
//! ```

use serde_json::{Map, Value};

use super::decimal;
use super::expression::{EvaluationError, Expression};
use super::scope::{Scope, Variable};
use super::shape::{Shape, Variables};
use crate::config::node::{Content, Node, Problems};

/// See the module's text.
#[derive(Debug)]
pub enum Template {
    /// A computed value.
    Leaf(Expression),
    /// An object.
    Object(Vec<(String, Template)>),
    /// Items written out one by one.
    List(Vec<Template>),
    /// Something of many rows or items.
    Each(Box<Each>),
    /// What the first rule that holds says.
    Rules(Vec<Rule>),
}

/// Something of many rows or items.
#[derive(Debug)]
pub struct Each {
    list: Expression,
    name: String,
    when: Option<Expression>,
    make: Make,
}

/// What is made of the rows.
#[derive(Debug)]
enum Make {
    Item(Template),
    /// Lists, joined into one.
    Items(Template),
    Count,
    Sum(Expression),
    /// `true`: the greatest.
    Extreme(Expression, bool),
}

/// A line of a decision table.
#[derive(Debug)]
pub struct Rule {
    when: Option<Expression>,
    then: Template,
}

impl Template {
    /// Compiles every leaf below `node`.
    pub fn compile(node: &Node, variables: &Variables, problems: &mut Problems) -> Option<Self> {
        match &node.content {
            Content::Map(entries) if entries.iter().any(|(key, _)| key == "each") => {
                Each::compile(node, variables, problems).map(|each| Self::Each(Box::new(each)))
            }
            Content::Map(entries) if entries.iter().any(|(key, _)| key == "rules") => {
                rules(node, variables, problems)
            }
            Content::Map(entries) => {
                let compiled = entries.iter().filter_map(|(key, child)| {
                    Self::compile(child, variables, problems).map(|template| (key.clone(), template))
                });
                Some(Self::Object(compiled.collect()))
            }
            Content::Scalar(_) => Expression::compile(node, variables, problems).map(Self::Leaf),
            Content::List(items) => Some(Self::List(
                items.iter().filter_map(|item| Self::compile(item, variables, problems)).collect(),
            )),
        }
    }

    /// The shape filled with values.
    pub fn render(&self, scope: &Scope<'_>) -> Result<Value, EvaluationError> {
        match self {
            Self::Leaf(expression) => expression.evaluate(scope),
            Self::Object(entries) => {
                let mut map = Map::new();
                for (key, template) in entries {
                    map.insert(key.clone(), template.render(scope)?);
                }
                Ok(Value::Object(map))
            }
            Self::List(items) => {
                items.iter().map(|item| item.render(scope)).collect::<Result<_, _>>().map(Value::Array)
            }
            Self::Each(each) => each.render(scope),
            Self::Rules(rules) => {
                for rule in rules {
                    if rule.when.as_ref().map_or(Ok(true), |when| when.holds(scope))? {
                        return rule.then.render(scope);
                    }
                }
                Ok(Value::Null)
            }
        }
    }

    /// The same without what reads one of these members of `variable`; `None` when nothing is left.
    pub fn render_without(
        &self,
        scope: &Scope<'_>,
        variable: &str,
        members: &[String],
    ) -> Result<Option<Value>, EvaluationError> {
        if members.is_empty() {
            return self.render(scope).map(Some);
        }
        let Self::Object(entries) = self else {
            let read = self.expressions().into_iter().flat_map(|expression| expression.members_of(variable));
            let reads = read.into_iter().any(|member| members.contains(&member));
            return if reads { Ok(None) } else { self.render(scope).map(Some) };
        };
        let mut map = Map::new();
        for (key, template) in entries {
            if let Some(value) = template.render_without(scope, variable, members)? {
                map.insert(key.clone(), value);
            }
        }
        Ok((!map.is_empty() || entries.is_empty()).then_some(Value::Object(map)))
    }

    /// Every expression in it.
    pub fn expressions(&self) -> Vec<&Expression> {
        match self {
            Self::Leaf(expression) => vec![expression],
            Self::Object(entries) => {
                entries.iter().flat_map(|(_, template)| template.expressions()).collect()
            }
            Self::List(items) => items.iter().flat_map(Self::expressions).collect(),
            Self::Each(each) => each.expressions(),
            Self::Rules(rules) => rules.iter().flat_map(Rule::expressions).collect(),
        }
    }

    /// True when an expression in it names one of `variables`.
    #[must_use]
    pub fn names(&self, variable: &str) -> bool {
        match self {
            Self::Leaf(expression) => expression.names(variable),
            Self::Object(entries) => entries.iter().any(|(_, template)| template.names(variable)),
            Self::List(items) => items.iter().any(|item| item.names(variable)),
            Self::Each(each) => each.names(variable),
            Self::Rules(rules) => rules.iter().any(|rule| {
                rule.then.names(variable) || rule.when.as_ref().is_some_and(|when| when.names(variable))
            }),
        }
    }
}

impl Rule {
    fn expressions(&self) -> Vec<&Expression> {
        self.when.iter().chain(self.then.expressions()).collect()
    }
}

fn rules(node: &Node, variables: &Variables, problems: &mut Problems) -> Option<Template> {
    let mut fields = node.fields(problems);
    let listed = fields.required("rules", "a list of `when` and `then`", problems)?.list(problems);
    fields.finish(problems);
    let mut compiled = Vec::with_capacity(listed.len());
    for (index, item) in listed.iter().enumerate() {
        let mut fields = item.fields(problems);
        let when = fields.optional("when");
        let (then, otherwise) = (fields.optional("then"), fields.optional("otherwise"));
        fields.finish(problems);
        let rule = match (when, then, otherwise) {
            (Some(when), Some(then), None) => {
                Expression::compile(&when, variables, problems).and_then(|when| {
                    Some(Rule { when: Some(when), then: Template::compile(&then, variables, problems)? })
                })
            }
            (None, None, Some(otherwise)) if index + 1 == listed.len() => {
                Template::compile(&otherwise, variables, problems).map(|then| Rule { when: None, then })
            }
            _ => {
                let instead = "{ when: \"row.code == 'A'\", then: \"'a'\" }, and as the last one { otherwise: \"'b'\" }";
                problems.add(
                    &item.at,
                    "a rule has `when` and `then`, or as the last one `otherwise`",
                    instead,
                );
                None
            }
        };
        compiled.extend(rule);
    }
    Some(Template::Rules(compiled))
}

impl Each {
    fn compile(node: &Node, variables: &Variables, problems: &mut Problems) -> Option<Self> {
        let mut fields = node.fields(problems);
        let list = fields.required("each", "lines", problems)?;
        let name =
            fields.optional("as").and_then(|node| node.string(problems)).unwrap_or_else(|| "item".into());
        let when = fields.optional("when");
        let made =
            ["item", "items", "sum", "least", "greatest", "count"].map(|way| (way, fields.optional(way)));
        fields.finish(problems);
        let list = Expression::compile(&list, variables, problems);
        let mut inner = variables.clone();
        let shape = list.as_ref().map_or(Shape::Any, |list| match list.shape(variables) {
            Shape::List(item) => (*item).clone(),
            Shape::Any | Shape::Members(_) => Shape::Any,
        });
        inner.insert(name.clone(), shape);
        let when = when.map(|node| Expression::compile(&node, &inner, problems));
        let mut given = made.into_iter().filter_map(|(way, node)| node.map(|node| (way, node)));
        let (Some((way, made)), None) = (given.next(), given.next()) else {
            let what = "`each` needs exactly one of `item`, `items`, `sum`, `least`, `greatest`, `count`";
            problems.add(&node.at, what, "item: { name: item.name }");
            return None;
        };
        let make = match way {
            "item" => Make::Item(Template::compile(&made, &inner, problems)?),
            "items" => Make::Items(Template::compile(&made, &inner, problems)?),
            "sum" => Make::Sum(Expression::compile(&made, &inner, problems)?),
            "count" => Make::Count,
            _ => Make::Extreme(Expression::compile(&made, &inner, problems)?, way == "greatest"),
        };
        Some(Self { list: list?, name, when: when.map_or(Some(None), |when| when.map(Some))?, make })
    }

    fn expressions(&self) -> Vec<&Expression> {
        let made = match &self.make {
            Make::Item(template) | Make::Items(template) => template.expressions(),
            Make::Count => Vec::new(),
            Make::Sum(of) | Make::Extreme(of, _) => vec![of],
        };
        std::iter::once(&self.list).chain(&self.when).chain(made).collect()
    }

    fn names(&self, variable: &str) -> bool {
        let inner = match &self.make {
            Make::Item(template) | Make::Items(template) => template.names(variable),
            Make::Count => false,
            Make::Sum(of) | Make::Extreme(of, _) => of.names(variable),
        };
        let when = self.when.as_ref().is_some_and(|when| when.names(variable));
        self.list.names(variable) || (self.name != variable && (inner || when))
    }

    fn render(&self, scope: &Scope<'_>) -> Result<Value, EvaluationError> {
        let mut made = Vec::new();
        let mut count = 0_u64;
        self.visit(scope, &mut |inner| {
            if !self.when.as_ref().map_or(Ok(true), |when| when.holds(inner))? {
                return Ok(());
            }
            count += 1;
            match &self.make {
                Make::Item(template) => made.push(template.render(inner)?),
                Make::Items(template) => flatten(template.render(inner)?, &mut made),
                Make::Sum(of) | Make::Extreme(of, _) => made.push(of.evaluate(inner)?),
                Make::Count => {}
            }
            Ok(())
        })?;
        match &self.make {
            Make::Item(_) | Make::Items(_) => Ok(Value::Array(made)),
            Make::Count => Ok(Value::from(count)),
            Make::Sum(of) => decimal::sum(&[Value::Array(made)]).map_err(|reason| failed(of, reason)),
            Make::Extreme(of, greatest) => extreme(made, *greatest).map_err(|reason| failed(of, reason)),
        }
    }

    /// Calls `work` with a scope for each row or item.
    fn visit(
        &self,
        scope: &Scope<'_>,
        work: &mut dyn FnMut(&Scope<'_>) -> Result<(), EvaluationError>,
    ) -> Result<(), EvaluationError> {
        if let Some(Variable::Many(rows)) = self.list.reference(scope) {
            return rows
                .iter()
                .try_for_each(|row| work(&Scope::with(scope, &self.name, Variable::Joined(row))));
        }
        match self.list.evaluate(scope)? {
            Value::Null => Ok(()),
            Value::Array(items) => {
                items.iter().try_for_each(|item| work(&Scope::with(scope, &self.name, Variable::Value(item))))
            }
            _ => Err(failed(&self.list, "is not a list")),
        }
    }
}

/// The items of a list, and of the lists in it.
fn flatten(value: Value, into: &mut Vec<Value>) {
    match value {
        Value::Array(items) => items.into_iter().for_each(|item| flatten(item, into)),
        item => into.push(item),
    }
}

fn failed(expression: &Expression, reason: &str) -> EvaluationError {
    EvaluationError { text: expression.text().to_owned(), reason: format!("the value {reason}") }
}

/// The least or greatest decimal; texts that are none, such as dates, are compared as texts. Null when there is none.
fn extreme(values: Vec<Value>, greatest: bool) -> Result<Value, &'static str> {
    let mut best = Value::Null;
    for value in values.into_iter().filter(|value| !value.is_null()) {
        if best.is_null() {
            best = value;
            continue;
        }
        let order = match decimal::compare(&[value.clone(), best.clone()]) {
            Ok(order) => order.as_i64().unwrap_or_default(),
            Err(_) => match (value.as_str(), best.as_str()) {
                (Some(a), Some(b)) => i64::from(a > b) - i64::from(a < b),
                _ => return Err("cannot be compared"),
            },
        };
        if (greatest && order > 0) || (!greatest && order < 0) {
            best = value;
        }
    }
    Ok(best)
}
