//! Start, stop, and the opening and closing of shards.

use super::shard::Shard;
use super::watermark::{RETENTION_DEFAULT, Watermark};
use super::{Hosted, NodeOptions, NodeTuning, ShardNode, applier, background, committer, compactor, open, repair};
use crate::execute::{Executor, QueryRuntime, query_memory};
use crate::replication::driver::{self, Ports};
use crate::replication::lease::Leases;
use crate::replication::transport::{GrpcTransport, InProcessNetwork, PeerHandler, PeerTransport};
use crate::storage::MetadataCache;
use crate::storage::wal::Record;
use crate::txn::failpoint::Failpoints;
use fs2::FileExt;
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tessera_meta::view::{ClusterView, ViewKeeper};
use tessera_meta::{Change, Expect, Op};
use tessera_proto::shard_map::{ClusterInfo, NodeInfo};
use tessera_proto::{Error, FORMAT_VERSION, NodeId, ReplicaId, Result, ShardId, keys};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

/// How long a node waits for the cluster to be created (by its first router).
const CLUSTER_TIMEOUT: Duration = Duration::from_secs(60);
/// Attempts to register, when others write the same key.
const REGISTER_ATTEMPTS: usize = 10;
/// Longest wait for tasks at shutdown; each of them has a shorter deadline itself.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(30);
/// Age at which a prepared transaction is resolved without its router, unless that says every 250 ms that it is alive.
const IN_DOUBT_AFTER: Duration = Duration::from_secs(1);
/// Parquet footers kept in memory.
const FOOTER_BYTES: usize = 64 << 20;

impl ShardNode {
    /// Starts a node: locks its directory, replays its log, registers it, opens its shards.
    ///
    /// # Errors
    /// 55006 when another process has the directory, 55000 when it belongs to another cluster, node or format version, XX001
    /// when its log is damaged, 08006 when the cluster does not exist or cannot be reached.
    pub async fn start(options: NodeOptions) -> Result<Arc<Self>> {
        Self::start_with(options, NodeTuning::default()).await
    }

    /// [`Self::start`] with other than default parts.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_with(options: NodeOptions, tuning: NodeTuning) -> Result<Arc<Self>> {
        let lock = lock_dir(&options.dir)?;
        let views = ViewKeeper::start(options.meta.clone()).await?;
        let started = Self::build(options, tuning, lock, views.clone()).await;
        match started {
            Ok(node) => Ok(node),
            Err(error) => {
                views.shutdown().await;
                Err(error)
            }
        }
    }

    async fn build(options: NodeOptions, tuning: NodeTuning, lock: File, views: Arc<ViewKeeper>) -> Result<Arc<Self>> {
        let cluster = cluster(&views).await?;
        let (dir, id, name) = (options.dir.clone(), options.id, cluster.cluster_id.to_string());
        let view = views.current();
        let opened = tokio::task::spawn_blocking(move || repair::open_disk(&dir, &name, id, &view));
        let (identity, wal, report) = opened
            .await
            .map_err(|e| Error::internal(format!("opening the log: {e}")))??;
        tracing::info!(node = %id, shards = report.shards.len(), files = report.files, cut_bytes = report.cut_bytes, "log opened");
        let replica = ReplicaId {
            node: id,
            disk: identity.disk,
        };
        let transport = tuning
            .transport
            .unwrap_or_else(|| transport(&options.address, id, &identity.cluster_id));
        let (executor, memory) = match tuning.executor {
            Some(executor) => (executor, None),
            None => executor(&options)?,
        };
        let worker = executor.worker(options.directory.clone(), id)?;
        let lease_timings = tuning.leases.unwrap_or_default();
        let (begun, boot) = (Instant::now(), Uuid::new_v4());
        let boot_number = boot.as_u64_pair().0;
        let node = Arc::new_cyclic(|myself: &Weak<ShardNode>| ShardNode {
            id: replica,
            dir: options.dir.clone(),
            identity,
            views,
            wal,
            transport,
            oracle: options.oracle,
            directory: options.directory,
            executor,
            worker,
            memory,
            failpoints: Failpoints::default(),
            staged: super::Staged::default(),
            leases: Mutex::new(Leases::new(lease_timings, Duration::ZERO, boot_number)),
            lease_timings,
            timings: tuning.replication.unwrap_or_default(),
            in_doubt_after: tuning.in_doubt_after.unwrap_or(IN_DOUBT_AFTER),
            begun,
            boot: boot_number,
            myself: myself.clone(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            opened: watch::Sender::new(0),
            cache: MetadataCache::new(FOOTER_BYTES, options.columns.clone()),
            watermark: Watermark::new(tuning.retention.unwrap_or(RETENTION_DEFAULT)),
            compacting: Arc::new(Semaphore::new(1)),
            opening: tokio::sync::RwLock::default(),
            suspects: Mutex::new(BTreeSet::new()),
            shards: RwLock::new(BTreeMap::new()),
            offline: Mutex::new(BTreeMap::new()),
            lock: Mutex::new(Some(lock)),
        });
        let registered = match node.register(&options.address, boot).await {
            Ok(()) => node.replace_old_disks().await,
            Err(error) => Err(error),
        };
        if let Err(error) = registered {
            node.shutdown().await;
            return Err(error);
        }
        node.advance_watermark().await;
        let handler: Weak<dyn PeerHandler> = node.myself.clone();
        node.transport.attach(handler);
        node.run();
        Ok(node)
    }

    fn run(self: &Arc<Self>) {
        self.tasks
            .spawn(background::follow_view(self.clone(), self.stop.clone()));
        self.tasks.spawn(background::beat(self.clone(), self.stop.clone()));
        self.tasks.spawn(background::resolve(self.clone(), self.stop.clone()));
        self.tasks.spawn(background::upkeep(self.clone(), self.stop.clone()));
        self.tasks.spawn(background::sweep(self.clone(), self.stop.clone()));
    }

    /// Tells the cluster where this node is and which disk it has.
    async fn register(&self, address: &str, boot: Uuid) -> Result<()> {
        let info = NodeInfo {
            id: self.id.node,
            disk: self.id.disk,
            address: address.to_owned(),
            boot,
        };
        let value = serde_json::to_vec(&info).map_err(|e| Error::internal(e.to_string()))?;
        let key = keys::node(self.id.node);
        for _ in 0..REGISTER_ATTEMPTS {
            let (entries, _) = self.views.store().range(&key).await?;
            let expect = entries
                .iter()
                .find(|e| e.key == key)
                .map_or(Expect::Absent, |e| Expect::Revision(e.revision));
            let op = Op {
                key: key.clone(),
                expect,
                change: Change::Put(value.clone()),
            };
            if self.views.store().cas(vec![op]).await?.applied {
                self.views.refresh().await?;
                return Ok(());
            }
        }
        Err(Error::unavailable(format!(
            "node {} could not register: others write its key",
            self.id.node
        )))
    }

    /// Opens a shard and starts its tasks; nothing happens when it is open. A damaged copy is fetched again from another one.
    pub(super) async fn open_shard(self: &Arc<Self>, id: ShardId) -> Result<()> {
        let _no_rebuild = self.opening.read().await;
        if self.stop.is_cancelled() || self.shard(id).is_some() {
            return Ok(());
        }
        let dir = self.dir.join("shards");
        let open = || open::open(&dir, id, self.id, &self.identity, &self.cache, &self.wal);
        let opened = match open().await {
            Err(damage) if damage.code == "XX001" => {
                self.begin_anew(id, damage).await?;
                open().await?
            }
            result => result?,
        };
        self.host(id, opened);
        Ok(())
    }

    /// Starts the tasks of an opened shard.
    pub(super) fn host(self: &Arc<Self>, id: ShardId, (shard, ends, restored): open::Opening) {
        let ports = Ports {
            shard: shard.clone(),
            wal: self.wal.clone(),
            views: self.views.clone(),
            transport: self.transport.clone(),
            timings: self.timings,
        };
        let (stop, tasks) = (self.stop.child_token(), TaskTracker::new());
        tasks.spawn(driver::run(ports, restored, ends.inbox, stop.clone()));
        tasks.spawn(applier::run(self.clone(), shard.clone(), ends.chores, stop.clone()));
        tasks.spawn(committer::run(self.clone(), shard.clone(), ends.commits, stop.clone()));
        tasks.spawn(compactor::run(self.clone(), shard.clone(), ends.wishes, stop.clone()));
        tasks.close();
        self.offline.lock().remove(&id);
        self.shards.write().insert(id, Hosted { shard, stop, tasks });
        self.opened.send_modify(|n| *n += 1);
    }

    /// Ends a shard's tasks; whoever still waits on it finds it closed.
    pub(super) async fn close_shard(&self, id: ShardId) -> Option<Arc<Shard>> {
        let hosted = self.shards.write().remove(&id)?;
        hosted.stop.cancel();
        hosted.tasks.wait().await;
        Some(hosted.shard)
    }

    /// Ends a shard's tasks and removes its data: its group is no more.
    pub(super) async fn remove_shard(self: &Arc<Self>, id: ShardId) {
        let Some(shard) = self.close_shard(id).await else {
            return;
        };
        let removed = match self.wal.append(vec![Record::Forget { shard: id }]).await {
            Ok(()) => remove_dir(shard).await,
            Err(error) => Err(error),
        };
        match removed {
            Ok(()) => tracing::info!(shard = %id, "removed a dropped shard"),
            Err(error) => tracing::error!(%error, shard = %id, "a dropped shard's data stays until the next start"),
        }
    }

    /// Ends everything: seals what is in memory, closes the log, gives the directory free. Joins every task.
    pub async fn shutdown(&self) {
        for shard in self.shards() {
            if !self.stop.is_cancelled() && timeout(SHUTDOWN_TIMEOUT, background::seal(&shard)).await.is_err() {
                tracing::warn!(shard = %shard.id, "not sealed in time; the log has its rows");
            }
        }
        self.halt().await;
    }

    /// Ends everything as a crash would, as far as a process can: nothing is sealed. For tests.
    pub async fn halt(&self) {
        self.stop.cancel();
        self.transport.shutdown().await;
        let hosted = std::mem::take(&mut *self.shards.write());
        for (id, hosted) in &hosted {
            if timeout(SHUTDOWN_TIMEOUT, hosted.tasks.wait()).await.is_err() {
                tracing::error!(shard = %id, "a shard's tasks did not end");
            }
        }
        // Whoever still waits on these shards finds them closed.
        drop(hosted);
        self.tasks.close();
        if timeout(SHUTDOWN_TIMEOUT, self.tasks.wait()).await.is_err() {
            tracing::error!(node = %self.id.node, "tasks of the node did not end");
        }
        self.views.shutdown().await;
        let wal = self.wal.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || wal.close()).await {
            tracing::error!(%error, "closing the log failed");
        }
        self.lock.lock().take();
    }
}

async fn remove_dir(shard: Arc<Shard>) -> Result<()> {
    let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(&shard.dir)).await;
    removed
        .map_err(|e| Error::internal(e.to_string()))?
        .map_err(|e| Error::io("removing a dropped shard", &e))
}

/// One process per directory.
fn lock_dir(dir: &Path) -> Result<File> {
    std::fs::create_dir_all(dir)
        .map_err(|e| Error::io(&format!("creating data directory \"{}\"", dir.display()), &e))?;
    let file = File::create(dir.join("LOCK")).map_err(|e| Error::io("creating the lock file", &e))?;
    file.try_lock_exclusive().map_err(|_| {
        Error::new(
            "55006",
            format!("data directory \"{}\" is in use by another node", dir.display()),
        )
        .with_hint("stop that process first, or start this one with its own directory")
    })?;
    Ok(file)
}

/// The cluster's identity, once it exists.
async fn cluster(views: &Arc<ViewKeeper>) -> Result<ClusterInfo> {
    let mut changes = views.changes();
    let known = |view: &ClusterView| view.cluster.clone();
    let wait = async {
        loop {
            changes.borrow_and_update();
            if let Some(cluster) = known(&views.current()) {
                return Some(cluster);
            }
            if changes.changed().await.is_err() {
                return None;
            }
        }
    };
    let cluster = timeout(CLUSTER_TIMEOUT, wait).await.ok().flatten();
    let cluster = cluster
        .ok_or_else(|| Error::unavailable("the cluster was not created yet").with_hint("start a router first"))?;
    if cluster.format_version != FORMAT_VERSION {
        let found = cluster.format_version;
        return Err(Error::new(
            "55000",
            format!("the cluster has format version {found}, this program {FORMAT_VERSION}"),
        ));
    }
    Ok(cluster)
}

fn transport(address: &str, id: NodeId, cluster_id: &str) -> Arc<dyn PeerTransport> {
    match address.is_empty() {
        true => InProcessNetwork::of_cluster(cluster_id).endpoint(id),
        false => GrpcTransport::new(id),
    }
}

type Execution = (
    Arc<Executor>,
    Option<Arc<datafusion::execution::runtime_env::RuntimeEnv>>,
);

fn executor(options: &NodeOptions) -> Result<Execution> {
    let spill = options.dir.join("spill");
    std::fs::create_dir_all(&spill).map_err(|e| Error::io("creating the spill folder", &e))?;
    let memory = query_memory(options.memory.clone(), Some(&spill))?;
    let threads = options.query_threads.max(1);
    let runtime = Arc::new(QueryRuntime::new(threads)?);
    Ok((Arc::new(Executor::new(memory.clone(), runtime, threads)), Some(memory)))
}
