//! Moves the delta to segments, so that the log may be cut; applies go on meanwhile.
//!
//! ```text
//!   1 freeze    chunks so far are marked; new rows go behind them                 (apply lock, no I/O)
//!   2 write     frozen chunks sorted -> segments, fsynced; rows that are gone too: older snapshots see them
//!   3 manifest  segments of the frozen version + the new ones, their removed rows, checkpoint = its log entry
//!   4 publish   new version: frozen chunks out, new segments in, removals since 1 follow their rows     (apply lock, no I/O)
//! ```
//!
//! A crash before 3 loses nothing: the log replays, the files are swept. Segments that became visible after 1 are not in
//! this manifest, because their log entry is above its checkpoint and will be replayed.

use crate::storage::deletes::{DeleteVector, Deleted};
use crate::storage::deletes_file::{self, Deletes, DeletesMeta};
use crate::storage::delta::Chunk;
use crate::storage::durable;
use crate::storage::keys::order_columns;
use crate::storage::manifest::Manifest;
use crate::storage::segment::{SEGMENT_ROWS_MAX, SegmentWriter};
use crate::storage::shard_store::Inner;
use crate::storage::staging::sort_order;
use crate::storage::version::{Segment, SegmentMeta, TableVersion, Version, remove_segment_files};
use datafusion::arrow::array::{ArrayRef, AsArray, RecordBatch, UInt64Array};
use datafusion::arrow::compute::{concat, concat_batches, take, take_record_batch};
use datafusion::arrow::datatypes::UInt64Type;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tessera_proto::table::TableDef;
use tessera_proto::{Error, LogIndex, Result, TableId, Timestamp};

/// Gives a table's definition; nothing when it was dropped.
pub type Tables<'a> = dyn Fn(TableId) -> Option<Arc<TableDef>> + 'a;

/// Rows given to the encoder at a time.
const WRITE_ROWS: usize = 8_192;

/// A segment of rows that were in memory.
struct Sealed {
    segment: Arc<Segment>,
    /// Position of the first of them in the delta.
    first: u64,
    /// The row in the file of each position from there on.
    rows: Vec<u32>,
}

impl Sealed {
    /// Those of the removed rows that are in this segment, where they are now.
    fn moved(&self, removed: &DeleteVector) -> Vec<Deleted> {
        let positions = self.first..self.first + self.rows.len() as u64;
        let moved = removed.within(&positions).map(|deleted| Deleted {
            row: self.rows[(deleted.row - self.first) as usize].into(),
            ..deleted
        });
        moved.collect()
    }
}

type Written = BTreeMap<TableId, Vec<Sealed>>;

impl Inner {
    /// See [`crate::storage::ShardStore::seal`]. The caller holds the manifest.
    pub(super) fn seal(&self, manifest: &mut Manifest, tables: &Tables<'_>) -> Result<Option<LogIndex>> {
        let frozen = self.freeze();
        if frozen.applied <= manifest.checkpoint {
            return Ok(None);
        }
        let mut written = Written::new();
        let result = self.write_frozen(&frozen, tables, &mut written).and_then(|()| {
            let mut next = self.next_manifest(manifest, &frozen, tables, &written);
            self.store_manifest(&mut next, &removed_rows(&frozen, &written))
                .map(|()| next)
        });
        match result {
            Ok(next) => *manifest = next,
            Err(error) => {
                let files = written.values().flatten();
                files.for_each(|s| remove_segment_files(&s.segment.path));
                return Err(error);
            }
        }
        self.checkpoint.store(frozen.applied.0, Ordering::Release);
        self.publish_sealed(&frozen, &written, tables);
        Ok(Some(frozen.applied))
    }

    /// Makes a manifest and the removed rows of its segments durable.
    ///
    /// # Errors
    /// 53100 or 58030: the older ones stand then.
    pub(super) fn store_manifest(&self, manifest: &mut Manifest, deletes: &Deletes) -> Result<()> {
        let bytes = deletes_file::encode(deletes);
        manifest.deletes = None;
        if !bytes.is_empty() {
            deletes_file::store(&self.dir, manifest.sequence, &bytes)?;
            manifest.deletes = Some(DeletesMeta::of(&bytes));
        }
        manifest.store(&self.dir)
    }

    /// Marks all chunks so far; returns that version.
    fn freeze(&self) -> Arc<Version> {
        let _apply = self.apply.lock();
        let mut next = Version::clone(&self.version.load());
        for table in next.tables.values_mut() {
            let table = Arc::make_mut(table);
            table.frozen = table.chunks.len();
        }
        let frozen = Arc::new(next);
        self.version.store(frozen.clone());
        frozen
    }

    fn write_frozen(&self, frozen: &Version, tables: &Tables<'_>, written: &mut Written) -> Result<()> {
        for (id, table) in &frozen.tables {
            let Some(def) = tables(*id).filter(|_| !table.chunks.is_empty()) else {
                continue;
            };
            let segments = written.entry(*id).or_default();
            for rows in batches_of(&table.chunks) {
                segments.push(self.write_segment(&def, rows)?);
            }
        }
        durable::sync_dir(&self.segments)
    }

    /// One segment of all rows of these chunks.
    fn write_segment(&self, def: &Arc<TableDef>, chunks: &[Arc<Chunk>]) -> Result<Sealed> {
        let internal = |e: datafusion::arrow::error::ArrowError| Error::internal(format!("sealing rows: {e}"));
        let conformed = chunks
            .iter()
            .map(|c| conform_old(def, &c.batch))
            .collect::<Result<Vec<_>>>()?;
        let all = concat_batches(&def.arrow_schema(), &conformed).map_err(internal)?;
        drop(conformed);
        let times: Vec<ArrayRef> = chunks.iter().map(|c| Arc::new(c.cts()) as ArrayRef).collect();
        let times = concat(&times.iter().map(AsRef::as_ref).collect::<Vec<_>>()).map_err(internal)?;
        let order = sort_order(&order_columns(def, &all)?)?;
        let all = take_record_batch(&all, &order).map_err(internal)?;
        let times = take(&times, &order, None).map_err(internal)?;
        let times: &UInt64Array = times.as_primitive::<UInt64Type>();
        let (min, max) = chunks
            .iter()
            .map(|c| c.cts_range())
            .fold((Timestamp::MAX, Timestamp(0)), |(a, b), (c, d)| (a.min(c), b.max(d)));
        let with_cts = min != max;
        let mut writer = SegmentWriter::create(&self.segments, def, with_cts)?;
        for at in (0..all.num_rows()).step_by(WRITE_ROWS) {
            let rows = WRITE_ROWS.min(all.num_rows() - at);
            let cts = with_cts.then(|| times.slice(at, rows));
            writer.write(&all.slice(at, rows), cts.as_ref())?;
        }
        let segment = writer.finish()?;
        let meta = SegmentMeta {
            max_cts: max,
            ..SegmentMeta::new(def.id, &segment, min)
        };
        let mut rows = vec![0; order.len()];
        for (row, before) in (0..).zip(order.values()) {
            rows[*before as usize] = row;
        }
        Ok(Sealed {
            segment: Segment::open(&self.segments, meta, &self.cache)?,
            first: chunks.first().map_or(0, |c| c.first),
            rows,
        })
    }

    fn next_manifest(&self, old: &Manifest, frozen: &Version, tables: &Tables<'_>, written: &Written) -> Manifest {
        let there = || frozen.tables.iter().filter(|(id, _)| tables(**id).is_some());
        let kept = there().flat_map(|(_, t)| &t.segments);
        let watermarks = there().map(|(id, t)| (*id, t.watermark));
        Manifest {
            sequence: old.sequence + 1,
            checkpoint: frozen.applied,
            max_timestamp: frozen.max_timestamp,
            segments: kept
                .chain(written.values().flatten().map(|s| &s.segment))
                .map(|s| s.meta.clone())
                .collect(),
            watermarks: watermarks.filter(|(_, ts)| *ts > Timestamp(0)).collect(),
            ..old.clone()
        }
    }

    fn publish_sealed(&self, frozen: &Version, written: &Written, tables: &Tables<'_>) {
        let apply = self.apply.lock();
        let mut next = Version::clone(&self.version.load());
        for (id, sealed) in &frozen.tables {
            let Some(table) = next.tables.get_mut(id) else { continue };
            let table = Arc::make_mut(table);
            table.chunks.drain(..sealed.chunks.len().min(table.chunks.len()));
            table.frozen = 0;
            table.unsealed_removals -= sealed.unsealed_removals.min(table.unsealed_removals);
            let removed = table.removed.clone();
            for moved in written.get(id).into_iter().flatten() {
                table.segments.push(moved.segment.clone());
                table.delete_in(&moved.segment, moved.moved(&removed));
            }
            table.removed = removed.without_below(sealed.next_position);
        }
        self.version.store(Arc::new(next));
        drop(apply);
        let mut keys = self.keys.write();
        for (id, sealed) in &frozen.tables {
            if let Some(keys) = keys.get_mut(id) {
                keys.forget_below(sealed.next_position);
            }
        }
        drop(keys);
        for id in frozen.tables.keys().filter(|id| tables(**id).is_none()) {
            self.forget_table(*id);
        }
    }

    /// Takes a table out of memory and removes its files once no reader holds them. The manifest must not name them.
    pub(super) fn forget_table(&self, id: TableId) {
        let apply = self.apply.lock();
        let mut next = Version::clone(&self.version.load());
        let gone = next.tables.remove(&id);
        self.version.store(Arc::new(next));
        drop(apply);
        self.keys.write().remove(&id);
        gone.iter()
            .flat_map(|t: &Arc<TableVersion>| &t.segments)
            .for_each(|s| s.doom());
    }
}

/// Removed rows of all files of a manifest: what the frozen version knows, also of rows that are in files only now.
fn removed_rows(frozen: &Version, written: &Written) -> Deletes {
    let mut deletes = Deletes::new();
    for (id, table) in &frozen.tables {
        for segment in &table.segments {
            if let Some(rows) = table.deletes_of(segment) {
                deletes.insert(segment.meta.file.clone(), rows.sorted());
            }
        }
        for sealed in written.get(id).into_iter().flatten() {
            let mut rows = sealed.moved(&table.removed);
            rows.sort_unstable();
            deletes.insert(sealed.segment.meta.file.clone(), rows);
        }
    }
    deletes
}

/// Runs of chunks that fit one segment; a chunk is never split (the largest is one inline write).
fn batches_of(chunks: &[Arc<Chunk>]) -> Vec<&[Arc<Chunk>]> {
    let (mut runs, mut start, mut rows) = (vec![], 0, 0);
    for (at, chunk) in chunks.iter().enumerate() {
        if rows > 0 && rows + chunk.rows() > SEGMENT_ROWS_MAX {
            runs.push(&chunks[start..at]);
            (start, rows) = (at, 0);
        }
        rows += chunk.rows();
    }
    runs.push(&chunks[start..]);
    runs
}

/// Rows that were written under an older definition, under the present one.
fn conform_old(def: &TableDef, batch: &RecordBatch) -> Result<RecordBatch> {
    let schema = def.arrow_schema();
    if batch.schema() == schema {
        return Ok(batch.clone());
    }
    let all: Vec<usize> = (0..def.columns.len()).collect();
    let columns = crate::storage::digest::columns_by_name(def, &all, batch);
    RecordBatch::try_new(schema, columns)
        .map_err(|e| Error::internal(format!("sealing rows of an older definition: {e}")))
}
