//! Large writes: rows become fsynced, invisible segments on every in-sync copy before the transaction names them.
//!
//! ```text
//!   router ── rows ──▶ leader: StageWriter ─▶ segments ── Prefetch ──▶ followers fetch, fsync, answer ─▶ StageReply
//!                        commit or prepare names them: visible at the commit timestamp; else Discard
//! ```
//!
//! Files that no transaction names in time, and those found after a restart, are removed. Memory is the writer's buffer.

use super::shard::Shard;
use super::{ShardNode, checks};
use crate::replication::catch_up;
use datafusion::arrow::array::RecordBatch;
use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tessera_proto::table::TableDef;
use tessera_proto::{Error, ReplicaId, Result, ShardId, TableId, TxnId, ipc, v1};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

/// Batches between the network and the writing thread.
const BATCHES_MAX: usize = 4;
/// Pause before a follower that could not fetch is asked again.
const PREFETCH_PAUSE: Duration = Duration::from_millis(200);
/// Staged files that no transaction named for so long are removed: the longest a statement may take.
const STAGED_AGE_MAX: Duration = Duration::from_secs(2 * 3_600);

/// Staged files that no log entry names yet.
#[derive(Debug, Default)]
pub struct Staged {
    files: Mutex<BTreeMap<(ShardId, TxnId), StagedFiles>>,
}

/// When a transaction last staged something, and the names of its files.
type StagedFiles = (Instant, BTreeSet<String>);

impl Staged {
    fn add(&self, shard: ShardId, txn: TxnId, segments: &[v1::SegmentRef]) {
        let mut files = self.files.lock();
        let (_, names) = files
            .entry((shard, txn))
            .or_insert_with(|| (Instant::now(), BTreeSet::new()));
        names.extend(segments.iter().map(|s| s.file.clone()));
    }

    /// Whether a file was staged here for this transaction.
    pub fn has(&self, shard: ShardId, txn: TxnId, file: &str) -> bool {
        self.files
            .lock()
            .get(&(shard, txn))
            .is_some_and(|(_, names)| names.contains(file))
    }

    /// The log has what it needs of them: returns the others, which a savepoint or TRUNCATE took back.
    pub fn settle(&self, shard: ShardId, txns: &[TxnId], logged: &[v1::SegmentRef]) -> Vec<String> {
        let mut files: BTreeSet<String> = txns.iter().flat_map(|txn| self.take(shard, *txn)).collect();
        logged.iter().for_each(|segment| drop(files.remove(&segment.file)));
        files.into_iter().collect()
    }

    fn take(&self, shard: ShardId, txn: TxnId) -> Vec<String> {
        self.files
            .lock()
            .remove(&(shard, txn))
            .map(|(_, names)| names.into_iter().collect())
            .unwrap_or_default()
    }

    fn take_old(&self) -> Vec<(ShardId, Vec<String>)> {
        let old = |_: &(ShardId, TxnId), (since, _): &mut (Instant, BTreeSet<String>)| since.elapsed() > STAGED_AGE_MAX;
        self.files
            .lock()
            .extract_if(.., old)
            .map(|((shard, _), (_, names))| (shard, names.into_iter().collect()))
            .collect()
    }
}

/// What the writing thread is told; a channel that ends without `Finish` was given up.
enum Step {
    Rows(RecordBatch),
    Finish,
}

impl ShardNode {
    /// See `ShardService::stage`.
    pub(super) async fn stage_rows(
        self: &Arc<Self>,
        begin: v1::StageBegin,
        rows: SendableRecordBatchStream,
    ) -> Result<v1::StageReply> {
        let until = checks::until(begin.deadline_ms)?;
        let txn = TxnId::from_wire(&begin.txn)?;
        self.check_disk(0)?;
        let shard = self.leading(begin.shard, until).await?;
        let def = self
            .table(TableId(begin.table), begin.schema_version, begin.meta_revision, until)
            .await?;
        if def.group != shard.id.group {
            return Err(Error::protocol(format!(
                "table \"{}\" does not belong to shard {}",
                def.name, shard.id
            )));
        }
        let (segments, rows) = self.write_segments(&shard, def, rows, until).await?;
        self.staged.add(shard.id, txn, &segments);
        match self.copy_segments(&shard, txn, &segments, until).await {
            Ok(()) => Ok(v1::StageReply { segments, rows }),
            Err(error) => {
                self.discard_staged(&shard, txn).await;
                Err(error)
            }
        }
    }

    async fn write_segments(
        self: &Arc<Self>,
        shard: &Arc<Shard>,
        def: Arc<TableDef>,
        mut rows: SendableRecordBatchStream,
        until: Instant,
    ) -> Result<(Vec<v1::SegmentRef>, u64)> {
        let (sender, receiver) = mpsc::channel(BATCHES_MAX);
        let (node, here, schema) = (self.clone(), shard.clone(), def.arrow_schema());
        let written = tokio::task::spawn_blocking(move || write(&node, &here, &def, receiver));
        let late = || Error::cancelled("staging rows took too long");
        loop {
            let step = match timeout_at(until, rows.next()).await.map_err(|_| late())? {
                Some(batch) => Step::Rows(ipc::relabel(&schema, batch?)?),
                None => Step::Finish,
            };
            let last = matches!(step, Step::Finish);
            // A writer that is gone has an error to report.
            if timeout_at(until, sender.send(step)).await.map_err(|_| late())?.is_err() || last {
                break;
            }
        }
        drop(sender);
        written.await.map_err(|e| Error::internal(format!("staging: {e}")))?
    }

    /// Returns once every in-sync copy has the files; one that leaves the in-sync set meanwhile is not waited for. Leadership
    /// may have moved since the stream began: whoever leads now is in sync, so it gets them too and can commit them.
    async fn copy_segments(
        &self,
        shard: &Shard,
        txn: TxnId,
        segments: &[v1::SegmentRef],
        until: Instant,
    ) -> Result<()> {
        let mut have = BTreeSet::from([self.id]);
        loop {
            let missing: Vec<ReplicaId> = {
                let status = shard.status.borrow();
                status
                    .config
                    .iter()
                    .flat_map(|c| &c.in_sync)
                    .filter(|r| !have.contains(r))
                    .copied()
                    .collect()
            };
            if missing.is_empty() {
                return Ok(());
            }
            let asked = futures::future::join_all(
                missing
                    .iter()
                    .map(|r| self.ask_prefetch(shard, *r, txn, segments, until)),
            )
            .await;
            for (replica, result) in missing.into_iter().zip(asked) {
                match result {
                    Ok(()) => drop(have.insert(replica)),
                    Err(error) => {
                        tracing::debug!(%error, %replica, shard = %shard.id, "a copy could not fetch staged files")
                    }
                }
            }
            if Instant::now() >= until {
                return Err(Error::unavailable(format!(
                    "in-sync copies of shard {} did not take staged files in time",
                    shard.id
                )));
            }
            if shard
                .status
                .borrow()
                .config
                .iter()
                .flat_map(|c| &c.in_sync)
                .any(|r| !have.contains(r))
            {
                tokio::time::sleep(PREFETCH_PAUSE).await;
            }
        }
    }

    async fn ask_prefetch(
        &self,
        shard: &Shard,
        to: ReplicaId,
        txn: TxnId,
        segments: &[v1::SegmentRef],
        until: Instant,
    ) -> Result<()> {
        let left = until.saturating_duration_since(Instant::now());
        let request = v1::PrefetchRequest {
            from: self.id.node.0,
            group: shard.id.group.0,
            shard: shard.id.index,
            txn: txn.to_wire(),
            segments: segments.to_vec(),
            deadline_ms: (left.as_millis() as u64).max(1),
        };
        match timeout_at(until, self.transport.prefetch(to.node, request)).await {
            Ok(result) => result,
            Err(_) => Err(Error::unavailable(format!("node {} did not fetch in time", to.node))),
        }
    }

    /// Fetches what a leader staged.
    pub(super) async fn prefetch_segments(
        self: &Arc<Self>,
        shard: Arc<Shard>,
        from: tessera_proto::NodeId,
        txn: TxnId,
        segments: Vec<v1::SegmentRef>,
        until: Instant,
    ) -> Result<()> {
        // Known before they are complete, so that a discard that comes first finds them.
        self.staged.add(shard.id, txn, &segments);
        let fetched = timeout_at(
            until,
            catch_up::ensure_segments(&shard, &*self.transport, from, &segments),
        )
        .await;
        fetched.unwrap_or_else(|_| Err(Error::unavailable("staged files did not come in time")))
    }

    /// Removes what was staged for a transaction and is not in the log, here and on the copies: one of those may have led
    /// when it was staged.
    pub(super) async fn discard_staged(self: &Arc<Self>, shard: &Arc<Shard>, txn: TxnId) {
        self.discard_here(shard, txn).await;
        let copies: Vec<_> = shard
            .status
            .borrow()
            .config
            .iter()
            .flat_map(|c| c.replicas())
            .filter(|r| *r != self.id)
            .collect();
        let request = v1::DiscardRequest {
            group: shard.id.group.0,
            shard: shard.id.index,
            txn: txn.to_wire(),
        };
        for copy in copies {
            let (node, request) = (self.clone(), request.clone());
            self.tasks.spawn(async move {
                if let Err(error) = node.transport.discard(copy.node, request).await {
                    tracing::debug!(%error, %copy, "a copy keeps staged files until its restart");
                }
            });
        }
    }

    /// The same on this copy alone.
    pub(super) async fn discard_here(&self, shard: &Arc<Shard>, txn: TxnId) {
        let files = self.staged.take(shard.id, txn);
        self.remove_files(shard.clone(), files).await;
    }

    /// Files of transactions that were forgotten.
    pub(super) async fn discard_old(&self) {
        for (shard, files) in self.staged.take_old() {
            if let Some(shard) = self.shard(shard) {
                self.remove_files(shard, files).await;
            }
        }
    }

    async fn remove_files(&self, shard: Arc<Shard>, files: Vec<String>) {
        if !files.is_empty()
            && let Err(error) = tokio::task::spawn_blocking(move || shard.store.discard(&files)).await
        {
            tracing::error!(%error, "removing staged files failed");
        }
    }
}

/// Writes until told to finish. Blocking.
fn write(
    node: &ShardNode,
    shard: &Shard,
    def: &Arc<TableDef>,
    mut steps: mpsc::Receiver<Step>,
) -> Result<(Vec<v1::SegmentRef>, u64)> {
    let mut writer = shard.store.stage(def);
    let mut rows = 0;
    while let Some(step) = steps.blocking_recv() {
        match step {
            Step::Rows(batch) => {
                checks::check_home(&node.views.current(), shard.id, def, &batch)?;
                rows += batch.num_rows() as u64;
                writer.write(&batch)?;
            }
            Step::Finish => return Ok((writer.finish()?, rows)),
        }
    }
    Err(Error::cancelled("staging was given up"))
}
