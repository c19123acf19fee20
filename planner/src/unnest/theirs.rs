//! Which subqueries DataFusion's own rules turn into joins with the right rows.
//!
//! ```text
//!   its place                                   and its plan, where it reads outer columns
//!   EXISTS, IN, scalar: where it reads nothing  any
//!   [NOT] EXISTS                                a chain, below
//!   x IN, as a condition or below AND and OR    a chain; NOT IN must read nothing
//!   scalar, LATERAL                             an aggregate without GROUP BY over a chain
//! ```
//!
//! A chain is filters, projections and aliases over what reads nothing: only its filters read outer columns. The rules pull those
//! filters up, past a window, an outer join, DISTINCT, HAVING or LIMIT below which they give other rows; and a mark that stands for IN is
//! false where PostgreSQL's IN is NULL. All else is rewritten by us.

use super::domain::outer_references;
use super::subquery_of;
use super::value::is_marker;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, Result};
use datafusion::logical_expr::{Expr, Filter, LogicalPlan, Operator, Subquery};

/// Whether all subqueries of a plan are such.
pub fn is_theirs(plan: &LogicalPlan) -> bool {
    let mut theirs = true;
    let walked = plan.apply_with_subqueries(|node| {
        theirs &= node_is_theirs(node)?;
        Ok(match theirs {
            true => TreeNodeRecursion::Continue,
            false => TreeNodeRecursion::Stop,
        })
    });
    theirs && walked.is_ok()
}

fn node_is_theirs(node: &LogicalPlan) -> Result<bool> {
    let mut theirs = true;
    if let LogicalPlan::Join(join) = node {
        join.right.apply(|side| {
            if let LogicalPlan::Subquery(s) = side {
                theirs &= is_aggregate(&s.subquery)? && reads_of(s, &[join.left.as_ref()])?;
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
    }
    let inputs = node.inputs();
    let conditional = matches!(node, LogicalPlan::Filter(_) | LogicalPlan::Join(_));
    if let LogicalPlan::Filter(filter) = node {
        theirs &= condition(filter)?;
    }
    node.apply_expressions(|expr| {
        expr.apply(|e| {
            theirs &= !is_marker(e) && (conditional || !matches!(e, Expr::InSubquery(_)));
            if let Some(s) = subquery_of(e) {
                theirs &= reads_of(s, &inputs)? && plan_is_theirs(e, s)?;
            }
            Ok(TreeNodeRecursion::Continue)
        })
    })?;
    Ok(theirs)
}

/// Whether all outer references of a subquery are to columns of `inputs`. DataFusion takes what is further out for a column of these.
fn reads_of(subquery: &Subquery, inputs: &[&LogicalPlan]) -> Result<bool> {
    let has = |c: &Column| inputs.iter().any(|i| i.schema().maybe_index_of_column(c).is_some());
    let found = outer_references(&subquery.subquery)?;
    Ok(found.iter().all(|(_, column)| has(column)))
}

fn plan_is_theirs(expr: &Expr, subquery: &Subquery) -> Result<bool> {
    let plan = subquery.subquery.as_ref();
    if outer_references(plan)?.is_empty() {
        return Ok(true);
    }
    match expr {
        Expr::ScalarSubquery(_) => is_aggregate(plan),
        Expr::InSubquery(i) if i.negated => Ok(false),
        _ => is_chain(plan),
    }
}

/// Whether each IN of a filter is where a mark, true or false, does for its value.
fn condition(filter: &Filter) -> Result<bool> {
    let mut all = 0;
    filter.predicate.apply(|e| {
        all += usize::from(matches!(e, Expr::InSubquery(_)));
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(all == 0 || marked(&filter.predicate, true) == all)
}

/// How many IN there are below AND and OR alone; not negated, if below OR.
fn marked(expr: &Expr, conjunct: bool) -> usize {
    match expr {
        Expr::BinaryExpr(b) if b.op == Operator::And => marked(&b.left, conjunct) + marked(&b.right, conjunct),
        Expr::BinaryExpr(b) if b.op == Operator::Or => marked(&b.left, false) + marked(&b.right, false),
        Expr::Not(inner) if conjunct && matches!(inner.as_ref(), Expr::InSubquery(i) if !i.negated) => {
            usize::from(!correlated(inner))
        }
        Expr::InSubquery(i) => usize::from(!i.negated || conjunct),
        _ => 0,
    }
}

fn correlated(expr: &Expr) -> bool {
    subquery_of(expr).is_none_or(|s| outer_references(&s.subquery).map_or(true, |found| !found.is_empty()))
}

fn is_chain(plan: &LogicalPlan) -> Result<bool> {
    if outer_references(plan)?.is_empty() {
        return Ok(true);
    }
    match plan {
        LogicalPlan::Filter(filter) => is_chain(&filter.input),
        LogicalPlan::SubqueryAlias(alias) => is_chain(&alias.input),
        LogicalPlan::Projection(list) => Ok(!list.expr.iter().any(Expr::contains_outer) && is_chain(&list.input)?),
        _ => Ok(false),
    }
}

fn is_aggregate(plan: &LogicalPlan) -> Result<bool> {
    match plan {
        LogicalPlan::SubqueryAlias(alias) => is_aggregate(&alias.input),
        LogicalPlan::Projection(list) => Ok(!list.expr.iter().any(Expr::contains_outer) && is_aggregate(&list.input)?),
        LogicalPlan::Aggregate(aggregate) => Ok(aggregate.group_expr.is_empty()
            && !aggregate.aggr_expr.iter().any(Expr::contains_outer)
            && is_chain(&aggregate.input)?),
        _ => Ok(false),
    }
}
