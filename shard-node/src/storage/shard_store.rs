//! The rows of one shard, of all its tables.

use crate::storage::Identity;
use bytes::Bytes;
use datafusion::arrow::array::RecordBatch;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tessera_proto::table::TableDef;
use tessera_proto::{LogIndex, Result, ShardId, TableId, Timestamp, v1};

/// Parquet footers of a node's segments, bounded in bytes; shared by all shards.
#[derive(Debug)]
pub struct MetadataCache {}

impl MetadataCache {
    /// An empty cache of at most so many bytes.
    pub fn new(bytes_max: usize) -> Arc<Self> {
        let _ = bytes_max;
        Arc::new(Self {})
    }
}

/// Rows that one transaction adds to one table in one shard.
#[derive(Debug, Clone)]
pub enum Write {
    /// Carried in the log entry: all columns of the table in its order, hidden ones included.
    Rows {
        /// The table.
        table: Arc<TableDef>,
        /// The rows.
        batch: RecordBatch,
    },
    /// Staged before, on this copy too.
    Staged {
        /// The table.
        table: Arc<TableDef>,
        /// The segments.
        segments: Vec<v1::SegmentRef>,
    },
}

/// State a far-behind copy starts from. The files stay on disk while this lives, even if the shard drops them.
#[derive(Debug)]
pub struct SnapshotManifest {
    /// For [`ShardStore::install_snapshot`]; opaque.
    pub manifest: Bytes,
    /// Everything up to here is in it.
    pub checkpoint: LogIndex,
    /// Files to fetch with [`ShardStore::install_segment`] first.
    pub files: Vec<v1::SegmentRef>,
}

/// Rows of one shard. Cheap to clone; all clones are the same store. Thread-safe; `apply` calls come from one task.
#[derive(Debug, Clone)]
pub struct ShardStore {
    _inner: Arc<()>,
}

impl ShardStore {
    /// Opens or creates `dir/<group>-<index>`; `dir` is the node's `shards` folder. Does not remove unknown files: see [`Self::sweep`].
    ///
    /// # Errors
    /// XX001 when the manifest or a segment it names is damaged or missing, or belongs to another data directory.
    pub fn open(dir: &Path, shard: ShardId, identity: &Identity, cache: Arc<MetadataCache>) -> Result<ShardStore> {
        let _ = (dir, shard, identity, cache);
        todo!()
    }

    /// The shard.
    pub fn shard(&self) -> ShardId {
        todo!()
    }

    /// Entries up to here are in durable segments; replay starts after it.
    pub fn checkpoint(&self) -> LogIndex {
        todo!()
    }

    /// Last entry applied or passed over with [`Self::advance`].
    pub fn applied(&self) -> LogIndex {
        todo!()
    }

    /// Greatest commit timestamp applied.
    pub fn max_timestamp(&self) -> Timestamp {
        todo!()
    }

    /// Makes rows visible at `ts`; nothing happens when `index` is not above [`Self::applied`].
    ///
    /// # Errors
    /// XX001 when a staged segment is missing or not the one that was staged; then nothing was applied.
    pub fn apply(&self, index: LogIndex, ts: Timestamp, writes: &[Write]) -> Result<()> {
        let _ = (index, ts, writes);
        todo!()
    }

    /// Passes over an entry without rows.
    pub fn advance(&self, index: LogIndex) {
        let _ = index;
        todo!()
    }

    /// Detail of the first key that exists already, in this shard (any version) or twice in the write itself. Blocking:
    /// reads sidecars; for staged writes call it off the async threads.
    ///
    /// # Errors
    /// 23502 for NULL in a NOT NULL column; XX001 or 58030 when segments cannot be read.
    pub fn unique_conflict(&self, write: &Write) -> Result<Option<String>> {
        let _ = write;
        todo!()
    }

    /// Canonical row keys of an inline write, for the lock table; empty for staged writes.
    ///
    /// # Errors
    /// A column type that cannot be a key.
    pub fn keys(&self, write: &Write) -> Result<Vec<Box<[u8]>>> {
        let _ = write;
        todo!()
    }

    /// Writes rows to durable, invisible segments.
    pub fn stage(&self, table: &Arc<TableDef>) -> StageWriter {
        let _ = table;
        todo!()
    }

    /// Path of a segment file.
    ///
    /// # Errors
    /// 08P01 when `file` is not a segment's name.
    pub fn segment_path(&self, file: &str) -> Result<PathBuf> {
        let _ = file;
        todo!()
    }

    /// Writes a file fetched from another copy durably, checks it, and builds its key sidecar. Blocking. A file that is
    /// here already is kept.
    ///
    /// # Errors
    /// XX001 when the contents do not have the checksum; the error of `chunks`; 53100.
    pub fn install_segment(&self, segment: &v1::SegmentRef, chunks: &mut dyn Iterator<Item = Result<Bytes>>) -> Result<()> {
        let _ = (segment, chunks);
        todo!()
    }

    /// Whether a file is here, durable and complete.
    pub fn has_segment(&self, file: &str) -> bool {
        let _ = file;
        todo!()
    }

    /// Removes staged files of an aborted transaction; files that became visible stay.
    pub fn discard(&self, files: &[String]) {
        let _ = files;
        todo!()
    }

    /// After replay: removes all files that are neither visible nor in `keep` (segment files of prepared transactions).
    pub fn sweep(&self, keep: &HashSet<String>) {
        let _ = keep;
        todo!()
    }

    /// Rows and bytes in memory only: seal above 128 Ki rows or 32 MiB.
    pub fn delta_size(&self) -> (usize, usize) {
        todo!()
    }

    /// Moves the delta to durable segments and writes a manifest; returns the new checkpoint, `None` if there was nothing
    /// to do. Blocking; applies go on meanwhile. Tables for which `tables` gives nothing are dropped.
    ///
    /// # Errors
    /// 53100 or 58030: nothing changed, try again later.
    pub fn seal(&self, tables: &dyn Fn(TableId) -> Option<Arc<TableDef>>) -> Result<Option<LogIndex>> {
        let _ = tables;
        todo!()
    }

    /// Seals, then returns what another copy needs. Blocking.
    ///
    /// # Errors
    /// As [`Self::seal`].
    pub fn snapshot(&self, tables: &dyn Fn(TableId) -> Option<Arc<TableDef>>) -> Result<SnapshotManifest> {
        let _ = tables;
        todo!()
    }

    /// Replaces everything by a snapshot whose files were installed. Durable on return. Blocking.
    ///
    /// # Errors
    /// XX001 when a file is missing, 08P01 when the manifest is malformed; nothing changed then.
    pub fn install_snapshot(&self, manifest: &[u8]) -> Result<LogIndex> {
        let _ = manifest;
        todo!()
    }

    /// Order-independent digest of the rows visible at `ts`, and their number. Blocking.
    ///
    /// # Errors
    /// XX001 or 58030 when segments cannot be read.
    pub fn digest(&self, table: &TableDef, ts: Timestamp) -> Result<(u128, u64)> {
        let _ = (table, ts);
        todo!()
    }

    /// Estimates for the planner. Blocking at the first call for a segment.
    pub fn statistics(&self, table: &TableDef) -> v1::TableStatistics {
        let _ = table;
        todo!()
    }

    /// Rows visible at `ts` by row key (`keys` = the row key columns in key order), at most one per key, in the keys' order.
    /// `projection` are column numbers of the table. Blocking.
    ///
    /// # Errors
    /// 08P01 when keys or projection do not fit the table; XX001 or 58030 when segments cannot be read.
    pub fn point_read(&self, table: &TableDef, ts: Timestamp, keys: &RecordBatch, projection: &[usize]) -> Result<RecordBatch> {
        let _ = (table, ts, keys, projection);
        todo!()
    }

    /// Tables that have rows here.
    pub fn tables(&self) -> Vec<TableId> {
        todo!()
    }

    /// Removes a table's rows; durable on return. Files go when the last scan of them ends.
    ///
    /// # Errors
    /// 53100 or 58030 when the manifest cannot be written.
    pub fn drop_table(&self, table: TableId) -> Result<()> {
        let _ = table;
        todo!()
    }
}

/// Writes rows to segments. Dropping it unfinished removes what it wrote.
#[derive(Debug)]
pub struct StageWriter {}

impl StageWriter {
    /// Adds rows (all columns of the table, in its order). Blocking.
    ///
    /// # Errors
    /// 23502 for NULL in a NOT NULL column, 53100 when the disk is full; drop the writer then.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        let _ = batch;
        todo!()
    }

    /// Makes everything durable. Blocking.
    ///
    /// # Errors
    /// 53100 or 58030; nothing stays then.
    pub fn finish(self) -> Result<Vec<v1::SegmentRef>> {
        todo!()
    }
}
