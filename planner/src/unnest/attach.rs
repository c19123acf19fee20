//! A subquery's result beside the outer rows that it belongs to.
//!
//! ```text
//!   one row for each outer row, always      outer columns, and the subquery's: a projection, or outer left join groups by d
//!   LATERAL Q                               outer join push(Q) on equal d
//!   WHERE [NOT] EXISTS Q, WHERE x IN Q      outer semi or anti join push(Q)
//! ```

use super::domain::{Domain, Names};
use super::push::{defaults, groups, or_default, push};
use super::shape::{all, join, pairs, project, renamed, restore};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, DFSchema, JoinType, Result};
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, Filter, LogicalPlan, Sort, SubqueryAlias};
use std::sync::Arc;

/// Whether the subquery has one row, whatever the outer row.
pub(super) fn is_one_row(plan: &LogicalPlan) -> bool {
    match plan {
        LogicalPlan::Projection(p) => is_one_row(&p.input),
        LogicalPlan::SubqueryAlias(a) => is_one_row(&a.input),
        LogicalPlan::Sort(s) => is_one_row(&s.input),
        LogicalPlan::EmptyRelation(e) => e.produce_one_row && e.schema.fields().is_empty(),
        LogicalPlan::Aggregate(a) => a.group_expr.is_empty(),
        _ => false,
    }
}

/// Whether it has at most one.
pub(super) fn is_at_most_one_row(plan: &LogicalPlan) -> bool {
    use datafusion::logical_expr::FetchType;
    match plan {
        LogicalPlan::Projection(p) => is_at_most_one_row(&p.input),
        LogicalPlan::SubqueryAlias(a) => is_at_most_one_row(&a.input),
        LogicalPlan::Sort(s) => is_at_most_one_row(&s.input),
        LogicalPlan::Filter(f) => is_at_most_one_row(&f.input),
        LogicalPlan::Limit(l) => {
            matches!(l.get_fetch_type(), Ok(FetchType::Literal(Some(0 | 1)))) || is_at_most_one_row(&l.input)
        }
        LogicalPlan::Distinct(d) => is_at_most_one_row(d.input()),
        LogicalPlan::Values(v) => v.values.len() <= 1,
        LogicalPlan::Join(j) => {
            j.join_type == JoinType::Inner && is_at_most_one_row(&j.left) && is_at_most_one_row(&j.right)
        }
        other => is_one_row(other),
    }
}

/// The outer rows, each with the columns of a subquery of which [`is_one_row`] holds, under new names.
pub(super) fn one_row(outer: LogicalPlan, plan: LogicalPlan, names: &mut Names) -> Result<(LogicalPlan, Vec<Column>)> {
    match plan {
        LogicalPlan::SubqueryAlias(SubqueryAlias { input, .. }) | LogicalPlan::Sort(Sort { input, .. }) => {
            one_row(outer, Arc::unwrap_or_clone(input), names)
        }
        LogicalPlan::Projection(p) => {
            let inner = p.input.schema().clone();
            let (input, columns) = one_row(outer, Arc::unwrap_or_clone(p.input), names)?;
            let fresh = names.several(p.expr.len());
            // Columns added below stay out: the projection above needs the outer ones and these.
            let mut exprs = outer_columns(&input, &columns);
            for (expr, name) in p.expr.into_iter().zip(&fresh) {
                exprs.push(
                    in_place(expr, &inner, &columns, input.schema())?
                        .unalias()
                        .alias(&name.name),
                );
            }
            Ok((project(exprs, input)?, fresh))
        }
        LogicalPlan::Aggregate(aggregate) => {
            let defaults = defaults(&aggregate)?;
            let plan = LogicalPlan::Aggregate(aggregate.clone());
            let domain = Domain::new(&outer, &plan)?;
            if domain.refs.is_empty() {
                let (plan, fresh) = renamed(plan, names)?;
                return Ok((join(outer, plan, vec![], None, JoinType::Inner, false)?, fresh));
            }
            let (plan, _) = groups(aggregate, &domain, names)?;
            let (plan, columns) = renamed(plan, names)?;
            let (results, found) = columns.split_at(defaults.len());
            let mut exprs = all(outer.schema());
            let on = pairs(&domain.refs, found);
            let joined = join(outer, plan, on, None, JoinType::Left, domain.is_nullable())?;
            let fresh = names.several(results.len());
            for ((column, default), name) in results.iter().zip(defaults).zip(&fresh) {
                exprs.push(or_default(column, default)?.alias(&name.name));
            }
            Ok((project(exprs, joined)?, fresh))
        }
        // The empty relation of one row.
        _ => Ok((outer, vec![])),
    }
}

/// All columns of `plan` but those in `without`.
fn outer_columns(plan: &LogicalPlan, without: &[Column]) -> Vec<Expr> {
    let columns = plan.schema().columns().into_iter();
    columns.filter(|c| !without.contains(c)).map(Expr::Column).collect()
}

/// An expression over `inner`, whose columns are now called `columns`, beside those of the outer side.
fn in_place(expr: Expr, inner: &DFSchema, columns: &[Column], outer: &DFSchema) -> Result<Expr> {
    let placed = expr.transform_up(|e| match &e {
        Expr::Column(c) => match inner.maybe_index_of_column(c) {
            Some(i) => Ok(Transformed::yes(Expr::Column(columns[i].clone()))),
            None => Ok(Transformed::no(e)),
        },
        Expr::OuterReferenceColumn(_, c) if outer.maybe_index_of_column(c).is_some() => {
            Ok(Transformed::yes(Expr::Column(c.clone())))
        }
        _ => Ok(Transformed::no(e)),
    })?;
    Ok(placed.data)
}

/// LATERAL: for each outer row the subquery's rows, in the columns of `schema`. `filter`: the condition of the join.
pub(super) fn lateral(
    outer: LogicalPlan,
    plan: LogicalPlan,
    (join_type, filter): (JoinType, Option<Expr>),
    schema: &DFSchema,
    names: &mut Names,
) -> Result<LogicalPlan> {
    let width = outer.schema().fields().len();
    if is_one_row(&plan) && (filter.is_none() || join_type == JoinType::Inner) {
        let (plan, columns) = one_row(outer, plan, names)?;
        let from = plan.schema().clone();
        let positions = columns
            .iter()
            .map(|c| from.index_of_column(c))
            .collect::<Result<Vec<_>>>()?;
        let positions = (0..width).chain(positions);
        let plan = restore(plan, schema, positions, &[])?;
        return match filter {
            Some(filter) => Ok(LogicalPlan::Filter(Filter::try_new(filter, Arc::new(plan))?)),
            None => Ok(plan),
        };
    }
    let domain = Domain::new(&outer, &plan)?;
    let own = plan.schema().fields().len();
    if domain.refs.is_empty() {
        let plan = join(outer, plan, vec![], filter, join_type, false)?;
        return restore(plan, schema, 0..width + own, &[]);
    }
    let (plan, d) = push(plan, &domain, names)?;
    let on = pairs(&domain.refs, &d);
    let joined = join(outer, plan, on, filter, join_type, domain.is_nullable())?;
    restore(joined, schema, 0..width + own, &[])
}

/// The outer rows with a match: a row of the subquery with `equal` values. `join_type`: semi, or anti for those without one.
/// `None` where nothing ties the two sides.
pub(super) fn matched(
    outer: LogicalPlan,
    plan: LogicalPlan,
    equal: Vec<(Expr, usize)>,
    join_type: JoinType,
    names: &mut Names,
) -> Result<Option<LogicalPlan>> {
    let domain = Domain::new(&outer, &plan)?;
    if domain.refs.is_empty() && equal.is_empty() {
        return Ok(None);
    }
    let width = plan.schema().fields().len();
    let d = |columns: &[Column]| columns[width..].to_vec();
    let plan = match domain.refs.is_empty() {
        true => plan,
        false => {
            let (plan, d) = push(plan, &domain, names)?;
            let from = plan.schema().clone();
            let own: Vec<Expr> = all(&from)
                .into_iter()
                .take(width)
                .chain(d.into_iter().map(Expr::Column))
                .collect();
            project(own, plan)?
        }
    };
    let (mut plan, columns) = renamed(plan, names)?;
    let null_safe = domain.is_nullable();
    let values: Vec<Expr> = equal.iter().map(|(_, i)| Expr::Column(columns[*i].clone())).collect();
    // NULL is equal to NULL in all pairs or in none.
    if null_safe && let Some(known) = conjunction(values.iter().cloned().map(Expr::is_not_null)) {
        plan = LogicalPlan::Filter(Filter::try_new(known, Arc::new(plan))?);
    }
    let mut on: Vec<(Expr, Expr)> = equal.into_iter().map(|(e, _)| e).zip(values).collect();
    on.extend(pairs(&domain.refs, &d(&columns)));
    Ok(Some(join(outer, plan, on, None, join_type, null_safe)?))
}

/// `plan` with one more column, computed from its own.
pub(super) fn with_column(plan: LogicalPlan, value: Expr, names: &mut Names) -> Result<(LogicalPlan, Column)> {
    let name = names.fresh();
    let mut exprs = all(plan.schema());
    exprs.push(value.alias(&name.name));
    Ok((project(exprs, plan)?, name))
}
