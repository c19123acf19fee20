//! From a parsed query and a catalog snapshot to a physical plan whose leaves run on the shard nodes.
//!
//! ```text
//!   sqlparser Query ──bind──> LogicalPlan over stub tables ──optimise──> ──partial aggregates, limits──>
//!       ──shard-local rule──> maximal local subtrees become ShardLocal leaves ──physical──> Planned
//! ```
//!
//! No I/O, no clock: everything comes from [`Catalog`] and [`PlanOptions`]. What executes the leaves is a
//! [`tessera_proto::fragment::LeafRuntime`] in the session's configuration.

pub mod catalog;

pub use catalog::{Catalog, ReferenceCopy, Relation};

use datafusion::arrow::datatypes::{DataType, SchemaRef};
use datafusion::execution::SessionState;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::ExecutionPlan;
use std::collections::BTreeMap;
use std::sync::Arc;
use tessera_proto::fragment::LeafRuntime;
use tessera_proto::{NodeId, Result, Timestamp};

/// What a statement's plan depends on besides the catalog.
#[derive(Debug, Clone)]
pub struct PlanOptions {
    /// Snapshot that every leaf reads.
    pub snapshot: Timestamp,
    /// 16 bytes; names the query on the nodes.
    pub query_id: [u8; 16],
    /// Time left for the statement; every leaf carries it.
    pub deadline_ms: u64,
    /// `tessera.shard_local`: off makes every leaf a single table scan.
    pub shard_local: bool,
    /// `tessera.join_order`.
    pub join_order: bool,
    /// `tessera.distributed`.
    pub distributed: DistributedMode,
    /// Session settings that change results; sent to the nodes. `timezone` is understood.
    pub settings: BTreeMap<String, String>,
    /// Output partitions of leaves and of everything above them; at least 2.
    pub target_partitions: usize,
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
    /// Worth exchanging rows between nodes.
    Exchange,
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
}

/// A query ready to run.
#[derive(Debug, Clone)]
pub struct Planned {
    /// Executable with a session that has a [`LeafRuntime`].
    pub physical: Arc<dyn ExecutionPlan>,
    /// Columns of the result, named as the client sees them.
    pub schema: SchemaRef,
    /// How it runs.
    pub strategy: Strategy,
    /// Its leaves, in plan order.
    pub fragments: Vec<FragmentInfo>,
    /// What EXPLAIN prints, line by line.
    pub explain: Vec<String>,
}

/// The session that all sessions of a process are cloned from; costs about a millisecond, make one.
pub fn template(runtime: Arc<RuntimeEnv>, leaves: Arc<LeafRuntime>) -> SessionState {
    let _ = (runtime, leaves);
    unimplemented!()
}

/// The session of one statement: cheap.
pub fn session_state(template: &SessionState, options: &PlanOptions) -> SessionState {
    let _ = (template, options);
    unimplemented!()
}

/// Names and types resolved. `parameters[i]` is the declared type of `$i+1`, where the client declared one; the plan may
/// hold placeholders, whose types `LogicalPlan::get_parameter_types` tells and `LogicalPlan::with_param_values` fills.
///
/// # Errors
/// 42P01, 42703, 42883, 42804, 42601 and the like, with a hint.
pub async fn bind(state: &SessionState, query: &sqlparser::ast::Query, catalog: &dyn Catalog, parameters: &[Option<DataType>]) -> Result<LogicalPlan> {
    let _ = (state, query, catalog, parameters);
    unimplemented!()
}

/// Optimised, cut into leaves and planned. `plan` must have no placeholders left.
///
/// # Errors
/// What optimising finds (types, constant expressions that fail, 0A000), or 55000 when a table's shards have no leader.
pub async fn plan(state: &SessionState, plan: LogicalPlan, catalog: &dyn Catalog, options: &PlanOptions) -> Result<Planned> {
    let _ = (state, plan, catalog, options);
    unimplemented!()
}
