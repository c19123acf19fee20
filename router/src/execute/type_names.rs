//! `pg_typeof`: the name of an expression's type, known when it is bound.
//!
//! ```text
//!   pg_typeof(total)  numeric     pg_typeof(ARRAY[1])  bigint[]     pg_typeof(NULL), pg_typeof('a')  unknown
//! ```
//!
//! The type that it has here: varchar is text, and char(n), too.

use datafusion::arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::{DFSchema, Result, exec_err};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ExprSchemable, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::scalar::ScalarValue;
use tessera_proto::functions::json::is_json;

/// `pg_typeof` as queries name it, for which binding puts the name; and others that are only names until they are bound.
pub(super) fn functions() -> Vec<ScalarUDF> {
    let named = |(name, args)| {
        ScalarUDF::from(Unbound {
            name,
            signature: Signature::any(args, Volatility::Immutable),
        })
    };
    [("pg_typeof", 1), ("to_char", 2), ("to_number", 2)].map(named).to_vec()
}

/// PostgreSQL's name of the type.
pub(super) fn name_of(expr: &Expr, schema: &DFSchema) -> String {
    match expr {
        Expr::Literal(ScalarValue::Utf8(_), _) => return "unknown".to_owned(),
        Expr::Alias(alias) => return name_of(&alias.expr, schema),
        _ => {}
    }
    match expr.to_field(schema) {
        Ok((_, field)) if is_json(&field) => "json".to_owned(),
        Ok((_, field)) => name(field.data_type()),
        Err(_) => "unknown".to_owned(),
    }
}

fn name(data_type: &DataType) -> String {
    let plain = match data_type {
        DataType::Boolean => "boolean",
        DataType::Int8 | DataType::Int16 => "smallint",
        DataType::Int32 => "integer",
        DataType::Int64 => "bigint",
        DataType::Float16 | DataType::Float32 => "real",
        DataType::Float64 => "double precision",
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "text",
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => "bytea",
        DataType::FixedSizeBinary(16) => "uuid",
        DataType::Date32 | DataType::Date64 => "date",
        DataType::Time32(_) | DataType::Time64(TimeUnit::Microsecond | TimeUnit::Nanosecond) => {
            "time without time zone"
        }
        DataType::Timestamp(_, None) => "timestamp without time zone",
        DataType::Timestamp(_, Some(_)) => "timestamp with time zone",
        DataType::Interval(_) | DataType::Duration(_) => "interval",
        DataType::Struct(_) => "record",
        DataType::List(field) | DataType::LargeList(field) => {
            // Arrays of arrays have the same type.
            let inside = name(field.data_type());
            return if inside.ends_with("[]") { inside } else { inside + "[]" };
        }
        DataType::Null => "unknown",
        other if other.is_numeric() => "numeric",
        _ => "unknown",
    };
    plain.to_owned()
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Unbound {
    name: &'static str,
    signature: Signature,
}

impl ScalarUDFImpl for Unbound {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(match self.name {
            "to_number" => DataType::Decimal128(38, 10),
            _ => DataType::Utf8View,
        })
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        exec_err!("{} was not bound", self.name)
    }
}
