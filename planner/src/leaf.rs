//! A local subtree as one logical operator, and its way to a physical one.
//!
//! ```text
//!   Aggregate                         ShardLocalNode { plan: Aggregate.., owners: [node 1: shards 0,3; node 2: shards 1,4] }
//!     Join            ──build──>        (no inputs: nothing rewrites the subplan again)
//!       orders  lineitem                        └─LeafPlanner─> ShardLocalExec with the statistics of the subplan
//! ```
//!
//! Every owner gets the same plan bytes and its own shards. Statistics: `estimate`.

use crate::PlanOptions;
use crate::catalog::Catalog;
use crate::cluster::Cluster;
use crate::estimate::statistics;
use crate::shard_local::locality::{Locality, Reads};
use async_trait::async_trait;
use datafusion::catalog::Session;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchemaRef, Result as DfResult, Statistics, internal_err};
use datafusion::execution::SessionState;
use datafusion::execution::context::QueryPlanner;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{Expr, Extension, LogicalPlan, UserDefinedLogicalNode, UserDefinedLogicalNodeCore};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_planner::{DefaultPhysicalPlanner, ExtensionPlanner, PhysicalPlanner};
use datafusion_proto::bytes::logical_plan_to_bytes_with_extension_codec;
use datafusion_proto::protobuf::LogicalPlanNode;
use prost::Message;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use tessera_proto::fragment::{LeafOwner, LeafPlanCodec, ShardLocalExec, leaf_schema};
use tessera_proto::v1::{ExecuteRequest, ReferenceRead, ShardRef};
use tessera_proto::{Error, GroupId, NodeId, Result};

/// SQLSTATE of a plan that nodes could not decode.
pub const TOO_DEEP: &str = "54001";

/// Levels of operators, or of expressions, above which encoding is not even tried.
const DEPTH_MAX: usize = 50;

/// One leaf of a logical plan.
#[derive(Debug, Clone)]
pub struct ShardLocalNode {
    /// Number within the plan, in the order in which leaves were cut.
    pub id: usize,
    /// What the owners run.
    pub plan: Arc<LogicalPlan>,
    /// Who runs it.
    pub owners: Vec<LeafOwner>,
    /// Shards of its groups before pruning.
    pub shards_total: usize,
}

impl ShardLocalNode {
    /// Shards read.
    pub fn shards(&self) -> usize {
        self.owners.iter().map(|owner| owner.request.shards.len()).sum()
    }

    /// `nodes=3 shards=16/16`, or `node=1 reference` where no sharded table is read.
    pub fn summary(&self) -> String {
        match (self.shards_total, self.owners.as_slice()) {
            (0, [owner]) => format!("node={} reference", owner.node),
            (total, owners) => format!("nodes={} shards={}/{total}", owners.len(), self.shards()),
        }
    }
}

// The optimiser never sees two leaves as alternatives, so the number stands for all of it.
impl PartialEq for ShardLocalNode {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}
impl Eq for ShardLocalNode {}
impl Hash for ShardLocalNode {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.id.hash(state);
    }
}
impl PartialOrd for ShardLocalNode {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        self.id.partial_cmp(&other.id)
    }
}

impl UserDefinedLogicalNodeCore for ShardLocalNode {
    fn name(&self) -> &str {
        "ShardLocal"
    }
    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![]
    }
    fn schema(&self) -> &DFSchemaRef {
        self.plan.schema()
    }
    fn expressions(&self) -> Vec<Expr> {
        vec![]
    }
    fn fmt_for_explain(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "ShardLocal {}", self.summary())
    }
    fn with_exprs_and_inputs(&self, exprs: Vec<Expr>, inputs: Vec<LogicalPlan>) -> DfResult<Self> {
        if !exprs.is_empty() || !inputs.is_empty() {
            return internal_err!("a shard-local leaf has neither expressions nor inputs");
        }
        Ok(self.clone())
    }
}

/// The leaf behind an extension node.
pub fn as_leaf(node: &dyn UserDefinedLogicalNode) -> Option<&ShardLocalNode> {
    node.as_any().downcast_ref::<ShardLocalNode>()
}

/// Makes the leaves of one plan.
#[derive(Debug)]
pub struct LeafBuilder<'a> {
    cluster: &'a Cluster,
    catalog: &'a dyn Catalog,
    options: &'a PlanOptions,
    built: usize,
}

impl<'a> LeafBuilder<'a> {
    /// For one plan.
    pub fn new(cluster: &'a Cluster, catalog: &'a dyn Catalog, options: &'a PlanOptions) -> Self {
        Self {
            cluster,
            catalog,
            options,
            built: 0,
        }
    }

    /// `plan` as a leaf.
    ///
    /// # Errors
    /// A shard without a leader, a reference table without a copy that can be read, a plan that cannot be encoded, or one
    /// nested too deeply to be decoded ([`TOO_DEEP`]).
    pub fn build(&mut self, plan: LogicalPlan, locality: &Locality) -> Result<LogicalPlan> {
        if is_too_deep(&plan) {
            return Err(too_deep());
        }
        let bytes = logical_plan_to_bytes_with_extension_codec(&plan, &LeafPlanCodec { tables: None })?;
        check_depth(&bytes)?;
        let template = ExecuteRequest {
            query_id: self.options.query_id.to_vec().into(),
            snapshot: self.options.snapshot.0,
            meta_revision: self.catalog.revision(),
            deadline_ms: self.options.deadline_ms,
            plan: bytes,
            profile: if self.options.profile { self.built as u32 + 1 } else { 0 },
            settings: self.options.settings.clone().into_iter().collect(),
            txn: self
                .options
                .own
                .as_ref()
                .map(|own| own.txn.clone().into())
                .unwrap_or_default(),
            ..ExecuteRequest::default()
        };
        let owners = self
            .shards_by_node(&locality.reads)?
            .into_iter()
            .map(|(node, shards)| {
                let references = self.references_on(node, &locality.reads)?;
                Ok(LeafOwner {
                    node,
                    request: ExecuteRequest {
                        shards,
                        references,
                        ..template.clone()
                    },
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let groups = locality.reads.shards.keys();
        let shards_total = groups.map(|group| self.cluster.all_shards(*group).len()).sum();
        let node = ShardLocalNode {
            id: self.built,
            plan: Arc::new(plan),
            owners,
            shards_total,
        };
        self.built += 1;
        Ok(LogicalPlan::Extension(Extension { node: Arc::new(node) }))
    }

    /// The nodes that run the leaf, each with its shards; one node without shards for reference tables.
    fn shards_by_node(&self, reads: &Reads) -> Result<BTreeMap<NodeId, Vec<ShardRef>>> {
        let mut nodes: BTreeMap<NodeId, Vec<ShardRef>> = BTreeMap::new();
        for (group, shards) in &reads.shards {
            let placement = self.cluster.placement(*group);
            for shard in shards {
                let owner = placement.and_then(|p| p.owners.get(shard));
                let (shard, node) = owner.ok_or_else(|| no_leader(*group, *shard))?;
                let own = self
                    .options
                    .own
                    .as_ref()
                    .is_some_and(|own| own.shards.contains(&shard.id()));
                nodes.entry(*node).or_default().push(ShardRef { own, ..*shard });
            }
        }
        if nodes.is_empty() {
            let copies = self.cluster.copy_nodes(&reads.references).unwrap_or_default();
            let node = copies
                .first()
                .ok_or_else(|| Error::unavailable("no copy of a reference table can be read"))?;
            nodes.insert(*node, vec![]);
        }
        Ok(nodes)
    }

    fn references_on(&self, node: NodeId, reads: &Reads) -> Result<Vec<ReferenceRead>> {
        let copy = |group: &GroupId| {
            let copy = self.cluster.copies(*group).iter().find(|copy| copy.node == node);
            let copy = copy.ok_or_else(|| Error::internal(format!("node {node} has no copy of group {group}")))?;
            Ok(ReferenceRead {
                shard: Some(copy.shard),
                log_index: copy.log_index.0,
            })
        };
        reads.references.iter().map(copy).collect()
    }
}

/// Decoders of nodes stop at 100 levels of messages; find out here, where something can still be done about it.
fn check_depth(plan: &[u8]) -> Result<()> {
    LogicalPlanNode::decode(plan).map(|_| ()).map_err(|_| too_deep())
}

fn too_deep() -> Error {
    Error::new(TOO_DEEP, "the plan of a leaf is nested too deeply").with_hint("split long chains of operators")
}

/// Whether encoding `plan` would recurse further than any decoder: an operator or an expression is two levels of messages,
/// chains of one binary operator are flat. With a stack of its own, because the plan may be of any depth.
fn is_too_deep(plan: &LogicalPlan) -> bool {
    let mut plans = vec![(plan, 1)];
    while let Some((node, depth)) = plans.pop() {
        if depth > DEPTH_MAX || node.expressions().iter().any(is_expr_too_deep) {
            return true;
        }
        plans.extend(node.inputs().into_iter().map(|input| (input, depth + 1)));
    }
    false
}

fn is_expr_too_deep(root: &Expr) -> bool {
    let mut exprs = vec![(root, 1)];
    let mut deepest = 1;
    while let Some((expr, depth)) = exprs.pop() {
        deepest = deepest.max(depth);
        let walked = expr.apply_children(|child| {
            let same = matches!((expr, child), (Expr::BinaryExpr(a), Expr::BinaryExpr(b)) if a.op == b.op);
            exprs.push((child, if same { depth } else { depth + 1 }));
            Ok(TreeNodeRecursion::Continue)
        });
        if walked.is_err() || deepest > DEPTH_MAX {
            return true;
        }
    }
    false
}

fn no_leader(group: GroupId, shard: u32) -> Error {
    Error::unavailable(format!("shard {shard} of group {group} has no leader"))
        .with_hint("SHOW SHARDS tells which copies are missing; the shard comes back by itself when one of them does")
}

/// Plans logical plans that contain leaves; wrap it to add exchanges.
#[derive(Debug)]
pub struct LeafQueryPlanner {
    /// Session with no physical optimiser rules, for statistics.
    pub bare: Arc<SessionState>,
}

#[async_trait]
impl QueryPlanner for LeafQueryPlanner {
    async fn create_physical_plan(
        &self,
        plan: &LogicalPlan,
        session: &dyn Session,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        // Nothing is planned above a leaf that is the whole query, so nobody asks for its statistics.
        let alone = matches!(plan, LogicalPlan::Extension(_));
        let leaves = Arc::new(LeafPlanner {
            bare: (!alone).then(|| self.bare.clone()),
        });
        DefaultPhysicalPlanner::with_extension_planners(vec![leaves])
            .create_physical_plan(plan, session)
            .await
    }
}

/// Turns [`ShardLocalNode`] into [`ShardLocalExec`].
struct LeafPlanner {
    /// For statistics, where they are wanted.
    bare: Option<Arc<SessionState>>,
}

#[async_trait]
impl ExtensionPlanner for LeafPlanner {
    async fn plan_extension(
        &self,
        _: &dyn PhysicalPlanner,
        node: &dyn UserDefinedLogicalNode,
        _: &[&LogicalPlan],
        _: &[Arc<dyn ExecutionPlan>],
        session: &dyn Session,
        _: &PhysicalPlanningContext,
    ) -> DfResult<Option<Arc<dyn ExecutionPlan>>> {
        let Some(leaf) = as_leaf(node) else { return Ok(None) };
        let schema = leaf_schema(leaf.plan.schema());
        let statistics = match &self.bare {
            Some(bare) => statistics(&leaf.plan, bare).await,
            None => Statistics::new_unknown(&schema),
        };
        let partitions = if leaf.owners.len() <= 1 {
            1
        } else {
            session.config().target_partitions()
        };
        let exec = ShardLocalExec::new(leaf.owners.clone(), schema, partitions, leaf.summary(), statistics);
        Ok(Some(Arc::new(exec)))
    }
}

#[cfg(test)]
mod tests {
    use super::{is_expr_too_deep, is_too_deep};
    use datafusion::functions::math::expr_fn::abs;
    use datafusion::logical_expr::{Expr, LogicalPlanBuilder, col, lit};

    #[test]
    fn chains_are_flat_and_nests_are_deep() {
        let chain = (0..400).fold(col("a").eq(lit(0)), |chain, i| chain.or(col("a").eq(lit(i))));
        assert!(!is_expr_too_deep(&chain));
        let nest = |levels| (0..levels).fold(col("a"), |nest: Expr, _| abs(nest));
        assert!(!is_expr_too_deep(&nest(45)));
        assert!(is_expr_too_deep(&nest(55)));
        let filters = |levels| {
            let values = LogicalPlanBuilder::values(vec![vec![lit(1)]]).unwrap();
            let plan = (0..levels).fold(values, |plan, i| plan.filter(col("column1").gt(lit(i))).unwrap());
            plan.build().unwrap()
        };
        assert!(!is_too_deep(&filters(45)));
        assert!(is_too_deep(&filters(55)));
    }
}
