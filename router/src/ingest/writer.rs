//! Collects the rows of one statement for one table, and commits them as one transaction.
//!
//! ```text
//!   buffered <= 8 MiB over all shards                     sent inside prepare and commit
//!   beyond: a shard whose buffer reaches a chunk          stage stream opened, buffer sent; later chunks follow
//!   finish: shards with a stream commit segments, the others their few rows
//! ```
//!
//! Memory: at most [`INLINE_MAX`] before staging; afterwards one chunk per shard buffered and a few on their way, with
//! chunks small enough that all shards together stay near [`STAGING_MAX`].

use super::change_writer::Held;
use super::returning;
use super::rows::RowShaper;
use super::split::split;
use super::staging::{StageTarget, Staging};
use crate::engine::Engine;
use crate::session::StatementContext;
use crate::txn::driver::{self, Basis, ShardWrites, Transaction};
use crate::txn::open::{Limits, OpenTransaction};
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::compute::concat_batches;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tessera_proto::table::{ColocationGroup, TableDef};
use tessera_proto::{Error, Result, ShardId, Timestamp, TxnId, ipc, v1};
use tokio::time::Instant;

/// Rows of a statement that stay in memory and travel inside its commit.
const INLINE_MAX: usize = 8 << 20;
/// Rows under way to all shards of a statement while it stages.
const STAGING_MAX: usize = 64 << 20;
/// Bounds of one staged chunk.
const CHUNK_MIN: usize = 32 << 10;
const CHUNK_MAX: usize = 1 << 20;
/// Copies of a chunk's size per shard: one buffered, two in the channel, one being sent, four kept at the beginning.
const CHUNKS_PER_SHARD: usize = 8;
/// Rows shaped at once: bounds the memory that shaping takes besides the buffers.
const ROWS_AT_ONCE: usize = 8_192;
/// Time to commit after the last row, also when the statement's own limit is longer.
pub(super) const COMMIT_MAX: Duration = Duration::from_secs(120);

/// Rows of one shard.
#[derive(Debug, Default)]
struct Shard {
    batches: Vec<RecordBatch>,
    bytes: usize,
    staging: Option<Staging>,
}

/// Writes rows of one statement into one table. Dropping it drops all of them.
#[derive(Debug)]
pub struct TableWriter {
    engine: Arc<Engine>,
    table: Arc<TableDef>,
    group: Arc<ColocationGroup>,
    shaper: RowShaper,
    target: StageTarget,
    shards: BTreeMap<u32, Shard>,
    /// Shards that may hold staged segments of this transaction.
    staged: Vec<ShardId>,
    buffered: usize,
    rows: u64,
    kept: Option<Kept>,
    chunk: usize,
    transaction: Option<Arc<OpenTransaction>>,
    limits: Limits,
    deadline: Instant,
}

/// Rows as they will be stored, for RETURNING.
#[derive(Debug, Default)]
struct Kept {
    held: Held,
    rows: Vec<RecordBatch>,
}

impl TableWriter {
    /// A writer for batches whose column `i` goes to table column `targets[i]`; other columns get their defaults.
    ///
    /// # Errors
    /// What planning a default finds; 42P01 when the table is gone.
    pub(crate) async fn new(context: &StatementContext, table: Arc<TableDef>, targets: &[usize]) -> Result<Self> {
        let view = context.engine.view();
        let group = view
            .groups
            .get(&table.group)
            .ok_or_else(|| Error::new("42P01", format!("table \"{}\" was dropped", table.name)))?
            .clone();
        let shaper = RowShaper::new(context, table.clone(), targets).await?;
        let transaction = context.transaction.clone();
        let txn = transaction.as_ref().map_or_else(TxnId::generate, |t| t.id());
        let target = StageTarget {
            table: table.clone(),
            schema: shaper.schema().clone(),
            txn,
            meta_revision: view.revision,
        };
        let chunk = (STAGING_MAX / CHUNKS_PER_SHARD / group.ranges.len().max(1)).clamp(CHUNK_MIN, CHUNK_MAX);
        let engine = context.engine.clone();
        Ok(Self {
            engine,
            table,
            group,
            shaper,
            target,
            shards: BTreeMap::new(),
            staged: vec![],
            buffered: 0,
            rows: 0,
            kept: None,
            chunk,
            transaction,
            limits: Limits::of(context),
            deadline: context.deadline,
        })
    }

    /// Adds rows. Waits while shards are busy.
    ///
    /// # Errors
    /// Casts, NULLs, a shard that gave up: then nothing of the statement can be kept.
    pub async fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        let mut from = 0;
        while from < batch.num_rows() {
            let rows = ROWS_AT_ONCE.min(batch.num_rows() - from);
            self.write_slice(&batch.slice(from, rows)).await?;
            from += rows;
        }
        Ok(())
    }

    async fn write_slice(&mut self, batch: &RecordBatch) -> Result<()> {
        let first_id = if self.shaper.needs_row_ids() {
            self.engine.row_ids(batch.num_rows()).await?
        } else {
            0
        };
        let shaped = self.shaper.shape(batch, first_id)?;
        self.rows += shaped.num_rows() as u64;
        if let Some(kept) = &mut self.kept {
            let visible = returning::visible(&self.table, &shaped)?;
            kept.held.add(&visible)?;
            kept.rows.push(visible);
        }
        let mut grown = vec![];
        for (index, part) in split(&self.table, &self.group, shaped)? {
            let bytes = ipc_size(&part);
            let shard = self.shards.entry(index).or_default();
            shard.batches.push(part);
            shard.bytes += bytes;
            self.buffered += bytes;
            grown.push(index);
        }
        if self.buffered > INLINE_MAX && self.staged.is_empty() {
            grown = self.shards.keys().copied().collect();
        }
        if self.buffered > INLINE_MAX || !self.staged.is_empty() {
            for index in grown {
                self.flush(index, self.chunk).await?;
            }
        }
        Ok(())
    }

    /// Sends a shard's buffer if it has reached `least` bytes.
    async fn flush(&mut self, index: u32, least: usize) -> Result<()> {
        let id = ShardId {
            group: self.group.id,
            index,
        };
        let Some(shard) = self
            .shards
            .get_mut(&index)
            .filter(|s| s.bytes >= least && !s.batches.is_empty())
        else {
            return Ok(());
        };
        if shard.staging.is_none() {
            shard.staging = Some(Staging::open(&self.engine, id, &self.target));
            self.staged.push(id);
        }
        let batches = std::mem::take(&mut shard.batches);
        self.buffered -= std::mem::take(&mut shard.bytes);
        let whole =
            concat_batches(&self.target.schema, &batches).map_err(|e| Error::internal(format!("joining rows: {e}")))?;
        match &mut shard.staging {
            Some(staging) => staging.send(whole).await,
            None => Ok(()),
        }
    }

    /// Keeps what is written from now on; then writing too much fails with 54000.
    pub(super) fn keep_rows(&mut self) {
        self.kept = Some(Kept::default());
    }

    /// What was written since [`Self::keep_rows`]: visible columns of the rows, in their order.
    pub(super) fn kept_rows(&mut self) -> Vec<RecordBatch> {
        self.kept.take().unwrap_or_default().rows
    }

    /// Rows so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Commits: all rows are durable and visible on return. Returns how many, and the commit's timestamp. In a transaction of several
    /// statements they are handed over to the shards, visible to that transaction, and the timestamp is 0.
    ///
    /// # Errors
    /// 23505 and whatever else a shard refuses with: then none of the rows remains. 40003: nobody knows.
    pub async fn finish(mut self) -> Result<(u64, Timestamp)> {
        let mut writes = vec![];
        let indexes: Vec<u32> = self.shards.keys().copied().collect();
        for index in &indexes {
            if self.shards.get(index).is_some_and(|s| s.staging.is_some()) {
                self.flush(*index, 0).await?;
            }
        }
        let shards = std::mem::take(&mut self.shards);
        let ends = shards.into_iter().map(|(index, shard)| {
            end(
                &self.table,
                &self.target,
                ShardId {
                    group: self.group.id,
                    index,
                },
                shard,
            )
        });
        for end in futures::future::join_all(ends).await {
            writes.extend(end?);
        }
        // Home is the last of the ascending shards.
        let last = writes.len().min(1);
        writes.rotate_right(last);
        let rows = self.rows;
        if writes.is_empty() {
            return Ok((0, Timestamp(0)));
        }
        let deadline = self.deadline.min(Instant::now() + COMMIT_MAX);
        if let Some(transaction) = &self.transaction {
            let revision = self.target.meta_revision;
            transaction
                .write(writes, revision, Basis::default(), &self.limits)
                .await?;
            return Ok((rows, Timestamp(0)));
        }
        let transaction = Transaction {
            id: self.target.txn,
            meta_revision: self.target.meta_revision,
            basis: Basis::default(),
            open: false,
            shards: writes,
            deadline,
        };
        // From here on the coordinator tells the shards what becomes of their segments.
        self.staged.clear();
        let timestamp = driver::commit(&self.engine, transaction).await?;
        Ok((rows, timestamp))
    }

    /// Drops all rows.
    pub fn abort(self) {
        drop(self);
    }
}

impl Drop for TableWriter {
    fn drop(&mut self) {
        self.shards.clear();
        if self.transaction.is_some() {
            // Files of other statements have the same id: all that is not committed goes at the transaction's end.
            return;
        }
        driver::abandon(&self.engine, self.target.txn, std::mem::take(&mut self.staged));
    }
}

/// Ends a shard's part of the transaction.
async fn end(table: &TableDef, target: &StageTarget, id: ShardId, shard: Shard) -> Result<Option<ShardWrites>> {
    let payload = match shard.staging {
        Some(staging) => {
            let reply = staging.finish().await?;
            v1::table_write::Payload::Staged(v1::StagedSegments {
                segments: reply.segments,
            })
        }
        None if shard.batches.is_empty() => return Ok(None),
        None => v1::table_write::Payload::Rows(ipc::encode(&target.schema, &shard.batches)?),
    };
    let write = v1::TableWrite {
        table: table.id.0,
        schema_version: table.version,
        payload: Some(payload),
        removed: bytes::Bytes::new(),
        truncated: false,
    };
    Ok(Some(ShardWrites {
        shard: id,
        writes: vec![write],
    }))
}

/// Bytes a batch takes on the wire, roughly: views are counted by what they point at, not by the buffers they share.
pub(super) fn ipc_size(batch: &RecordBatch) -> usize {
    use datafusion::arrow::array::{Array, AsArray};
    use datafusion::arrow::datatypes::DataType;
    let size = |array: &datafusion::arrow::array::ArrayRef| match array.data_type() {
        DataType::Utf8View => {
            16 * array.len()
                + array
                    .as_string_view()
                    .iter()
                    .flatten()
                    .map(str::len)
                    .filter(|n| *n > 12)
                    .sum::<usize>()
        }
        DataType::BinaryView => {
            16 * array.len()
                + array
                    .as_binary_view()
                    .iter()
                    .flatten()
                    .map(<[u8]>::len)
                    .filter(|n| *n > 12)
                    .sum::<usize>()
        }
        other => array.len() * other.primitive_width().unwrap_or(16) + array.len() / 8,
    };
    batch.columns().iter().map(size).sum()
}
