//! Joins of the query: LATERAL, and subqueries in ON.
//!
//! ```text
//!   A join LATERAL Q          attach.rs
//!   A join B ON Q             filter Q (A join B)
//!   A left join B ON Q        Q beside the one side whose columns it reads; 0A000 if it reads both
//! ```

use super::attach::lateral;
use super::domain::outer_references;
use super::push::refused;
use super::shape::restore;
use super::value::{array_subquery, is_subquery};
use super::{Unnester, has_subquery, reads_only};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{JoinType, Result};
use datafusion::logical_expr::utils::{conjunction, split_conjunction_owned};
use datafusion::logical_expr::{Expr, Filter, Join, LogicalPlan, Operator, binary_expr, lit};
use std::sync::Arc;
use tessera_proto::Error;

impl Unnester {
    pub(super) fn join(&mut self, mut join: Join) -> Result<LogicalPlan> {
        let is_named = is_lateral(&join.right);
        let mut left = self.plan(Arc::unwrap_or_clone(join.left))?;
        let mut right = Arc::unwrap_or_clone(join.right);
        right = match is_named {
            true => self.nested(left.schema().clone(), right)?,
            false => self.plan(right)?,
        };
        let may_be = matches!(join.join_type, JoinType::Inner | JoinType::Left);
        let is_lateral = is_named || (may_be && self.reads_left(&left, &right)?);
        let schema = join.schema.clone();
        if is_lateral {
            if !matches!(join.join_type, JoinType::Inner | JoinType::Left) {
                return Err(refused("the right side of a RIGHT or FULL JOIN"));
            }
            let on = join.on.into_iter().map(|(l, r)| binary_expr(l, Operator::Eq, r));
            let conjuncts = on.chain(join.filter.into_iter().flat_map(split_conjunction_owned));
            let is_true = |e: &Expr| *e == lit(true);
            let (nested, plain): (Vec<_>, Vec<_>) = conjuncts.filter(|e| !is_true(e)).partition(has_subquery);
            if !nested.is_empty() && join.join_type != JoinType::Inner {
                return Err(refused("LEFT JOIN LATERAL with a subquery in ON"));
            }
            let condition = (join.join_type, conjunction(plain));
            let plan = lateral(left, right, condition, &schema, &mut self.names)?;
            return match conjunction(nested) {
                Some(predicate) => self.filter(Filter::try_new(predicate, Arc::new(plan))?),
                None => Ok(plan),
            };
        }
        let Some(filter) = join.filter.take_if(|filter| has_subquery(filter)) else {
            (join.left, join.right) = (Arc::new(left), Arc::new(right));
            return Ok(LogicalPlan::Join(join));
        };
        let widths = (left.schema().fields().len(), right.schema().fields().len());
        let mut kept = vec![];
        let mut later = vec![];
        for conjunct in split_conjunction_owned(filter) {
            if !has_subquery(&conjunct) {
                kept.push(conjunct);
            } else if join.join_type == JoinType::Inner {
                later.push(conjunct);
            } else {
                let rewritten = conjunct.transform_down(|e| {
                    if !is_subquery(&e) && array_subquery(&e).is_none() {
                        return Ok(Transformed::no(e));
                    }
                    let side = if reads_only(&e, right.schema())? {
                        &mut right
                    } else if reads_only(&e, left.schema())? {
                        &mut left
                    } else {
                        return Err(refused("both sides of an outer join's ON"));
                    };
                    let (extended, value) = self.extract(side.clone(), e)?;
                    *side = extended;
                    Ok(Transformed::new(value, true, TreeNodeRecursion::Jump))
                })?;
                kept.push(rewritten.data);
            }
        }
        let extended = left.schema().fields().len();
        let positions = (0..widths.0).chain(extended..extended + widths.1);
        let (left, right) = (Arc::new(left), Arc::new(right));
        let (on, filter, nulls) = (join.on, conjunction(kept), join.null_equality);
        let joined = Join::try_new(
            left,
            right,
            on,
            filter,
            join.join_type,
            join.join_constraint,
            nulls,
            join.null_aware,
        )?;
        let plan = restore(LogicalPlan::Join(joined), &schema, positions, &[])?;
        match conjunction(later) {
            Some(predicate) => self.filter(Filter::try_new(predicate, Arc::new(plan))?),
            None => Ok(plan),
        }
    }

    /// LATERAL leaves no mark where only the subqueries inside read the left side, or where it stands deeper.
    fn reads_left(&self, left: &LogicalPlan, right: &LogicalPlan) -> Result<bool> {
        let mut reads = false;
        for (_, column) in outer_references(right)? {
            if left.schema().maybe_index_of_column(&column).is_none() {
                continue;
            }
            // Of two tables of one name, which one is meant is known to the SQL planner alone.
            if self.scopes.iter().any(|s| s.maybe_index_of_column(&column).is_some()) {
                let message = format!(
                    "column \"{}\" of a subquery may be that of two queries",
                    column.flat_name()
                );
                let hint = "give the table another alias in one of the queries";
                return Err(Error::unsupported(message, hint).into());
            }
            reads = true;
        }
        Ok(reads)
    }
}

fn is_lateral(plan: &LogicalPlan) -> bool {
    match plan {
        LogicalPlan::Subquery(_) => true,
        LogicalPlan::SubqueryAlias(alias) => is_lateral(&alias.input),
        _ => false,
    }
}
