//! Runs a `ShardLocal` leaf here: plan bytes to a stream of batches, on a runtime of its own.
//!
//! ```text
//!   RPC runtime                    query runtime
//!   execute(request) ────────────▶ decode ─ physical plan ─ run
//!        ◀── stream ◀── bounded channel ◀──────────────────┘        dropping the stream ends the task at its next yield
//! ```
//!
//! A query may keep a core busy for long; heartbeats, replication and commits run on another runtime and do not notice.
//! Joins yield (`YieldInJoins`), so a cancelled or late query gives its core back. Memory is one pool per process, shared
//! with other nodes in it; what can spill does, the rest fails with 53200.
//!
//! Not here: which rows a shard shows at a snapshot (`scan`), whether the shards are ours and current (the caller checks
//! before and passes what may be read as a [`TableSource`]).

use crate::text_extremes;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::array::timezone::Tz;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::DataFusionError;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::MemoryPool;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::{SendableRecordBatchStream, SessionState, SessionStateBuilder, SessionStateDefaults};
use datafusion::physical_plan::display::DisplayableExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use datafusion::physical_planner::{DefaultPhysicalPlanner, PhysicalPlanner};
use datafusion::prelude::SessionConfig;
use datafusion_distributed::Worker;
use datafusion_proto::bytes::logical_plan_from_bytes_with_extension_codec;
use futures::StreamExt;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use tessera_proto::fragment::{LeafPlanCodec, TableSource};
use tessera_proto::frugal;
use tessera_proto::ipc::relabel;
use tessera_proto::memory::{SPILL_MERGE_FILES, without_restarts};
use tessera_proto::physical;
use tessera_proto::profile::{Profiles, spilled_bytes};
use tessera_proto::service::{NodeDirectory, deadline};
use tessera_proto::spill_files;
use tessera_proto::{Error, NodeId, Result, v1};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

/// Batches between a query and whoever reads it: enough to keep both busy, 16 MiB of 8,192 wide rows at most. When full,
/// the query waits.
const BATCHES_IN_FLIGHT: usize = 2;
/// Planning recurses; 100 levels (the decoder's bound) of debug-build frames need more than the default 2 MiB.
const STACK_BYTES: usize = 8 << 20;

/// The process's memory for queries and this node's spill space. Without a folder everything stays in memory: an operator
/// that would spill fails instead.
///
/// # Errors
/// The spill folder cannot be made.
pub fn query_memory(pool: Arc<dyn MemoryPool>, spill: Option<&Path>) -> Result<Arc<RuntimeEnv>> {
    let mode = match spill {
        Some(folder) => DiskManagerMode::Directories(vec![folder.to_owned()]),
        None => DiskManagerMode::Disabled,
    };
    let disk = DiskManagerBuilder::default().with_mode(mode);
    let builder = RuntimeEnvBuilder::new()
        .with_memory_pool(without_restarts(pool))
        .with_disk_manager_builder(spill_files::disk(disk, SPILL_MERGE_FILES)?);
    Ok(builder.build_arc()?)
}

/// The threads that queries run on, apart from everything that must answer in time.
#[derive(Debug)]
pub struct QueryRuntime(Option<tokio::runtime::Runtime>);

impl QueryRuntime {
    /// With so many threads, at least one.
    ///
    /// # Errors
    /// The threads cannot be started.
    pub fn new(threads: usize) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads.max(1))
            .thread_name("tessera-query")
            .thread_stack_size(STACK_BYTES)
            .enable_all()
            .build()
            .map_err(|e| Error::io("starting query threads", &e))?;
        Ok(Self(Some(runtime)))
    }

    /// Runs `work` on these threads; dropping the handle ends it at its next yield.
    ///
    /// # Errors
    /// 08006 when the node is shutting down.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<AbortOnDropHandle<T>> {
        let runtime = self
            .0
            .as_ref()
            .ok_or_else(|| Error::unavailable("the node is shutting down"))?;
        Ok(AbortOnDropHandle::new(runtime.spawn(work)))
    }
}

impl QueryRuntime {
    /// Tasks alive on these threads.
    pub fn tasks(&self) -> usize {
        self.0.as_ref().map_or(0, |runtime| runtime.metrics().num_alive_tasks())
    }
}

impl Drop for QueryRuntime {
    /// Waiting for the threads is not allowed on another runtime's; they end at their next yield.
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Runs leaves; one per node.
#[derive(Debug, Clone)]
pub struct Executor {
    template: Arc<SessionState>,
    runtime: Arc<QueryRuntime>,
    profiles: Profiles,
}

impl Executor {
    /// `partitions` is the parallelism of one leaf: cores divided by the nodes in this process, at least 1.
    pub fn new(memory: Arc<RuntimeEnv>, runtime: Arc<QueryRuntime>, partitions: usize) -> Self {
        let config = SessionConfig::new()
            .with_target_partitions(partitions.max(1))
            .with_information_schema(false);
        let mut functions = SessionStateDefaults::default_scalar_functions();
        functions.extend(tessera_proto::functions::portable());
        let mut aggregates = SessionStateDefaults::default_aggregate_functions();
        aggregates.extend(text_extremes::functions());
        aggregates.extend(tessera_proto::functions::aggregates());
        let template = SessionStateBuilder::new()
            .with_config(config)
            .with_runtime_env(memory)
            .with_default_features()
            .with_scalar_functions(functions)
            .with_aggregate_functions(aggregates)
            .with_physical_optimizer_rules(physical::rules())
            .build();
        Self {
            template: Arc::new(template),
            runtime,
            profiles: Profiles::default(),
        }
    }

    /// The threads it runs on.
    pub fn runtime(&self) -> &Arc<QueryRuntime> {
        &self.runtime
    }

    /// The memory that queries share.
    pub fn memory(&self) -> &Arc<dyn MemoryPool> {
        &self.template.runtime_env().memory_pool
    }

    /// What queries that asked for it did here.
    pub fn profiles(&self) -> &Profiles {
        &self.profiles
    }

    /// A worker for the tasks between leaves and router, with the same memory.
    ///
    /// # Errors
    /// None is expected.
    pub fn worker(&self, directory: Arc<dyn NodeDirectory>, node: NodeId) -> Result<Worker> {
        Ok(tessera_proto::exchange::worker(
            &self.template,
            directory,
            node,
            self.profiles.clone(),
        )?)
    }

    /// Runs the leaf over what `tables` gives it and streams rows with the columns of `schema`, in that order.
    ///
    /// Planned on return; rows come as they are made. The stream ends with 57014 at the request's deadline.
    ///
    /// # Errors
    /// 08P01 for a request that makes no sense, 54001 for a plan nested too deeply, what `tables` says, or what planning
    /// finds.
    pub async fn execute(
        &self,
        tables: Arc<dyn TableSource>,
        request: v1::ExecuteRequest,
        schema: SchemaRef,
    ) -> Result<SendableRecordBatchStream> {
        let until = Instant::now() + deadline(request.deadline_ms)?;
        if request.partitions > 1 {
            let what = "a leaf cannot be read in slices";
            return Err(Error::unsupported(
                what,
                "leave partitions at 0 and read the whole stream",
            ));
        }
        let state = self.session(&request.settings)?;
        let profile = request.profile.checked_sub(1).map(|leaf| Measured {
            leaf,
            query: request.query_id.to_vec(),
            profiles: self.profiles.clone(),
            started: Instant::now(),
        });
        let planning = self.runtime.spawn(plan(state, tables, request))?;
        let (state, plan) = tokio::time::timeout_at(until, planning)
            .await
            .map_err(|_| late())?
            .map_err(crashed)??;
        let (sender, receiver) = mpsc::channel(BATCHES_IN_FLIGHT);
        let running = self
            .runtime
            .spawn(run(state, plan, schema.clone(), until, sender, profile))?;
        let rows = futures::stream::unfold((receiver, Some(running)), next_batch);
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
    }

    /// Output columns of a leaf, whose tables are known by their definitions only.
    ///
    /// # Errors
    /// 08P01 or 54001 for a malformed plan, and what `tables` says.
    pub fn schema(&self, tables: Arc<dyn TableSource>, request: &v1::ExecuteRequest) -> Result<SchemaRef> {
        let codec = LeafPlanCodec { tables: Some(tables) };
        let logical = logical_plan_from_bytes_with_extension_codec(&request.plan, &self.template.task_ctx(), &codec)
            .map_err(undecodable)?;
        Ok(tessera_proto::fragment::leaf_schema(logical.schema()))
    }

    /// A session with the request's settings. Names we do not know do not concern us.
    fn session(&self, settings: &HashMap<String, String>) -> Result<SessionState> {
        let mut state = self.template.as_ref().clone();
        if let Some(zone) = settings.get("timezone") {
            zone.parse::<Tz>()
                .map_err(|_| Error::new("22023", format!("time zone \"{zone}\" is not known")))?;
            state.config_mut().options_mut().execution.time_zone = Some(zone.clone());
        }
        if settings.get(frugal::HASH_JOIN).is_some_and(|on| on == "off") {
            let rows = settings.get(frugal::BATCH_ROWS).and_then(|rows| rows.parse().ok());
            let rows = rows.unwrap_or(frugal::BATCH_ROWS_DEFAULT);
            frugal::configure(state.config_mut().options_mut(), rows);
        }
        Ok(state)
    }
}

async fn plan(
    state: SessionState,
    tables: Arc<dyn TableSource>,
    request: v1::ExecuteRequest,
) -> Result<(SessionState, Arc<dyn ExecutionPlan>)> {
    let codec = LeafPlanCodec { tables: Some(tables) };
    let logical =
        logical_plan_from_bytes_with_extension_codec(&request.plan, &state.task_ctx(), &codec).map_err(undecodable)?;
    let physical = DefaultPhysicalPlanner::default()
        .create_physical_plan(&logical, &state)
        .await?;
    Ok((state, physical))
}

/// The decoder stops at 100 levels of messages.
fn undecodable(error: DataFusionError) -> Error {
    let text = error.strip_backtrace();
    if text.contains("recursion limit") {
        return Error::new("54001", "the plan of a leaf is nested too deeply")
            .with_hint("split long chains of operators, or SET tessera.shard_local = off");
    }
    let ours = Error::from(error);
    // What the table source says passes through; the rest is a peer of another version, or damage.
    if ours.code == "42000" || ours.code == "XX000" {
        Error::protocol(format!("malformed leaf: {text}"))
    } else {
        ours
    }
}

/// Sends all rows, or the error that ended them. Ends early when nobody reads any more.
async fn run(
    state: SessionState,
    plan: Arc<dyn ExecutionPlan>,
    schema: SchemaRef,
    until: Instant,
    sender: mpsc::Sender<Result<RecordBatch>>,
    profile: Option<Measured>,
) {
    let (mut sent, mut bytes) = (0, 0);
    let sending = async {
        let mut rows = match execute_stream(plan.clone(), state.task_ctx()) {
            Ok(rows) => rows,
            Err(error) => return Some(Error::from(error)),
        };
        while let Some(batch) = rows.next().await {
            match batch.and_then(|batch| relabel(&schema, batch)) {
                Ok(batch) => {
                    if profile.is_some() {
                        sent += batch.num_rows() as u64;
                        bytes += tessera_proto::profile::bytes(&batch);
                    }
                    sender.send(Ok(batch)).await.ok()?;
                }
                Err(error) => return Some(Error::from(error)),
            }
        }
        None
    };
    let (error, complete) = tokio::select! {
        ended = tokio::time::timeout_at(until, sending) => (ended.unwrap_or_else(|_| Some(late())), !sender.is_closed()),
        () = sender.closed() => (None, false),
    };
    if let Some(profile) = profile {
        // Before the reader sees the end, so that whoever asks after it is told.
        profile.tell(plan.as_ref(), sent, bytes, complete && error.is_none());
    }
    if let Some(error) = error {
        // A reader that is gone does not want it.
        let _ = sender.send(Err(error)).await;
    }
}

/// A leaf that is to be told of.
struct Measured {
    leaf: u32,
    query: Vec<u8>,
    profiles: Profiles,
    started: Instant,
}

impl Measured {
    fn tell(&self, plan: &dyn ExecutionPlan, rows: u64, bytes: u64, complete: bool) {
        let shown = DisplayableExecutionPlan::with_metrics(plan).indent(false).to_string();
        let leaf = v1::LeafProfile {
            leaf: self.leaf,
            rows,
            bytes,
            micros: self.started.elapsed().as_micros() as u64,
            spilled_bytes: spilled_bytes(plan),
            plan: shown.lines().map(str::to_owned).collect(),
            complete,
        };
        self.profiles.leaf(&self.query, leaf);
    }
}

type Running = (mpsc::Receiver<Result<RecordBatch>>, Option<AbortOnDropHandle<()>>);

/// The next batch. When the channel ends, the task's own end tells whether that was all: a panic must not look like the
/// last row.
async fn next_batch((mut rows, task): Running) -> Option<(Result<RecordBatch, DataFusionError>, Running)> {
    if let Some(batch) = rows.recv().await {
        return Some((batch.map_err(DataFusionError::from), (rows, task)));
    }
    match task?.await {
        Ok(()) => None,
        Err(error) => Some((Err(crashed(error).into()), (rows, None))),
    }
}

fn crashed(error: tokio::task::JoinError) -> Error {
    if error.is_cancelled() {
        return Error::unavailable("the node is shutting down");
    }
    tracing::error!(%error, "a query crashed");
    Error::internal("a query crashed on a node; its log says where")
}

fn late() -> Error {
    Error::cancelled("the statement's deadline passed on a node")
}

#[cfg(test)]
mod tests;
