//! Roots, powers and logarithms that fail where PostgreSQL's do.
//!
//! ```text
//!   sqrt(-1)                    2201F   where IEEE 754 has NaN
//!   ln(0), log10(-1), log(2,0)  2201E   -infinity, NaN
//!   power(0, -1), power(-8, .5) 2201F   infinity, NaN
//!   exp(1000), power(10, 400)   22003   infinity, or 0 for underflow
//! ```
//!
//! PostgreSQL 15, `src/backend/utils/adt/float.c`: dsqrt, dlog1, dlog10, dexp, dpow. Routers put these in the place of DataFusion's
//! when they bind; they cannot be named in SQL. Not here: numeric results for numeric arguments; they are double precision.

use crate::error::Error;
use datafusion::arrow::array::{Array, ArrayRef, AsArray, Float64Array};
use datafusion::arrow::datatypes::{DataType, Float64Type};
use datafusion::common::{Result, exec_err, plan_err};
use datafusion::functions::utils::make_scalar_function;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{
    Cast, ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use std::sync::{Arc, LazyLock};

static FUNCTIONS: LazyLock<Vec<Arc<ScalarUDF>>> = LazyLock::new(|| {
    let all = [Kind::Sqrt, Kind::Ln, Kind::Log10, Kind::Log, Kind::Exp, Kind::Power];
    all.map(|kind| Arc::new(ScalarUDF::from(Domain::new(kind)))).to_vec()
});

/// The functions, which plans find by their names.
pub fn functions() -> Vec<Arc<ScalarUDF>> {
    FUNCTIONS.clone()
}

/// A call of DataFusion's `name` with `args`, as one that checks them; `None` for other functions.
pub fn checked(name: &str, args: &[Expr]) -> Option<Expr> {
    let kind = match (name, args.len()) {
        ("sqrt", 1) => Kind::Sqrt,
        ("ln", 1) => Kind::Ln,
        ("log" | "log10", 1) => Kind::Log10,
        ("log", 2) => Kind::Log,
        ("exp", 1) => Kind::Exp,
        ("power" | "pow", 2) => Kind::Power,
        _ => return None,
    };
    let function = FUNCTIONS.iter().find(|f| f.name() == kind.name())?.clone();
    let float = |arg: &Expr| Expr::Cast(Cast::new(Box::new(arg.clone()), DataType::Float64));
    let args = args.iter().map(float).collect();
    Some(Expr::ScalarFunction(ScalarFunction::new_udf(function, args)))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Sqrt,
    Ln,
    Log10,
    /// Of a base and a number.
    Log,
    Exp,
    Power,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Sqrt => "__tessera_sqrt",
            Self::Ln => "__tessera_ln",
            Self::Log10 => "__tessera_log10",
            Self::Log => "__tessera_log",
            Self::Exp => "__tessera_exp",
            Self::Power => "__tessera_power",
        }
    }

    fn one(self, x: f64) -> Result<f64, Error> {
        match self {
            Self::Sqrt if x < 0.0 => Err(Error::new("2201F", "cannot take square root of a negative number")),
            Self::Sqrt => Ok(x.sqrt()),
            Self::Ln => logarithm(x).map(f64::ln),
            Self::Log10 => logarithm(x).map(f64::log10),
            Self::Exp => in_range(x.exp(), x.is_finite()),
            Self::Log | Self::Power => Err(Error::internal(format!("{} of one number", self.name()))),
        }
    }

    fn two(self, x: f64, y: f64) -> Result<f64, Error> {
        match self {
            Self::Log => {
                let (base, number) = (logarithm(x)?.ln(), logarithm(y)?.ln());
                match base == 0.0 {
                    true => Err(Error::new("22012", "division by zero")),
                    false => Ok(number / base),
                }
            }
            Self::Power if x == 0.0 && y < 0.0 => {
                Err(Error::new("2201F", "zero raised to a negative power is undefined"))
            }
            Self::Power if x < 0.0 && y.is_finite() && y.fract() != 0.0 => Err(Error::new(
                "2201F",
                "a negative number raised to a non-integer power yields a complex result",
            )),
            Self::Power => in_range(x.powf(y), x.is_finite() && y.is_finite() && x != 0.0),
            _ => Err(Error::internal(format!("{} of two numbers", self.name()))),
        }
    }
}

fn logarithm(x: f64) -> Result<f64, Error> {
    match x {
        0.0 => Err(Error::new("2201E", "cannot take logarithm of zero")),
        x if x < 0.0 => Err(Error::new("2201E", "cannot take logarithm of a negative number")),
        x => Ok(x),
    }
}

/// What came out of finite numbers is finite and, of those meant here, not zero.
fn in_range(value: f64, finite: bool) -> Result<f64, Error> {
    match value {
        v if finite && v.is_infinite() => Err(Error::new("22003", "value out of range: overflow")),
        v if finite && v == 0.0 => Err(Error::new("22003", "value out of range: underflow")),
        v => Ok(v),
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Domain {
    kind: Kind,
    signature: Signature,
}

impl Domain {
    fn new(kind: Kind) -> Self {
        let count = match kind {
            Kind::Log | Kind::Power => 2,
            _ => 1,
        };
        Self {
            kind,
            signature: Signature::exact(vec![DataType::Float64; count], Volatility::Immutable),
        }
    }
}

impl ScalarUDFImpl for Domain {
    fn name(&self) -> &str {
        self.kind.name()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Float64)
    }

    /// That of the function it stands for.
    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        let names: Vec<String> = args.iter().map(|arg| arg.schema_name().to_string()).collect();
        Ok(format!(
            "{}({})",
            self.name().trim_start_matches("__tessera_"),
            names.join(",")
        ))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let kind = self.kind;
        let computed = move |values: &[ArrayRef]| -> Result<ArrayRef> {
            let float = |array: &ArrayRef| match array.data_type() {
                DataType::Float64 => Ok(array.as_primitive::<Float64Type>().clone()),
                other => plan_err!("{} of {other}", kind.name()),
            };
            let result: Float64Array = match values {
                [one] => float(one)?.try_unary(|x| kind.one(x))?,
                [one, two] => {
                    let (one, two) = (float(one)?, float(two)?);
                    let pairs = one.iter().zip(two.iter());
                    let each = pairs.map(|pair| match pair {
                        (Some(x), Some(y)) => kind.two(x, y).map(Some),
                        _ => Ok(None),
                    });
                    each.collect::<Result<_, Error>>()?
                }
                _ => return exec_err!("{} of {} values", kind.name(), values.len()),
            };
            Ok(Arc::new(result))
        };
        make_scalar_function(computed, vec![])(&args.args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fail_where_postgresql_fails() {
        let code = |result: Result<f64, Error>| result.map_err(|e| e.code.clone());
        let failed = |code: &str| Err::<f64, _>(code.to_owned());
        assert_eq!(code(Kind::Sqrt.one(-1.0)).map_err(|c| c.to_string()), failed("2201F"));
        for kind in [Kind::Ln, Kind::Log10] {
            assert_eq!(code(kind.one(0.0)).map_err(|c| c.to_string()), failed("2201E"));
            assert_eq!(code(kind.one(-1.0)).map_err(|c| c.to_string()), failed("2201E"));
            assert!(kind.one(f64::NAN).unwrap().is_nan());
        }
        assert_eq!(code(Kind::Exp.one(1000.0)).map_err(|c| c.to_string()), failed("22003"));
        assert_eq!(code(Kind::Exp.one(-1000.0)).map_err(|c| c.to_string()), failed("22003"));
        assert_eq!(Kind::Exp.one(f64::NEG_INFINITY).unwrap(), 0.0);
        for (x, y, expected) in [
            (0.0, -1.0, failed("2201F")),
            (-8.0, 0.5, failed("2201F")),
            (10.0, 400.0, failed("22003")),
            (10.0, -400.0, failed("22003")),
            (-2.0, 3.0, Ok(-8.0)),
            (0.0, 2.0, Ok(0.0)),
            (0.0, 0.0, Ok(1.0)),
            (f64::INFINITY, -1.0, Ok(0.0)),
        ] {
            let got = code(Kind::Power.two(x, y)).map_err(|c| c.to_string());
            assert_eq!(got, expected, "{x} ^ {y}");
        }
        assert_eq!(
            code(Kind::Log.two(1.0, 2.0)).map_err(|c| c.to_string()),
            failed("22012")
        );
        assert_eq!(Kind::Log.two(2.0, 8.0).unwrap(), 3.0);
    }
}
