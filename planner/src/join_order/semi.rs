//! Semi and anti joins moved to the relation they filter, where that keeps them on the nodes.
//!
//! ```text
//!   (customer x orders x lineitem) SEMI s on o_orderkey = s.k    ->    customer x (orders SEMI s) x lineitem
//! ```
//!
//! Such a join keeps or drops a row by the columns of one relation alone, so it commutes with the inner joins above that
//! relation, as any filter does. DataFusion leaves it on top, where the inner joins have to run first, and with them the
//! rows on the way to the router. Moved only if the relation and the other side then are one local subtree, and not where the
//! whole is local already: there the inner joins before it leave it fewer rows.

use crate::cluster::Cluster;
use crate::shard_local::rule;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, JoinType, Result};
use datafusion::logical_expr::{Expr, Filter, Join, LogicalPlan, Projection};
use std::sync::Arc;

/// `plan` with its semi and anti joins moved down.
///
/// # Errors
/// DataFusion's, from building the new plan.
pub fn move_down(plan: LogicalPlan, cluster: &Cluster) -> Result<LogicalPlan> {
    // From the top, so that one of several moves below the next as well.
    let moved = plan.transform_down(|node| {
        let LogicalPlan::Join(join) = &node else {
            return Ok(Transformed::no(node));
        };
        if !matches!(join.join_type, JoinType::LeftSemi | JoinType::LeftAnti) {
            return Ok(Transformed::no(node));
        }
        if rule::locality(&node, cluster).is_some() {
            return Ok(Transformed::no(node));
        }
        match into(&join.left, join, Passed::Nothing, cluster) {
            Some(new) => Ok(Transformed::yes(new)),
            None => Ok(Transformed::no(node)),
        }
    })?;
    Ok(moved.data)
}

/// Whether an inner join is between where the semi join stood and where it would go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Passed {
    Nothing,
    InnerJoin,
}

/// `node` with `semi` somewhere inside it; `None` where it gains nothing or does not fit.
fn into(node: &LogicalPlan, semi: &Join, passed: Passed, cluster: &Cluster) -> Option<LogicalPlan> {
    match node {
        // Only columns that come through unchanged and under the same name can be meant below.
        LogicalPlan::Projection(projection) if keeps_columns(projection) => {
            let input = into(&projection.input, semi, passed, cluster)?;
            let schema = projection.schema.clone();
            Projection::try_new_with_schema(projection.expr.clone(), Arc::new(input), schema)
                .ok()
                .map(LogicalPlan::Projection)
        }
        LogicalPlan::Filter(filter) => {
            let input = into(&filter.input, semi, passed, cluster)?;
            Filter::try_new(filter.predicate.clone(), Arc::new(input))
                .ok()
                .map(LogicalPlan::Filter)
        }
        LogicalPlan::Join(join) if join.join_type == JoinType::Inner => {
            let (mut left, mut right) = (join.left.clone(), join.right.clone());
            let side = [&mut left, &mut right]
                .into_iter()
                .find(|side| has_all(semi, side.schema()))?;
            let moved = into(side, semi, Passed::InnerJoin, cluster)?;
            *side = Arc::new(moved);
            Some(LogicalPlan::Join(Join {
                left,
                right,
                ..join.clone()
            }))
        }
        relation if passed == Passed::InnerJoin => {
            let moved = LogicalPlan::Join(Join {
                left: Arc::new(relation.clone()),
                schema: relation.schema().clone(),
                ..semi.clone()
            });
            rule::locality(&moved, cluster).is_some().then_some(moved)
        }
        _ => None,
    }
}

/// Every output is a column of the input with its own name.
fn keeps_columns(projection: &Projection) -> bool {
    projection.expr.iter().all(|expr| matches!(expr, Expr::Column(_)))
}

/// Whether all columns that `semi` takes from its left side are in `schema`.
fn has_all(semi: &Join, schema: &DFSchema) -> bool {
    let on = semi.on.iter().flat_map(|(left, _)| left.column_refs());
    let filter = semi.filter.iter().flat_map(|filter| filter.column_refs());
    let outside = |column: &&datafusion::common::Column| !semi.right.schema().has_column(column);
    !semi.on.is_empty() && on.chain(filter.filter(outside)).all(|column| schema.has_column(column))
}
