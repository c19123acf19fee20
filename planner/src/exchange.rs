//! Cuts a physical plan into stages that exchange rows between nodes (datafusion-distributed), where that beats gathering.
//!
//! ```text
//!   Sort                                         router
//!     Aggregate final         ──distribute──▶      stage 2: one task a node     rows by hash of the group
//!       Repartition hash                             stage 1: one task a node   its leaf reads that node's shards
//!         Aggregate partial
//!           ShardLocal (3 nodes)
//! ```
//!
//! Task `i` of every stage runs on the `i`th node that owns a part of any leaf, so leaves read at home. A leaf of one owner
//! in such a stage gives its rows to that owner's task and none to the others. Whether a plan can travel is found out
//! here, by encoding it; one that cannot is gathered, and EXPLAIN says why.
//!
//! Not here: workers and their channels (`tessera_proto::exchange`), the choice between gathering and exchanging
//! (`crate::plan`).

use crate::PlanOptions;
use async_trait::async_trait;
use datafusion::catalog::Session;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, Result, internal_err};
use datafusion::execution::context::QueryPlanner;
use datafusion::execution::{SessionState, SessionStateBuilder, TaskContext};
use datafusion::logical_expr::{EmptyRelation, LogicalPlan};
use datafusion::physical_expr::ScalarFunctionExpr;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::joins::{CrossJoinExec, HashJoinExec, NestedLoopJoinExec, PartitionMode};
use datafusion::physical_plan::recursive_query::RecursiveQueryExec;
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use datafusion::physical_plan::{Distribution, ExecutionPlan, ExecutionPlanProperties, PhysicalExpr};
use datafusion::prelude::SessionConfig;
use datafusion_distributed::{
    DesiredTaskCountEvent, DesiredTaskCountEventResponse, DistributedExec, DistributedExt, DistributedLeafExec,
    MaybeEncoded, NetworkBoundaryExt, RouteTasksEvent, RouteTasksEventResponse, ScaleUpLeafNodeEvent,
    ScaleUpLeafNodeEventResponse, SessionStateBuilderExt, WorkerResolver,
};
use std::sync::Arc;
use tessera_proto::exchange::{STREAM_BYTES, StageSettings, TASK_PLAN_BYTES_MAX, configure, worker_url};
use tessera_proto::fragment::{LeafRuntime, ShardLocalExec};
use tessera_proto::functions::ROUTER_PREFIX;
use tessera_proto::order;
use tessera_proto::{Error, NodeId};
use url::Url;

/// Levels of operators, or of expressions, above which a plan is not even tried.
const DEPTH_MAX: usize = 45;

/// A plan in stages, and what it must be run with.
#[derive(Debug)]
pub(crate) struct Exchanged {
    pub physical: Arc<dyn ExecutionPlan>,
    pub task: Arc<TaskContext>,
}

/// What came of an attempt to distribute a plan.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Stages.
    Exchanged(Exchanged),
    /// Nothing in it needs an exchange, or it cannot travel: why.
    Gather(String),
}

/// `plan` in stages over `nodes`.
///
/// # Errors
/// The stage planner's own; none is expected.
pub(crate) async fn distribute(
    plan: Arc<dyn ExecutionPlan>,
    state: &SessionState,
    nodes: Vec<NodeId>,
    options: &PlanOptions,
) -> Result<Outcome> {
    if nodes.len() < 2 {
        return Ok(Outcome::Gather("one node owns all of it".into()));
    }
    if is_too_deep(&plan) {
        return Ok(Outcome::Gather("it is nested too deeply".into()));
    }
    if plan.exists(|node| Ok(node.is::<RecursiveQueryExec>()))? {
        return Ok(Outcome::Gather(
            "a recursive query reads its inputs again, an exchange is read once".into(),
        ));
    }
    if let Some(function) = router_function(&plan)? {
        let what = function.trim_start_matches(ROUTER_PREFIX);
        return Ok(Outcome::Gather(format!(
            "it cannot travel: {what} is for the router alone"
        )));
    }
    let session = session(plan, state, nodes, options)?;
    // The planner wraps ours, which has the plan already: what is asked for is ignored.
    let nothing = LogicalPlan::EmptyRelation(EmptyRelation {
        produce_one_row: false,
        schema: Arc::new(DFSchema::empty()),
    });
    let physical = session.query_planner().create_physical_plan(&nothing, &session).await?;
    if !physical.is::<DistributedExec>() {
        return Ok(Outcome::Gather("nothing in it needs an exchange".into()));
    }
    // The router's own stage; workers see to theirs.
    let physical = order::ensure_windows(physical)?;
    let task = session.task_ctx();
    if let Err(error) = check_stages(&physical, &task) {
        let why = Error::from(error).message;
        tracing::debug!(why, "a plan that cannot travel is gathered");
        return Ok(Outcome::Gather(format!("it cannot travel: {why}")));
    }
    Ok(Outcome::Exchanged(Exchanged { physical, task }))
}

fn session(
    plan: Arc<dyn ExecutionPlan>,
    state: &SessionState,
    nodes: Vec<NodeId>,
    options: &PlanOptions,
) -> Result<SessionState> {
    let Some(leaves) = state.config().get_extension::<LeafRuntime>() else {
        return internal_err!("session has no LeafRuntime");
    };
    let mut settings = StageSettings::default();
    settings.time_zone = state.config_options().execution.time_zone.clone().unwrap_or_default();
    if options.profile {
        settings.profile = uuid::Uuid::from_bytes(options.query_id).simple().to_string();
    }
    let urls = nodes.iter().map(|node| worker_url(*node)).collect::<Result<Vec<_>>>()?;
    let config = configure(state.config().clone(), &leaves)?
        .with_extension(Arc::new(Nodes(nodes)))
        .with_distributed_option_extension(settings)
        .with_distributed_worker_resolver(Urls(urls))
        .with_distributed_desired_task_count_handler(task_count)
        .with_distributed_scale_up_leaf_node_handler(scale_up)
        .with_distributed_route_tasks_handler(route)
        // Collected counters gate the end of a query, which then may never come (datafusion-distributed #739).
        .with_distributed_metrics_collection(false)?
        .with_distributed_compression(None)?
        .with_distributed_worker_connection_buffer_budget_bytes(STREAM_BYTES)?;
    Ok(SessionStateBuilder::new()
        .with_config(config)
        .with_runtime_env(state.runtime_env().clone())
        .with_query_planner(Arc::new(Finished(plan)))
        .with_distributed_planner()
        .build())
}

/// "Plans" to the plan it was made with.
#[derive(Debug)]
struct Finished(Arc<dyn ExecutionPlan>);

#[async_trait]
impl QueryPlanner for Finished {
    async fn create_physical_plan(&self, _: &LogicalPlan, _: &dyn Session) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self.0.clone())
    }
}

/// Nodes that own a part of some leaf, ascending; task `i` of a stage with as many tasks runs on the `i`th.
#[derive(Debug)]
struct Nodes(Vec<NodeId>);

impl Nodes {
    fn of(config: &SessionConfig) -> Result<Arc<Self>> {
        let nodes = config.get_extension::<Self>();
        nodes.ok_or_else(|| Error::internal("session has no nodes to exchange between").into())
    }
}

/// The workers' addresses.
struct Urls(Vec<Url>);

impl WorkerResolver for Urls {
    fn get_urls(&self) -> Result<Vec<Url>> {
        Ok(self.0.clone())
    }
}

/// A leaf of several owners wants a task on every node, one of a single owner is content with one: another leaf of its
/// stage may want more. Some operators allow no more than one.
fn task_count(event: DesiredTaskCountEvent) -> Option<Result<DesiredTaskCountEventResponse>> {
    if wants_one_stream(event.plan) {
        return Some(Ok(DesiredTaskCountEventResponse::maximum(1)));
    }
    let leaf = event.plan.downcast_ref::<ShardLocalExec>()?;
    let nodes = match Nodes::of(event.session_config) {
        Ok(nodes) => nodes,
        Err(error) => return Some(Err(error)),
    };
    let tasks = if leaf.owners().len() > 1 { nodes.0.len() } else { 1 };
    Some(Ok(DesiredTaskCountEventResponse::desired(tasks)))
}

/// Whether `plan` is right only because a child has a single partition: it must see all rows, or all of a group, at once.
///
/// DataFusion puts nothing in between then, where it would merge or repartition several, so nothing there cuts a stage;
/// in one of several tasks the child would have a partition in each. A leaf of one owner is such a child, and tasks come
/// from the other side of a join with it.
fn wants_one_stream(plan: &Arc<dyn ExecutionPlan>) -> bool {
    let collects = match plan.downcast_ref::<HashJoinExec>() {
        Some(join) => *join.partition_mode() == PartitionMode::CollectLeft,
        None => plan.is::<NestedLoopJoinExec>() || plan.is::<CrossJoinExec>(),
    };
    let wants = plan.input_distribution_requirements().into_per_child();
    // The collected side is broadcast to all tasks.
    let others = plan.children().into_iter().zip(wants).skip(usize::from(collects));
    others.into_iter().any(|(child, wants)| {
        let alone = child.output_partitioning().partition_count() == 1;
        // These cut a stage themselves.
        let cuts = child.is::<CoalescePartitionsExec>() || child.is::<SortPreservingMergeExec>();
        alone && !cuts && !matches!(wants, Distribution::UnspecifiedDistribution)
    })
}

/// Gives each task the owners that live where it runs.
fn scale_up(event: ScaleUpLeafNodeEvent) -> Option<Result<ScaleUpLeafNodeEventResponse>> {
    let leaf = event.plan.downcast_ref::<ShardLocalExec>()?;
    if event.task_count <= 1 {
        // The whole leaf, wherever the task runs: it finds its owners.
        return Some(Ok(ScaleUpLeafNodeEventResponse::new(event.plan.clone())));
    }
    let scaled = Nodes::of(event.session_config).and_then(|nodes| {
        let mut parts = vec![vec![]; event.task_count];
        for owner in leaf.owners() {
            let Some(place) = nodes.0.iter().position(|node| *node == owner.node) else {
                return internal_err!("node {} owns a leaf but takes no part", owner.node);
            };
            parts[place % event.task_count].push(owner.clone());
        }
        let most = parts.iter().map(Vec::len).max().unwrap_or(1);
        let partitions = most.clamp(1, leaf.properties().partitioning.partition_count());
        let variants = parts
            .into_iter()
            .map(|owners| Arc::new(leaf.variant(owners, partitions)) as Arc<dyn ExecutionPlan>);
        DistributedLeafExec::try_new(event.plan.clone(), variants)
    });
    Some(scaled.map(|leaf| ScaleUpLeafNodeEventResponse::new(Arc::new(leaf))))
}

/// One task a node in their order, or a single task where its leaf lives; others as the library thinks best.
fn route(event: RouteTasksEvent) -> Option<Result<RouteTasksEventResponse>> {
    let nodes = match Nodes::of(event.task_ctx.session_config()) {
        Ok(nodes) => nodes,
        Err(error) => return Some(Err(error)),
    };
    let chosen = match event.task_count {
        tasks if tasks == nodes.0.len() => nodes.0.clone(),
        1 => vec![home(event.plan)?],
        _ => return None,
    };
    let urls = chosen.into_iter().map(worker_url).collect::<Result<Vec<_>>>();
    Some(urls.map(RouteTasksEventResponse::new))
}

/// The first owner of the first leaf of a stage.
fn home(stage: &Arc<dyn ExecutionPlan>) -> Option<NodeId> {
    let mut found = None;
    let walked = stage.apply(|node| {
        found = node
            .downcast_ref::<ShardLocalExec>()
            .and_then(|leaf| leaf.owners().first())
            .map(|owner| owner.node);
        Ok(match (found, node.is_network_boundary()) {
            (Some(_), _) => TreeNodeRecursion::Stop,
            (None, true) => TreeNodeRecursion::Jump,
            (None, false) => TreeNodeRecursion::Continue,
        })
    });
    walked.ok().and(found)
}

/// Whether encoding or cutting `plan` would recurse further than a thread's stack bears, and decoding further than any
/// decoder goes.
fn is_too_deep(plan: &Arc<dyn ExecutionPlan>) -> bool {
    let mut plans = vec![(plan, 1)];
    while let Some((node, depth)) = plans.pop() {
        let mut deep = depth > DEPTH_MAX;
        let walked = node.apply_expressions(&mut |expr| {
            deep |= is_expr_too_deep(expr);
            Ok(TreeNodeRecursion::Continue)
        });
        if deep || walked.is_err() {
            return true;
        }
        plans.extend(node.children().into_iter().map(|child| (child, depth + 1)));
    }
    false
}

/// A function in the plan that nodes do not have.
fn router_function(plan: &Arc<dyn ExecutionPlan>) -> Result<Option<String>> {
    let mut found = None;
    plan.apply(|node| {
        node.apply_expressions(&mut |expr| {
            expr.apply(|e| {
                let call = e
                    .downcast_ref::<ScalarFunctionExpr>()
                    .filter(|c| c.name().starts_with(ROUTER_PREFIX));
                found = found.take().or(call.map(|c| c.name().to_owned()));
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    Ok(found)
}

fn is_expr_too_deep(root: &Arc<dyn PhysicalExpr>) -> bool {
    let mut exprs = vec![(root, 1)];
    while let Some((expr, depth)) = exprs.pop() {
        if depth > DEPTH_MAX {
            return true;
        }
        exprs.extend(expr.children().into_iter().map(|child| (child, depth + 1)));
    }
    false
}

/// Encodes all stages below the router, as sending them will.
fn check_stages(plan: &Arc<dyn ExecutionPlan>, task: &Arc<TaskContext>) -> Result<()> {
    plan.apply(|node| {
        let Some(boundary) = node.as_network_boundary() else {
            return Ok(TreeNodeRecursion::Continue);
        };
        if let Some(stage) = boundary.input_stage().local_plan() {
            let bytes = MaybeEncoded::Decoded(first_task(stage.clone())?).encode(task)?;
            if bytes.len() > TASK_PLAN_BYTES_MAX {
                return Err(Error::new("54001", "its stages are too large").into());
            }
        }
        // The stages below it are inputs of its own, and were encoded with it.
        Ok(TreeNodeRecursion::Jump)
    })?;
    Ok(())
}

/// The stage as its first task gets it: of each leaf only that task's part.
fn first_task(stage: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let part = |node: Arc<dyn ExecutionPlan>| {
        let leaf = node.downcast_ref::<DistributedLeafExec>();
        let first = leaf.and_then(|leaf| leaf.variants().first()).cloned();
        Ok(first.map_or_else(|| Transformed::no(node.clone()), Transformed::yes))
    };
    Ok(stage.transform_down(part)?.data)
}
