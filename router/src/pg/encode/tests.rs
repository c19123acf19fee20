//! Values to both formats; the binary ones are checked against what `postgres-types` reads.

use super::super::types;
use super::*;
use datafusion::arrow::array::types::{Int32Type, IntervalMonthDayNano};
use datafusion::arrow::array::{
    BinaryViewArray, BooleanArray, Date32Array, Decimal128Array, DictionaryArray, FixedSizeBinaryArray, Float32Array,
    Float64Array, Int32Array, Int64Array, IntervalMonthDayNanoArray, ListArray, StringArray, StringViewArray,
    StructArray, Time64MicrosecondArray, TimestampMicrosecondArray, TimestampNanosecondArray, UInt64Array,
};
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::common::ScalarValue;
use postgres_types::{FromSql, Type};
use std::sync::Arc;
use tessera_proto::sql_type::SqlType;

fn encode(array: ArrayRef, declared: Option<SqlType>, format: i16) -> Result<Option<Vec<u8>>> {
    let schema = Arc::new(Schema::new(vec![Field::new("c", array.data_type().clone(), true)]));
    let batch = RecordBatch::try_new(schema.clone(), vec![array]).map_err(|e| Error::internal(e.to_string()))?;
    let encoder = RowEncoder::new(
        types::columns(&schema, &[declared])?,
        vec![format],
        Style::new(Some("Europe/Paris"), None),
    );
    let mut out = BytesMut::from(&b"before"[..]);
    let result = encoder
        .prepare(&batch)
        .and_then(|columns| encoder.encode(&columns, 0, &mut out));
    if let Err(error) = result {
        assert_eq!(&out[..], b"before", "a failed row leaves nothing");
        return Err(error);
    }
    let row = &out[6..];
    assert_eq!((row[0], &row[5..7]), (b'D', &[0, 1][..]));
    assert_eq!(
        i32::from_be_bytes([row[1], row[2], row[3], row[4]]) as usize,
        row.len() - 1
    );
    let length = i32::from_be_bytes([row[7], row[8], row[9], row[10]]);
    if length >= 0 {
        assert_eq!(length as usize, row.len() - 11);
    }
    Ok((length >= 0).then(|| row[11..].to_vec()))
}

#[track_caller]
fn text(array: impl Array + 'static, expected: &str) {
    let got = encode(Arc::new(array), None, 0).map(|v| v.map(|v| String::from_utf8_lossy(&v).into_owned()));
    assert_eq!(got.map_err(|e| e.code), Ok(Some(expected.to_owned())));
}

#[track_caller]
fn binary<'a, T: FromSql<'a> + PartialEq + std::fmt::Debug>(array: impl Array + 'static, pg_type: Type, expected: T) {
    let array: ArrayRef = Arc::new(array);
    assert_eq!(types::type_of(array.data_type()).ok(), Some(pg_type.clone()));
    // The value may borrow from what was read, for as long as the test.
    let bytes: &'a [u8] = Vec::leak(encode(array, None, 1).ok().flatten().unwrap_or_default());
    assert_eq!(T::from_sql(&pg_type, bytes).ok(), Some(expected), "{bytes:?}");
}

fn decimal(value: i128, precision: u8, scale: i8) -> Decimal128Array {
    Decimal128Array::from(vec![value])
        .with_precision_and_scale(precision, scale)
        .unwrap()
}

fn interval(months: i32, days: i32, micros: i64) -> IntervalMonthDayNanoArray {
    IntervalMonthDayNanoArray::from(vec![IntervalMonthDayNano {
        months,
        days,
        nanoseconds: micros * 1_000,
    }])
}

fn list(items: Vec<Option<i32>>) -> ListArray {
    ListArray::from_iter_primitive::<Int32Type, _, _>(vec![Some(items)])
}

#[test]
fn text_forms_are_those_of_postgresql() {
    text(BooleanArray::from(vec![true]), "t");
    text(Int64Array::from(vec![i64::MIN]), "-9223372036854775808");
    for (value, expected) in [
        (0.1, "0.1"),
        (-0.0, "-0"),
        (100_000.0, "100000"),
        (123_456_789_012_345.0, "123456789012345"),
        (1e15, "1e+15"),
        (1.5e-5, "1.5e-05"),
        (0.0001, "0.0001"),
        (1e300, "1e+300"),
        (0.1 + 0.2, "0.30000000000000004"),
        (f64::NAN, "NaN"),
        (f64::NEG_INFINITY, "-Infinity"),
    ] {
        text(Float64Array::from(vec![value]), expected);
    }
    text(Float32Array::from(vec![0.1_f32]), "0.1");
    text(Float32Array::from(vec![1e6_f32]), "1e+06");
    text(Float32Array::from(vec![16_777.25_f32]), "16777.25");
    for (value, scale, expected) in [
        (1250, 2, "12.50"),
        (-5, 2, "-0.05"),
        (0, 3, "0.000"),
        (7, 0, "7"),
        (7, -2, "700"),
    ] {
        text(decimal(value, 10, scale), expected);
    }
    text(BinaryViewArray::from(vec![&b"\x00\xff"[..]]), "\\x00ff");
    text(Date32Array::from(vec![19_723]), "2024-01-01");
    text(Time64MicrosecondArray::from(vec![45_296_500_000]), "12:34:56.5");
    text(TimestampMicrosecondArray::from(vec![0]), "1970-01-01 00:00:00");
    text(
        TimestampMicrosecondArray::from(vec![0]).with_timezone("+00:00"),
        "1970-01-01 01:00:00+01",
    );
    text(TimestampNanosecondArray::from(vec![-1]), "1969-12-31 23:59:59.999999");
    for (value, expected) in [
        (interval(14, 3, 14_706_789_000), "1 year 2 mons 3 days 04:05:06.789"),
        (interval(0, 0, 0), "00:00:00"),
        (interval(-1, 1, 0), "-1 mons +1 day"),
        (interval(0, -1, 3_600_000_000), "-1 days +01:00:00"),
        (interval(0, 0, -5_000_000), "-00:00:05"),
    ] {
        text(value, expected);
    }
    let uuid = FixedSizeBinaryArray::try_from_iter([[0xab_u8; 16]].iter()).unwrap();
    text(uuid, "abababab-abab-abab-abab-abababababab");
}

#[test]
fn nested_values_are_quoted_as_postgresql_does() {
    text(list(vec![Some(1), None, Some(3)]), "{1,NULL,3}");
    let words = StringArray::from(vec!["plain", "a b", "", "null", "q\"\\"]);
    let field = Arc::new(Field::new("item", DataType::Utf8, true));
    let offsets = datafusion::arrow::buffer::OffsetBuffer::from_lengths([5]);
    text(
        ListArray::new(field, offsets, Arc::new(words), None),
        r#"{plain,"a b","","null","q\"\\"}"#,
    );
    let row = StructArray::from(vec![
        (
            Arc::new(Field::new("a", DataType::Int32, true)),
            Arc::new(Int32Array::from(vec![Some(1)])) as ArrayRef,
        ),
        (
            Arc::new(Field::new("b", DataType::Utf8, true)),
            Arc::new(StringArray::from(vec!["x,\"y"])),
        ),
        (
            Arc::new(Field::new("c", DataType::Int32, true)),
            Arc::new(Int32Array::from(vec![None])),
        ),
    ]);
    text(row, r#"(1,"x,""y",)"#);
}

#[test]
fn binary_forms_are_what_drivers_read() {
    binary(BooleanArray::from(vec![true]), Type::BOOL, true);
    binary(Int32Array::from(vec![-7]), Type::INT4, -7_i32);
    binary(UInt64Array::from(vec![7]), Type::INT8, 7_i64);
    binary(Float64Array::from(vec![1.5]), Type::FLOAT8, 1.5_f64);
    binary(StringViewArray::from(vec!["ä"]), Type::TEXT, "ä".to_owned());
    binary(BinaryViewArray::from(vec![&b"\0\x01"[..]]), Type::BYTEA, vec![0_u8, 1]);
    binary(list(vec![Some(1), None]), Type::INT4_ARRAY, vec![Some(1_i32), None]);
    binary(list(vec![]), Type::INT4_ARRAY, Vec::<Option<i32>>::new());
    let noon = chrono::NaiveDate::from_ymd_opt(2024, 2, 29).and_then(|d| d.and_hms_micro_opt(12, 0, 0, 5));
    let micros = noon.map_or(0, |n| n.and_utc().timestamp_micros());
    binary(
        TimestampMicrosecondArray::from(vec![micros]),
        Type::TIMESTAMP,
        noon.unwrap(),
    );
    binary(Date32Array::from(vec![19_782]), Type::DATE, noon.unwrap().date());
    for (value, scale) in [
        (1250, 2),
        (-5, 3),
        (123_456_789, 4),
        (10_000, 0),
        (0, 2),
        (100_000_001, 4),
        (99_990_000, 0),
    ] {
        binary(
            decimal(value, 20, scale),
            Type::NUMERIC,
            rust_decimal::Decimal::from_i128_with_scale(value, scale as u32),
        );
    }
    let negative_scale = encode(Arc::new(decimal(12, 5, -3)), None, 1).ok().flatten();
    assert_eq!(negative_scale, Some(vec![0, 2, 0, 1, 0, 0, 0, 0, 0, 1, 0x07, 0xd0]));
}

#[test]
fn declared_types_pad_and_limits_are_errors() {
    let padded = encode(Arc::new(StringViewArray::from(vec!["ß"])), Some(SqlType::Char(3)), 0);
    assert_eq!(padded.ok().flatten(), Some("ß  ".as_bytes().to_vec()));
    let null = encode(Arc::new(Int32Array::from(vec![None])), None, 1);
    assert_eq!(null.ok(), Some(None));
    let packed: DictionaryArray<Int32Type> = vec!["x"].into_iter().collect();
    text(packed, "x");
    for format in [0, 1] {
        let huge = encode(Arc::new(UInt64Array::from(vec![u64::MAX])), None, format);
        assert_eq!(huge.map_err(|e| e.code), Err("22003".into()));
    }
    let late = encode(
        Arc::new(datafusion::arrow::array::TimestampSecondArray::from(vec![i64::MAX / 2])),
        None,
        0,
    );
    assert_eq!(late.map_err(|e| e.code), Err("22008".into()));
}

#[test]
fn numeric_survives_both_formats() {
    for digits in [
        "0",
        "0.0",
        "1",
        "-1.50",
        "0.00012300",
        "99999999999999999999999999999999999999",
        "10000",
        "0.0001",
        "12345.6789",
    ] {
        let ScalarValue::Decimal128(Some(value), _, scale) = read_numeric(digits).unwrap() else {
            panic!("{digits}")
        };
        text(decimal(value, 38, scale), digits);
        let bytes = encode(Arc::new(decimal(value, 38, scale)), None, 1)
            .ok()
            .flatten()
            .unwrap();
        assert_eq!(
            read_numeric_binary(bytes.into()).ok(),
            read_numeric(digits).ok(),
            "{digits}"
        );
    }
}
