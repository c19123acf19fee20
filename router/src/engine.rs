//! What all sessions of a router share.
//!
//! ```text
//!   Engine ── ViewKeeper ─── newest ClusterView          (tessera_meta)
//!          ├─ Oracle ─────── timestamps                  (txn/oracle.rs)
//!          ├─ template ───── session state, memory pool, spill files    (planner)
//!          ├─ templates ──── reads by primary key, by their text        (execute/point.rs)
//!          ├─ runtime ────── threads that run queries, apart from those that serve sockets
//!          ├─ statistics ─── per table, polled from the nodes' leaders  (cluster/statistics.rs)
//!          ├─ open transactions ── kept alive at the nodes            (txn/watch.rs)
//!          └─ tasks ──────── finishing transactions, polling; joined by shutdown
//! ```

use crate::cluster::{bootstrap, catalog_store, reassign, statistics};
use crate::execute::admission::Admission;
use crate::execute::point::Templates;
use crate::session::{Session, SessionParams};
use crate::txn::oracle::Oracle;
use crate::txn::watch::{self, OpenTransactions};
use arc_swap::ArcSwap;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::MemoryPool;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::{FunctionRegistry, SessionState};
use parking_lot::Mutex;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tessera_meta::MetaStore;
use tessera_meta::secret::cluster_secret;
use tessera_meta::view::{ClusterView, ViewKeeper};
use tessera_proto::Timestamp;
use tessera_proto::clock::now_ms;
use tessera_proto::flight::seal::Secret;
use tessera_proto::fragment::LeafRuntime;
use tessera_proto::functions;
use tessera_proto::memory::{SPILL_MERGE_FILES, without_restarts};
use tessera_proto::profile::Profiles;
use tessera_proto::service::{NodeDirectory, TimestampOracle};
use tessera_proto::spill_files;
use tessera_proto::{Error, Result};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Pause between two polls of the nodes' statistics.
const POLL: Duration = Duration::from_secs(5);
/// Longest wait for the meta store to show a change that we made or were told of.
pub(crate) const VIEW_WAIT: Duration = Duration::from_secs(10);
/// Transactions whose participants are being told the outcome; beyond it they find out by asking the home shard.
const FINISHING_MAX: usize = 1_024;
/// Spill files of one process.
const SPILL_BYTES_MAX: u64 = 100 << 30;
/// Row ids of one reservation: 2^40, so that 2^23 reservations fit into an int8.
const ROW_ID_BITS: u32 = 40;

/// What a router needs to start.
#[derive(Debug)]
pub struct RouterOptions {
    /// The meta store.
    pub meta: Arc<dyn MetaStore>,
    /// Finds the shard nodes.
    pub directory: Arc<dyn NodeDirectory>,
    /// Folder below which `COPY ... FROM 'file'` may read; `None` refuses it.
    pub files_root: Option<PathBuf>,
    /// Memory of all queries in this process; beyond it they spill or fail.
    pub memory: Arc<dyn MemoryPool>,
    /// Threads that run queries.
    pub query_threads: usize,
}

/// A running router.
pub struct Engine {
    views: Arc<ViewKeeper>,
    directory: Arc<dyn NodeDirectory>,
    oracle: Arc<Oracle>,
    template: SessionState,
    templates: Templates,
    profiles: Profiles,
    files_root: Option<PathBuf>,
    query_threads: usize,
    admission: Admission,
    /// `None` after shutdown.
    runtime: Mutex<Option<tokio::runtime::Runtime>>,
    handle: tokio::runtime::Handle,
    statistics: ArcSwap<statistics::ClusterStatistics>,
    /// Held by who asks for new ones.
    refreshing: tokio::sync::Mutex<()>,
    row_ids: tokio::sync::Mutex<RowIds>,
    secret: Secret,
    finishing: Arc<Semaphore>,
    open_transactions: OpenTransactions,
    sessions: AtomicU64,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// What is left of the last reservation.
#[derive(Debug, Default)]
struct RowIds {
    next: i64,
    end: i64,
}

impl Engine {
    /// Opens the cluster, creating its identity and the schema `public` at its first start.
    ///
    /// # Errors
    /// The meta store's; 0A000 when the cluster was written by another format version.
    pub async fn start(options: RouterOptions) -> Result<Arc<Self>> {
        bootstrap::ensure_cluster(options.meta.as_ref()).await?;
        let secret = cluster_secret(options.meta.as_ref()).await?;
        let views = ViewKeeper::start(options.meta.clone()).await?;
        let oracle = Arc::new(Oracle::start(options.meta.clone()).await?);
        let profiles = Profiles::default();
        let leaves = Arc::new(LeafRuntime {
            directory: options.directory.clone(),
            node: None,
            profiles: profiles.clone(),
            carry_errors: false,
        });
        let mut template = tessera_planner::template(runtime_env(options.memory)?, leaves);
        for function in functions::public().into_iter().chain(crate::execute::functions()) {
            template.register_udf(Arc::new(function))?;
        }
        let threads = options.query_threads.max(1);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("tessera-query")
            .thread_stack_size(crate::STACK_BYTES)
            .enable_all()
            .build()
            .map_err(|e| Error::io("starting query threads", &e))?;
        let engine = Arc::new(Self {
            views,
            directory: options.directory,
            oracle,
            template,
            templates: Templates::default(),
            profiles,
            files_root: options.files_root,
            query_threads: threads,
            admission: Admission::new(threads),
            handle: runtime.handle().clone(),
            runtime: Mutex::new(Some(runtime)),
            statistics: ArcSwap::default(),
            refreshing: tokio::sync::Mutex::default(),
            row_ids: tokio::sync::Mutex::default(),
            secret,
            finishing: Arc::new(Semaphore::new(FINISHING_MAX)),
            open_transactions: OpenTransactions::default(),
            sessions: AtomicU64::new(0),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        });
        engine.tasks.spawn(poll(engine.clone()));
        engine.tasks.spawn(watch::run(engine.clone()));
        Ok(engine)
    }

    /// A new session.
    pub fn session(self: &Arc<Self>, params: SessionParams) -> Session {
        self.sessions.fetch_add(1, Ordering::Relaxed);
        Session::new(self.clone(), params)
    }

    /// The cluster's timestamp oracle.
    pub fn oracle(&self) -> Arc<dyn TimestampOracle> {
        self.oracle.clone()
    }

    /// Signs tokens and tickets.
    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    /// The newest view of the cluster; no I/O.
    pub fn view(&self) -> Arc<ClusterView> {
        self.views.current()
    }

    /// The view and what renews it.
    pub fn views(&self) -> &Arc<ViewKeeper> {
        &self.views
    }

    /// Finds the shard nodes.
    pub fn directory(&self) -> &Arc<dyn NodeDirectory> {
        &self.directory
    }

    /// Folder below which files may be read.
    pub fn files_root(&self) -> Option<&Path> {
        self.files_root.as_deref()
    }

    /// Newest statistics of tables and nodes.
    pub fn statistics(&self) -> Arc<statistics::ClusterStatistics> {
        self.statistics.load_full()
    }

    /// Asks every node for its statistics now, with all that committed up to `snapshot` if there is one. Nodes that do not answer
    /// keep their last ones.
    pub async fn refresh_statistics(&self, snapshot: Option<Timestamp>) {
        // One at a time: who began earlier would put older answers in the place of newer ones.
        let _one = self.refreshing.lock().await;
        let view = self.view();
        let fresh = statistics::collect(&view, self.directory.as_ref(), &self.statistics(), snapshot).await;
        self.statistics.store(Arc::new(fresh));
    }

    /// Ends background work and the query threads; transactions under way are resolved by their shards.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.views.shutdown().await;
        let runtime = self.runtime.lock().take();
        if let Some(runtime) = runtime {
            // Joining threads blocks.
            let joined = tokio::task::spawn_blocking(move || runtime.shutdown_timeout(Duration::from_secs(10))).await;
            if let Err(error) = joined {
                tracing::error!(%error, "query threads could not be joined");
            }
        }
    }

    /// The state that every statement's own is cloned from.
    pub(crate) fn template(&self) -> &SessionState {
        &self.template
    }

    /// What this router read for queries that count it.
    pub(crate) fn profiles(&self) -> &Profiles {
        &self.profiles
    }

    /// Reads by primary key that were recognised before.
    pub(crate) fn templates(&self) -> &Templates {
        &self.templates
    }

    /// Who may run now.
    pub(crate) fn admission(&self) -> &Admission {
        &self.admission
    }

    /// Threads that run queries.
    pub(crate) fn query_threads(&self) -> usize {
        self.query_threads
    }

    /// Where queries run.
    pub(crate) fn query_handle(&self) -> &tokio::runtime::Handle {
        &self.handle
    }

    /// Tasks alive on the router's query threads; 0 when no query runs here.
    pub fn query_tasks(&self) -> usize {
        self.handle.metrics().num_alive_tasks()
    }

    /// Background work that shutdown waits for.
    pub(crate) fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// Fires when the router stops.
    pub(crate) fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Transactions that are kept alive.
    pub(crate) fn open_transactions(&self) -> &OpenTransactions {
        &self.open_transactions
    }

    /// Leave to tell participants an outcome in the background.
    pub(crate) fn finishing(&self) -> &Arc<Semaphore> {
        &self.finishing
    }

    /// `count` row ids that nobody else has or will have; the first of a dense range.
    ///
    /// # Errors
    /// The meta store's; 54000 when all are used up.
    pub(crate) async fn row_ids(&self, count: usize) -> Result<i64> {
        let count = count as i64;
        let mut ids = self.row_ids.lock().await;
        if ids.end - ids.next < count {
            let block = bootstrap::reserve_id(self.views.store().as_ref()).await?;
            let block = i64::try_from(block).ok().filter(|b| *b < 1 << (63 - ROW_ID_BITS));
            let block = block.ok_or_else(|| Error::new("54000", "row ids are used up"))?;
            *ids = RowIds {
                next: block << ROW_ID_BITS,
                end: (block + 1) << ROW_ID_BITS,
            };
        }
        let first = ids.next;
        ids.next += count;
        Ok(first)
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("revision", &self.view().revision)
            .field("oracle", &self.oracle)
            .finish_non_exhaustive()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Without shutdown(), and perhaps inside an async context, where joining threads is not allowed.
        if let Some(runtime) = self.runtime.get_mut().take() {
            runtime.shutdown_background();
        }
    }
}

/// Memory pool and spill files.
fn runtime_env(memory: Arc<dyn MemoryPool>) -> Result<Arc<RuntimeEnv>> {
    let disk = DiskManagerBuilder::default()
        .with_mode(DiskManagerMode::OsTmpDirectory)
        .with_max_temp_directory_size(SPILL_BYTES_MAX);
    let builder = RuntimeEnvBuilder::new()
        .with_memory_pool(without_restarts(memory))
        .with_disk_manager_builder(spill_files::disk(disk, SPILL_MERGE_FILES)?);
    Ok(builder.build_arc()?)
}

/// Renews statistics, gives new nodes their copies of reference tables and drops what statements left half done, until the router
/// stops.
async fn poll(engine: Arc<Engine>) {
    let stop = engine.stop.clone();
    let work = async {
        let mut changes = engine.views.changes();
        loop {
            engine.refresh_statistics(None).await;
            if let Err(error) = reassign::add_reference_copies(&engine).await {
                tracing::warn!(%error, "reference tables could not be spread to new nodes");
            }
            if let Err(error) = catalog_store::drop_expired(&engine.views, now_ms()).await {
                tracing::warn!(%error, "tables of statements that never ended could not be dropped");
            }
            // A change of the cluster is worth a look at once, but not more than one a second.
            tokio::time::sleep(Duration::from_secs(1)).await;
            let _ = tokio::time::timeout(POLL, changes.changed()).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}
