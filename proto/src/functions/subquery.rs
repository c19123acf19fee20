//! What unnested subqueries need that no function of DataFusion does.
//!
//! ```text
//!   __tessera_single(value, rows)   value, or 21000 where rows > 1: a subquery used as an expression
//!   __tessera_row(a, b)             the row (a, b) on both sides of IN     ) names for the planner, which takes
//!   __tessera_array(subquery)       ARRAY(subquery)                        ) them apart; never evaluated
//! ```

use crate::Error;
use datafusion::arrow::array::AsArray;
use datafusion::arrow::datatypes::{DataType, Field, Int64Type};
use datafusion::common::utils::take_function_args;
use datafusion::common::{Result, exec_err};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use std::sync::Arc;

/// Name of a row that is compared by IN.
pub const ROW: &str = "__tessera_row";
/// Name of ARRAY of a subquery.
pub const ARRAY_OF_ROWS: &str = "__tessera_array";
const SINGLE: &str = "__tessera_single";

/// The value of a subquery of so many rows; more than one fail.
pub fn single_row(value: Expr, rows: Expr) -> Expr {
    Expr::ScalarFunction(ScalarFunction::new_udf(Arc::new(function(SINGLE)), vec![value, rows]))
}

/// The function that a rewritten query calls by that name.
pub fn subquery_marker(name: &str) -> Option<Arc<ScalarUDF>> {
    if name == super::SERIES {
        return Some(Arc::new(super::series::function()));
    }
    let known = [ROW, ARRAY_OF_ROWS].into_iter().find(|known| *known == name)?;
    Some(Arc::new(function(known)))
}

/// Those that nodes evaluate.
pub(super) fn functions() -> Vec<Arc<ScalarUDF>> {
    vec![Arc::new(function(SINGLE))]
}

fn function(name: &'static str) -> ScalarUDF {
    let signature = Signature::variadic_any(Volatility::Immutable);
    ScalarUDF::from(Subquery { name, signature })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Subquery {
    name: &'static str,
    signature: Signature,
}

impl ScalarUDFImpl for Subquery {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        match (self.name, types) {
            (SINGLE, [value, DataType::Int64]) => Ok(value.clone()),
            (ARRAY_OF_ROWS, [item]) => Ok(DataType::new_list(item.clone(), true)),
            (ROW, types) if !types.is_empty() => {
                let field = |(i, t): (usize, &DataType)| Field::new(format!("c{i}"), t.clone(), true);
                Ok(DataType::Struct(types.iter().enumerate().map(field).collect()))
            }
            (name, _) => exec_err!("{name} with other arguments"),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        if self.name != SINGLE {
            let what = "this subquery is not supported in this place";
            return Err(Error::unsupported(what, "write it as a join").into());
        }
        let rows = args.number_rows;
        let [value, count] = take_function_args(self.name, args.args)?;
        let count = count.into_array(rows)?;
        let Some(counts) = count.as_primitive_opt::<Int64Type>() else {
            return exec_err!("count of type {}", count.data_type());
        };
        if counts.iter().flatten().any(|count| count > 1) {
            let message = "more than one row returned by a subquery used as an expression";
            return Err(Error::new("21000", message).into());
        }
        Ok(value)
    }
}
