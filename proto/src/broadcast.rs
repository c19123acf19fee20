//! Joins whose one side is small beside the other read all of it everywhere, instead of spreading both by their keys.
//!
//! ```text
//!   Join partitioned                      Join collect left
//!     Repartition hash  158,000 rows   ->   158,000 rows          read by every partition, and by every node of a stage
//!     Repartition hash  6,000,000 rows      6,000,000 rows        stay where they are
//! ```
//!
//! DataFusion's own limit is one of bytes, however large the other side is. Spreading costs each row of both sides a hash, a copy
//! and, between nodes, the way over the network; reading costs the small side as often as there are readers. Only joins
//! that emit nothing of their own for rows of the small side: readers would each emit it.

use crate::frugal;
use datafusion::arrow::datatypes::DataType;
use datafusion::common::config::ConfigOptions;
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{JoinType, Result, Statistics};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::joins::{HashJoinExec, PartitionMode};
use datafusion::physical_plan::statistics::{StatisticsArgs, StatisticsContext};
use std::sync::Arc;

/// How many times the small side the other must be.
const TIMES: usize = 8;
/// Most bytes of the small side: each reader on each node holds a hash table of it.
const BYTES_MAX: usize = 32 << 20;

/// The physical rule. Put it after the one that chooses sides of joins.
#[derive(Debug)]
pub struct BroadcastSmallSides;

impl PhysicalOptimizerRule for BroadcastSmallSides {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, options: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        // With little memory both sides of a join may have to spill.
        if frugal::configured(options) {
            return Ok(plan);
        }
        let changed = plan.transform_up(|node| match node.downcast_ref::<HashJoinExec>() {
            Some(join) if is_small_beside(join) => {
                let collecting = join.builder().with_partition_mode(PartitionMode::CollectLeft);
                collecting.build_exec().map(Transformed::yes)
            }
            _ => Ok(Transformed::no(node)),
        })?;
        Ok(changed.data)
    }

    fn name(&self) -> &str {
        "broadcast_small_sides"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

fn is_small_beside(join: &HashJoinExec) -> bool {
    let fits = *join.partition_mode() == PartitionMode::Partitioned
        && matches!(
            join.join_type(),
            JoinType::Inner | JoinType::Right | JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark
        );
    if !fits {
        return false;
    }
    let (small, other) = (bytes(join.left().as_ref()), bytes(join.right().as_ref()));
    small
        .zip(other)
        .is_some_and(|(small, other)| small <= BYTES_MAX && small.saturating_mul(TIMES) <= other)
}

/// Estimated bytes of all rows, as Arrow.
fn bytes(side: &dyn ExecutionPlan) -> Option<usize> {
    let statistics: Arc<Statistics> = StatisticsContext::new().compute(side, &StatisticsArgs::new()).ok()?;
    if let Precision::Exact(bytes) | Precision::Inexact(bytes) = statistics.total_byte_size {
        return Some(bytes);
    }
    let rows = *statistics.num_rows.get_value()?;
    let width: usize = side.schema().fields().iter().map(|f| width(f.data_type())).sum();
    Some(rows.saturating_mul(width.max(1)))
}

/// Bytes of a value as Arrow, roughly.
pub fn width(data_type: &DataType) -> usize {
    data_type.primitive_width().unwrap_or(24)
}

#[cfg(test)]
mod tests {
    use datafusion::execution::SessionStateBuilder;
    use datafusion::physical_plan::displayable;
    use datafusion::prelude::{SessionConfig, SessionContext};

    /// The modes of the joins of a query over `small` of 1,000 rows and `large` of 100,000, `half` of 50,000.
    async fn modes(sql: &str) -> Vec<String> {
        let mut config = SessionConfig::new().with_target_partitions(2);
        // DataFusion's own limits: none is small.
        config.options_mut().optimizer.hash_join_single_partition_threshold = 0;
        config.options_mut().optimizer.hash_join_single_partition_threshold_rows = 0;
        let state = SessionStateBuilder::new()
            .with_config(config)
            .with_default_features()
            .with_physical_optimizer_rules(crate::physical::rules());
        let context = SessionContext::new_with_state(state.build());
        for (table, rows) in [("small", 1_000), ("half", 50_000), ("large", 100_000)] {
            let create =
                format!("CREATE TABLE {table} AS SELECT value AS k, value % 7 AS v FROM generate_series(1, {rows})");
            context
                .sql(&create)
                .await
                .expect("planned")
                .collect()
                .await
                .expect("created");
        }
        let plan = context
            .sql(sql)
            .await
            .expect("planned")
            .create_physical_plan()
            .await
            .expect("planned");
        let text = displayable(plan.as_ref()).indent(false).to_string();
        let mode = |line: &str| {
            Some(
                line.split_once("HashJoinExec: mode=")?
                    .1
                    .split(", on=")
                    .next()?
                    .to_owned(),
            )
        };
        text.lines().filter_map(mode).collect()
    }

    #[tokio::test]
    async fn small_beside_the_other_is_read_by_all() {
        let join = |kind: &str, l: &str, r: &str| format!("SELECT * FROM {l} l {kind} JOIN {r} r ON l.k = r.k");
        for (sql, expected) in [
            (join("INNER", "large", "small"), "CollectLeft, join_type=Inner"),
            (join("INNER", "large", "half"), "Partitioned, join_type=Inner"),
            (join("LEFT", "large", "small"), "CollectLeft, join_type=Right"),
            // Rows of the small side that nobody matches would be emitted by each reader.
            (join("RIGHT", "large", "small"), "Partitioned, join_type=Left"),
            (join("FULL", "large", "small"), "Partitioned, join_type=Full"),
        ] {
            assert_eq!(modes(&sql).await, [expected], "{sql}");
        }
    }
}
