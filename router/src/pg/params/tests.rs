//! Parameters in both formats, good and bad.

use super::*;

fn style() -> Style {
    Style::new(Some("Europe/Paris"), None)
}

#[track_caller]
fn text(value: &str, pg_type: Type, expected: Result<ScalarValue, &str>) {
    let got = decode(
        Some(Bytes::copy_from_slice(value.as_bytes())),
        0,
        &pg_type,
        None,
        &style(),
    );
    assert_eq!(
        got.map_err(|e| e.code).as_ref().map_err(String::as_str),
        expected.as_ref().map_err(|e| *e),
        "{value:?}"
    );
}

#[test]
fn text_parameters() {
    text("off", Type::BOOL, Ok(ScalarValue::from(false)));
    text(" t ", Type::BOOL, Ok(ScalarValue::from(true)));
    text("o", Type::BOOL, Err("22P02"));
    text(" -42 ", Type::INT4, Ok(ScalarValue::from(-42_i32)));
    text("2147483648", Type::INT4, Err("22003"));
    text("4.0", Type::INT4, Err("22P02"));
    text("", Type::INT8, Err("22P02"));
    text("1e400", Type::FLOAT8, Err("22003"));
    text("-Infinity", Type::FLOAT8, Ok(ScalarValue::from(f64::NEG_INFINITY)));
    text("-12.50", Type::NUMERIC, Ok(ScalarValue::Decimal128(Some(-1250), 4, 2)));
    text("0.05", Type::NUMERIC, Ok(ScalarValue::Decimal128(Some(5), 2, 2)));
    text("1.5e3", Type::NUMERIC, Ok(ScalarValue::Decimal128(Some(1500), 4, 0)));
    text("1e999999999", Type::NUMERIC, Err("22003"));
    text("NaN", Type::NUMERIC, Err("0A000"));
    text("1.2.3", Type::NUMERIC, Err("22P02"));
    text("\\x0aFF", Type::BYTEA, Ok(ScalarValue::BinaryView(Some(vec![10, 255]))));
    text(
        "a\\\\\\001",
        Type::BYTEA,
        Ok(ScalarValue::BinaryView(Some(vec![b'a', b'\\', 1]))),
    );
    text("\\x0", Type::BYTEA, Err("22023"));
    text("2024-07-03 11:00", Type::TIMESTAMPTZ, Ok(utc(1_719_997_200_000_000)));
    text("2024-07-03", Type::DATE, Ok(ScalarValue::Date32(Some(19_907))));
    text("naïve", Type::VARCHAR, Ok(ScalarValue::Utf8View(Some("naïve".into()))));
    text("nonsense", Type::INTERVAL, Err("22007"));
    text("{1,2}", Type::INT4_ARRAY, Err("0A000"));
    text("a\0b", Type::TEXT, Err("22021"));
}

#[test]
fn described_types_are_met_where_nothing_is_lost() {
    let decode = |value: &str, described: DataType| {
        decode(
            Some(Bytes::copy_from_slice(value.as_bytes())),
            0,
            &Type::NUMERIC,
            Some(&described),
            &style(),
        )
        .ok()
    };
    let money = DataType::Decimal128(12, 2);
    assert_eq!(
        decode("1.5", money.clone()),
        Some(ScalarValue::Decimal128(Some(150), 12, 2))
    );
    assert_eq!(
        decode("1.505", money.clone()),
        Some(ScalarValue::Decimal128(Some(1505), 4, 3))
    );
    assert_eq!(
        decode("12345678901234", money),
        Some(ScalarValue::Decimal128(Some(12_345_678_901_234), 14, 0))
    );
    let null = super::decode(None, 1, &Type::INT4, Some(&DataType::Int64), &style());
    assert_eq!(null.ok(), Some(ScalarValue::Int64(None)));
}

#[test]
fn binary_parameters() {
    let decode = |bytes: &[u8], pg_type| {
        decode(Some(Bytes::copy_from_slice(bytes)), 1, &pg_type, None, &style()).map_err(|e| e.code)
    };
    assert_eq!(decode(&[0, 0, 0, 42], Type::INT4), Ok(ScalarValue::from(42_i32)));
    assert_eq!(decode(&[0, 42], Type::INT4), Err("22P03".into()));
    assert_eq!(decode(&[0; 8], Type::TIMESTAMPTZ), Ok(utc(PG_EPOCH_MICROS)));
    assert_eq!(
        decode(&i64::MAX.to_be_bytes(), Type::TIMESTAMP),
        Ok(ScalarValue::TimestampMicrosecond(Some(i64::MAX), None))
    );
    // 12.50: two groups, weight 0, scale 2.
    let numeric = [0, 2, 0, 0, 0, 0, 0, 2, 0, 12, 0x13, 0x88];
    assert_eq!(
        decode(&numeric, Type::NUMERIC),
        Ok(ScalarValue::Decimal128(Some(1250), 4, 2))
    );
    assert_eq!(decode(&numeric[..10], Type::NUMERIC), Err("22P03".into()));
    assert_eq!(
        decode(&[0, 1, 0x7f, 0xff, 0, 0, 0, 0, 0, 1], Type::NUMERIC),
        Err("22003".into())
    );
    assert_eq!(decode(&[0xff], Type::TEXT), Err("22021".into()));
}
