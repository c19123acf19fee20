//! Arithmetic that fails where the result does not fit, as PostgreSQL's does; DataFusion's wraps around, or is infinite.
//!
//! ```text
//!   a * b + c - d      __tessera_arithmetic('*+-', a, b, c, d)      from left to right, checked at every step
//! ```
//!
//! One call for a chain, because plans may be nested only so deep. Operands and result have one type, an integer or a float.
//! Routers put it in the place of operators when they bind; it cannot be named in SQL. Not here: division of integers, which
//! checks by itself, and numerics ([`super::division`]).

use crate::error::Error;
use datafusion::arrow::array::{ArrayRef, ArrowPrimitiveType, AsArray, Datum, Scalar};
use datafusion::arrow::compute::kernels::numeric::{add, div, mul, sub};
use datafusion::arrow::datatypes::{DataType, Float32Type, Float64Type};
use datafusion::arrow::error::ArrowError;
use datafusion::common::{Result, ScalarValue, exec_err, plan_err};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{
    ColumnarValue, Expr, Operator, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use std::sync::{Arc, LazyLock};

/// The function; all plans share it.
static FUNCTION: LazyLock<Arc<ScalarUDF>> = LazyLock::new(|| Arc::new(ScalarUDF::from(Arithmetic::default())));

/// The function, which plans find by its name.
pub fn function() -> Arc<ScalarUDF> {
    FUNCTION.clone()
}

/// `left op right`, both of this integer or float type; a `left` that is such a chain itself becomes longer. `None` for
/// operators that are not checked here.
pub fn checked(left: Expr, op: Operator, right: Expr, data_type: &DataType) -> Option<Expr> {
    let symbol = match op {
        Operator::Plus => '+',
        Operator::Minus => '-',
        Operator::Multiply => '*',
        Operator::Divide if data_type.is_floating() => '/',
        _ => return None,
    };
    let args = match left {
        Expr::ScalarFunction(mut call) if call.func.name() == NAME => {
            if let Some(Expr::Literal(ScalarValue::Utf8(Some(symbols)), _)) = call.args.first_mut() {
                symbols.push(symbol);
            }
            call.args.push(right);
            call.args
        }
        left => {
            let symbols = ScalarValue::Utf8(Some(symbol.into()));
            vec![Expr::Literal(symbols, None), left, right]
        }
    };
    Some(Expr::ScalarFunction(ScalarFunction::new_udf(FUNCTION.clone(), args)))
}

const NAME: &str = "__tessera_arithmetic";

/// The function: operators, then operands.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Arithmetic {
    signature: Signature,
}

impl Default for Arithmetic {
    fn default() -> Self {
        Self {
            signature: Signature::user_defined(Volatility::Immutable),
        }
    }
}

impl ScalarUDFImpl for Arithmetic {
    fn name(&self) -> &str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        match types {
            [DataType::Utf8 | DataType::Utf8View, first, others @ ..] if others.iter().all(|t| t == first) => {
                Ok(first.clone())
            }
            _ => plan_err!("{NAME} of {types:?}"),
        }
    }

    /// Operands of several types become the widest: a column may have got a wider type after binding, as in a UNION.
    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let Some((symbols, operands)) = types.split_first() else {
            return plan_err!("{NAME} without operators");
        };
        let widest = operands.iter().cloned().reduce(wider);
        let widest = widest.filter(|t| t.is_signed_integer() || t.is_floating());
        let Some(widest) = widest else {
            return plan_err!("{NAME} of {types:?}");
        };
        let operands = operands.iter().map(|_| widest.clone());
        Ok(std::iter::once(symbols.clone()).chain(operands).collect())
    }

    /// That of the operators it stands for, so that whoever refers to the column by it still finds it.
    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        spelled(args)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let mut args = args.args.into_iter();
        let symbols = match args.next() {
            Some(ColumnarValue::Scalar(symbols)) => symbols.try_as_str().flatten().unwrap_or_default().to_owned(),
            _ => String::new(),
        };
        let Some(mut value) = args.next() else {
            return exec_err!("{NAME} without operands");
        };
        for (symbol, operand) in symbols.chars().zip(args) {
            value = step(symbol, &value, &operand)?;
        }
        Ok(value)
    }
}

/// The type that holds values of both; an integer and a float4 are a float8, as in PostgreSQL.
fn wider(a: DataType, b: DataType) -> DataType {
    match (&a, &b) {
        (a, b) if a == b => a.clone(),
        (DataType::Null, _) => b,
        (_, DataType::Null) => a,
        (a, b) if a.is_signed_integer() && b.is_signed_integer() => {
            let width = |t: &DataType| t.primitive_width().unwrap_or(0);
            if width(a) >= width(b) { a.clone() } else { b.clone() }
        }
        (a, b) if a.is_floating() || b.is_floating() => DataType::Float64,
        _ => a,
    }
}

/// `a + b - c`.
fn spelled(args: &[Expr]) -> Result<String> {
    let Some((Expr::Literal(ScalarValue::Utf8(Some(symbols)), _), operands)) = args.split_first() else {
        return plan_err!("{NAME} without operators");
    };
    let symbols = std::iter::once(None).chain(symbols.chars().map(Some));
    let mut text = String::new();
    for (symbol, operand) in symbols.zip(operands) {
        if let Some(symbol) = symbol {
            text.push_str(&format!(" {symbol} "));
        }
        text.push_str(&operand.schema_name().to_string());
    }
    Ok(text)
}

fn step(symbol: char, left: &ColumnarValue, right: &ColumnarValue) -> Result<ColumnarValue> {
    let kernel: fn(&dyn Datum, &dyn Datum) -> std::result::Result<ArrayRef, ArrowError> = match symbol {
        '+' => add,
        '-' => sub,
        '*' => mul,
        '/' => div,
        other => return exec_err!("{NAME} with operator {other}"),
    };
    let data_type = left.data_type();
    let (left, right) = (datum(left)?, datum(right)?);
    let both_scalar = left.get().1 && right.get().1;
    let result = kernel(left.as_ref(), right.as_ref()).map_err(|error| match error {
        ArrowError::ArithmeticOverflow(_) => out_of_range(&data_type).into(),
        other => datafusion::error::DataFusionError::from(other),
    })?;
    match data_type {
        DataType::Float32 => check_floats::<Float32Type>(symbol, left.as_ref(), right.as_ref(), &result)?,
        DataType::Float64 => check_floats::<Float64Type>(symbol, left.as_ref(), right.as_ref(), &result)?,
        _ => {}
    }
    Ok(match both_scalar {
        true => ColumnarValue::Scalar(ScalarValue::try_from_array(&result, 0)?),
        false => ColumnarValue::Array(result),
    })
}

/// Finite numbers have a finite result, or there is an error.
fn check_floats<T>(symbol: char, left: &dyn Datum, right: &dyn Datum, result: &ArrayRef) -> Result<()>
where
    T: ArrowPrimitiveType<Native: Into<f64>>,
{
    let results = result.as_primitive::<T>();
    let is_finite = |value: &T::Native| Into::<f64>::into(*value).is_finite();
    if results.values().iter().all(is_finite) {
        return Ok(());
    }
    let operand = |side: &dyn Datum, row: usize| -> f64 {
        let (array, is_scalar) = side.get();
        array.as_primitive::<T>().value(if is_scalar { 0 } else { row }).into()
    };
    for (row, value) in results.iter().enumerate() {
        let Some(value) = value.filter(|v| !is_finite(v)) else {
            continue;
        };
        let value: f64 = value.into();
        let (l, r) = (operand(left, row), operand(right, row));
        if symbol == '/' && r == 0.0 && !l.is_nan() {
            return Err(Error::new("22012", "division by zero").into());
        }
        if value.is_infinite() && l.is_finite() && r.is_finite() {
            return Err(Error::new("22003", "value out of range: overflow").into());
        }
    }
    Ok(())
}

fn datum(value: &ColumnarValue) -> Result<Box<dyn Datum>> {
    Ok(match value {
        ColumnarValue::Array(array) => Box::new(array.clone()),
        ColumnarValue::Scalar(scalar) => Box::new(Scalar::new(scalar.to_array()?)),
    })
}

/// 22003, with PostgreSQL's name of the type.
fn out_of_range(data_type: &DataType) -> Error {
    let name = match data_type {
        DataType::Int16 => "smallint",
        DataType::Int64 => "bigint",
        _ => "integer",
    };
    Error::new("22003", format!("{name} out of range"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::array::Int64Array;
    use datafusion::arrow::datatypes::{Field, Int64Type};
    use datafusion::config::ConfigOptions;
    use datafusion::logical_expr::{col, lit};

    fn run(symbols: &str, operands: Vec<ColumnarValue>) -> Result<ColumnarValue> {
        let field = Arc::new(Field::new("r", DataType::Int64, true));
        let symbols = ColumnarValue::Scalar(ScalarValue::Utf8(Some(symbols.into())));
        let args: Vec<_> = std::iter::once(symbols).chain(operands).collect();
        Arithmetic::default().invoke_with_args(ScalarFunctionArgs {
            arg_fields: vec![field.clone(); args.len()],
            args,
            number_rows: 3,
            return_field: field,
            config_options: Arc::new(ConfigOptions::default()),
        })
    }

    fn array(values: [Option<i64>; 3]) -> ColumnarValue {
        ColumnarValue::Array(Arc::new(Int64Array::from(values.to_vec())))
    }

    fn scalar(value: i64) -> ColumnarValue {
        ColumnarValue::Scalar(ScalarValue::Int64(Some(value)))
    }

    #[test]
    fn chains_go_from_left_to_right() {
        let got = run(
            "*-+",
            vec![
                array([Some(2), None, Some(-4)]),
                scalar(10),
                scalar(1),
                array([Some(5); 3]),
            ],
        );
        let got = got.unwrap().into_array(3).unwrap();
        let got: Vec<_> = got.as_primitive::<Int64Type>().iter().collect();
        assert_eq!(got, [Some(24), None, Some(-36)]);
        assert!(matches!(
            run("+", vec![scalar(1), scalar(2)]),
            Ok(ColumnarValue::Scalar(ScalarValue::Int64(Some(3))))
        ));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for (symbol, left, right) in [("+", i64::MAX, 1), ("-", i64::MIN, 1), ("*", i64::MAX, 2)] {
            for left in [scalar(left), array([Some(left), None, Some(0)])] {
                let error = Error::from(run(symbol, vec![left, scalar(right)]).unwrap_err());
                assert_eq!(
                    (error.code.as_str(), error.message.as_str()),
                    ("22003", "bigint out of range")
                );
            }
        }
    }

    #[test]
    fn floats_stay_finite() {
        let float = |v: f64| ColumnarValue::Scalar(ScalarValue::Float64(Some(v)));
        for (symbol, left, right, code) in [
            ("/", 1.0, 0.0, "22012"),
            ("/", 0.0, -0.0, "22012"),
            ("*", 1e300, 1e300, "22003"),
            ("+", f64::MAX, f64::MAX, "22003"),
        ] {
            let error = Error::from(run(symbol, vec![float(left), float(right)]).unwrap_err());
            assert_eq!(error.code, code, "{left} {symbol} {right}");
        }
        // What is infinite already may stay so.
        assert!(run("*", vec![float(f64::INFINITY), float(2.0)]).is_ok());
        assert!(run("/", vec![float(f64::NAN), float(0.0)]).is_ok());
    }

    #[test]
    fn chains_are_one_call() {
        let sum = checked(col("a"), Operator::Plus, lit(1i64), &DataType::Int64).unwrap();
        let sum = checked(sum, Operator::Minus, col("b"), &DataType::Int64).unwrap();
        assert!(matches!(&sum, Expr::ScalarFunction(call) if call.args.len() == 4));
        // Names stay those of the operators.
        let operators = (col("a") + lit(1i64)) - col("b");
        assert_eq!(sum.schema_name().to_string(), operators.schema_name().to_string());
    }
}
