//! A shard node: the shards of one data directory, their tasks, and how they start and end.
//!
//! ```text
//!   DIR/LOCK  identity.json  wal/  shards/<group>-<index>/  spill/
//!   ShardNode ── one log, one set of leases, one executor
//!     └── per shard: driver (replication), applier (rows), committer (commit groups), compactor (files)
//! ```
//!
//! A node owns what the shard map gives to its *disk*: a wiped directory is another replica. It serves through
//! `ShardService` and its peers through `PeerHandler`; both are traits, so the same code runs in one process or many.

pub mod admin;
pub mod applier;
pub mod background;
pub mod checks;
pub mod committer;
pub mod compactor;
pub mod open;
mod open_txn;
mod peer;
pub mod reads;
mod repair;
mod service;
pub mod shard;
pub mod staging;
mod start;
pub mod watermark;
pub mod writes;

#[cfg(test)]
mod tests;

use crate::execute::Executor;
use crate::replication::lease::{LeaseTimings, Leases};
use crate::replication::message::Timings;
use crate::replication::transport::PeerTransport;
use crate::storage::wal::Wal;
use crate::storage::{ColumnCache, Identity, MetadataCache};
use crate::txn::failpoint::Failpoints;
use datafusion::execution::memory_pool::MemoryPool;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion_distributed::Worker;
use parking_lot::{Mutex, RwLock};
use shard::Shard;
use staging::Staged;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tessera_meta::MetaStore;
use tessera_meta::view::ViewKeeper;
use tessera_proto::service::{NodeDirectory, TimestampOracle};
use tessera_proto::{Error, NodeId, ReplicaId, ShardId};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use watermark::Watermark;

/// What a node needs to start.
pub struct NodeOptions {
    /// Its number, from 1, unique in the cluster.
    pub id: NodeId,
    /// Its data directory; created if missing.
    pub dir: PathBuf,
    /// How others reach it, `host:port`; empty = nodes of this process only.
    pub address: String,
    /// The meta store.
    pub meta: Arc<dyn MetaStore>,
    /// Draws commit timestamps.
    pub oracle: Arc<dyn TimestampOracle>,
    /// Reaches other nodes' shards, to resolve transactions.
    pub directory: Arc<dyn NodeDirectory>,
    /// Memory of all queries in this process.
    pub memory: Arc<dyn MemoryPool>,
    /// Threads that run this node's part of queries, and partitions of each part: the cores, divided by the nodes of the
    /// process.
    pub query_threads: usize,
    /// Decoded columns of all nodes in this process.
    pub columns: ColumnCache,
}

/// What has a default.
#[derive(Debug, Default)]
pub struct NodeTuning {
    /// How peers are reached; by default as [`NodeOptions::address`] suggests.
    pub transport: Option<Arc<dyn PeerTransport>>,
    /// Runs leaves; by default one of its own.
    pub executor: Option<Arc<Executor>>,
    /// Waits and windows of replication.
    pub replication: Option<Timings>,
    /// Heartbeats.
    pub leases: Option<LeaseTimings>,
    /// How long after the last sign of its router a prepared transaction is resolved without it.
    pub in_doubt_after: Option<Duration>,
    /// How long removed rows are kept at least, so that older snapshots can be read.
    pub retention: Option<Duration>,
}

/// See the module. All waits have deadlines, all tasks end in [`ShardNode::shutdown`].
pub struct ShardNode {
    pub(crate) id: ReplicaId,
    pub(crate) dir: PathBuf,
    pub(crate) identity: Identity,
    pub(crate) views: Arc<ViewKeeper>,
    pub(crate) wal: Wal,
    pub(crate) transport: Arc<dyn PeerTransport>,
    pub(crate) oracle: Arc<dyn TimestampOracle>,
    pub(crate) directory: Arc<dyn NodeDirectory>,
    pub(crate) executor: Arc<Executor>,
    pub(crate) worker: Worker,
    pub(crate) memory: Option<Arc<RuntimeEnv>>,
    pub(crate) failpoints: Failpoints,
    pub(crate) staged: Staged,
    pub(crate) leases: Mutex<Leases>,
    pub(crate) lease_timings: LeaseTimings,
    pub(crate) timings: Timings,
    pub(crate) in_doubt_after: Duration,
    pub(crate) begun: Instant,
    pub(crate) boot: u64,
    pub(crate) myself: Weak<ShardNode>,
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
    pub(crate) opened: watch::Sender<u64>,
    pub(crate) cache: Arc<MetadataCache>,
    pub(crate) watermark: Watermark,
    /// One compaction at a time: each takes a core and the disk.
    pub(crate) compacting: Arc<Semaphore>,
    /// Read while a shard is opened, written while one is rebuilt.
    opening: tokio::sync::RwLock<()>,
    /// Shards whose files are being checked.
    suspects: Mutex<BTreeSet<ShardId>>,
    shards: RwLock<BTreeMap<ShardId, Hosted>>,
    offline: Mutex<BTreeMap<ShardId, Error>>,
    /// Released when the node is dropped, or shut down.
    lock: Mutex<Option<std::fs::File>>,
}

/// A shard and the end of its tasks.
struct Hosted {
    shard: Arc<Shard>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl ShardNode {
    /// Number of this node.
    pub fn id(&self) -> NodeId {
        self.id.node
    }

    /// Node and disk.
    pub fn replica(&self) -> ReplicaId {
        self.id
    }

    /// Where tests may stop a commit.
    pub fn failpoints(&self) -> &Failpoints {
        &self.failpoints
    }

    /// The catalog and shard map as this node knows them.
    pub fn views(&self) -> &Arc<ViewKeeper> {
        &self.views
    }

    /// A shard of this node.
    pub fn shard(&self, shard: ShardId) -> Option<Arc<Shard>> {
        self.shards.read().get(&shard).map(|h| h.shard.clone())
    }

    /// All shards of this node, ascending.
    pub fn shards(&self) -> Vec<Arc<Shard>> {
        self.shards.read().values().map(|h| h.shard.clone()).collect()
    }

    /// Shards that could not be opened, and why.
    pub fn offline(&self) -> BTreeMap<ShardId, Error> {
        self.offline.lock().clone()
    }

    /// What requests to a shard see that could not be opened.
    pub(crate) fn offline_error(&self, shard: ShardId) -> Option<Error> {
        let error = self.offline.lock().get(&shard).cloned()?;
        Some(Error {
            message: format!("shard {shard} is offline on node {}: {}", self.id.node, error.message),
            ..error
        })
    }

    /// Runs a task until it ends or the node does.
    pub(crate) fn track(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// True if that is news.
    pub(crate) fn note_offline(&self, shard: ShardId, error: &Error) -> bool {
        let known = self.offline.lock().insert(shard, error.clone());
        known.is_none_or(|k| k.message != error.message)
    }

    pub(crate) fn holds_lease(&self, peer: NodeId) -> bool {
        self.leases.lock().holds(peer, self.begun.elapsed())
    }

    pub(crate) fn may_replace(&self, peer: NodeId) -> bool {
        self.leases.lock().may_replace(peer, self.begun.elapsed())
    }

    /// Tasks alive on the query threads; 0 when no query runs here.
    pub fn query_tasks(&self) -> usize {
        self.executor.runtime().tasks()
    }

    pub(crate) fn query_memory_reserved(&self) -> u64 {
        self.memory.as_ref().map_or(0, |m| m.memory_pool.reserved() as u64)
    }
}

impl std::fmt::Debug for ShardNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShardNode")
            .field("id", &self.id)
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}
