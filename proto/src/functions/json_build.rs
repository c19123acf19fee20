//! The last step of building JSON out of parts that are JSON already.
//!
//! ```text
//!   json_agg(x)             __tessera_json_array(string_agg(<x as JSON>, ', '))             [1, null, 2]
//!   json_object_agg(k, v)   __tessera_json_object(string_agg(<"k" : v>, ', '))              { "a" : 1, "b" : null }
//! ```
//!
//! The planner writes the first as the second, so that order, FILTER and DISTINCT are `string_agg`'s. Of no rows both are NULL.
//! Parts that are rows or arrays begin on a line of their own, all but the first: they come with a line break each, and here the
//! first loses it.

use super::json::json_field;
use datafusion::arrow::array::{ArrayRef, AsArray, StringViewArray};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, FieldRef};
use datafusion::common::Result;
use datafusion::common::utils::take_function_args;
use datafusion::functions::utils::make_scalar_function;
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use std::fmt::Write;
use std::sync::{Arc, LazyLock};

/// What stands before a part that shall be on a line of its own.
pub const LINE: &str = "\n ";

static FUNCTIONS: LazyLock<[Arc<ScalarUDF>; 2]> = LazyLock::new(|| {
    [false, true].map(|object| {
        Arc::new(ScalarUDF::from(Wrap {
            object,
            signature: Signature::any(1, Volatility::Immutable),
        }))
    })
});

/// Both.
pub fn functions() -> Vec<Arc<ScalarUDF>> {
    FUNCTIONS.to_vec()
}

/// Writes a JSON string, escaped as PostgreSQL escapes it.
pub fn quote(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' => {
                // Writing to a String does not fail.
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// Brackets or braces around parts.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Wrap {
    object: bool,
    signature: Signature,
}

impl ScalarUDFImpl for Wrap {
    fn name(&self) -> &str {
        match self.object {
            true => "__tessera_json_object",
            false => "__tessera_json_array",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8View)
    }

    fn return_field_from_args(&self, _: ReturnFieldArgs) -> Result<FieldRef> {
        Ok(json_field(self.name()))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let wrapped = |columns: &[ArrayRef]| -> Result<ArrayRef> {
            let [parts] = take_function_args(self.name(), columns)?;
            let parts = cast(parts, &DataType::Utf8View)?;
            let wrapped = parts.as_string_view().iter().map(|parts| {
                let parts = parts?;
                Some(match self.object {
                    true => format!("{{ {parts} }}"),
                    false => format!("[{}]", parts.strip_prefix(LINE).unwrap_or(parts)),
                })
            });
            Ok(Arc::new(wrapped.collect::<StringViewArray>()))
        };
        make_scalar_function(wrapped, vec![])(&args.args)
    }
}

#[cfg(test)]
mod tests {
    use super::quote;

    #[test]
    fn strings_are_escaped() {
        let mut out = String::new();
        quote("a\"\\\n\t\u{1}\u{7f}/é", &mut out);
        assert_eq!(out, "\"a\\\"\\\\\\n\\t\\u0001\u{7f}/é\"");
    }
}
