//! Values as text, as a client would see them.
//!
//! ```text
//!   __router_text(timestamp)   2024-02-29 12:34:56.789        DataFusion's cast writes a T between date and time
//!   __router_text(7.0)         7                              and 7.0, 1e20, [1, 2]
//!   __router_text(ARRAY[1])    {1}
//!   __router_join(ARRAY[true, NULL], ',', '*')   t,*      array_to_string, of every dimension
//! ```
//!
//! Runs on the router: nodes do not have it.

use crate::pg::TextRows;
use bytes::BytesMut;
use datafusion::arrow::array::{Array, ArrayRef, AsArray, StringViewBuilder};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::common::utils::take_function_args;
use datafusion::common::{Result, exec_err};
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

/// `array_to_string` of these arguments.
pub(super) fn joined(args: Vec<Expr>, zone: &str) -> Expr {
    let function = Join {
        zone: zone.to_owned(),
        signature: Signature::variadic_any(Volatility::Immutable),
    };
    Expr::ScalarFunction(ScalarFunction::new_udf(Arc::new(ScalarUDF::from(function)), args))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Join {
    zone: String,
    signature: Signature,
}

impl ScalarUDFImpl for Join {
    fn name(&self) -> &str {
        "__router_join"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8View)
    }

    /// That of the function it stands for.
    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        let args: Vec<String> = args.iter().map(|arg| arg.schema_name().to_string()).collect();
        Ok(format!("array_to_string({})", args.join(",")))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        make_scalar_function(|columns| self.joined(columns), vec![])(&args.args)
    }
}

impl Join {
    fn joined(&self, columns: &[ArrayRef]) -> Result<ArrayRef> {
        let [arrays, between, rest @ ..] = columns else {
            return exec_err!("array_to_string without a delimiter");
        };
        let text = |column: &ArrayRef| cast(column, &DataType::Utf8View);
        let (between, null) = (text(between)?, rest.first().map(text).transpose()?);
        let mut texts = StringViewBuilder::with_capacity(arrays.len());
        for row in 0..arrays.len() {
            if arrays.is_null(row) || between.is_null(row) {
                texts.append_null();
                continue;
            }
            let mut values = arrays.slice(row, 1);
            while let Some(list) = values.as_list_opt::<i32>() {
                let (first, end) = (list.value_offsets()[0], list.value_offsets()[list.len()]);
                values = list.values().slice(first as usize, (end - first) as usize);
            }
            let written = written(&self.zone, &values)?;
            let null = null.as_ref().filter(|null| null.is_valid(row));
            let null = null.map(|null| null.as_string_view().value(row));
            let parts = written.as_string_view().iter().filter_map(|text| text.or(null));
            texts.append_value(parts.collect::<Vec<_>>().join(between.as_string_view().value(row)));
        }
        Ok(Arc::new(texts.finish()))
    }
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
            written(&self.zone, only)
        };
        make_scalar_function(written, vec![])(&args.args)
    }
}

/// Each value as a client in `zone` sees it.
///
/// # Errors
/// None is expected.
pub(super) fn written(zone: &str, values: &ArrayRef) -> Result<ArrayRef> {
    let schema = Schema::new(vec![Field::new("text", values.data_type().clone(), true)]);
    let rows = TextRows::new(&Arc::new(schema), &[], Some(zone), None)?;
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
