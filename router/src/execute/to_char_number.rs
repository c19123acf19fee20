//! `to_char` of numbers and of intervals, and `to_number`.
//!
//! ```text
//!   to_char(1234.5, '9,999.99')      1,234.50          to_number('1,234.5', '9,999.9')    1234.5
//!   to_char(interval '26 hours', 'DD HH24:MI')   00 26:00
//! ```
//!
//! Patterns are constants; those of numbers are [`super::number_format`]'s, those of intervals have numbers only. They run on
//! the router: nodes do not have them.

use super::number_format::Pattern;
use datafusion::arrow::array::{Array, ArrayRef, AsArray, Decimal128Array, StringViewArray};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{
    DECIMAL128_MAX_PRECISION, DataType, Decimal128Type, DurationMicrosecondType, Float64Type, IntervalMonthDayNano,
    IntervalMonthDayNanoType, IntervalUnit, TimeUnit,
};
use datafusion::common::utils::take_function_args;
use datafusion::common::{Result as DfResult, exec_err};
use datafusion::functions::utils::make_scalar_function;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use std::sync::Arc;
use tessera_proto::{Error, Result};

const MICROS_DAY: i64 = 86_400_000_000;

/// What is done with a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    WriteNumber,
    WriteInterval,
    ReadNumber,
}

/// Whether `to_char` of such values is here.
pub(super) fn writes(data_type: &DataType) -> bool {
    data_type.is_numeric() || is_interval(data_type)
}

fn is_interval(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Interval(_) | DataType::Duration(_))
}

/// `to_char(value, pattern)`.
///
/// # Errors
/// 0A000 for what a pattern may not contain here.
pub(super) fn to_char(value: Expr, data_type: &DataType, pattern: String) -> DfResult<Expr> {
    let kind = match is_interval(data_type) {
        true => Kind::WriteInterval,
        false => Kind::WriteNumber,
    };
    call(kind, value, pattern)
}

/// `to_number(text, pattern)`.
///
/// # Errors
/// 0A000 for what a pattern may not contain here.
pub(super) fn to_number(value: Expr, pattern: String) -> DfResult<Expr> {
    call(Kind::ReadNumber, value, pattern)
}

fn call(kind: Kind, value: Expr, pattern: String) -> DfResult<Expr> {
    match kind {
        Kind::WriteInterval => drop(parts(&pattern)?),
        _ => drop(Pattern::parse(&pattern)?),
    }
    let signature = Signature::any(1, Volatility::Immutable);
    let function = Arc::new(ScalarUDF::from(Patterned {
        kind,
        pattern,
        signature,
    }));
    Ok(Expr::ScalarFunction(ScalarFunction::new_udf(function, vec![value])))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Patterned {
    kind: Kind,
    pattern: String,
    signature: Signature,
}

impl ScalarUDFImpl for Patterned {
    fn name(&self) -> &str {
        match self.kind {
            Kind::WriteNumber => "__router_to_char_number",
            Kind::WriteInterval => "__router_to_char_interval",
            Kind::ReadNumber => "__router_to_number",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> DfResult<DataType> {
        Ok(match self.kind {
            Kind::ReadNumber => {
                let scale = Pattern::parse(&self.pattern)?
                    .scale()
                    .min(usize::from(DECIMAL128_MAX_PRECISION));
                DataType::Decimal128(DECIMAL128_MAX_PRECISION, scale as i8)
            }
            _ => DataType::Utf8View,
        })
    }

    /// That of the function it stands for.
    fn schema_name(&self, args: &[Expr]) -> DfResult<String> {
        let [value] = take_function_args(self.name(), args)?;
        let name = match self.kind {
            Kind::ReadNumber => "to_number",
            _ => "to_char",
        };
        Ok(format!("{name}({},Utf8(\"{}\"))", value.schema_name(), self.pattern))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> DfResult<ColumnarValue> {
        let result = args.return_field.data_type().clone();
        let done = |values: &[ArrayRef]| {
            let [only] = take_function_args(self.name(), values)?;
            match self.kind {
                Kind::WriteNumber => numbers(only, &Pattern::parse(&self.pattern)?),
                Kind::WriteInterval => intervals(only, &parts(&self.pattern)?),
                Kind::ReadNumber => read(only, &Pattern::parse(&self.pattern)?, &result),
            }
        };
        make_scalar_function(done, vec![])(&args.args)
    }
}

fn numbers(values: &ArrayRef, pattern: &Pattern) -> DfResult<ArrayRef> {
    let digits = pattern.scale();
    let texts: StringViewArray = match values.data_type() {
        DataType::Decimal128(_, scale) => {
            let scale = *scale;
            let values = values.as_primitive::<Decimal128Type>();
            let text = |value: i128| pattern.write(&rounded(value, scale, digits));
            values.iter().map(|value| value.map(text)).collect()
        }
        of if of.is_integer() => {
            let values = cast(values, &DataType::Decimal128(20, 0))?;
            let values = values.as_primitive::<Decimal128Type>();
            let text = |value: i128| pattern.write(&rounded(value, 0, digits));
            values.iter().map(|value| value.map(text)).collect()
        }
        of if of.is_numeric() => {
            let values = cast(values, &DataType::Float64)?;
            let values = values.as_primitive::<Float64Type>();
            let text = |value: f64| match value.is_finite() {
                true => pattern.write(&format!("{value:.digits$}")),
                // More digits than any pattern has.
                false => pattern.write(&"9".repeat(1_000)),
            };
            values.iter().map(|value| value.map(text)).collect()
        }
        other => return exec_err!("to_char of {other}"),
    };
    Ok(Arc::new(texts))
}

/// A numeric with so many digits behind the point; halves go away from zero.
fn rounded(value: i128, scale: i8, digits: usize) -> String {
    let (sign, value) = (if value < 0 { "-" } else { "" }, value.unsigned_abs());
    let scale = usize::from(scale.max(0).unsigned_abs());
    let power = |n: usize| 10u128.checked_pow(n as u32).unwrap_or(u128::MAX);
    let (value, scale) = match digits < scale {
        true => {
            let unit = power(scale - digits);
            let half = value % unit >= unit - unit / 2;
            (value / unit + u128::from(half), digits)
        }
        false => (value, scale),
    };
    let text = format!("{value:0>width$}", width = scale + 1);
    let (whole, fraction) = text.split_at(text.len() - scale);
    format!("{sign}{whole}.{fraction:0<digits$}")
}

fn read(values: &ArrayRef, pattern: &Pattern, result: &DataType) -> DfResult<ArrayRef> {
    let DataType::Decimal128(precision, scale) = *result else {
        return exec_err!("to_number as {result}");
    };
    let texts = cast(values, &DataType::Utf8View)?;
    let one = |text: &str| -> Result<i128> {
        let number = pattern.read(text)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number.as_str(), ""));
        let digits = format!("{whole}{fraction:0<width$}", width = usize::from(scale.unsigned_abs()));
        digits
            .parse()
            .map_err(|_| Error::new("22003", "value overflows numeric format"))
    };
    let numbers = texts.as_string_view().iter().map(|text| text.map(one).transpose());
    let numbers = numbers.collect::<Result<Decimal128Array>>()?;
    Ok(Arc::new(numbers.with_precision_and_scale(precision, scale)?))
}

/// Parts of an interval's pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    /// A keyword, and whether FM stood before it.
    Value(&'static str, bool),
}

/// Longer before shorter.
const KEYWORDS: [&str; 14] = [
    "YYYY", "YYY", "YY", "Y", "HH24", "HH12", "HH", "MI", "MM", "SSSS", "SS", "MS", "US", "DD",
];

fn parts(pattern: &str) -> Result<Vec<Part>> {
    let mut parts: Vec<Part> = vec![];
    let mut rest = pattern;
    while let Some(first) = rest.chars().next() {
        let (bare, fill) = match rest.get(..2).is_some_and(|start| start.eq_ignore_ascii_case("FM")) {
            true => (&rest[2..], false),
            false => (rest, true),
        };
        let starts = |word: &&str| {
            bare.get(..word.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(word))
        };
        if let Some(quoted) = rest.strip_prefix('"') {
            let (inside, after) = quoted.split_once('"').unwrap_or((quoted, ""));
            parts.push(Part::Text(inside.to_owned()));
            rest = after;
        } else if let Some(keyword) = KEYWORDS.iter().find(|word| starts(word)) {
            parts.push(Part::Value(keyword, !fill));
            rest = &bare[keyword.len()..];
        } else if first.is_ascii_alphabetic() {
            let what = format!("pattern \"{first}\" of to_char of intervals is not supported");
            return Err(Error::unsupported(what, "put literal text into double quotes"));
        } else {
            parts.push(Part::Text(first.to_string()));
            rest = &rest[first.len_utf8()..];
        }
    }
    Ok(parts)
}

fn intervals(values: &ArrayRef, parts: &[Part]) -> DfResult<ArrayRef> {
    let texts: StringViewArray = match values.data_type() {
        DataType::Duration(_) => {
            let values = cast(values, &DataType::Duration(TimeUnit::Microsecond))?;
            let values = values.as_primitive::<DurationMicrosecondType>();
            let text = |micros: i64| {
                let days = (micros / MICROS_DAY) as i32;
                write(parts, 0, days, micros % MICROS_DAY)
            };
            values.iter().map(|value| value.map(text)).collect()
        }
        _ => {
            let values = cast(values, &DataType::Interval(IntervalUnit::MonthDayNano))?;
            let values = values.as_primitive::<IntervalMonthDayNanoType>();
            let text = |i: IntervalMonthDayNano| write(parts, i.months, i.days, i.nanoseconds / 1_000);
            values.iter().map(|value| value.map(text)).collect()
        }
    };
    Ok(Arc::new(texts))
}

fn write(parts: &[Part], months: i32, days: i32, micros: i64) -> String {
    let seconds = micros / 1_000_000;
    let (years, months, hours) = (i64::from(months / 12), i64::from(months % 12), seconds / 3_600);
    let mut out = String::new();
    for part in parts {
        let (keyword, bare) = match part {
            Part::Text(text) => {
                out.push_str(text);
                continue;
            }
            Part::Value(keyword, bare) => (*keyword, *bare),
        };
        let (number, width) = match keyword {
            "YYYY" => (years, 4),
            "YYY" => (years % 1_000, 3),
            "YY" => (years % 100, 2),
            "Y" => (years % 10, 1),
            "MM" => (months, 2),
            "DD" => (i64::from(days), 2),
            "HH24" => (hours, 2),
            "HH12" | "HH" if hours % 12 == 0 => (12, 2),
            "HH12" | "HH" => (hours % 12, 2),
            "MI" => (seconds / 60 % 60, 2),
            "SS" => (seconds % 60, 2),
            "SSSS" => (seconds, 1),
            "MS" => (micros % 1_000_000 / 1_000, 3),
            _ => (micros % 1_000_000, 6),
        };
        // A sign is besides the digits.
        let width = if bare { 0 } else { width + usize::from(number < 0) };
        out.push_str(&format!("{number:0width$}"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numerics_are_rounded_to_the_pattern() {
        for (value, scale, digits, wanted) in [
            (1_234_567, 3, 2, "1234.57"),
            (-1_234_565, 3, 2, "-1234.57"),
            (5, 1, 0, "1."),
            (4, 1, 0, "0."),
            (5, 0, 2, "5.00"),
            (5, 3, 3, "0.005"),
        ] {
            assert_eq!(rounded(value, scale, digits), wanted);
        }
    }

    #[test]
    fn intervals_are_those_of_postgresql() {
        let hour = 3_600_000_000;
        let written = |pattern: &str, months, days, micros| write(&parts(pattern).unwrap(), months, days, micros);
        assert_eq!(written("DD HH24:MI:SS", 0, 1, 2 * hour + 180_000_000), "01 02:03:00");
        assert_eq!(written("HH24:MI", 0, 0, 26 * hour), "26:00");
        assert_eq!(written("YYYY-MM FMDD", 14, 3, 0), "0001-02 3");
        assert_eq!(written("HH24", 0, 0, -2 * hour), "-02");
        assert_eq!(parts("Month").unwrap_err().code, "0A000");
    }
}
