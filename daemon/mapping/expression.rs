//! CEL expressions in mapping, route and connector files: compiled and checked at load, evaluated over JSON.
//!
//! Language: <https://github.com/google/cel-spec>, with the string extensions (`lowerAscii`, `join`, `split`, ...).

use std::cell::OnceCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};

use cel::common::ast::{EntryExpr, Expr};
use cel::{Context, Env, Program};
use serde_json::Value;

use super::Joined;
use super::simple::Simple;
use crate::config::node::{Content, Node, Problems, nearest};
use crate::event::Row;

/// Variables by name; `Some(fields)` when only these members exist.
pub type Variables = BTreeMap<String, Option<Vec<String>>>;

/// Builds [`Variables`] from names whose members are not known at load.
#[must_use]
pub fn open_variables(names: &[&str]) -> Variables {
    names.iter().map(|name| ((*name).to_owned(), None)).collect()
}

/// An expression that failed on the values it met.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expression `{text}`: {reason}")]
pub struct EvaluationError {
    /// The expression.
    pub text: String,
    /// Why; names variables and types, never values (INV-12).
    pub reason: String,
}

fn environment() -> Arc<Env> {
    static ENVIRONMENT: OnceLock<Arc<Env>> = OnceLock::new();
    ENVIRONMENT
        .get_or_init(|| {
            let mut env = Env::stdlib();
            // The extension's names collide with nothing in a fresh environment.
            let _ = env.add_extension(cel::extensions::strings);
            Arc::new(env)
        })
        .clone()
}

/// A variable: JSON, or rows of the source as they are kept.
#[derive(Debug, Clone, Copy)]
pub enum Variable<'a> {
    /// Any value.
    Value(&'a Value),
    /// One row.
    Row(&'a Row),
    /// Rows of a join.
    Joined(&'a Joined),
}

/// Values for one evaluation, or for several over the same values. The interpreter's own form of them is made only when
/// an expression needs it.
pub struct Scope<'a> {
    variables: Vec<(&'a str, Variable<'a>)>,
    context: OnceCell<Context<'static, 'static>>,
}

impl<'a> Scope<'a> {
    /// A scope with these variables.
    #[must_use]
    pub fn new(variables: impl IntoIterator<Item = (&'a str, &'a Value)>) -> Self {
        Self::over(variables.into_iter().map(|(name, value)| (name, Variable::Value(value))))
    }

    /// A scope with these variables, rows among them.
    #[must_use]
    pub fn over(variables: impl IntoIterator<Item = (&'a str, Variable<'a>)>) -> Self {
        Self { variables: variables.into_iter().collect(), context: OnceCell::new() }
    }

    fn variable(&self, name: &str) -> Option<Variable<'a>> {
        self.variables.iter().find(|(known, _)| *known == name).map(|(_, variable)| *variable)
    }

    /// A variable that is a single value.
    pub(super) fn value(&self, name: &str) -> Option<&'a Value> {
        if let Variable::Value(value) = self.variable(name)? { Some(value) } else { None }
    }

    /// A member of a variable.
    pub(super) fn member(&self, name: &str, member: &str) -> Option<&'a Value> {
        match self.variable(name)? {
            Variable::Value(value) => value.get(member),
            Variable::Row(row) => row.get(member),
            Variable::Joined(Joined::One(row)) => row.get(member),
            Variable::Joined(Joined::Many(_)) => None,
        }
    }

    fn context(&self) -> &Context<'static, 'static> {
        self.context.get_or_init(|| {
            let mut context = Context::with_env(environment());
            for (name, variable) in &self.variables {
                let value = match variable {
                    Variable::Value(value) => to_cel(value),
                    Variable::Row(row) => row_to_cel(row),
                    Variable::Joined(Joined::One(row)) => row_to_cel(row),
                    Variable::Joined(Joined::Many(rows)) => {
                        cel::Value::List(Arc::new(rows.iter().map(|row| row_to_cel(row)).collect()))
                    }
                };
                context.add_variable_from_value((*name).to_owned(), value);
            }
            context
        })
    }
}

/// A compiled expression.
#[derive(Debug)]
pub struct Expression {
    program: Program,
    simple: Option<Simple>,
    text: String,
}

impl Expression {
    /// Compiles the string at `node`; syntax errors, unknown variables and unknown members become problems.
    pub fn compile(node: &Node, variables: &Variables, problems: &mut Problems) -> Option<Self> {
        let text = match &node.content {
            Content::Scalar(Value::String(text)) => text.clone(),
            Content::Scalar(value @ (Value::Bool(_) | Value::Number(_) | Value::Null)) => value.to_string(),
            _ => node.string(problems)?,
        };
        let program = match environment().compile(&text) {
            Ok(program) => program,
            Err(errors) => {
                let reason = errors.to_string();
                let reason = reason.lines().next().unwrap_or_default();
                problems.add(
                    &node.at,
                    format!("`{text}` is not a CEL expression: {reason}"),
                    "a text constant needs inner quotes: \"'text'\"",
                );
                return None;
            }
        };
        check_names(program.expression(), variables, &mut Vec::new(), &mut |what, near| {
            problems.add(&node.at, format!("`{text}`: {what}"), near);
        });
        let simple = Simple::compile(program.expression());
        Some(Self { program, simple, text })
    }

    /// True when the expression names `variable`.
    #[must_use]
    pub fn names(&self, variable: &str) -> bool {
        self.program.references().has_variable(variable)
    }

    /// The value over `scope`.
    pub fn evaluate(&self, scope: &Scope<'_>) -> Result<Value, EvaluationError> {
        if let Some(value) = self.simple.as_ref().and_then(|simple| simple.evaluate(scope)) {
            return Ok(value);
        }
        self.interpret(scope)
    }

    /// The value as the CEL interpreter finds it.
    pub fn interpret(&self, scope: &Scope<'_>) -> Result<Value, EvaluationError> {
        let failed = |reason: String| EvaluationError { text: self.text.clone(), reason };
        let value = self.program.execute(scope.context()).map_err(|error| failed(redact(&error)))?;
        value.json().map_err(|_| failed("the result has no JSON form".into()))
    }

    /// The value as a condition: anything but `true` and `false` is an error.
    pub fn holds(&self, scope: &Scope<'_>) -> Result<bool, EvaluationError> {
        match self.evaluate(scope)? {
            Value::Bool(answer) => Ok(answer),
            _ => Err(EvaluationError {
                text: self.text.clone(),
                reason: "the result is not true or false".into(),
            }),
        }
    }
}

/// The kind of an execution error without the values it may quote.
fn redact(error: &cel::ExecutionError) -> String {
    let text = format!("{error:?}");
    text.split(['(', '{', ' ']).next().unwrap_or("failed").to_owned()
}

fn to_cel(value: &Value) -> cel::Value {
    match value {
        Value::Null => cel::Value::Null,
        Value::Bool(value) => cel::Value::Bool(*value),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => cel::Value::Int(whole),
            (None, Some(real)) => cel::Value::Float(real),
            (None, None) => cel::Value::Null,
        },
        Value::String(text) => cel::Value::String(Arc::new(text.clone())),
        Value::Array(items) => cel::Value::List(Arc::new(items.iter().map(to_cel).collect())),
        Value::Object(map) => map_to_cel(map.iter().map(|(key, value)| (key.as_str(), value))),
    }
}

fn row_to_cel(row: &Row) -> cel::Value {
    map_to_cel(row.iter().map(|(name, value)| (&**name, value)))
}

fn map_to_cel<'a>(members: impl Iterator<Item = (&'a str, &'a Value)>) -> cel::Value {
    let entries: HashMap<String, cel::Value> =
        members.map(|(key, value)| (key.to_owned(), to_cel(value))).collect();
    cel::Value::Map(entries.into())
}

/// Walks the syntax tree and reports unknown variables and members.
fn check_names(
    expr: &cel::IdedExpr,
    variables: &Variables,
    local: &mut Vec<String>,
    report: &mut dyn FnMut(String, String),
) {
    match &expr.expr {
        Expr::Ident(name) => check_variable(name, variables, local, report),
        Expr::Select(select) => {
            if let Expr::Ident(name) = &select.operand.expr
                && !local.contains(name)
                && let Some(Some(members)) = variables.get(name)
                && !members.contains(&select.field)
            {
                let candidates: Vec<&str> = members.iter().map(String::as_str).collect();
                let near = nearest(&select.field, &candidates).map_or_else(
                    || format!("one of: {}", candidates.join(", ")),
                    |near| format!("did you mean `{near}`?"),
                );
                report(format!("`{name}` has no member `{}`", select.field), near);
            }
            check_names(&select.operand, variables, local, report);
        }
        Expr::Call(call) => {
            for part in call.target.as_deref().into_iter().chain(&call.args) {
                check_names(part, variables, local, report);
            }
        }
        Expr::List(list) => list.elements.iter().for_each(|part| check_names(part, variables, local, report)),
        Expr::Map(map) => {
            for entry in &map.entries {
                if let EntryExpr::MapEntry(entry) = &entry.expr {
                    check_names(&entry.key, variables, local, report);
                    check_names(&entry.value, variables, local, report);
                }
            }
        }
        Expr::Comprehension(inner) => {
            check_names(&inner.iter_range, variables, local, report);
            check_names(&inner.accu_init, variables, local, report);
            let depth = local.len();
            local.extend([inner.iter_var.clone(), inner.accu_var.clone()]);
            local.extend(inner.iter_var2.clone());
            for part in [&inner.loop_cond, &inner.loop_step, &inner.result] {
                check_names(part, variables, local, report);
            }
            local.truncate(depth);
        }
        Expr::Literal(_) | Expr::Struct(_) | Expr::Unspecified => {}
    }
}

fn check_variable(
    name: &str,
    variables: &Variables,
    local: &[String],
    report: &mut dyn FnMut(String, String),
) {
    if variables.contains_key(name) || local.iter().any(|known| known == name) {
        return;
    }
    let candidates: Vec<&str> = variables.keys().map(String::as_str).collect();
    let near = nearest(name, &candidates).map_or_else(
        || format!("known here: {}", candidates.join(", ")),
        |near| format!("did you mean `{near}`?"),
    );
    report(format!("unknown name `{name}`"), near);
}
