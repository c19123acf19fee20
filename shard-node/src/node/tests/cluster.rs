//! Whole nodes in one process, for tests: in-memory meta store, a counter as oracle, short timings.

use super::super::{NodeOptions, NodeTuning, ShardNode};
use crate::replication::lease::LeaseTimings;
use crate::replication::message::Timings;
use crate::replication::transport::InProcessNetwork;
use datafusion::arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tessera_meta::directory::ClusterDirectory;
use tessera_meta::local::LocalMeta;
use tessera_meta::view::ViewKeeper;
use tessera_meta::{Change, Expect, MetaStore, Op};
use tessera_proto::service::{NodeDirectory, ShardService, TimestampOracle};
use tessera_proto::shard_map::{ClusterInfo, ShardConfig};
use tessera_proto::sql_type::{KeyClass, SqlType};
use tessera_proto::table::{ColocationGroup, ColumnDef, Distribution, TableDef};
use tessera_proto::token::{equal_ranges, tokens};
use tessera_proto::{
    Epoch, Error, FORMAT_VERSION, GroupId, NodeId, Result, ShardId, TableId, Timestamp, TxnId, ipc, keys, v1,
};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Longest wait for anything in a test; generous, because machines are busy.
pub const PATIENCE: Duration = Duration::from_secs(60);
pub const TABLE: TableId = TableId(20_000);
pub const GROUP: GroupId = GroupId(30_000);

#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

#[async_trait::async_trait]
impl TimestampOracle for Counter {
    async fn draw(&self) -> Result<Timestamp> {
        Ok(Timestamp(self.0.fetch_add(1, Ordering::SeqCst) + 1))
    }
}

pub struct Cluster {
    dir: TempDir,
    pub meta: Arc<LocalMeta>,
    pub views: Arc<ViewKeeper>,
    directory: Arc<ClusterDirectory>,
    pub oracle: Arc<Counter>,
    pub network: Arc<InProcessNetwork>,
    nodes: BTreeMap<u32, Arc<ShardNode>>,
    /// Servers of nodes that are reached by gRPC only, and their ends.
    servers: BTreeMap<u32, (CancellationToken, JoinHandle<Result<()>>)>,
    grpc: bool,
    pub table: Arc<TableDef>,
}

impl Cluster {
    /// Nodes 1..=nodes, and a table (k int8 primary key, v text) of `shards` shards with two copies each.
    pub async fn new(nodes: u32, shards: u32) -> Self {
        Self::with(nodes, shards, false).await
    }

    /// The same, but nodes and the test reach each other by gRPC only.
    pub async fn over_grpc(nodes: u32, shards: u32) -> Self {
        Self::with(nodes, shards, true).await
    }

    async fn with(nodes: u32, shards: u32, grpc: bool) -> Self {
        let meta = LocalMeta::memory();
        let cluster = ClusterInfo {
            cluster_id: Uuid::new_v4(),
            format_version: FORMAT_VERSION,
        };
        put(&meta, keys::CLUSTER.into(), &cluster).await;
        let views = ViewKeeper::start(meta.clone()).await.unwrap();
        let directory = Arc::new(ClusterDirectory::new(views.clone(), tokio::runtime::Handle::current()));
        let network = InProcessNetwork::of_cluster(&cluster.cluster_id.to_string());
        let dir = tempfile::tempdir().unwrap();
        let table = Arc::new(table());
        let mut this = Self {
            dir,
            meta,
            views,
            directory,
            oracle: Arc::default(),
            network,
            nodes: BTreeMap::new(),
            servers: BTreeMap::new(),
            grpc,
            table,
        };
        for node in 1..=nodes {
            this.start(node).await;
        }
        this.create(shards).await;
        this
    }

    async fn create(&self, shards: u32) {
        let ids: Vec<_> = self.nodes.values().map(|n| n.replica()).collect();
        for index in 0..shards {
            let leader = ids[index as usize % ids.len()];
            let mut in_sync = vec![leader];
            in_sync.extend((ids.len() > 1).then(|| ids[(index as usize + 1) % ids.len()]));
            let config = ShardConfig {
                epoch: Epoch(1),
                leader,
                in_sync,
                learners: vec![],
            };
            put(&self.meta, keys::shard(ShardId { group: GROUP, index }), &config).await;
        }
        let group = ColocationGroup {
            id: GROUP,
            key_classes: vec![KeyClass::Int],
            ranges: equal_ranges(shards),
            reference: false,
        };
        put(&self.meta, keys::group(GROUP), &group).await;
        put(&self.meta, keys::table(TABLE), &self.table).await;
    }

    pub async fn start(&mut self, node: u32) {
        if self.grpc {
            return self.serve(node).await;
        }
        let started = self.try_start(node, String::new()).await.unwrap();
        let service: Arc<dyn ShardService> = started.clone();
        self.directory.register(NodeId(node), Arc::downgrade(&service));
        self.nodes.insert(node, started);
    }

    async fn serve(&mut self, node: u32) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let started = self.try_start(node, address).await.unwrap();
        let stop = CancellationToken::new();
        let server = tokio::spawn(crate::server::serve(started.clone(), listener, stop.clone()));
        self.servers.insert(node, (stop, server));
        self.nodes.insert(node, started);
    }

    pub async fn try_start(&self, node: u32, address: String) -> Result<Arc<ShardNode>> {
        let options = NodeOptions {
            id: NodeId(node),
            dir: self.dir.path().join(format!("node-{node}")),
            address,
            meta: self.meta.clone(),
            oracle: self.oracle.clone(),
            directory: self.directory.clone(),
            memory: tessera_proto::memory::query_pool(64 << 20),
            query_threads: 2,
            columns: crate::storage::ColumnCache::new(16 << 20),
        };
        let tuning = NodeTuning {
            replication: Some(Timings {
                silent: Duration::from_millis(300),
                retry: Duration::from_millis(200),
                recovery: Duration::from_millis(1_500),
                ..Timings::default()
            }),
            leases: Some(LeaseTimings {
                beat: Duration::from_millis(50),
                lease: Duration::from_millis(1_000),
                grace: Duration::from_millis(1_400),
            }),
            in_doubt_after: Some(Duration::from_millis(300)),
            // Nothing is forgotten until a test says that nothing older is read.
            retention: Some(Duration::ZERO),
            ..NodeTuning::default()
        };
        ShardNode::start_with(options, tuning).await
    }

    pub fn node(&self, node: u32) -> &Arc<ShardNode> {
        &self.nodes[&node]
    }

    /// As a crash: nothing is sealed.
    pub async fn halt(&mut self, node: u32) {
        self.stop(node, false).await;
    }

    async fn stop(&mut self, node: u32, clean: bool) {
        if let Some((stop, server)) = self.servers.remove(&node) {
            stop.cancel();
            server.await.unwrap().unwrap();
        }
        let old = self.nodes.remove(&node).unwrap();
        if clean { old.shutdown().await } else { old.halt().await }
    }

    pub async fn restart_all(&mut self, clean: bool) {
        let nodes: Vec<u32> = self.nodes.keys().copied().collect();
        for node in &nodes {
            self.stop(*node, clean).await;
        }
        for node in nodes {
            self.start(node).await;
        }
    }

    /// A node's data directory.
    pub fn path(&self, node: u32) -> std::path::PathBuf {
        self.dir.path().join(format!("node-{node}"))
    }

    pub fn wipe(&self, node: u32) {
        std::fs::remove_dir_all(self.path(node)).unwrap();
    }

    /// Stops a node so that its rows are in files.
    pub async fn shut_down(&mut self, node: u32) {
        self.stop(node, true).await;
    }

    pub fn shard(&self, index: u32) -> ShardId {
        ShardId { group: GROUP, index }
    }

    pub async fn config(&self, index: u32) -> ShardConfig {
        self.views.refresh().await.unwrap().shards[&self.shard(index)]
            .config
            .clone()
    }

    /// Polls the meta store until a shard's configuration is as wanted.
    pub async fn until_config(&self, index: u32, what: &str, wanted: impl Fn(&ShardConfig) -> bool) -> ShardConfig {
        let end = Instant::now() + PATIENCE;
        loop {
            let view = self.views.refresh().await.unwrap();
            let config = &view.shards[&self.shard(index)].config;
            if wanted(config) {
                return config.clone();
            }
            assert!(
                Instant::now() < end,
                "{what}: {config:?}; {:?}",
                self.nodes
                    .values()
                    .map(|n| n.shard(self.shard(index)).map(|s| s.status.borrow().clone()))
                    .collect::<Vec<_>>()
            );
            self.meta.wait(view.revision, Duration::from_millis(200)).await.unwrap();
        }
    }

    pub async fn reference(&self, index: u32) -> (v1::ShardRef, Arc<dyn ShardService>) {
        let config = self.config(index).await;
        let service = self.directory.node(config.leader.node).unwrap();
        (v1::ShardRef::new(self.shard(index), config.epoch), service)
    }

    /// Keys of `range` that live in a shard.
    pub fn keys_of(&self, index: u32, range: std::ops::Range<i64>) -> Vec<i64> {
        let all: Vec<i64> = range.collect();
        let ids = tokens(&[Arc::new(Int64Array::from(all.clone())) as ArrayRef]).unwrap();
        let group = &self.views.current().groups[&GROUP];
        all.into_iter()
            .zip(ids)
            .filter(|(_, t)| group.shard_of(*t) == index)
            .map(|(k, _)| k)
            .collect()
    }

    pub fn batch(&self, keys: &[i64]) -> RecordBatch {
        let values: Vec<String> = keys.iter().map(|k| format!("value {k}")).collect();
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from(keys.to_vec())),
            Arc::new(StringArray::from(values)),
        ];
        let schema = self.table.arrow_schema();
        let columns = columns
            .into_iter()
            .zip(schema.fields())
            .map(|(c, f)| datafusion::arrow::compute::cast(&c, f.data_type()).unwrap());
        RecordBatch::try_new(schema.clone(), columns.collect()).unwrap()
    }

    pub fn write(&self, keys: &[i64]) -> v1::TableWrite {
        let batch = self.batch(keys);
        let rows = ipc::encode(&batch.schema(), &[batch]).unwrap();
        v1::TableWrite {
            table: TABLE.0,
            schema_version: 1,
            payload: Some(v1::table_write::Payload::Rows(rows)),
            ..Default::default()
        }
    }

    /// The removal of keys.
    pub fn removal(&self, keys: &[i64]) -> v1::TableWrite {
        let schema = self.table.arrow_schema().project(&self.table.row_key()).unwrap();
        let key: ArrayRef = Arc::new(Int64Array::from(keys.to_vec()));
        let key = datafusion::arrow::compute::cast(&key, schema.field(0).data_type()).unwrap();
        let batch = RecordBatch::try_new(Arc::new(schema), vec![key]).unwrap();
        v1::TableWrite {
            table: TABLE.0,
            schema_version: 1,
            payload: None,
            removed: ipc::encode(&batch.schema(), &[batch]).unwrap(),
        }
    }

    /// Inserts keys as one transaction, as a router would; retries what is safe to retry.
    pub async fn insert(&self, keys: std::ops::Range<i64>) -> Result<Timestamp> {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.try_insert(TxnId::generate(), keys.clone()).await {
                Err(error) if error.is_retryable() && Instant::now() < end => {
                    tokio::time::sleep(Duration::from_millis(20)).await
                }
                other => return other,
            }
        }
    }

    pub async fn try_insert(&self, txn: TxnId, keys: std::ops::Range<i64>) -> Result<Timestamp> {
        self.transact(txn, keys, Timestamp(0), |keys| self.write(keys)).await
    }

    /// One transaction that does to each shard's keys what `write` says.
    pub async fn transact(
        &self,
        txn: TxnId,
        keys: std::ops::Range<i64>,
        read_at: Timestamp,
        write: impl Fn(&[i64]) -> v1::TableWrite,
    ) -> Result<Timestamp> {
        let view = self.views.refresh().await?;
        let read_at = read_at.0;
        let shards: Vec<u32> = view.group_shards(GROUP).map(|(id, _)| id.index).collect();
        let parts: Vec<(u32, Vec<i64>)> = shards
            .into_iter()
            .map(|i| (i, self.keys_of(i, keys.clone())))
            .filter(|(_, k)| !k.is_empty())
            .collect();
        let (home, home_service) = self.reference(parts[0].0).await;
        let mut prepared = Vec::new();
        let mut failed = None;
        for (index, keys) in &parts[1..] {
            let (shard, service) = self.reference(*index).await;
            let request = v1::PrepareRequest {
                open: false,
                shard: Some(shard),
                txn: txn.to_wire(),
                home: Some(home),
                meta_revision: view.revision,
                deadline_ms: 20_000,
                writes: vec![write(keys)],
                router: 1,
                still: false,
                read_at,
            };
            prepared.push(shard);
            if let Err(error) = service.prepare(request).await {
                failed = Some(error);
                break;
            }
        }
        let result = match failed {
            Some(error) => Err(error),
            None => {
                let request = v1::CommitRequest {
                    open: false,
                    home: Some(home),
                    txn: txn.to_wire(),
                    meta_revision: view.revision,
                    deadline_ms: 20_000,
                    participants: prepared.clone(),
                    writes: vec![write(&parts[0].1)],
                    read_at,
                };
                home_service.commit(request).await.map(|r| Timestamp(r.timestamp))
            }
        };
        let unknown = result.as_ref().is_err_and(|e| e.code == "40003");
        for shard in prepared.into_iter().filter(|_| !unknown) {
            let timestamp = result.as_ref().map_or(0, |t| t.0);
            let request = v1::FinishRequest {
                give_up: false,
                shard: Some(shard),
                txn: txn.to_wire(),
                commit_timestamp: timestamp,
                deadline_ms: 5_000,
            };
            let _ = self.reference(shard.index).await.1.finish(request).await;
        }
        result
    }

    /// Rows that a fresh snapshot sees in all shards, read as the leaders allow.
    pub async fn rows(&self) -> u64 {
        let mut rows = 0;
        let snapshot = self.oracle.draw().await.unwrap();
        for index in 0..self.views.refresh().await.unwrap().group_shards(GROUP).count() as u32 {
            rows += self.digest_at(index, snapshot).await.1;
        }
        rows
    }

    /// Digest of a shard on its leader at a snapshot.
    pub async fn digest_at(&self, index: u32, snapshot: Timestamp) -> (Vec<u8>, u64, u64) {
        self.try_digest_at(index, snapshot).await.unwrap()
    }

    pub async fn try_digest_at(&self, index: u32, snapshot: Timestamp) -> Result<(Vec<u8>, u64, u64)> {
        let end = Instant::now() + PATIENCE;
        loop {
            let (shard, service) = self.reference(index).await;
            let request = v1::ReadIndexRequest {
                shard: Some(shard),
                snapshot: snapshot.0,
                deadline_ms: 10_000,
            };
            match service.read_index(request).await {
                Ok(reply) => return self.digest_on(&*service, index, snapshot, reply.log_index).await,
                Err(error) if !error.is_retryable() || Instant::now() >= end => return Err(error),
                Err(_) => {}
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn digest_on(
        &self,
        service: &dyn ShardService,
        index: u32,
        snapshot: Timestamp,
        log_index: u64,
    ) -> Result<(Vec<u8>, u64, u64)> {
        let shard = Some(v1::ShardRef::new(self.shard(index), Epoch(0)));
        let request = v1::DigestRequest {
            shard,
            table: TABLE.0,
            snapshot: snapshot.0,
            deadline_ms: PATIENCE.as_millis() as u64,
            log_index,
        };
        let reply = service.digest(request).await?;
        Ok((reply.digest.to_vec(), reply.rows, log_index))
    }

    /// Every copy of every shard has the same rows.
    pub async fn assert_copies_equal(&self) {
        let differences = self.differences().await;
        assert!(differences.is_empty(), "{differences:?}");
    }

    /// Copies that do not have their leader's rows, or cannot say.
    pub async fn differences(&self) -> Vec<String> {
        let mut out = Vec::new();
        let snapshot = self.oracle.draw().await.unwrap();
        for index in 0..self.views.refresh().await.unwrap().group_shards(GROUP).count() as u32 {
            let (digest, rows, log_index) = match self.try_digest_at(index, snapshot).await {
                Ok(answer) => answer,
                Err(error) => {
                    out.push(format!("shard {index}: {error}"));
                    continue;
                }
            };
            for replica in self.config(index).await.replicas() {
                let node = self.node(replica.node.0);
                let copy = self.digest_on(&**node, index, snapshot, log_index).await;
                match copy {
                    Ok(copy) if (&copy.0, copy.1) == (&digest, rows) => {}
                    other => out.push(format!("shard {index} on node {}: {other:?}", replica.node)),
                }
            }
        }
        out
    }
}

async fn put(meta: &LocalMeta, key: String, value: &impl serde::Serialize) {
    let op = Op {
        key,
        expect: Expect::Any,
        change: Change::Put(serde_json::to_vec(value).unwrap()),
    };
    assert!(meta.cas(vec![op]).await.unwrap().applied);
}

fn table() -> TableDef {
    let column = |name: &str, sql_type, nullable| ColumnDef {
        name: name.into(),
        sql_type,
        nullable,
        default: None,
        hidden: false,
    };
    TableDef {
        id: TABLE,
        schema: "public".into(),
        name: "t".into(),
        columns: vec![column("k", SqlType::Int8, false), column("v", SqlType::Text, true)],
        primary_key: vec![0],
        cluster_by: vec![],
        distribution: Distribution::Sharded { key: vec![0] },
        group: GROUP,
        version: 1,
    }
}

/// For tests that expect a refusal.
pub fn code<T: std::fmt::Debug>(result: Result<T>) -> String {
    result.map_err(|e: Error| e.code).unwrap_err()
}
