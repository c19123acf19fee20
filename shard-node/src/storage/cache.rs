//! Parquet footers of a node's segments in memory, so that a repeated query reads only data pages; and the way to the
//! decoded columns.
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
        })
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
