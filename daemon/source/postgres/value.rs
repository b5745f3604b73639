//! Column values in PostgreSQL's text form to JSON, by type OID.
//!
//! JSON numbers are used only where they are exact: 64-bit integers beyond 2^53 and `numeric` stay text, so that no
//! float ever touches money. Sources: `pg_type.dat` for the OIDs, the type output functions for the forms.

use serde_json::Value;

/// Largest integer that every JSON reader holds exactly (2^53).
const MAX_EXACT_INTEGER: i64 = 1 << 53;

const BOOL: u32 = 16;
const INT8: u32 = 20;
const INT2: u32 = 21;
const INT4: u32 = 23;
const OID: u32 = 26;
const JSON: u32 = 114;
const FLOAT4: u32 = 700;
const FLOAT8: u32 = 701;
const JSONB: u32 = 3802;

/// A value that does not have the form its type promises.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// Not UTF-8 although `client_encoding` is.
    #[error("the value is not UTF-8")]
    NotUtf8,
    /// Not of the form of its type.
    #[error("the value does not have the text form of type OID {0}")]
    WrongForm(u32),
}

/// Decodes the text form of a value of type `type_oid`.
pub fn decode_text(type_oid: u32, bytes: &[u8]) -> Result<Value, ValueError> {
    let text = std::str::from_utf8(bytes).map_err(|_| ValueError::NotUtf8)?;
    let wrong = || ValueError::WrongForm(type_oid);
    Ok(match type_oid {
        BOOL => match text {
            "t" => Value::Bool(true),
            "f" => Value::Bool(false),
            _ => return Err(wrong()),
        },
        INT2 | INT4 | INT8 | OID => {
            let number: i64 = text.parse().map_err(|_| wrong())?;
            if number.abs() > MAX_EXACT_INTEGER {
                Value::String(text.to_owned())
            } else {
                Value::from(number)
            }
        }
        FLOAT4 | FLOAT8 => {
            let number: f64 = text.parse().map_err(|_| wrong())?;
            if number.is_finite() { Value::from(number) } else { Value::String(text.to_owned()) }
        }
        JSON | JSONB => serde_json::from_str(text).map_err(|_| wrong())?,
        _ => Value::String(text.to_owned()),
    })
}
