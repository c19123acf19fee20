//! Small pieces of plans: columns kept under their names, equal values joined.

use super::domain::Names;
use datafusion::common::{Column, DFSchema, JoinConstraint, JoinType, NullEquality, Result};
use datafusion::logical_expr::{Expr, Join, LogicalPlan, LogicalPlanBuilder, Projection};
use std::sync::Arc;

/// All columns of a schema, as expressions.
pub(super) fn all(schema: &DFSchema) -> Vec<Expr> {
    schema.columns().into_iter().map(Expr::Column).collect()
}

/// `expr` under the name that column `i` of `schema` has.
pub(super) fn named(expr: Expr, schema: &DFSchema, i: usize) -> Expr {
    let (qualifier, field) = schema.qualified_field(i);
    let (old_qualifier, old) = expr.qualified_name();
    if old_qualifier.as_ref() == qualifier && old == *field.name() {
        return expr;
    }
    expr.unalias().alias_qualified(qualifier.cloned(), field.name())
}

pub(super) fn project(exprs: Vec<Expr>, input: LogicalPlan) -> Result<LogicalPlan> {
    Ok(LogicalPlan::Projection(Projection::try_new(exprs, Arc::new(input))?))
}

/// The columns of `plan` at `positions` under the names of `schema`, and `more` after them.
pub(super) fn restore(
    plan: LogicalPlan,
    schema: &DFSchema,
    positions: impl IntoIterator<Item = usize>,
    more: &[Column],
) -> Result<LogicalPlan> {
    let from = plan.schema().clone();
    let column = |p: usize| Expr::Column(Column::from(from.qualified_field(p)));
    let mut exprs: Vec<Expr> = positions
        .into_iter()
        .enumerate()
        .map(|(i, p)| named(column(p), schema, i))
        .collect();
    exprs.extend(more.iter().cloned().map(Expr::Column));
    project(exprs, plan)
}

/// Every column of `plan` under a new name, in order.
pub(super) fn renamed(plan: LogicalPlan, names: &mut Names) -> Result<(LogicalPlan, Vec<Column>)> {
    let fresh = names.several(plan.schema().fields().len());
    let columns = all(plan.schema()).into_iter().zip(&fresh);
    let exprs = columns.map(|(column, name)| column.alias(&name.name)).collect();
    Ok((project(exprs, plan)?, fresh))
}

/// A join on pairs of equal values. `null_safe`: NULL is equal to NULL, in all pairs.
pub(super) fn join(
    left: LogicalPlan,
    right: LogicalPlan,
    on: Vec<(Expr, Expr)>,
    filter: Option<Expr>,
    join_type: JoinType,
    null_safe: bool,
) -> Result<LogicalPlan> {
    if on.is_empty() && filter.is_none() && join_type == JoinType::Inner {
        return LogicalPlanBuilder::from(left).cross_join(right)?.build();
    }
    let nulls = match null_safe {
        true => NullEquality::NullEqualsNull,
        false => NullEquality::NullEqualsNothing,
    };
    let (left, right) = (Arc::new(left), Arc::new(right));
    let join = Join::try_new(left, right, on, filter, join_type, JoinConstraint::On, nulls, false)?;
    Ok(LogicalPlan::Join(join))
}

/// Pairs for a join.
pub(super) fn pairs(left: &[Column], right: &[Column]) -> Vec<(Expr, Expr)> {
    let pair = |(l, r): (&Column, &Column)| (Expr::Column(l.clone()), Expr::Column(r.clone()));
    left.iter().zip(right).map(pair).collect()
}
