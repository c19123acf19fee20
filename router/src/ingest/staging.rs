//! Streams rows to the leaders of shards while a large write goes on.
//!
//! ```text
//!   writer ──bounded channel (2 chunks)──▶ ShardService::stage ──▶ fsynced, invisible segments on every in-sync copy
//!            full: the writer waits, and so does the client
//! ```
//!
//! A stream cannot be replayed, so a shard that moves during staging fails the statement with 40001.

use crate::engine::Engine;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::error::DataFusionError;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::StreamExt;
use std::sync::Arc;
use std::time::Duration;
use tessera_proto::table::TableDef;
use tessera_proto::{Error, Result, ShardId, TxnId, v1};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;

/// Chunks on the way to one shard; the chunk's size keeps the sum over all shards bounded.
const CHUNKS: usize = 2;
/// Longest upload to one shard: the limit of any single call.
const STAGE_MAX: Duration = Duration::from_secs(3_600);

/// One shard's upload.
#[derive(Debug)]
pub(super) struct Staging {
    rows: Option<mpsc::Sender<Result<RecordBatch, DataFusionError>>>,
    task: JoinHandle<Result<v1::StageReply>>,
}

/// What an upload belongs to.
#[derive(Debug, Clone)]
pub(super) struct StageTarget {
    pub(super) table: Arc<TableDef>,
    pub(super) schema: SchemaRef,
    pub(super) txn: TxnId,
    pub(super) meta_revision: u64,
}

impl Staging {
    /// Opens the stream to a shard's leader.
    ///
    /// # Errors
    /// 40001 when the shard or its leader is not known any more.
    pub(super) fn open(engine: &Engine, shard: ShardId, target: &StageTarget) -> Result<Self> {
        let view = engine.view();
        let entry = view
            .shards
            .get(&shard)
            .ok_or_else(|| Error::new("42P01", format!("table \"{}\" was dropped", target.table.name)))?;
        let service = engine.directory().node(entry.config.leader.node)?;
        let begin = v1::StageBegin {
            shard: Some(v1::ShardRef::new(shard, entry.config.epoch)),
            txn: target.txn.to_wire(),
            table: target.table.id.0,
            schema_version: target.table.version,
            meta_revision: target.meta_revision,
            deadline_ms: STAGE_MAX.as_millis() as u64,
        };
        let (rows, receiver) = mpsc::channel(CHUNKS);
        let stream = RecordBatchStreamAdapter::new(target.schema.clone(), ReceiverStream::new(receiver).boxed());
        let task = tokio::spawn(async move { service.stage(begin, Box::pin(stream)).await });
        Ok(Self { rows: Some(rows), task })
    }

    /// Sends a chunk; waits while the shard is busy.
    ///
    /// # Errors
    /// The shard's, when it gave up.
    pub(super) async fn send(&mut self, batch: RecordBatch) -> Result<()> {
        let Some(rows) = &self.rows else {
            return Err(Error::internal("rows sent after the end"));
        };
        if rows.send(Ok(batch)).await.is_ok() {
            return Ok(());
        }
        Err(match self.reply().await {
            Ok(_) => Error::internal("a shard ended staging before all rows were sent"),
            Err(error) => error,
        })
    }

    /// Ends the stream; durable on return.
    ///
    /// # Errors
    /// The shard's.
    pub(super) async fn finish(mut self) -> Result<v1::StageReply> {
        self.rows = None;
        self.reply().await
    }

    async fn reply(&mut self) -> Result<v1::StageReply> {
        match (&mut self.task).await {
            Ok(reply) => reply,
            Err(error) => Err(Error::internal(format!("staging ended: {error}"))),
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Without the end of the stream having been reached this cancels the call; the writer then drops what arrived.
        self.task.abort();
    }
}
