//! The last step of a count that was taken in parts: no parts at all count 0.
//!
//! ```text
//!   sum of counts   7, NULL   ->   7, 0
//! ```
//!
//! What CASE would give, but for one thing: the result is never NULL, and says so. A count is declared NOT NULL, and
//! DataFusion refuses a plan whose columns can be NULL where they could not before. COALESCE would do, but only the
//! logical optimiser can plan it, and that has run. Routers do not register it, so it cannot be named in SQL.

use datafusion::arrow::array::{AsArray, Int64Array};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Int64Type};
use datafusion::common::utils::take_function_args;
use datafusion::common::{Result, exec_err};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use std::sync::Arc;

/// `count`, an int8, or 0 where it is NULL.
pub fn zero_if_null(count: Expr) -> Expr {
    let function = Arc::new(ScalarUDF::from(ZeroIfNull::default()));
    Expr::ScalarFunction(ScalarFunction::new_udf(function, vec![count]))
}

/// The function: one int8.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct ZeroIfNull {
    signature: Signature,
}

impl Default for ZeroIfNull {
    fn default() -> Self {
        Self {
            signature: Signature::exact(vec![DataType::Int64], Volatility::Immutable),
        }
    }
}

impl ScalarUDFImpl for ZeroIfNull {
    fn name(&self) -> &str {
        "__tessera_zero_if_null"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Int64)
    }

    fn return_field_from_args(&self, _: ReturnFieldArgs) -> Result<FieldRef> {
        Ok(Arc::new(Field::new(self.name(), DataType::Int64, false)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [count] = take_function_args(self.name(), args.args)?;
        let count = count.into_array(args.number_rows)?;
        let Some(counts) = count.as_primitive_opt::<Int64Type>() else {
            return exec_err!("count of type {}", count.data_type());
        };
        let counts: Int64Array = counts.iter().map(|count| Some(count.unwrap_or(0))).collect();
        Ok(ColumnarValue::Array(Arc::new(counts)))
    }
}
