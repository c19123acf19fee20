//! The name that a key filter has in a plan, before its keys are known.
//!
//! ```text
//!   __in_keys(l_partkey, 0, 0.0067)      whether l_partkey is a key of filter 0; believed of 0.67 % of the rows
//! ```
//!
//! Nodes put the keys in its place (`expand.rs`). It is evaluated nowhere, but for one case: the optimiser tries what filters make of
//! NULL, and NULL is no key. Users cannot name it: routers do not register it.

use datafusion::arrow::array::{Array, BooleanArray};
use datafusion::arrow::datatypes::DataType;
use datafusion::common::{Result, ScalarValue, internal_err};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility, lit,
};
use std::sync::{Arc, LazyLock};

/// Its name.
const IN_KEYS: &str = "__in_keys";

static FUNCTION: LazyLock<Arc<ScalarUDF>> = LazyLock::new(|| Arc::new(ScalarUDF::from(InKeys::default())));

/// The function: a key, the filter's number, the share of rows that it is believed to keep.
#[derive(Debug, PartialEq, Eq, Hash)]
struct InKeys {
    signature: Signature,
}

impl Default for InKeys {
    fn default() -> Self {
        Self {
            signature: Signature::any(3, Volatility::Immutable),
        }
    }
}

/// What nodes register to decode it.
pub fn function() -> Arc<ScalarUDF> {
    FUNCTION.clone()
}

/// Whether `key` may be a key of filter `number`, believed of this share of the rows.
pub fn in_keys(key: Expr, number: u32, share: f64) -> Expr {
    let args = vec![key, lit(i64::from(number)), lit(share)];
    Expr::ScalarFunction(ScalarFunction::new_udf(function(), args))
}

/// What [`in_keys`] made: key, number and share; `None` for other expressions.
pub fn placeholder(expr: &Expr) -> Option<(&Expr, u32, f64)> {
    let Expr::ScalarFunction(call) = expr else { return None };
    if call.func.name() != IN_KEYS {
        return None;
    }
    match call.args.as_slice() {
        [
            key,
            Expr::Literal(ScalarValue::Int64(Some(number)), _),
            Expr::Literal(ScalarValue::Float64(Some(share)), _),
        ] => Some((key, u32::try_from(*number).ok()?, *share)),
        _ => None,
    }
}

impl ScalarUDFImpl for InKeys {
    fn name(&self) -> &str {
        IN_KEYS
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Boolean)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = args.number_rows;
        let nothing = match args.args.first() {
            Some(ColumnarValue::Scalar(key)) => key.is_null(),
            Some(ColumnarValue::Array(keys)) => keys.logical_null_count() == keys.len(),
            None => false,
        };
        if !nothing {
            return internal_err!("the keys of a filter were not put in");
        }
        Ok(ColumnarValue::Array(Arc::new(BooleanArray::from(vec![false; rows]))))
    }
}
