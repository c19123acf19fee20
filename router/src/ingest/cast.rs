//! Assignment casts: a value of the statement's type into a column's declared type, with PostgreSQL's checks.
//!
//! ```text
//!   40000 :: int8  → smallint        22003 smallint out of range
//!   'abc' :: text  → integer         22P02 invalid input syntax for type integer: "abc"
//!   1.5, 2.5       → integer         2, 3 (numeric rounds half away from zero)    2, 2 (double rounds half to even)
//!   'abcd'         → varchar(3)      22001        'abc  ' → varchar(3)  'abc'
//!   'ab  '         → char(4)         stored as 'ab'; the wire pads it again
//!   true           → integer         42804, needs an explicit cast
//! ```
//!
//! Whole columns are cast at once, unsafe values to NULL; only if that made new NULLs is the offending value looked for.

use super::parse;
use datafusion::arrow::array::{Array, ArrayRef, AsArray, StringViewBuilder, new_null_array};
use datafusion::arrow::compute::{CastOptions, cast_with_options};
use datafusion::arrow::datatypes::{DataType, Float64Type, TimeUnit};
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use std::sync::Arc;
use tessera_proto::sql_type::SqlType;
use tessera_proto::table::ColumnDef;
use tessera_proto::{Error, Result};

/// Longest piece of a bad value that an error quotes.
const QUOTED_CHARS_MAX: usize = 200;

/// Families within which PostgreSQL assigns without an explicit cast.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Null,
    Bool,
    Number,
    Text,
    DateTime,
    Time,
    Interval,
    Bytes,
    Uuid,
    Other,
}

fn family(data_type: &DataType) -> Family {
    match data_type {
        DataType::Null => Family::Null,
        DataType::Boolean => Family::Bool,
        t if t.is_numeric() => Family::Number,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Family::Text,
        DataType::Dictionary(_, value) => family(value),
        DataType::Date32 | DataType::Date64 | DataType::Timestamp(_, _) => Family::DateTime,
        DataType::Time32(_) | DataType::Time64(_) => Family::Time,
        DataType::Interval(_) | DataType::Duration(_) => Family::Interval,
        DataType::FixedSizeBinary(16) => Family::Uuid,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => Family::Bytes,
        _ => Family::Other,
    }
}

/// Whether a column takes values of a type at all. `literal` text takes any type, as an untyped string constant does.
///
/// # Errors
/// 42804, naming the column and both types.
pub fn check_assignable(column: &ColumnDef, from: &DataType, literal: bool) -> Result<()> {
    let (source, target) = (family(from), family(&column.sql_type.arrow()));
    let fits =
        source == target || source == Family::Null || target == Family::Text || (source == Family::Text && literal);
    // A timestamp's time of day may be assigned, and an interval is a time's difference: PostgreSQL allows these two.
    let fits = fits
        || (source == Family::DateTime && target == Family::Time)
        || (source == Family::Time && target == Family::Interval);
    if fits && source != Family::Other {
        return Ok(());
    }
    let message = format!(
        "column \"{}\" is of type {} but expression is of type {}",
        column.name,
        column.sql_type,
        name(from)
    );
    Err(Error::new("42804", message).with_hint("you will need to rewrite or cast the expression"))
}

/// PostgreSQL's name of an Arrow type.
fn name(data_type: &DataType) -> String {
    let name = match data_type {
        DataType::Boolean => "boolean",
        DataType::Int8 | DataType::Int16 | DataType::UInt8 => "smallint",
        DataType::Int32 | DataType::UInt16 => "integer",
        DataType::Int64 | DataType::UInt32 | DataType::UInt64 => "bigint",
        DataType::Float16 | DataType::Float32 => "real",
        DataType::Float64 => "double precision",
        DataType::Date32 | DataType::Date64 => "date",
        DataType::Timestamp(_, None) => "timestamp without time zone",
        DataType::Timestamp(_, Some(_)) => "timestamp with time zone",
        other => match family(other) {
            Family::Number => "numeric",
            Family::Text => "text",
            Family::Time => "time without time zone",
            Family::Interval => "interval",
            Family::Bytes => "bytea",
            Family::Uuid => "uuid",
            _ => return other.to_string(),
        },
    };
    name.to_owned()
}

/// Casts a whole column. `zone` is the session's, for times without one.
///
/// # Errors
/// 22003, 22P02, 22007, 22001 and the like, with the offending value.
pub fn assign(column: &ColumnDef, array: &ArrayRef, zone: &str) -> Result<ArrayRef> {
    let target = column.sql_type.arrow();
    let array = match array.data_type() {
        from if *from == target => array.clone(),
        DataType::Null => new_null_array(&target, array.len()),
        _ => convert(column, array, &target, zone)?,
    };
    match column.sql_type {
        SqlType::Varchar(Some(limit)) | SqlType::Char(limit) => fit_length(column, &array, limit as usize),
        _ => Ok(array),
    }
}

fn convert(column: &ColumnDef, array: &ArrayRef, target: &DataType, zone: &str) -> Result<ArrayRef> {
    let source = family(array.data_type());
    let array = &flatten(array)?;
    let safe = |array: &ArrayRef, to: &DataType| {
        cast_with_options(
            array,
            to,
            &CastOptions {
                safe: true,
                ..Default::default()
            },
        )
    };
    let unsupported = |e: datafusion::arrow::error::ArrowError| {
        let message = format!(
            "column \"{}\" of type {} cannot take values of type {}",
            column.name,
            column.sql_type,
            name(array.data_type())
        );
        Error::unsupported(message, "cast the values to text, or to the column's type, first")
            .with_detail(e.to_string())
    };
    let micros = |zone: Option<&str>| DataType::Timestamp(TimeUnit::Microsecond, zone.map(Into::into));
    let zoned = matches!(array.data_type(), DataType::Timestamp(_, Some(_)));
    let out = match (source, column.sql_type) {
        (Family::Text, sql_type) if family(target) != Family::Text => {
            return parse::text(sql_type, array.as_string_view(), zone).map_err(|e| in_column(e, column));
        }
        (Family::DateTime, SqlType::TimestampTz) if !zoned => safe(array, &micros(None))
            .and_then(|a| safe(&a, &micros(Some(zone))))
            .and_then(|a| safe(&a, target)),
        (Family::DateTime, SqlType::TimestampTz) => safe(array, target),
        (Family::DateTime, _) if zoned && source == Family::DateTime => {
            let instants = safe(array, &micros(Some("+00:00"))).map_err(unsupported)?;
            safe(&parse::local_time(&instants, zone)?, target)
        }
        (Family::Number, SqlType::Int2 | SqlType::Int4 | SqlType::Int8) => {
            rounded(array).and_then(|a| safe(&a, target))
        }
        (Family::Number, SqlType::Numeric { .. }) if array.data_type().is_floating() => {
            let doubles = safe(array, &DataType::Float64).map_err(unsupported)?;
            return parse::numeric(column.sql_type, doubles.as_primitive()).map_err(|e| in_column(e, column));
        }
        (Family::Uuid, SqlType::Text | SqlType::Varchar(_) | SqlType::Char(_)) => return parse::uuid_text(array),
        _ => safe(array, target),
    };
    let out = out.map_err(unsupported)?;
    if out.null_count() > array.null_count() {
        return Err(offending(column, array, &out));
    }
    Ok(out)
}

/// Dictionaries and the older text types as plain ones.
fn flatten(array: &ArrayRef) -> Result<ArrayRef> {
    let to = match array.data_type() {
        DataType::Utf8 | DataType::LargeUtf8 => DataType::Utf8View,
        DataType::Dictionary(_, value) => match value.as_ref() {
            DataType::Utf8 | DataType::LargeUtf8 => DataType::Utf8View,
            other => other.clone(),
        },
        _ => return Ok(array.clone()),
    };
    Ok(datafusion::arrow::compute::cast(array, &to).map_err(datafusion::error::DataFusionError::from)?)
}

/// Whole numbers, rounded as PostgreSQL does: Arrow would cut the fraction off.
fn rounded(array: &ArrayRef) -> std::result::Result<ArrayRef, datafusion::arrow::error::ArrowError> {
    match array.data_type() {
        DataType::Float16 | DataType::Float32 | DataType::Float64 => {
            let doubles = cast_with_options(array, &DataType::Float64, &CastOptions::default())?;
            Ok(Arc::new(
                doubles
                    .as_primitive::<Float64Type>()
                    .unary::<_, Float64Type>(f64::round_ties_even),
            ))
        }
        // Fewer digits after the point round half away from zero; the precision grows by a carry at most.
        DataType::Decimal32(_, s) | DataType::Decimal64(_, s) | DataType::Decimal128(_, s) if *s > 0 => {
            cast_with_options(
                array,
                &DataType::Decimal128(38, 0),
                &CastOptions {
                    safe: true,
                    ..Default::default()
                },
            )
        }
        _ => Ok(array.clone()),
    }
}

/// The error for the first value that became NULL.
fn offending(column: &ColumnDef, before: &ArrayRef, after: &ArrayRef) -> Error {
    let row = (0..before.len())
        .find(|row| before.is_valid(*row) && after.is_null(*row))
        .unwrap_or(0);
    let value = ArrayFormatter::try_new(before.as_ref(), &FormatOptions::default())
        .ok()
        .map(|f| f.value(row).to_string())
        .unwrap_or_default();
    let error = match family(before.data_type()) {
        Family::Text => Error::new(
            "22007",
            format!("invalid input syntax for type {}: {}", column.sql_type, quote(&value)),
        ),
        _ => out_of_range(column.sql_type),
    };
    in_column(error, column)
}

/// Names the column, unless the error explains itself already.
fn in_column(error: Error, column: &ColumnDef) -> Error {
    match error.detail {
        None => error.with_detail(format!("column \"{}\"", column.name)),
        Some(_) => error,
    }
}

fn quote(value: &str) -> String {
    match value.chars().count() > QUOTED_CHARS_MAX {
        true => format!("\"{}...\"", value.chars().take(QUOTED_CHARS_MAX).collect::<String>()),
        false => format!("\"{value}\""),
    }
}

fn out_of_range(sql_type: SqlType) -> Error {
    match sql_type {
        SqlType::Numeric { precision, scale } => {
            let digits = i32::from(precision) - i32::from(scale);
            let detail = format!(
                "a field with precision {precision}, scale {scale} must round to an absolute value less than 10^{digits}"
            );
            Error::new("22003", "numeric field overflow").with_detail(detail)
        }
        SqlType::Date | SqlType::Timestamp | SqlType::TimestampTz | SqlType::Time => {
            Error::new("22008", format!("{sql_type} out of range"))
        }
        other => Error::new("22003", format!("{other} out of range")),
    }
}

/// varchar(n): too long only if more than blanks would be cut. char(n): kept without trailing blanks.
fn fit_length(column: &ColumnDef, array: &ArrayRef, limit: usize) -> Result<ArrayRef> {
    let text = array.as_string_view();
    let is_char = matches!(column.sql_type, SqlType::Char(_));
    // Bytes bound characters, so most values need no counting.
    let fine = |t: &str| t.len() <= limit && !(is_char && t.ends_with(' '));
    if text.iter().flatten().all(fine) {
        return Ok(array.clone());
    }
    let mut builder = StringViewBuilder::with_capacity(text.len());
    for value in text.iter() {
        let Some(value) = value else {
            builder.append_null();
            continue;
        };
        let value = if is_char { value.trim_end_matches(' ') } else { value };
        let end = value.char_indices().nth(limit).map_or(value.len(), |(at, _)| at);
        if !value[end..].trim_end_matches(' ').is_empty() {
            let error = Error::new("22001", format!("value too long for type {}", column.sql_type));
            return Err(error.with_detail(format!("column \"{}\", value {}", column.name, quote(value))));
        }
        builder.append_value(&value[..end]);
    }
    Ok(Arc::new(builder.finish()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::array::*;

    fn column(sql_type: SqlType) -> ColumnDef {
        ColumnDef {
            name: "c".into(),
            sql_type,
            nullable: true,
            default: None,
            hidden: false,
        }
    }

    /// The stored values as text, or the SQLSTATE.
    fn cast(sql_type: SqlType, array: impl Array + 'static) -> Result<Vec<String>, String> {
        let out = assign(&column(sql_type), &(Arc::new(array) as ArrayRef), "+02:00").map_err(|e| e.code)?;
        assert_eq!(*out.data_type(), sql_type.arrow());
        let options = FormatOptions::default().with_null("NULL");
        let format = ArrayFormatter::try_new(out.as_ref(), &options).unwrap();
        Ok((0..out.len()).map(|i| format.value(i).to_string()).collect())
    }

    #[track_caller]
    fn check(sql_type: SqlType, array: impl Array + 'static, expected: Result<&[&str], &str>) {
        let got = cast(sql_type, array);
        assert_eq!(
            got,
            expected
                .map(|e| e.iter().map(|s| s.to_string()).collect())
                .map_err(str::to_owned),
            "{sql_type}"
        );
    }

    fn text(values: &[&str]) -> StringArray {
        StringArray::from(values.to_vec())
    }

    #[test]
    fn numbers_round_and_overflow_as_in_postgresql() {
        check(SqlType::Int2, Int64Array::from(vec![Some(7), None]), Ok(&["7", "NULL"]));
        check(SqlType::Int2, Int64Array::from(vec![40_000]), Err("22003"));
        check(
            SqlType::Int4,
            Float64Array::from(vec![1.5, 2.5, -0.4]),
            Ok(&["2", "2", "0"]),
        );
        check(SqlType::Int4, Float64Array::from(vec![f64::NAN]), Err("22003"));
        let decimals = Decimal128Array::from(vec![15, 25, -25])
            .with_precision_and_scale(4, 1)
            .unwrap();
        check(SqlType::Int4, decimals, Ok(&["2", "3", "-3"]));
        check(
            SqlType::Numeric { precision: 4, scale: 2 },
            Float64Array::from(vec![1.005, 99.99]),
            Ok(&["1.01", "99.99"]),
        );
        check(
            SqlType::Numeric { precision: 4, scale: 2 },
            Int64Array::from(vec![100]),
            Err("22003"),
        );
    }

    #[test]
    fn text_is_parsed_strictly() {
        check(SqlType::Int4, text(&[" 42 ", "-1"]), Ok(&["42", "-1"]));
        check(SqlType::Int4, text(&["abc"]), Err("22P02"));
        check(SqlType::Int4, text(&["3000000000"]), Err("22003"));
        check(
            SqlType::Numeric { precision: 6, scale: 2 },
            text(&["1.005", "1e2"]),
            Ok(&["1.01", "100.00"]),
        );
        check(SqlType::Bool, text(&["t", "OFF", "1"]), Ok(&["true", "false", "true"]));
        check(SqlType::Bool, text(&["maybe"]), Err("22P02"));
        check(SqlType::Date, text(&["2026-02-30"]), Err("22008"));
        check(SqlType::Date, text(&["tomorrow"]), Err("22007"));
        check(SqlType::Bytea, text(&["\\x00ff"]), Ok(&["00ff"]));
        check(
            SqlType::Uuid,
            text(&["{A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11}"]),
            Ok(&["a0eebc999c0b4ef8bb6d6bb9bd380a11"]),
        );
        check(SqlType::Uuid, text(&["nope"]), Err("22P02"));
    }

    #[test]
    fn times_without_a_zone_are_the_sessions() {
        check(
            SqlType::TimestampTz,
            text(&["2026-01-01 12:00:00", "2026-01-01 12:00:00+00"]),
            Ok(&["2026-01-01T10:00:00Z", "2026-01-01T12:00:00Z"]),
        );
        check(
            SqlType::TimestampTz,
            Date32Array::from(vec![0]),
            Ok(&["1969-12-31T22:00:00Z"]),
        );
        let zoned = TimestampMicrosecondArray::from(vec![0]).with_timezone("+00:00");
        check(SqlType::Timestamp, zoned, Ok(&["1970-01-01T02:00:00"]));
    }

    #[test]
    fn lengths_count_characters_and_forgive_blanks() {
        check(SqlType::Varchar(Some(3)), text(&["äöü", "ab   "]), Ok(&["äöü", "ab "]));
        check(SqlType::Varchar(Some(3)), text(&["abcd"]), Err("22001"));
        check(SqlType::Char(4), text(&["ab  ", "abcd    "]), Ok(&["ab", "abcd"]));
    }

    #[test]
    fn families_do_not_mix_without_a_cast() {
        let check = |sql_type, from, literal| check_assignable(&column(sql_type), &from, literal).map_err(|e| e.code);
        assert_eq!(check(SqlType::Int4, DataType::Boolean, false), Err("42804".into()));
        assert_eq!(check(SqlType::Int4, DataType::Utf8View, false), Err("42804".into()));
        assert_eq!(check(SqlType::Int4, DataType::Utf8, true), Ok(()));
        assert_eq!(check(SqlType::Text, DataType::Int64, false), Ok(()));
        assert_eq!(
            check(SqlType::Date, DataType::Timestamp(TimeUnit::Nanosecond, None), false),
            Ok(())
        );
    }
}
