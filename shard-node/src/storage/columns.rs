//! Decoded columns of segments in memory: what a scan reads again and again is decompressed and decoded once. Also blocks of
//! key sidecars, as they are stored.
//!
//! ```text
//!   (segment 7, row group 3, "l_shipdate")            ─▶ Arrow array of up to 128 Ki values, shared by all scans
//!   (segment 7, row group 3, block 5, "l_shipdate")   ─▶ 8,192 of them: what reading one row by its key decodes
//!   (segment 7, keys, block 61)                       ─▶ some 6 KiB: which of 1,024 rows may have a key
//! ```
//!
//! Bounded in bytes. What is kept is decided by frequency and recency (TinyLFU, Einziger et al. 2017), so one pass over a
//! table larger than the cache does not empty it. Chunks go when their segment goes.

use datafusion::arrow::array::ArrayRef;
use moka::sync::Cache;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Unit of weight: moka counts in 32 bits.
const WEIGHT_BYTES: usize = 1 << 10;

/// The cache; shared by all nodes of a process.
#[derive(Debug, Clone)]
pub struct ColumnCache {
    chunks: Cache<ChunkKey, ArrayRef>,
}

/// Names a part of a segment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ChunkKey {
    /// Of [`segment_number`].
    pub segment: u64,
    /// Which one.
    pub part: Part,
}

/// See [`ChunkKey`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Part {
    /// A column of a row group.
    Column {
        /// Position of the row group in the file.
        row_group: usize,
        /// Block of the row group, where only a block of it was read.
        block: Option<usize>,
        /// Name in the file.
        name: Arc<str>,
    },
    /// A block of the key sidecar, as `UInt8`.
    Keys(usize),
}

/// A number that no other segment of this process has or had: files of dropped shards may come again under their names.
pub(crate) fn segment_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl ColumnCache {
    /// An empty cache of at most so many bytes; 0 keeps nothing.
    pub fn new(bytes_max: usize) -> Self {
        let weigh = |_: &ChunkKey, array: &ArrayRef| {
            let units = array.get_array_memory_size() / WEIGHT_BYTES + 1;
            u32::try_from(units).unwrap_or(u32::MAX)
        };
        let chunks = Cache::builder()
            .name("decoded columns")
            .max_capacity((bytes_max / WEIGHT_BYTES) as u64)
            .weigher(weigh)
            .build();
        Self { chunks }
    }

    /// Bytes held now, rounded up to whole KiB per chunk; may lag a little behind.
    pub fn bytes(&self) -> u64 {
        self.chunks.weighted_size() * WEIGHT_BYTES as u64
    }

    pub(crate) fn get(&self, key: &ChunkKey) -> Option<ArrayRef> {
        self.chunks.get(key)
    }

    pub(crate) fn insert(&self, key: ChunkKey, array: ArrayRef) {
        self.chunks.insert(key, array);
    }

    pub(crate) fn remove(&self, key: &ChunkKey) {
        self.chunks.invalidate(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::array::Int64Array;

    #[test]
    fn holds_no_more_than_it_may() {
        let cache = ColumnCache::new(100 << 10);
        let array: ArrayRef = Arc::new(Int64Array::from(vec![0; 1_024]));
        for row_group in 0..100 {
            let key = ChunkKey {
                segment: segment_number(),
                part: Part::Column {
                    row_group,
                    block: None,
                    name: "a".into(),
                },
            };
            cache.insert(key.clone(), array.clone());
            cache.remove(&key);
            cache.insert(key, array.clone());
        }
        cache.chunks.run_pending_tasks();
        assert!((8 << 10..=100 << 10).contains(&cache.bytes()), "{}", cache.bytes());
    }
}
