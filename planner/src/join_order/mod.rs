//! The order of inner joins: those that stay on the nodes first, if that is cheaper.
//!
//! ```text
//!   FROM customer, orders, lineitem, nation          ((customer x orders) x lineitem) x nation       as written
//!     one join graph, its relations as leaves   ->   (orders x lineitem) x (customer x nation)       both pairs local
//! ```
//!
//! DataFusion joins in the order of FROM. Every maximal tree of inner joins of the optimised plan is taken apart (`graph.rs`)
//! and orders are costed (`cost.rs`): the written one, two greedy ones, and all others as far as they may be cheaper
//! (`dynamic.rs`). The cheapest is built; a tie keeps the written one, so that whoever knows better can still write it.
//! `SET tessera.join_order = off` keeps it always.
//!
//! Before that, semi and anti joins above such a tree go to the relation they filter, if both are local (`semi.rs`).
//!
//! Not here: which side is built and whether sides are exchanged; DataFusion's physical rules choose that.

mod cost;
mod dynamic;
mod graph;
mod semi;
mod skew;

use crate::cluster::Cluster;
use crate::estimate::statistics;
use crate::shard_local::rule;
use cost::{Costs, Tree};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, Result as DfResult};
use datafusion::execution::SessionState;
use datafusion::logical_expr::{Expr, LogicalPlan, Projection};
use datafusion::optimizer::optimize_projections::OptimizeProjections;
use datafusion::optimizer::{Optimizer, OptimizerRule};
use graph::Graph;
use std::sync::Arc;

/// Fewest relations worth ordering, and the most that we order: the greedy search is cubic.
const RELATIONS: std::ops::RangeInclusive<usize> = 3..=24;

/// `plan` with its inner joins in the cheapest order that was found. Whatever fails on the way leaves them as written.
pub async fn reorder(plan: LogicalPlan, state: &SessionState, bare: &SessionState, cluster: &Cluster) -> LogicalPlan {
    let plan = match semi::move_down(plan.clone(), cluster) {
        Ok(moved) => moved,
        Err(error) => {
            tracing::debug!(%error, "semi joins stay where they are");
            plan
        }
    };
    let mut trees = vec![];
    collect(&plan, &mut trees);
    let mut replaced = vec![];
    for (tree, shrinks) in trees {
        if let Some(new) = cheaper(tree, shrinks, bare, cluster).await {
            replaced.push((tree.clone(), new));
        }
    }
    if replaced.is_empty() {
        return plan;
    }
    match rebuild(plan.clone(), &replaced, state) {
        Ok(reordered) => reordered,
        Err(error) => {
            tracing::debug!(%error, "joins stay in the written order");
            plan
        }
    }
}

/// Roots of all maximal inner-join trees, outermost first, each with whether an aggregate above shrinks its rows before they
/// leave the nodes.
fn collect<'a>(plan: &'a LogicalPlan, found: &mut Vec<(&'a LogicalPlan, bool)>) {
    let mut open = vec![(plan, false)];
    while let Some((node, shrinks)) = open.pop() {
        match Graph::of(node) {
            Some(graph) => {
                if RELATIONS.contains(&graph.relations.len()) {
                    found.push((node, shrinks));
                }
                open.extend(graph.relations.into_iter().map(|relation| (relation, false)));
            }
            None => {
                let passes = matches!(node, LogicalPlan::Projection(_) | LogicalPlan::Filter(_));
                let shrinks = matches!(node, LogicalPlan::Aggregate(_)) || (passes && shrinks);
                open.extend(node.inputs().into_iter().map(|input| (input, shrinks)));
            }
        }
    }
}

/// The tree in a cheaper order, with the same columns; `None` to leave it.
async fn cheaper(root: &LogicalPlan, shrinks: bool, bare: &SessionState, cluster: &Cluster) -> Option<LogicalPlan> {
    let graph = Graph::of(root)?;
    let mut relations = vec![];
    for relation in &graph.relations {
        let plan = graph.filtered(relation).ok()?;
        let known = statistics(&plan, bare).await;
        let locality = rule::locality(&plan, cluster);
        relations.push(cost::Relation {
            plan,
            statistics: known,
            locality,
        });
    }
    let costs = Costs::new(&graph, relations, cluster, shrinks);
    let written = costs.of(&graph.tree)?;
    let candidates = [costs.greedy(Costs::local_first)?, costs.greedy(Costs::cheapest_first)?];
    let best = candidates.into_iter().min_by(|a, b| a.cost.total_cmp(&b.cost))?;
    let best = dynamic::search(&costs, best.cost.min(written.cost)).unwrap_or(best);
    // Estimates are rough: a small gain is none.
    if best.cost > written.cost * 0.9 || best.tree == graph.tree {
        return None;
    }
    restore_columns(best.plan, root).ok()
}

/// Columns in the order that the parent expects.
fn restore_columns(plan: LogicalPlan, like: &LogicalPlan) -> DfResult<LogicalPlan> {
    let columns: Vec<Column> = like.schema().columns();
    if plan.schema().columns() == columns {
        return Ok(plan);
    }
    let exprs: Vec<Expr> = columns.into_iter().map(Expr::Column).collect();
    Ok(LogicalPlan::Projection(Projection::try_new(exprs, Arc::new(plan))?))
}

/// Puts the new trees in place and drops the columns that are not needed any more on their new way.
fn rebuild(plan: LogicalPlan, replaced: &[(LogicalPlan, LogicalPlan)], state: &SessionState) -> DfResult<LogicalPlan> {
    let swapped = plan.transform_down(|node| {
        // Trees inside a replaced one are found in its relations, which were moved as they are.
        match replaced.iter().find(|(old, _)| *old == node) {
            Some((_, new)) => Ok(Transformed::yes(new.clone())),
            None => Ok(Transformed::no(node)),
        }
    })?;
    let rules: Vec<Arc<dyn OptimizerRule + Send + Sync>> = vec![Arc::new(OptimizeProjections::new())];
    Optimizer::with_rules(rules).optimize(swapped.data, state, |_, _| {})
}

impl Tree {
    /// Relation numbers from left to right.
    pub fn relations(&self) -> Vec<usize> {
        match self {
            Tree::Relation(number) => vec![*number],
            Tree::Join(left, right) => [left.relations(), right.relations()].concat(),
        }
    }
}
