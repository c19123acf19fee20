//! Integers that overflow are errors, and sums of bigint are numeric, as in PostgreSQL.
//!
//! ```text
//!   a + 1, a - b, a * b      of integers: checked (tessera_proto::functions::arithmetic), 22003 where DataFusion wraps around
//!   sum(b)                   of bigint: of b as numeric, so that it cannot overflow; DataFusion's wraps around, too
//! ```
//!
//! Not here: types. An integer constant is a bigint to DataFusion, so `int_column + 1` is one, where PostgreSQL's stays an integer.

use datafusion::arrow::datatypes::DataType;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, Result as DfResult};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{BinaryExpr, Expr, ExprSchemable, LogicalPlan, Operator};
use datafusion::scalar::ScalarValue;
use tessera_proto::Result;
use tessera_proto::functions::arithmetic::checked;

/// Digits of the sum of as many bigints as anybody has.
const SUMMED: DataType = DataType::Decimal128(28, 0);

/// `plan` with its integer arithmetic checked.
///
/// # Errors
/// None is expected.
pub(super) fn check(plan: LogicalPlan) -> Result<LogicalPlan> {
    let checked = plan.transform_up_with_subqueries(|node| {
        let preserver = NamePreserver::new(&node);
        let schema = merge_schema(&node.inputs());
        let changed = node.map_expressions(|expr| {
            let name = preserver.save(&expr);
            let changed = expr.transform_up(|e| rewrite(e, &schema))?;
            Ok(changed.update_data(|e| name.restore(e)))
        })?;
        // Always: a type below may have changed.
        changed.map_data(LogicalPlan::recompute_schema)
    })?;
    Ok(checked.data)
}

fn rewrite(expr: Expr, schema: &DFSchema) -> DfResult<Transformed<Expr>> {
    match expr {
        Expr::BinaryExpr(binary) => binary_of(binary, schema),
        Expr::AggregateFunction(mut call) if call.func.name() == "sum" => {
            let Some(argument) = bigint(&call.params.args, schema) else {
                return Ok(Transformed::no(Expr::AggregateFunction(call)));
            };
            call.params.args = vec![argument.cast_to(&SUMMED, schema)?];
            Ok(Transformed::yes(Expr::AggregateFunction(call)))
        }
        Expr::WindowFunction(mut call) if call.fun.name() == "sum" => {
            let Some(argument) = bigint(&call.params.args, schema) else {
                return Ok(Transformed::no(Expr::WindowFunction(call)));
            };
            call.params.args = vec![argument.cast_to(&SUMMED, schema)?];
            Ok(Transformed::yes(Expr::WindowFunction(call)))
        }
        other => Ok(Transformed::no(other)),
    }
}

/// The only argument, if it is a bigint.
fn bigint(args: &[Expr], schema: &DFSchema) -> Option<Expr> {
    match args {
        [only] if only.get_type(schema).ok()? == DataType::Int64 && is_wide(only, schema) => Some(only.clone()),
        _ => None,
    }
}

/// Whether values may be larger than an integer's: `CASE ... THEN 1 ELSE 0 END` is a bigint to DataFusion only, and as many as
/// anybody has cannot overflow their sum.
fn is_wide(expr: &Expr, schema: &DFSchema) -> bool {
    let wide = |e: &Expr| is_wide(e, schema);
    match expr {
        Expr::Literal(ScalarValue::Int64(value), _) => value.is_some_and(|v| i32::try_from(v).is_err()),
        Expr::Alias(alias) => wide(&alias.expr),
        Expr::Negative(inner) => wide(inner),
        Expr::Cast(cast) => wide(&cast.expr),
        Expr::Case(case) => {
            let values = case.when_then_expr.iter().map(|(_, then)| then);
            values.chain(&case.else_expr).any(|value| wide(value))
        }
        other => !matches!(
            other.get_type(schema),
            Ok(DataType::Int32 | DataType::Int16 | DataType::Int8)
        ),
    }
}

fn binary_of(binary: BinaryExpr, schema: &DFSchema) -> DfResult<Transformed<Expr>> {
    let is_integer = |e: &Expr| e.get_type(schema).is_ok_and(|t| t.is_signed_integer());
    let checkable = matches!(binary.op, Operator::Plus | Operator::Minus | Operator::Multiply);
    if !checkable || !is_integer(&binary.left) || !is_integer(&binary.right) {
        return Ok(Transformed::no(Expr::BinaryExpr(binary)));
    }
    let whole = Expr::BinaryExpr(binary.clone());
    let result = whole.get_type(schema)?;
    let (left, right) = (
        binary.left.cast_to(&result, schema)?,
        binary.right.cast_to(&result, schema)?,
    );
    let call = checked(left, binary.op, right);
    Ok(call.map_or_else(|| Transformed::no(whole), Transformed::yes))
}
