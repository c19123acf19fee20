//! `gen_random_uuid()`: volatile, so it never becomes part of a leaf; as a default it is evaluated where rows enter.

use datafusion::arrow::array::FixedSizeBinaryBuilder;
use datafusion::arrow::datatypes::DataType;
use datafusion::common::Result;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility};
use std::sync::Arc;
use uuid::Uuid;

/// A random UUID (version 4) for every row.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct GenRandomUuid {
    signature: Signature,
}

impl Default for GenRandomUuid {
    fn default() -> Self {
        Self {
            signature: Signature::nullary(Volatility::Volatile),
        }
    }
}

impl ScalarUDFImpl for GenRandomUuid {
    fn name(&self) -> &str {
        "gen_random_uuid"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::FixedSizeBinary(16))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let mut builder = FixedSizeBinaryBuilder::with_capacity(args.number_rows, 16);
        for _ in 0..args.number_rows {
            builder.append_value(Uuid::new_v4().as_bytes())?;
        }
        Ok(ColumnarValue::Array(Arc::new(builder.finish())))
    }
}
