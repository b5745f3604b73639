//! What is known at load of the names in an expression: which variables and members there are, and which functions.

use std::collections::BTreeMap;
use std::sync::Arc;

use cel::common::ast::{EntryExpr, Expr, LiteralValue};

use super::function;
use crate::config::node::nearest;

/// What is known of a value.
#[derive(Debug, Clone)]
pub enum Shape {
    /// Nothing: any member may be asked for.
    Any,
    /// It has these members and no others.
    Members(Arc<BTreeMap<String, Shape>>),
    /// A list of such values.
    List(Arc<Shape>),
}

/// Variables by name.
pub type Variables = BTreeMap<String, Shape>;

/// [`Variables`] of which nothing but the names is known.
#[must_use]
pub fn open_variables(names: &[&str]) -> Variables {
    names.iter().map(|name| ((*name).to_owned(), Shape::Any)).collect()
}

/// Functions and methods of CEL and its string extension. There are no dates and times: the build leaves them out.
const STANDARD: [&str; 27] = [
    "all",
    "bool",
    "charAt",
    "contains",
    "double",
    "dyn",
    "endsWith",
    "exists",
    "exists_one",
    "filter",
    "format",
    "has",
    "indexOf",
    "int",
    "join",
    "lastIndexOf",
    "lowerAscii",
    "map",
    "matches",
    "replace",
    "reverse",
    "size",
    "split",
    "startsWith",
    "string",
    "substring",
    "trim",
];
/// Known, too, and too rare to be suggested.
const RARE: [&str; 3] = ["uint", "type", "upperAscii"];

/// Walks the syntax tree and reports unknown variables, members and functions.
pub struct Names<'a> {
    variables: &'a Variables,
    local: Vec<(String, Shape)>,
    report: &'a mut dyn FnMut(String, String),
}

impl<'a> Names<'a> {
    /// Checks `expr` and gives what is known of its value; `report` is told what is wrong and what to write instead.
    pub fn check(
        expr: &cel::IdedExpr,
        variables: &'a Variables,
        report: &'a mut dyn FnMut(String, String),
    ) -> Shape {
        Self { variables, local: Vec::new(), report }.visit(expr)
    }

    /// Reports what is wrong below `expr`, and gives what is known of its value.
    fn visit(&mut self, expr: &cel::IdedExpr) -> Shape {
        match &expr.expr {
            Expr::Ident(name) => self.variable(name),
            Expr::Select(select) => {
                let operand = self.visit(&select.operand);
                self.member(&select.operand, &operand, &select.field)
            }
            Expr::Call(call) => self.call(call),
            Expr::List(list) => {
                for element in &list.elements {
                    self.visit(element);
                }
                Shape::Any
            }
            Expr::Map(map) => {
                for entry in &map.entries {
                    if let EntryExpr::MapEntry(entry) = &entry.expr {
                        self.visit(&entry.key);
                        self.visit(&entry.value);
                    }
                }
                Shape::Any
            }
            Expr::Comprehension(inner) => {
                let range = self.visit(&inner.iter_range);
                self.visit(&inner.accu_init);
                let depth = self.local.len();
                let item = if let Shape::List(item) = range { (*item).clone() } else { Shape::Any };
                self.local.push((inner.iter_var.clone(), item));
                self.local.push((inner.accu_var.clone(), Shape::Any));
                self.local.extend(inner.iter_var2.clone().map(|name| (name, Shape::Any)));
                for part in [&inner.loop_cond, &inner.loop_step, &inner.result] {
                    self.visit(part);
                }
                self.local.truncate(depth);
                Shape::Any
            }
            Expr::Literal(_) | Expr::Struct(_) | Expr::Unspecified => Shape::Any,
        }
    }

    fn variable(&mut self, name: &str) -> Shape {
        if let Some((_, shape)) = self.local.iter().rev().find(|(known, _)| known == name) {
            return shape.clone();
        }
        if let Some(shape) = self.variables.get(name) {
            return shape.clone();
        }
        let candidates: Vec<&str> = self.variables.keys().map(String::as_str).collect();
        (self.report)(format!("unknown name `{name}`"), suggestion(name, &candidates, "known here"));
        Shape::Any
    }

    fn member(&mut self, operand: &cel::IdedExpr, shape: &Shape, field: &str) -> Shape {
        match shape {
            Shape::Any => Shape::Any,
            Shape::Members(members) => match members.get(field) {
                Some(shape) => shape.clone(),
                None => {
                    let candidates: Vec<&str> = members.keys().map(String::as_str).collect();
                    let what = format!("`{}` has no member `{field}`", printed(operand));
                    (self.report)(what, suggestion(field, &candidates, "one of"));
                    Shape::Any
                }
            },
            Shape::List(_) => {
                let list = printed(operand);
                let what = format!("`{list}` holds many rows, so `{list}.{field}` says nothing");
                (self.report)(what, format!("{list}.map(r, r.{field}), or a template with `each: {list}`"));
                Shape::Any
            }
        }
    }

    fn call(&mut self, call: &cel::common::ast::CallExpr) -> Shape {
        let target = call.target.as_deref().map(|target| self.visit(target));
        for argument in &call.args {
            self.visit(argument);
        }
        let name = call.func_name.as_str();
        if call.target.is_none()
            && let Some(function) = function::named(name)
        {
            if call.args.len() != function.arity {
                let what = format!("`{name}` is given {} values", call.args.len());
                (self.report)(what, format!("{name}(…) takes {}", function.arity));
            }
        } else if name == "_[_]" {
            return self.indexed(call);
        } else if name.starts_with(|c: char| c.is_ascii_alphabetic())
            && !STANDARD.contains(&name)
            && !RARE.contains(&name)
        {
            let ours = function::FUNCTIONS.iter().map(|function| function.name);
            let known: Vec<&str> = STANDARD.into_iter().chain(ours).collect();
            let what = match target {
                Some(_) => format!("there is no function `.{name}()`"),
                None => format!("there is no function `{name}()`"),
            };
            (self.report)(what, suggestion(name, &known, "one of"));
        }
        Shape::Any
    }

    /// `list[0]`, `object['member']`.
    fn indexed(&mut self, call: &cel::common::ast::CallExpr) -> Shape {
        let [operand, index] = call.args.as_slice() else { return Shape::Any };
        let shape = self.visit_quietly(operand);
        match (&shape, &index.expr) {
            (Shape::List(item), _) => (**item).clone(),
            (Shape::Members(_), Expr::Literal(LiteralValue::String(name))) => {
                self.member(operand, &shape, name.inner())
            }
            _ => Shape::Any,
        }
    }

    /// The shape of what was visited already.
    fn visit_quietly(&mut self, expr: &cel::IdedExpr) -> Shape {
        let local = self.local.clone();
        let mut ignore = |_, _| ();
        Names { variables: self.variables, local, report: &mut ignore }.visit(expr)
    }
}

/// The nearest of the candidates, or all of them.
#[must_use]
pub fn suggestion(word: &str, candidates: &[&str], all: &str) -> String {
    nearest(word, candidates)
        .map_or_else(|| format!("{all}: {}", candidates.join(", ")), |near| format!("did you mean `{near}`?"))
}

fn printed(expr: &cel::IdedExpr) -> String {
    match &expr.expr {
        Expr::Ident(name) => name.clone(),
        Expr::Select(select) => format!("{}.{}", printed(&select.operand), select.field),
        _ => "the value".into(),
    }
}
