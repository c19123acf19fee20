//! Every value of a column as bytes, whatever its type; used by digests and sketches.
//!
//! Fixed-width types give their little-endian bytes, bool one byte, text and bytea themselves. Equal values of one SQL type
//! give equal bytes on every node and in every encoding; [`value_of`] is the way back.

use datafusion::arrow::array::{Array, ArrayRef, ArrowPrimitiveType, AsArray};
use datafusion::arrow::datatypes::*;
use datafusion::scalar::ScalarValue;
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

/// The value of type `data_type` that has these bytes; `None` if none has.
pub(crate) fn value_of(bytes: &[u8], data_type: &DataType) -> Option<ScalarValue> {
    Some(match data_type {
        DataType::Boolean => match bytes {
            [0] => ScalarValue::Boolean(Some(false)),
            [1] => ScalarValue::Boolean(Some(true)),
            _ => return None,
        },
        DataType::Int16 => ScalarValue::Int16(Some(i16::from_le_bytes(bytes.try_into().ok()?))),
        DataType::Int32 => ScalarValue::Int32(Some(i32::from_le_bytes(bytes.try_into().ok()?))),
        DataType::Int64 => ScalarValue::Int64(Some(i64::from_le_bytes(bytes.try_into().ok()?))),
        DataType::UInt64 => ScalarValue::UInt64(Some(u64::from_le_bytes(bytes.try_into().ok()?))),
        DataType::Float32 => ScalarValue::Float32(Some(f32::from_le_bytes(bytes.try_into().ok()?))),
        DataType::Float64 => ScalarValue::Float64(Some(f64::from_le_bytes(bytes.try_into().ok()?))),
        DataType::Decimal128(precision, scale) => {
            ScalarValue::Decimal128(Some(i128::from_le_bytes(bytes.try_into().ok()?)), *precision, *scale)
        }
        DataType::Date32 => ScalarValue::Date32(Some(i32::from_le_bytes(bytes.try_into().ok()?))),
        DataType::Time64(TimeUnit::Microsecond) => {
            ScalarValue::Time64Microsecond(Some(i64::from_le_bytes(bytes.try_into().ok()?)))
        }
        DataType::Timestamp(TimeUnit::Microsecond, zone) => {
            ScalarValue::TimestampMicrosecond(Some(i64::from_le_bytes(bytes.try_into().ok()?)), zone.clone())
        }
        DataType::Interval(IntervalUnit::MonthDayNano) => {
            ScalarValue::IntervalMonthDayNano(Some(interval_of(bytes.try_into().ok()?)))
        }
        DataType::FixedSizeBinary(width) => {
            let fits = usize::try_from(*width).is_ok_and(|width| width == bytes.len());
            ScalarValue::FixedSizeBinary(*width, Some(fits.then(|| bytes.to_vec())?))
        }
        DataType::Utf8View => ScalarValue::Utf8View(Some(std::str::from_utf8(bytes).ok()?.to_owned())),
        DataType::BinaryView => ScalarValue::BinaryView(Some(bytes.to_vec())),
        _ => return None,
    })
}

/// months i32 | days i32 | nanoseconds i64
pub(crate) fn interval_bytes(value: IntervalMonthDayNano) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&value.months.to_le_bytes());
    bytes[4..8].copy_from_slice(&value.days.to_le_bytes());
    bytes[8..].copy_from_slice(&value.nanoseconds.to_le_bytes());
    bytes
}

/// The inverse.
pub(crate) fn interval_of(bytes: [u8; 16]) -> IntervalMonthDayNano {
    let [m0, m1, m2, m3, d0, d1, d2, d3, nanoseconds @ ..] = bytes;
    IntervalMonthDayNano::new(
        i32::from_le_bytes([m0, m1, m2, m3]),
        i32::from_le_bytes([d0, d1, d2, d3]),
        i64::from_le_bytes(nanoseconds),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::array::*;
    use std::sync::Arc;

    #[test]
    fn bytes_become_the_value_they_came_from() {
        let interval = IntervalMonthDayNano::new(-1, 40, 7_000_000_000);
        let uuid = FixedSizeBinaryArray::try_from_iter(std::iter::once([7u8; 16])).unwrap();
        let arrays: Vec<ArrayRef> = vec![
            Arc::new(BooleanArray::from(vec![true])),
            Arc::new(Int16Array::from(vec![-5])),
            Arc::new(Int32Array::from(vec![-70_000])),
            Arc::new(Int64Array::from(vec![i64::MIN])),
            Arc::new(UInt64Array::from(vec![u64::MAX])),
            Arc::new(Float32Array::from(vec![-0.5])),
            Arc::new(Float64Array::from(vec![f64::NAN])),
            Arc::new(
                Decimal128Array::from(vec![-12_345])
                    .with_precision_and_scale(12, 2)
                    .unwrap(),
            ),
            Arc::new(Date32Array::from(vec![-9_000])),
            Arc::new(Time64MicrosecondArray::from(vec![86_399_999_999])),
            Arc::new(TimestampMicrosecondArray::from(vec![-1]).with_timezone("+00:00")),
            Arc::new(TimestampMicrosecondArray::from(vec![1])),
            Arc::new(IntervalMonthDayNanoArray::from(vec![interval])),
            Arc::new(uuid),
            Arc::new(StringViewArray::from(vec!["a text that is no longer inline"])),
            Arc::new(BinaryViewArray::from(vec![&b"\xff\x00"[..]])),
        ];
        for array in arrays {
            let mut found = None;
            for_each_value(&array, &mut |_, value| {
                found = value.and_then(|bytes| value_of(bytes, array.data_type()));
            })
            .unwrap();
            assert_eq!(
                found,
                Some(ScalarValue::try_from_array(&array, 0).unwrap()),
                "{}",
                array.data_type()
            );
        }
    }

    #[test]
    fn bytes_of_no_value_are_none() {
        assert_eq!(value_of(&[2], &DataType::Boolean), None);
        assert_eq!(value_of(&[1, 2, 3], &DataType::Int64), None);
        assert_eq!(value_of(b"\xff", &DataType::Utf8View), None);
        assert_eq!(value_of(&[0; 15], &DataType::FixedSizeBinary(16)), None);
        assert_eq!(value_of(&[0; 8], &DataType::Date64), None);
    }
}
