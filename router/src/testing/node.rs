//! Shard nodes in memory: they check epochs, keep prepared writes invisible, refuse duplicate keys and removals of rows that changed,
//! and run leaves.
//!
//! A commit shows on all of its shards at once, and no read begins while one is under way: what real nodes achieve by waiting.

use super::MemoryMeta;
use datafusion::arrow::array::{BooleanArray, RecordBatch};
use datafusion::arrow::compute::filter_record_batch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::TableProvider;
use datafusion::datasource::MemTable;
use datafusion::execution::{FunctionRegistry, SendableRecordBatchStream, SessionStateBuilder};
use datafusion::physical_plan::execute_stream;
use datafusion::physical_planner::{DefaultPhysicalPlanner, PhysicalPlanner};
use datafusion_proto::bytes::logical_plan_from_bytes_with_extension_codec;
use futures::TryStreamExt;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, OnceLock};
use tessera_meta::MetaStore;
use tessera_proto::fragment::{LeafPlanCodec, TableSource};
use tessera_proto::service::{NodeDirectory, ShardService, TimestampOracle};
use tessera_proto::shard_map::{NodeInfo, ShardConfig};
use tessera_proto::table::TableDef;
use tessera_proto::{Error, GroupId, NodeId, Result, ShardId, TableId, Timestamp, ipc, keys, token, v1};
use uuid::Uuid;

type Rows = BTreeMap<(ShardId, TableId), Vec<Chunk>>;

/// Rows that were added together, and when each was removed.
#[derive(Debug)]
struct Chunk {
    at: Timestamp,
    rows: RecordBatch,
    ends: Vec<Option<Timestamp>>,
}

impl Chunk {
    fn new(at: Timestamp, rows: RecordBatch) -> Self {
        let ends = vec![None; rows.num_rows()];
        Self { at, rows, ends }
    }

    fn keys(&self, columns: &[usize]) -> Result<Vec<Box<[u8]>>> {
        let columns: Vec<_> = columns.iter().map(|i| self.rows.column(*i).clone()).collect();
        token::canonical_keys(&columns)
    }

    fn is_visible(&self, row: usize, snapshot: Timestamp) -> bool {
        self.at <= snapshot && self.ends[row].is_none_or(|end| end > snapshot)
    }

    fn visible(&self, snapshot: Timestamp) -> RecordBatch {
        let mask: BooleanArray = (0..self.ends.len())
            .map(|row| Some(self.is_visible(row, snapshot)))
            .collect();
        filter_record_batch(&self.rows, &mask).unwrap()
    }
}

#[derive(Debug, Default)]
struct State {
    rows: Rows,
    prepared: HashMap<(Vec<u8>, ShardId), Vec<v1::TableWrite>>,
    staged: HashMap<String, RecordBatch>,
    /// Segments staged so far, dropped ones included.
    segments: usize,
    /// Reads to refuse as if a node had died under them.
    failing_reads: usize,
    /// Commits whose answer is lost.
    lost_commits: usize,
    /// Removals to refuse as if somebody had changed the rows.
    changed_rows: usize,
    outcomes: HashMap<Vec<u8>, Timestamp>,
    point_reads: usize,
}

/// All nodes.
pub(crate) struct FakeCluster {
    store: Arc<MemoryMeta>,
    oracle: OnceLock<Arc<dyn TimestampOracle>>,
    state: Mutex<State>,
    /// Held from a commit's timestamp until its rows show.
    committing: tokio::sync::Mutex<()>,
}

impl std::fmt::Debug for FakeCluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FakeCluster")
    }
}

#[derive(Debug, Clone)]
struct FakeNode {
    id: NodeId,
    cluster: Arc<FakeCluster>,
}

/// Finds the nodes of a cluster.
#[derive(Debug, Clone)]
pub(crate) struct FakeDirectory(pub(crate) Arc<FakeCluster>);

impl FakeCluster {
    /// `nodes` nodes, registered.
    pub(crate) async fn new(store: Arc<MemoryMeta>, nodes: u32) -> Arc<Self> {
        for id in (1..=nodes).map(NodeId) {
            let info = NodeInfo {
                id,
                disk: Uuid::from_u128(id.0.into()),
                address: String::new(),
                boot: Uuid::nil(),
            };
            let op = crate::cluster::bootstrap::put(keys::node(id), tessera_meta::Expect::Any, &info).unwrap();
            store.cas(vec![op]).await.unwrap();
        }
        Arc::new(Self {
            store,
            oracle: OnceLock::new(),
            state: Mutex::default(),
            committing: tokio::sync::Mutex::default(),
        })
    }

    pub(crate) fn directory(self: &Arc<Self>) -> Arc<dyn NodeDirectory> {
        Arc::new(FakeDirectory(self.clone()))
    }

    pub(crate) fn set_oracle(&self, oracle: Arc<dyn TimestampOracle>) {
        let _ = self.oracle.set(oracle);
    }

    pub(crate) fn fail_reads(&self, count: usize) {
        self.state.lock().failing_reads = count;
    }

    pub(crate) fn lose_commits(&self, count: usize) {
        self.state.lock().lost_commits = count;
    }

    pub(crate) fn change_rows(&self, count: usize) {
        self.state.lock().changed_rows = count;
    }

    pub(crate) fn point_reads(&self) -> usize {
        self.state.lock().point_reads
    }

    /// Segments ever staged, and those still invisible.
    pub(crate) fn segments(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.segments, state.staged.len())
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, key: &str) -> Result<T> {
        let entry = crate::cluster::bootstrap::read(self.store.as_ref(), key).await?;
        let entry = entry.ok_or_else(|| Error::stale_map(format!("{key} does not exist")))?;
        serde_json::from_slice(&entry.value).map_err(|e| Error::internal(e.to_string()))
    }

    async fn check(&self, node: NodeId, shard: Option<&v1::ShardRef>) -> Result<ShardId> {
        let shard = shard.ok_or_else(|| Error::protocol("no shard"))?;
        let config: ShardConfig = self.get(&keys::shard(shard.id())).await?;
        if config.epoch.0 != shard.epoch || config.leader.node != node {
            return Err(Error::stale_map(format!(
                "shard {} is at epoch {}",
                shard.id(),
                config.epoch
            )));
        }
        Ok(shard.id())
    }

    async fn tables(&self, writes: &[v1::TableWrite]) -> Result<Tables> {
        let mut tables = HashMap::new();
        for write in writes {
            tables.insert(write.table, self.get(&keys::table(TableId(write.table))).await?);
        }
        Ok(tables)
    }

    async fn draw(&self) -> Timestamp {
        self.oracle.get().unwrap().draw().await.unwrap()
    }
}

impl State {
    fn batches(&self, write: &v1::TableWrite) -> Result<Vec<RecordBatch>> {
        match &write.payload {
            Some(v1::table_write::Payload::Rows(bytes)) => ipc::decode(bytes),
            Some(v1::table_write::Payload::Staged(s)) => {
                Ok(s.segments.iter().map(|s| self.staged[&s.file].clone()).collect())
            }
            None if write.removed.is_empty() => Err(Error::protocol("a write of nothing")),
            None => Ok(vec![]),
        }
    }

    /// Whether a transaction may do this in a shard: what it removes is as it was read, what it adds is not there.
    fn check(&mut self, shard: ShardId, writes: &[v1::TableWrite], tables: &Tables, read_at: Timestamp) -> Result<()> {
        for write in writes {
            let table = &tables[&write.table];
            let removed = removed_keys(write)?;
            if !removed.is_empty() && self.changed_rows > 0 {
                self.changed_rows -= 1;
                return Err(Error::changed("row changed"));
            }
            let mut living = HashMap::new();
            for chunk in self.rows.get(&(shard, table.id)).into_iter().flatten() {
                let keys = chunk.keys(&table.row_key())?.into_iter().zip(&chunk.ends);
                living.extend(keys.filter(|(_, end)| end.is_none()).map(|(key, _)| (key, chunk.at)));
            }
            for key in &removed {
                if living.remove(key).is_none_or(|at| at > read_at) || self.is_being_removed(shard, table.id, key)? {
                    return Err(Error::changed(format!("row of table \"{}\" changed", table.name)));
                }
            }
            let mut seen: HashSet<_> = living.into_keys().collect();
            for rows in self.batches(write)? {
                let keys = Chunk::new(read_at, rows).keys(&table.row_key())?;
                if keys.into_iter().any(|key| !seen.insert(key)) {
                    return Err(Error::duplicate_key(&table.name, "key already exists"));
                }
            }
        }
        Ok(())
    }

    /// Whether a transaction that is prepared removes this row.
    fn is_being_removed(&self, shard: ShardId, table: TableId, key: &[u8]) -> Result<bool> {
        let prepared = self.prepared.iter().filter(|((_, s), _)| *s == shard);
        for write in prepared.flat_map(|(_, writes)| writes).filter(|w| w.table == table.0) {
            if removed_keys(write)?.iter().any(|removed| **removed == *key) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn apply(&mut self, shard: ShardId, writes: &[v1::TableWrite], tables: &Tables, at: Timestamp) -> Result<()> {
        for write in writes {
            let batches = self.batches(write)?;
            if let Some(v1::table_write::Payload::Staged(s)) = &write.payload {
                s.segments.iter().for_each(|s| drop(self.staged.remove(&s.file)));
            }
            let (row_key, removed) = (tables[&write.table].row_key(), removed_keys(write)?);
            let chunks = self.rows.entry((shard, TableId(write.table))).or_default();
            for chunk in chunks.iter_mut() {
                for (row, key) in chunk.keys(&row_key)?.into_iter().enumerate() {
                    if chunk.ends[row].is_none() && removed.contains(&key) {
                        chunk.ends[row] = Some(at);
                    }
                }
            }
            chunks.extend(batches.into_iter().map(|rows| Chunk::new(at, rows)));
        }
        Ok(())
    }
}

type Tables = HashMap<u64, TableDef>;

/// Keys of the rows that a write removes.
fn removed_keys(write: &v1::TableWrite) -> Result<HashSet<Box<[u8]>>> {
    if write.removed.is_empty() {
        return Ok(HashSet::new());
    }
    let batches = ipc::decode(&write.removed)?;
    let keys = batches.iter().map(|batch| token::canonical_keys(batch.columns()));
    Ok(keys.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

/// Gives leaves the rows of some shards at a snapshot.
#[derive(Debug)]
struct Source {
    cluster: Arc<FakeCluster>,
    shards: Vec<ShardId>,
    references: Vec<GroupId>,
    snapshot: Timestamp,
    tables: HashMap<TableId, TableDef>,
}

impl TableSource for Source {
    fn provider(&self, table: TableId, version: u64, row_id: bool) -> Result<Arc<dyn TableProvider>> {
        let def = &self.tables[&table];
        assert_eq!(def.version, version);
        let shards: Vec<ShardId> = match def.is_reference() {
            true => vec![ShardId {
                group: def.group,
                index: 0,
            }],
            false => self.shards.iter().copied().filter(|s| s.group == def.group).collect(),
        };
        assert!(
            !def.is_reference() || self.references.contains(&def.group),
            "the leaf names the reference groups it reads"
        );
        let state = self.cluster.state.lock();
        let rows = shards
            .iter()
            .flat_map(|s| state.rows.get(&(*s, table)).into_iter().flatten());
        let shown = match row_id {
            true => def.arrow_schema(),
            false => def.visible_schema(),
        };
        let columns: Vec<usize> = (0..shown.fields().len()).collect();
        let batches = rows
            .map(|chunk| chunk.visible(self.snapshot).project(&columns).unwrap())
            .collect();
        Ok(Arc::new(MemTable::try_new(shown, vec![batches])?))
    }
}

#[async_trait::async_trait]
impl ShardService for FakeNode {
    async fn execute(&self, request: v1::ExecuteRequest, schema: SchemaRef) -> Result<SendableRecordBatchStream> {
        for shard in &request.shards {
            self.cluster.check(self.id, Some(shard)).await?;
        }
        {
            let mut state = self.cluster.state.lock();
            if state.failing_reads > 0 {
                state.failing_reads -= 1;
                return Err(Error::unavailable("node is gone"));
            }
        }
        drop(self.cluster.committing.lock().await);
        let (entries, _) = self.cluster.store.range("/table/").await?;
        let defs = entries
            .iter()
            .map(|e| serde_json::from_slice::<TableDef>(&e.value).unwrap());
        let source = Source {
            cluster: self.cluster.clone(),
            shards: request.shards.iter().map(v1::ShardRef::id).collect(),
            references: request
                .references
                .iter()
                .map(|r| r.shard.as_ref().unwrap().id().group)
                .collect(),
            snapshot: Timestamp(request.snapshot),
            tables: defs.map(|d| (d.id, d)).collect(),
        };
        let mut state = SessionStateBuilder::new().with_default_features().build();
        for function in tessera_proto::functions::portable() {
            state.register_udf(function)?;
        }
        for function in tessera_proto::functions::aggregates() {
            state.register_udaf(function)?;
        }
        let codec = LeafPlanCodec {
            tables: Some(Arc::new(source)),
        };
        let plan = logical_plan_from_bytes_with_extension_codec(&request.plan, &state.task_ctx(), &codec)?;
        let physical = DefaultPhysicalPlanner::default()
            .create_physical_plan(&plan, &state)
            .await?;
        let rows = execute_stream(physical, state.task_ctx())?;
        let label = schema.clone();
        let rows = rows.and_then(move |b| std::future::ready(ipc::relabel(&label, b)));
        Ok(Box::pin(
            datafusion::physical_plan::stream::RecordBatchStreamAdapter::new(schema, rows),
        ))
    }

    async fn point_read(&self, request: v1::PointReadRequest) -> Result<v1::PointReadReply> {
        let shard = self.cluster.check(self.id, request.shard.as_ref()).await?;
        let table: TableDef = self.cluster.get(&keys::table(TableId(request.table))).await?;
        let wanted = ipc::decode(&request.keys)?.remove(0);
        let wanted = token::canonical_keys(wanted.columns())?;
        drop(self.cluster.committing.lock().await);
        let mut state = self.cluster.state.lock();
        state.point_reads += 1;
        let columns: Vec<usize> = request.projection.iter().map(|i| *i as usize).collect();
        let schema = Arc::new(table.arrow_schema().project(&columns).unwrap());
        let mut found = vec![];
        for chunk in state.rows.get(&(shard, table.id)).into_iter().flatten() {
            let keys = chunk.keys(&table.primary_key)?;
            let rows = (0..keys.len())
                .filter(|row| wanted.contains(&keys[*row]) && chunk.is_visible(*row, Timestamp(request.snapshot)));
            found.extend(rows.map(|row| chunk.rows.slice(row, 1).project(&columns).unwrap()));
        }
        Ok(v1::PointReadReply {
            rows: ipc::encode(&schema, &found)?,
        })
    }

    async fn commit(&self, request: v1::CommitRequest) -> Result<v1::CommitReply> {
        let home = self.cluster.check(self.id, request.home.as_ref()).await?;
        let mut tables = self.cluster.tables(&request.writes).await?;
        let _committing = self.cluster.committing.lock().await;
        let participants: Vec<ShardId> = request.participants.iter().map(v1::ShardRef::id).collect();
        let prepared: Vec<_> = {
            let state = self.cluster.state.lock();
            let writes = |shard: &ShardId| state.prepared.get(&(request.txn.to_vec(), *shard)).cloned();
            let prepared = participants.iter().map(|shard| (*shard, writes(shard)));
            prepared
                .map(|(shard, writes)| (shard, writes.unwrap_or_default()))
                .collect()
        };
        for (_, writes) in &prepared {
            tables.extend(self.cluster.tables(writes).await?);
        }
        let at = self.cluster.draw().await;
        let mut state = self.cluster.state.lock();
        state.check(home, &request.writes, &tables, Timestamp(request.read_at))?;
        state.apply(home, &request.writes, &tables, at)?;
        for (shard, writes) in prepared {
            state.apply(shard, &writes, &tables, at)?;
            state.prepared.remove(&(request.txn.to_vec(), shard));
        }
        state.outcomes.insert(request.txn.to_vec(), at);
        if state.lost_commits > 0 {
            state.lost_commits -= 1;
            return Err(Error::outcome_unknown("answer lost"));
        }
        Ok(v1::CommitReply { timestamp: at.0 })
    }

    async fn prepare(&self, request: v1::PrepareRequest) -> Result<v1::PrepareReply> {
        let shard = self.cluster.check(self.id, request.shard.as_ref()).await?;
        if request.still {
            return Ok(v1::PrepareReply {});
        }
        let tables = self.cluster.tables(&request.writes).await?;
        let mut state = self.cluster.state.lock();
        state.check(shard, &request.writes, &tables, Timestamp(request.read_at))?;
        state.prepared.insert((request.txn.to_vec(), shard), request.writes);
        Ok(v1::PrepareReply {})
    }

    async fn write(&self, _: v1::WriteRequest) -> Result<v1::WriteReply> {
        Err(Error::internal("these nodes have no open transactions"))
    }

    async fn undo(&self, _: v1::UndoRequest) -> Result<v1::UndoReply> {
        Err(Error::internal("these nodes have no open transactions"))
    }

    async fn keep_alive(&self, _: v1::KeepAliveRequest) -> Result<v1::KeepAliveReply> {
        Ok(v1::KeepAliveReply::default())
    }

    async fn finish(&self, request: v1::FinishRequest) -> Result<v1::FinishReply> {
        let shard = request.shard.as_ref().unwrap().id();
        let mut state = self.cluster.state.lock();
        // What committed was applied by its home.
        let left = state.prepared.remove(&(request.txn.to_vec(), shard));
        match request.commit_timestamp {
            0 => {
                let prefix = format!("{shard}-{:?}-", request.txn);
                state.staged.retain(|file, _| !file.starts_with(&prefix));
            }
            _ => assert!(left.is_none(), "a commit shows on all shards at once"),
        }
        Ok(v1::FinishReply {})
    }

    async fn outcome(&self, request: v1::OutcomeRequest) -> Result<v1::OutcomeReply> {
        let state = self.cluster.state.lock();
        Ok(match state.outcomes.get(&request.txn.to_vec()) {
            Some(at) => v1::OutcomeReply {
                state: v1::outcome_reply::State::Committed.into(),
                timestamp: at.0,
            },
            None => v1::OutcomeReply {
                state: v1::outcome_reply::State::Aborted.into(),
                timestamp: 0,
            },
        })
    }

    async fn stage(&self, begin: v1::StageBegin, rows: SendableRecordBatchStream) -> Result<v1::StageReply> {
        let shard = self.cluster.check(self.id, begin.shard.as_ref()).await?;
        let batches: Vec<RecordBatch> = rows.try_collect().await?;
        let mut state = self.cluster.state.lock();
        let mut segments = vec![];
        for batch in batches {
            let file = format!("{shard}-{:?}-{}", begin.txn, state.segments);
            state.segments += 1;
            segments.push(v1::SegmentRef {
                file: file.clone(),
                rows: batch.num_rows() as u64,
                bytes: 0,
                checksum: Default::default(),
            });
            state.staged.insert(file, batch);
        }
        Ok(v1::StageReply {
            rows: segments.iter().map(|s| s.rows).sum(),
            segments,
        })
    }

    async fn read_index(&self, request: v1::ReadIndexRequest) -> Result<v1::ReadIndexReply> {
        self.cluster.check(self.id, request.shard.as_ref()).await?;
        Ok(v1::ReadIndexReply { log_index: 1 })
    }

    async fn digest(&self, request: v1::DigestRequest) -> Result<v1::DigestReply> {
        let shard = request.shard.as_ref().unwrap().id();
        let state = self.cluster.state.lock();
        let rows = state
            .rows
            .get(&(shard, TableId(request.table)))
            .into_iter()
            .flatten()
            .map(|chunk| chunk.ends.iter().filter(|end| end.is_none()).count() as u64)
            .sum();
        Ok(v1::DigestReply {
            digest: vec![7; 16].into(),
            rows,
        })
    }

    async fn status(&self, _: v1::StatusRequest) -> Result<v1::StatusReply> {
        let (entries, _) = self.cluster.store.range("/shard/").await?;
        let mut shards = vec![];
        for entry in entries {
            let config: ShardConfig = serde_json::from_slice(&entry.value).unwrap();
            let id = keys::parse_shard(&entry.key).unwrap();
            if config.replica_on(self.id).is_some() {
                shards.push(v1::ShardStatus {
                    shard: Some(v1::ShardRef::new(id, config.epoch)),
                    leader: config.leader.node == self.id,
                    state: "serving".into(),
                    ..Default::default()
                });
            }
        }
        Ok(v1::StatusReply {
            node: self.id.0,
            shards,
            ..Default::default()
        })
    }

    async fn change_leader(&self, _: v1::ChangeLeaderRequest) -> Result<v1::ChangeLeaderReply> {
        Err(Error::unsupported("moving shards", "none"))
    }
    async fn profile(&self, _: v1::ProfileRequest) -> Result<v1::ProfileReply> {
        Err(Error::unsupported("profiles", "none"))
    }
    fn worker(&self) -> Result<Box<dyn datafusion_distributed::WorkerChannel>> {
        Err(Error::unsupported("exchanges", "none"))
    }
}

impl NodeDirectory for FakeDirectory {
    fn node(&self, id: NodeId) -> Result<Arc<dyn ShardService>> {
        Ok(Arc::new(FakeNode {
            id,
            cluster: self.0.clone(),
        }))
    }
}
