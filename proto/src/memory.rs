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
//!
//! A nested-loop join whose left side does not fit would start over and read it again, from a file. It may not ([`without_restarts`]):
//! an exchange can be read once only ("Too many consumers for real partition"), and rows of the left side without a match would
//! come once for each partition of the right one (a known fault of DataFusion 55, named in its `NestedLoopJoinExec::execute`).

use crate::error::Error;
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

/// The pool, for sessions whose nested-loop joins may not start over: they fail with 53200, and the query is planned once more.
pub fn without_restarts(pool: Arc<dyn MemoryPool>) -> Arc<dyn MemoryPool> {
    Arc::new(NoRestarts(pool))
}

/// What nested-loop joins call themselves while they collect their left side.
const NESTED_LOOP_JOIN: &str = "NestedLoopJoinLoad";

/// Refuses memory to nested-loop joins by an error that they do not take for a reason to start over.
#[derive(Debug)]
struct NoRestarts(Arc<dyn MemoryPool>);

impl MemoryPool for NoRestarts {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn register(&self, consumer: &MemoryConsumer) {
        self.0.register(consumer);
    }

    fn unregister(&self, consumer: &MemoryConsumer) {
        self.0.unregister(consumer);
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        self.0.grow(reservation, additional);
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        self.0.shrink(reservation, shrink);
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<()> {
        let grown = self.0.try_grow(reservation, additional);
        if reservation.consumer().name().starts_with(NESTED_LOOP_JOIN) {
            return grown.map_err(|error| Error::from(error).into());
        }
        grown
    }

    fn reserved(&self) -> usize {
        self.0.reserved()
    }

    fn memory_limit(&self) -> MemoryLimit {
        self.0.memory_limit()
    }
}

impl fmt::Display for NoRestarts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
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
    use datafusion::execution::runtime_env::RuntimeEnvBuilder;
    use datafusion::prelude::{SessionConfig, SessionContext};

    /// Rows of the left side without a match are those that come several times where a join starts over.
    #[tokio::test]
    async fn nested_loop_joins_do_not_start_over() {
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(without_restarts(query_pool(BYTES_MIN)))
            .build_arc();
        let config = SessionConfig::new().with_target_partitions(3);
        let context = SessionContext::new_with_config_rt(config, runtime.unwrap());
        let sql = "SELECT count(*) FROM (SELECT value AS a FROM generate_series(1, 3000000)) l \
                   LEFT JOIN (SELECT value AS b FROM generate_series(1, 3000000)) r ON a > b + 5000000";
        let frame = context.sql(sql).await.unwrap();
        let plan = frame.clone().create_physical_plan().await.unwrap();
        let shown = datafusion::physical_plan::displayable(plan.as_ref())
            .indent(false)
            .to_string();
        assert!(shown.contains("NestedLoopJoinExec: join_type=Left"), "{shown}");
        let error = Error::from(frame.collect().await.unwrap_err());
        assert_eq!(error.code, "53200", "{error}");
    }

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
