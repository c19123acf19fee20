//! Keys of one side of a join sent to the other side's leaves before these are read.
//!
//! ```text
//!   Join l_partkey = p_partkey               1. keys of `part`: a leaf of its own   ──▶ key set
//!     ShardLocal: lineitem            ─▶     2. Join
//!     ShardLocal: part, p_type = 'x'              ShardLocal: lineitem, __in_keys(l_partkey, 0, 0.0067)   ◀── key set
//!                                                 ShardLocal: part, p_type = 'x'
//! ```
//!
//! A semi-join reduction: rows that no join partner can have do not leave their node, nor are they joined there. It is planned
//! before the plan is cut: `sketch.rs` knows the leaves to be, `candidates.rs` which of them may tell keys to which, `choice.rs`
//! what is worth it; a filter's name goes into the leaf and down to its scans, as any filter does. The keys are read when
//! the plan is run (`first.rs`), at its snapshot, from the same shards, with the transaction's own rows.
//!
//! `SET tessera.semi_join_filters = off` plans none, `on` all that are right. With leaves of single scans
//! (`tessera.shard_local = off`) there are none.
//!
//! Not here: key sets, and what nodes make of the names (`tessera_proto::key_filter`).
//!
//! Source: Bernstein, Chiu, "Using Semi-Joins to Solve Relational Queries", J. ACM 1981.

mod candidates;
mod choice;
mod first;
pub mod names;
mod sketch;
#[cfg(test)]
mod tests;

pub use first::{KeysFirstExec, Step};


use crate::cluster::Cluster;
use crate::leaf::{LeafBuilder, ShardLocalNode, TOO_DEEP, as_leaf};
use crate::shard_local::locality::Locality;
use crate::{PlanOptions, SemiJoinFilters, session};
use choice::Choice;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Result as DfResult, internal_err};
use datafusion::execution::SessionState;
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Aggregate, Expr, Filter, LogicalPlan};
use datafusion::optimizer::optimize_projections::OptimizeProjections;
use datafusion::optimizer::push_down_filter::PushDownFilter;
use datafusion::optimizer::{Optimizer, OptimizerRule};
use sketch::{Path, Sketch};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tessera_proto::key_filter::{KeySet, in_keys};
use tessera_proto::{Error, Result};

/// Keys that are to be read first.
#[derive(Debug)]
pub struct KeyQuery {
    /// The filter's number.
    pub number: u32,
    /// One column: the keys, perhaps more than once.
    pub plan: LogicalPlan,
    /// Where it runs.
    pub locality: Locality,
    /// How many keys are expected.
    pub keys: Option<usize>,
    /// After the keys of all earlier waves.
    pub wave: usize,
}

/// A leaf that gives keys, planned.
#[derive(Debug)]
pub struct First {
    pub leaf: ShardLocalNode,
    pub step: Step,
    /// How many keys are expected.
    pub keys: Option<usize>,
}

/// Plans those of `queries` that some leaf waits for. One that cannot be sent tells nothing: its filter keeps every row.
///
/// # Errors
/// A shard without a leader, as for any leaf.
pub async fn first(queries: Vec<KeyQuery>, leaves: &mut LeafBuilder<'_>, state: &SessionState) -> Result<Vec<First>> {
    // From the last: it may be the only one that waits for an earlier one's.
    let mut wanted = leaves.filters();
    for query in queries.iter().rev() {
        if wanted.contains(&query.number) {
            wanted.extend(names::filters(&query.plan).into_keys());
        }
    }
    let mut first = vec![];
    for query in queries.into_iter().filter(|q| wanted.contains(&q.number)) {
        let cell = leaves.cell(query.number);
        let built = match leaves.build(query.plan, &query.locality) {
            Err(error) if error.code == TOO_DEEP => {
                cell.fill(&KeySet::any(), 0, Duration::ZERO)?;
                continue;
            }
            built => built?,
        };
        let plan = state.query_planner().create_physical_plan(&built, state).await?;
        let LogicalPlan::Extension(extension) = &built else {
            return Err(Error::internal("a leaf is no extension"));
        };
        let leaf = as_leaf(extension.node.as_ref()).ok_or_else(|| Error::internal("a leaf is another node"))?;
        first.push(First {
            leaf: leaf.clone(),
            step: Step {
                plan,
                cell,
                wave: query.wave,
            },
            keys: query.keys,
        });
    }
    Ok(first)
}

/// `plan` with key filters, and the queries for their keys, each after those that it is filtered by. Whatever fails on
/// the way leaves the plan without.
pub async fn add(
    plan: LogicalPlan,
    state: &SessionState,
    cluster: &Cluster,
    options: &PlanOptions,
) -> (LogicalPlan, Vec<KeyQuery>) {
    let Some(bare) = state.config().get_extension::<session::Bare>() else {
        return (plan, vec![]);
    };
    if options.semi_join_filters == SemiJoinFilters::Off || !options.shard_local {
        return (plan, vec![]);
    }
    let sketch = Sketch::of(&plan, cluster);
    let candidates = candidates::candidates(&sketch);
    if candidates.is_empty() {
        return (plan, vec![]);
    }
    let choices = choice::choose(&sketch, candidates, options.semi_join_filters, &bare.0, cluster).await;
    if choices.is_empty() {
        return (plan, vec![]);
    }
    match insert(&plan, &sketch, &choices, state) {
        Ok(filtered) => filtered,
        Err(error) => {
            tracing::debug!(%error, "a plan stays without key filters");
            (plan, vec![])
        }
    }
}

fn insert(
    plan: &LogicalPlan,
    sketch: &Sketch,
    choices: &[Choice],
    state: &SessionState,
) -> DfResult<(LogicalPlan, Vec<KeyQuery>)> {
    let mut conditions: Vec<Vec<Expr>> = vec![vec![]; sketch.units.len()];
    for (number, choice) in choices.iter().enumerate() {
        for (target, share) in &choice.targets {
            let unit = target.keys.place.unit;
            let key = target.keys.expr(sketch.units[unit].plan.schema());
            let condition = in_keys(key.clone(), number as u32, *share);
            conditions[unit].push(match target.keeps_nulls {
                true => condition.or(key.is_null()),
                false => condition,
            });
        }
    }
    let (mut units, mut by_path) = (vec![], HashMap::new());
    for (unit, conditions) in sketch.units.iter().zip(conditions) {
        let filtered = match conjunction(conditions) {
            Some(condition) => {
                let filtered = filtered(unit.plan, condition, state)?;
                by_path.insert(unit.path.clone(), filtered.clone());
                filtered
            }
            None => unit.plan.clone(),
        };
        units.push(filtered);
    }
    let mut queries = vec![];
    for (number, choice) in choices.iter().enumerate() {
        let unit = choice.source.place.unit;
        let key = choice.source.expr(units[unit].schema());
        let distinct = Aggregate::try_new(Arc::new(units[unit].clone()), vec![key], vec![])?;
        queries.push(KeyQuery {
            number: number as u32,
            plan: optimized(LogicalPlan::Aggregate(distinct), state)?,
            locality: sketch.units[unit].locality.clone(),
            keys: choice.keys,
            wave: choice.wave,
        });
    }
    Ok((replaced(plan.clone(), &mut vec![], &by_path)?, queries))
}

/// A leaf's subtree with a condition on its rows, as far down as it goes.
fn filtered(plan: &LogicalPlan, condition: Expr, state: &SessionState) -> DfResult<LogicalPlan> {
    let filter = Filter::try_new(condition, Arc::new(plan.clone()))?;
    let down: Vec<Arc<dyn OptimizerRule + Send + Sync>> = vec![Arc::new(PushDownFilter::new())];
    let filtered = Optimizer::with_rules(down).optimize(LogicalPlan::Filter(filter), state, |_, _| {})?;
    if filtered.schema() != plan.schema() {
        return internal_err!("a filter changed the columns of a subtree");
    }
    Ok(filtered)
}

/// Without the columns that nobody wants any more.
fn optimized(plan: LogicalPlan, state: &SessionState) -> DfResult<LogicalPlan> {
    let rules: Vec<Arc<dyn OptimizerRule + Send + Sync>> = vec![Arc::new(OptimizeProjections::new())];
    Optimizer::with_rules(rules).optimize(plan, state, |_, _| {})
}

/// The plan with other subtrees at some paths.
fn replaced(plan: LogicalPlan, path: &mut Path, new: &HashMap<Path, LogicalPlan>) -> DfResult<LogicalPlan> {
    if let Some(new) = new.get(path) {
        return Ok(new.clone());
    }
    if !new.keys().any(|other| other.starts_with(path)) {
        return Ok(plan);
    }
    let mut number = 0;
    let changed = plan.map_children(|child| {
        path.push(number);
        number += 1;
        let child = replaced(child, path, new);
        path.pop();
        child.map(Transformed::yes)
    })?;
    Ok(changed.data)
}
