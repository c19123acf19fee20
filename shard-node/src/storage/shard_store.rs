//! The rows of one shard, of all its tables: where log entries are applied and where readers begin.
//!
//! ```text
//!   apply(41, ts, rows) ──▶ Version 41 ──▶ readers take an Arc       one writer at a time; readers never wait
//!   seal ──▶ segments, manifest (checkpoint 41) ──▶ Version 41', the same rows elsewhere
//! ```
//!
//! Two locks: `manifest` serialises what changes files (seal, drop, snapshots; held for long), `apply` what publishes a
//! version (held for microseconds), taken in this order. Work is in the neighbours: seal.rs, snapshot.rs, segment_files.rs, unique.rs,
//! locate.rs, point_read.rs, digest.rs, statistics.rs. An update is a removal and an addition in one entry.

use crate::storage::cache::MetadataCache;
use crate::storage::common_values::Counters;
use crate::storage::deletes::Deleted;
use crate::storage::delta::{self, KEY_BYTES};
use crate::storage::keys::{self, DeltaKeys, for_each_key, key_columns};
use crate::storage::locate::{self, Living, Place};
use crate::storage::manifest::Manifest;
use crate::storage::seal::Tables;
use crate::storage::segment_files::check_file_name;
use crate::storage::snapshot::open_version;
use crate::storage::staging::{StageWriter, conform};
use crate::storage::statistics::{TableSummary, common_values};
use crate::storage::unique::{self, InlineKeys};
use crate::storage::version::{Segment, SegmentMeta, TableVersion, Version};
use crate::storage::{Access, Identity, SnapshotManifest, deletes_file, digest, durable, point_read};
use arc_swap::ArcSwap;
use datafusion::arrow::array::{ArrayRef, RecordBatch};
use parking_lot::{Mutex, RwLock};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tessera_proto::table::TableDef;
use tessera_proto::token::canonical_keys;
use tessera_proto::{Error, LogIndex, Result, ShardId, TableId, Timestamp, v1};

/// What one transaction changes in one table in one shard.
#[derive(Debug, Clone)]
pub enum Write {
    /// Rows that go, by their keys; before any that come.
    Removed {
        /// The table.
        table: Arc<TableDef>,
        /// Its row key columns, in key order.
        keys: RecordBatch,
    },
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
        let deletes = deletes_file::load(&dir, manifest.sequence, manifest.deletes.as_ref())?;
        let version = open_version(&segments, &manifest, &deletes_file::decode(&deletes)?, &cache)?;
        let version = ArcSwap::from_pointee(version);
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

    /// Makes rows visible at `ts`, and others invisible; nothing happens when `index` is not above [`Self::applied`].
    /// Blocking where rows go: where they are is read from files.
    ///
    /// # Errors
    /// XX001 when a staged segment is missing or not the one that was staged, or a row that goes is not there; then nothing
    /// was applied.
    pub fn apply(&self, index: LogIndex, ts: Timestamp, writes: &[Write]) -> Result<()> {
        loop {
            if index <= self.applied() {
                return Ok(());
            }
            let going = self.going(writes)?;
            let _apply = self.inner.apply.lock();
            let mut next = Version::clone(&self.inner.version.load());
            // A seal may have moved rows to a file meanwhile.
            if going.iter().all(|(table, living)| is_in(&next, *table, living)) {
                remove(&mut next, &going, ts);
                return self.add(next, index, ts, writes);
            }
        }
    }

    /// Rows that writes remove, by table; none of a table that was dropped here meanwhile.
    fn going(&self, writes: &[Write]) -> Result<Vec<(TableId, Vec<Living>)>> {
        let mut going = Vec::new();
        for write in writes {
            if let Write::Removed { table, keys } = write
                && self.inner.version.load().tables.contains_key(&table.id)
            {
                let living: Option<Vec<Living>> = self.living(table, keys.columns())?.into_iter().collect();
                let living = living.ok_or_else(|| {
                    Error::corrupt(format!(
                        "a row of table \"{}\" that a log entry removes is not there",
                        table.name
                    ))
                })?;
                going.push((table.id, living));
            }
        }
        Ok(going)
    }

    /// The rows with these keys that are there now. Blocking.
    fn living(&self, table: &TableDef, keys: &[ArrayRef]) -> Result<Vec<Option<Living>>> {
        let located = locate::in_delta(keys, self.inner.keys.read().get(&table.id))?;
        let version = self.table_version(table.id);
        locate::living(table, &version, keys, &located)
    }

    /// The present state of a table, and the rows with these keys in it, as far as they are there. Blocking.
    ///
    /// # Errors
    /// XX001 or 58030 when segments cannot be read.
    pub(crate) fn locate(&self, table: &TableDef, keys: &[ArrayRef]) -> Result<(Arc<TableVersion>, Vec<Living>)> {
        let located = locate::in_delta(keys, self.inner.keys.read().get(&table.id))?;
        let version = self.table_version(table.id);
        let living = locate::living(table, &version, keys, &located)?;
        Ok((version, living.into_iter().flatten().collect()))
    }

    /// Whether all rows that a write removes are there and were committed at `read_at` or before. Blocking.
    ///
    /// # Errors
    /// XX001 or 58030 when segments cannot be read.
    pub fn unchanged_since(&self, write: &Write, read_at: Timestamp) -> Result<bool> {
        let Write::Removed { table, keys } = write else {
            return Ok(true);
        };
        let living = self.living(table, keys.columns())?;
        Ok(living
            .iter()
            .all(|row| row.as_ref().is_some_and(|row| row.cts <= read_at)))
    }

    /// Publishes `next` with the rows that come; the caller holds the apply lock.
    fn add(&self, mut next: Version, index: LogIndex, ts: Timestamp, writes: &[Write]) -> Result<()> {
        let mut added = Vec::new();
        for write in writes {
            let table = Arc::make_mut(next.tables.entry(write.table().id).or_default());
            match write {
                Write::Removed { .. } => {}
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

    /// A staged segment, as if it had been committed at `ts`.
    ///
    /// # Errors
    /// 08P01 for a bad name, XX001 when the file is missing or has another size.
    pub(crate) fn open_staged(&self, table: TableId, segment: &v1::SegmentRef, ts: Timestamp) -> Result<Arc<Segment>> {
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

    /// Detail of the first key that a row has already, in this shard as of now or twice in the write itself. Rows with the
    /// canonical keys `removed` go in the same transaction and do not count. Blocking: reads sidecars.
    ///
    /// # Errors
    /// 23502 for NULL in a NOT NULL column; XX001 or 58030 when segments cannot be read.
    pub fn unique_conflict(&self, write: &Write, removed: &HashSet<Box<[u8]>>) -> Result<Option<String>> {
        let table = write.table();
        // Keys in memory first, then the version: what a seal moves in between is then in both. The lock on the keys is
        // not kept while files are read, because applies wait for it.
        match write {
            Write::Removed { .. } => Ok(None),
            Write::Rows { table: def, batch } => {
                let rows = InlineKeys::new(def, &conform(def, batch)?)?;
                if let Some(detail) = rows.conflict_inside() {
                    return Ok(Some(detail));
                }
                let located = locate::in_delta(rows.columns(), self.inner.keys.read().get(&table.id))?;
                rows.conflict_with(&self.table_version(table.id), &located, removed)
            }
            Write::Staged { table: def, segments } => {
                let staged = segments
                    .iter()
                    .map(|s| self.open_staged(def.id, s, Timestamp(0)))
                    .collect::<Result<Vec<_>>>()?;
                // Who writes staged rows has the whole table locked: only a seal may come between these two versions.
                let before = self.table_version(table.id);
                let alive = |position| before.chunk_row(position).is_some() && before.removed.since(position).is_none();
                let in_memory = self
                    .inner
                    .keys
                    .read()
                    .get(&table.id)
                    .map_or_else(Vec::new, |keys| keys.sorted(alive));
                unique::staged_conflict(def, &staged, &in_memory, &self.table_version(table.id))
            }
        }
    }

    /// How a duplicate key error names the key of a row that is to come.
    ///
    /// # Errors
    /// XX000 when the rows are not of the table.
    pub fn key_detail(&self, write: &Write, row: usize) -> Result<String> {
        match write {
            Write::Rows { table, batch } => {
                let columns = key_columns(table, &conform(table, batch)?)?;
                Ok(keys::duplicate_detail(table, &columns, row))
            }
            Write::Removed { .. } | Write::Staged { .. } => Ok(String::new()),
        }
    }

    /// The present state of one table; empty when it has no rows.
    pub(crate) fn table_version(&self, table: TableId) -> Arc<TableVersion> {
        self.inner
            .version
            .load()
            .tables
            .get(&table)
            .cloned()
            .unwrap_or_default()
    }

    /// Canonical row keys of an inline write, for the lock table; empty for staged writes.
    ///
    /// # Errors
    /// A column type that cannot be a key.
    pub fn keys(&self, write: &Write) -> Result<Vec<Box<[u8]>>> {
        match write {
            Write::Removed { keys, .. } => canonical_keys(keys.columns()),
            Write::Rows { table, batch } => canonical_keys(&key_columns(table, batch)?),
            Write::Staged { .. } => Ok(vec![]),
        }
    }

    /// Writes rows to durable, invisible segments.
    pub fn stage(&self, table: &Arc<TableDef>) -> StageWriter {
        StageWriter::new(&self.inner.segments, table.clone())
    }

    /// Rows and bytes in memory only, and removals that no manifest has: seal above 128 Ki rows or 32 MiB.
    pub fn delta_size(&self) -> (usize, usize) {
        let version = self.inner.version.load();
        let removals: usize = version.tables.values().map(|t| t.unsealed_removals).sum();
        let chunks = version.tables.values().flat_map(|t| &t.chunks);
        chunks.fold((removals, removals * size_of::<Deleted>()), |(rows, bytes), c| {
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
        let mut common = vec![Counters::default(); table.columns.len()];
        if let Some(version) = self.version().tables.get(&table.id) {
            summary.add(table, version);
            common = common_values(table, version);
        }
        summary.to_wire(table, common)
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
        let located = locate::in_delta(keys.columns(), self.inner.keys.read().get(&table.id))?;
        point_read::read(table, &self.table_version(table.id), ts, &located, projection, access)
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
            let removed = deletes_file::load(&self.inner.dir, manifest.sequence, manifest.deletes.as_ref())?;
            let mut removed = deletes_file::decode(&removed)?;
            removed.retain(|file, _| next.segments.iter().any(|s| s.file == *file));
            self.inner.store_manifest(&mut next, &removed)?;
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
            Self::Removed { table, .. } | Self::Rows { table, .. } | Self::Staged { table, .. } => table,
        }
    }
}

/// Whether rows in memory are still there.
fn is_in(version: &Version, table: TableId, rows: &[Living]) -> bool {
    let Some(table) = version.tables.get(&table) else {
        return true;
    };
    rows.iter().all(|row| match row.place {
        Place::Delta(position) => table.chunk_row(position).is_some(),
        Place::Segment(..) => true,
    })
}

/// Marks rows as gone. A table that was dropped meanwhile has none.
fn remove(version: &mut Version, going: &[(TableId, Vec<Living>)], ts: Timestamp) {
    for (table, rows) in going {
        let Some(table) = version.tables.get_mut(table) else {
            continue;
        };
        Arc::make_mut(table).remove(rows, ts);
    }
}

fn add_rows(table: &mut TableVersion, batch: RecordBatch, ts: Timestamp) -> Result<()> {
    let first = table.next_position;
    table.next_position += batch.num_rows() as u64;
    delta::push(&mut table.chunks, table.frozen, first, batch, ts)
}
