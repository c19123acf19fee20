//! The last step of an average of decimals that was summed in parts: the same digits as DataFusion's `avg`.
//!
//! ```text
//!   sum 10.00 (scale 2), count 3, result scale 6   ->   3.333333     cut off, not rounded, as `avg` does
//! ```
//!
//! SQL division would round differently and has other types, hence a function of its own. It runs on the router only, is
//! not registered, and so cannot be named in SQL.

use datafusion::arrow::array::{Array, ArrayRef, AsArray, Decimal128Array};
use datafusion::arrow::datatypes::{DataType, Decimal128Type, DecimalType, Int64Type};
use datafusion::common::utils::take_function_args;
use datafusion::common::{Result, exec_datafusion_err, exec_err};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use std::sync::Arc;

/// `sum / count` as `avg` of type `result` gives it; NULL when `sum` is.
pub fn decimal_average(sum: Expr, count: Expr, result: &DataType) -> Expr {
    let function = DecimalAverage {
        signature: Signature::any(2, Volatility::Immutable),
        result: result.clone(),
    };
    Expr::ScalarFunction(ScalarFunction::new_udf(
        Arc::new(ScalarUDF::from(function)),
        vec![sum, count],
    ))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct DecimalAverage {
    signature: Signature,
    result: DataType,
}

impl ScalarUDFImpl for DecimalAverage {
    fn name(&self) -> &str {
        "__tessera_decimal_average"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(self.result.clone())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [sum, count] = take_function_args(self.name(), args.args)?;
        let (sum, count) = (sum.into_array(args.number_rows)?, count.into_array(args.number_rows)?);
        Ok(ColumnarValue::Array(self.average(&sum, &count)?))
    }
}

impl DecimalAverage {
    fn average(&self, sums: &ArrayRef, counts: &ArrayRef) -> Result<ArrayRef> {
        let (DataType::Decimal128(_, sum_scale), DataType::Decimal128(precision, scale)) =
            (sums.data_type(), &self.result)
        else {
            return exec_err!("average of {} as {}", sums.data_type(), self.result);
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
