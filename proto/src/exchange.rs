//! How two processes exchange rows between stages: datafusion-distributed's worker, reached through the node directory.
//!
//! ```text
//!   router: plan cut into stages ──set plan──▶ worker of node 1 ◀──rows── worker of node 2
//!             NodeChannels ── url "tessera://node-1" ──▶ NodeDirectory ──▶ same process: LocalChannel
//!                                                                      └─▶ another:     its gRPC client on the node's channel
//! ```
//!
//! A worker runs one task of a stage, in a session of its own with the memory of the process; its leaves read the node's own shards, and find others through the directory. Used by
//! routers (which coordinate) and nodes (which work). Not here: cutting a plan into stages (planner), the worker's threads
//! (shard-node).

use crate::error::Error;
use crate::fragment::{LeafCodec, LeafRuntime};
use crate::functions;
use crate::ids::NodeId;
use crate::order;
use crate::profile::Profiles;
use crate::service::NodeDirectory;
use crate::v1::transfer::Source;
use async_trait::async_trait;
use datafusion::arrow::array::RecordBatch;
use datafusion::common::extensions_options;
use datafusion::config::ConfigExtension;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{FunctionRegistry, SessionState, TaskContext};
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use datafusion::prelude::SessionConfig;
use datafusion_distributed::{
    ChannelResolver, CoordinatorToWorkerMsg, DistributedExt, ExecuteTaskRequest, GetWorkerInfoRequest,
    GetWorkerInfoResponse, MaybeEncoded, ProducerHead, SetPlanRequest, TaskKey, Worker, WorkerChannel,
    WorkerPlanRewriteEvent, WorkerPlanRewriteEventResponse, WorkerQueryContext, WorkerToCoordinatorMsg,
};
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use std::sync::Arc;
use tonic::codegen::http::HeaderMap;
use url::Url;

/// Scheme of a worker's address: a name to look up, not a place to connect to.
const SCHEME: &str = "tessera";
/// Host of a worker's address before its number.
const HOST: &str = "node-";

/// Bytes that one stream between two workers keeps ready before it stops reading.
pub const STREAM_BYTES: usize = 16 << 20;

/// Encoded plan of one task; larger ones are refused.
pub const TASK_PLAN_BYTES_MAX: usize = 16 << 20;

/// Largest message of rows between two workers: a batch of very wide rows.
pub const EXCHANGE_BYTES_MAX: usize = 256 << 20;

extensions_options! {
    /// Session settings that a stage needs and its plan does not hold. Travels from coordinator to workers.
    pub struct StageSettings {
        /// Time zone of the session; empty for UTC.
        pub time_zone: String, default = String::new()
        /// Hexadecimal id of a query whose transfers are counted; empty for others.
        pub profile: String, default = String::new()
    }
}

impl ConfigExtension for StageSettings {
    const PREFIX: &'static str = "tessera_stage";
}

/// The address of a node's worker.
///
/// # Errors
/// None is expected.
pub fn worker_url(node: NodeId) -> Result<Url> {
    Url::parse(&format!("{SCHEME}://{HOST}{node}")).map_err(|e| Error::internal(e.to_string()).into())
}

/// The node behind an address made by [`worker_url`].
///
/// # Errors
/// 08P01 for any other address.
pub fn node_of(url: &Url) -> Result<NodeId> {
    let number = url.host_str().and_then(|host| host.strip_prefix(HOST));
    let number = number.filter(|_| url.scheme() == SCHEME).and_then(|n| n.parse().ok());
    let node = number.ok_or_else(|| Error::protocol(format!("{url} is not the address of a worker")))?;
    Ok(NodeId(node))
}

/// What coordinator and worker sessions have in common.
///
/// # Errors
/// None is expected.
pub fn configure(config: SessionConfig, leaves: &Arc<LeafRuntime>) -> Result<SessionConfig> {
    let channels = NodeChannels { leaves: leaves.clone() };
    Ok(config
        .with_extension(leaves.clone())
        .with_distributed_user_codec(LeafCodec)
        .with_distributed_channel_resolver(channels))
}

/// The worker of `node`, whose sessions are copies of `template`: its functions, with ours, memory and spill space.
///
/// # Errors
/// None is expected.
pub fn worker(
    template: &SessionState,
    directory: Arc<dyn NodeDirectory>,
    node: NodeId,
    profiles: Profiles,
) -> Result<Worker> {
    let mut template = template.clone();
    for function in functions::public().into_iter().chain(functions::internal()) {
        template.register_udf(Arc::new(function))?;
    }
    for function in functions::aggregates() {
        template.register_udaf(function)?;
    }
    let template = Arc::new(template);
    let runtime = template.runtime_env().clone();
    let leaves = Arc::new(LeafRuntime {
        directory,
        node: Some(node),
        profiles,
        carry_errors: true,
    });
    let sessions = move |context: WorkerQueryContext| {
        let (template, leaves) = (template.clone(), leaves.clone());
        async move { session(&template, &leaves, context) }
    };
    Ok(Worker::from_session_builder(sessions)
        .with_runtime_env(runtime)
        .with_version(env!("CARGO_PKG_VERSION")))
}

/// Lets go of tasks that have ended, with the memory of their operators. A worker keeps its tasks in a cache that drops what
/// was removed at its next use only, which on a quiet node may be hours away: call this every second or so.
pub fn sweep(worker: &Worker) {
    // Of no query: found missing, which is a use.
    let task_key = TaskKey {
        query_id: uuid::Uuid::nil(),
        stage_id: 0,
        task_number: 0,
    };
    let request = ExecuteTaskRequest {
        task_key,
        target_partition_start: 0,
        target_partition_end: 0,
        producer_head: ProducerHead::None,
    };
    // It would wait for a plan; the lookup comes first.
    let _ = worker.execute_task(request).now_or_never();
}

fn session(
    template: &SessionState,
    leaves: &Arc<LeafRuntime>,
    mut context: WorkerQueryContext,
) -> Result<SessionState> {
    // The builder's own state would be made anew for every task; only what the coordinator said is taken from it.
    let config = std::mem::take(context.builder.config()).unwrap_or_default();
    let mut config = configure(config, leaves)?
        .with_distributed_option_extension_from_headers::<StageSettings>(&context.headers)?
        .with_distributed_worker_plan_rewrite_handler(rewrite);
    let zone = config.options().extensions.get::<StageSettings>();
    let zone = zone.map(|s| s.time_zone.clone()).filter(|zone| !zone.is_empty());
    config.options_mut().execution.time_zone = zone;
    let mut state = template.clone();
    *state.config_mut() = config;
    Ok(state)
}

/// What a decoded plan lacks.
fn rewrite(event: WorkerPlanRewriteEvent<'_>) -> Result<WorkerPlanRewriteEventResponse> {
    order::ensure_windows(event.plan).map(WorkerPlanRewriteEventResponse::new)
}

/// Finds a worker's channel through the node directory.
struct NodeChannels {
    leaves: Arc<LeafRuntime>,
}

#[async_trait]
impl ChannelResolver for NodeChannels {
    async fn get_worker_client_for_url(&self, url: &Url) -> Result<Box<dyn WorkerChannel>> {
        let node = node_of(url)?;
        let channel = self.leaves.directory.node(node)?.worker()?;
        let profiles = self.leaves.profiles.clone();
        Ok(Box::new(CarryingChannel {
            node,
            channel,
            profiles,
        }))
    }
}

/// Any channel, whose errors name the node and cross further workers whole, and whose rows are counted where that is wanted.
struct CarryingChannel {
    node: NodeId,
    channel: Box<dyn WorkerChannel>,
    profiles: Profiles,
}

impl CarryingChannel {
    fn counted(
        &self,
        query: Option<Vec<u8>>,
        stage: usize,
        rows: BoxStream<'static, Result<RecordBatch>>,
    ) -> BoxStream<'static, Result<RecordBatch>> {
        let rows = carried(self.node, rows);
        match query {
            Some(query) => {
                let source = Source::Stage(u32::try_from(stage).unwrap_or(u32::MAX));
                self.profiles.count(query, source, self.node.0, rows).boxed()
            }
            None => rows,
        }
    }
}

/// The query whose transfers a session counts.
fn profiled(context: &TaskContext) -> Option<Vec<u8>> {
    let settings = context.session_config().options().extensions.get::<StageSettings>()?;
    let id = uuid::Uuid::parse_str(&settings.profile).ok()?;
    Some(id.as_bytes().to_vec())
}

fn carried<T: 'static>(node: NodeId, items: BoxStream<'static, Result<T>>) -> BoxStream<'static, Result<T>> {
    items
        .map(move |item| item.map_err(|error| Carried::wrap_from(node, error)))
        .boxed()
}

#[async_trait]
impl WorkerChannel for CarryingChannel {
    async fn coordinator_channel(
        &mut self,
        headers: HeaderMap,
        request: SetPlanRequest,
        messages: BoxStream<'static, CoordinatorToWorkerMsg>,
        metrics: ExecutionPlanMetricsSet,
        context: &Arc<TaskContext>,
    ) -> Result<BoxStream<'static, Result<WorkerToCoordinatorMsg>>> {
        let node = self.node;
        let opened = self
            .channel
            .coordinator_channel(headers, request, messages, metrics, context);
        match opened.await {
            Ok(messages) => Ok(carried(node, messages)),
            Err(error) => Err(Carried::wrap_from(node, error)),
        }
    }

    async fn execute_task(
        &mut self,
        headers: HeaderMap,
        request: ExecuteTaskRequest,
        metrics: ExecutionPlanMetricsSet,
        context: &Arc<TaskContext>,
    ) -> Result<Vec<BoxStream<'static, Result<RecordBatch>>>> {
        let (query, stage) = (profiled(context), request.task_key.stage_id);
        match self.channel.execute_task(headers, request, metrics, context).await {
            Ok(streams) => Ok(streams
                .into_iter()
                .map(|rows| self.counted(query.clone(), stage, rows))
                .collect()),
            Err(error) => Err(Carried::wrap_from(self.node, error)),
        }
    }

    async fn get_worker_info(&mut self, request: GetWorkerInfoRequest) -> Result<GetWorkerInfoResponse> {
        self.channel.get_worker_info(request).await
    }
}

/// A worker in this process. Plans are encoded all the same: tasks of one stage must not share operators, which hold state
/// such as the build side of a join. Rows are not.
pub struct LocalChannel(pub Worker);

#[async_trait]
impl WorkerChannel for LocalChannel {
    async fn coordinator_channel(
        &mut self,
        headers: HeaderMap,
        mut request: SetPlanRequest,
        messages: BoxStream<'static, CoordinatorToWorkerMsg>,
        _: ExecutionPlanMetricsSet,
        context: &Arc<TaskContext>,
    ) -> Result<BoxStream<'static, Result<WorkerToCoordinatorMsg>>> {
        request.plan = MaybeEncoded::Encoded(request.plan.encode(context)?);
        self.0
            .coordinator_channel(headers, request, messages.map(Ok).boxed())
            .await
    }

    async fn execute_task(
        &mut self,
        _: HeaderMap,
        request: ExecuteTaskRequest,
        _: ExecutionPlanMetricsSet,
        _: &Arc<TaskContext>,
    ) -> Result<Vec<BoxStream<'static, Result<RecordBatch>>>> {
        let (streams, _) = self.0.execute_task(request).await?;
        Ok(streams.into_iter().map(|rows| rows.boxed()).collect())
    }

    async fn get_worker_info(&mut self, _: GetWorkerInfoRequest) -> Result<GetWorkerInfoResponse> {
        Ok(GetWorkerInfoResponse {
            version: self.0.version().to_owned(),
        })
    }
}

/// An error on its way through a worker, whose transport keeps only the text of errors it does not know: the text holds
/// all of it. See [`Carried::read`].
#[derive(Debug)]
pub struct Carried(pub Error);

/// Begins the text of a carried error; no message of anybody else does.
const CARRIED: &str = "\u{1}tessera\u{1}";

impl std::fmt::Display for Carried {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let json = serde_json::to_string(&self.0).map_err(|_| std::fmt::Error)?;
        write!(f, "{CARRIED}{json}")
    }
}

impl std::error::Error for Carried {}

impl Carried {
    /// The error in `text`, if it is one.
    pub fn read(text: &str) -> Option<Error> {
        serde_json::from_str(text.strip_prefix(CARRIED)?).ok()
    }

    /// [`Self::wrap`] for an error that came from this node.
    fn wrap_from(node: NodeId, error: DataFusionError) -> DataFusionError {
        match Error::find(&error) {
            Some(ours) => DataFusionError::External(Box::new(Self(ours.with_node(node)))),
            None => error,
        }
    }

    /// Wraps our own errors for the way; others cross by themselves.
    pub fn wrap(error: DataFusionError) -> DataFusionError {
        match Error::find(&error) {
            Some(ours) => DataFusionError::External(Box::new(Self(ours))),
            None => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_back() {
        let url = worker_url(NodeId(7)).unwrap();
        assert_eq!(node_of(&url).unwrap(), NodeId(7));
        for other in ["http://node-7", "tessera://7", "tessera://node-x"] {
            assert!(node_of(&Url::parse(other).unwrap()).is_err(), "{other}");
        }
    }

    #[test]
    fn errors_survive_as_text() {
        let error = Error::stale_map("shard 3 moved").with_hint("h");
        let text = Carried::wrap(error.into()).to_string();
        // What a transport makes of it.
        let there = DataFusionError::External(text.strip_prefix("External error: ").unwrap().into());
        let back = Error::from(there.context("stage 2"));
        assert_eq!((back.code.as_str(), back.hint.as_deref()), ("TS001", Some("h")));
        assert!(back.is_retryable());
    }

    #[test]
    fn a_peer_lost_on_the_way_is_named() {
        let lost = tonic::Status::unavailable("http2 error");
        let error = Carried::wrap_from(NodeId(2), DataFusionError::External(Box::new(lost)));
        let there = DataFusionError::External(error.to_string().strip_prefix("External error: ").unwrap().into());
        let back = Error::from(there);
        assert_eq!((back.code.as_str(), back.detail.as_deref()), ("08006", Some("node 2")));
    }
}
