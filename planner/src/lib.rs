//! From a parsed query and a catalog snapshot to a physical plan whose leaves run on the shard nodes.
//!
//! ```text
//!   sqlparser Query ──bind──> LogicalPlan over stub tables ──optimise──> ──partial aggregates, limits──>
//!       ──shard-local rule──> maximal local subtrees become ShardLocal leaves ──physical──> Planned
//! ```
//!
//! No I/O, no clock: everything comes from [`Catalog`] and [`PlanOptions`]. What executes the leaves is a
//! [`tessera_proto::fragment::LeafRuntime`] in the session's configuration.

mod arrays;
pub mod bind;
pub mod catalog;
pub mod cluster;
mod constants;
pub mod error;
mod estimate;
mod exchange;
pub mod explain;
mod group_keys;
pub mod growth;
pub mod join_order;
mod json;
pub mod leaf;
pub mod names;
pub mod operators;
pub mod prune;
mod rewrite;
pub mod series;
pub mod session;
mod sets;
pub mod shard_local;
mod spelling;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod ties;
pub mod types;
mod unique;
mod unnest;
mod using;
mod whole_rows;
mod window_limits;
mod within_group;

pub use bind::parameter_types;
pub use catalog::{Catalog, ReferenceCopy, Relation};
pub use rewrite::ORDERED_AGGREGATES;
pub use session::{session_state, template, template_builder};

use cluster::Cluster;
use datafusion::arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::execution::{SessionState, TaskContext};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::statistics::{StatisticsArgs, StatisticsContext};
use error::bind_error;
use exchange::Outcome;
use leaf::LeafBuilder;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tessera_proto::fragment::ShardLocalExec;
use tessera_proto::{NodeId, Result, ShardId, Timestamp};

/// Above so many bytes gathered to the router, exchanging rows between nodes is cheaper (measured on loopback gRPC:
/// a stage costs 2 ms, a gathered megabyte 0.6 to 0.9 ms; two stages pay for themselves near here).
const GATHER_BYTES_MAX: usize = 5 << 20;

/// What a statement's plan depends on besides the catalog.
#[derive(Debug, Clone)]
pub struct PlanOptions {
    /// Snapshot that every leaf reads.
    pub snapshot: Timestamp,
    /// 16 bytes; names the query on the nodes.
    pub query_id: [u8; 16],
    /// Time left for the statement; every leaf carries it.
    pub deadline_ms: u64,
    /// Nodes and sessions keep what the query does, for EXPLAIN ANALYZE.
    pub profile: bool,
    /// `tessera.shard_local`: off makes every leaf a single table scan.
    pub shard_local: bool,
    /// `tessera.join_order`.
    pub join_order: bool,
    /// `tessera.hash_join`: off plans for little memory: joins whose inputs may spill, one partition above the leaves.
    pub hash_join: bool,
    /// `tessera.batch_rows`: rows of a batch in those plans.
    pub batch_rows: usize,
    /// `tessera.distributed`.
    pub distributed: DistributedMode,
    /// Session settings that change results; sent to the nodes. `timezone`, `tessera.hash_join` and `tessera.batch_rows` are
    /// understood.
    pub settings: BTreeMap<String, String>,
    /// Output partitions of leaves and of everything above them; at least 2.
    pub target_partitions: usize,
    /// What the transaction wrote that reads.
    pub own: Option<OwnWrites>,
}

/// What an open transaction wrote: leaves that read these shards see it.
#[derive(Debug, Clone)]
pub struct OwnWrites {
    /// The transaction, 16 bytes.
    pub txn: Vec<u8>,
    /// Shards that have rows of it.
    pub shards: BTreeSet<ShardId>,
}

/// `tessera.distributed`: whether exchanges run between nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DistributedMode {
    /// By the estimated size of the leaves' output.
    #[default]
    Auto,
    /// Leaves are gathered to the router.
    Off,
    /// Exchanges between nodes wherever there is anything to exchange.
    On,
}

/// How a plan runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// No stored table is read.
    Router,
    /// One node runs all of it; its rows are streamed through.
    SingleNode,
    /// Leaves run on several nodes, the rest on the router.
    Gather,
    /// Worth exchanging rows between nodes; only with [`DistributedMode::On`] or [`DistributedMode::Auto`].
    Exchange,
}

impl Strategy {
    /// As EXPLAIN shows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Router => "router",
            Self::SingleNode => "single node",
            Self::Gather => "gather",
            Self::Exchange => "exchange",
        }
    }
}

/// One leaf of a plan.
#[derive(Debug, Clone)]
pub struct FragmentInfo {
    /// Nodes that run it.
    pub nodes: Vec<NodeId>,
    /// Shards it reads; 0 for reference tables only.
    pub shards: usize,
    /// Shards of the group.
    pub shards_total: usize,
    /// The subplan, indented.
    pub plan: String,
    /// Rows that it is believed to stream in all; known only with [`PlanOptions::profile`].
    pub rows: Option<usize>,
}

/// A query ready to run.
#[derive(Debug, Clone)]
pub struct Planned {
    /// Executable with `task`.
    pub physical: Arc<dyn ExecutionPlan>,
    /// What it is executed with; leaves find the [`LeafRuntime`] in it.
    pub task: Arc<TaskContext>,
    /// Columns of the result, with DataFusion's names; [`names::result_schema`] gives those the client sees.
    pub schema: SchemaRef,
    /// How it runs.
    pub strategy: Strategy,
    /// Its leaves, in plan order.
    pub fragments: Vec<FragmentInfo>,
    /// Estimated bytes that the leaves stream to the router together, without those that nobody knows anything of; `None` when
    /// nobody does of any.
    pub gather_bytes: Option<usize>,
    /// What EXPLAIN prints, line by line.
    pub explain: Vec<String>,
}

impl Planned {
    /// Nodes that run some leaf, ascending.
    pub fn nodes(&self) -> Vec<NodeId> {
        let nodes: BTreeSet<NodeId> = self.fragments.iter().flat_map(|f| f.nodes.iter().copied()).collect();
        nodes.into_iter().collect()
    }
}

/// Names and types resolved. `parameters[i]` is the declared type of `$i+1`, where the client declared one; the plan may
/// hold placeholders, whose types [`parameter_types`] tells and `LogicalPlan::with_param_values` fills.
///
/// # Errors
/// 42P01, 42703, 42883, 42804, 42601 and the like, with a hint.
pub async fn bind(
    state: &SessionState,
    query: &sqlparser::ast::Query,
    catalog: &dyn Catalog,
    parameters: &[Option<DataType>],
) -> Result<LogicalPlan> {
    bind::bind_query(state, query, catalog, parameters, 0)
}

/// The bound plan with types coerced: its schema is exactly that of the rows. For describing a statement; [`plan()`] does
/// this by itself.
///
/// # Errors
/// 42804, 42883: types that do not go together.
pub fn analyze(state: &SessionState, plan: LogicalPlan) -> Result<LogicalPlan> {
    let analyze = |plan| {
        state
            .analyzer()
            .execute_and_check(plan, state.config_options(), |_, _| {})
    };
    if !unnest::is_nested(&plan) {
        return analyze(plan).map_err(bind_error);
    }
    // DataFusion checks subqueries by what its own rules can do.
    analyze(plan.clone())
        .or_else(|_| analyze(unnest::rewrite(plan)?))
        .map_err(bind_error)
}

/// DataFusion's own rules for subqueries come first; what they leave is unnested before a second run.
fn optimize(state: &SessionState, plan: &LogicalPlan) -> Result<LogicalPlan> {
    if !unnest::is_nested(plan) {
        return state.optimize(plan).map_err(bind_error);
    }
    if unnest::is_theirs(plan) {
        let guarded = unnest::guard(plan.clone()).map_err(bind_error)?;
        if let Ok(optimized) = state.optimize(&guarded)
            && !unnest::is_nested(&optimized)
        {
            return Ok(optimized);
        }
    }
    let flat = unnest::rewrite(plan.clone()).map_err(bind_error)?;
    state.optimize(&flat).map_err(bind_error)
}

/// Optimised, cut into leaves and planned. `plan` must have no placeholders left.
///
/// # Errors
/// What optimising finds (types, constant expressions that fail, 0A000), 54001 for expressions that would grow too large, or 08006 when a shard it reads has no leader.
pub async fn plan(
    state: &SessionState,
    plan: LogicalPlan,
    catalog: &dyn Catalog,
    options: &PlanOptions,
) -> Result<Planned> {
    growth::check(&plan)?;
    let optimized = optimize(state, &plan)?;
    let cluster = Cluster::of_plan(&optimized, catalog)?;
    let bare = state.config().get_extension::<session::Bare>();
    let optimized = match &bare {
        Some(bare) if options.join_order && options.shard_local => {
            join_order::reorder(optimized, state, &bare.0, &cluster).await
        }
        _ => optimized,
    };
    let optimized = window_limits::split(optimized)?;
    let cut = {
        let mut leaves = LeafBuilder::new(&cluster, catalog, options);
        shard_local::rule::cut(optimized, &cluster, &mut leaves, options.shard_local)?
    };
    let physical = state
        .query_planner()
        .create_physical_plan(&cut, state)
        .await
        .map_err(bind_error)?;
    let gather_bytes = gather_bytes(&physical);
    let mut planned = Planned {
        schema: physical.schema(),
        physical,
        task: state.task_ctx(),
        strategy: strategy(&cut, gather_bytes, mode(options)),
        fragments: explain::leaves(&cut).into_iter().map(explain::fragment).collect(),
        gather_bytes,
        explain: vec![],
    };
    if options.profile {
        match (explain::leaves(&cut).as_slice(), planned.fragments.as_mut_slice(), bare) {
            // Nothing is planned above it, so nobody has asked yet.
            ([leaf], [fragment], Some(bare)) if matches!(cut, LogicalPlan::Extension(_)) => {
                let known = estimate::statistics(&leaf.plan, &bare.0).await;
                fragment.rows = known.num_rows.get_value().copied();
            }
            (_, fragments, _) => estimate_leaves(&planned.physical, fragments)?,
        }
    }
    let mut notes = vec![];
    if planned.strategy == Strategy::Exchange {
        let outcome = exchange::distribute(planned.physical.clone(), state, planned.nodes(), options).await?;
        match outcome {
            Outcome::Exchanged(exchanged) => {
                notes = explain::stages(&exchanged.physical);
                (planned.physical, planned.task) = (exchanged.physical, exchanged.task);
            }
            Outcome::Gather(why) => {
                planned.strategy = Strategy::Gather;
                notes = vec![format!("Gathered: {why}")];
            }
        }
    }
    planned.explain = explain::lines(planned.strategy, planned.nodes().len(), &cut);
    planned.explain.extend(notes);
    Ok(planned)
}

/// A query that has little memory exchanges nothing: what spills above the leaves does so in one place.
fn mode(options: &PlanOptions) -> DistributedMode {
    match options.hash_join {
        true => options.distributed,
        false => DistributedMode::Off,
    }
}

fn strategy(cut: &LogicalPlan, gather_bytes: Option<usize>, mode: DistributedMode) -> Strategy {
    let leaves = explain::leaves(cut);
    let whole = matches!(cut, LogicalPlan::Extension(_));
    match leaves.as_slice() {
        [] => Strategy::Router,
        [leaf] if whole && leaf.owners.len() == 1 => Strategy::SingleNode,
        // Nothing above the leaf: nothing to exchange.
        [_] if whole => Strategy::Gather,
        _ => match mode {
            DistributedMode::Off => Strategy::Gather,
            DistributedMode::On => Strategy::Exchange,
            DistributedMode::Auto if gather_bytes.is_some_and(|b| b > GATHER_BYTES_MAX) => Strategy::Exchange,
            DistributedMode::Auto => Strategy::Gather,
        },
    }
}

/// Gives each fragment the estimated rows of its leaf.
fn estimate_leaves(physical: &Arc<dyn ExecutionPlan>, fragments: &mut [FragmentInfo]) -> Result<()> {
    physical.apply(|node| {
        if let Some(leaf) = node.downcast_ref::<ShardLocalExec>()
            && let Some(owner) = leaf.owners().first()
            && let Some(number) = owner.request.profile.checked_sub(1)
            && let Some(fragment) = fragments.get_mut(number as usize)
        {
            let statistics = StatisticsContext::new().compute(node.as_ref(), &StatisticsArgs::new())?;
            fragment.rows = statistics.num_rows.get_value().copied();
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(())
}

/// Estimated bytes of the leaves' output, of those that have an estimate: it may be more. `None` if none has.
fn gather_bytes(physical: &Arc<dyn ExecutionPlan>) -> Option<usize> {
    let mut leaves = vec![];
    let walked = physical.apply(|node| {
        if node.is::<ShardLocalExec>() {
            let statistics = StatisticsContext::new().compute(node.as_ref(), &StatisticsArgs::new())?;
            leaves.push(statistics.total_byte_size.get_value().copied());
        }
        Ok(TreeNodeRecursion::Continue)
    });
    walked.ok().and_then(|_| sum_of_known(leaves))
}

fn sum_of_known(sizes: impl IntoIterator<Item = Option<usize>>) -> Option<usize> {
    sizes.into_iter().flatten().reduce(usize::saturating_add)
}
