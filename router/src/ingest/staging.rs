//! Streams rows to the leaders of shards while a large write goes on.
//!
//! ```text
//!   writer ──bounded channel (2 chunks)──▶ Feed ──▶ ShardService::stage ──▶ fsynced, invisible segments on every in-sync copy
//!            full: the writer waits, and so does the client
//! ```
//!
//! A leader that moved refuses the stream at its beginning. For that the feed keeps the first chunks, and the upload begins
//! again at the new leader. One that hands over later goes on writing and passes the files to its successor; one that dies
//! fails the statement with 40001 or 08006: a stream of any length cannot be replayed.

use crate::engine::Engine;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::error::DataFusionError;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use std::sync::Arc;
use std::time::Duration;
use tessera_meta::view::ClusterView;
use tessera_proto::table::TableDef;
use tessera_proto::{Error, Result, ShardId, TxnId, v1};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Chunks on the way to one shard; the chunk's size keeps the sum over all shards bounded.
const CHUNKS: usize = 2;
/// Longest upload to one shard: the limit of any single call.
const STAGE_MAX: Duration = Duration::from_secs(3_600);

/// First chunks kept for another attempt: a refusal comes before more than these were sent.
const REPLAY: usize = 4;
/// Longest search for the leader of a shard at the beginning of an upload: a failover takes about 2 s.
const LEADER_MAX: Duration = Duration::from_secs(10);
/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(200);

/// One shard's upload.
#[derive(Debug)]
pub(super) struct Staging {
    rows: Option<mpsc::Sender<RecordBatch>>,
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

/// The rows of one upload, which may be asked for from the start again while few have been taken.
#[derive(Debug)]
struct Feed {
    rows: mpsc::Receiver<RecordBatch>,
    first: Vec<RecordBatch>,
    /// Whether `first` is everything taken so far.
    replayable: bool,
}

impl Feed {
    async fn next(&mut self, position: usize) -> Option<RecordBatch> {
        if let Some(batch) = self.first.get(position).filter(|_| self.replayable) {
            return Some(batch.clone());
        }
        let batch = self.rows.recv().await?;
        if self.replayable && self.first.len() < REPLAY {
            self.first.push(batch.clone());
        } else {
            self.replayable = false;
            self.first.clear();
        }
        Some(batch)
    }
}

/// Uploads, again from the start while the leader refuses and the rows can be replayed.
async fn upload(
    engine: Arc<Engine>,
    shard: ShardId,
    target: StageTarget,
    rows: mpsc::Receiver<RecordBatch>,
) -> Result<v1::StageReply> {
    let feed = Arc::new(tokio::sync::Mutex::new(Feed {
        rows,
        first: vec![],
        replayable: true,
    }));
    let until = Instant::now() + LEADER_MAX;
    loop {
        let view = engine.view();
        match attempt(&engine, &view, shard, &target, feed.clone()).await {
            Err(error) if error.is_retryable() && Instant::now() < until && feed.lock().await.replayable => {
                engine.views().newer(view.revision, PAUSE).await;
            }
            other => return other,
        }
    }
}

async fn attempt(
    engine: &Engine,
    view: &ClusterView,
    shard: ShardId,
    target: &StageTarget,
    feed: Arc<tokio::sync::Mutex<Feed>>,
) -> Result<v1::StageReply> {
    let gone = || Error::new("42P01", format!("table \"{}\" was dropped", target.table.name));
    let entry = view.shards.get(&shard).ok_or_else(gone)?;
    let service = engine.directory().node(entry.config.leader.node)?;
    let begin = v1::StageBegin {
        shard: Some(v1::ShardRef::new(shard, entry.config.epoch)),
        txn: target.txn.to_wire(),
        table: target.table.id.0,
        schema_version: target.table.version,
        meta_revision: target.meta_revision,
        deadline_ms: STAGE_MAX.as_millis() as u64,
    };
    let rows = futures::stream::unfold((feed, 0), |(feed, position)| async move {
        let batch = feed.lock().await.next(position).await?;
        Some((Ok::<_, DataFusionError>(batch), (feed, position + 1)))
    });
    let stream = RecordBatchStreamAdapter::new(target.schema.clone(), rows);
    service.stage(begin, Box::pin(stream)).await
}

impl Staging {
    /// Opens the stream to a shard's leader.
    pub(super) fn open(engine: &Arc<Engine>, shard: ShardId, target: &StageTarget) -> Self {
        let (rows, receiver) = mpsc::channel(CHUNKS);
        let task = tokio::spawn(upload(engine.clone(), shard, target.clone(), receiver));
        Self { rows: Some(rows), task }
    }

    /// Sends a chunk; waits while the shard is busy.
    ///
    /// # Errors
    /// The shard's, when it gave up.
    pub(super) async fn send(&mut self, batch: RecordBatch) -> Result<()> {
        let Some(rows) = &self.rows else {
            return Err(Error::internal("rows sent after the end"));
        };
        if rows.send(batch).await.is_ok() {
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
