//! Compacts one shard's tables, by itself and when asked (VACUUM).
//!
//! ```text
//!   every 5 s, per table: fold old removals ─▶ worth it? ─▶ the node's one place ─▶ rewrite, at a quarter of the time while queries run
//!   VACUUM                seal ─▶ all that can go ─▶ answer
//! ```
//!
//! A task of the shard: it is joined before the shard is closed, removed or fetched again, so that nothing is written into
//! a folder that has another shard's files by then. A stop is noticed within a batch. Copies compact independently.

use super::ShardNode;
use super::background;
use super::shard::Shard;
use crate::storage::compaction::{Compacted, Eagerness, Ended, Job, Step};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tessera_proto::table::TableDef;
use tessera_proto::{Error, Result, TableId, Timestamp, v1};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// Between two looks for something to do.
const INTERVAL: Duration = Duration::from_secs(5);
/// While queries run here, a pause after each batch of so many times what it took.
const PAUSES: u32 = 3;
/// Longest such pause.
const PAUSE_MAX: Duration = Duration::from_millis(200);
/// Dead rows for which removals that no manifest knows yet are sealed ahead of time.
const SEAL_MIN: u64 = 16 << 10;
/// How often VACUUM seals once more because rows it counted on are not sealed yet.
const TRIES_MAX: u32 = 3;
/// How long a table is left alone after its compaction failed.
const PUT_OFF: Duration = Duration::from_secs(60);

/// Somebody wants a table compacted now.
#[derive(Debug)]
pub struct Wish {
    /// Which.
    pub table: TableId,
    /// What was done; whoever drops the other end has changed their mind.
    pub reply: oneshot::Sender<Result<Compacted>>,
}

/// What compactions of a shard did since its start, and what one is doing.
#[derive(Debug, Default)]
pub struct Progress {
    finished: AtomicU64,
    bytes: AtomicU64,
    rows_done: AtomicU64,
    running: Mutex<Option<(TableId, u64)>>,
}

impl Progress {
    fn begin(&self, job: &Job) {
        self.rows_done.store(0, Ordering::Relaxed);
        *self.running.lock() = Some((job.table, job.rows()));
    }

    fn end(&self, done: Option<Compacted>) {
        *self.running.lock() = None;
        if let Some(done) = done {
            self.finished.fetch_add(1, Ordering::Relaxed);
            self.bytes.fetch_add(done.bytes_after, Ordering::Relaxed);
            metrics::counter!("tessera_compactions_total").increment(1);
            metrics::counter!("tessera_compacted_rows_removed_total").increment(done.rows_removed);
            metrics::counter!("tessera_compacted_bytes_total").increment(done.bytes_after);
        }
    }

    /// Compactions since the start, and bytes that they wrote.
    pub fn finished(&self) -> (u64, u64) {
        (
            self.finished.load(Ordering::Relaxed),
            self.bytes.load(Ordering::Relaxed),
        )
    }

    /// The one that runs.
    pub fn running(&self) -> Option<v1::CompactionProgress> {
        let (table, rows) = (*self.running.lock())?;
        Some(v1::CompactionProgress {
            table: table.0,
            rows,
            rows_done: self.rows_done.load(Ordering::Relaxed),
        })
    }
}

/// Runs until `stop`.
pub async fn run(node: Arc<ShardNode>, shard: Arc<Shard>, mut wishes: mpsc::Receiver<Wish>, stop: CancellationToken) {
    let mut tick = interval(INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut compactor = Compactor {
        node,
        shard,
        stop,
        put_off: HashMap::new(),
    };
    loop {
        tokio::select! {
            () = compactor.stop.cancelled() => return,
            wish = wishes.recv() => match wish {
                Some(wish) => compactor.grant(wish).await,
                None => return,
            },
            _ = tick.tick() => compactor.tidy().await,
        }
    }
}

struct Compactor {
    node: Arc<ShardNode>,
    shard: Arc<Shard>,
    stop: CancellationToken,
    put_off: HashMap<TableId, Instant>,
}

impl Compactor {
    async fn grant(&self, wish: Wish) {
        let Wish { table, mut reply } = wish;
        let cancel = self.stop.child_token();
        let mut work = std::pin::pin!(self.vacuum(table, &cancel));
        let done = tokio::select! {
            done = &mut work => done,
            () = reply.closed() => {
                cancel.cancel();
                work.await
            }
        };
        let _ = reply.send(done);
    }

    /// Does what pays off.
    async fn tidy(&mut self) {
        let (store, watermark) = (self.shard.store.clone(), self.node.watermark.current());
        let folded = tokio::task::spawn_blocking(move || store.fold_removals(watermark)).await;
        if let Err(error) = folded {
            tracing::error!(%error, shard = %self.shard.id, "folding removals failed");
        }
        self.put_off.retain(|_, until| *until > Instant::now());
        for table in self.shard.store.tables() {
            let Some(def) = self
                .node
                .definition(table)
                .filter(|_| !self.put_off.contains_key(&table))
            else {
                continue;
            };
            if let Err(error) = self.tidy_table(&def).await
                && !self.stop.is_cancelled()
            {
                tracing::warn!(%error, shard = %self.shard.id, %table, "compaction failed");
                self.put_off.insert(table, Instant::now() + PUT_OFF);
            }
        }
    }

    async fn tidy_table(&self, def: &Arc<TableDef>) -> Result<()> {
        let mut sealed = false;
        loop {
            let watermark = self.node.watermark.current();
            let Some(job) = self.next(def, watermark, Eagerness::Usual).await? else {
                return Ok(());
            };
            let large = job.rows() >= SEAL_MIN;
            match self.compact(job, def, Eagerness::Usual, &self.stop).await? {
                Ended::Done(_) => {}
                Ended::Unsealed if large && !sealed => {
                    background::seal(&self.shard).await;
                    sealed = true;
                }
                Ended::Unsealed | Ended::Overtaken => return Ok(()),
            }
        }
    }

    /// Seals, then does everything that can be done for the watermark of now.
    async fn vacuum(&self, table: TableId, cancel: &CancellationToken) -> Result<Compacted> {
        let (mut all, mut tries) = (Compacted::default(), 0);
        let Some(def) = self.node.definition(table) else {
            return Ok(all);
        };
        let watermark = self.node.watermark.current();
        background::seal(&self.shard).await;
        while let Some(job) = self.next(&def, watermark, Eagerness::Asked).await? {
            match self.compact(job, &def, Eagerness::Asked, cancel).await? {
                Ended::Done(done) => all = all.and(done),
                // A prepared transaction ended, or somebody took a snapshot.
                Ended::Unsealed | Ended::Overtaken if tries < TRIES_MAX => {
                    tries += 1;
                    background::seal(&self.shard).await;
                }
                Ended::Unsealed | Ended::Overtaken => break,
            }
        }
        Ok(all)
    }

    async fn next(&self, def: &Arc<TableDef>, watermark: Timestamp, eagerness: Eagerness) -> Result<Option<Job>> {
        let (store, def) = (self.shard.store.clone(), def.clone());
        let picked = tokio::task::spawn_blocking(move || store.to_compact(&def, watermark, eagerness)).await;
        picked.map_err(|e| Error::internal(format!("looking for something to compact: {e}")))
    }

    /// Ends before its caller does, whatever happens: nothing may be written here once the shard is closed.
    async fn compact(
        &self,
        job: Job,
        def: &Arc<TableDef>,
        eagerness: Eagerness,
        cancel: &CancellationToken,
    ) -> Result<Ended> {
        let shard_id = self.shard.id;
        let stopped = move || Error::cancelled(format!("a compaction of shard {shard_id} was stopped"));
        let place = tokio::select! {
            () = cancel.cancelled() => return Err(stopped()),
            place = self.node.compacting.clone().acquire_owned() => place.map_err(|_| stopped())?,
        };
        self.node.check_disk(job.bytes() as usize)?;
        let (node, shard, cancel, def) = (self.node.clone(), self.shard.clone(), cancel.clone(), def.clone());
        let work = tokio::task::spawn_blocking(move || {
            let _place = place;
            let since = Mutex::new(Instant::now());
            shard.compaction.begin(&job);
            let steps = |step: Step| -> Result<()> {
                if cancel.is_cancelled() {
                    return Err(stopped());
                }
                match step {
                    Step::Rows(rows) => shard.compaction.rows_done.fetch_add(rows as u64, Ordering::Relaxed),
                    Step::Written => return node.failpoints.hit("compact.before_manifest"),
                    Step::Stored => return node.failpoints.hit("compact.after_manifest"),
                };
                let mut since = since.lock();
                if eagerness == Eagerness::Usual && node.query_tasks() > 0 {
                    std::thread::sleep((since.elapsed() * PAUSES).min(PAUSE_MAX));
                }
                *since = Instant::now();
                Ok(())
            };
            let ended = shard.store.compact(&job, &def, node.executor.memory(), &steps);
            let done = match &ended {
                Ok(Ended::Done(done)) => Some(*done),
                _ => None,
            };
            shard.compaction.end(done);
            if let Some(done) = done {
                let (files, into) = (done.files_before, done.files_after);
                tracing::info!(shard = %shard.id, table = %def.id, files, into, removed = done.rows_removed, bytes = done.bytes_after, "compacted");
            }
            node.watch(&[shard.id], ended)
        });
        work.await.map_err(|e| Error::internal(format!("compacting: {e}")))?
    }
}
