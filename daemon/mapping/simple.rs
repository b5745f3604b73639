//! The part of CEL that most expressions are made of, evaluated over JSON as it lies: a member of a variable, constants,
//! `+` of texts, `string()`, comparison, logic, the conditional.
//!
//! Whatever does not come out here (another operator, another type, a missing member) gives `None`, and the whole
//! expression is left to the CEL interpreter. So this changes how fast a value is found, never which.

use cel::IdedExpr;
use cel::common::ast::{Expr, LiteralValue};
use serde_json::Value;

use super::expression::Scope;

/// An expression of that part.
#[derive(Debug)]
pub enum Simple {
    /// Worked out when it was compiled.
    Constant(Value),
    /// `variable`
    Variable(String),
    /// `variable.member`
    Member(String, String),
    /// `a + b` of two texts.
    Concatenation(Box<[Simple; 2]>),
    /// `string(a)`
    Text(Box<Simple>),
    /// `a == b`, or `a != b` when the flag is false.
    Equality(bool, Box<[Simple; 2]>),
    /// `a || b`, or `a && b` when the flag is false.
    Logic(bool, Box<[Simple; 2]>),
    /// `!a`
    Not(Box<Simple>),
    /// `a ? b : c`
    Conditional(Box<[Simple; 3]>),
}

impl Simple {
    /// Compiles `expr` if it is of that part.
    pub fn compile(expr: &IdedExpr) -> Option<Self> {
        let sub = Self::compile;
        match &expr.expr {
            Expr::Literal(literal) => constant(literal).map(Self::Constant),
            Expr::List(list) if list.elements.is_empty() => Some(Self::Constant(Value::Array(Vec::new()))),
            Expr::Ident(name) => Some(Self::Variable(name.clone())),
            Expr::Select(select) => match &select.operand.expr {
                Expr::Ident(name) if !select.test => Some(Self::Member(name.clone(), select.field.clone())),
                _ => None,
            },
            Expr::Call(call) if call.target.is_none() => {
                match (call.func_name.as_str(), call.args.as_slice()) {
                    ("_+_", [a, b]) => Some(Self::Concatenation(Box::new([sub(a)?, sub(b)?]))),
                    ("string", [a]) => Some(Self::Text(Box::new(sub(a)?))),
                    ("_==_", [a, b]) => Some(Self::Equality(true, Box::new([sub(a)?, sub(b)?]))),
                    ("_!=_", [a, b]) => Some(Self::Equality(false, Box::new([sub(a)?, sub(b)?]))),
                    ("_||_", [a, b]) => Some(Self::Logic(true, Box::new([sub(a)?, sub(b)?]))),
                    ("_&&_", [a, b]) => Some(Self::Logic(false, Box::new([sub(a)?, sub(b)?]))),
                    ("!_", [a]) => Some(Self::Not(Box::new(sub(a)?))),
                    ("_?_:_", [a, b, c]) => Some(Self::Conditional(Box::new([sub(a)?, sub(b)?, sub(c)?]))),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    /// The value; `None` when the interpreter has to decide.
    pub fn evaluate(&self, scope: &Scope<'_>) -> Option<Value> {
        Some(match self {
            Self::Constant(value) => value.clone(),
            Self::Variable(name) => scalar(scope.value(name)?)?.clone(),
            Self::Member(name, member) => scalar(scope.member(name, member)?)?.clone(),
            Self::Concatenation(parts) => {
                let [a, b] = &**parts;
                match (a.evaluate(scope)?, b.evaluate(scope)?) {
                    (Value::String(a), Value::String(b)) => Value::String(a + &b),
                    _ => return None,
                }
            }
            Self::Text(part) => match part.evaluate(scope)? {
                text @ Value::String(_) => text,
                Value::Number(number) if number.is_i64() => Value::String(number.to_string()),
                _ => return None,
            },
            Self::Equality(equal, parts) => {
                let [a, b] = &**parts;
                Value::Bool(same(&a.evaluate(scope)?, &b.evaluate(scope)?)? == *equal)
            }
            Self::Logic(any, parts) => {
                let [a, b] = &**parts;
                let (a, b) = (truth(a.evaluate(scope)?)?, truth(b.evaluate(scope)?)?);
                Value::Bool(if *any { a || b } else { a && b })
            }
            Self::Not(part) => Value::Bool(!truth(part.evaluate(scope)?)?),
            Self::Conditional(parts) => {
                let [condition, yes, no] = &**parts;
                if truth(condition.evaluate(scope)?)? { yes.evaluate(scope)? } else { no.evaluate(scope)? }
            }
        })
    }
}

fn constant(literal: &LiteralValue) -> Option<Value> {
    match literal {
        LiteralValue::Null => Some(Value::Null),
        LiteralValue::Boolean(value) => Some(Value::Bool(*value.inner())),
        LiteralValue::Int(value) => Some(Value::from(*value.inner())),
        LiteralValue::String(value) => Some(Value::from(value.inner())),
        _ => None,
    }
}

/// Lists, maps and whole numbers beyond 64 bits have forms of their own in CEL.
fn scalar(value: &Value) -> Option<&Value> {
    match value {
        Value::Null | Value::Bool(_) | Value::String(_) => Some(value),
        Value::Number(number) if number.is_i64() || number.is_f64() => Some(value),
        _ => None,
    }
}

fn truth(value: Value) -> Option<bool> {
    if let Value::Bool(truth) = value { Some(truth) } else { None }
}

/// Equality within one type, and with null.
fn same(a: &Value, b: &Value) -> Option<bool> {
    match (a, b) {
        (Value::Null, Value::Null) => Some(true),
        (Value::Null, _) | (_, Value::Null) => Some(false),
        (Value::Bool(a), Value::Bool(b)) => Some(a == b),
        (Value::String(a), Value::String(b)) => Some(a == b),
        (Value::Number(a), Value::Number(b)) => Some(a.as_i64()? == b.as_i64()?),
        _ => None,
    }
}
