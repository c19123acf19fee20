//! Parameters of Bind as scalars.
//!
//! ```text
//!   declared int4, binary 00 00 00 2a   -> Int32(42)
//!   inferred Decimal128(12, 2), "1.5"   -> Decimal128(150, 12, 2);  "1.505" keeps its own scale: nothing is rounded away
//!   inferred Timestamp(us, UTC), "2024-07-03 11:00" in a session of Europe/Paris -> 09:00 UTC
//! ```
//!
//! The type is the one the client declared in Parse, else the one inferred for the statement. The scalar has the Arrow type
//! that describing the statement told wherever that loses nothing.
//!
//! Not here: arrays as parameters (0A000).

#[cfg(test)]
mod tests;

use super::calendar::{self, PG_EPOCH_DAYS, PG_EPOCH_MICROS, Zone};
use super::encode::{Style, read_numeric, read_numeric_binary};
use super::types::arrow_of;
use bytes::{Buf, Bytes};
use datafusion::arrow::array::types::IntervalMonthDayNano;
use datafusion::arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use postgres_types::Type;
use tessera_proto::{Error, Result};

/// Decodes one parameter. `described` is its Arrow type where the statement's description tells.
///
/// # Errors
/// 22P02 and the like for bad text, 22P03 for bad binary, 22021 for text that is not UTF-8, 0A000 for types we cannot take.
pub(super) fn decode(
    value: Option<Bytes>,
    format: i16,
    pg_type: &Type,
    described: Option<&DataType>,
    style: &Style,
) -> Result<ScalarValue> {
    let target = described
        .filter(|t| !t.is_null())
        .cloned()
        .or_else(|| arrow_of(pg_type))
        .unwrap_or(DataType::Utf8View);
    let Some(bytes) = value else {
        return ScalarValue::try_from(&target).map_err(Error::from);
    };
    let scalar = match format {
        0 => from_text(&text_of(bytes)?, pg_type, style)?,
        _ => from_binary(bytes, pg_type)?,
    };
    Ok(fit(scalar, &target))
}

/// The scalar with the described type if it keeps its value, else as it is: coercion of the statement decides then.
fn fit(scalar: ScalarValue, target: &DataType) -> ScalarValue {
    // Bare numeric, as declared by most drivers: a cast would only add zeros to what the client sees of it again.
    let bare = scalar.data_type().is_decimal() && arrow_of(&Type::NUMERIC).as_ref() == Some(target);
    if bare || &scalar.data_type() == target {
        return scalar;
    }
    let Ok(cast) = scalar.cast_to(target) else {
        return scalar;
    };
    let exact = !cast.is_null() && cast.cast_to(&scalar.data_type()).is_ok_and(|back| back == scalar);
    if exact { cast } else { scalar }
}

fn text_of(bytes: Bytes) -> Result<String> {
    let text = String::from_utf8(bytes.to_vec())
        .ok()
        .filter(|text| !text.contains('\0'));
    text.ok_or_else(|| Error::new("22021", "invalid byte sequence for encoding \"UTF8\""))
}

fn invalid(pg_type: &Type, text: &str) -> Error {
    Error::new(
        "22P02",
        format!("invalid input syntax for type {}: \"{text}\"", name_of(pg_type)),
    )
}

fn name_of(pg_type: &Type) -> &str {
    match *pg_type {
        Type::BOOL => "boolean",
        Type::INT2 => "smallint",
        Type::INT4 => "integer",
        Type::INT8 => "bigint",
        Type::FLOAT4 => "real",
        Type::FLOAT8 => "double precision",
        _ => pg_type.name(),
    }
}

fn refused(pg_type: &Type) -> Error {
    Error::unsupported(
        format!("parameters of type {} are not supported", pg_type.name()),
        "send the value as text",
    )
}

fn from_text(text: &str, pg_type: &Type, style: &Style) -> Result<ScalarValue> {
    let zone = Zone::Of(style.zone.as_ref());
    Ok(match *pg_type {
        Type::BOOL => ScalarValue::Boolean(Some(read_bool(text).ok_or_else(|| invalid(pg_type, text))?)),
        Type::INT2 => ScalarValue::Int16(Some(read_int(text, pg_type)?)),
        Type::INT4 => ScalarValue::Int32(Some(read_int(text, pg_type)?)),
        Type::INT8 | Type::OID => ScalarValue::Int64(Some(read_int(text, pg_type)?)),
        Type::FLOAT4 => ScalarValue::Float32(Some(read_float(text, pg_type)?)),
        Type::FLOAT8 => ScalarValue::Float64(Some(read_float(text, pg_type)?)),
        Type::NUMERIC => read_numeric(text)?,
        Type::BYTEA => ScalarValue::BinaryView(Some(read_bytea(text)?)),
        Type::DATE => ScalarValue::Date32(Some(calendar::read_date(text)?)),
        Type::TIME => ScalarValue::Time64Microsecond(Some(calendar::read_time(text)?)),
        Type::TIMESTAMP => ScalarValue::TimestampMicrosecond(Some(calendar::read_timestamp(text, Zone::None)?), None),
        Type::TIMESTAMPTZ => utc(calendar::read_timestamp(text, zone)?),
        Type::INTERVAL => ScalarValue::IntervalMonthDayNano(Some(calendar::read_interval(text)?)),
        Type::UUID => {
            let uuid = uuid::Uuid::try_parse(text.trim()).map_err(|_| invalid(pg_type, text))?;
            ScalarValue::FixedSizeBinary(16, Some(uuid.as_bytes().to_vec()))
        }
        _ if arrow_of(pg_type) == Some(DataType::Utf8View) => ScalarValue::Utf8View(Some(text.to_owned())),
        _ => return Err(refused(pg_type)),
    })
}

fn utc(micros: i64) -> ScalarValue {
    ScalarValue::TimestampMicrosecond(Some(micros), Some("+00:00".into()))
}

/// PostgreSQL's words, each also shortened as long as it is clear.
fn read_bool(text: &str) -> Option<bool> {
    let word = text.trim().to_ascii_lowercase();
    match word.as_str() {
        "" | "o" => None,
        "1" | "on" => Some(true),
        "0" => Some(false),
        w if "true".starts_with(w) || "yes".starts_with(w) => Some(true),
        w if "false".starts_with(w) || "no".starts_with(w) || "off".starts_with(w) => Some(false),
        _ => None,
    }
}

fn read_int<T: TryFrom<i128>>(text: &str, pg_type: &Type) -> Result<T> {
    let body = text.trim();
    let digits = body.strip_prefix(['+', '-']).unwrap_or(body);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(invalid(pg_type, text));
    }
    let range = || {
        Error::new(
            "22003",
            format!("value \"{text}\" is out of range for type {}", name_of(pg_type)),
        )
    };
    let value: i128 = body.parse().map_err(|_| range())?;
    T::try_from(value).map_err(|_| range())
}

fn read_float<T: std::str::FromStr + Into<f64> + Copy>(text: &str, pg_type: &Type) -> Result<T> {
    let body = text.trim();
    let value: T = body.parse().map_err(|_| invalid(pg_type, text))?;
    // Rust reads digits beyond the range as infinity; only the word may mean that.
    if value.into().is_infinite() && !body.contains(['i', 'I']) {
        return Err(Error::new(
            "22003",
            format!("\"{text}\" is out of range for type {}", name_of(pg_type)),
        ));
    }
    Ok(value)
}

/// `\x0aff` or the older form with `\\` and `\ooo`.
fn read_bytea(text: &str) -> Result<Vec<u8>> {
    let bad = || invalid(&Type::BYTEA, text);
    if let Some(hex) = text.strip_prefix("\\x") {
        let digits: Vec<u8> = hex
            .chars()
            .filter(|c| !c.is_ascii_whitespace())
            .map(|c| c.to_digit(16).map(|d| d as u8))
            .collect::<Option<_>>()
            .ok_or_else(bad)?;
        if !digits.len().is_multiple_of(2) {
            return Err(Error::new("22023", "invalid hexadecimal data: odd number of digits"));
        }
        return Ok(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect());
    }
    let (mut out, mut rest) = (vec![], text.as_bytes());
    while let [first, tail @ ..] = rest {
        rest = match (first, tail) {
            (b'\\', [b'\\', tail @ ..]) => {
                out.push(b'\\');
                tail
            }
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..]) => {
                out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                tail
            }
            (b'\\', _) => return Err(bad()),
            (byte, tail) => {
                out.push(*byte);
                tail
            }
        };
    }
    Ok(out)
}

fn from_binary(bytes: Bytes, pg_type: &Type) -> Result<ScalarValue> {
    Ok(match *pg_type {
        Type::BOOL => ScalarValue::Boolean(Some(fixed::<1>(&bytes, pg_type)?[0] != 0)),
        Type::INT2 => ScalarValue::Int16(Some(i16::from_be_bytes(fixed(&bytes, pg_type)?))),
        Type::INT4 => ScalarValue::Int32(Some(i32::from_be_bytes(fixed(&bytes, pg_type)?))),
        Type::INT8 => ScalarValue::Int64(Some(i64::from_be_bytes(fixed(&bytes, pg_type)?))),
        Type::OID => ScalarValue::Int64(Some(u32::from_be_bytes(fixed(&bytes, pg_type)?).into())),
        Type::FLOAT4 => ScalarValue::Float32(Some(f32::from_be_bytes(fixed(&bytes, pg_type)?))),
        Type::FLOAT8 => ScalarValue::Float64(Some(f64::from_be_bytes(fixed(&bytes, pg_type)?))),
        Type::NUMERIC => read_numeric_binary(bytes)?,
        Type::BYTEA => ScalarValue::BinaryView(Some(bytes.to_vec())),
        Type::UUID => ScalarValue::FixedSizeBinary(16, Some(fixed::<16>(&bytes, pg_type)?.to_vec())),
        Type::DATE => ScalarValue::Date32(Some(arrow_date(i32::from_be_bytes(fixed(&bytes, pg_type)?))?)),
        Type::TIME => {
            let micros = i64::from_be_bytes(fixed(&bytes, pg_type)?);
            let valid = (0..=calendar::DAY_MICROS).contains(&micros);
            ScalarValue::Time64Microsecond(Some(
                valid
                    .then_some(micros)
                    .ok_or_else(|| Error::new("22008", "time out of range"))?,
            ))
        }
        Type::TIMESTAMP => ScalarValue::TimestampMicrosecond(
            Some(arrow_timestamp(i64::from_be_bytes(fixed(&bytes, pg_type)?))?),
            None,
        ),
        Type::TIMESTAMPTZ => utc(arrow_timestamp(i64::from_be_bytes(fixed(&bytes, pg_type)?))?),
        Type::INTERVAL => interval_from_binary(&fixed::<16>(&bytes, pg_type)?)?,
        _ if arrow_of(pg_type) == Some(DataType::Utf8View) => ScalarValue::Utf8View(Some(text_of(bytes)?)),
        _ => return Err(refused(pg_type)),
    })
}

fn fixed<const N: usize>(bytes: &Bytes, pg_type: &Type) -> Result<[u8; N]> {
    let wrong = |_| {
        Error::new(
            "22P03",
            format!("incorrect binary data format for type {}", name_of(pg_type)),
        )
    };
    <[u8; N]>::try_from(bytes.as_ref()).map_err(wrong)
}

/// Days since 1970 of days since 2000; infinity stays what it is.
fn arrow_date(days: i32) -> Result<i32> {
    match days {
        i32::MAX | i32::MIN => Ok(days),
        _ => days
            .checked_add(PG_EPOCH_DAYS)
            .filter(|d| *d != i32::MAX)
            .ok_or_else(|| Error::new("22008", "date out of range")),
    }
}

/// Microseconds since 1970 of microseconds since 2000; infinity stays what it is.
fn arrow_timestamp(micros: i64) -> Result<i64> {
    match micros {
        i64::MAX | i64::MIN => Ok(micros),
        _ => micros
            .checked_add(PG_EPOCH_MICROS)
            .filter(|m| *m != i64::MAX)
            .ok_or_else(|| Error::new("22008", "timestamp out of range")),
    }
}

fn interval_from_binary(mut bytes: &[u8]) -> Result<ScalarValue> {
    let (micros, days, months) = (bytes.get_i64(), bytes.get_i32(), bytes.get_i32());
    let nanoseconds = micros
        .checked_mul(1_000)
        .ok_or_else(|| Error::new("22008", "interval out of range"))?;
    Ok(ScalarValue::IntervalMonthDayNano(Some(IntervalMonthDayNano {
        months,
        days,
        nanoseconds,
    })))
}
