//! Where queries spill: files of everything but exchanges.
//!
//! ```text
//!   sort, aggregate, join   out of memory ──▶ file ──▶ read back
//!   exchange in a process   out of memory ──▶ 53200 ──▶ the router plans the query once more, without exchanges (frugal.rs)
//! ```
//!
//! An exchange that spills for two inputs can wait for ever: its reader looks at the first of its files only, while the batch that
//! would end the wait is in the second (DataFusion #24883, in 55.2). Remove this when a release has #24891.

use datafusion::common::Result;
use datafusion::error::DataFusionError;
use datafusion::execution::disk_manager::{DiskManager, DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::{SpillFile, TempFileFactory};
use std::sync::Arc;

/// What exchanges call the files they ask for; nobody else does.
const OF_EXCHANGES: &str = "SpillPool";

/// Spill files as `files` says (at most so many bytes, in which folder), none of them for exchanges. Merges read at most
/// `merge_files` at a time.
///
/// # Errors
/// The folder cannot be made.
pub fn disk(files: DiskManagerBuilder, merge_files: usize) -> Result<DiskManagerBuilder> {
    let files = files.build()?;
    let builder = DiskManagerBuilder::default().with_max_spill_merge_fan_in(merge_files);
    if !files.tmp_files_enabled() {
        return Ok(builder.with_mode(DiskManagerMode::Disabled));
    }
    Ok(builder.with_temp_file_factory(Arc::new(NotForExchanges(Arc::new(files)))))
}

/// Refuses files to exchanges. Bytes are counted and bounded by the manager within.
#[derive(Debug)]
struct NotForExchanges(Arc<DiskManager>);

impl TempFileFactory for NotForExchanges {
    fn create_temp_file(&self, description: &str) -> Result<Arc<dyn SpillFile>> {
        if description == OF_EXCHANGES {
            let message = "an exchange within a process does not spill";
            return Err(DataFusionError::ResourcesExhausted(message.to_owned()));
        }
        self.0.create_tmp_file(description)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::SPILL_MERGE_FILES;
    use datafusion::arrow::array::{Int64Array, RecordBatch};
    use datafusion::arrow::datatypes::{DataType, Field, Schema};
    use datafusion::catalog::memory::MemorySourceConfig;
    use datafusion::execution::TaskContext;
    use datafusion::execution::memory_pool::GreedyMemoryPool;
    use datafusion::execution::runtime_env::RuntimeEnvBuilder;
    use datafusion::physical_expr::expressions::col;
    use datafusion::physical_expr::{LexOrdering, PhysicalSortExpr};
    use datafusion::physical_plan::common::collect;
    use datafusion::physical_plan::repartition::RepartitionExec;
    use datafusion::physical_plan::sorts::sort::SortExec;
    use datafusion::physical_plan::{ExecutionPlan, Partitioning};
    use datafusion::prelude::SessionConfig;

    /// Two partitions of 64 batches, 64 KiB each, and a context with two MiB.
    fn short_of_memory() -> (Arc<dyn ExecutionPlan>, Arc<TaskContext>) {
        let config = SessionConfig::new().with_sort_spill_reservation_bytes(128 << 10);
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
        let batch = |at: i64| {
            let numbers = Int64Array::from_iter_values((0..8_192).map(|n| (n * 7_919 + at) % 100_003));
            RecordBatch::try_new(schema.clone(), vec![Arc::new(numbers)]).unwrap()
        };
        let partition: Vec<_> = (0..64).map(batch).collect();
        let input = MemorySourceConfig::try_new_exec(&[partition.clone(), partition], schema, None).unwrap();
        let disk = disk(DiskManagerBuilder::default(), SPILL_MERGE_FILES).unwrap();
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(GreedyMemoryPool::new(2 << 20)))
            .with_disk_manager_builder(disk);
        let context = TaskContext::default()
            .with_session_config(config)
            .with_runtime(runtime.build_arc().unwrap());
        (input, Arc::new(context))
    }

    #[tokio::test]
    async fn an_exchange_fails_instead_of_spilling() {
        let (input, context) = short_of_memory();
        let keys = vec![col("n", &input.schema()).unwrap()];
        let exchange = RepartitionExec::try_new(input, Partitioning::Hash(keys, 2)).unwrap();
        // Nobody reads the first partition: its rows are waiting when memory ends.
        let _unread = exchange.execute(0, context.clone()).unwrap();
        let error = collect(exchange.execute(1, context).unwrap()).await.unwrap_err();
        let root = error.find_root();
        assert!(matches!(root, DataFusionError::ResourcesExhausted(_)), "{error}");
    }

    #[tokio::test]
    async fn a_sort_spills() {
        let (input, context) = short_of_memory();
        let by = LexOrdering::new([PhysicalSortExpr::new_default(col("n", &input.schema()).unwrap())]).unwrap();
        let sort = Arc::new(SortExec::new(by, input).with_preserve_partitioning(true));
        // One partition alone: two sorts at once would take the memory their merges need from each other.
        let rows = collect(sort.execute(0, context).unwrap()).await.unwrap();
        assert_eq!(rows.iter().map(RecordBatch::num_rows).sum::<usize>(), 64 * 8_192);
        assert!(
            sort.metrics()
                .and_then(|m| m.spill_count())
                .is_some_and(|count| count > 0)
        );
    }
}
