//! Aggregates whose value depends on the order of their rows, over a subquery that is sorted: they take its order.
//!
//! ```text
//!   SELECT array_agg(x) FROM (SELECT cust x FROM o ORDER BY id) s
//!
//!   Aggregate array_agg(s.x)             Projection  "array_agg(s.x)"
//!     SubqueryAlias s                      Aggregate array_agg(s.x ORDER BY s.__order0)
//!       Projection x               ->        SubqueryAlias s
//!         Sort id                              Projection x, id AS __order0
//!           ...                                  Sort id
//! ```
//!
//! DataFusion drops a sort below an aggregate. The walk from the aggregate down goes through aliases, filters, limits
//! and projections; anything else (joins, DISTINCT, UNION, another aggregate) ends it, and there PostgreSQL promises no order
//! either. A function with an ORDER BY or DISTINCT of its own keeps that.

use datafusion::common::Result as DfResult;
use datafusion::common::tree_node::Transformed;
use datafusion::logical_expr::expr::Sort as SortExpr;
use datafusion::logical_expr::{Aggregate, Expr, Filter, Limit, LogicalPlan, Projection, SubqueryAlias};
use std::sync::Arc;
use tessera_planner::ORDERED_AGGREGATES;

/// One operator, those below done already.
///
/// # Errors
/// DataFusion's, from typing the parts.
pub(super) fn rewrite(plan: LogicalPlan) -> DfResult<Transformed<LogicalPlan>> {
    let LogicalPlan::Aggregate(aggregate) = plan else {
        return Ok(Transformed::no(plan));
    };
    if !aggregate.aggr_expr.iter().any(takes_order) {
        return Ok(Transformed::no(LogicalPlan::Aggregate(aggregate)));
    }
    let Some((input, order)) = ordered(&aggregate.input)? else {
        return Ok(Transformed::no(LogicalPlan::Aggregate(aggregate)));
    };
    let functions = aggregate.aggr_expr.iter().map(|expr| with_order(expr.clone(), &order));
    let schema = aggregate.schema.clone();
    let sorted = Aggregate::try_new(Arc::new(input), aggregate.group_expr.clone(), functions.collect())?;
    let sorted = LogicalPlan::Aggregate(sorted);
    let columns = sorted.schema().columns().into_iter().map(Expr::Column);
    let named = columns.zip(schema.iter()).map(|(column, (qualifier, field))| {
        let same = matches!(&column, Expr::Column(c) if c.name == *field.name() && c.relation.as_ref() == qualifier);
        match same {
            true => column,
            false => column.alias_qualified(qualifier.cloned(), field.name()),
        }
    });
    let named = named.collect();
    Ok(Transformed::yes(LogicalPlan::Projection(Projection::try_new(
        named,
        Arc::new(sorted),
    )?)))
}

fn takes_order(expr: &Expr) -> bool {
    match expr {
        Expr::Alias(alias) => takes_order(&alias.expr),
        Expr::AggregateFunction(call) => {
            ORDERED_AGGREGATES.contains(&call.func.name()) && call.params.order_by.is_empty() && !call.params.distinct
        }
        _ => false,
    }
}

fn with_order(expr: Expr, order: &[SortExpr]) -> Expr {
    if !takes_order(&expr) {
        return expr;
    }
    match expr {
        Expr::Alias(mut alias) => {
            alias.expr = Box::new(with_order(*alias.expr, order));
            Expr::Alias(alias)
        }
        Expr::AggregateFunction(mut call) => {
            call.params.order_by = order.to_vec();
            Expr::AggregateFunction(call)
        }
        other => other,
    }
}

/// The plan with columns that its rows are sorted by, and the order in terms of its columns; `None` where it is not sorted.
fn ordered(plan: &LogicalPlan) -> DfResult<Option<(LogicalPlan, Vec<SortExpr>)>> {
    Ok(match plan {
        LogicalPlan::Sort(sort) => {
            // What is sorted by must be a column, to be named above.
            let mut exprs: Vec<Expr> = sort.input.schema().columns().into_iter().map(Expr::Column).collect();
            let mut order = vec![];
            let mut changed = false;
            for key in &sort.expr {
                let column = match &key.expr {
                    column @ Expr::Column(_) => column.clone(),
                    other => {
                        changed = true;
                        added(&mut exprs, other.clone())
                    }
                };
                order.push(SortExpr {
                    expr: column,
                    ..key.clone()
                });
            }
            match changed {
                false => Some((plan.clone(), order)),
                true => Some((project(exprs, plan.clone())?, order)),
            }
        }
        LogicalPlan::SubqueryAlias(alias) => match ordered(&alias.input)? {
            Some((input, order)) => {
                let below = input.schema().columns();
                let above = SubqueryAlias::try_new(Arc::new(input), alias.alias.clone())?;
                let columns = above.schema.columns();
                let moved = order.into_iter().map(|mut key| {
                    if let Expr::Column(column) = &key.expr {
                        let at = below.iter().position(|c| c == column);
                        key.expr = at.map_or(key.expr.clone(), |at| Expr::Column(columns[at].clone()));
                    }
                    key
                });
                let moved = moved.collect();
                Some((LogicalPlan::SubqueryAlias(above), moved))
            }
            None => None,
        },
        LogicalPlan::Projection(projection) => match ordered(&projection.input)? {
            Some((input, order)) => {
                let mut exprs = projection.expr.clone();
                let mut moved = vec![];
                for mut key in order {
                    let shown = exprs.iter().position(|expr| *expr == key.expr);
                    key.expr = match shown {
                        Some(_) => key.expr,
                        None => added(&mut exprs, key.expr),
                    };
                    moved.push(key);
                }
                Some((project(exprs, input)?, moved))
            }
            None => None,
        },
        LogicalPlan::Filter(filter) => ordered(&filter.input)?
            .map(|(input, order)| -> DfResult<_> {
                let filter = Filter::try_new(filter.predicate.clone(), Arc::new(input))?;
                Ok((LogicalPlan::Filter(filter), order))
            })
            .transpose()?,
        LogicalPlan::Limit(limit) => ordered(&limit.input)?.map(|(input, order)| {
            let limit = Limit {
                input: Arc::new(input),
                ..limit.clone()
            };
            (LogicalPlan::Limit(limit), order)
        }),
        _ => None,
    })
}

/// Shows one more column; how it is called above.
fn added(exprs: &mut Vec<Expr>, expr: Expr) -> Expr {
    let name = format!("__order{}", exprs.len());
    exprs.push(expr.alias(&name));
    Expr::Column(datafusion::common::Column::new_unqualified(name))
}

fn project(exprs: Vec<Expr>, input: LogicalPlan) -> DfResult<LogicalPlan> {
    Ok(LogicalPlan::Projection(Projection::try_new(exprs, Arc::new(input))?))
}
