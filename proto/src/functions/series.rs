//! `generate_series` over columns: a list for each row, which the plan unnests.
//!
//! ```text
//!   __tessera_series(1, 3)      {1,2,3}        __tessera_series(5, 1, -2)   {5,3,1}       NULL anywhere: NULL, no rows
//! ```
//!
//! Of integers only. The lists of a batch are in memory together, so their length is bounded.

use crate::Error;
use datafusion::arrow::array::{Array, ArrayBuilder, AsArray, Int64Builder, ListBuilder};
use datafusion::arrow::datatypes::{DataType, Int64Type};
use datafusion::common::{Result, exec_err};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature, Volatility,
};
use std::sync::Arc;

/// Its name.
pub const SERIES: &str = "__tessera_series";
/// Values of one batch: 80 MB.
const VALUES_MAX: usize = 10_000_000;

pub(super) fn function() -> ScalarUDF {
    let exact = |n| TypeSignature::Exact(vec![DataType::Int64; n]);
    let signature = Signature::one_of(vec![exact(2), exact(3)], Volatility::Immutable);
    ScalarUDF::from(Series { signature })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Series {
    signature: Signature,
}

impl ScalarUDFImpl for Series {
    fn name(&self) -> &str {
        SERIES
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::new_list(DataType::Int64, true))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = args.number_rows;
        let columns = args
            .args
            .into_iter()
            .map(|arg| arg.into_array(rows))
            .collect::<Result<Vec<_>>>()?;
        let mut numbers = vec![];
        for column in &columns {
            match column.as_primitive_opt::<Int64Type>() {
                Some(column) => numbers.push(column),
                None => return exec_err!("series of type {}", column.data_type()),
            }
        }
        let mut lists = ListBuilder::new(Int64Builder::new());
        for row in 0..rows {
            let value = |i: usize| {
                numbers
                    .get(i)
                    .filter(|column| !column.is_null(row))
                    .map(|column| column.value(row))
            };
            let step = if numbers.len() < 3 { Some(1) } else { value(2) };
            let (Some(start), Some(stop), Some(step)) = (value(0), value(1), step) else {
                lists.append_null();
                continue;
            };
            if step == 0 {
                return Err(Error::new("22023", "step size cannot equal zero").into());
            }
            let mut next = Some(start);
            while let Some(value) = next.filter(|v| if step > 0 { *v <= stop } else { *v >= stop }) {
                if lists.values().len() >= VALUES_MAX {
                    let message = format!("generate_series over columns makes more than {VALUES_MAX} rows at once");
                    return Err(Error::new("54000", message)
                        .with_hint("join a series of constants on its range")
                        .into());
                }
                lists.values().append_value(value);
                next = value.checked_add(step);
            }
            lists.append(true);
        }
        Ok(ColumnarValue::Array(Arc::new(lists.finish())))
    }
}
