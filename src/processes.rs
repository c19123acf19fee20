//! Router and shard nodes as separate processes over gRPC.
//!
//! ```text
//!   router:      meta store + oracle (gRPC) · PostgreSQL wire · Flight SQL · HTTP
//!   shard-node:  finds meta store and oracle at the router's address; serves Shard, Replication and Flight (gRPC)
//! ```

use crate::config::{self, ConfigError, RouterConfig, ShardNodeConfig};
use crate::embedded::{bind, cores, lock};
use std::sync::Arc;
use std::time::Duration;
use tessera_meta::MetaStore;
use tessera_meta::directory::ClusterDirectory;
use tessera_meta::local::LocalMeta;
use tessera_meta::remote::RemoteMeta;
use tessera_meta::server::MetaServer;
use tessera_meta::view::ViewKeeper;
use tessera_proto::client::GrpcOracle;
use tessera_proto::memory::query_pool;
use tessera_proto::service::ShardService;
use tessera_proto::{Error, NodeId, Result};
use tessera_router::engine::{Engine, RouterOptions};
use tessera_router::flight::{self, FlightLimits};
use tessera_router::pg;
use tessera_router::txn::oracle::OracleServer;
use tessera_shard_node::node::{NodeOptions, NodeTuning, ShardNode};
use tessera_shard_node::storage::ColumnCache;
use tokio::task::JoinSet;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;

fn invalid(error: ConfigError) -> Error {
    Error::new("22023", error.0)
}

/// Runs a router until `stop` fires or a server fails.
///
/// # Errors
/// Bad settings, a folder in use, an address in use.
pub async fn run_router(config: RouterConfig, stop: CancellationToken) -> Result<()> {
    for address in [config.pg, config.flight, config.grpc, config.http] {
        config::check_listen(address, config.insecure).map_err(invalid)?;
    }
    let _lock = lock(&config.data)?;
    let meta = LocalMeta::open(&config.data.join("meta"))?;
    let keeper = ViewKeeper::start(meta.clone()).await?;
    let directory = Arc::new(ClusterDirectory::new(keeper.clone(), tokio::runtime::Handle::current()));
    let engine = Engine::start(RouterOptions {
        meta: meta.clone(),
        directory,
        files_root: config.files_root.clone(),
        memory: query_pool(config::memory_bytes(config.memory_mib)),
        query_threads: cores(),
    })
    .await?;
    let (sql, columns, rpc, web) = (
        bind(config.pg).await?,
        bind(config.flight).await?,
        bind(config.grpc).await?,
        bind(config.http).await?,
    );
    println!(
        "tessera router: SQL on {}, Flight SQL on {}, shard nodes on {}, http on {}",
        config.pg, config.flight, config.grpc, config.http
    );
    let mut servers: JoinSet<Result<()>> = JoinSet::new();
    servers.spawn(pg::serve(sql, engine.clone(), pg::PgLimits::default(), stop.clone()));
    servers.spawn(flight::serve(
        columns,
        engine.clone(),
        FlightLimits::default(),
        stop.clone(),
    ));
    servers.spawn(tessera_router::http::serve(web, engine.clone(), stop.clone()));
    let (meta_server, waits) = MetaServer::new(meta.clone());
    let services = tonic::transport::Server::builder()
        .tcp_nodelay(true)
        .add_service(meta_server.into_service())
        .add_service(OracleServer::new(engine.oracle()).into_service());
    let stopped = stop.clone();
    let until = async move {
        stopped.cancelled().await;
        waits.end();
    };
    servers.spawn(async move {
        let served = services
            .serve_with_incoming_shutdown(TcpListenerStream::new(rpc), until)
            .await;
        served.map_err(|e| Error::internal(format!("the gRPC server ended: {e}")))
    });
    let result = join(servers, &stop).await;
    engine.shutdown().await;
    keeper.shutdown().await;
    meta.close().await;
    result
}

/// Runs a shard node until `stop` fires or its server fails.
///
/// # Errors
/// Bad settings, a folder in use, an unreachable router.
pub async fn run_shard_node(config: ShardNodeConfig, stop: CancellationToken) -> Result<()> {
    config::check_listen(config.listen, config.insecure).map_err(invalid)?;
    if config.id == 0 {
        return Err(Error::new("22023", "id of a shard node is a number from 1"));
    }
    let listener = bind(config.listen).await?;
    let meta: Arc<dyn MetaStore> = Arc::new(RemoteMeta::new(&config.router)?);
    let keeper = find_router(&meta, &config.router, &stop).await?;
    let directory = Arc::new(ClusterDirectory::new(keeper.clone(), tokio::runtime::Handle::current()));
    let id = NodeId(config.id);
    let (queries, columns) = config::memory_shares(config::memory_bytes(config.memory_mib));
    let retention = config::retention(config.retention_s).map_err(invalid)?;
    let tuning = NodeTuning {
        retention: Some(retention),
        ..NodeTuning::default()
    };
    let options = NodeOptions {
        id,
        dir: config.data.clone(),
        address: config.advertise.clone().unwrap_or_else(|| config.listen.to_string()),
        meta,
        oracle: Arc::new(GrpcOracle::new(&config.router)?),
        directory: directory.clone(),
        memory: query_pool(queries),
        query_threads: cores(),
        columns: ColumnCache::new(columns),
    };
    let node = ShardNode::start_with(options, tuning).await?;
    let service: Arc<dyn ShardService> = node.clone();
    directory.register(id, Arc::downgrade(&service));
    println!("tessera shard node {id}: listening on {}", config.listen);
    let mut servers: JoinSet<Result<()>> = JoinSet::new();
    servers.spawn(tessera_shard_node::server::serve(node.clone(), listener, stop.clone()));
    let result = join(servers, &stop).await;
    node.shutdown().await;
    keeper.shutdown().await;
    result
}

/// Longest a starting shard node waits for its router: processes of a cluster are started in any order.
const ROUTER_WAIT: Duration = Duration::from_secs(60);
/// Pause between attempts to reach it.
const ROUTER_RETRY: Duration = Duration::from_millis(200);

/// Reads the catalog as soon as the router answers.
///
/// # Errors
/// The last attempt's, when the wait is over or `stop` fires; at once what another attempt would not change.
async fn find_router(meta: &Arc<dyn MetaStore>, router: &str, stop: &CancellationToken) -> Result<Arc<ViewKeeper>> {
    let until = tokio::time::Instant::now() + ROUTER_WAIT;
    let mut told = false;
    loop {
        match ViewKeeper::start(meta.clone()).await {
            Err(error) if error.is_retryable() && tokio::time::Instant::now() < until && !stop.is_cancelled() => {
                if !std::mem::replace(&mut told, true) {
                    eprintln!("waiting up to {} s for the router at {router}", ROUTER_WAIT.as_secs());
                }
                tokio::select! {
                    () = stop.cancelled() => return Err(error),
                    () = tokio::time::sleep(ROUTER_RETRY) => {}
                }
            }
            result => return result,
        }
    }
}

/// Waits for the first server to end, then stops and joins the others.
async fn join(mut servers: JoinSet<Result<()>>, stop: &CancellationToken) -> Result<()> {
    let mut result = Ok(());
    while let Some(ended) = servers.join_next().await {
        stop.cancel();
        let ended = ended.unwrap_or_else(|e| Err(Error::internal(format!("a server task ended: {e}"))));
        if result.is_ok() {
            result = ended;
        }
    }
    result
}
