//! Constants in quotes, read as PostgreSQL's input functions read them.
//!
//! ```text
//!   '\x00ff'::bytea    '1-2'::interval    date '0044-03-15 BC'    uuid '{A0EE...}'    cast of a quoted constant
//!   ts < 'infinity'    b = '\x00'         k IN ('1', '2')         compared: read as the other side's type
//!   n < f              n numeric, f floating point: both as double precision
//!   'abcd'::varchar(2) ab                 'ab  '::char(3) ab      cut to length, as an explicit cast does
//!   '{1,NULL}'::int[]  read by [`array_literal`]
//!   '{"a": 1}'::json   checked; it stays text
//!   $1::date           the parameter is a date                   where the client does not say its type
//! ```
//!
//! DataFusion has casts of its own from text: they know fewer forms, take a bytea's text for its bytes, and compare a number
//! with a quoted one as text. Casts of columns are still DataFusion's, because nodes run them.
//!
//! Not here: constants that stand for an argument of a function or an operand of arithmetic; those keep DataFusion's typing.

use super::array_literal;
use crate::copy::value::ColumnBuilder;
use crate::pg::read_numeric;
use datafusion::arrow::datatypes::{DataType, IntervalUnit, TimeUnit};
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, Result as DfResult};
use datafusion::error::DataFusionError;
use datafusion::functions::expr_fn::{left, rtrim};
use datafusion::logical_expr::expr::{Between, InList, Placeholder};
use datafusion::logical_expr::{BinaryExpr, Cast, Expr, ExprSchemable, Operator, lit};
use datafusion::scalar::ScalarValue;
use std::sync::Arc;
use tessera_planner::types::{Length, length};
use tessera_proto::Result;
use tessera_proto::functions::json::{Json, is_json};
use tessera_proto::sql_type::SqlType;

/// One expression, its operands read already. A timestamptz without a zone is of `zone`.
///
/// # Errors
/// 22P02, 22007, 22008 and the like, as for COPY.
pub(super) fn rewrite(expr: Expr, schema: &DFSchema, zone: &str) -> DfResult<Transformed<Expr>> {
    match expr {
        Expr::Cast(cast) => cast_of(cast, zone),
        Expr::BinaryExpr(BinaryExpr { left, op, right }) if is_comparison(op) => {
            let types = (left.get_type(schema), right.get_type(schema));
            let (Ok(left_type), Ok(right_type)) = types else {
                return Ok(Transformed::no(Expr::BinaryExpr(BinaryExpr { left, op, right })));
            };
            let (new_left, new_right) = match beside_float(&left_type, &right_type) {
                Some(to) => {
                    let same = |e: &Expr| Ok::<_, DataFusionError>(Some(e.clone().cast_to(&to, schema)?));
                    (same(&left)?, same(&right)?)
                }
                None => (operand(&left, &right_type, zone)?, operand(&right, &left_type, zone)?),
            };
            let changed = new_left.is_some() || new_right.is_some();
            let expr = Expr::BinaryExpr(BinaryExpr {
                left: new_left.map_or(left, Box::new),
                op,
                right: new_right.map_or(right, Box::new),
            });
            Ok(if changed {
                Transformed::yes(expr)
            } else {
                Transformed::no(expr)
            })
        }
        Expr::Between(between) => {
            let Ok(to) = between.expr.get_type(schema) else {
                return Ok(Transformed::no(Expr::Between(between)));
            };
            let (low, high) = (operand(&between.low, &to, zone)?, operand(&between.high, &to, zone)?);
            let mut between = Between {
                low: low.map_or(between.low, Box::new),
                high: high.map_or(between.high, Box::new),
                ..between
            };
            let bounds = [between.low.get_type(schema), between.high.get_type(schema)];
            if let Some(float) = bounds.iter().flatten().find_map(|bound| beside_float(&to, bound)) {
                for part in [&mut between.expr, &mut between.low, &mut between.high] {
                    **part = std::mem::take(part.as_mut()).cast_to(&float, schema)?;
                }
            }
            Ok(Transformed::yes(Expr::Between(between)))
        }
        Expr::InList(list) => {
            let Ok(to) = list.expr.get_type(schema) else {
                return Ok(Transformed::no(Expr::InList(list)));
            };
            let values = list
                .list
                .into_iter()
                .map(|value| Ok(operand(&value, &to, zone)?.unwrap_or(value)));
            let mut list = InList {
                list: values.collect::<DfResult<_>>()?,
                ..list
            };
            let types: Vec<_> = list.list.iter().flat_map(|value| value.get_type(schema)).collect();
            if let Some(float) = types.iter().find_map(|value| beside_float(&to, value)) {
                for part in list.list.iter_mut().chain([list.expr.as_mut()]) {
                    *part = std::mem::take(part).cast_to(&float, schema)?;
                }
            }
            Ok(Transformed::yes(Expr::InList(list)))
        }
        other => Ok(Transformed::no(other)),
    }
}

fn is_comparison(op: Operator) -> bool {
    use Operator::*;
    matches!(
        op,
        Eq | NotEq | Lt | LtEq | Gt | GtEq | IsDistinctFrom | IsNotDistinctFrom
    )
}

/// What a comparison of numeric with floating point is done in: DataFusion would take both as a numeric(30,15), which few
/// floats fit.
fn beside_float(a: &DataType, b: &DataType) -> Option<DataType> {
    let mixed = |a: &DataType, b: &DataType| {
        matches!(a, DataType::Decimal128(..) | DataType::Decimal256(..)) && b.is_floating()
    };
    (mixed(a, b) || mixed(b, a)).then_some(DataType::Float64)
}

/// A cast, and what its type's declared length does to the value.
fn cast_of(cast: Cast, zone: &str) -> DfResult<Transformed<Expr>> {
    if let Some(limit) = length(&cast.field) {
        let text = Expr::Cast(Cast::new(cast.expr, DataType::Utf8View));
        return Ok(Transformed::yes(match limit {
            Length::Varchar(n) => left(text, lit(i64::from(n))),
            // Its padding is not part of the value; whoever shows the column adds it.
            Length::Char(n) => rtrim(vec![left(text, lit(i64::from(n)))]),
        }));
    }
    if is_json(&cast.field) {
        let text = Expr::Cast(Cast::new(cast.expr, DataType::Utf8View));
        return Ok(Transformed::yes(Json::Check.call(vec![text])));
    }
    let to = cast.field.data_type();
    match *cast.expr {
        Expr::Literal(ref value, _) if let Some(text) = text_of(value) => {
            let value = value_of(text, to, zone)?;
            Ok(match value {
                Some(value) => Transformed::yes(Expr::Literal(value, None)),
                None => Transformed::no(Expr::Cast(cast)),
            })
        }
        Expr::Placeholder(Placeholder { id, field: None }) => {
            let field = Some(cast.field.clone());
            let parameter = Box::new(Expr::Placeholder(Placeholder { id, field }));
            Ok(Transformed::yes(Expr::Cast(Cast {
                expr: parameter,
                ..cast
            })))
        }
        _ => Ok(Transformed::no(Expr::Cast(cast))),
    }
}

/// A quoted constant as the type of what it is compared with; `None` where it is no such constant or of no such type.
fn operand(expr: &Expr, other: &DataType, zone: &str) -> DfResult<Option<Expr>> {
    let Expr::Literal(value, _) = expr else { return Ok(None) };
    let Some(text) = text_of(value) else { return Ok(None) };
    let value = match other {
        // Not rounded to the column's scale: 1.005 is not equal to 1.01.
        DataType::Decimal128(..) => Some(read_numeric(text)?),
        other => value_of(text, other, zone)?,
    };
    Ok(value.map(|value| Expr::Literal(value, None)))
}

fn text_of(value: &ScalarValue) -> Option<&str> {
    match value {
        ScalarValue::Utf8(Some(text)) | ScalarValue::Utf8View(Some(text)) | ScalarValue::LargeUtf8(Some(text)) => {
            Some(text)
        }
        _ => None,
    }
}

/// The value that `text` stands for; `None` for types that text is cast to as it is.
fn value_of(text: &str, to: &DataType, zone: &str) -> Result<Option<ScalarValue>> {
    if let DataType::List(field) = to {
        let element = |text: &str, of: &DataType| value_of(text, of, zone);
        return Ok(Some(array_literal::read(text, field.data_type(), &element)?));
    }
    let sql_type = match to {
        DataType::Boolean => SqlType::Bool,
        DataType::Int16 => SqlType::Int2,
        DataType::Int32 => SqlType::Int4,
        DataType::Int64 => SqlType::Int8,
        DataType::Float32 => SqlType::Float4,
        DataType::Float64 => SqlType::Float8,
        DataType::Decimal128(precision, scale) => SqlType::Numeric {
            precision: *precision,
            scale: *scale,
        },
        DataType::Date32 => SqlType::Date,
        DataType::Time64(TimeUnit::Microsecond) => SqlType::Time,
        DataType::Timestamp(TimeUnit::Microsecond, None) => SqlType::Timestamp,
        DataType::Timestamp(TimeUnit::Microsecond, Some(_)) => SqlType::TimestampTz,
        DataType::Interval(IntervalUnit::MonthDayNano) => SqlType::Interval,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => SqlType::Bytea,
        DataType::FixedSizeBinary(16) => SqlType::Uuid,
        _ => return Ok(None),
    };
    let mut builder = ColumnBuilder::new(sql_type).in_zone(zone);
    builder.append(text)?;
    let value = ScalarValue::try_from_array(&builder.finish(), 0)?;
    Ok(Some(match (value, to) {
        // The same instant, shown in the session's zone.
        (ScalarValue::TimestampMicrosecond(instant, Some(_)), DataType::Timestamp(_, Some(zone))) => {
            ScalarValue::TimestampMicrosecond(instant, Some(Arc::clone(zone)))
        }
        (value, to) if value.data_type() != *to => value.cast_to(to)?,
        (value, _) => value,
    }))
}
