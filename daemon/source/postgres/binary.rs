//! Binary forms of values that are no arrays, to the JSON that their text forms give.
//!
//! Sources: the `*_send` functions in PostgreSQL's `src/backend/utils/adt`.

use jiff::civil::{Date, DateTime, date};
use jiff::{SignedDuration, Span};
use serde_json::Value;

use super::value::{Scalar, ValueError, float, integer, scalar_text};
use super::wire::reader::{DecodeError, FieldReader};

const WRONG: ValueError = ValueError::WrongForm("binary");
const EPOCH: Date = date(2000, 1, 1);
const US_PER_SECOND: i64 = 1_000_000;

impl From<DecodeError> for ValueError {
    fn from(_: DecodeError) -> Self {
        WRONG
    }
}

/// Decodes the binary form of a value that is no array.
pub(super) fn decode(scalar: Scalar, bytes: &[u8]) -> Result<Value, ValueError> {
    let text = || std::str::from_utf8(bytes).map_err(|_| ValueError::NotUtf8);
    let mut fields = FieldReader::new("value", bytes);
    Ok(match scalar {
        Scalar::Text => Value::from(text()?),
        Scalar::Json => scalar_text(Scalar::Json, text()?)?,
        Scalar::Jsonb => {
            let rest = bytes.strip_prefix(&[1]).ok_or(WRONG)?;
            scalar_text(Scalar::Jsonb, std::str::from_utf8(rest).map_err(|_| ValueError::NotUtf8)?)?
        }
        Scalar::Bytea => Value::from(format!("\\x{}", crate::event::hex(bytes))),
        Scalar::Bool => match bytes {
            [0] => Value::Bool(false),
            [1] => Value::Bool(true),
            _ => return Err(WRONG),
        },
        Scalar::Integer => match *bytes {
            [a, b] => integer(i64::from(i16::from_be_bytes([a, b]))),
            [a, b, c, d] => integer(i64::from(i32::from_be_bytes([a, b, c, d]))),
            _ => integer(i64::from_be_bytes(exactly(bytes)?)),
        },
        // The shortest text of the 32-bit value, as PostgreSQL prints it, not its 64-bit neighbour.
        Scalar::Float4 => float(f32::from_be_bytes(exactly(bytes)?).to_string().parse().map_err(|_| WRONG)?),
        Scalar::Float8 => float(f64::from_be_bytes(exactly(bytes)?)),
        Scalar::Numeric => Value::from(numeric(&mut fields)?),
        Scalar::Date => match i32::from_be_bytes(exactly(bytes)?) {
            i32::MAX => Value::from("infinity"),
            i32::MIN => Value::from("-infinity"),
            days => Value::from(date_text(
                EPOCH.checked_add(Span::new().try_days(days).map_err(|_| WRONG)?).map_err(|_| WRONG)?,
            )?),
        },
        Scalar::Time => Value::from(time_text(i64::from_be_bytes(exactly(bytes)?))),
        Scalar::Timestamp => timestamp(i64::from_be_bytes(exactly(bytes)?), "")?,
        Scalar::TimestampTz => timestamp(i64::from_be_bytes(exactly(bytes)?), "+00")?,
        Scalar::Uuid => uuid(&exactly(bytes)?),
        Scalar::Other(type_oid) => return Err(ValueError::NoBinaryForm(type_oid)),
    })
}

fn exactly<const N: usize>(bytes: &[u8]) -> Result<[u8; N], ValueError> {
    bytes.try_into().map_err(|_| WRONG)
}

fn uuid(bytes: &[u8; 16]) -> Value {
    let hex = crate::event::hex(bytes);
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
    Value::from([part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)].join("-"))
}

/// Years before 1 and beyond 9999 are refused: they have no common text form.
fn date_text(date: Date) -> Result<String, ValueError> {
    if date.year() < 1 { Err(WRONG) } else { Ok(date.to_string()) }
}

/// `HH:MM:SS`, with as many digits of the fraction as are not zero.
fn time_text(us: i64) -> String {
    let seconds = us.div_euclid(US_PER_SECOND);
    let mut text = format!("{:02}:{:02}:{:02}", seconds / 3_600, seconds / 60 % 60, seconds % 60);
    let fraction = us.rem_euclid(US_PER_SECOND);
    if fraction != 0 {
        text.push_str(format!(".{fraction:06}").trim_end_matches('0'));
    }
    text
}

fn timestamp(us: i64, zone: &str) -> Result<Value, ValueError> {
    match us {
        i64::MAX => return Ok(Value::from("infinity")),
        i64::MIN => return Ok(Value::from("-infinity")),
        _ => {}
    }
    let epoch: DateTime = EPOCH.at(0, 0, 0, 0);
    let at = epoch.checked_add(SignedDuration::from_micros(us)).map_err(|_| WRONG)?;
    let since_midnight_us = us.rem_euclid(86_400 * US_PER_SECOND);
    Ok(Value::from(format!("{} {}{zone}", date_text(at.date())?, time_text(since_midnight_us))))
}

/// Digits in base 10,000 (`numeric_send`).
fn numeric(fields: &mut FieldReader<'_>) -> Result<String, ValueError> {
    let count = fields.u16("ndigits")?;
    let weight = i32::from(fields.u16("weight")?.cast_signed());
    let sign = fields.u16("sign")?;
    let scale = usize::from(fields.u16("dscale")?);
    match sign {
        0x0000 | 0x4000 => {}
        0xC000 => return Ok("NaN".into()),
        0xD000 => return Ok("Infinity".into()),
        0xF000 => return Ok("-Infinity".into()),
        _ => return Err(WRONG),
    }
    let mut digits = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        digits.push(fields.u16("digit")?);
    }
    let digit = |place: i32| {
        let index = usize::try_from(weight - place).ok();
        index.and_then(|index| digits.get(index)).copied().unwrap_or(0)
    };
    let mut whole: String = (0..=weight.max(0)).rev().map(|place| format!("{:04}", digit(place))).collect();
    let kept = whole.trim_start_matches('0').len().max(1);
    whole.drain(..whole.len() - kept);
    let mut fraction = String::new();
    let mut place = -1;
    while fraction.len() < scale {
        fraction.push_str(&format!("{:04}", digit(place)));
        place -= 1;
    }
    fraction.truncate(scale);
    let minus = if sign == 0x4000 { "-" } else { "" };
    let point = if scale == 0 { "" } else { "." };
    Ok(format!("{minus}{whole}{point}{fraction}"))
}
