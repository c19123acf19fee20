//! The memory pool that all queries of a process share, whichever parts of a cluster run in it.
//!
//! ```text
//!   ├──────────── two thirds: sorts, aggregates ────────────┼──── one third ────┤
//!   consumers that can spill, in equal shares               only hash joins, merges of what was sorted, ...
//! ```
//!
//! Consumers that can spill get equal shares of what the others leave; beyond it they spill, or fail with 53200 and the
//! names of the biggest. They may not fill the pool: whoever spills first merges what it has in memory, and needs a little more
//! than it was given for that. Not counted: staged rows, decoded batches on their way, caches of file footers.

use datafusion::error::{DataFusionError, Result};
pub use datafusion::execution::memory_pool::MemoryPool;
use datafusion::execution::memory_pool::{
    FairSpillPool, MemoryConsumer, MemoryLimit, MemoryReservation, TrackConsumersPool, human_readable_size,
};
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Below this a pool cannot even hold the merge buffers of the sorts of one query.
pub const BYTES_MIN: usize = 8 << 20;
/// Consumers named when memory runs out.
const CONSUMERS_SHOWN: NonZeroUsize = NonZeroUsize::new(3).unwrap();

/// Spilled files that one merge reads at a time. It reserves room for a batch of each, which nobody can make it give back: with
/// more, the first sort to merge would take what the others of the query need.
pub const SPILL_MERGE_FILES: usize = 8;

/// A pool of `bytes`, at least [`BYTES_MIN`].
pub fn query_pool(bytes: usize) -> Arc<dyn MemoryPool> {
    let bytes = bytes.max(BYTES_MIN);
    let pool = Headroom {
        pool: FairSpillPool::new(bytes),
        spillable_max: bytes / 3 * 2,
        spillable: AtomicUsize::new(0),
    };
    Arc::new(TrackConsumersPool::new(pool, CONSUMERS_SHOWN))
}

/// A pool that consumers which can spill may not fill.
#[derive(Debug)]
struct Headroom {
    pool: FairSpillPool,
    spillable_max: usize,
    /// What they have.
    spillable: AtomicUsize,
}

impl Headroom {
    fn took(&self, reservation: &MemoryReservation, bytes: usize) {
        if reservation.consumer().can_spill() {
            self.spillable.fetch_add(bytes, Ordering::Relaxed);
        }
    }
}

impl MemoryPool for Headroom {
    fn name(&self) -> &str {
        "headroom"
    }

    fn register(&self, consumer: &MemoryConsumer) {
        self.pool.register(consumer);
    }

    fn unregister(&self, consumer: &MemoryConsumer) {
        self.pool.unregister(consumer);
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        self.pool.grow(reservation, additional);
        self.took(reservation, additional);
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        self.pool.shrink(reservation, shrink);
        if reservation.consumer().can_spill() {
            self.spillable.fetch_sub(shrink, Ordering::Relaxed);
        }
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<()> {
        let wanted = self.spillable.load(Ordering::Relaxed).saturating_add(additional);
        if reservation.consumer().can_spill() && wanted > self.spillable_max {
            return Err(DataFusionError::ResourcesExhausted(format!(
                "{} more for {}, of {} that may be spilled",
                human_readable_size(additional),
                reservation.consumer().name(),
                human_readable_size(self.spillable_max)
            )));
        }
        self.pool.try_grow(reservation, additional)?;
        self.took(reservation, additional);
        Ok(())
    }

    fn reserved(&self) -> usize {
        self.pool.reserved()
    }

    fn memory_limit(&self) -> MemoryLimit {
        self.pool.memory_limit()
    }
}

impl fmt::Display for Headroom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, {} for what can spill",
            self.pool,
            human_readable_size(self.spillable_max)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_spill_leaves_room_for_what_cannot() {
        let pool = query_pool(12 << 20);
        let sort = MemoryConsumer::new("sort").with_can_spill(true).register(&pool);
        let join = MemoryConsumer::new("join").register(&pool);
        assert!(sort.try_grow(8 << 20).is_ok());
        let refused = sort.try_grow(1).expect_err("a third is not for it");
        assert!(
            matches!(refused.find_root(), DataFusionError::ResourcesExhausted(_)),
            "{refused}"
        );
        assert!(join.try_grow(4 << 20).is_ok());
        assert!(join.try_grow(1).is_err());
        sort.shrink(8 << 20);
        join.shrink(4 << 20);
        // What cannot spill may take all of it.
        assert!(join.try_grow(12 << 20).is_ok());
        drop((sort, join));
        assert_eq!(pool.reserved(), 0);
    }
}
