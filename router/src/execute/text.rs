//! Values as text, as a client would see them.
//!
//! ```text
//!   __router_text(timestamp)   2024-02-29 12:34:56.789        DataFusion's cast writes a T between date and time
//!   __router_text(7.0)         7                              and 7.0, 1e20, [1, 2]
//!   __router_text(ARRAY[1])    {1}
//! ```
//!
//! Runs on the router: nodes do not have it.

use crate::pg::TextRows;
use bytes::BytesMut;
use datafusion::arrow::array::{ArrayRef, StringViewBuilder};
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::common::Result;
use datafusion::common::utils::take_function_args;
use datafusion::functions::utils::make_scalar_function;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use std::sync::Arc;
use tessera_proto::Error;

/// `value` as text in a session in `zone`.
pub(super) fn text_of(value: Expr, zone: &str) -> Expr {
    let function = Text {
        zone: zone.to_owned(),
        signature: Signature::any(1, Volatility::Immutable),
    };
    Expr::ScalarFunction(ScalarFunction::new_udf(
        Arc::new(ScalarUDF::from(function)),
        vec![value],
    ))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Text {
    zone: String,
    signature: Signature,
}

impl ScalarUDFImpl for Text {
    fn name(&self) -> &str {
        "__router_text"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8View)
    }

    /// Not the argument's, though a cast has that: a projection below a join may hold both.
    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        let [only] = take_function_args(self.name(), args)?;
        Ok(format!("CAST({} AS text)", only.schema_name()))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let written = |values: &[ArrayRef]| {
            let [only] = take_function_args(self.name(), values)?;
            self.written(only)
        };
        make_scalar_function(written, vec![])(&args.args)
    }
}

impl Text {
    fn written(&self, values: &ArrayRef) -> Result<ArrayRef> {
        let schema = Schema::new(vec![Field::new("text", values.data_type().clone(), true)]);
        let rows = TextRows::new(&Arc::new(schema), &[], Some(self.zone.as_str()), None)?;
        let (mut texts, mut buffer) = (StringViewBuilder::with_capacity(values.len()), BytesMut::new());
        for row in 0..values.len() {
            buffer.clear();
            if !rows.field(values, row, 0, &mut buffer)? {
                texts.append_null();
                continue;
            }
            let text = std::str::from_utf8(&buffer).map_err(|e| Error::internal(format!("a value's text: {e}")))?;
            texts.append_value(text);
        }
        Ok(Arc::new(texts.finish()))
    }
}
