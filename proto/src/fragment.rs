//! The `ShardLocal` leaf: a logical subplan that every owner runs over its own shards, as one DataFusion operator.
//!
//! ```text
//!   AggregateExec (router)                         node 1: plan over shards 0,3,..  ─┐
//!     ShardLocalExec {plan, owners}  ──execute──▶  node 2: plan over shards 1,4,..  ─┼─▶ partition i streams owner i, i+P, ...
//!                                                  node 3: plan over shards 2,5,..  ─┘
//! ```
//!
//! The leaf ships the *logical* subplan; the node plans it with its own statistics. It is location-transparent: wherever it
//! is executed it finds each owner through the [`LeafRuntime`] of the session, and the owner may be this very process.
//! It claims `UnknownPartitioning`: claiming `Hash` with our own token function makes DataFusion join wrongly, silently.
//! Not here: choosing the subplan (planner) and running it on a node (shard-node).

use crate::common_values::TableCommonValues;
use crate::error::Error;
use crate::exchange::Carried;
use crate::functions::ROUTER_PREFIX;
use crate::ids::NodeId;
use crate::outer_sides::OuterSideExec;
use crate::profile::Profiles;
use crate::service::NodeDirectory;
use crate::table::TableDef;
use crate::v1::ExecuteRequest;
use crate::v1::transfer::Source;
use crate::yielding::YieldExec;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchemaRef, Result, Statistics, TableReference, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, Extension, LogicalPlan, TableProviderFilterPushDown, TableType};
use datafusion::physical_expr::EquivalenceProperties;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::statistics::StatisticsArgs;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PhysicalExpr, PlanProperties,
};
use datafusion_proto::logical_plan::LogicalExtensionCodec;
use datafusion_proto::physical_plan::{PhysicalExtensionCodec, PhysicalProtoConverterExtension};
use datafusion_proto::protobuf;
use futures::{StreamExt, TryStreamExt};
use prost::Message;
use std::fmt;
use std::sync::Arc;

/// How many owners of one leaf partition are asked at the same time.
const OWNERS_AT_ONCE: usize = 16;

/// Session extension through which a leaf reaches the nodes; set on routers and on nodes.
#[derive(Debug)]
pub struct LeafRuntime {
    /// Finds a node's service.
    pub directory: Arc<dyn NodeDirectory>,
    /// The node that this is; none on a router.
    pub node: Option<NodeId>,
    /// Where what is read is counted, for queries that ask for it.
    pub profiles: Profiles,
    /// On workers: errors of leaves are wrapped so that they cross to the coordinator whole.
    pub carry_errors: bool,
}

/// One node's part of a leaf: a complete request, except that `partition(s)` stay 0.
#[derive(Debug, Clone)]
pub struct LeafOwner {
    /// Where to run.
    pub node: NodeId,
    /// What to run.
    pub request: ExecuteRequest,
}

/// The leaf operator.
#[derive(Debug, Clone)]
pub struct ShardLocalExec {
    owners: Vec<LeafOwner>,
    label: String,
    statistics: Arc<Statistics>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl ShardLocalExec {
    /// A leaf over `owners` with `partitions` output streams; `label` is what EXPLAIN shows.
    pub fn new(
        owners: Vec<LeafOwner>,
        schema: SchemaRef,
        partitions: usize,
        label: String,
        statistics: Statistics,
    ) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(partitions.max(1)),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self {
            owners,
            label,
            statistics: Arc::new(statistics),
            properties: Arc::new(properties),
            metrics: ExecutionPlanMetricsSet::new(),
        }
    }

    /// The nodes that run a part of this leaf.
    pub fn owners(&self) -> &[LeafOwner] {
        &self.owners
    }

    /// The same leaf for some of the owners only, with its own number of partitions.
    pub fn variant(&self, owners: Vec<LeafOwner>, partitions: usize) -> Self {
        Self::new(
            owners,
            self.schema(),
            partitions,
            self.label.clone(),
            self.statistics.as_ref().clone(),
        )
    }
}

impl DisplayAs for ShardLocalExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        let shards: usize = self.owners.iter().map(|o| o.request.shards.len()).sum();
        write!(
            f,
            "ShardLocalExec: nodes={}, shards={shards}, {}",
            self.owners.len(),
            self.label
        )
    }
}

impl ExecutionPlan for ShardLocalExec {
    fn name(&self) -> &str {
        "ShardLocalExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![]
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let Some(runtime) = context.session_config().get_extension::<LeafRuntime>() else {
            return internal_err!("session has no LeafRuntime");
        };
        let carry = runtime.carry_errors;
        let schema = self.schema();
        let partitions = self.properties.partitioning.partition_count();
        let mine: Vec<LeafOwner> = self
            .owners
            .iter()
            .skip(partition)
            .step_by(partitions)
            .cloned()
            .collect();
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let expected = schema.clone();
        let streams = futures::stream::iter(mine)
            .map(move |owner| {
                let (runtime, schema) = (runtime.clone(), schema.clone());
                async move {
                    let service = runtime.directory.node(owner.node)?;
                    let (query, profile) = (owner.request.query_id.to_vec(), owner.request.profile);
                    let rows = service.execute(owner.request, schema.clone()).await?;
                    let Some(leaf) = profile.checked_sub(1) else {
                        return Ok::<SendableRecordBatchStream, datafusion::error::DataFusionError>(rows);
                    };
                    let rows = runtime.profiles.count(query, Source::Leaf(leaf), owner.node.0, rows);
                    Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)) as SendableRecordBatchStream)
                }
            })
            .buffer_unordered(OWNERS_AT_ONCE)
            .try_flatten_unordered(OWNERS_AT_ONCE)
            .map_err(move |error| if carry { Carried::wrap(error) } else { error })
            .map(move |batch| {
                metrics.record_output(batch.as_ref().map_or(0, |b| b.num_rows()));
                batch
            });
        Ok(Box::pin(RecordBatchStreamAdapter::new(expected, streams)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn statistics_from_inputs(&self, _: &[Arc<Statistics>], _: &StatisticsArgs) -> Result<Arc<Statistics>> {
        Ok(self.statistics.clone())
    }
}

/// A table as the planner sees it: schema and statistics, no rows. Filters are `Inexact` so that they stay in the plan *and*
/// show up in the scan, where pruning looks for them; `Exact` would lose them on nodes that ignore pushed filters.
#[derive(Debug, Clone)]
pub struct StubTable {
    /// The definition.
    pub def: Arc<TableDef>,
    /// Visible columns; all of them where the hidden row id is read too.
    pub schema: SchemaRef,
    /// Inexact statistics from the nodes, one entry per column of `schema`.
    pub statistics: Option<Statistics>,
    /// The most common values of the first columns of `schema`, or nothing.
    pub common: TableCommonValues,
}

impl StubTable {
    /// Whether the hidden row id is among the columns.
    pub fn shows_row_id(&self) -> bool {
        let mut shown = self.def.columns.iter().take(self.schema.fields().len());
        shown.any(|column| column.hidden)
    }
}

#[async_trait::async_trait]
impl TableProvider for StubTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    /// Only ever planned to ask for statistics; a stub that is executed is a planner bug and says so.
    async fn scan(
        &self,
        _: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        _: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = match projection {
            Some(columns) => Arc::new(self.schema.project(columns)?),
            None => self.schema.clone(),
        };
        let statistics = match (&self.statistics, projection) {
            (Some(s), p) => s.clone().project(p),
            (None, _) => Statistics::new_unknown(&schema),
        };
        Ok(Arc::new(StubExec {
            inner: EmptyExec::new(schema),
            statistics: Arc::new(statistics),
        }))
    }

    /// Not those that only routers evaluate: the scan would stay there with them.
    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let answer = |filter: &&Expr| {
            Ok(match filter.exists(|e| Ok(is_for_routers(e)))? {
                true => TableProviderFilterPushDown::Unsupported,
                false => TableProviderFilterPushDown::Inexact,
            })
        };
        filters.iter().map(answer).collect()
    }

    fn statistics(&self) -> Option<Statistics> {
        self.statistics.clone()
    }
}

fn is_for_routers(expr: &Expr) -> bool {
    matches!(expr, Expr::ScalarFunction(call) if call.func.name().starts_with(ROUTER_PREFIX))
}

/// Carries a stub's statistics through physical planning.
#[derive(Debug)]
struct StubExec {
    inner: EmptyExec,
    statistics: Arc<Statistics>,
}

impl DisplayAs for StubExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("StubExec")
    }
}

impl ExecutionPlan for StubExec {
    fn name(&self) -> &str {
        "StubExec"
    }
    fn properties(&self) -> &Arc<PlanProperties> {
        self.inner.properties()
    }
    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![]
    }
    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }
    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }
    fn execute(&self, _: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        internal_err!("a table was left outside every shard-local leaf")
    }
    fn statistics_from_inputs(&self, _: &[Arc<Statistics>], _: &StatisticsArgs) -> Result<Arc<Statistics>> {
        Ok(self.statistics.clone())
    }
}

/// Gives the decoder a node's own provider for a table.
pub trait TableSource: Send + Sync + fmt::Debug {
    /// The table's visible columns, and with `row_id` the hidden row id after them.
    ///
    /// # Errors
    /// The node does not know the table, or not in that version.
    fn provider(&self, table: crate::TableId, version: u64, row_id: bool) -> crate::Result<Arc<dyn TableProvider>>;
}

/// Codec of the leaf's logical plan: a table travels as id, version, and a byte of 1 if its hidden row id is read. Encoding needs
/// no source.
#[derive(Debug)]
pub struct LeafPlanCodec {
    /// Where decoded tables come from; `None` on the encoding side.
    pub tables: Option<Arc<dyn TableSource>>,
}

impl LogicalExtensionCodec for LeafPlanCodec {
    fn try_decode(&self, _: &[u8], _: &[LogicalPlan], _: &TaskContext) -> Result<Extension> {
        internal_err!("a leaf has no extension nodes")
    }

    fn try_encode(&self, node: &Extension, _: &mut Vec<u8>) -> Result<()> {
        internal_err!("a leaf cannot contain the extension node {}", node.node.name())
    }

    fn try_decode_table_provider(
        &self,
        buf: &[u8],
        table: &TableReference,
        _: SchemaRef,
        _: &TaskContext,
    ) -> Result<Arc<dyn TableProvider>> {
        let malformed = || Error::protocol(format!("malformed reference to table {table} in a leaf"));
        let source = self.tables.as_ref().ok_or_else(malformed)?;
        let (id, rest) = buf.split_at_checked(8).ok_or_else(malformed)?;
        let (version, flag) = rest.split_at_checked(8).ok_or_else(malformed)?;
        let number = |bytes: &[u8]| bytes.try_into().map(u64::from_le_bytes).map_err(|_| malformed());
        let row_id = match flag {
            [] | [0] => false,
            [1] => true,
            _ => return Err(malformed().into()),
        };
        Ok(source.provider(crate::TableId(number(id)?), number(version)?, row_id)?)
    }

    fn try_encode_table_provider(
        &self,
        table: &TableReference,
        node: Arc<dyn TableProvider>,
        buf: &mut Vec<u8>,
    ) -> Result<()> {
        let Some(stub) = (node.as_ref() as &dyn std::any::Any).downcast_ref::<StubTable>() else {
            return internal_err!("table {table} is not a table of this cluster");
        };
        buf.extend(stub.def.id.0.to_le_bytes());
        buf.extend(stub.def.version.to_le_bytes());
        buf.extend(stub.shows_row_id().then_some(1));
        Ok(())
    }
}

/// Wire form of the leaf inside a physical plan (datafusion-distributed ships stages as physical plans).
#[derive(Clone, PartialEq, Message)]
struct LeafMessage {
    #[prost(message, optional, tag = "1")]
    schema: Option<protobuf::Schema>,
    #[prost(uint64, tag = "2")]
    partitions: u64,
    #[prost(string, tag = "3")]
    label: String,
    #[prost(message, repeated, tag = "4")]
    owners: Vec<OwnerMessage>,
    /// Not a leaf but a [`YieldExec`] with this bound.
    #[prost(uint64, optional, tag = "5")]
    yield_rows: Option<u64>,
    /// Not a leaf but an [`OuterSideExec`].
    #[prost(bool, tag = "6")]
    outer_side: bool,
}

#[derive(Clone, PartialEq, Message)]
struct OwnerMessage {
    #[prost(uint32, tag = "1")]
    node: u32,
    #[prost(message, optional, tag = "2")]
    request: Option<ExecuteRequest>,
}

/// Codec of the leaf operator.
#[derive(Debug, Clone, Copy, Default)]
pub struct LeafCodec;

impl PhysicalExtensionCodec for LeafCodec {
    fn try_decode(
        &self,
        buf: &[u8],
        inputs: &[Arc<dyn ExecutionPlan>],
        _: &TaskContext,
        _: &dyn PhysicalProtoConverterExtension,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let malformed = |what: &str| Error::protocol(format!("malformed leaf: {what}"));
        let leaf = LeafMessage::decode(buf).map_err(|e| malformed(&e.to_string()))?;
        if let Some(rows) = leaf.yield_rows {
            let input = inputs.first().ok_or_else(|| malformed("no input to yield to"))?;
            return Ok(Arc::new(YieldExec::new(input.clone(), rows as usize)));
        }
        if leaf.outer_side {
            let input = inputs.first().ok_or_else(|| malformed("no input of an outer side"))?;
            return Ok(Arc::new(OuterSideExec::new(input.clone())));
        }
        let schema = leaf.schema.as_ref().ok_or_else(|| malformed("no schema"))?;
        let schema: datafusion::arrow::datatypes::Schema = schema.try_into()?;
        let owners = leaf
            .owners
            .into_iter()
            .map(|o| {
                Ok(LeafOwner {
                    node: NodeId(o.node),
                    request: o.request.ok_or_else(|| malformed("no request"))?,
                })
            })
            .collect::<Result<Vec<_>, Error>>()?;
        let statistics = Statistics::new_unknown(&schema);
        Ok(Arc::new(ShardLocalExec::new(
            owners,
            Arc::new(schema),
            leaf.partitions as usize,
            leaf.label,
            statistics,
        )))
    }

    fn try_encode(
        &self,
        node: Arc<dyn ExecutionPlan>,
        buf: &mut Vec<u8>,
        _: &dyn PhysicalProtoConverterExtension,
    ) -> Result<()> {
        let encoding = |e: prost::EncodeError| Error::internal(format!("encoding a leaf: {e}"));
        if let Some(polite) = node.downcast_ref::<YieldExec>() {
            let rows = polite.rows() as u64;
            let message = LeafMessage {
                yield_rows: Some(rows),
                ..LeafMessage::default()
            };
            return Ok(message.encode(buf).map_err(encoding)?);
        }
        if node.is::<OuterSideExec>() {
            let message = LeafMessage {
                outer_side: true,
                ..LeafMessage::default()
            };
            return Ok(message.encode(buf).map_err(encoding)?);
        }
        // Codecs are tried in turn, so anything that is not ours must be an error.
        let Some(leaf) = node.downcast_ref::<ShardLocalExec>() else {
            return internal_err!("not a shard-local leaf");
        };
        let message = LeafMessage {
            schema: Some(leaf.schema().as_ref().try_into()?),
            partitions: leaf.properties.partitioning.partition_count() as u64,
            label: leaf.label.clone(),
            owners: leaf
                .owners
                .iter()
                .map(|o| OwnerMessage {
                    node: o.node.0,
                    request: Some(o.request.clone()),
                })
                .collect(),
            yield_rows: None,
            outer_side: false,
        };
        Ok(message.encode(buf).map_err(encoding)?)
    }
}

/// The schema a leaf's batches have: a logical plan's output as plain Arrow.
pub fn leaf_schema(schema: &DFSchemaRef) -> SchemaRef {
    Arc::new(schema.as_arrow().clone())
}
