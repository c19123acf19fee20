//! Parameter rows of clients as the values of `$1`, `$2`, ..., and back into tickets.
//!
//! ```text
//!   batch  '0': Int64  '1': Utf8        described  $1 int4, $2 date
//!          7           2024-02-29   ──▶  Int32(7)  "2024-02-29" as text: a constant in quotes, read as a date by its use
//! ```
//!
//! A value gets the described type where that loses nothing; otherwise it keeps its own, and the statement decides. Not here:
//! arrays as parameters (0A000).

use datafusion::arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::scalar::ScalarValue;
use std::sync::Arc;
use tessera_proto::{Error, Result, ipc};

/// Values as a ticket carries them; no bytes for none.
///
/// # Errors
/// None is expected.
pub(super) fn encode(params: &[ScalarValue]) -> Result<bytes::Bytes> {
    if params.is_empty() {
        return Ok(bytes::Bytes::new());
    }
    let arrays: Vec<ArrayRef> = params
        .iter()
        .map(ScalarValue::to_array)
        .collect::<datafusion::common::Result<_>>()?;
    let field = |(i, array): (usize, &ArrayRef)| Field::new(i.to_string(), array.data_type().clone(), true);
    let schema = Schema::new(arrays.iter().enumerate().map(field).collect::<Vec<_>>());
    let batch = RecordBatch::try_new_with_options(
        Arc::new(schema),
        arrays,
        &RecordBatchOptions::new().with_row_count(Some(1)),
    );
    super::statement::one_row_bytes(&batch.map_err(|e| Error::internal(e.to_string()))?)
}

/// The inverse of [`encode`].
///
/// # Errors
/// 08P01.
pub(super) fn decode(bytes: &[u8]) -> Result<Vec<ScalarValue>> {
    if bytes.is_empty() {
        return Ok(vec![]);
    }
    let batches = ipc::decode(bytes)?;
    match batches.as_slice() {
        [batch] if batch.num_rows() == 1 => values(batch, 0, &[]),
        _ => Err(Error::protocol("parameters are not one row")),
    }
}

/// One row of a client's batch. `described` are the types the statement wants, as far as known.
///
/// # Errors
/// 0A000 for types that parameters cannot have.
pub(super) fn values(batch: &RecordBatch, row: usize, described: &[DataType]) -> Result<Vec<ScalarValue>> {
    let value = |(i, array): (usize, &ArrayRef)| {
        let scalar = plain(ScalarValue::try_from_array(array, row)?);
        if scalar.data_type().is_nested() {
            let what = format!("parameters of type {} are not supported", scalar.data_type());
            return Err(Error::unsupported(what, "send the value as text"));
        }
        Ok(match described.get(i) {
            Some(target) => fit(scalar, target),
            None => scalar,
        })
    };
    batch.columns().iter().enumerate().map(value).collect()
}

/// Checks that a batch has as many columns as the statement has parameters.
///
/// # Errors
/// 08P01.
pub(super) fn check_count(given: usize, wanted: usize) -> Result<()> {
    if given == wanted {
        return Ok(());
    }
    Err(Error::protocol(format!(
        "{given} parameters given, but the prepared statement requires {wanted}"
    )))
}

fn plain(scalar: ScalarValue) -> ScalarValue {
    match scalar {
        ScalarValue::Dictionary(_, value) => plain(*value),
        other => other,
    }
}

fn fit(scalar: ScalarValue, target: &DataType) -> ScalarValue {
    let from = scalar.data_type();
    if from == *target || target.is_null() {
        return scalar;
    }
    if scalar.is_null() {
        return ScalarValue::try_from(target).unwrap_or(scalar);
    }
    let (text, wants_text) = (is_text(&from), is_text(target));
    // Text is a constant in quotes to the statement; other values keep their type where the statement did not ask for one.
    if text != wants_text {
        return scalar;
    }
    let Ok(cast) = scalar.cast_to(target) else {
        return scalar;
    };
    let exact = !cast.is_null() && cast.cast_to(&from).is_ok_and(|back| back == scalar);
    if exact { cast } else { scalar }
}

fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(value: ScalarValue, target: DataType, expected: ScalarValue) {
        assert_eq!(fit(value, &target), expected);
    }

    #[test]
    fn values_fit_without_loss_or_stay() {
        check(ScalarValue::from(7_i64), DataType::Int32, ScalarValue::from(7_i32));
        check(
            ScalarValue::from(1_i64 << 40),
            DataType::Int32,
            ScalarValue::from(1_i64 << 40),
        );
        check(ScalarValue::from(1.5), DataType::Int32, ScalarValue::from(1.5));
        check(ScalarValue::from(7_i64), DataType::Utf8View, ScalarValue::from(7_i64));
        check(ScalarValue::from("x"), DataType::Date32, ScalarValue::from("x"));
        check(ScalarValue::Utf8(None), DataType::Int32, ScalarValue::Int32(None));
        check(
            ScalarValue::from("x"),
            DataType::Utf8View,
            ScalarValue::Utf8View(Some("x".into())),
        );
    }

    #[test]
    fn tickets_carry_values_as_they_are() {
        let values = vec![
            ScalarValue::from(7_i32),
            ScalarValue::Null,
            ScalarValue::Utf8View(Some("a text".into())),
            ScalarValue::Decimal128(Some(150), 10, 2),
        ];
        assert_eq!(decode(&encode(&values).expect("encodes")).expect("decodes"), values);
        assert_eq!(decode(&encode(&[]).expect("encodes")).expect("decodes"), vec![]);
        assert_eq!(decode(b"garbage").expect_err("garbage").code, "08P01");
    }
}
