//! Column values, in PostgreSQL's text or binary form, to JSON, by type. Both forms of a value give the same JSON.
//!
//! JSON numbers are used only where they are exact: 64-bit integers beyond 2^53 and `numeric` stay text, so that no
//! float ever touches money; so do the infinities and NaN. Arrays become lists. Sources: `pg_type.dat` for the OIDs,
//! the output functions of the types for the text forms, their send functions for the binary ones (`binary.rs`).

use serde_json::Value;

use super::{array, binary};
use crate::bounds::JSON_DEPTH;

/// Largest integer that every JSON reader holds exactly (2^53).
const MAX_EXACT_INTEGER: i64 = 1 << 53;

/// A value that does not have the form its type promises.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// Not UTF-8 although `client_encoding` is.
    #[error("the value is not UTF-8")]
    NotUtf8,
    /// Not of the form of its type.
    #[error("the value does not have the {0} form of its type")]
    WrongForm(&'static str),
    /// A type whose binary form is not known here.
    #[error("the binary form of type OID {0} is not known; set `binary = false` for this source")]
    NoBinaryForm(u32),
}

/// How a value that is no array is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scalar {
    /// `t` or `f`.
    Bool,
    /// 16, 32 or 64 bits, or an OID.
    Integer,
    /// 32 bits.
    Float4,
    /// 64 bits.
    Float8,
    /// Any number of digits; stays text.
    Numeric,
    /// Text as it is: also enums, `xml`, and the text form of whatever is not listed here.
    Text,
    /// Hexadecimal with `\x` in front.
    Bytea,
    /// JSON text.
    Json,
    /// JSON text, with a version byte in front in binary.
    Jsonb,
    /// ISO date.
    Date,
    /// Time of day.
    Time,
    /// ISO date and time without a zone.
    Timestamp,
    /// ISO date and time in UTC.
    TimestampTz,
    /// UUID.
    Uuid,
    /// Text form as it is; its binary form is not known.
    Other(u32),
}

/// How values of a type are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    /// The value, or an element of it.
    pub scalar: Scalar,
    /// An array of such values.
    pub array: bool,
}

impl Form {
    /// A value that is no array.
    #[must_use]
    pub const fn of(scalar: Scalar) -> Self {
        Self { scalar, array: false }
    }

    /// The form of a built-in type; `None` for all others.
    #[must_use]
    pub fn built_in(type_oid: u32) -> Option<Self> {
        let (scalar, array) = match type_oid {
            16 => (Scalar::Bool, false),
            1000 => (Scalar::Bool, true),
            20 | 21 | 23 | 26 => (Scalar::Integer, false),
            1016 | 1005 | 1007 | 1028 => (Scalar::Integer, true),
            700 => (Scalar::Float4, false),
            1021 => (Scalar::Float4, true),
            701 => (Scalar::Float8, false),
            1022 => (Scalar::Float8, true),
            1700 => (Scalar::Numeric, false),
            1231 => (Scalar::Numeric, true),
            // "char", name, text, xml, unknown, bpchar, varchar
            18 | 19 | 25 | 142 | 705 | 1042 | 1043 => (Scalar::Text, false),
            1002 | 1003 | 1009 | 143 | 1014 | 1015 => (Scalar::Text, true),
            17 => (Scalar::Bytea, false),
            1001 => (Scalar::Bytea, true),
            114 => (Scalar::Json, false),
            199 => (Scalar::Json, true),
            3802 => (Scalar::Jsonb, false),
            3807 => (Scalar::Jsonb, true),
            1082 => (Scalar::Date, false),
            1182 => (Scalar::Date, true),
            1083 => (Scalar::Time, false),
            1183 => (Scalar::Time, true),
            1114 => (Scalar::Timestamp, false),
            1115 => (Scalar::Timestamp, true),
            1184 => (Scalar::TimestampTz, false),
            1185 => (Scalar::TimestampTz, true),
            2950 => (Scalar::Uuid, false),
            2951 => (Scalar::Uuid, true),
            _ => return None,
        };
        Some(Self { scalar, array })
    }

    /// Decodes the text form.
    pub fn decode_text(self, bytes: &[u8]) -> Result<Value, ValueError> {
        let text = std::str::from_utf8(bytes).map_err(|_| ValueError::NotUtf8)?;
        if self.array { array::decode_text(self.scalar, text) } else { scalar_text(self.scalar, text) }
    }

    /// Checks the text form as [`Self::decode_text`] does, and keeps nothing.
    pub fn check_text(self, bytes: &[u8]) -> Result<(), ValueError> {
        let wrong = ValueError::WrongForm("text");
        let text = std::str::from_utf8(bytes).map_err(|_| ValueError::NotUtf8)?;
        let holds = match self.scalar {
            _ if self.array => array::decode_text(self.scalar, text).is_ok(),
            Scalar::Bool => matches!(text, "t" | "f"),
            Scalar::Integer => text.parse::<i64>().is_ok(),
            Scalar::Float4 | Scalar::Float8 => text.parse::<f64>().is_ok(),
            Scalar::Json | Scalar::Jsonb => is_json(text),
            _ => true,
        };
        if holds { Ok(()) } else { Err(wrong) }
    }

    /// Decodes the binary form.
    pub fn decode_binary(self, bytes: &[u8]) -> Result<Value, ValueError> {
        if self.array { array::decode_binary(self.scalar, bytes) } else { binary::decode(self.scalar, bytes) }
    }
}

/// Decodes the text form of a value that is no array.
pub(super) fn scalar_text(scalar: Scalar, text: &str) -> Result<Value, ValueError> {
    let wrong = || ValueError::WrongForm("text");
    Ok(match scalar {
        Scalar::Bool => match text {
            "t" => Value::Bool(true),
            "f" => Value::Bool(false),
            _ => return Err(wrong()),
        },
        Scalar::Integer => integer(text.parse().map_err(|_| wrong())?),
        Scalar::Float4 | Scalar::Float8 => float(text.parse().map_err(|_| wrong())?),
        Scalar::Json | Scalar::Jsonb => match serde_json::from_str(text) {
            Ok(value) if is_kept(&value, JSON_DEPTH) => value,
            // `json` may hold what `jsonb`, in which images are kept, cannot; both may hold numbers beyond any float, and be deeper
            // than whoever reads an event can go.
            _ if is_json(text) => Value::String(text.to_owned()),
            _ => return Err(wrong()),
        },
        _ => Value::String(text.to_owned()),
    })
}

fn is_json(text: &str) -> bool {
    serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}

/// It has no NUL, and no more than so many levels.
fn is_kept(value: &Value, levels: usize) -> bool {
    match value {
        Value::String(text) => !text.contains('\0'),
        Value::Array(items) => levels > 0 && items.iter().all(|item| is_kept(item, levels - 1)),
        Value::Object(map) => {
            let kept = |(name, value): (&String, &Value)| !name.contains('\0') && is_kept(value, levels - 1);
            levels > 0 && map.iter().all(kept)
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => true,
    }
}

/// A number where JSON is exact, else text.
pub(super) fn integer(number: i64) -> Value {
    if number.unsigned_abs() > MAX_EXACT_INTEGER.unsigned_abs() {
        Value::String(number.to_string())
    } else {
        Value::from(number)
    }
}

/// A number, or the text that PostgreSQL has for what JSON has not.
pub(super) fn float(number: f64) -> Value {
    match number {
        _ if number.is_finite() => Value::from(number),
        _ if number.is_nan() => Value::from("NaN"),
        _ if number > 0.0 => Value::from("Infinity"),
        _ => Value::from("-Infinity"),
    }
}
