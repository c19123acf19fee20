//! `to_char` of dates and timestamps.
//!
//! ```text
//!   to_char(ts, 'Mon DD, YYYY HH24:MI:SS.MS')     Feb 29, 2024 12:34:56.789
//!   FMMonth  without blanks      Month  to nine characters      "text"  as it is
//! ```
//!
//! Patterns of PostgreSQL 15, table 9.27, that have no zone, no era, no roman numerals and no ordinal suffix. Not here:
//! numbers and intervals, which are [`super::to_char_number`]'s. Runs on the router: nodes do not have it.

use super::to_char_number;
use chrono::{DateTime, Datelike, NaiveDateTime, Timelike};
use datafusion::arrow::array::{ArrayRef, AsArray, StringViewBuilder};
use datafusion::arrow::datatypes::{DataType, TimeUnit, TimestampMicrosecondType};
use datafusion::common::Result as DfResult;
use datafusion::common::utils::take_function_args;
use datafusion::functions::utils::make_scalar_function;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{
    Cast, ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use std::fmt::Write;
use std::sync::Arc;
use tessera_proto::{Error, Result};

/// `to_char` with these arguments, the first of type `data_type`.
///
/// # Errors
/// 0A000 for other types, for patterns that are not constant, and for what they may not contain here.
pub(super) fn to_char(args: Vec<Expr>, data_type: &DataType) -> DfResult<Expr> {
    let [value, pattern] = take_function_args("to_char", args)?;
    if to_char_number::writes(data_type) {
        return to_char_number::to_char(value, data_type, constant(&pattern, "to_char")?);
    }
    if !matches!(
        data_type,
        DataType::Date32 | DataType::Timestamp(_, None) | DataType::Null
    ) {
        let what = format!("to_char of {data_type} is not supported");
        return Err(Error::unsupported(
            what,
            "it writes dates, timestamps without time zone, numbers and intervals",
        )
        .into());
    }
    let pattern = constant(&pattern, "to_char")?;
    parse(&pattern)?;
    let signature = Signature::any(1, Volatility::Immutable);
    let function = Arc::new(ScalarUDF::from(ToChar { pattern, signature }));
    let value = Expr::Cast(Cast::new(
        Box::new(value),
        DataType::Timestamp(TimeUnit::Microsecond, None),
    ));
    Ok(Expr::ScalarFunction(ScalarFunction::new_udf(function, vec![value])))
}

/// The text of a constant pattern; the empty one for NULL.
///
/// # Errors
/// 0A000 where it is no constant.
pub(super) fn constant(pattern: &Expr, function: &str) -> Result<String> {
    let text = match pattern {
        Expr::Literal(value, _) => value.try_as_str().map(|text| text.unwrap_or_default().to_owned()),
        _ => None,
    };
    let what = || format!("{function} with a pattern that is not constant is not supported");
    text.ok_or_else(|| Error::unsupported(what(), "write the pattern in quotes"))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct ToChar {
    pattern: String,
    signature: Signature,
}

impl ScalarUDFImpl for ToChar {
    fn name(&self) -> &str {
        "__router_to_char"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> DfResult<DataType> {
        Ok(DataType::Utf8View)
    }

    /// That of the function it stands for.
    fn schema_name(&self, args: &[Expr]) -> DfResult<String> {
        let [value] = take_function_args(self.name(), args)?;
        Ok(format!("to_char({},Utf8(\"{}\"))", value.schema_name(), self.pattern))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> DfResult<ColumnarValue> {
        let fields = parse(&self.pattern)?;
        let written = |values: &[ArrayRef]| {
            let [only] = take_function_args(self.name(), values)?;
            Ok(written(only, &fields)?)
        };
        make_scalar_function(written, vec![])(&args.args)
    }
}

fn written(values: &ArrayRef, fields: &[Field]) -> Result<ArrayRef> {
    let mut texts = StringViewBuilder::with_capacity(values.len());
    for micros in values.as_primitive::<TimestampMicrosecondType>() {
        let Some(micros) = micros else {
            texts.append_null();
            continue;
        };
        let moment = DateTime::from_timestamp_micros(micros);
        let moment = moment.ok_or_else(|| Error::new("22008", "timestamp out of range for to_char"))?;
        texts.append_value(write(fields, &moment.naive_utc()));
    }
    Ok(Arc::new(texts.finish()))
}

/// A part of a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Field {
    Text(String),
    /// A keyword of [`KEYWORDS`], and whether FM stood before it.
    Value(&'static str, bool),
}

/// What may stand in a pattern, longer before shorter. Names of days and months are as they are written.
const KEYWORDS: [&str; 45] = [
    "YYYY", "YYY", "YY", "Y", "IYYY", "IW", "HH24", "HH12", "HH", "MI", "SSSS", "SS", "MS", "US", "AM", "PM", "am",
    "pm", "MONTH", "Month", "month", "MON", "Mon", "mon", "MM", "DAY", "Day", "day", "DDD", "DD", "DY", "Dy", "dy",
    "ID", "D", "WW", "W", "Q", "CC", "J", "yyyy", "mm", "dd", "hh24", "ss",
];

/// Keywords that are known and not written here.
const REFUSED: [&str; 12] = [
    "TZH", "TZM", "TZ", "OF", "AD", "BC", "A.M.", "P.M.", "RM", "FX", "SP", "TH",
];

fn parse(pattern: &str) -> Result<Vec<Field>> {
    let mut fields: Vec<Field> = vec![];
    let mut rest = pattern;
    let text = |fields: &mut Vec<Field>, more: &str| match fields.last_mut() {
        Some(Field::Text(known)) => known.push_str(more),
        _ => fields.push(Field::Text(more.to_owned())),
    };
    while let Some(first) = rest.chars().next() {
        let (bare, fill) = match rest.strip_prefix("FM") {
            Some(bare) => (bare, false),
            None => (rest, true),
        };
        if let Some(quoted) = rest.strip_prefix('"') {
            let (inside, after) = quoted.split_once('"').unwrap_or((quoted, ""));
            text(&mut fields, inside);
            rest = after;
        } else if let Some(refused) = REFUSED.iter().find(|word| bare.starts_with(**word)) {
            let what = format!("pattern \"{refused}\" of to_char is not supported");
            return Err(Error::unsupported(what, "put literal text into double quotes"));
        } else if let Some(keyword) = KEYWORDS.iter().find(|word| bare.starts_with(**word)) {
            fields.push(Field::Value(keyword, !fill));
            rest = &bare[keyword.len()..];
        } else if first.is_ascii_alphabetic() && bare.len() == rest.len() && is_keyword_in_other_case(rest) {
            let what = format!("pattern \"{}\" of to_char is not supported", &rest[..1]);
            return Err(Error::unsupported(
                what,
                "write patterns in capitals, and literal text in double quotes",
            ));
        } else {
            text(&mut fields, &rest[..first.len_utf8()]);
            rest = &rest[first.len_utf8()..];
        }
    }
    Ok(fields)
}

/// PostgreSQL takes keywords in any case.
fn is_keyword_in_other_case(rest: &str) -> bool {
    let matches = |word: &&str| {
        rest.get(..word.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(word))
    };
    KEYWORDS.iter().chain(&REFUSED).any(matches)
}

fn write(fields: &[Field], at: &NaiveDateTime) -> String {
    let mut out = String::new();
    for field in fields {
        match field {
            Field::Text(text) => out.push_str(text),
            Field::Value(keyword, bare) => value(keyword, *bare, at, &mut out),
        }
    }
    out
}

fn value(keyword: &str, bare: bool, at: &NaiveDateTime, out: &mut String) {
    let hour12 = at.hour12().1;
    let half = if at.hour() < 12 { "am" } else { "pm" };
    let (month, day) = (at.format("%B").to_string(), at.format("%A").to_string());
    let year = i64::from(at.year());
    let name = match keyword.to_ascii_uppercase().as_str() {
        "MONTH" => Some((month, 9)),
        "MON" => Some((month[..3].to_owned(), 3)),
        "DAY" => Some((day, 9)),
        "DY" => Some((day[..3].to_owned(), 3)),
        "AM" | "PM" => Some((half.to_owned(), 2)),
        _ => None,
    };
    if let Some((name, width)) = name {
        let name = match keyword.as_bytes() {
            [_, second, ..] if second.is_ascii_uppercase() => name.to_ascii_uppercase(),
            [first, ..] if first.is_ascii_lowercase() => name.to_ascii_lowercase(),
            _ => name,
        };
        let width = if bare { 0 } else { width };
        // Writing to a String does not fail.
        let _ = write!(out, "{name:<width$}");
        return;
    }
    let micros = i64::from(at.nanosecond() % 1_000_000_000) / 1_000;
    let (number, width) = match keyword.to_ascii_uppercase().as_str() {
        "YYYY" => (year, 4),
        "YYY" => (year % 1_000, 3),
        "YY" => (year % 100, 2),
        "Y" => (year % 10, 1),
        "IYYY" => (at.iso_week().year().into(), 4),
        "IW" => (at.iso_week().week().into(), 2),
        "HH24" => (at.hour().into(), 2),
        "HH12" | "HH" => (hour12.into(), 2),
        "MI" => (at.minute().into(), 2),
        "SS" => (at.second().into(), 2),
        "SSSS" => (at.num_seconds_from_midnight().into(), 1),
        "MS" => (micros / 1_000, 3),
        "US" => (micros, 6),
        "MM" => (at.month().into(), 2),
        "DDD" => (at.ordinal().into(), 3),
        "DD" => (at.day().into(), 2),
        "ID" => (at.weekday().number_from_monday().into(), 1),
        "D" => (at.weekday().number_from_sunday().into(), 1),
        "WW" => (i64::from(at.ordinal0() / 7 + 1), 2),
        "W" => (i64::from(at.day0() / 7 + 1), 1),
        "Q" => (i64::from(at.month0() / 3 + 1), 1),
        "CC" => ((year + 99) / 100, 2),
        // Days since the Julian epoch; chrono counts from 0001-01-01.
        _ => (i64::from(at.num_days_from_ce()) + 1_721_425, 1),
    };
    let width = if bare { 0 } else { width };
    let _ = write!(out, "{number:0width$}");
}

#[cfg(test)]
mod tests {
    use super::{parse, write};
    use chrono::DateTime;

    fn at(micros: i64, pattern: &str) -> String {
        let moment = DateTime::from_timestamp_micros(micros).unwrap().naive_utc();
        write(&parse(pattern).unwrap(), &moment)
    }

    /// As PostgreSQL 15 writes them.
    #[test]
    fn writes_what_postgresql_writes() {
        let moment = 1_709_210_096_789_000;
        for (pattern, wanted) in [
            ("YYYY-MM-DD HH24:MI:SS", "2024-02-29 12:34:56"),
            ("Mon DD, YYYY", "Feb 29, 2024"),
            ("Day, DD Month YYYY", "Thursday , 29 February  2024"),
            ("FMDay, FMDD FMMonth YYYY", "Thursday, 29 February 2024"),
            ("HH12:MI:SS.MS AM", "12:34:56.789 PM"),
            ("YY Q WW IW D ID DDD J", "24 1 09 09 5 4 060 2460370"),
            ("DY dy MONTH US", "THU thu FEBRUARY  789000"),
            ("\"year\" YYYY", "year 2024"),
        ] {
            assert_eq!(at(moment, pattern), wanted, "{pattern}");
        }
        for pattern in ["YYYY TZ", "us", "DDth"] {
            assert_eq!(parse(pattern).unwrap_err().code, "0A000", "{pattern}");
        }
    }
}
