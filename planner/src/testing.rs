//! A cluster in memory for this crate's tests: real tokens, real plan bytes, no storage and no network.
//!
//! ```text
//!   check(sql):  1 and 3 nodes, rule on and off   ==   DataFusion on the whole tables in one process
//! ```
//!
//! A fake node decodes the leaf as a real one does and runs it over the rows of the requested shards only, so a leaf that
//! reads what it must not, or forgets what it must, gives a wrong answer.

use crate::catalog::{Catalog, ReferenceCopy, Relation};
use crate::{DistributedMode, PlanOptions, Planned, bind, plan, session_state, template};
use datafusion::arrow::array::{ArrayRef, BooleanArray, RecordBatch};
use datafusion::arrow::compute::filter_record_batch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::catalog::TableProvider;
use datafusion::common::{ColumnStatistics, ScalarValue, Statistics, stats::Precision};
use datafusion::datasource::{MemTable, provider_as_source};
use datafusion::execution::FunctionRegistry;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::{SendableRecordBatchStream, SessionState};
use datafusion::logical_expr::{LogicalPlan, LogicalPlanBuilder};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{collect, execute_stream};
use datafusion::physical_planner::{DefaultPhysicalPlanner, PhysicalPlanner};
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::Statement as DfStatement;
use datafusion_distributed::{Worker, WorkerChannel};
use datafusion_proto::bytes::logical_plan_from_bytes_with_extension_codec;
use futures::StreamExt;
use sqlparser::ast::Statement;
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex};
use tessera_proto::common_values::{CommonValues, TableCommonValues};
use tessera_proto::exchange::{LocalChannel, worker};
use tessera_proto::fragment::{LeafPlanCodec, LeafRuntime, StubTable, TableSource};
use tessera_proto::functions;
use tessera_proto::ipc::relabel;
use tessera_proto::profile::Profiles;
use tessera_proto::service::{NodeDirectory, ShardService};
use tessera_proto::sql_type::SqlType;
use tessera_proto::table::{ColocationGroup, ColumnDef, Distribution, TableDef, ViewDef};
use tessera_proto::token::{equal_ranges, tokens};
use tessera_proto::{Epoch, Error, GroupId, LogIndex, NodeId, Result, ShardId, TableId, Timestamp, v1};

/// Runtime for blocking on queries in plain `#[test]` functions.
static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
    // Debug builds of recursive planners need more than the default 2 MiB.
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_stack_size(16 << 20)
        .enable_all()
        .build()
        .unwrap()
});

/// A table with its rows.
#[derive(Debug, Clone)]
pub struct TestTable {
    pub def: Arc<TableDef>,
    pub rows: RecordBatch,
    /// What is believed of it, where that is more than its size.
    pub known: Option<(Statistics, TableCommonValues)>,
}

/// Tables, groups and a number of nodes.
#[derive(Debug)]
pub struct TestCluster {
    pub nodes: u32,
    pub tables: BTreeMap<String, TestTable>,
    pub groups: BTreeMap<GroupId, Arc<ColocationGroup>>,
    pub views: BTreeMap<String, Arc<ViewDef>>,
    /// Made when first asked for. Each holds the cluster, which tests can bear.
    workers: Workers,
}

#[derive(Default)]
struct Workers(Mutex<BTreeMap<NodeId, Worker>>);

impl std::fmt::Debug for Workers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Workers")
    }
}

/// `name` is `column type`, with `!` for NOT NULL.
pub fn columns(spec: &[(&str, SqlType)]) -> Vec<ColumnDef> {
    let column = |(name, sql_type): &(&str, SqlType)| ColumnDef {
        name: name.trim_end_matches('!').to_owned(),
        sql_type: *sql_type,
        nullable: !name.ends_with('!'),
        default: None,
        hidden: false,
    };
    spec.iter().map(column).collect()
}

impl TestCluster {
    pub fn new(nodes: u32) -> Self {
        Self {
            nodes,
            tables: BTreeMap::new(),
            groups: BTreeMap::new(),
            views: BTreeMap::new(),
            workers: Workers::default(),
        }
    }

    /// A sharded table; an empty key makes a reference table.
    pub fn table(
        mut self,
        name: &str,
        group: u64,
        spec: &[(&str, SqlType)],
        key: &[usize],
        arrays: Vec<ArrayRef>,
    ) -> Self {
        let columns = columns(spec);
        let reference = key.is_empty();
        let classes = key.iter().filter_map(|c| columns[*c].sql_type.key_class()).collect();
        let group = GroupId(group);
        let shards = if reference { 1 } else { 8 };
        self.groups.entry(group).or_insert_with(|| {
            Arc::new(ColocationGroup {
                id: group,
                key_classes: classes,
                ranges: equal_ranges(shards),
                reference,
            })
        });
        let distribution = if reference {
            Distribution::Reference
        } else {
            Distribution::Sharded { key: key.to_vec() }
        };
        let id = TableId(100 + self.tables.len() as u64);
        let def = TableDef {
            id,
            schema: "public".into(),
            name: name.into(),
            columns,
            primary_key: vec![],
            cluster_by: vec![],
            distribution,
            group,
            version: 1,
        };
        let rows = RecordBatch::try_new(def.visible_schema(), arrays).unwrap();
        self.tables.insert(
            name.into(),
            TestTable {
                def: Arc::new(def),
                rows,
                known: None,
            },
        );
        self
    }

    /// Has the planner believe this of a table: rows, and of each column distinct values, NULLs and common values. Numbers are
    /// those from 1 to as many as there are distinct ones.
    pub fn believed(mut self, name: &str, rows: usize, columns: Vec<(usize, usize, CommonValues)>) -> Self {
        let (statistics, common): (Vec<_>, Vec<_>) = columns
            .into_iter()
            .zip(self.tables[name].rows.columns())
            .map(|((distinct, nulls, common), column)| {
                let mut known = ColumnStatistics {
                    distinct_count: Precision::Inexact(distinct),
                    null_count: Precision::Inexact(nulls),
                    ..ColumnStatistics::new_unknown()
                };
                if column.data_type().is_integer() {
                    let number = |n: usize| ScalarValue::from(n as i64).cast_to(column.data_type()).unwrap();
                    known.min_value = Precision::Inexact(number(1));
                    known.max_value = Precision::Inexact(number(distinct));
                }
                (known, common)
            })
            .unzip();
        let statistics = Statistics {
            num_rows: Precision::Inexact(rows),
            total_byte_size: Precision::Inexact(rows * 100),
            column_statistics: statistics,
        };
        self.tables.get_mut(name).unwrap().known = Some((statistics, common.into()));
        self
    }

    pub fn view(mut self, name: &str, columns: &[&str], query: &str) -> Self {
        let view = ViewDef {
            id: TableId(1_000 + self.views.len() as u64),
            schema: "public".into(),
            name: name.into(),
            columns: columns.iter().map(|c| (*c).to_owned()).collect(),
            query: query.into(),
        };
        self.views.insert(name.into(), Arc::new(view));
        self
    }

    /// A scan of a table, with what is believed of its rows.
    pub fn scan(&self, name: &str, alias: &str) -> (LogicalPlan, Statistics) {
        let def = self.tables[name].def.clone();
        let statistics = self.statistics(def.id).unwrap();
        let stub = StubTable {
            schema: def.visible_schema(),
            statistics: Some(statistics.clone()),
            common: self.common_values(def.id),
            def,
        };
        let scan = LogicalPlanBuilder::scan(alias, provider_as_source(Arc::new(stub)), None);
        (scan.unwrap().build().unwrap(), statistics)
    }

    fn owner(&self, shard: u32) -> NodeId {
        NodeId(shard % self.nodes + 1)
    }

    fn shard_ref(group: GroupId, index: u32) -> v1::ShardRef {
        v1::ShardRef::new(ShardId { group, index }, Epoch(1))
    }
}

impl Catalog for TestCluster {
    fn resolve(&self, schema: Option<&str>, name: &str) -> Option<Relation> {
        if schema.is_some_and(|schema| schema != "public") {
            return None;
        }
        if let Some(view) = self.views.get(name) {
            return Some(Relation::View(view.clone()));
        }
        if name == "system" {
            let table = self.tables.get("ref1")?;
            let provider = MemTable::try_new(table.rows.schema(), vec![vec![table.rows.clone()]]).ok()?;
            return Some(Relation::System(Arc::new(provider)));
        }
        let table = self.tables.get(name)?;
        Some(Relation::Table(
            table.def.clone(),
            self.groups.get(&table.def.group)?.clone(),
        ))
    }

    fn names(&self) -> Vec<String> {
        self.tables.keys().cloned().collect()
    }

    fn placement(&self, group: GroupId) -> Vec<(v1::ShardRef, NodeId)> {
        let shards = self.groups[&group].ranges.len() as u32;
        (0..shards)
            .map(|index| (Self::shard_ref(group, index), self.owner(index)))
            .collect()
    }

    fn reference_copies(&self, group: GroupId) -> Vec<ReferenceCopy> {
        let copy = |node| ReferenceCopy {
            node,
            shard: Self::shard_ref(group, 0),
            log_index: LogIndex(0),
        };
        self.nodes().into_iter().map(copy).collect()
    }

    fn nodes(&self) -> Vec<NodeId> {
        (1..=self.nodes).map(NodeId).collect()
    }

    fn statistics(&self, table: TableId) -> Option<Statistics> {
        let table = self.tables.values().find(|t| t.def.id == table)?;
        if let Some((statistics, _)) = &table.known {
            return Some(statistics.clone());
        }
        let columns = table.rows.num_columns();
        Some(Statistics {
            num_rows: Precision::Inexact(table.rows.num_rows()),
            total_byte_size: Precision::Inexact(table.rows.get_array_memory_size()),
            column_statistics: vec![ColumnStatistics::new_unknown(); columns],
        })
    }

    fn common_values(&self, table: TableId) -> TableCommonValues {
        let known = self.tables.values().find(|t| t.def.id == table);
        known
            .and_then(|t| t.known.as_ref())
            .map(|(_, common)| common.clone())
            .unwrap_or_default()
    }

    fn revision(&self) -> u64 {
        1
    }
}

/// Finds fake nodes.
#[derive(Debug)]
pub struct Directory(Arc<TestCluster>);

impl NodeDirectory for Directory {
    fn node(&self, node: NodeId) -> Result<Arc<dyn ShardService>> {
        Ok(Arc::new(FakeNode {
            cluster: self.0.clone(),
            node,
        }))
    }
}

struct FakeNode {
    cluster: Arc<TestCluster>,
    node: NodeId,
}

/// The rows a request may see.
#[derive(Debug)]
struct Visible {
    cluster: Arc<TestCluster>,
    shards: Vec<ShardId>,
    references: Vec<GroupId>,
}

impl TableSource for Visible {
    fn provider(&self, table: TableId, _: u64, _: bool) -> Result<Arc<dyn TableProvider>> {
        let unknown = || Error::internal(format!("no table {table}"));
        let table = self
            .cluster
            .tables
            .values()
            .find(|t| t.def.id == table)
            .ok_or_else(unknown)?;
        let rows = if table.def.is_reference() {
            assert!(
                self.references.contains(&table.def.group),
                "{} was not announced",
                table.def.name
            );
            table.rows.clone()
        } else {
            let group = &self.cluster.groups[&table.def.group];
            let keys: Vec<ArrayRef> = table
                .def
                .shard_key()
                .iter()
                .map(|c| table.rows.column(*c).clone())
                .collect();
            let mine = tokens(&keys)?.into_iter().map(|token| {
                let shard = ShardId {
                    group: group.id,
                    index: group.shard_of(token),
                };
                self.shards.contains(&shard)
            });
            filter_record_batch(&table.rows, &mine.collect::<BooleanArray>())
                .map_err(|e| Error::internal(e.to_string()))?
        };
        Ok(Arc::new(MemTable::try_new(rows.schema(), vec![vec![rows]])?))
    }
}

#[async_trait::async_trait]
impl ShardService for FakeNode {
    async fn execute(&self, request: v1::ExecuteRequest, schema: SchemaRef) -> Result<SendableRecordBatchStream> {
        for shard in &request.shards {
            assert_eq!(
                self.cluster.owner(shard.index),
                self.node,
                "shard {} asked of the wrong node",
                shard.index
            );
        }
        let tables = Arc::new(Visible {
            cluster: self.cluster.clone(),
            shards: request.shards.iter().map(v1::ShardRef::id).collect(),
            references: request
                .references
                .iter()
                .filter_map(|r| r.shard.map(|s| s.id().group))
                .collect(),
        });
        let mut state = SessionContext::new().state();
        for function in functions::portable() {
            state.register_udf(function)?;
        }
        for function in functions::aggregates() {
            state.register_udaf(function)?;
        }
        let codec = LeafPlanCodec { tables: Some(tables) };
        let plan = logical_plan_from_bytes_with_extension_codec(&request.plan, &state.task_ctx(), &codec)?;
        let plan = DefaultPhysicalPlanner::default()
            .create_physical_plan(&plan, &state)
            .await?;
        let expected = schema.clone();
        let rows = execute_stream(plan, state.task_ctx())?.map(move |batch| relabel(&expected, batch?));
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
    }
    async fn point_read(&self, _: v1::PointReadRequest) -> Result<v1::PointReadReply> {
        Err(unsupported())
    }
    async fn profile(&self, _: v1::ProfileRequest) -> Result<v1::ProfileReply> {
        Err(unsupported())
    }
    async fn commit(&self, _: v1::CommitRequest) -> Result<v1::CommitReply> {
        Err(unsupported())
    }
    async fn prepare(&self, _: v1::PrepareRequest) -> Result<v1::PrepareReply> {
        Err(unsupported())
    }
    async fn finish(&self, _: v1::FinishRequest) -> Result<v1::FinishReply> {
        Err(unsupported())
    }
    async fn write(&self, _: v1::WriteRequest) -> Result<v1::WriteReply> {
        Err(unsupported())
    }
    async fn undo(&self, _: v1::UndoRequest) -> Result<v1::UndoReply> {
        Err(unsupported())
    }
    async fn keep_alive(&self, _: v1::KeepAliveRequest) -> Result<v1::KeepAliveReply> {
        Err(unsupported())
    }
    async fn outcome(&self, _: v1::OutcomeRequest) -> Result<v1::OutcomeReply> {
        Err(unsupported())
    }
    async fn stage(&self, _: v1::StageBegin, _: SendableRecordBatchStream) -> Result<v1::StageReply> {
        Err(unsupported())
    }
    async fn read_index(&self, _: v1::ReadIndexRequest) -> Result<v1::ReadIndexReply> {
        Err(unsupported())
    }
    async fn digest(&self, _: v1::DigestRequest) -> Result<v1::DigestReply> {
        Err(unsupported())
    }
    async fn status(&self, _: v1::StatusRequest) -> Result<v1::StatusReply> {
        Err(unsupported())
    }
    async fn change_leader(&self, _: v1::ChangeLeaderRequest) -> Result<v1::ChangeLeaderReply> {
        Err(unsupported())
    }
    fn worker(&self) -> Result<Box<dyn WorkerChannel>> {
        let mut workers = self.cluster.workers.0.lock().unwrap();
        let made = || {
            let directory = Arc::new(Directory(self.cluster.clone()));
            worker(
                &SessionContext::new().state(),
                directory,
                self.node,
                Profiles::default(),
            )
            .unwrap()
        };
        Ok(Box::new(LocalChannel(
            workers.entry(self.node).or_insert_with(made).clone(),
        )))
    }
}

fn unsupported() -> Error {
    Error::unsupported("this fake node only runs leaves", "use a real one")
}

/// A cluster with a session to plan in.
pub struct Bench {
    pub cluster: Arc<TestCluster>,
    pub template: SessionState,
    pub options: PlanOptions,
}

impl Bench {
    pub fn new(cluster: TestCluster) -> Self {
        let cluster = Arc::new(cluster);
        let leaves = LeafRuntime {
            directory: Arc::new(Directory(cluster.clone())),
            node: None,
            profiles: Profiles::default(),
            carry_errors: false,
        };
        let template = template(Arc::new(RuntimeEnv::default()), Arc::new(leaves));
        let options = PlanOptions {
            snapshot: Timestamp::from_millis(1_600_000_000_000),
            query_id: [7; 16],
            deadline_ms: 60_000,
            profile: false,
            shard_local: true,
            join_order: true,
            hash_join: true,
            batch_rows: tessera_proto::frugal::BATCH_ROWS_DEFAULT,
            distributed: DistributedMode::Off,
            settings: BTreeMap::new(),
            target_partitions: 2,
            own: None,
        };
        Self {
            cluster,
            template,
            options,
        }
    }

    pub fn with_rule(mut self, on: bool) -> Self {
        self.options.shard_local = on;
        self
    }

    pub fn exchanging(mut self, mode: DistributedMode) -> Self {
        self.options.distributed = mode;
        self
    }

    pub fn plan(&self, sql: &str) -> Result<Planned> {
        RUNTIME.block_on(async {
            let state = session_state(&self.template, &self.options)?;
            let bound = bind(&state, &query(sql), self.cluster.as_ref(), &[]).await?;
            plan(&state, bound, self.cluster.as_ref(), &self.options).await
        })
    }

    /// Rows as text, one string a row.
    pub fn rows(&self, sql: &str) -> Result<Vec<String>> {
        let planned = self.plan(sql)?;
        RUNTIME.block_on(async { Ok(text(&collect(planned.physical, planned.task).await?)) })
    }
}

/// The query of a text.
pub fn query(sql: &str) -> sqlparser::ast::Query {
    match tessera_parser::parse(sql).unwrap().pop().unwrap().statement {
        tessera_parser::Statement::Query(query) => *query,
        other => panic!("not a query: {other:?}"),
    }
}

/// The same query by DataFusion alone, over the whole tables.
pub fn oracle(cluster: &TestCluster, sql: &str) -> Vec<String> {
    let bench = Bench::new(TestCluster::new(1));
    RUNTIME.block_on(async {
        let state = session_state(&bench.template, &bench.options).unwrap();
        let context = SessionContext::new_with_state(state);
        for (name, table) in &cluster.tables {
            let provider = MemTable::try_new(table.rows.schema(), vec![vec![table.rows.clone()]]).unwrap();
            context.register_table(name.as_str(), Arc::new(provider)).unwrap();
        }
        // Our parser, whose limits are wider.
        let statement = Statement::Query(Box::new(query(sql)));
        let statement = DfStatement::Statement(Box::new(statement));
        let plan = context.state().statement_to_plan(statement).await;
        let plan = plan.unwrap_or_else(|e| panic!("oracle cannot plan {sql}: {e}"));
        let frame = context.execute_logical_plan(plan).await.unwrap();
        text(
            &frame
                .collect()
                .await
                .unwrap_or_else(|e| panic!("oracle cannot run {sql}: {e}")),
        )
    })
}

fn text(batches: &[RecordBatch]) -> Vec<String> {
    let options = FormatOptions::default().with_null("NULL");
    let mut rows = vec![];
    for batch in batches {
        let columns: Vec<_> = batch
            .columns()
            .iter()
            .map(|c| ArrayFormatter::try_new(c.as_ref(), &options).unwrap())
            .collect();
        for row in 0..batch.num_rows() {
            rows.push(
                columns
                    .iter()
                    .map(|c| c.value(row).to_string())
                    .collect::<Vec<_>>()
                    .join("|"),
            );
        }
    }
    rows
}
