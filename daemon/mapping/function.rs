//! Functions that expressions have beside those of CEL: Odoo's ways of keeping values, and exact decimals.
//!
//! Each is written once over JSON. The CEL interpreter and the compiled form of an expression call the same code.

use cel::common::types::DYN_TYPE;
use cel::common::value::CowVal;
use cel::{Env, ExecutionError};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::decimal::{self, Answer};
use super::html;
use super::scope::to_val;

/// A function over JSON values.
#[derive(Debug, Clone, Copy)]
pub struct Function {
    /// Name in expressions.
    pub name: &'static str,
    /// Number of arguments.
    pub arity: usize,
    /// What it does.
    pub call: fn(&[Value]) -> Answer,
    in_cel: cel::common::functions::Function,
}

macro_rules! functions {
    ($($name:ident($arity:literal) = $call:path;)*) => {
        /// All of them, by name.
        pub const FUNCTIONS: &[Function] = &[$(
            Function { name: stringify!($name), arity: $arity, call: $call, in_cel: {
                fn in_cel<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
                    adapt(stringify!($name), $call, &args)
                }
                in_cel
            } },
        )*];
    };
}

functions! {
    bucket(2) = bucket;
    compare(2) = decimal::compare;
    cut(2) = cut;
    decimal(1) = decimal::decimal;
    email(1) = email;
    entries(1) = entries;
    external_name(1) = external_name;
    filled(1) = filled;
    first(1) = first;
    from_unix(1) = from_unix;
    major_units(2) = decimal::major_units;
    minor_units(2) = decimal::minor_units;
    minus(2) = decimal::minus;
    money(2) = decimal::money;
    of_company(2) = of_company;
    plain_text(1) = plain_text;
    plus(2) = decimal::plus;
    quoted(1) = quoted;
    sum(1) = decimal::sum;
    times(2) = decimal::times;
    translated(2) = translated;
    utc(1) = utc;
}

/// The function with this name.
#[must_use]
pub fn named(name: &str) -> Option<&'static Function> {
    FUNCTIONS.iter().find(|function| function.name == name)
}

/// Declares all functions.
pub fn declare(env: &mut Env) -> Result<(), cel::DeclarationError> {
    for function in FUNCTIONS {
        let arguments: Vec<_> = (0..function.arity).map(|_| DYN_TYPE).collect();
        env.add_overload(function.name, &format!("{}_json", function.name), arguments, function.in_cel)?;
    }
    Ok(())
}

fn adapt<'b, 'v>(
    name: &str,
    call: fn(&[Value]) -> Answer,
    args: &[CowVal<'b, 'v>],
) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let mut values = Vec::with_capacity(args.len());
    for arg in args {
        let value = cel::Value::try_from(arg.as_ref())?;
        values.push(
            value.json().map_err(|_| ExecutionError::function_error(name, "the value has no JSON form"))?,
        );
    }
    let answer = call(&values).map_err(|reason| ExecutionError::function_error(name, reason))?;
    Ok(CowVal::Owned(to_val(&answer)))
}

/// Text in the chosen language: Odoo keeps `{"en_US": …, "fr_FR": …}`, where `en_US` is always there. A plain text, as
/// older versions keep it, stays.
fn translated(args: &[Value]) -> Answer {
    let [value, language] = args else { return Err("takes a value and a language") };
    match value {
        Value::Object(texts) => {
            let chosen = language.as_str().and_then(|language| texts.get(language));
            let chosen = chosen.filter(|text| !text.is_null()).or_else(|| texts.get("en_US"));
            Ok(chosen.cloned().unwrap_or(Value::Null))
        }
        Value::Null | Value::String(_) => Ok(value.clone()),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) => Err("is not a translated text"),
    }
}

/// The value of a company: Odoo keeps `{"1": …}` by company id; a company that is not named has none. A plain value, as older
/// versions keep it, stays.
fn of_company(args: &[Value]) -> Answer {
    let [value, company] = args else { return Err("takes a value and a company") };
    match (value, company) {
        (Value::Object(_), Value::Null) => Ok(Value::Null),
        (Value::Object(values), company) => {
            let company = company.as_str().map_or_else(|| company.to_string(), str::to_owned);
            Ok(values.get(&company).cloned().unwrap_or(Value::Null))
        }
        (plain, _) => Ok(plain.clone()),
    }
}

/// A map as a list of `{key, value}`, by key: analytic distributions, properties.
fn entries(args: &[Value]) -> Answer {
    match args {
        [Value::Null] => Ok(Value::Array(Vec::new())),
        [Value::Object(map)] => {
            let entry = |(key, value): (&String, &Value)| {
                Value::Object(Map::from_iter([
                    ("key".to_owned(), Value::String(key.clone())),
                    ("value".to_owned(), value.clone()),
                ]))
            };
            let mut keys: Vec<(&String, &Value)> = map.iter().collect();
            keys.sort_by(|(a, _), (b, _)| a.len().cmp(&b.len()).then_with(|| a.cmp(b)));
            Ok(Value::Array(keys.into_iter().map(entry).collect()))
        }
        _ => Err("takes a map"),
    }
}

/// The first item that is not null.
fn first(args: &[Value]) -> Answer {
    let [Value::Array(items)] = args else { return Err("takes a list") };
    Ok(items.iter().find(|item| !item.is_null()).cloned().unwrap_or(Value::Null))
}

/// The text, or null when there is nothing but white space in it.
fn filled(args: &[Value]) -> Answer {
    match args {
        [Value::String(text)] if text.trim().is_empty() => Ok(Value::Null),
        [value @ (Value::String(_) | Value::Null)] => Ok(value.clone()),
        _ => Err("takes a text"),
    }
}

/// At most so many characters.
fn cut(args: &[Value]) -> Answer {
    match args {
        [Value::Null, _] => Ok(Value::Null),
        [Value::String(text), length] => {
            let length = length.as_u64().and_then(|length| usize::try_from(length).ok());
            let length = length.ok_or("the length must be a whole number")?;
            Ok(Value::String(text.chars().take(length).collect()))
        }
        _ => Err("takes a text and a length"),
    }
}

/// The text when it is one plain e-mail address, the empty text, which clears a field, as it is, and otherwise null: a field
/// may hold several addresses, a name with one, or nonsense.
fn email(args: &[Value]) -> Answer {
    let [value] = args else { return Err("takes a text") };
    let Some(text) = value.as_str() else {
        return if value.is_null() { Ok(Value::Null) } else { Err("takes a text") };
    };
    let odd = |c: char| c.is_whitespace() || is_invisible(c) || ",;<>\"".contains(c);
    let (local, domain) = text.split_once('@').unwrap_or_default();
    let (host, top) = domain.rsplit_once('.').unwrap_or_default();
    let plain = !local.is_empty() && !host.is_empty() && !top.is_empty();
    let plain = plain && !domain.contains('@') && !text.contains(odd);
    Ok(if plain { value.clone() } else { Value::Null })
}

/// `timestamp without time zone`, which Odoo keeps in UTC, as RFC 3339. A timestamp with its zone stays.
fn utc(args: &[Value]) -> Answer {
    match args {
        [Value::Null] => Ok(Value::Null),
        [Value::String(text)] => {
            if let Ok(zoned) = text.parse::<jiff::Timestamp>() {
                return Ok(Value::String(zoned.to_string()));
            }
            let naive: jiff::civil::DateTime = text.parse().map_err(|_| "is not a date with a time")?;
            let at = naive.to_zoned(jiff::tz::TimeZone::UTC).map_err(|_| "is not a date with a time")?;
            Ok(Value::String(at.timestamp().to_string()))
        }
        _ => Err("takes a date with a time"),
    }
}

/// Seconds since 1970, as many APIs write times, as RFC 3339.
fn from_unix(args: &[Value]) -> Answer {
    match args {
        [Value::Null] => Ok(Value::Null),
        [Value::Number(seconds)] => {
            let at = seconds.as_i64().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
            Ok(Value::String(at.ok_or("is not a time")?.to_string()))
        }
        _ => Err("takes seconds since 1970"),
    }
}

/// Characters that nobody sees, or that turn the direction of what is behind them.
fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{AD}' | '\u{61C}' | '\u{200B}'..='\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2060}'..='\u{2069}' | '\u{FEFF}')
}

/// The text as it stands between single quotes in a vendor's query: backslashes and quotes escaped with a backslash.
fn quoted(args: &[Value]) -> Answer {
    match args {
        [Value::String(text)] => Ok(Value::String(text.replace('\\', "\\\\").replace('\'', "\\'"))),
        _ => Err("takes a text"),
    }
}

/// A canonical id as the name of an external id in Odoo (`ERP-P-8` is `ERP_P_8`): each id has a name of its own. Hyphens become
/// underscores; whatever else is neither letter nor digit is written as `~` and two hexadecimal digits for each byte.
fn external_name(args: &[Value]) -> Answer {
    let [Value::String(id)] = args else { return Err("takes a text") };
    let mut name = String::with_capacity(id.len());
    for byte in id.bytes() {
        match byte {
            b'-' => name.push('_'),
            byte if byte.is_ascii_alphanumeric() => name.push(char::from(byte)),
            other => name.push_str(&format!("~{other:02X}")),
        }
    }
    Ok(Value::String(name))
}

/// Wide enough that no line is broken.
const WIDTH: usize = 10_000;

/// The text of an HTML field, one line for each paragraph; null when there is none. Of one that is too long the beginning.
fn plain_text(args: &[Value]) -> Answer {
    match args {
        [Value::Null] => Ok(Value::Null),
        [Value::String(html)] => {
            let html = html::bounded(html);
            let text = html2text::config::plain_no_decorate().string_from_read(html.as_bytes(), WIDTH);
            let text = text.map_err(|_| "is not HTML that can be read")?;
            let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
            let text = lines.join("\n").trim().to_owned();
            Ok(if text.is_empty() { Value::Null } else { Value::String(text) })
        }
        _ => Err("takes HTML"),
    }
}

/// A number from 0 to `of` - 1 that is always the same for a text, and evenly spread over texts: `bucket(event.id, 100) < 10`
/// holds for a tenth of all customers. It is the first eight bytes of the text's SHA-256, modulo `of`.
fn bucket(args: &[Value]) -> Answer {
    let [Value::String(text), of] = args else { return Err("takes a text and a number") };
    let of = of.as_u64().filter(|of| *of > 0).ok_or("the number of buckets must be above 0")?;
    let digest = Sha256::digest(text.as_bytes());
    let head = digest.iter().take(8).fold(0_u64, |number, byte| (number << 8) | u64::from(*byte));
    Ok(Value::from(head % of))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_id_has_an_external_name_of_its_own() {
        let ids =
            ["foo-bar", "foo_bar", "foo bar", "foo~bar", "foo~2Dbar", "foo.bar", "fooé", "foo\u{e9}\u{301}"];
        let names: BTreeSet<String> = ids
            .iter()
            .map(|id| external_name(&[Value::from(*id)]).unwrap().as_str().unwrap().to_owned())
            .collect();
        assert_eq!(names.len(), ids.len(), "{names:?}");
        assert!(names.iter().all(|name| name.is_ascii() && !name.contains('.')), "{names:?}");
        assert_eq!(external_name(&[Value::from("ERP-P-8")]), Ok(Value::from("ERP_P_8")));
    }
}
