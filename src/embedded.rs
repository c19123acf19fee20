//! Router and N shard nodes in one process: the laptop database, the demo, and most tests.
//!
//! ```text
//!   DIR/LOCK   DIR/meta (sled)   DIR/node-1  DIR/node-2  DIR/node-3
//!   start:  meta → directory → engine (router, oracle) → nodes → PostgreSQL wire, Flight SQL, HTTP
//!   stop:   the reverse; every task is joined
//! ```

use crate::config::{self, ConfigError};
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tessera_meta::directory::ClusterDirectory;
use tessera_meta::local::LocalMeta;
use tessera_meta::view::ViewKeeper;
use tessera_proto::memory::{MemoryPool, query_pool};
use tessera_proto::service::ShardService;
use tessera_proto::{Error, NodeId, Result};
use tessera_router::engine::{Engine, RouterOptions};
use tessera_router::flight::{self, FlightLimits};
use tessera_router::pg;
use tessera_shard_node::node::watermark::RETENTION_DEFAULT;
use tessera_shard_node::node::{NodeOptions, NodeTuning, ShardNode};
use tessera_shard_node::storage::ColumnCache;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// What to start.
#[derive(Debug, Clone)]
pub struct EmbeddedOptions {
    /// Data folder; created if missing.
    pub dir: PathBuf,
    /// Shard nodes. A folder that was started with more keeps all of its nodes.
    pub nodes: u32,
    /// PostgreSQL wire; port 0 takes a free one.
    pub pg: SocketAddr,
    /// Flight SQL; `None` serves none.
    pub flight: Option<SocketAddr>,
    /// Health and metrics; `None` serves none.
    pub http: Option<SocketAddr>,
    /// Folder below which `COPY ... FROM 'file'` may read.
    pub files_root: Option<PathBuf>,
    /// Memory that all queries share.
    pub query_memory: Arc<dyn MemoryPool>,
    /// Memory for decoded columns, bytes.
    pub column_bytes: usize,
    /// How long removed rows are kept.
    pub retention: Duration,
    /// See [`config::check_listen`].
    pub insecure: bool,
}

impl EmbeddedOptions {
    /// Three nodes in `dir` on a free loopback port.
    pub fn local(dir: impl Into<PathBuf>, nodes: u32) -> Self {
        let (queries, columns) = config::memory_shares(config::memory_bytes(None));
        Self {
            dir: dir.into(),
            nodes,
            pg: SocketAddr::from(([127, 0, 0, 1], 0)),
            flight: None,
            http: None,
            files_root: None,
            query_memory: query_pool(queries),
            column_bytes: columns,
            retention: RETENTION_DEFAULT,
            insecure: false,
        }
    }
}

/// A running embedded cluster. Dropping it without [`Embedded::shutdown`] is like a crash: recovery handles it.
#[derive(Debug)]
pub struct Embedded {
    engine: Arc<Engine>,
    nodes: Vec<Arc<ShardNode>>,
    meta: Arc<LocalMeta>,
    keeper: Arc<ViewKeeper>,
    servers: JoinSet<Result<()>>,
    stop: CancellationToken,
    pg: SocketAddr,
    flight: Option<SocketAddr>,
    http: Option<SocketAddr>,
    _lock: File,
}

impl Embedded {
    /// Starts or reopens the cluster in `options.dir` and serves it.
    ///
    /// # Errors
    /// 55006 when another process has the folder; 22023 for bad settings; what recovery finds otherwise.
    pub async fn start(options: EmbeddedOptions) -> Result<Self> {
        check(&options)?;
        let lock = lock(&options.dir)?;
        let meta = LocalMeta::open(&options.dir.join("meta"))?;
        let keeper = ViewKeeper::start(meta.clone()).await?;
        let directory = Arc::new(ClusterDirectory::new(keeper.clone(), tokio::runtime::Handle::current()));
        let (memory, columns) = (options.query_memory.clone(), ColumnCache::new(options.column_bytes));
        let engine = Engine::start(RouterOptions {
            meta: meta.clone(),
            directory: directory.clone(),
            files_root: options.files_root.clone(),
            memory: memory.clone(),
            query_threads: cores(),
        })
        .await?;
        let mut nodes = Vec::new();
        for id in node_ids(&options) {
            let node_options = NodeOptions {
                id,
                dir: options.dir.join(format!("node-{id}")),
                address: String::new(),
                meta: meta.clone(),
                oracle: engine.oracle(),
                directory: directory.clone(),
                memory: memory.clone(),
                query_threads: cores().div_ceil(options.nodes.max(1) as usize),
                columns: columns.clone(),
            };
            let tuning = NodeTuning {
                retention: Some(options.retention),
                ..NodeTuning::default()
            };
            let node = ShardNode::start_with(node_options, tuning).await?;
            let service: Arc<dyn ShardService> = node.clone();
            directory.register(id, Arc::downgrade(&service));
            nodes.push(node);
        }
        let mut embedded = Self {
            engine,
            nodes,
            meta,
            keeper,
            servers: JoinSet::new(),
            stop: CancellationToken::new(),
            pg: options.pg,
            flight: None,
            http: None,
            _lock: lock,
        };
        embedded.serve(&options).await?;
        Ok(embedded)
    }

    async fn serve(&mut self, options: &EmbeddedOptions) -> Result<()> {
        let listener = bind(options.pg).await?;
        self.pg = listener
            .local_addr()
            .map_err(|e| Error::io("reading the listening address", &e))?;
        let (engine, stop) = (self.engine.clone(), self.stop.clone());
        self.servers
            .spawn(async move { pg::serve(listener, engine, pg::PgLimits::default(), stop).await });
        if let Some(address) = options.flight {
            let listener = bind(address).await?;
            self.flight = listener.local_addr().ok();
            let (engine, stop) = (self.engine.clone(), self.stop.clone());
            self.servers
                .spawn(async move { flight::serve(listener, engine, FlightLimits::default(), stop).await });
        }
        if let Some(http) = options.http {
            let listener = bind(http).await?;
            self.http = listener.local_addr().ok();
            let (engine, stop) = (self.engine.clone(), self.stop.clone());
            self.servers
                .spawn(async move { tessera_router::http::serve(listener, engine, stop).await });
        }
        Ok(())
    }

    /// Where PostgreSQL clients connect.
    pub fn pg_address(&self) -> SocketAddr {
        self.pg
    }

    /// Where Flight SQL clients connect.
    pub fn flight_address(&self) -> Option<SocketAddr> {
        self.flight
    }

    /// Where health and metrics are.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http
    }

    /// The router.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// The shard nodes, ascending by id.
    pub fn nodes(&self) -> &[Arc<ShardNode>] {
        &self.nodes
    }

    /// A connection URL.
    pub fn url(&self) -> String {
        format!("postgres://tessera@{}/tessera", self.pg)
    }

    /// Waits until a server ends by itself, which only an error makes it do.
    ///
    /// # Errors
    /// The server's.
    pub async fn failed(&mut self) -> Result<()> {
        match self.servers.join_next().await {
            Some(Ok(result)) => result,
            Some(Err(e)) => Err(Error::internal(format!("a server task ended: {e}"))),
            None => Ok(()),
        }
    }

    /// Stops serving, seals what is in memory, joins every task.
    ///
    /// # Errors
    /// None is expected; what a part reports while stopping.
    pub async fn shutdown(mut self) -> Result<()> {
        self.stop.cancel();
        while self.servers.join_next().await.is_some() {}
        self.engine.shutdown().await;
        for node in &self.nodes {
            node.shutdown().await;
        }
        self.keeper.shutdown().await;
        self.meta.close().await;
        Ok(())
    }
}

/// Hardware threads.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(2, |n| n.get())
}

/// Binds, with an error that says which address.
///
/// # Errors
/// The address is in use or not ours.
pub async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|e| {
        Error::new("58030", format!("cannot listen on {address}: {e}"))
            .with_hint("stop the other process or choose another address")
    })
}

fn check(options: &EmbeddedOptions) -> Result<()> {
    if options.nodes == 0 || options.nodes > config::NODES_MAX {
        return Err(Error::new(
            "22023",
            format!(
                "{} shard nodes asked for: 1 to {} are possible in one process",
                options.nodes,
                config::NODES_MAX
            ),
        ));
    }
    let invalid = |ConfigError(message)| Error::new("22023", message);
    config::check_listen(options.pg, options.insecure).map_err(invalid)?;
    if let Some(address) = options.flight {
        config::check_listen(address, options.insecure).map_err(invalid)?;
    }
    if let Some(http) = options.http {
        config::check_listen(http, options.insecure).map_err(invalid)?;
    }
    Ok(())
}

/// Nodes asked for, and those that the folder already has: their rows must be served.
fn node_ids(options: &EmbeddedOptions) -> Vec<NodeId> {
    let exists = |id: &u32| options.dir.join(format!("node-{id}")).is_dir();
    (1..=config::NODES_MAX)
        .filter(|id| *id <= options.nodes || exists(id))
        .map(NodeId)
        .collect()
}

/// Takes the data folder for this process.
///
/// # Errors
/// 55006 when another process has it.
pub fn lock(dir: &Path) -> Result<File> {
    use fs2::FileExt;
    std::fs::create_dir_all(dir).map_err(|e| Error::io(&format!("creating {}", dir.display()), &e))?;
    let path = dir.join("LOCK");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|e| Error::io(&format!("opening {}", path.display()), &e))?;
    file.try_lock_exclusive().map_err(|_| {
        Error::new(
            "55006",
            format!("data folder {} is in use by another tessera process", dir.display()),
        )
        .with_hint("stop it first, or use another --data folder")
    })?;
    Ok(file)
}
