//! Rounding to whole numbers as PostgreSQL's casts do, which DataFusion's cut off.
//!
//! ```text
//!   numeric   2.5 -> 3    -2.5 -> -3     halves away from zero
//!   float8    2.5 -> 2     3.5 -> 4      halves to the even neighbour (IEEE 754 roundTiesToEven)
//! ```
//!
//! The result has the argument's type. Routers put it below casts to integers when they bind; it cannot be named in SQL.

use datafusion::arrow::array::{Array, ArrayRef, AsArray};
use datafusion::arrow::datatypes::{DataType, Decimal128Type, Float32Type, Float64Type};
use datafusion::common::utils::take_function_args;
use datafusion::common::{Result, ScalarValue, exec_err};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use std::sync::{Arc, LazyLock};

static FUNCTION: LazyLock<Arc<ScalarUDF>> = LazyLock::new(|| Arc::new(ScalarUDF::from(Rounding::default())));

/// The function, which plans find by its name.
pub fn function() -> Arc<ScalarUDF> {
    FUNCTION.clone()
}

/// `value`, a Decimal128 or a float, as a whole number.
pub fn rounded(value: Expr) -> Expr {
    Expr::ScalarFunction(ScalarFunction::new_udf(FUNCTION.clone(), vec![value]))
}

/// The function.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Rounding {
    signature: Signature,
}

impl Default for Rounding {
    fn default() -> Self {
        Self {
            signature: Signature::any(1, Volatility::Immutable),
        }
    }
}

impl ScalarUDFImpl for Rounding {
    fn name(&self) -> &str {
        "__tessera_round"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        let [only] = take_function_args(self.name(), types)?;
        Ok(only.clone())
    }

    /// That of the argument: a cast has no name of its own either.
    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        let [only] = take_function_args(self.name(), args)?;
        Ok(only.schema_name().to_string())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [value] = take_function_args(self.name(), args.args)?;
        Ok(match value {
            ColumnarValue::Array(array) => ColumnarValue::Array(round(&array)?),
            ColumnarValue::Scalar(value) => {
                let rounded = round(&value.to_array()?)?;
                ColumnarValue::Scalar(ScalarValue::try_from_array(&rounded, 0)?)
            }
        })
    }
}

fn round(values: &ArrayRef) -> Result<ArrayRef> {
    Ok(match values.data_type() {
        DataType::Float32 => Arc::new(
            values
                .as_primitive::<Float32Type>()
                .unary::<_, Float32Type>(f32::round_ties_even),
        ),
        DataType::Float64 => Arc::new(
            values
                .as_primitive::<Float64Type>()
                .unary::<_, Float64Type>(f64::round_ties_even),
        ),
        DataType::Decimal128(_, scale) if *scale <= 0 => values.clone(),
        DataType::Decimal128(precision, scale) => {
            let unit = 10i128.pow(scale.unsigned_abs().into());
            let whole = |v: i128| {
                let rest = v % unit;
                let away = if 2 * rest.abs() >= unit {
                    unit * rest.signum()
                } else {
                    0
                };
                v - rest + away
            };
            let rounded = values
                .as_primitive::<Decimal128Type>()
                .unary::<_, Decimal128Type>(whole);
            Arc::new(rounded.with_precision_and_scale(*precision, *scale)?)
        }
        other => return exec_err!("rounding of {other}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::array::{Decimal128Array, Float64Array};

    #[test]
    fn halves_go_where_postgresql_puts_them() {
        let floats: ArrayRef = Arc::new(Float64Array::from(vec![2.5, 3.5, -2.5, 0.4, -0.6]));
        let got = round(&floats).unwrap();
        let got: Vec<f64> = got.as_primitive::<Float64Type>().values().to_vec();
        assert_eq!(got, [2.0, 4.0, -2.0, 0.0, -1.0]);
        let decimals = Decimal128Array::from(vec![250, -250, 249, 0, 199]);
        let decimals: ArrayRef = Arc::new(decimals.with_precision_and_scale(5, 2).unwrap());
        let got = round(&decimals).unwrap();
        let got: Vec<i128> = got.as_primitive::<Decimal128Type>().values().to_vec();
        assert_eq!(got, [300, -300, 200, 0, 200]);
    }
}
