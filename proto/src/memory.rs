//! The memory pool that all queries of a process share, whichever parts of a cluster run in it.
//!
//! Consumers that can spill get equal shares of what the others leave; beyond it they spill, or fail with 53200 and the
//! names of the biggest. Not counted: staged rows, decoded batches on their way, caches of file footers.

use datafusion::execution::memory_pool::{FairSpillPool, MemoryPool, TrackConsumersPool};
use std::num::NonZeroUsize;
use std::sync::Arc;

/// Below this a pool cannot even hold the merge buffers of one sort.
const BYTES_MIN: usize = 32 << 20;
/// Consumers named when memory runs out.
const CONSUMERS_SHOWN: NonZeroUsize = NonZeroUsize::new(3).unwrap();

/// A pool of `bytes`.
pub fn query_pool(bytes: usize) -> Arc<dyn MemoryPool> {
    let pool = FairSpillPool::new(bytes.max(BYTES_MIN));
    Arc::new(TrackConsumersPool::new(pool, CONSUMERS_SHOWN))
}
