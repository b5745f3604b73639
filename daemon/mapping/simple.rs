//! The part of CEL that most expressions are made of, compiled once and evaluated over the values as they lie: references
//! through rows and objects, constants, lists, `+` of texts, `string()`, `size()`, comparison, logic, the conditional, and the
//! functions of [`super::function`].
//!
//! Whatever does not come out here (another operator, another type, a missing member) gives `None`, and the whole
//! expression is left to the CEL interpreter. So this changes how fast a value is found, never which.

use std::borrow::Cow;

use cel::IdedExpr;
use cel::common::ast::{ComprehensionExpr, Expr, LiteralValue};
use serde_json::Value;

use super::function::{self, Function};
use super::scope::{Scope, Variable};

/// An expression of that part.
#[derive(Debug)]
pub enum Simple {
    /// Worked out when it was compiled.
    Constant(Value),
    /// `variable.member.member`, `variable['member']`
    Path(String, Vec<String>),
    /// `[a, b]`
    List(Vec<Simple>),
    /// `a + b` of two texts.
    Concatenation(Box<[Simple; 2]>),
    /// `string(a)`
    Text(Box<Simple>),
    /// `size(a)`
    Size(Box<Simple>),
    /// `a == b`, or `a != b` when the flag is false.
    Equality(bool, Box<[Simple; 2]>),
    /// `a in [b, c]`
    In(Box<Simple>, Vec<Simple>),
    /// `a || b`, or `a && b` when the flag is false.
    Logic(bool, Box<[Simple; 2]>),
    /// `!a`
    Not(Box<Simple>),
    /// `a ? b : c`
    Conditional(Box<[Simple; 3]>),
    /// `a.map(x, b)`, `a.filter(x, c)`: the interpreter copies the list for each item that it adds.
    Each {
        /// The list.
        list: Box<Simple>,
        /// Name of an item.
        name: String,
        /// Which items.
        when: Option<Box<Simple>>,
        /// What becomes of an item.
        item: Box<Simple>,
    },
    /// `function(a, b)`
    Call(&'static Function, Vec<Simple>),
}

impl Simple {
    /// Compiles `expr` if it is of that part.
    pub fn compile(expr: &IdedExpr) -> Option<Self> {
        let sub = Self::compile;
        match &expr.expr {
            Expr::Literal(literal) => constant(literal).map(Self::Constant),
            Expr::List(list) => list.elements.iter().map(sub).collect::<Option<_>>().map(Self::List),
            Expr::Ident(_) | Expr::Select(_) => path(expr),
            Expr::Comprehension(inner) => each(inner),
            Expr::Call(call) if call.target.is_none() => {
                match (call.func_name.as_str(), call.args.as_slice()) {
                    ("_[_]", [_, _]) => path(expr),
                    ("_+_", [a, b]) => Some(Self::Concatenation(Box::new([sub(a)?, sub(b)?]))),
                    ("string", [a]) => Some(Self::Text(Box::new(sub(a)?))),
                    ("size", [a]) => Some(Self::Size(Box::new(sub(a)?))),
                    ("_==_", [a, b]) => Some(Self::Equality(true, Box::new([sub(a)?, sub(b)?]))),
                    ("_!=_", [a, b]) => Some(Self::Equality(false, Box::new([sub(a)?, sub(b)?]))),
                    ("@in", [a, b]) => match sub(b)? {
                        Self::List(items) => Some(Self::In(Box::new(sub(a)?), items)),
                        _ => None,
                    },
                    ("_||_", [a, b]) => Some(Self::Logic(true, Box::new([sub(a)?, sub(b)?]))),
                    ("_&&_", [a, b]) => Some(Self::Logic(false, Box::new([sub(a)?, sub(b)?]))),
                    ("!_", [a]) => Some(Self::Not(Box::new(sub(a)?))),
                    ("_?_:_", [a, b, c]) => Some(Self::Conditional(Box::new([sub(a)?, sub(b)?, sub(c)?]))),
                    (name, args) => {
                        let function = function::named(name).filter(|known| known.arity == args.len())?;
                        Some(Self::Call(function, args.iter().map(sub).collect::<Option<_>>()?))
                    }
                }
            }
            _ => None,
        }
    }

    /// What a reference stands for; `None` for any other expression.
    pub fn reference<'a>(&self, scope: &Scope<'a>) -> Option<Variable<'a>> {
        let Self::Path(name, members) = self else { return None };
        members.iter().try_fold(scope.variable(name)?, |variable, member| variable.member(member))
    }

    /// The value; `None` when the interpreter has to decide.
    pub fn evaluate<'a>(&'a self, scope: &Scope<'a>) -> Option<Cow<'a, Value>> {
        Some(Cow::Owned(match self {
            Self::Constant(value) => return Some(Cow::Borrowed(value)),
            Self::Path(..) => match self.reference(scope)? {
                Variable::Value(value) if is_faithful(value) => return Some(Cow::Borrowed(value)),
                _ => return None,
            },
            Self::List(items) => Value::Array(values(items, scope)?),
            Self::Concatenation(parts) => {
                let [a, b] = &**parts;
                match (a.evaluate(scope)?.into_owned(), &*b.evaluate(scope)?) {
                    (Value::String(a), Value::String(b)) => Value::String(a + b),
                    _ => return None,
                }
            }
            Self::Text(part) => match part.evaluate(scope)?.into_owned() {
                text @ Value::String(_) => text,
                Value::Number(number) if number.is_i64() => Value::String(number.to_string()),
                _ => return None,
            },
            Self::Size(part) => Value::from(part.length(scope).or_else(|| part.size(scope))?),
            Self::Equality(equal, parts) => {
                let [a, b] = &**parts;
                Value::Bool(same(&*a.evaluate(scope)?, &*b.evaluate(scope)?)? == *equal)
            }
            Self::In(part, items) => {
                let value = part.evaluate(scope)?;
                // Every item is compared, since one that cannot be leaves the whole to the interpreter.
                let found = items.iter().map(|item| same(&value, &*item.evaluate(scope)?));
                Value::Bool(found.collect::<Option<Vec<bool>>>()?.contains(&true))
            }
            Self::Logic(any, parts) => {
                let [a, b] = &**parts;
                let (a, b) = (truth(&*a.evaluate(scope)?)?, truth(&*b.evaluate(scope)?)?);
                Value::Bool(if *any { a || b } else { a && b })
            }
            Self::Not(part) => Value::Bool(!truth(&*part.evaluate(scope)?)?),
            Self::Conditional(parts) => {
                let [condition, yes, no] = &**parts;
                let chosen = if truth(&*condition.evaluate(scope)?)? { yes } else { no };
                return chosen.evaluate(scope);
            }
            Self::Each { list, name, when, item } => {
                Value::Array(made(scope, list, name, when.as_deref(), item)?)
            }
            Self::Call(function, args) => (function.call)(&values(args, scope)?).ok()?,
        }))
    }

    fn size(&self, scope: &Scope<'_>) -> Option<usize> {
        match self.reference(scope)? {
            Variable::Many(rows) => Some(rows.len()),
            Variable::Value(Value::Array(items)) => Some(items.len()),
            Variable::Value(Value::String(text)) => Some(text.chars().count()),
            _ => None,
        }
    }

    /// How many rows or items a list has that is worked out.
    fn length(&self, scope: &Scope<'_>) -> Option<usize> {
        let Self::Each { list, name, when, .. } = self else { return None };
        // What becomes of them does not matter.
        made(scope, list, name, when.as_deref(), &Self::Constant(Value::Null)).map(|made| made.len())
    }
}

/// The items that `map` or `filter` makes of a list.
fn made<'a>(
    scope: &Scope<'a>,
    list: &'a Simple,
    name: &'a str,
    when: Option<&'a Simple>,
    item: &'a Simple,
) -> Option<Vec<Value>> {
    let mut made = Vec::new();
    let mut add = |variable| {
        let inner = Scope::with(scope, name, variable);
        let wanted = match when {
            Some(when) => truth(&*when.evaluate(&inner)?)?,
            None => true,
        };
        if wanted {
            made.push(item.evaluate(&inner)?.into_owned());
        }
        Some(())
    };
    match list.reference(scope) {
        Some(Variable::Many(rows)) => rows.iter().try_for_each(|row| add(Variable::Joined(row)))?,
        _ => match &*list.evaluate(scope)? {
            Value::Array(items) => items.iter().try_for_each(|item| add(Variable::Value(item)))?,
            // In the order of the keys; the interpreter's is another one each time.
            Value::Object(map) => {
                let keys: Vec<Value> = map.keys().map(|key| Value::String(key.clone())).collect();
                keys.iter().try_for_each(|key| add(Variable::Value(key)))?;
            }
            _ => return None,
        },
    }
    Some(made)
}

/// What the macros `map` and `filter` are made of: a list that grows by one item in each step.
fn each(inner: &ComprehensionExpr) -> Option<Simple> {
    let is_accu = |expr: &IdedExpr| matches!(&expr.expr, Expr::Ident(name) if *name == inner.accu_var);
    let starts_empty = matches!(&inner.accu_init.expr, Expr::List(list) if list.elements.is_empty());
    if !starts_empty || !is_accu(&inner.result) || inner.iter_var2.is_some() {
        return None;
    }
    let call = |expr: &IdedExpr, name: &str| match &expr.expr {
        Expr::Call(call) if call.func_name == name && call.target.is_none() => Some(call.args.clone()),
        _ => None,
    };
    let (when, step) = match call(&inner.loop_step, "_?_:_") {
        Some(args) => {
            let [condition, step, otherwise] = args.as_slice() else { return None };
            let when = is_accu(otherwise).then(|| Simple::compile(condition)).flatten()?;
            (Some(Box::new(when)), step.clone())
        }
        None => (None, inner.loop_step.clone()),
    };
    let args = call(&step, "_+_")?;
    let [accu, added] = args.as_slice() else { return None };
    let Expr::List(added) = &added.expr else { return None };
    let [item] = added.elements.as_slice() else { return None };
    if !is_accu(accu) {
        return None;
    }
    let (list, item) = (Box::new(Simple::compile(&inner.iter_range)?), Box::new(Simple::compile(item)?));
    Some(Simple::Each { list, name: inner.iter_var.clone(), when, item })
}

fn values(parts: &[Simple], scope: &Scope<'_>) -> Option<Vec<Value>> {
    parts.iter().map(|part| part.evaluate(scope).map(Cow::into_owned)).collect()
}

fn path(expr: &IdedExpr) -> Option<Simple> {
    let mut members = Vec::new();
    let mut at = expr;
    loop {
        match &at.expr {
            Expr::Ident(name) => {
                members.reverse();
                return Some(Simple::Path(name.clone(), members));
            }
            Expr::Select(select) if !select.test => {
                members.push(select.field.clone());
                at = &select.operand;
            }
            Expr::Call(call) if call.target.is_none() && call.func_name == "_[_]" => {
                let [operand, index] = call.args.as_slice() else { return None };
                let Expr::Literal(LiteralValue::String(name)) = &index.expr else { return None };
                members.push(name.inner().to_owned());
                at = operand;
            }
            _ => return None,
        }
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

/// True when the interpreter would give the value back as it is: whole numbers beyond 64 bits it takes for floats.
fn is_faithful(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(_) | Value::String(_) => true,
        Value::Number(number) => number.is_i64() || number.is_f64(),
        Value::Array(items) => items.iter().all(is_faithful),
        Value::Object(map) => map.values().all(is_faithful),
    }
}

fn truth(value: &Value) -> Option<bool> {
    value.as_bool()
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
