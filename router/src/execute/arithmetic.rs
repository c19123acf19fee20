//! Integers and floats that overflow are errors, and sums of bigint are numeric, as in PostgreSQL.
//!
//! ```text
//!   a + 1, a - b, a * b      of integers: checked (tessera_proto::functions::arithmetic), 22003 where DataFusion wraps around
//!   f * g, f / g             of floats likewise, 22003 or 22012 where DataFusion is infinite
//!   sum(b)                   of bigint: of b as numeric, so that it cannot overflow; DataFusion's wraps around, too
//! ```
//!
//! Constants have PostgreSQL's types already (`tessera_planner::constants`), so `int_column + 1` stays an integer.

use datafusion::arrow::datatypes::DataType;
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, Result as DfResult};
use datafusion::logical_expr::{BinaryExpr, Expr, ExprSchemable, Operator};
use tessera_proto::functions::arithmetic::checked;

/// Digits of the sum of as many bigints as anybody has.
const SUMMED: DataType = DataType::Decimal128(28, 0);

/// One expression, its operands done already.
///
/// # Errors
/// None is expected.
pub(super) fn rewrite(mut expr: Expr, schema: &DFSchema) -> DfResult<Transformed<Expr>> {
    let args = match &mut expr {
        Expr::BinaryExpr(binary) => {
            let checked = binary_of(binary, schema)?;
            return Ok(checked.map_or_else(|| Transformed::no(expr), Transformed::yes));
        }
        Expr::AggregateFunction(call) if call.func.name() == "sum" => &mut call.params.args,
        Expr::WindowFunction(call) if call.fun.name() == "sum" => &mut call.params.args,
        _ => return Ok(Transformed::no(expr)),
    };
    let Some(argument) = bigint(args, schema) else {
        return Ok(Transformed::no(expr));
    };
    *args = vec![summed(argument, schema)?];
    Ok(Transformed::yes(expr))
}

/// A bigint so that its sum does not overflow.
pub(super) fn summed(argument: Expr, schema: &DFSchema) -> DfResult<Expr> {
    argument.cast_to(&SUMMED, schema)
}

/// The only argument, if it is a bigint.
fn bigint(args: &[Expr], schema: &DFSchema) -> Option<Expr> {
    match args {
        [only] if only.get_type(schema).ok()? == DataType::Int64 && is_wide(only, schema) => Some(only.clone()),
        _ => None,
    }
}

/// Whether values may be larger than an integer's: as many of those as anybody has cannot overflow their sum.
fn is_wide(expr: &Expr, schema: &DFSchema) -> bool {
    match expr {
        Expr::Alias(alias) => is_wide(&alias.expr, schema),
        Expr::Cast(cast) => is_wide(&cast.expr, schema),
        other => !matches!(
            other.get_type(schema),
            Ok(DataType::Int32 | DataType::Int16 | DataType::Int8)
        ),
    }
}

/// The checked form of arithmetic with integers, or with a float; `None` for any other operator.
fn binary_of(binary: &BinaryExpr, schema: &DFSchema) -> DfResult<Option<Expr>> {
    let (Ok(left), Ok(right)) = (binary.left.get_type(schema), binary.right.get_type(schema)) else {
        return Ok(None);
    };
    let number = |t: &DataType| t.is_signed_integer() || t.is_floating() || matches!(t, DataType::Decimal128(..));
    let integers = left.is_signed_integer() && right.is_signed_integer();
    let floats = number(&left) && number(&right) && (left.is_floating() || right.is_floating());
    let checkable = match binary.op {
        Operator::Plus | Operator::Minus | Operator::Multiply => integers || floats,
        Operator::Divide => floats,
        _ => false,
    };
    if !checkable {
        return Ok(None);
    }
    let result = match floats && left != right {
        // Of two types it is double precision: real is for two of them.
        true => DataType::Float64,
        false => Expr::BinaryExpr(binary.clone()).get_type(schema)?,
    };
    let operand = |e: &Expr| e.clone().cast_to(&result, schema);
    let (left, right) = (operand(&binary.left)?, operand(&binary.right)?);
    Ok(checked(left, binary.op, right, &result))
}
