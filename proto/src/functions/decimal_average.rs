//! The last step of an average of decimals that was summed in parts: the same digits as DataFusion's `avg`.
//!
//! ```text
//!   sum 10.00 (scale 2), count 3, result scale 6   ->   3.333333     cut off, not rounded, as `avg` does
//! ```
//!
//! SQL division would round differently and has other types, hence a function of its own. Routers do not register it, so it
//! cannot be named in SQL.

use datafusion::arrow::array::{Array, ArrayRef, AsArray, Decimal128Array};
use datafusion::arrow::datatypes::{DataType, Decimal128Type, DecimalType, Int64Type};
use datafusion::common::utils::take_function_args;
use datafusion::common::{Result, ScalarValue, exec_datafusion_err, exec_err};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use std::sync::Arc;

/// `sum / count` as `avg` of type `result` gives it; NULL when `sum` is.
///
/// # Errors
/// `result` has no NULL, which every type has.
pub fn decimal_average(sum: Expr, count: Expr, result: &DataType) -> Result<Expr> {
    // The result's type travels as an argument: workers know a function by its name alone.
    let like = Expr::Literal(ScalarValue::try_from(result)?, None);
    let function = Arc::new(ScalarUDF::from(DecimalAverage::default()));
    Ok(Expr::ScalarFunction(ScalarFunction::new_udf(
        function,
        vec![sum, count, like],
    )))
}

/// The function: sum, count, and a NULL of the result's type.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct DecimalAverage {
    signature: Signature,
}

impl Default for DecimalAverage {
    fn default() -> Self {
        Self {
            signature: Signature::any(3, Volatility::Immutable),
        }
    }
}

impl ScalarUDFImpl for DecimalAverage {
    fn name(&self) -> &str {
        "__tessera_decimal_average"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        let [_, _, like] = take_function_args(self.name(), types)?;
        Ok(like.clone())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [sum, count, like] = take_function_args(self.name(), args.args)?;
        let (sum, count) = (sum.into_array(args.number_rows)?, count.into_array(args.number_rows)?);
        Ok(ColumnarValue::Array(average(&sum, &count, &like.data_type())?))
    }
}

fn average(sums: &ArrayRef, counts: &ArrayRef, result: &DataType) -> Result<ArrayRef> {
    let (DataType::Decimal128(_, sum_scale), DataType::Decimal128(precision, scale)) = (sums.data_type(), result)
    else {
        return exec_err!("average of {} as {}", sums.data_type(), result);
    };
    let Some(counts) = counts.as_primitive_opt::<Int64Type>() else {
        return exec_err!("average with a count of type {}", counts.data_type());
    };
    let Some(factor) = u32::try_from(scale - sum_scale)
        .ok()
        .and_then(|digits| 10i128.checked_pow(digits))
    else {
        return exec_err!("Arithmetic Overflow in AvgAccumulator");
    };
    let sums = sums.as_primitive::<Decimal128Type>();
    let averages = (0..sums.len()).map(|row| {
        if sums.is_null(row) || counts.is_null(row) || counts.value(row) == 0 {
            return Ok(None);
        }
        let average = divide(sums.value(row), i128::from(counts.value(row)), factor)
            .filter(|v| Decimal128Type::validate_decimal_precision(*v, *precision, *scale).is_ok());
        average
            .map(Some)
            .ok_or_else(|| exec_datafusion_err!("Arithmetic Overflow in AvgAccumulator"))
    });
    let array: Decimal128Array = averages.collect::<Result<_>>()?;
    Ok(Arc::new(array.with_precision_and_scale(*precision, *scale)?))
}

/// `sum * factor / count`, cut off towards zero, without overflowing on the way unless the result does.
fn divide(sum: i128, count: i128, factor: i128) -> Option<i128> {
    let whole = (sum / count).checked_mul(factor)?;
    let rest = (sum % count).checked_mul(factor)? / count;
    whole.checked_add(rest)
}

#[cfg(test)]
mod tests {
    use super::divide;

    #[test]
    fn cuts_off_towards_zero() {
        assert_eq!(divide(1000, 3, 10_000), Some(3_333_333));
        assert_eq!(divide(-1000, 3, 10_000), Some(-3_333_333));
        assert_eq!(divide(i128::MAX, 1, 10), None);
    }
}
