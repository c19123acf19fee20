//! Parquet footers of a node's segments in memory, so that a repeated query reads only data pages; the way to the
//! decoded columns; and who uses which file, so that one that is not wanted any more goes with its last user.
//!
//! ```text
//!   open F ─ 1 user    doom F ─ not wanted    open F again (another copy's snapshot names it) ─ wanted, 2 users    the first ends: F stays
//! ```
//!
//! Bounded in bytes; the least recently used go first. A footer with page index is about 20 to 200 KB per million rows.

use crate::storage::checked_file::CheckedFile;
use crate::storage::columns::ColumnCache;
use crate::storage::segment::parquet_error;
use parking_lot::Mutex;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tessera_proto::{Error, Result};

/// The cache; shared by all shards of a node.
#[derive(Debug)]
pub struct MetadataCache {
    bytes_max: usize,
    columns: ColumnCache,
    entries: Mutex<Entries>,
    files: Mutex<HashMap<PathBuf, FileUse>>,
}

/// Segments that are one file.
#[derive(Debug, Default)]
struct FileUse {
    users: usize,
    doomed: bool,
}

#[derive(Debug, Default)]
struct Entries {
    by_path: HashMap<PathBuf, Slot>,
    bytes: usize,
    clock: u64,
}

#[derive(Debug)]
struct Slot {
    metadata: Arc<ParquetMetaData>,
    bytes: usize,
    used: u64,
}

impl MetadataCache {
    /// An empty cache of at most so many bytes of footers; decoded columns have their own bound.
    pub fn new(bytes_max: usize, columns: ColumnCache) -> Arc<Self> {
        Arc::new(Self {
            bytes_max,
            columns,
            entries: Mutex::default(),
            files: Mutex::default(),
        })
    }

    /// A segment uses the file from now on, if `check` finds it sound: it is wanted, whatever became of others of its name.
    ///
    /// # Errors
    /// Those of `check`.
    pub(crate) fn open_file(&self, path: &Path, check: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut files = self.files.lock();
        check()?;
        let file = files.entry(path.to_path_buf()).or_default();
        file.users += 1;
        file.doomed = false;
        Ok(())
    }

    /// A segment uses the file no more. Calls `remove` if nobody does and nobody wants it; nobody can open it meanwhile.
    pub(crate) fn close_file(&self, path: &Path, remove: impl FnOnce()) {
        let mut files = self.files.lock();
        let Some(file) = files.get_mut(path) else { return };
        file.users -= 1;
        if file.users == 0 {
            let doomed = file.doomed;
            files.remove(path);
            if doomed {
                remove();
            }
        }
    }

    /// Nobody wants the file any more, or somebody wants it again.
    pub(crate) fn set_doomed(&self, path: &Path, doomed: bool) {
        if let Some(file) = self.files.lock().get_mut(path) {
            file.doomed = doomed;
        }
    }

    /// A segment's footer with page index; reads it from the opened file if it is not here. Blocking.
    ///
    /// # Errors
    /// XX001 when the footer is damaged, 58030 when it cannot be read.
    pub(crate) fn get(&self, path: &Path, open: impl FnOnce() -> Result<CheckedFile>) -> Result<Arc<ParquetMetaData>> {
        if let Some(metadata) = self.lookup(path) {
            return Ok(metadata);
        }
        let file = open()?;
        let read = ParquetMetaDataReader::new()
            .with_page_index_policy(PageIndexPolicy::Optional)
            .parse_and_finish(&file);
        let metadata = read.map_err(|e| parquet_error("reading the footer of a segment", e, Error::corrupt))?;
        Ok(self.insert(path, Arc::new(metadata)))
    }

    /// Decoded columns.
    pub fn columns(&self) -> &ColumnCache {
        &self.columns
    }

    /// The footer if it is here.
    pub fn lookup(&self, path: &Path) -> Option<Arc<ParquetMetaData>> {
        let mut entries = self.entries.lock();
        entries.clock += 1;
        let clock = entries.clock;
        let slot = entries.by_path.get_mut(path)?;
        slot.used = clock;
        Some(slot.metadata.clone())
    }

    /// Forgets a removed file.
    pub fn remove(&self, path: &Path) {
        let mut entries = self.entries.lock();
        if let Some(slot) = entries.by_path.remove(path) {
            entries.bytes -= slot.bytes;
        }
    }

    fn insert(&self, path: &Path, metadata: Arc<ParquetMetaData>) -> Arc<ParquetMetaData> {
        let bytes = metadata.memory_size();
        let mut entries = self.entries.lock();
        entries.clock += 1;
        let slot = Slot {
            metadata: metadata.clone(),
            bytes,
            used: entries.clock,
        };
        entries.bytes += bytes;
        if let Some(old) = entries.by_path.insert(path.to_path_buf(), slot) {
            entries.bytes -= old.bytes;
        }
        while entries.bytes > self.bytes_max {
            // Linear, but only when full: a full cache of 100 MB has some thousand entries.
            let Some(oldest) = entries
                .by_path
                .iter()
                .min_by_key(|(_, s)| s.used)
                .map(|(p, _)| p.clone())
            else {
                break;
            };
            if let Some(slot) = entries.by_path.remove(&oldest) {
                entries.bytes -= slot.bytes;
            }
        }
        metadata
    }
}
