//! Division of numerics to the digits that PostgreSQL shows, rounded as it rounds; DataFusion's cuts off four digits after the
//! operands' own.
//!
//! ```text
//!   numeric(10,2) 1.55 / 3      __tessera_divide(1.55, 3)      0.5166666666666667      scale 16, or an operand's if more
//! ```
//!
//! PostgreSQL chooses the scale by the value, to have 16 digits that count; an Arrow column has one scale, so small quotients
//! have fewer digits here. Routers put it in the place of the operator when they bind; it cannot be named in SQL.

use crate::error::Error;
use datafusion::arrow::array::{Array, ArrayRef, AsArray, Decimal128Array};
use datafusion::arrow::datatypes::{DECIMAL128_MAX_PRECISION, DataType, Decimal128Type, i256};
use datafusion::common::utils::take_function_args;
use datafusion::common::{Result, exec_err, plan_err};
use datafusion::functions::utils::make_scalar_function;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use std::sync::{Arc, LazyLock};

/// Digits after the point of a quotient, at least.
const SCALE_MIN: i8 = 16;

static FUNCTION: LazyLock<Arc<ScalarUDF>> = LazyLock::new(|| Arc::new(ScalarUDF::from(Division::default())));

/// The function, which plans find by its name.
pub fn function() -> Arc<ScalarUDF> {
    FUNCTION.clone()
}

/// `left / right`, both Decimal128.
pub fn divide(left: Expr, right: Expr) -> Expr {
    Expr::ScalarFunction(ScalarFunction::new_udf(FUNCTION.clone(), vec![left, right]))
}

/// The function: dividend, divisor.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Division {
    signature: Signature,
}

impl Default for Division {
    fn default() -> Self {
        Self {
            signature: Signature::any(2, Volatility::Immutable),
        }
    }
}

impl ScalarUDFImpl for Division {
    fn name(&self) -> &str {
        "__tessera_divide"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        match types {
            [DataType::Decimal128(_, left), DataType::Decimal128(_, right)] => {
                let scale = SCALE_MIN.max(*left).max(*right);
                Ok(DataType::Decimal128(DECIMAL128_MAX_PRECISION, scale))
            }
            _ => plan_err!("{} of {types:?}", self.name()),
        }
    }

    /// That of the operator it stands for, so that whoever refers to the column by it still finds it.
    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        let [left, right] = take_function_args(self.name(), args)?;
        Ok(format!("{} / {}", left.schema_name(), right.schema_name()))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let DataType::Decimal128(_, scale) = *args.return_field.data_type() else {
            return exec_err!("{} as {}", self.name(), args.return_field.data_type());
        };
        let divided = |values: &[ArrayRef]| {
            let [left, right] = take_function_args(self.name(), values)?;
            quotients(left, right, scale)
        };
        make_scalar_function(divided, vec![])(&args.args)
    }
}

fn quotients(left: &ArrayRef, right: &ArrayRef, scale: i8) -> Result<ArrayRef> {
    let (DataType::Decimal128(_, left_scale), DataType::Decimal128(_, right_scale)) =
        (left.data_type(), right.data_type())
    else {
        return exec_err!("division of {} by {}", left.data_type(), right.data_type());
    };
    // l / 10^ls over r / 10^rs is l * 10^(scale - ls + rs) / r, at this scale.
    let digits = u32::try_from(i16::from(scale) - i16::from(*left_scale) + i16::from(*right_scale)).unwrap_or(0);
    let (left, right) = (
        left.as_primitive::<Decimal128Type>(),
        right.as_primitive::<Decimal128Type>(),
    );
    let divided = (0..left.len()).map(|row| {
        if left.is_null(row) || right.is_null(row) {
            return Ok(None);
        }
        if right.value(row) == 0 {
            return Err(Error::new("22012", "division by zero"));
        }
        let quotient = divide_rounded(left.value(row), right.value(row), digits);
        quotient.map(Some).ok_or_else(out_of_range)
    });
    let divided: Decimal128Array = divided.collect::<std::result::Result<_, Error>>()?;
    Ok(Arc::new(
        divided.with_precision_and_scale(DECIMAL128_MAX_PRECISION, scale)?,
    ))
}

/// `left * 10^digits / right`, halves away from zero; `None` where it has more than 38 digits.
fn divide_rounded(left: i128, right: i128, digits: u32) -> Option<i128> {
    let narrow = 10i128.checked_pow(digits).and_then(|factor| left.checked_mul(factor));
    let quotient = match narrow {
        Some(left) => rounded(left, right)?,
        None => {
            let left = i256::from_i128(left).checked_mul(i256::from_i128(10).checked_pow(digits)?)?;
            let right = i256::from_i128(right);
            let (quotient, rest) = (left.checked_div(right)?, left.checked_rem(right)?);
            let away = rest.wrapping_abs() >= right.wrapping_abs().wrapping_sub(rest.wrapping_abs());
            let one = i128::from(away && rest != i256::ZERO);
            let negative = left.is_negative() != right.is_negative();
            quotient.to_i128()?.checked_add(if negative { -one } else { one })?
        }
    };
    (quotient.unsigned_abs() < 10u128.pow(u32::from(DECIMAL128_MAX_PRECISION))).then_some(quotient)
}

fn rounded(left: i128, right: i128) -> Option<i128> {
    let (quotient, rest) = (left.checked_div(right)?, left.checked_rem(right)?);
    let away = rest != 0 && rest.unsigned_abs() >= right.unsigned_abs() - rest.unsigned_abs();
    let one = i128::from(away);
    quotient.checked_add(if (left < 0) != (right < 0) { -one } else { one })
}

/// 22003.
fn out_of_range() -> Error {
    Error::new("22003", "value overflows numeric format").with_hint("divide as double precision: x::float8 / y")
}

#[cfg(test)]
mod tests {
    use super::divide_rounded;

    #[test]
    fn rounds_halves_away_from_zero() {
        for (left, right, digits, wanted) in [
            (155, 300, 16, Some(5_166_666_666_666_667)),
            (-155, 300, 16, Some(-5_166_666_666_666_667)),
            (1, 2, 0, Some(1)),
            (-1, 2, 0, Some(-1)),
            (1, -2, 0, Some(-1)),
            (1, 3, 0, Some(0)),
            (0, 7, 16, Some(0)),
        ] {
            assert_eq!(divide_rounded(left, right, digits), wanted, "{left} / {right}");
        }
    }

    #[test]
    fn goes_through_256_bits_and_no_further() {
        let large = 10i128.pow(37);
        assert_eq!(divide_rounded(large, large, 16), Some(10i128.pow(16)));
        assert_eq!(divide_rounded(-large, 3 * large, 16), Some(-3_333_333_333_333_333));
        assert_eq!(divide_rounded(-2 * large, 3 * large, 16), Some(-6_666_666_666_666_667));
        assert_eq!(divide_rounded(large, 1, 16), None);
    }
}
