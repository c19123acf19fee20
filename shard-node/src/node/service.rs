//! `ShardService` of this node: each call to where it is done, and leaves to the executor.

use super::ShardNode;
use super::checks;
use super::open_txn::ReadStore;
use crate::scan::ShardTable;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::TableProvider;
use datafusion::execution::SendableRecordBatchStream;
use datafusion_distributed::WorkerChannel;
use std::collections::HashMap;
use std::sync::Arc;
use tessera_meta::view::ClusterView;
use tessera_proto::exchange::LocalChannel;
use tessera_proto::fragment::{StubTable, TableSource};
use tessera_proto::service::ShardService;
use tessera_proto::{Error, GroupId, Result, TableId, Timestamp, TxnId, v1};

/// Tables of one leaf: the shards it reads, at its snapshot.
#[derive(Debug)]
struct LeafTables {
    view: Arc<ClusterView>,
    stores: HashMap<GroupId, Vec<ReadStore>>,
    snapshot: Timestamp,
}

impl TableSource for LeafTables {
    fn provider(&self, table: TableId, version: u64, row_id: bool) -> Result<Arc<dyn TableProvider>> {
        let def = definition(&self.view, table, version)?;
        // The planner prunes to no shard at all for predicates that nothing satisfies.
        let stores = self.stores.get(&def.group).into_iter().flatten();
        let versions = stores
            .map(|store| store.table(table))
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .flatten();
        Ok(Arc::new(ShardTable::new(
            def,
            versions.collect(),
            self.snapshot,
            row_id,
        )))
    }
}

/// Tables by their definition alone, to learn a plan's schema.
#[derive(Debug)]
struct Definitions(Arc<ClusterView>);

impl TableSource for Definitions {
    fn provider(&self, table: TableId, version: u64, row_id: bool) -> Result<Arc<dyn TableProvider>> {
        let def = definition(&self.0, table, version)?;
        Ok(Arc::new(StubTable {
            schema: if row_id {
                def.arrow_schema()
            } else {
                def.visible_schema()
            },
            def,
            statistics: None,
            common: Arc::default(),
        }))
    }
}

fn definition(view: &ClusterView, table: TableId, version: u64) -> Result<Arc<tessera_proto::table::TableDef>> {
    let def = view.tables.get(&table).filter(|d| d.version == version);
    def.cloned()
        .ok_or_else(|| Error::stale_map(format!("table {table} changed or was dropped")))
}

impl ShardNode {
    fn me(&self) -> Result<Arc<Self>> {
        self.myself
            .upgrade()
            .ok_or_else(|| Error::unavailable("the node is shutting down"))
    }

    /// Output columns of a leaf, for callers in other processes.
    ///
    /// # Errors
    /// 08P01 for a malformed plan, TS001 when its tables changed.
    pub async fn leaf_schema(&self, request: &v1::ExecuteRequest) -> Result<SchemaRef> {
        let view = self
            .catalog(request.meta_revision, checks::until(request.deadline_ms)?)
            .await?;
        self.executor.schema(Arc::new(Definitions(view)), request)
    }

    /// Stored columns of the table that rows are staged for.
    ///
    /// # Errors
    /// TS001 when it changed.
    pub async fn stage_schema(&self, begin: &v1::StageBegin) -> Result<SchemaRef> {
        let until = checks::until(begin.deadline_ms)?;
        Ok(self
            .table(TableId(begin.table), begin.schema_version, begin.meta_revision, until)
            .await?
            .arrow_schema())
    }
}

#[async_trait::async_trait]
impl ShardService for ShardNode {
    async fn execute(&self, request: v1::ExecuteRequest, schema: SchemaRef) -> Result<SendableRecordBatchStream> {
        let until = checks::until(request.deadline_ms)?;
        let snapshot = Timestamp(request.snapshot);
        let view = self.catalog(request.meta_revision, until).await?;
        let readable = self
            .me()?
            .readable(&request.shards, &request.references, snapshot, &request.txn, until)
            .await?;
        let shards: Vec<_> = readable.iter().map(|(shard, _)| *shard).collect();
        let mut stores: HashMap<GroupId, Vec<ReadStore>> = HashMap::new();
        for (shard, store) in readable {
            stores.entry(shard.group).or_default().push(store);
        }
        let rows = self
            .executor
            .execute(Arc::new(LeafTables { view, stores, snapshot }), request, schema)
            .await;
        Ok(self.watch_rows(shards.clone(), self.watch(&shards, rows)?))
    }

    async fn point_read(&self, request: v1::PointReadRequest) -> Result<v1::PointReadReply> {
        let shard = request.shard.map(|s| s.id());
        let rows = self.me()?.read_points(request).await;
        self.watch(shard.as_slice(), rows)
    }

    async fn commit(&self, request: v1::CommitRequest) -> Result<v1::CommitReply> {
        let shard = request.home.map(|s| s.id());
        let committed = self.me()?.commit_writes(request).await;
        Ok(v1::CommitReply {
            timestamp: self.watch(shard.as_slice(), committed)?.0,
        })
    }

    async fn prepare(&self, request: v1::PrepareRequest) -> Result<v1::PrepareReply> {
        let shard = request.shard.map(|s| s.id());
        let prepared = self.me()?.prepare_writes(request).await;
        self.watch(shard.as_slice(), prepared).map(|()| v1::PrepareReply {})
    }

    async fn write(&self, request: v1::WriteRequest) -> Result<v1::WriteReply> {
        let shard = request.shard.map(|s| s.id());
        let written = self.me()?.write_open(request).await;
        self.watch(shard.as_slice(), written).map(|()| v1::WriteReply {})
    }

    async fn undo(&self, request: v1::UndoRequest) -> Result<v1::UndoReply> {
        self.me()?.undo_open(request).await.map(|()| v1::UndoReply {})
    }

    async fn keep_alive(&self, request: v1::KeepAliveRequest) -> Result<v1::KeepAliveReply> {
        checks::until(request.deadline_ms)?;
        self.keep_open(&request)
    }

    async fn finish(&self, request: v1::FinishRequest) -> Result<v1::FinishReply> {
        let until = checks::until(request.deadline_ms)?;
        let reference = request.shard.ok_or_else(|| Error::protocol("finish names no shard"))?;
        let (txn, timestamp) = (TxnId::from_wire(&request.txn)?, Timestamp(request.commit_timestamp));
        if request.give_up {
            return self.give_up(reference.id(), txn).map(|()| v1::FinishReply {});
        }
        self.me()?
            .finish_txn(reference.id(), Some(reference), txn, timestamp, until)
            .await
            .map(|()| v1::FinishReply {})
    }

    async fn outcome(&self, request: v1::OutcomeRequest) -> Result<v1::OutcomeReply> {
        let until = checks::until(request.deadline_ms)?;
        self.me()?
            .outcome_of(request.home, TxnId::from_wire(&request.txn)?, request.resolve, until)
            .await
    }

    async fn stage(&self, begin: v1::StageBegin, rows: SendableRecordBatchStream) -> Result<v1::StageReply> {
        self.me()?.stage_rows(begin, rows).await
    }

    async fn read_index(&self, request: v1::ReadIndexRequest) -> Result<v1::ReadIndexReply> {
        Ok(v1::ReadIndexReply {
            log_index: self.me()?.index_for(request).await?.0,
        })
    }

    async fn digest(&self, request: v1::DigestRequest) -> Result<v1::DigestReply> {
        let shard = request.shard.map(|s| s.id());
        let digest = self.me()?.digest_of(request).await;
        self.watch(shard.as_slice(), digest)
    }

    async fn status(&self, request: v1::StatusRequest) -> Result<v1::StatusReply> {
        self.me()?.report(request).await
    }

    async fn change_leader(&self, request: v1::ChangeLeaderRequest) -> Result<v1::ChangeLeaderReply> {
        Ok(v1::ChangeLeaderReply {
            epoch: self.me()?.move_leader(request).await?.0,
        })
    }

    async fn profile(&self, request: v1::ProfileRequest) -> Result<v1::ProfileReply> {
        checks::until(request.deadline_ms)?;
        Ok(self.executor.profiles().take(&request.query_id))
    }

    fn worker(&self) -> Result<Box<dyn WorkerChannel>> {
        Ok(Box::new(LocalChannel(self.worker.clone())))
    }
}
