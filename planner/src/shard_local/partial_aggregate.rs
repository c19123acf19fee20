//! Splits an aggregate whose groups are spread over the nodes: each node aggregates its rows, the router the nodes' results.
//!
//! ```text
//!   Aggregate[g] count(x), avg(x)      Projection   g, count or 0, avg(sum, count)
//!     X                           ->     Aggregate[g] sum(p0), sum(p1), sum(p2)                on the router
//!                                          Aggregate[g] count(x) p0, sum(x) p1, count(x) p2    in the leaf
//!                                            X
//! ```
//!
//! Only functions whose parts combine to exactly the value DataFusion computes in one piece, type included; one function that
//! does not keeps the whole aggregate above the cut. DISTINCT does not split here: DataFusion's own rules have turned
//! what they can into a second grouping, which splits. Sums of floats depend on the order of addition either way.

use datafusion::arrow::datatypes::DataType;
use datafusion::common::{Column, Result};
use datafusion::functions_aggregate::count::count_udaf;
use datafusion::functions_aggregate::sum::sum_udaf;
use datafusion::logical_expr::expr::{AggregateFunction, AggregateFunctionParams};
use datafusion::logical_expr::{Aggregate, AggregateUDF, Expr, ExprSchemable, LogicalPlan, Projection, cast};
use std::sync::Arc;
use tessera_proto::functions::{decimal_average, zero_if_null};

/// An aggregate in two parts.
#[derive(Debug, Clone)]
pub struct Split {
    /// The part below the cut.
    pub partial: Aggregate,
    /// How the outputs come out of the second part, one for each of the aggregate's.
    outputs: Vec<Output>,
}

/// One output of the aggregate: positions among the partial aggregate's functions.
#[derive(Debug, Clone)]
enum Output {
    /// The same function again, or a sum of sums.
    Again(Arc<AggregateUDF>, usize),
    /// A sum of counts, where no rows at all count 0.
    Count(usize),
    /// A sum of sums over a sum of counts.
    Average { sum: usize, count: usize },
}

/// The two parts, or `None` where a function does not split.
///
/// # Errors
/// DataFusion's, from typing the parts.
pub fn split(aggregate: &Aggregate) -> Result<Option<Split>> {
    let mut parts: Vec<Expr> = vec![];
    let mut outputs = vec![];
    for expr in &aggregate.aggr_expr {
        let Expr::AggregateFunction(function) = expr.clone().unalias() else {
            return Ok(None);
        };
        let Some(output) = split_function(function, aggregate, &mut parts)? else {
            return Ok(None);
        };
        outputs.push(output);
    }
    let partial = Aggregate::try_new(aggregate.input.clone(), aggregate.group_expr.clone(), parts)?;
    Ok(Some(Split { partial, outputs }))
}

fn split_function(function: AggregateFunction, whole: &Aggregate, parts: &mut Vec<Expr>) -> Result<Option<Output>> {
    let params = &function.params;
    if params.distinct || !params.order_by.is_empty() || params.null_treatment.is_some() {
        return Ok(None);
    }
    Ok(match function.func.name() {
        "count" => Some(Output::Count(part(parts, Expr::AggregateFunction(function)))),
        "sum" | "min" | "max" | "bool_and" | "bool_or" | "bit_and" | "bit_or" | "bit_xor" => {
            let again = function.func.clone();
            Some(Output::Again(again, part(parts, Expr::AggregateFunction(function))))
        }
        "avg" => {
            let schema = whole.input.schema();
            let Some(argument) = params.args.first().map(|arg| arg.get_type(schema)).transpose()? else {
                return Ok(None);
            };
            if !matches!(argument, DataType::Float64 | DataType::Decimal128(..)) {
                return Ok(None);
            }
            let with = |func| {
                Expr::AggregateFunction(AggregateFunction {
                    func,
                    params: function.params.clone(),
                })
            };
            let sum = part(parts, with(sum_udaf()));
            Some(Output::Average {
                sum,
                count: part(parts, with(count_udaf())),
            })
        }
        _ => None,
    })
}

/// Position of a partial function, shared by all outputs that need it.
fn part(parts: &mut Vec<Expr>, expr: Expr) -> usize {
    let same = |known: &Expr| matches!(known, Expr::Alias(alias) if *alias.expr == expr);
    if let Some(position) = parts.iter().position(same) {
        return position;
    }
    parts.push(expr.alias(format!("__partial{}", parts.len())));
    parts.len() - 1
}

impl Split {
    /// The router's part over `leaf`, which runs [`Self::partial`]; same columns as `whole`.
    ///
    /// # Errors
    /// DataFusion's, from typing the parts.
    pub fn finish(&self, whole: &Aggregate, leaf: LogicalPlan) -> Result<LogicalPlan> {
        let columns: Vec<Column> = self.partial.schema.columns();
        let groups = columns.len() - self.partial.aggr_expr.len();
        let (group_columns, part_columns) = columns.split_at(groups);
        let group_expr: Vec<Expr> = group_columns.iter().cloned().map(Expr::Column).collect();
        let functions = self.functions(part_columns);
        let combined = Arc::new(LogicalPlan::Aggregate(Aggregate::try_new(
            Arc::new(leaf),
            group_expr.clone(),
            functions,
        )?));
        let mut exprs = group_expr;
        for (output, (qualifier, field)) in self.outputs.iter().zip(whole.schema.iter().skip(groups)) {
            let value = output.value(field.data_type())?;
            let value = if value.get_type(combined.schema())? == *field.data_type() {
                value
            } else {
                cast(value, field.data_type().clone())
            };
            exprs.push(value.alias_qualified(qualifier.cloned(), field.name()));
        }
        Ok(LogicalPlan::Projection(Projection::try_new(exprs, combined)?))
    }

    /// One function per part, over the part's column: what it was again, or the sum of a count.
    fn functions(&self, part_columns: &[Column]) -> Vec<Expr> {
        let again = |position: usize| {
            self.outputs.iter().find_map(|output| match output {
                Output::Again(func, p) if *p == position => Some(func.clone()),
                _ => None,
            })
        };
        let functions = part_columns.iter().enumerate().map(|(position, column)| {
            let params = AggregateFunctionParams {
                args: vec![Expr::Column(column.clone())],
                distinct: false,
                filter: None,
                order_by: vec![],
                null_treatment: None,
            };
            let func = again(position).unwrap_or_else(sum_udaf);
            Expr::AggregateFunction(AggregateFunction { func, params }).alias(combined_name(position))
        });
        functions.collect()
    }
}

fn combined_name(position: usize) -> String {
    format!("__combined{position}")
}

fn combined(position: usize) -> Expr {
    Expr::Column(Column::new_unqualified(combined_name(position)))
}

impl Output {
    fn value(&self, result: &DataType) -> Result<Expr> {
        Ok(match self {
            Output::Again(_, part) => combined(*part),
            Output::Count(part) => zero_if_null(combined(*part)),
            Output::Average { sum, count } => match result {
                DataType::Decimal128(..) => decimal_average(combined(*sum), combined(*count), result)?,
                _ => combined(*sum) / cast(combined(*count), DataType::Float64),
            },
        })
    }
}
