//! Exact decimals for expressions: money never passes through a float.
//!
//! A decimal is a JSON text (`"434.08"`), as `numeric` comes from PostgreSQL; whole numbers and floats are taken by the digits
//! they print as, because Odoo keeps some prices and quantities in `float8`. At most 28 digits.

use std::cmp::Ordering;

use rust_decimal::{Decimal, RoundingStrategy};
use serde_json::Value;

/// What a function gives, or why it cannot; never with values (INV-12).
pub type Answer = Result<Value, &'static str>;

const NOT_A_NUMBER: &str = "is not a decimal number of at most 28 digits";
const TOO_LARGE: &str = "the result has more than 28 digits";

/// Currencies have at most four digits (ISO 4217); a few ERPs keep more for prices.
const MAX_DIGITS: i64 = 12;

fn parse(value: &Value) -> Result<Option<Decimal>, &'static str> {
    let text = match value {
        Value::Null => return Ok(None),
        Value::String(text) => text.trim().to_owned(),
        Value::Number(number) => number.to_string(),
        Value::Bool(_) | Value::Array(_) | Value::Object(_) => return Err(NOT_A_NUMBER),
    };
    let parsed = Decimal::from_str_exact(&text).or_else(|_| Decimal::from_scientific(&text));
    parsed.map(Some).map_err(|_| NOT_A_NUMBER)
}

fn print(mut decimal: Decimal) -> Value {
    if decimal.is_zero() {
        decimal.set_sign_positive(true);
    }
    Value::String(decimal.to_string())
}

fn digits_of(value: &Value) -> Result<u32, &'static str> {
    let digits = value.as_i64().filter(|digits| (0..=MAX_DIGITS).contains(digits));
    digits.and_then(|digits| u32::try_from(digits).ok()).ok_or("digits must be a whole number from 0 to 12")
}

fn rounded(decimal: Decimal, digits: u32) -> Decimal {
    let mut rounded = decimal.round_dp_with_strategy(digits, RoundingStrategy::MidpointAwayFromZero);
    rounded.rescale(digits);
    rounded
}

/// The number without trailing zeros: `"3.00"` is `"3"`.
pub fn decimal(args: &[Value]) -> Answer {
    let [value] = args else { return Err("takes one value") };
    Ok(parse(value)?.map_or(Value::Null, |decimal| print(decimal.normalize())))
}

/// The amount with as many digits as its currency has; half a unit is rounded away from zero, as Odoo does.
pub fn money(args: &[Value]) -> Answer {
    let [value, digits] = args else { return Err("takes an amount and a number of digits") };
    let Some(amount) = parse(value)? else { return Ok(Value::Null) };
    Ok(print(rounded(amount, digits_of(digits)?)))
}

/// The amount in the currency's smallest unit, a whole number: 12.30 with two digits is 1230.
pub fn minor_units(args: &[Value]) -> Answer {
    let [value, digits] = args else { return Err("takes an amount and a number of digits") };
    let Some(amount) = parse(value)? else { return Ok(Value::Null) };
    let amount = rounded(amount, digits_of(digits)?);
    let whole = i64::try_from(amount.mantissa()).map_err(|_| TOO_LARGE)?;
    Ok(Value::from(whole))
}

/// Digits of currencies that have not two (ISO 4217).
const DIGITS: [(&str, u32); 21] = [
    ("BHD", 3),
    ("BIF", 0),
    ("CLP", 0),
    ("DJF", 0),
    ("GNF", 0),
    ("IQD", 3),
    ("JOD", 3),
    ("JPY", 0),
    ("KMF", 0),
    ("KRW", 0),
    ("KWD", 3),
    ("LYD", 3),
    ("OMR", 3),
    ("PYG", 0),
    ("RWF", 0),
    ("TND", 3),
    ("UGX", 0),
    ("VND", 0),
    ("XAF", 0),
    ("XOF", 0),
    ("XPF", 0),
];

/// The amount of a whole number of the currency's smallest unit: 1230 of `usd` is `"12.30"`.
pub fn major_units(args: &[Value]) -> Answer {
    let [value, Value::String(currency)] = args else { return Err("takes an amount and a currency") };
    let Some(amount) = parse(value)? else { return Ok(Value::Null) };
    let currency = currency.to_uppercase();
    let digits = DIGITS.iter().find(|(name, _)| *name == currency).map_or(2, |(_, digits)| *digits);
    let whole = i64::try_from(amount.mantissa()).ok().filter(|_| amount.scale() == 0);
    Ok(print(Decimal::new(whole.ok_or("is not a whole number")?, digits)))
}

/// The sum of a list; nulls count nothing, an empty list is 0.
pub fn sum(args: &[Value]) -> Answer {
    let [Value::Array(items)] = args else { return Err("takes a list") };
    let mut total = Decimal::ZERO;
    for item in items {
        total = total.checked_add(parse(item)?.unwrap_or_default()).ok_or(TOO_LARGE)?;
    }
    Ok(print(total))
}

fn both(args: &[Value], work: impl Fn(Decimal, Decimal) -> Option<Decimal>) -> Answer {
    let [a, b] = args else { return Err("takes two numbers") };
    let (Some(a), Some(b)) = (parse(a)?, parse(b)?) else { return Ok(Value::Null) };
    work(a, b).map(print).ok_or(TOO_LARGE)
}

/// `a + b`; null if one is.
pub fn plus(args: &[Value]) -> Answer {
    both(args, Decimal::checked_add)
}

/// `a - b`; null if one is.
pub fn minus(args: &[Value]) -> Answer {
    both(args, Decimal::checked_sub)
}

/// `a * b`; null if one is.
pub fn times(args: &[Value]) -> Answer {
    both(args, Decimal::checked_mul)
}

/// -1, 0 or 1 as `a` is less than, equal to or greater than `b`; null if one is null.
pub fn compare(args: &[Value]) -> Answer {
    let [a, b] = args else { return Err("takes two numbers") };
    let (Some(a), Some(b)) = (parse(a)?, parse(b)?) else { return Ok(Value::Null) };
    Ok(Value::from(match a.cmp(&b) {
        Ordering::Less => -1,
        Ordering::Equal => 0,
        Ordering::Greater => 1,
    }))
}
