//! The seam between routers and shard nodes: one trait, two real implementations — the node itself (same process) and
//! [`crate::client::GrpcShard`] (another process). Peers use it too, so a leaf can read shards that live elsewhere.

use crate::error::{Error, Result};
use crate::ids::{NodeId, Timestamp};
use crate::v1;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::execution::SendableRecordBatchStream;
use datafusion_distributed::WorkerChannel;
use std::sync::Arc;

/// What a shard node does for others. Every call has a deadline in its request and gives up at it; dropping a future or a
/// stream cancels the work behind it, except that a commit once sent may still happen.
///
/// # Errors
/// `Retry::RefreshMap` when the epoch is not current (nothing happened), `Retry::Elsewhere` when the node is unreachable
/// before anything happened, `Retry::OutcomeUnknown` when a commit was sent and no answer came.
#[async_trait::async_trait]
pub trait ShardService: Send + Sync {
    /// Runs one leaf. Batches have the columns of `schema` in that order, unordered across shards.
    async fn execute(&self, request: v1::ExecuteRequest, schema: SchemaRef) -> Result<SendableRecordBatchStream>;
    /// Rows by primary key, at most one per key.
    async fn point_read(&self, request: v1::PointReadRequest) -> Result<v1::PointReadReply>;
    /// Durable and visible on return.
    async fn commit(&self, request: v1::CommitRequest) -> Result<v1::CommitReply>;
    /// Durable, locked and invisible on return: a yes-vote.
    async fn prepare(&self, request: v1::PrepareRequest) -> Result<v1::PrepareReply>;
    /// Adds a statement's rows to an open transaction; idempotent by its sequence number.
    async fn write(&self, request: v1::WriteRequest) -> Result<v1::WriteReply>;
    /// Takes statements of an open transaction back; idempotent.
    async fn undo(&self, request: v1::UndoRequest) -> Result<v1::UndoReply>;
    /// Keeps open transactions, which a node drops some seconds after it last heard of them; tells who waits for whom.
    async fn keep_alive(&self, request: v1::KeepAliveRequest) -> Result<v1::KeepAliveReply>;
    /// Applies or drops a prepared transaction, or drops an open one; idempotent.
    async fn finish(&self, request: v1::FinishRequest) -> Result<v1::FinishReply>;
    /// Outcome of a transaction whose home is here.
    async fn outcome(&self, request: v1::OutcomeRequest) -> Result<v1::OutcomeReply>;
    /// Writes rows (full table schema, hidden columns included) to invisible segments, fsynced on every in-sync copy on return.
    async fn stage(&self, begin: v1::StageBegin, rows: SendableRecordBatchStream) -> Result<v1::StageReply>;
    /// See `shard.proto`.
    async fn read_index(&self, request: v1::ReadIndexRequest) -> Result<v1::ReadIndexReply>;
    /// See `shard.proto`.
    async fn digest(&self, request: v1::DigestRequest) -> Result<v1::DigestReply>;
    /// See `shard.proto`.
    async fn status(&self, request: v1::StatusRequest) -> Result<v1::StatusReply>;
    /// See `shard.proto`.
    async fn change_leader(&self, request: v1::ChangeLeaderRequest) -> Result<v1::ChangeLeaderReply>;
    /// See `shard.proto`. Dropping the future ends it.
    async fn vacuum(&self, request: v1::VacuumRequest) -> Result<v1::VacuumReply>;
    /// See `shard.proto`.
    async fn profile(&self, request: v1::ProfileRequest) -> Result<v1::ProfileReply>;
    /// A channel to the node's worker, which runs tasks of stages between leaves and router.
    fn worker(&self) -> Result<Box<dyn WorkerChannel>>;
}

/// Finds the service of a node: local ones directly, others by gRPC.
pub trait NodeDirectory: Send + Sync + std::fmt::Debug {
    /// # Errors
    /// `Retry::Elsewhere` when the node is not known.
    fn node(&self, node: NodeId) -> Result<Arc<dyn ShardService>>;
}

/// The timestamp oracle: each call returns a timestamp above every one returned before, cluster-wide.
#[async_trait::async_trait]
pub trait TimestampOracle: Send + Sync {
    /// # Errors
    /// `Retry::Elsewhere` when the holder is unreachable or its lease is lost.
    async fn draw(&self) -> Result<Timestamp>;
}

/// Time left of a request's deadline.
///
/// # Errors
/// 08P01 for 0: every call must have a deadline.
pub fn deadline(deadline_ms: u64) -> Result<std::time::Duration> {
    if deadline_ms == 0 {
        return Err(Error::protocol("request has no deadline"));
    }
    // An hour is the longest any single call may take; longer statements make several calls.
    Ok(std::time::Duration::from_millis(deadline_ms.min(3_600_000)))
}
