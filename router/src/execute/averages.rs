//! Averages of exact numbers are numerics, with as many digits as PostgreSQL shows; DataFusion's are floats, or cut off.
//!
//! ```text
//!   Aggregate[g] avg(i), sum(i)       Projection   g, __tessera_divide(sum(i), count(i)) AS avg(i), sum(i)
//!     X                          ->     Aggregate[g] sum(i), count(i)
//!                                         X
//! ```
//!
//! Windows likewise. Sums and counts also come in parts and are shared with those that the query asks for.

use super::arithmetic::summed;
use super::scalars::as_decimal;
use datafusion::arrow::datatypes::DataType;
use datafusion::common::Result as DfResult;
use datafusion::common::tree_node::Transformed;
use datafusion::functions_aggregate::count::count_udaf;
use datafusion::functions_aggregate::sum::sum_udaf;
use datafusion::logical_expr::expr::{AggregateFunction, WindowFunction};
use datafusion::logical_expr::{
    Aggregate, Expr, ExprSchemable, LogicalPlan, Projection, Window, WindowFunctionDefinition,
};
use std::sync::Arc;
use tessera_proto::functions::division::divide;

/// One operator, its expressions done already.
///
/// # Errors
/// DataFusion's, from typing the parts.
pub(super) fn rewrite(plan: LogicalPlan) -> DfResult<Transformed<LogicalPlan>> {
    match plan {
        LogicalPlan::Aggregate(aggregate) => {
            let Some(split) = split(&aggregate.aggr_expr, &aggregate.input)? else {
                return Ok(Transformed::no(LogicalPlan::Aggregate(aggregate)));
            };
            let groups = aggregate.schema.fields().len() - aggregate.aggr_expr.len();
            let schema = aggregate.schema.clone();
            let (input, group) = (aggregate.input, aggregate.group_expr);
            let parts = LogicalPlan::Aggregate(Aggregate::try_new(input, group, split.parts.clone())?);
            finish(parts, groups, &split.outputs, &schema)
        }
        LogicalPlan::Window(window) => {
            let Some(split) = split(&window.window_expr, &window.input)? else {
                return Ok(Transformed::no(LogicalPlan::Window(window)));
            };
            let columns = window.input.schema().fields().len();
            let parts = LogicalPlan::Window(Window::try_new(split.parts.clone(), window.input)?);
            finish(parts, columns, &split.outputs, &window.schema)
        }
        other => Ok(Transformed::no(other)),
    }
}

/// Functions in parts.
struct Split {
    parts: Vec<Expr>,
    /// One for each of the functions there were.
    outputs: Vec<Output>,
}

/// Positions among the parts.
enum Output {
    Same(usize),
    Average { sum: usize, count: usize },
}

/// `None` where there is no average of exact numbers.
fn split(functions: &[Expr], input: &LogicalPlan) -> DfResult<Option<Split>> {
    let mut split = Split {
        parts: vec![],
        outputs: vec![],
    };
    let mut found = false;
    for function in functions {
        let output = match parts_of(function, input)? {
            Some((sum, count)) => {
                found = true;
                let sum = split.part(sum);
                Output::Average {
                    sum,
                    count: split.part(count),
                }
            }
            None => Output::Same(split.part(function.clone())),
        };
        split.outputs.push(output);
    }
    Ok(found.then_some(split))
}

impl Split {
    fn part(&mut self, expr: Expr) -> usize {
        let known = self.parts.iter().position(|part| *part == expr);
        known.unwrap_or_else(|| {
            self.parts.push(expr);
            self.parts.len() - 1
        })
    }
}

/// Sum and count of an average of exact numbers.
fn parts_of(function: &Expr, input: &LogicalPlan) -> DfResult<Option<(Expr, Expr)>> {
    let args = match function {
        Expr::AggregateFunction(call) if call.func.name() == "avg" => &call.params.args,
        Expr::WindowFunction(call) if call.fun.name() == "avg" => &call.params.args,
        _ => return Ok(None),
    };
    let [argument] = args.as_slice() else { return Ok(None) };
    let data_type = argument.get_type(input.schema())?;
    if !data_type.is_signed_integer() && !matches!(data_type, DataType::Decimal128(..)) {
        return Ok(None);
    }
    let sum = match data_type {
        DataType::Int64 => summed(argument.clone(), input.schema())?,
        _ => argument.clone(),
    };
    let with = |func, argument| match function {
        Expr::AggregateFunction(call) => {
            let mut params = call.params.clone();
            params.args = vec![argument];
            Expr::AggregateFunction(AggregateFunction { func, params })
        }
        Expr::WindowFunction(call) => {
            let mut params = call.params.clone();
            params.args = vec![argument];
            let fun = WindowFunctionDefinition::AggregateUDF(func);
            Expr::WindowFunction(Box::new(WindowFunction { fun, params }))
        }
        other => other.clone(),
    };
    Ok(Some((with(sum_udaf(), sum), with(count_udaf(), argument.clone()))))
}

/// The columns that there were, over the parts; the first `kept` are as they were.
fn finish(
    parts: LogicalPlan,
    kept: usize,
    outputs: &[Output],
    schema: &datafusion::common::DFSchema,
) -> DfResult<Transformed<LogicalPlan>> {
    let columns: Vec<Expr> = parts.schema().columns().into_iter().map(Expr::Column).collect();
    let (first, parted) = columns.split_at(kept);
    let mut exprs = first.to_vec();
    for (output, (qualifier, field)) in outputs.iter().zip(schema.iter().skip(kept)) {
        let value = match output {
            Output::Same(part) => parted[*part].clone(),
            Output::Average { sum, count } => {
                let exact = |position: usize| -> DfResult<Expr> {
                    let expr = parted[position].clone();
                    let data_type = expr.get_type(parts.schema())?;
                    Ok(as_decimal(expr, &data_type))
                };
                let (sum, count) = (exact(*sum)?, exact(*count)?);
                // Of nothing an average is NULL, as its sum; a count of 0 must not divide it.
                let count = datafusion::functions::expr_fn::nullif(count, none());
                divide(sum, count)
            }
        };
        exprs.push(value.alias_qualified(qualifier.cloned(), field.name()));
    }
    Ok(Transformed::yes(LogicalPlan::Projection(Projection::try_new(
        exprs,
        Arc::new(parts),
    )?)))
}

/// A count of nothing.
fn none() -> Expr {
    Expr::Literal(datafusion::scalar::ScalarValue::Decimal128(Some(0), 20, 0), None)
}
