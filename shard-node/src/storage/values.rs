//! Every value of a column as bytes, whatever its type; used by digests and sketches.
//!
//! Fixed-width types give their little-endian bytes, bool one byte, text and bytea themselves. Equal values of one SQL type
//! give equal bytes on every node and in every encoding.

use datafusion::arrow::array::{Array, ArrayRef, ArrowPrimitiveType, AsArray};
use datafusion::arrow::datatypes::*;
use tessera_proto::{Error, Result};

/// Calls `visit(row, bytes)` for every row, `None` for NULL.
///
/// # Errors
/// XX000: a type that no column has.
pub(crate) fn for_each_value(array: &ArrayRef, visit: &mut impl FnMut(usize, Option<&[u8]>)) -> Result<()> {
    match array.data_type() {
        DataType::Boolean => {
            let values = array.as_boolean();
            each(array, visit, |row, visit| {
                visit(row, Some(&[u8::from(values.value(row))]))
            });
        }
        DataType::Int16 => primitive::<Int16Type>(array, visit),
        DataType::Int32 => primitive::<Int32Type>(array, visit),
        DataType::Int64 => primitive::<Int64Type>(array, visit),
        DataType::UInt64 => primitive::<UInt64Type>(array, visit),
        DataType::Float32 => primitive::<Float32Type>(array, visit),
        DataType::Float64 => primitive::<Float64Type>(array, visit),
        DataType::Decimal128(_, _) => primitive::<Decimal128Type>(array, visit),
        DataType::Date32 => primitive::<Date32Type>(array, visit),
        DataType::Time64(TimeUnit::Microsecond) => primitive::<Time64MicrosecondType>(array, visit),
        DataType::Timestamp(TimeUnit::Microsecond, _) => primitive::<TimestampMicrosecondType>(array, visit),
        DataType::Interval(IntervalUnit::MonthDayNano) => {
            let values = array.as_primitive::<IntervalMonthDayNanoType>();
            each(array, visit, |row, visit| {
                visit(row, Some(&interval_bytes(values.value(row))))
            });
        }
        DataType::FixedSizeBinary(_) => {
            let values = array.as_fixed_size_binary();
            each(array, visit, |row, visit| visit(row, Some(values.value(row))));
        }
        DataType::Utf8View => {
            let values = array.as_string_view();
            each(array, visit, |row, visit| {
                visit(row, Some(values.value(row).as_bytes()))
            });
        }
        DataType::BinaryView => {
            let values = array.as_binary_view();
            each(array, visit, |row, visit| visit(row, Some(values.value(row))));
        }
        other => return Err(Error::internal(format!("no column has type {other}"))),
    }
    Ok(())
}

fn each<V: FnMut(usize, Option<&[u8]>)>(array: &ArrayRef, visit: &mut V, mut value: impl FnMut(usize, &mut V)) {
    for row in 0..array.len() {
        if array.is_null(row) {
            visit(row, None);
        } else {
            value(row, visit);
        }
    }
}

fn primitive<T: ArrowPrimitiveType>(array: &ArrayRef, visit: &mut impl FnMut(usize, Option<&[u8]>)) {
    let values = array.as_primitive::<T>();
    // Arrow runs on little-endian machines only, so native bytes are little endian.
    each(array, visit, |row, visit| {
        visit(row, Some(values.value(row).to_byte_slice()))
    });
}

/// months i32 | days i32 | nanoseconds i64
pub(crate) fn interval_bytes(value: IntervalMonthDayNano) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&value.months.to_le_bytes());
    bytes[4..8].copy_from_slice(&value.days.to_le_bytes());
    bytes[8..].copy_from_slice(&value.nanoseconds.to_le_bytes());
    bytes
}
