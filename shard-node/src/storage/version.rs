//! One immutable state of a shard's rows. Readers hold one; apply and seal publish the next.
//!
//! ```text
//!   Version { applied 41 }  table 16384: segments [a, b]  chunks [c, d]
//!        └─ apply 42 ─▶     table 16384: segments [a, b]  chunks [c, d, e]          everything shared but the lists
//!                                        gone in a {17, 80}  in memory {9001}
//! ```

use crate::storage::cache::MetadataCache;
use crate::storage::checked_file::CheckedFile;
use crate::storage::column_reader::ZoneMap;
use crate::storage::columns::{ChunkKey, ColumnCache, segment_number};
use crate::storage::deletes::{DeleteVector, Deleted};
use crate::storage::delta::Chunk;
use crate::storage::locate::{Living, Place};
use crate::storage::sidecar::Sidecar;
use crate::storage::statistics::SegmentStatistics;
use parking_lot::Mutex;
use parquet::file::metadata::ParquetMetaData;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use tessera_proto::{Error, LogIndex, Result, TableId, Timestamp, v1};

/// All tables of a shard after one log entry.
#[derive(Debug, Clone, Default)]
pub struct Version {
    /// The last log entry applied.
    pub applied: LogIndex,
    /// Greatest commit timestamp applied.
    pub max_timestamp: Timestamp,
    /// Tables with rows.
    pub tables: BTreeMap<TableId, Arc<TableVersion>>,
}

impl Version {
    /// Names of all visible files.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.tables
            .values()
            .flat_map(|t| &t.segments)
            .map(|s| s.meta.file.as_str())
    }
}

/// One table of a shard.
#[derive(Debug, Clone, Default)]
pub struct TableVersion {
    /// Rows in memory, in commit order.
    pub chunks: Vec<Arc<Chunk>>,
    /// So many chunks at the front are being sealed.
    pub frozen: usize,
    /// Position the next row in memory gets.
    pub next_position: u64,
    /// Rows in files.
    pub segments: Vec<Arc<Segment>>,
    /// Rows of the chunks that are gone, by their position.
    pub(crate) removed: DeleteVector,
    /// Rows of segments that are gone, by the segment's number.
    pub(crate) deletes: BTreeMap<u64, Arc<DeleteVector>>,
    /// Rows that went since the last manifest.
    pub(crate) unsealed_removals: usize,
    /// What went up to here may be forgotten: older snapshots cannot be read.
    pub(crate) watermark: Timestamp,
}

impl TableVersion {
    /// Whether a snapshot can still be read. Whoever holds this version keeps being able to.
    ///
    /// # Errors
    /// 72000: rows that it sees are removed.
    pub(crate) fn check_readable(&self, ts: Timestamp) -> Result<()> {
        match ts < self.watermark {
            true => Err(Error::snapshot_too_old(ts, self.watermark)),
            false => Ok(()),
        }
    }

    /// Rows of a segment that are gone.
    pub(crate) fn deletes_of(&self, segment: &Segment) -> Option<&Arc<DeleteVector>> {
        self.deletes.get(&segment.number)
    }

    /// Whether a row of a segment is gone at `ts`.
    pub(crate) fn is_deleted(&self, segment: &Segment, row: u32, ts: Timestamp) -> bool {
        self.deletes_of(segment)
            .is_some_and(|deletes| deletes.is_deleted(row.into(), ts))
    }

    /// The chunk that has a position, and its row there; `None` when it is in a segment by now.
    pub(crate) fn chunk_row(&self, position: u64) -> Option<(&Chunk, usize)> {
        let at = self.chunks.partition_point(|c| c.first <= position).checked_sub(1)?;
        let chunk = &self.chunks[at];
        let row = (position - chunk.first) as usize;
        (row < chunk.rows()).then_some((chunk.as_ref(), row))
    }

    /// Adds rows of a segment that are gone.
    pub(crate) fn delete_in(&mut self, segment: &Segment, rows: Vec<Deleted>) {
        if !rows.is_empty() {
            Arc::make_mut(self.deletes.entry(segment.number).or_default()).add(rows);
        }
    }

    /// Marks rows as gone at `ts`.
    pub(crate) fn remove(&mut self, rows: &[Living], ts: Timestamp) {
        self.unsealed_removals += rows.len();
        let (mut in_memory, mut in_files) = (vec![], HashMap::new());
        for row in rows {
            match &row.place {
                Place::Delta(position) => in_memory.push(Deleted { row: *position, ts }),
                Place::Segment(segment, row) => {
                    let (_, rows) = in_files.entry(segment.number).or_insert_with(|| (segment, vec![]));
                    rows.push(Deleted { row: (*row).into(), ts });
                }
            }
        }
        self.removed.add(in_memory);
        for (segment, rows) in in_files.into_values() {
            self.delete_in(segment, rows);
        }
    }

    /// Rows, without those that are gone.
    pub(crate) fn rows(&self) -> u64 {
        let files: u64 = self.segments.iter().map(|s| s.meta.rows).sum();
        let memory: u64 = self.chunks.iter().map(|c| c.rows() as u64).sum();
        (files + memory).saturating_sub(self.dead() as u64)
    }

    /// Rows that are gone and still here.
    pub(crate) fn dead(&self) -> usize {
        self.removed.len() + self.deletes.values().map(|d| d.len()).sum::<usize>()
    }
}

/// What the manifest knows of a segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentMeta {
    /// The table.
    pub table: TableId,
    /// File name below `seg/`.
    pub file: String,
    /// Rows.
    pub rows: u64,
    /// File size.
    pub bytes: u64,
    /// xxh3_128 of the file, 32 hexadecimal digits.
    pub checksum: String,
    /// Least commit timestamp.
    pub min_cts: Timestamp,
    /// Greatest commit timestamp; the file has a column of them if it differs from the least.
    pub max_cts: Timestamp,
}

impl SegmentMeta {
    /// A staged segment that became visible at `ts`.
    pub fn new(table: TableId, segment: &v1::SegmentRef, ts: Timestamp) -> Self {
        Self {
            table,
            file: segment.file.clone(),
            rows: segment.rows,
            bytes: segment.bytes,
            checksum: hex(&segment.checksum),
            min_cts: ts,
            max_cts: ts,
        }
    }

    /// As other copies name it.
    pub fn to_ref(&self) -> v1::SegmentRef {
        v1::SegmentRef {
            file: self.file.clone(),
            rows: self.rows,
            bytes: self.bytes,
            checksum: unhex(&self.checksum).into(),
        }
    }
}

/// A visible segment file. While any reader holds it, the file stays.
#[derive(Debug)]
pub struct Segment {
    /// What the manifest says.
    pub meta: SegmentMeta,
    /// The Parquet file.
    pub path: PathBuf,
    cache: Arc<MetadataCache>,
    /// Decoded columns of all segments; this one's under its `number`.
    pub(crate) columns: ColumnCache,
    pub(crate) number: u64,
    /// What this segment put into `columns`, to take it out at its end.
    pub(crate) kept: Mutex<BTreeSet<ChunkKey>>,
    pub(crate) row_groups: OnceLock<Vec<usize>>,
    pub(crate) zone_maps: Mutex<HashMap<String, Option<ZoneMap>>>,
    sidecar: OnceLock<Sidecar>,
    pub(crate) statistics: OnceLock<Arc<SegmentStatistics>>,
}

impl Segment {
    /// A segment in folder `dir` whose file must be there.
    ///
    /// # Errors
    /// XX001 when the file is missing or has another size.
    pub fn open(dir: &Path, meta: SegmentMeta, cache: &Arc<MetadataCache>) -> Result<Arc<Self>> {
        let path = dir.join(&meta.file);
        cache.open_file(&path, || match std::fs::metadata(&path).map(|m| m.len()).unwrap_or(0) {
            size if size == meta.bytes => Ok(()),
            size => Err(Error::corrupt(format!(
                "segment \"{}\" has {size} bytes instead of {}",
                path.display(),
                meta.bytes
            ))),
        })?;
        let segment = Self {
            meta,
            path,
            cache: cache.clone(),
            columns: cache.columns().clone(),
            number: segment_number(),
            kept: Mutex::default(),
            row_groups: OnceLock::new(),
            zone_maps: Mutex::default(),
            sidecar: OnceLock::new(),
            statistics: OnceLock::new(),
        };
        Ok(Arc::new(segment))
    }

    /// The file, to be read under its checksums. Blocking.
    ///
    /// # Errors
    /// XX001 or 58030.
    pub(crate) fn open_file(&self) -> Result<CheckedFile> {
        CheckedFile::open(&self.path, self.meta.bytes, self.sidecar()?.sums())
    }

    /// The footer. Blocking when it is not in memory.
    ///
    /// # Errors
    /// XX001 or 58030.
    pub(crate) fn footer(&self) -> Result<Arc<ParquetMetaData>> {
        self.cache.get(&self.path, || self.open_file())
    }

    /// The key sidecar. Blocking at first use.
    ///
    /// # Errors
    /// XX001 or 58030.
    pub(crate) fn sidecar(&self) -> Result<&Sidecar> {
        if let Some(sidecar) = self.sidecar.get() {
            return Ok(sidecar);
        }
        let opened = Sidecar::open(&self.path.with_extension("pk"))?;
        if opened.rows() as u64 != self.meta.rows || opened.segment_bytes() != self.meta.bytes {
            let path = self.path.display();
            return Err(Error::corrupt(format!(
                "key sidecar of segment \"{path}\" belongs to another file"
            )));
        }
        Ok(self.sidecar.get_or_init(|| opened))
    }

    /// The key sidecar, if it was used before.
    pub(crate) fn opened_sidecar(&self) -> Option<&Sidecar> {
        self.sidecar.get()
    }

    /// Reads all of both files and compares them with their checksums. Blocking.
    ///
    /// # Errors
    /// XX001 or 58030.
    pub(crate) fn check(&self) -> Result<()> {
        CheckedFile::open(&self.path, self.meta.bytes, self.check_keys()?.sums())?.check()
    }

    /// Reads all of the key sidecar. Blocking.
    ///
    /// # Errors
    /// XX001 or 58030.
    pub(crate) fn check_keys(&self) -> Result<Sidecar> {
        // Not the one in memory: the file itself.
        let sidecar = Sidecar::open(&self.path.with_extension("pk"))?;
        (0..sidecar.blocks()).try_for_each(|block| sidecar.block(block).map(drop))?;
        Ok(sidecar)
    }

    /// Removes the files when the last holder lets go, unless somebody opens them again before.
    pub fn doom(&self) {
        self.cache.set_doomed(&self.path, true);
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        self.kept.get_mut().iter().for_each(|key| self.columns.remove(key));
        self.cache.close_file(&self.path, || {
            self.cache.remove(&self.path);
            remove_segment_files(&self.path);
        });
    }
}

/// Removes a segment and its sidecar. What stays is swept at the next start.
pub(crate) fn remove_segment_files(path: &Path) {
    for path in [path.to_path_buf(), path.with_extension("pk")] {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "segment file not removed");
            }
            _ => {}
        }
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The inverse of [`hex`]; what is not hexadecimal reads as 0 and so never equals a checksum.
pub(crate) fn unhex(text: &str) -> Vec<u8> {
    let digit = |b: u8| char::from(b).to_digit(16).unwrap_or(0) as u8;
    text.as_bytes()
        .chunks(2)
        .map(|pair| digit(pair[0]) << 4 | pair.get(1).map_or(0, |b| digit(*b)))
        .collect()
}
