//! Turns the 16 bytes that segments keep for an interval back into an interval, as an expression over the scan.

use crate::storage::segment::from_stored;
use datafusion::arrow::datatypes::{DataType, IntervalUnit, SchemaRef};
use datafusion::common::Result;
use datafusion::config::ConfigOptions;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};
use datafusion::physical_expr::{PhysicalExpr, ScalarFunctionExpr};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::expressions::Column;
use datafusion::physical_plan::projection::ProjectionExec;
use std::sync::Arc;

/// `scan` with the types of `schema`; the scan itself where nothing differs.
pub(super) fn with_intervals(scan: Arc<dyn ExecutionPlan>, schema: &SchemaRef) -> Result<Arc<dyn ExecutionPlan>> {
    let stored = scan.schema();
    if stored
        .fields()
        .iter()
        .zip(schema.fields())
        .all(|(s, f)| s.data_type() == f.data_type())
    {
        return Ok(scan);
    }
    let udf = Arc::new(ScalarUDF::from(IntervalFromBytes {
        signature: Signature::any(1, Volatility::Immutable),
    }));
    let mut expressions: Vec<(Arc<dyn PhysicalExpr>, String)> = Vec::with_capacity(schema.fields().len());
    for (at, (from, to)) in stored.fields().iter().zip(schema.fields()).enumerate() {
        let column: Arc<dyn PhysicalExpr> = Arc::new(Column::new(from.name(), at));
        let expression = if from.data_type() == to.data_type() {
            column
        } else {
            let config = Arc::new(ConfigOptions::default());
            Arc::new(ScalarFunctionExpr::new(
                "interval_from_bytes",
                udf.clone(),
                vec![column],
                to.clone(),
                config,
            ))
        };
        expressions.push((expression, to.name().clone()));
    }
    Ok(Arc::new(ProjectionExec::try_new(expressions, scan)?))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct IntervalFromBytes {
    signature: Signature,
}

impl ScalarUDFImpl for IntervalFromBytes {
    fn name(&self) -> &str {
        "interval_from_bytes"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Interval(IntervalUnit::MonthDayNano))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let arrays = ColumnarValue::values_to_arrays(&args.args)?;
        let Some(array) = arrays.into_iter().next() else {
            return datafusion::common::internal_err!("interval_from_bytes takes one argument");
        };
        Ok(ColumnarValue::Array(from_stored(
            array,
            &DataType::Interval(IntervalUnit::MonthDayNano),
        )?))
    }
}
