//! The rows of one shard, of all its tables: where log entries are applied and where readers begin.
//!
//! ```text
//!   apply(41, ts, rows) ──▶ Version 41 ──▶ readers take an Arc       one writer at a time; readers never wait
//!   seal ──▶ segments, manifest (checkpoint 41) ──▶ Version 41', the same rows elsewhere
//! ```
//!
//! Two locks: `manifest` serialises what changes files (seal, drop, snapshots; held for long), `apply` what publishes a
//! version (held for microseconds), taken in this order. Work is in the neighbours: seal.rs, snapshot.rs, segment_files.rs, unique.rs,
//! point_read.rs, digest.rs, statistics.rs. Not here: deletes and updates, they need delete vectors.

use crate::storage::cache::MetadataCache;
use crate::storage::delta::{self, KEY_BYTES};
use crate::storage::keys::{DeltaKeys, for_each_key, key_columns};
use crate::storage::manifest::Manifest;
use crate::storage::seal::Tables;
use crate::storage::segment_files::check_file_name;
use crate::storage::snapshot::open_version;
use crate::storage::staging::{StageWriter, conform};
use crate::storage::statistics::TableSummary;
use crate::storage::unique::{self, InlineKeys};
use crate::storage::version::{Segment, SegmentMeta, TableVersion, Version};
use crate::storage::{Access, Identity, SnapshotManifest, digest, durable, point_read};
use arc_swap::ArcSwap;
use datafusion::arrow::array::RecordBatch;
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tessera_proto::table::TableDef;
use tessera_proto::token::canonical_keys;
use tessera_proto::{Error, LogIndex, Result, ShardId, TableId, Timestamp, v1};

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

/// Rows of one shard. Cheap to clone; all clones are the same store. Thread-safe; `apply` calls come from one task.
#[derive(Debug, Clone)]
pub struct ShardStore {
    pub(super) inner: Arc<Inner>,
}

/// What all clones share.
#[derive(Debug)]
pub(super) struct Inner {
    pub shard: ShardId,
    /// The shard's folder and its segment folder.
    pub dir: PathBuf,
    pub segments: PathBuf,
    pub cache: Arc<MetadataCache>,
    pub version: ArcSwap<Version>,
    /// Held while a new version is made and published.
    pub apply: Mutex<()>,
    /// Keys of rows in memory.
    pub keys: RwLock<HashMap<TableId, DeltaKeys>>,
    /// The newest manifest on disk; held while files change.
    pub manifest: Mutex<Manifest>,
    /// Its checkpoint, to be read without waiting.
    pub checkpoint: AtomicU64,
}

impl ShardStore {
    /// Opens or creates `dir/<group>-<index>`; `dir` is the node's `shards` folder. Does not remove unknown files: see [`Self::sweep`].
    ///
    /// # Errors
    /// XX001 when the manifest or a segment it names is damaged or missing, or belongs to another data directory.
    pub fn open(dir: &Path, shard: ShardId, identity: &Identity, cache: Arc<MetadataCache>) -> Result<ShardStore> {
        let dir = dir.join(format!("{}-{}", shard.group, shard.index));
        let segments = dir.join("seg");
        durable::create_dir(&segments)?;
        durable::sync_dir(&dir)?;
        let manifest = Manifest::load(&dir, shard, identity)?;
        let version = ArcSwap::from_pointee(open_version(&segments, &manifest, &cache)?);
        let inner = Inner {
            shard,
            dir,
            segments,
            cache,
            version,
            apply: Mutex::new(()),
            keys: RwLock::default(),
            checkpoint: AtomicU64::new(manifest.checkpoint.0),
            manifest: Mutex::new(manifest),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The shard.
    pub fn shard(&self) -> ShardId {
        self.inner.shard
    }

    /// The present state; readers work on it for as long as they like.
    pub fn version(&self) -> Arc<Version> {
        self.inner.version.load_full()
    }

    /// Entries up to here are in durable segments; replay starts after it.
    pub fn checkpoint(&self) -> LogIndex {
        LogIndex(self.inner.checkpoint.load(Ordering::Acquire))
    }

    /// Last entry applied or passed over with [`Self::advance`].
    pub fn applied(&self) -> LogIndex {
        self.inner.version.load().applied
    }

    /// Greatest commit timestamp applied.
    pub fn max_timestamp(&self) -> Timestamp {
        self.inner.version.load().max_timestamp
    }

    /// Makes rows visible at `ts`; nothing happens when `index` is not above [`Self::applied`].
    ///
    /// # Errors
    /// XX001 when a staged segment is missing or not the one that was staged; then nothing was applied.
    pub fn apply(&self, index: LogIndex, ts: Timestamp, writes: &[Write]) -> Result<()> {
        let _apply = self.inner.apply.lock();
        let mut next = Version::clone(&self.inner.version.load());
        if index <= next.applied {
            return Ok(());
        }
        let mut added = Vec::new();
        for write in writes {
            let table = Arc::make_mut(next.tables.entry(write.table().id).or_default());
            match write {
                Write::Rows { table: def, batch } => {
                    let batch = conform(def, batch)?;
                    if batch.num_rows() == 0 {
                        continue;
                    }
                    added.push((def, table.next_position, key_columns(def, &batch)?));
                    add_rows(table, batch, ts)?;
                }
                Write::Staged { table: def, segments } => {
                    for segment in segments {
                        table.segments.push(self.open_staged(def.id, segment, ts)?);
                    }
                }
            }
        }
        let mut keys = self.inner.keys.write();
        for (def, first, columns) in added {
            let keys = keys.entry(def.id).or_default();
            for_each_key(&columns, |row, key| keys.insert(key, first + row as u64))?;
        }
        next.applied = index;
        next.max_timestamp = next.max_timestamp.max(ts);
        self.inner.version.store(Arc::new(next));
        Ok(())
    }

    fn open_staged(&self, table: TableId, segment: &v1::SegmentRef, ts: Timestamp) -> Result<Arc<Segment>> {
        check_file_name(&segment.file)?;
        Segment::open(
            &self.inner.segments,
            SegmentMeta::new(table, segment, ts),
            &self.inner.cache,
        )
    }

    /// Passes over an entry without rows.
    pub fn advance(&self, index: LogIndex) {
        let _apply = self.inner.apply.lock();
        let version = self.inner.version.load();
        if index > version.applied {
            self.inner.version.store(Arc::new(Version {
                applied: index,
                ..Version::clone(&version)
            }));
        }
    }

    /// Detail of the first key that exists already, in this shard (any version) or twice in the write itself. Blocking:
    /// reads sidecars; for staged writes call it off the async threads.
    ///
    /// # Errors
    /// 23502 for NULL in a NOT NULL column; XX001 or 58030 when segments cannot be read.
    pub fn unique_conflict(&self, write: &Write) -> Result<Option<String>> {
        let table = write.table();
        // Keys in memory first, then the version: what a seal moves in between is then in both. The lock on the keys is
        // not kept while files are read, because applies wait for it.
        match write {
            Write::Rows { table: def, batch } => {
                let rows = InlineKeys::new(def, &conform(def, batch)?)?;
                if let Some(detail) = rows.conflict_in_memory(self.inner.keys.read().get(&table.id)) {
                    return Ok(Some(detail));
                }
                rows.conflict_in_segments(&self.segments_of(table.id))
            }
            Write::Staged { table: def, segments } => {
                let staged = segments
                    .iter()
                    .map(|s| self.open_staged(def.id, s, Timestamp(0)))
                    .collect::<Result<Vec<_>>>()?;
                let in_memory = self
                    .inner
                    .keys
                    .read()
                    .get(&table.id)
                    .map_or_else(Vec::new, DeltaKeys::sorted);
                unique::staged_conflict(def, &staged, &in_memory, &self.segments_of(table.id))
            }
        }
    }

    fn segments_of(&self, table: TableId) -> Vec<Arc<Segment>> {
        self.inner
            .version
            .load()
            .tables
            .get(&table)
            .map_or_else(Vec::new, |t| t.segments.clone())
    }

    /// Canonical row keys of an inline write, for the lock table; empty for staged writes.
    ///
    /// # Errors
    /// A column type that cannot be a key.
    pub fn keys(&self, write: &Write) -> Result<Vec<Box<[u8]>>> {
        match write {
            Write::Rows { table, batch } => canonical_keys(&key_columns(table, batch)?),
            Write::Staged { .. } => Ok(vec![]),
        }
    }

    /// Writes rows to durable, invisible segments.
    pub fn stage(&self, table: &Arc<TableDef>) -> StageWriter {
        StageWriter::new(&self.inner.segments, table.clone())
    }

    /// Rows and bytes in memory only: seal above 128 Ki rows or 32 MiB.
    pub fn delta_size(&self) -> (usize, usize) {
        let version = self.inner.version.load();
        let chunks = version.tables.values().flat_map(|t| &t.chunks);
        chunks.fold((0, 0), |(rows, bytes), c| {
            (rows + c.rows(), bytes + c.bytes() + c.rows() * KEY_BYTES)
        })
    }

    /// Moves the delta to durable segments and writes a manifest; returns the new checkpoint, `None` if there was nothing
    /// to do. Blocking; applies go on meanwhile. Tables for which `tables` gives nothing are dropped.
    ///
    /// # Errors
    /// 53100 or 58030: nothing changed, try again later.
    pub fn seal(&self, tables: &Tables<'_>) -> Result<Option<LogIndex>> {
        self.inner.seal(&mut self.inner.manifest.lock(), tables)
    }

    /// Seals, then returns what another copy needs. Blocking.
    ///
    /// # Errors
    /// As [`Self::seal`].
    pub fn snapshot(&self, tables: &Tables<'_>) -> Result<SnapshotManifest> {
        let mut manifest = self.inner.manifest.lock();
        self.inner.seal(&mut manifest, tables)?;
        self.inner.snapshot_of(&manifest)
    }

    /// Replaces everything by a snapshot whose files were installed. Durable on return. Blocking.
    ///
    /// # Errors
    /// XX001 when a file is missing, 08P01 when the manifest is malformed; nothing changed then.
    pub fn install_snapshot(&self, manifest: &[u8]) -> Result<LogIndex> {
        self.inner.install(&mut self.inner.manifest.lock(), manifest)
    }

    /// Order-independent digest of the rows visible at `ts`, and their number. Blocking.
    ///
    /// # Errors
    /// XX001 or 58030 when segments cannot be read.
    pub fn digest(&self, table: &TableDef, ts: Timestamp) -> Result<(u128, u64)> {
        match self.version().tables.get(&table.id) {
            Some(version) => digest::digest(table, version, ts),
            None => Ok((0, 0)),
        }
    }

    /// Estimates for the planner. Blocking at the first call for a segment.
    pub fn statistics(&self, table: &TableDef) -> v1::TableStatistics {
        let mut summary = TableSummary::empty(table);
        if let Some(version) = self.version().tables.get(&table.id) {
            summary.add(table, version);
        }
        summary.to_wire(table)
    }

    /// Rows visible at `ts` by row key (`keys` = the row key columns in key order), at most one per key, in the keys' order.
    /// `projection` are column numbers of the table. `None` when `access` does not reach them.
    ///
    /// # Errors
    /// 08P01 when keys or projection do not fit the table; XX001 or 58030 when segments cannot be read.
    pub fn point_read(
        &self,
        table: &TableDef,
        ts: Timestamp,
        keys: &RecordBatch,
        projection: &[usize],
        access: Access,
    ) -> Result<Option<RecordBatch>> {
        if keys.num_columns() != table.row_key().len() {
            return Err(Error::protocol(format!(
                "point read of table \"{}\" has {} key columns",
                table.name,
                keys.num_columns()
            )));
        }
        let located = point_read::locate(keys.columns(), self.inner.keys.read().get(&table.id))?;
        let version = self.version();
        let empty = Arc::default();
        point_read::read(
            table,
            version.tables.get(&table.id).unwrap_or(&empty),
            ts,
            &located,
            projection,
            access,
        )
    }

    /// Tables that have rows here.
    pub fn tables(&self) -> Vec<TableId> {
        self.inner.version.load().tables.keys().copied().collect()
    }

    /// Removes a table's rows; durable on return. Files go when the last scan of them ends. Entries of the table that are
    /// replayed later must not be applied.
    ///
    /// # Errors
    /// 53100 or 58030 when the manifest cannot be written.
    pub fn drop_table(&self, table: TableId) -> Result<()> {
        let mut manifest = self.inner.manifest.lock();
        if manifest.segments.iter().any(|s| s.table == table) {
            let mut next = Manifest {
                sequence: manifest.sequence + 1,
                ..manifest.clone()
            };
            next.segments.retain(|s| s.table != table);
            next.store(&self.inner.dir)?;
            *manifest = next;
        }
        self.inner.forget_table(table);
        Ok(())
    }
}

impl Write {
    /// The table written to.
    pub fn table(&self) -> &Arc<TableDef> {
        match self {
            Self::Rows { table, .. } | Self::Staged { table, .. } => table,
        }
    }
}

fn add_rows(table: &mut TableVersion, batch: RecordBatch, ts: Timestamp) -> Result<()> {
    let first = table.next_position;
    table.next_position += batch.num_rows() as u64;
    delta::push(&mut table.chunks, table.frozen, first, batch, ts)
}
