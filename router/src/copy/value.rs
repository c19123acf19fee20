//! Text to typed values, as PostgreSQL reads them: one Arrow builder per column, no allocation per value.
//!
//! Dates, times and intervals are read as the wire protocol reads parameters (`pg::calendar`).

use crate::pg::calendar::{self, Zone};
use datafusion::arrow::array::timezone::Tz;
use datafusion::arrow::array::*;
use datafusion::common::ScalarValue;
use std::sync::Arc;
use tessera_proto::sql_type::SqlType;
use tessera_proto::{Error, Result};

/// Builds one column.
#[derive(Debug)]
pub struct ColumnBuilder {
    sql_type: SqlType,
    /// Of a timestamptz without a zone; UTC if none.
    zone: Option<Tz>,
    values: Values,
}

#[derive(Debug)]
enum Values {
    Bool(BooleanBuilder),
    Int2(Int16Builder),
    Int4(Int32Builder),
    Int8(Int64Builder),
    Float4(Float32Builder),
    Float8(Float64Builder),
    Numeric(Decimal128Builder),
    Text(StringViewBuilder),
    Date(Date32Builder),
    Time(Time64MicrosecondBuilder),
    Timestamp(TimestampMicrosecondBuilder),
    Interval(IntervalMonthDayNanoBuilder),
    Bytea(BinaryViewBuilder),
    Uuid(FixedSizeBinaryBuilder),
}

/// The same call on whichever builder it is.
macro_rules! each {
    ($values:expr, $b:ident => $call:expr) => {
        match $values {
            Values::Bool($b) => $call,
            Values::Int2($b) => $call,
            Values::Int4($b) => $call,
            Values::Int8($b) => $call,
            Values::Float4($b) => $call,
            Values::Float8($b) => $call,
            Values::Numeric($b) => $call,
            Values::Text($b) => $call,
            Values::Date($b) => $call,
            Values::Time($b) => $call,
            Values::Timestamp($b) => $call,
            Values::Interval($b) => $call,
            Values::Bytea($b) => $call,
            Values::Uuid($b) => $call,
        }
    };
}

impl ColumnBuilder {
    /// An empty column.
    pub fn new(sql_type: SqlType) -> Self {
        let values = match sql_type {
            SqlType::Bool => Values::Bool(BooleanBuilder::new()),
            SqlType::Int2 => Values::Int2(Int16Builder::new()),
            SqlType::Int4 => Values::Int4(Int32Builder::new()),
            SqlType::Int8 => Values::Int8(Int64Builder::new()),
            SqlType::Float4 => Values::Float4(Float32Builder::new()),
            SqlType::Float8 => Values::Float8(Float64Builder::new()),
            SqlType::Numeric { .. } => Values::Numeric(Decimal128Builder::new().with_data_type(sql_type.arrow())),
            SqlType::Text | SqlType::Varchar(_) | SqlType::Char(_) => Values::Text(StringViewBuilder::new()),
            SqlType::Date => Values::Date(Date32Builder::new()),
            SqlType::Time => Values::Time(Time64MicrosecondBuilder::new()),
            SqlType::Timestamp | SqlType::TimestampTz => {
                Values::Timestamp(TimestampMicrosecondBuilder::new().with_data_type(sql_type.arrow()))
            }
            SqlType::Interval => Values::Interval(IntervalMonthDayNanoBuilder::new()),
            SqlType::Bytea => Values::Bytea(BinaryViewBuilder::new()),
            SqlType::Uuid => Values::Uuid(FixedSizeBinaryBuilder::new(16)),
        };
        Self {
            sql_type,
            zone: None,
            values,
        }
    }

    /// The same, with the zone that a timestamptz without one is of; an unknown zone is UTC.
    pub fn in_zone(mut self, zone: &str) -> Self {
        self.zone = calendar::zone(zone);
        self
    }

    /// Appends NULL.
    pub fn append_null(&mut self) {
        each!(&mut self.values, b => b.append_null());
    }

    /// Appends what `text` says.
    ///
    /// # Errors
    /// 22P02 not a value of the type, 22003 out of range, 22001 too long, 22007 not a date or time. Nothing was appended.
    pub fn append(&mut self, text: &str) -> Result<()> {
        let sql_type = self.sql_type;
        let invalid = || invalid(sql_type, text);
        match &mut self.values {
            Values::Bool(b) => b.append_value(parse_bool(text.trim()).ok_or_else(invalid)?),
            Values::Int2(b) => b.append_value(parse_int(text, sql_type)? as i16),
            Values::Int4(b) => b.append_value(parse_int(text, sql_type)? as i32),
            Values::Int8(b) => b.append_value(parse_int(text, sql_type)?),
            Values::Float4(b) => b.append_value(parse_float(text).ok_or_else(invalid)? as f32),
            Values::Float8(b) => b.append_value(parse_float(text).ok_or_else(invalid)?),
            Values::Numeric(b) => b.append_value(parse_numeric(text, sql_type)?),
            Values::Text(b) => b.append_value(limit_text(sql_type, text)?),
            Values::Date(b) => b.append_value(calendar::read_date(text)?),
            Values::Time(b) => b.append_value(calendar::read_time(text)?),
            Values::Timestamp(b) => {
                let zone = match sql_type {
                    SqlType::TimestampTz => Zone::Of(self.zone.as_ref()),
                    _ => Zone::None,
                };
                b.append_value(calendar::read_timestamp(text, zone)?);
            }
            Values::Interval(b) => b.append_value(calendar::read_interval(text)?),
            Values::Bytea(b) => b.append_value(parse_bytea(text).ok_or_else(invalid)?),
            Values::Uuid(b) => {
                let uuid = uuid::Uuid::try_parse(text.trim()).map_err(|_| invalid())?;
                b.append_value(uuid.as_bytes())
                    .map_err(|e| Error::internal(e.to_string()))?;
            }
        }
        Ok(())
    }

    /// The column so far; the builder starts anew.
    pub fn finish(&mut self) -> ArrayRef {
        each!(&mut self.values, b => Arc::new(b.finish()))
    }
}

/// One value of a type from its text.
///
/// # Errors
/// As [`ColumnBuilder::append`].
pub fn parse_text_value(sql_type: SqlType, text: &str) -> Result<ScalarValue> {
    let mut builder = ColumnBuilder::new(sql_type);
    builder.append(text)?;
    Ok(ScalarValue::try_from_array(&builder.finish(), 0)?)
}

fn invalid(sql_type: SqlType, text: &str) -> Error {
    let bare = match sql_type {
        SqlType::Numeric { .. } => "numeric".to_owned(),
        other => other.to_string(),
    };
    Error::new("22P02", format!("invalid input syntax for type {bare}: \"{text}\""))
}

fn out_of_range(sql_type: SqlType, text: &str) -> Error {
    Error::new("22003", format!("value \"{text}\" is out of range for type {sql_type}"))
}

/// PostgreSQL's spellings; unique prefixes of the words count.
fn parse_bool(text: &str) -> Option<bool> {
    let lower = text.to_ascii_lowercase();
    let prefix = |word: &str, least: usize| lower.len() >= least && word.starts_with(&lower);
    if prefix("true", 1) || prefix("yes", 1) || lower == "on" || lower == "1" {
        Some(true)
    } else if prefix("false", 1) || prefix("no", 1) || prefix("off", 2) || lower == "0" {
        Some(false)
    } else {
        None
    }
}

fn parse_int(text: &str, sql_type: SqlType) -> Result<i64> {
    let (low, high) = match sql_type {
        SqlType::Int2 => (i64::from(i16::MIN), i64::from(i16::MAX)),
        SqlType::Int4 => (i64::from(i32::MIN), i64::from(i32::MAX)),
        _ => (i64::MIN, i64::MAX),
    };
    let trimmed = text.trim();
    match trimmed.parse::<i64>() {
        Ok(value) if (low..=high).contains(&value) => Ok(value),
        Ok(_) => Err(out_of_range(sql_type, text)),
        Err(e) => match e.kind() {
            std::num::IntErrorKind::PosOverflow | std::num::IntErrorKind::NegOverflow => {
                Err(out_of_range(sql_type, text))
            }
            _ => Err(invalid(sql_type, text)),
        },
    }
}

fn parse_float(text: &str) -> Option<f64> {
    // Rust reads the same forms as PostgreSQL: digits, exponents, NaN, inf, infinity, any case.
    text.trim().parse().ok()
}

/// Decimal text to an unscaled value, rounded half away from zero as PostgreSQL does.
fn parse_numeric(text: &str, sql_type: SqlType) -> Result<i128> {
    let SqlType::Numeric { precision, scale } = sql_type else {
        return Err(Error::internal("not a numeric column"));
    };
    if let Some(value) = parse_plain_numeric(text.as_bytes(), precision, scale) {
        return Ok(value);
    }
    let trimmed = text.trim();
    if trimmed.eq_ignore_ascii_case("nan") || trimmed.to_ascii_lowercase().contains("inf") {
        return Err(Error::unsupported(
            format!("numeric value \"{text}\" is not supported"),
            "use NULL, or a float8 column",
        ));
    }
    let bad = || invalid(sql_type, text);
    let too_big = || {
        Error::new("22003", "numeric field overflow").with_hint(format!(
            "a field with precision {precision}, scale {scale} must round to an absolute value less than 10^{}",
            i32::from(precision) - i32::from(scale)
        ))
    };
    let (mantissa, exponent) = match trimmed.find(['e', 'E']) {
        Some(i) => (&trimmed[..i], trimmed[i + 1..].parse::<i32>().map_err(|_| bad())?),
        None => (trimmed, 0),
    };
    let (negative, digits) = match mantissa.as_bytes().first() {
        Some(b'-') => (true, &mantissa[1..]),
        Some(b'+') => (false, &mantissa[1..]),
        _ => (false, mantissa),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.len() + fraction.len() == 0 || !whole.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit()) {
        return Err(bad());
    }
    // How many digits, counted from the left, stay in front of the unscaled value's end.
    let keep = whole.len() as i64 + i64::from(exponent) + i64::from(scale);
    let mut value: i128 = 0;
    let mut all = whole.bytes().chain(fraction.bytes());
    for _ in 0..keep.max(0) {
        let next = all.next();
        let digit = next.map_or(0, |b| i128::from(b - b'0'));
        value = value
            .checked_mul(10)
            .and_then(|v| v.checked_add(digit))
            .ok_or_else(too_big)?;
        // Nothing but zeros can follow for ever: 0e999999999 must not spin.
        if value == 0 && next.is_none() {
            break;
        }
    }
    if keep >= 0 && all.next().is_some_and(|b| b >= b'5') {
        value += 1;
    }
    if value.unsigned_abs() >= 10_u128.pow(u32::from(precision)) {
        return Err(too_big());
    }
    Ok(if negative { -value } else { value })
}

/// What nearly all numerics look like: a sign, at most 18 digits, no more of them behind the point than are kept. `None` for
/// anything else, right or wrong.
fn parse_plain_numeric(text: &[u8], precision: u8, scale: i8) -> Option<i128> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    if digits.is_empty() || digits.len() > 19 {
        return None;
    }
    let (mut value, mut point) = (0_i64, None);
    for (at, byte) in digits.iter().enumerate() {
        match byte {
            b'0'..=b'9' if at < 18 || point.is_some() => value = value * 10 + i64::from(byte - b'0'),
            b'.' if point.is_none() && at > 0 => point = Some(at),
            _ => return None,
        }
    }
    let behind = point.map_or(0, |at| digits.len() - at - 1);
    let missing = usize::try_from(scale).ok()?.checked_sub(behind)?;
    let value = i128::from(value).checked_mul(10_i128.checked_pow(missing as u32)?)?;
    let fits = value < 10_i128.checked_pow(u32::from(precision))?;
    fits.then_some(if negative { -value } else { value })
}

/// varchar(n) and char(n): excess blanks go, other excess is an error; char's padding is not stored.
fn limit_text(sql_type: SqlType, text: &str) -> Result<&str> {
    if text.contains('\0') {
        return Err(Error::new("22021", "text contains a zero byte"));
    }
    let (limit, text) = match sql_type {
        SqlType::Varchar(Some(n)) => (n as usize, text),
        SqlType::Char(n) => (n as usize, text.trim_end_matches(' ')),
        _ => return Ok(text),
    };
    // Bytes are at least characters: short text needs no counting.
    if text.len() <= limit {
        return Ok(text);
    }
    match text.char_indices().nth(limit) {
        None => Ok(text),
        Some((end, _)) if text[end..].bytes().all(|b| b == b' ') => Ok(&text[..end]),
        Some(_) => Err(Error::new("22001", format!("value too long for type {sql_type}"))),
    }
}

/// `\x` and hex digits, or PostgreSQL's older escape form.
fn parse_bytea(text: &str) -> Option<Vec<u8>> {
    if let Some(hex) = text.strip_prefix("\\x") {
        let digits: Vec<u8> = hex.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
        let pairs = digits.chunks(2).map(|pair| {
            let [high, low] = pair else { return None };
            Some((char::from(*high).to_digit(16)? * 16 + char::from(*low).to_digit(16)?) as u8)
        });
        return pairs.collect();
    }
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        match bytes.next()? {
            b'\\' => out.push(b'\\'),
            first @ b'0'..=b'3' => {
                let mut code = u32::from(first - b'0');
                for _ in 0..2 {
                    let digit = bytes.next().filter(|b| (b'0'..=b'7').contains(b))?;
                    code = code * 8 + u32::from(digit - b'0');
                }
                out.push(code as u8);
            }
            _ => return None,
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_as_postgresql_reads_them() {
        let numeric = SqlType::Numeric { precision: 5, scale: 2 };
        for (sql_type, text, expected) in [
            (SqlType::Bool, "yes", "true"),
            (SqlType::Bool, "of", "false"),
            (SqlType::Int2, " 7 ", "7"),
            (SqlType::Int8, "-9223372036854775808", "-9223372036854775808"),
            (numeric, "1.005", "101"),
            (numeric, "-1.005", "-101"),
            (numeric, "12", "1200"),
            (numeric, "-12.3", "-1230"),
            (numeric, "999.99", "99999"),
            (numeric, "5.", "500"),
            (numeric, "+7.1", "710"),
            (numeric, "1e2", "10000"),
            (numeric, "0e999999999", "0"),
            (numeric, ".5", "50"),
            (numeric, "4e-3", "0"),
            (SqlType::Date, "1998-09-02", "1998-09-02"),
            (SqlType::Varchar(Some(3)), "abc   ", "abc"),
            (SqlType::Char(4), "ab  ", "ab"),
            (SqlType::Timestamp, "2024-02-29 12:00:00.5", "1709208000500000"),
            (SqlType::TimestampTz, "2024-02-29 12:00:00+02", "1709200800000000"),
        ] {
            let got = match parse_text_value(sql_type, text).unwrap_or_else(|e| panic!("{text}: {e}")) {
                ScalarValue::Decimal128(Some(v), _, _) => v.to_string(),
                ScalarValue::TimestampMicrosecond(Some(v), _) => v.to_string(),
                other => other.to_string(),
            };
            assert_eq!(got, expected, "{sql_type} {text}");
        }
        for (sql_type, text, code) in [
            (SqlType::Bool, "o", "22P02"),
            (SqlType::Int2, "40000", "22003"),
            (SqlType::Int4, "", "22P02"),
            (SqlType::Int4, "1.5", "22P02"),
            (numeric, "999.995", "22003"),
            (numeric, "1.2.3", "22P02"),
            (numeric, "1e99", "22003"),
            (SqlType::Date, "2023-02-29", "22008"),
            (SqlType::Date, "tomorrow", "22007"),
            (SqlType::Interval, "soon", "22007"),
            (SqlType::Varchar(Some(3)), "abcd", "22001"),
            (SqlType::Bytea, "\\xabc", "22P02"),
            (SqlType::Uuid, "zz", "22P02"),
        ] {
            assert_eq!(
                parse_text_value(sql_type, text).expect_err(text).code,
                code,
                "{sql_type} {text}"
            );
        }
    }
}
