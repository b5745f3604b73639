//! CEL expressions in mapping, route and connector files: compiled and checked at load, evaluated over JSON.
//!
//! Language: <https://github.com/google/cel-spec>, with the string extensions (`lowerAscii`, `join`, `split`, ...) and the
//! functions of [`super::function`].

use std::sync::{Arc, OnceLock};

use cel::{Context, Env, Program};
use serde_json::Value;

use super::function;
use super::scope::{Scope, Variable};
use super::shape::{Names, Shape, Variables};
use super::simple::Simple;
use crate::config::node::{Content, Node, Problems};

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
            // The names collide with nothing in a fresh environment.
            let _ = env.add_extension(cel::extensions::strings);
            let _ = env.add_extension(function::declare);
            Arc::new(env)
        })
        .clone()
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
        if let Some(what) = too_much(&text) {
            let start: String = text.chars().take(40).collect();
            problems.add(
                &node.at,
                format!("`{start}…`: {what}"),
                "several values under `let`, or a template with `rules`",
            );
            return None;
        }
        let program = match environment().compile(&text) {
            Ok(program) => program,
            Err(errors) => {
                let what = format!("`{text}` is not a CEL expression: {}", first_reason(&errors.to_string()));
                problems.add(&node.at, what, hint(&text));
                return None;
            }
        };
        Names::check(program.expression(), variables, &mut |what, near| {
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

    /// Members of `variable` that the expression asks for; `*` when it takes the whole.
    #[must_use]
    pub fn members_of(&self, variable: &str) -> Vec<String> {
        let mut found = Vec::new();
        members(self.program.expression(), variable, &mut found);
        found
    }

    /// What a plain reference stands for, when the expression is nothing else.
    #[must_use]
    pub fn reference<'a>(&self, scope: &Scope<'a>) -> Option<Variable<'a>> {
        self.simple.as_ref().and_then(|simple| simple.reference(scope))
    }

    /// What is known of its value.
    #[must_use]
    pub fn shape(&self, variables: &Variables) -> Shape {
        Names::check(self.program.expression(), variables, &mut |_, _| ())
    }

    /// The text as it was written.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The value over `scope`.
    pub fn evaluate(&self, scope: &Scope<'_>) -> Result<Value, EvaluationError> {
        if let Some(value) = self.simple.as_ref().and_then(|simple| simple.evaluate(scope)) {
            return Ok(value.into_owned());
        }
        self.interpret(scope)
    }

    /// The value as the CEL interpreter finds it.
    pub fn interpret(&self, scope: &Scope<'_>) -> Result<Value, EvaluationError> {
        let failed = |reason: String| EvaluationError { text: self.text.clone(), reason };
        let mut context = Context::with_env(environment());
        context.set_variable_resolver(scope);
        let value = self.program.execute(&context).map_err(|error| failed(redact(&error)))?;
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

fn members(expr: &cel::IdedExpr, variable: &str, found: &mut Vec<String>) {
    use cel::common::ast::{EntryExpr, Expr};
    let is_variable = |expr: &cel::IdedExpr| matches!(&expr.expr, Expr::Ident(name) if name == variable);
    match &expr.expr {
        Expr::Ident(_) if is_variable(expr) => found.push("*".to_owned()),
        Expr::Select(select) if is_variable(&select.operand) => found.push(select.field.clone()),
        Expr::Select(select) => members(&select.operand, variable, found),
        Expr::Call(call) => {
            let parts = call.target.as_deref().into_iter().chain(&call.args);
            parts.for_each(|part| members(part, variable, found));
        }
        Expr::List(list) => list.elements.iter().for_each(|part| members(part, variable, found)),
        Expr::Map(map) => {
            for entry in &map.entries {
                if let EntryExpr::MapEntry(entry) = &entry.expr {
                    members(&entry.key, variable, found);
                    members(&entry.value, variable, found);
                }
            }
        }
        Expr::Comprehension(inner) => {
            for part in
                [&inner.iter_range, &inner.accu_init, &inner.loop_cond, &inner.loop_step, &inner.result]
            {
                members(part, variable, found);
            }
        }
        Expr::Ident(_) | Expr::Literal(_) | Expr::Struct(_) | Expr::Unspecified => {}
    }
}

/// The parser and the interpreter go down one level for each bracket and each operator: what is deeper than any rule that a person
/// could read is refused, before the stack is at its end.
fn too_much(text: &str) -> Option<&'static str> {
    const MAX_LENGTH: usize = 2_000;
    const MAX_DEPTH: usize = 20;
    const MAX_OPERATORS: usize = 120;
    const MAX_MEMBERS: usize = 200;
    let (mut depth, mut deepest, mut operators, mut members) = (0_usize, 0, 0, 0);
    let mut quote = None;
    for c in text.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '(' | '[' | '{') => depth += 1,
            (None, ')' | ']' | '}') => depth = depth.saturating_sub(1),
            (None, '+' | '-' | '*' | '/' | '%' | '&' | '|' | '?' | '!' | '<' | '>') => operators += 1,
            (None, '.') => members += 1,
            (None, _) => {}
        }
        deepest = deepest.max(depth);
    }
    match () {
        () if text.len() > MAX_LENGTH => Some("is longer than 2,000 characters"),
        () if deepest > MAX_DEPTH => Some("has brackets more than 20 deep"),
        () if operators > MAX_OPERATORS => Some("has more than 120 operators"),
        () if members > MAX_MEMBERS => Some("has more than 200 dots"),
        () => None,
    }
}

/// What is usually meant where an expression cannot be read.
fn hint(text: &str) -> &'static str {
    let has = |word: &str| text.contains(word);
    match () {
        () if has(" and ") || has(" AND ") => "CEL says && for `and`",
        () if has(" or ") || has(" OR ") => "CEL says || for `or`",
        () if has(" is not ") || has(" is null") => "CEL says row.name != null, or row.name == null",
        () if has("not ") => "CEL says ! for `not`",
        () if has(" = ") => "CEL says == for `is equal to`",
        () if has("<>") => "CEL says != for `is not equal to`",
        () => "an expression such as row.name == 'x'; a text constant needs inner quotes: \"'text'\"",
    }
}

/// What the parser stumbled over first, without the list of all that might have stood there.
fn first_reason(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default();
    let reason = line.split_once("Syntax error: ").map_or(line, |(_, reason)| reason);
    let reason = reason.split(" expecting ").next().unwrap_or(reason);
    reason.replace("mismatched input '<EOF>'", "it ends too early").replace("input '<EOF>'", "the end")
}

/// Why an expression failed, without the values that CEL's own message may quote.
fn redact(error: &cel::ExecutionError) -> String {
    match error {
        // What our own functions say names no values.
        cel::ExecutionError::FunctionError { function, message } if function::named(function).is_some() => {
            format!("{function}(): the value {message}")
        }
        cel::ExecutionError::NoSuchKey(_) => "there is no such column or member".into(),
        cel::ExecutionError::NoSuchOverload(_) | cel::ExecutionError::UnsupportedBinaryOperator(..) => {
            "the operation does not take such values; is one of them null?".into()
        }
        cel::ExecutionError::UnexpectedType { got, want } => {
            format!("there is a {got} where a {want} is wanted")
        }
        cel::ExecutionError::DivisionByZero(_) | cel::ExecutionError::RemainderByZero(_) => {
            "division by zero".into()
        }
        cel::ExecutionError::Overflow(..) => "the number is too large".into(),
        cel::ExecutionError::IndexOutOfBounds(_) => "the list has no item at that place".into(),
        cel::ExecutionError::UndeclaredReference(_) => "there is no such name or function".into(),
        cel::ExecutionError::FunctionError { function, .. } => {
            format!("{function}() cannot do that with such values")
        }
        cel::ExecutionError::ValuesNotComparable(..) => "the values cannot be compared".into(),
        // Never with the values that the message may quote.
        _ => "it cannot be worked out for such values".into(),
    }
}
