//! Arrays of both forms to lists, nested as they are. Lower bounds other than 1 are not kept.
//!
//! Text: <https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO>; binary: `array_send` in `arrayfuncs.c`.

use serde_json::Value;

use super::binary;
use super::value::{Scalar, ValueError, scalar_text};
use super::wire::reader::FieldReader;

/// PostgreSQL's own limit (`MAXDIM`).
const MAX_DIMENSIONS: usize = 6;

/// Decodes `{1,NULL,"a,b"}`, also with bounds in front (`[0:1]={…}`).
pub(super) fn decode_text(scalar: Scalar, text: &str) -> Result<Value, ValueError> {
    let literal = match text.strip_prefix('[') {
        Some(_) => text.split_once('=').ok_or(ValueError::WrongForm("text"))?.1,
        None => text,
    };
    let mut parser = Parser { scalar, rest: literal.strip_prefix('{').ok_or(ValueError::WrongForm("text"))? };
    let list = parser.list(1)?;
    if parser.rest.is_empty() { Ok(list) } else { Err(ValueError::WrongForm("text")) }
}

struct Parser<'a> {
    scalar: Scalar,
    rest: &'a str,
}

impl Parser<'_> {
    /// The elements up to the closing brace.
    fn list(&mut self, depth: usize) -> Result<Value, ValueError> {
        let mut items = Vec::new();
        if self.take('}') {
            return Ok(Value::Array(items));
        }
        loop {
            items.push(match self.rest.chars().next() {
                Some('{') if depth < MAX_DIMENSIONS => {
                    self.take('{');
                    self.list(depth + 1)?
                }
                Some('"') => {
                    self.take('"');
                    let text = self.quoted()?;
                    scalar_text(self.scalar, &text)?
                }
                _ => self.bare()?,
            });
            if self.take('}') {
                return Ok(Value::Array(items));
            }
            if !self.take(',') {
                return Err(ValueError::WrongForm("text"));
            }
        }
    }

    fn take(&mut self, expected: char) -> bool {
        let stripped = self.rest.strip_prefix(expected);
        self.rest = stripped.unwrap_or(self.rest);
        stripped.is_some()
    }

    fn quoted(&mut self) -> Result<String, ValueError> {
        let mut text = String::new();
        let mut chars = self.rest.chars();
        while let Some(char) = chars.next() {
            match char {
                '"' => {
                    self.rest = chars.as_str();
                    return Ok(text);
                }
                '\\' => text.push(chars.next().ok_or(ValueError::WrongForm("text"))?),
                other => text.push(other),
            }
        }
        Err(ValueError::WrongForm("text"))
    }

    fn bare(&mut self) -> Result<Value, ValueError> {
        let end = self.rest.find([',', '}']).ok_or(ValueError::WrongForm("text"))?;
        let (text, rest) = self.rest.split_at(end);
        self.rest = rest;
        if text == "NULL" { Ok(Value::Null) } else { scalar_text(self.scalar, text) }
    }
}

/// Decodes what `array_send` wrote.
pub(super) fn decode_binary(scalar: Scalar, bytes: &[u8]) -> Result<Value, ValueError> {
    let wrong = |_| ValueError::WrongForm("binary");
    let mut fields = FieldReader::new("array", bytes);
    let dimensions = usize::try_from(fields.i32("ndim").map_err(wrong)?).unwrap_or(usize::MAX);
    let _has_nulls = fields.i32("flags").map_err(wrong)?;
    let _element_oid = fields.u32("element").map_err(wrong)?;
    if dimensions > MAX_DIMENSIONS {
        return Err(ValueError::WrongForm("binary"));
    }
    let mut lengths = Vec::with_capacity(dimensions);
    for _ in 0..dimensions {
        lengths.push(usize::try_from(fields.i32("length").map_err(wrong)?).unwrap_or(usize::MAX));
        let _lower_bound = fields.i32("bound").map_err(wrong)?;
    }
    // Each element takes four bytes at least, and an empty array has no dimensions: lengths that promise more are made up.
    let elements = lengths.iter().try_fold(1_usize, |product, length| product.checked_mul(*length));
    if elements.is_none_or(|elements| elements == 0 || elements > bytes.len() / 4) {
        return Err(ValueError::WrongForm("binary"));
    }
    let list =
        if lengths.is_empty() { Value::Array(Vec::new()) } else { nested(scalar, &lengths, &mut fields)? };
    fields.end().map_err(wrong)?;
    Ok(list)
}

fn nested(scalar: Scalar, lengths: &[usize], fields: &mut FieldReader<'_>) -> Result<Value, ValueError> {
    let wrong = |_| ValueError::WrongForm("binary");
    let Some((length, inner)) = lengths.split_first() else {
        return match fields.i32("element").map_err(wrong)? {
            -1 => Ok(Value::Null),
            size => {
                let size = usize::try_from(size).map_err(|_| ValueError::WrongForm("binary"))?;
                binary::decode(scalar, fields.bytes("element", size).map_err(wrong)?)
            }
        };
    };
    // No capacity in advance: the length is the sender's word only.
    let mut items = Vec::new();
    for _ in 0..*length {
        items.push(nested(scalar, inner, fields)?);
    }
    Ok(Value::Array(items))
}
