//! Rounding as PostgreSQL's casts to integers and its `round`, `ceil`, `floor` and `trunc` of numerics do it.
//!
//! ```text
//!   numeric(5,2)  2.50 -> 3    -2.50 -> -3     halves away from zero        numeric(4,0)
//!                 2.25 -> 2.3                  with a count of digits       numeric(5,1)
//!   float8        2.5  -> 2      3.5 -> 4      halves to the even neighbour (IEEE 754 roundTiesToEven)
//! ```
//!
//! DataFusion's casts cut off, its `ceil` keeps a scale and overflows it, and the type of its `round` is another before
//! constants are folded than after. Routers put these in the place of those and below casts to integers when they bind; they
//! cannot be named in SQL.

use crate::error::Error;
use datafusion::arrow::array::{Array, ArrayRef, AsArray};
use datafusion::arrow::datatypes::{
    DECIMAL128_MAX_PRECISION, DataType, Decimal128Type, DecimalType, Float32Type, Float64Type,
};
use datafusion::common::{Result, ScalarValue, exec_err, plan_err};
use datafusion::error::DataFusionError;
use datafusion::functions::utils::make_scalar_function;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::function::Hint;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use std::sync::{Arc, LazyLock};

static FUNCTIONS: LazyLock<[Arc<ScalarUDF>; 4]> = LazyLock::new(|| {
    [Mode::Nearest, Mode::Up, Mode::Down, Mode::Cut].map(|mode| Arc::new(ScalarUDF::from(Rounding::new(mode))))
});

/// Where digits go that are left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// To the nearest, halves as the module says.
    Nearest,
    /// `ceil`.
    Up,
    /// `floor`.
    Down,
    /// `trunc`.
    Cut,
}

/// The functions, which plans find by their names.
pub fn functions() -> Vec<Arc<ScalarUDF>> {
    FUNCTIONS.to_vec()
}

/// `value`, a Decimal128 or a float, as the nearest whole number: for a cast of it, whose name is the value's.
pub fn rounded(value: Expr) -> Expr {
    Expr::ScalarFunction(ScalarFunction::new_udf(Mode::Nearest.function(), vec![value]))
}

/// Whether it is what [`rounded`] makes.
pub fn is_rounded(expr: &Expr) -> bool {
    matches!(expr, Expr::ScalarFunction(call) if call.func == Mode::Nearest.function() && call.args.len() == 1)
}

/// `round(value)` of a float.
pub fn rounded_float(value: Expr) -> Expr {
    let like = Expr::Literal(ScalarValue::Float64(None), None);
    Expr::ScalarFunction(ScalarFunction::new_udf(Mode::Nearest.function(), vec![value, like]))
}

/// `value`, a Decimal128, with so many digits after the point.
pub fn rounded_to(value: Expr, digits: i8, mode: Mode) -> Expr {
    // The type tells: nodes know a function by its name and its arguments' types.
    let like = Expr::Literal(ScalarValue::Decimal128(None, DECIMAL128_MAX_PRECISION, digits), None);
    Expr::ScalarFunction(ScalarFunction::new_udf(mode.function(), vec![value, like]))
}

impl Mode {
    fn function(self) -> Arc<ScalarUDF> {
        FUNCTIONS[self as usize].clone()
    }

    /// What is added to a whole number of which `rest` of `unit` was cut off, towards zero.
    fn away(self, rest: i128, unit: i128) -> i128 {
        let away = match self {
            Self::Nearest => rest.unsigned_abs() >= unit.unsigned_abs() - rest.unsigned_abs(),
            Self::Up => rest > 0,
            Self::Down => rest < 0,
            Self::Cut => false,
        };
        if away { rest.signum() } else { 0 }
    }
}

/// A function: a value, and a NULL of the scale that a numeric shall have; without, it stands below a cast.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Rounding {
    mode: Mode,
    signature: Signature,
}

impl Rounding {
    fn new(mode: Mode) -> Self {
        Self {
            mode,
            signature: Signature::variadic_any(Volatility::Immutable),
        }
    }
}

impl ScalarUDFImpl for Rounding {
    fn name(&self) -> &str {
        match self.mode {
            Mode::Nearest => "__tessera_round",
            Mode::Up => "__tessera_ceil",
            Mode::Down => "__tessera_floor",
            Mode::Cut => "__tessera_trunc",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        match types {
            [float] | [float, _] if float.is_floating() => Ok(float.clone()),
            [DataType::Decimal128(precision, scale)] => Ok(result(*precision, *scale, 0)),
            [DataType::Decimal128(precision, scale), DataType::Decimal128(_, digits)] => {
                Ok(result(*precision, *scale, *digits))
            }
            _ => plan_err!("{} of {types:?}", self.name()),
        }
    }

    /// That of the argument, as of a cast; or of the function it stands for.
    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        match args {
            [only] => Ok(only.schema_name().to_string()),
            [value, ..] => {
                let name = self.name().trim_start_matches("__tessera_");
                Ok(format!("{name}({})", value.schema_name()))
            }
            [] => plan_err!("{} without arguments", self.name()),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let to = args.return_field.data_type();
        let rounded = |values: &[ArrayRef]| match values.first() {
            Some(values) => round(values, to, self.mode),
            None => exec_err!("{} without arguments", self.name()),
        };
        make_scalar_function(rounded, vec![Hint::Pad, Hint::AcceptsSingular])(&args.args)
    }
}

/// One digit more than there is before the point, for what rounding up carries; not more digits after it than fit.
fn result(precision: u8, scale: i8, digits: i8) -> DataType {
    let before = i16::from(precision) - i16::from(scale) + 1;
    let room = i16::from(DECIMAL128_MAX_PRECISION) - before.min(i16::from(DECIMAL128_MAX_PRECISION));
    let digits = i16::from(digits).clamp(0, room.max(i16::from(scale.min(digits))));
    let precision = (before + digits).clamp(1, i16::from(DECIMAL128_MAX_PRECISION));
    DataType::Decimal128(precision as u8, digits as i8)
}

fn round(values: &ArrayRef, to: &DataType, mode: Mode) -> Result<ArrayRef> {
    Ok(match (values.data_type(), to) {
        (DataType::Float32, _) => Arc::new(
            values
                .as_primitive::<Float32Type>()
                .unary::<_, Float32Type>(f32::round_ties_even),
        ),
        (DataType::Float64, _) => Arc::new(
            values
                .as_primitive::<Float64Type>()
                .unary::<_, Float64Type>(f64::round_ties_even),
        ),
        (DataType::Decimal128(_, from), DataType::Decimal128(precision, scale)) => {
            let power = |digits: i16| 10i128.checked_pow(digits.max(0) as u32).unwrap_or(i128::MAX);
            let shift = i16::from(*scale) - i16::from(*from);
            let (factor, unit) = (power(shift), power(-shift));
            let rescaled = |v: i128| {
                let (whole, rest) = (v / unit, v % unit);
                let value = (whole + if rest == 0 { 0 } else { mode.away(rest, unit) }).checked_mul(factor);
                let value =
                    value.filter(|v| Decimal128Type::validate_decimal_precision(*v, *precision, *scale).is_ok());
                value.ok_or_else(|| Error::new("22003", "value overflows numeric format").into())
            };
            let rounded = values
                .as_primitive::<Decimal128Type>()
                .try_unary::<_, Decimal128Type, DataFusionError>(rescaled)?;
            Arc::new(rounded.with_precision_and_scale(*precision, *scale)?)
        }
        (other, _) => return exec_err!("rounding of {other}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::array::{Decimal128Array, Float64Array};

    #[test]
    fn halves_go_where_postgresql_puts_them() {
        let floats: ArrayRef = Arc::new(Float64Array::from(vec![2.5, 3.5, -2.5, 0.4, -0.6]));
        let got = round(&floats, &DataType::Float64, Mode::Nearest).unwrap();
        let got: Vec<f64> = got.as_primitive::<Float64Type>().values().to_vec();
        assert_eq!(got, [2.0, 4.0, -2.0, 0.0, -1.0]);
        let decimals = Decimal128Array::from(vec![250, -250, 249, 0, 199, 99_999]);
        let decimals: ArrayRef = Arc::new(decimals.with_precision_and_scale(5, 2).unwrap());
        for (mode, digits, wanted) in [
            (Mode::Nearest, 0, vec![3, -3, 2, 0, 2, 1_000]),
            (Mode::Nearest, 1, vec![25, -25, 25, 0, 20, 10_000]),
            (Mode::Nearest, 3, vec![2_500, -2_500, 2_490, 0, 1_990, 999_990]),
            (Mode::Up, 0, vec![3, -2, 3, 0, 2, 1_000]),
            (Mode::Down, 0, vec![2, -3, 2, 0, 1, 999]),
            (Mode::Cut, 1, vec![25, -25, 24, 0, 19, 9_999]),
        ] {
            let got = round(&decimals, &result(5, 2, digits), mode).unwrap();
            let got: Vec<i128> = got.as_primitive::<Decimal128Type>().values().to_vec();
            assert_eq!(got, wanted, "{mode:?} {digits}");
        }
        assert_eq!(result(38, 16, 20), DataType::Decimal128(38, 16));
        assert_eq!(result(38, 0, 2), DataType::Decimal128(38, 0));
        assert_eq!(result(2, 2, 0), DataType::Decimal128(1, 0));
    }
}
