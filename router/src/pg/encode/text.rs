//! Values in PostgreSQL's text format.
//!
//! ```text
//!   true -> t      Interval(14 months, 3 days, -5 s) -> 1 year 2 mons 3 days -00:00:05      bytea -> \x00ff
//! ```
//!
//! Lists and structs are in [`nested`](super::nested).

use super::super::calendar::{self, Zone, write_date, write_fraction, write_time, write_timestamp};
use super::super::types::to_micros;
use super::{Style, nested, number, out_of_range, time_out_of_range};
use bytes::BytesMut;
use datafusion::arrow::array::cast::AsArray;
use datafusion::arrow::array::types::{
    Date32Type, Date64Type, Decimal32Type, Decimal64Type, Decimal128Type, Decimal256Type, Float16Type, Float32Type,
    Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use datafusion::arrow::array::{Array, ArrowPrimitiveType};
use datafusion::arrow::datatypes::DataType;
use std::fmt::{self, Write};
use tessera_proto::{Error, Result};

/// Writes the value at `row`, which is not NULL.
pub(super) fn write(array: &dyn Array, row: usize, style: &Style, out: &mut BytesMut) -> Result<()> {
    let bytes = match array.data_type() {
        DataType::Utf8 => array.as_string::<i32>().value(row).as_bytes(),
        DataType::LargeUtf8 => array.as_string::<i64>().value(row).as_bytes(),
        DataType::Utf8View => array.as_string_view().value(row).as_bytes(),
        _ => return write_formatted(array, row, style, out),
    };
    out.extend_from_slice(bytes);
    Ok(())
}

/// Everything that is not text already.
fn write_formatted(array: &dyn Array, row: usize, style: &Style, out: &mut BytesMut) -> Result<()> {
    match array.data_type() {
        DataType::Boolean => out
            .write_str(if array.as_boolean().value(row) { "t" } else { "f" })
            .map_err(failed),
        DataType::Float16 => {
            number::write_float4(out, at::<Float16Type>(array, row).to_f32(), style.float_digits).map_err(failed)
        }
        DataType::Float32 => {
            number::write_float4(out, at::<Float32Type>(array, row), style.float_digits).map_err(failed)
        }
        DataType::Float64 => {
            number::write_float8(out, at::<Float64Type>(array, row), style.float_digits).map_err(failed)
        }
        DataType::Date32 | DataType::Date64 | DataType::Time32(_) | DataType::Time64(_) | DataType::Timestamp(..) => {
            write_time_value(array, row, style, out)
        }
        DataType::Interval(_) | DataType::Duration(_) => write_interval(interval(array, row)?, out).map_err(failed),
        data_type if data_type.is_integer() => write!(out, "{}", integer(array, row)?).map_err(failed),
        data_type if data_type.is_decimal() => {
            let (unscaled, scale) = unscaled(array, row)?;
            number::write_numeric(out, &unscaled, scale).map_err(failed)
        }
        data_type if data_type.is_nested() => nested::write_text(array, row, style, out),
        _ => write_bytes(array, row, out),
    }
}

fn write_time_value(array: &dyn Array, row: usize, style: &Style, out: &mut BytesMut) -> Result<()> {
    match array.data_type() {
        DataType::Time32(_) | DataType::Time64(_) => write_time(out, time(array, row)?),
        DataType::Timestamp(_, Some(_)) => write_timestamp(out, timestamp(array, row)?, Zone::Of(style.zone.as_ref())),
        DataType::Timestamp(_, None) => write_timestamp(out, timestamp(array, row)?, Zone::None),
        _ => write_date(out, date(array, row)?),
    }
    .map_err(failed)
}

fn write_bytes(array: &dyn Array, row: usize, out: &mut BytesMut) -> Result<()> {
    let bytes = bytes(array, row)?;
    if let (DataType::FixedSizeBinary(16), Ok(uuid)) = (array.data_type(), uuid::Uuid::from_slice(bytes)) {
        return write!(out, "{}", uuid.hyphenated()).map_err(failed);
    }
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.reserve(2 + 2 * bytes.len());
    out.extend_from_slice(b"\\x");
    for byte in bytes {
        out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
    }
    Ok(())
}

/// Months, days, microseconds in the style `postgres`.
fn write_interval((months, days, micros): (i32, i32, i64), out: &mut BytesMut) -> fmt::Result {
    let (mut first, mut after_negative) = (true, false);
    for (value, unit) in [(months / 12, "year"), (months % 12, "mon"), (days, "day")] {
        if value == 0 {
            continue;
        }
        let gap = if first { "" } else { " " };
        let sign = if after_negative && value > 0 { "+" } else { "" };
        write!(out, "{gap}{sign}{value} {unit}{}", if value == 1 { "" } else { "s" })?;
        (first, after_negative) = (false, value < 0);
    }
    if !first && micros == 0 {
        return Ok(());
    }
    let gap = if first { "" } else { " " };
    let sign = match micros {
        m if m < 0 => "-",
        _ if after_negative => "+",
        _ => "",
    };
    let rest = micros.unsigned_abs();
    let seconds = rest / 1_000_000;
    write!(
        out,
        "{gap}{sign}{:02}:{:02}:{:02}",
        seconds / 3_600,
        seconds / 60 % 60,
        seconds % 60
    )?;
    write_fraction(out, (rest % 1_000_000) as i64)
}

fn failed(_: fmt::Error) -> Error {
    Error::internal("value cannot be formatted")
}

/// The native value of a primitive array whose type has been matched.
pub(super) fn at<T: ArrowPrimitiveType>(array: &dyn Array, row: usize) -> T::Native {
    array.as_primitive::<T>().value(row)
}

/// Any integer, as the signed 64 bits that clients get at most.
pub(super) fn integer(array: &dyn Array, row: usize) -> Result<i64> {
    Ok(match array.data_type() {
        DataType::Int8 => at::<Int8Type>(array, row).into(),
        DataType::Int16 => at::<Int16Type>(array, row).into(),
        DataType::Int32 => at::<Int32Type>(array, row).into(),
        DataType::Int64 => at::<Int64Type>(array, row),
        DataType::UInt8 => at::<UInt8Type>(array, row).into(),
        DataType::UInt16 => at::<UInt16Type>(array, row).into(),
        DataType::UInt32 => at::<UInt32Type>(array, row).into(),
        DataType::UInt64 => i64::try_from(at::<UInt64Type>(array, row)).map_err(|_| out_of_range("bigint"))?,
        other => return Err(Error::internal(format!("{other} is no integer"))),
    })
}

/// A decimal's unscaled digits, with sign, and its scale.
pub(super) fn unscaled(array: &dyn Array, row: usize) -> Result<(String, i8)> {
    Ok(match array.data_type() {
        DataType::Decimal32(_, scale) => (at::<Decimal32Type>(array, row).to_string(), *scale),
        DataType::Decimal64(_, scale) => (at::<Decimal64Type>(array, row).to_string(), *scale),
        DataType::Decimal128(_, scale) => (at::<Decimal128Type>(array, row).to_string(), *scale),
        DataType::Decimal256(_, scale) => (at::<Decimal256Type>(array, row).to_string(), *scale),
        other => return Err(Error::internal(format!("{other} is no decimal"))),
    })
}

/// Days since 1970.
pub(super) fn date(array: &dyn Array, row: usize) -> Result<i64> {
    Ok(match array.data_type() {
        DataType::Date32 => at::<Date32Type>(array, row).into(),
        _ => at::<Date64Type>(array, row).div_euclid(86_400_000),
    })
}

/// Microseconds of a day.
pub(super) fn time(array: &dyn Array, row: usize) -> Result<i64> {
    let micros = match array.data_type() {
        DataType::Time32(unit) | DataType::Time64(unit) => to_micros(*unit).apply(raw(array, row)?),
        _ => None,
    };
    micros
        .filter(|m| (0..=calendar::DAY_MICROS).contains(m))
        .ok_or_else(|| time_out_of_range("time"))
}

/// Microseconds since 1970.
pub(super) fn timestamp(array: &dyn Array, row: usize) -> Result<i64> {
    let micros = match array.data_type() {
        DataType::Timestamp(unit, _) => to_micros(*unit).apply(raw(array, row)?),
        _ => None,
    };
    micros.ok_or_else(|| time_out_of_range("timestamp"))
}

/// Months, days, microseconds.
pub(super) fn interval(array: &dyn Array, row: usize) -> Result<(i32, i32, i64)> {
    use datafusion::arrow::array::types::{IntervalDayTimeType, IntervalMonthDayNanoType, IntervalYearMonthType};
    use datafusion::arrow::datatypes::IntervalUnit;
    Ok(match array.data_type() {
        DataType::Interval(IntervalUnit::MonthDayNano) => {
            let value = at::<IntervalMonthDayNanoType>(array, row);
            (value.months, value.days, value.nanoseconds / 1_000)
        }
        DataType::Interval(IntervalUnit::DayTime) => {
            let value = at::<IntervalDayTimeType>(array, row);
            (0, value.days, i64::from(value.milliseconds) * 1_000)
        }
        DataType::Interval(IntervalUnit::YearMonth) => (at::<IntervalYearMonthType>(array, row), 0, 0),
        DataType::Duration(unit) => {
            let micros = to_micros(*unit).apply(raw(array, row)?);
            let micros = micros.ok_or_else(|| time_out_of_range("interval"))?;
            // Between timestamps PostgreSQL counts days.
            (0, (micros / calendar::DAY_MICROS) as i32, micros % calendar::DAY_MICROS)
        }
        other => return Err(Error::internal(format!("{other} is no interval"))),
    })
}

/// The count of units behind a time, timestamp or duration.
fn raw(array: &dyn Array, row: usize) -> Result<i64> {
    use datafusion::arrow::array::types::{
        DurationMicrosecondType, DurationMillisecondType, DurationNanosecondType, DurationSecondType,
        Time32MillisecondType, Time32SecondType, Time64MicrosecondType, Time64NanosecondType, TimestampMicrosecondType,
        TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType,
    };
    use datafusion::arrow::datatypes::TimeUnit::{Microsecond, Millisecond, Nanosecond, Second};
    Ok(match array.data_type() {
        DataType::Time32(Second) => at::<Time32SecondType>(array, row).into(),
        DataType::Time32(_) => at::<Time32MillisecondType>(array, row).into(),
        DataType::Time64(Microsecond) => at::<Time64MicrosecondType>(array, row),
        DataType::Time64(_) => at::<Time64NanosecondType>(array, row),
        DataType::Timestamp(Second, _) => at::<TimestampSecondType>(array, row),
        DataType::Timestamp(Millisecond, _) => at::<TimestampMillisecondType>(array, row),
        DataType::Timestamp(Microsecond, _) => at::<TimestampMicrosecondType>(array, row),
        DataType::Timestamp(Nanosecond, _) => at::<TimestampNanosecondType>(array, row),
        DataType::Duration(Second) => at::<DurationSecondType>(array, row),
        DataType::Duration(Millisecond) => at::<DurationMillisecondType>(array, row),
        DataType::Duration(Microsecond) => at::<DurationMicrosecondType>(array, row),
        DataType::Duration(Nanosecond) => at::<DurationNanosecondType>(array, row),
        other => return Err(Error::internal(format!("{other} counts no time"))),
    })
}

/// The bytes of a binary value.
pub(super) fn bytes(array: &dyn Array, row: usize) -> Result<&[u8]> {
    Ok(match array.data_type() {
        DataType::Binary => array.as_binary::<i32>().value(row),
        DataType::LargeBinary => array.as_binary::<i64>().value(row),
        DataType::BinaryView => array.as_binary_view().value(row),
        DataType::FixedSizeBinary(_) => array.as_fixed_size_binary().value(row),
        other => {
            return Err(Error::unsupported(
                format!("values of type {other} cannot be sent to a client"),
                "cast them to text",
            ));
        }
    })
}
