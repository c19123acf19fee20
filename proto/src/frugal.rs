//! Plans for little memory: joins that spill, and batches that a sort can hold.
//!
//! ```text
//!   HashJoinExec          the build side in memory, or 53200      SortMergeJoinExec
//!     build                                                  ──▶    YieldExec: compact
//!     probe                                                           SortExec              build     spills
//!                                                                       YieldExec: compact  small batches of their own
//!                                                                   YieldExec: compact
//!                                                                     SortExec              probe     spills
//!                                                                       YieldExec: compact
//! ```
//!
//! Only in sessions with `prefer_hash_join` off ([`configure`]). DataFusion's planner obeys that option itself where it plans
//! for several partitions; a leaf with one partition gets hash joins all the same. A sort must hold at least one batch, a join
//! the rows of one key, and a TopK the batches of its rows; one that is a piece of a larger one, or points into others, counts
//! as all of them. Left alone: NOT IN with NULLs, which sort-merge joins do not know, and inputs of several partitions that
//! are not spread by the keys.

use crate::yielding::YieldExec;
use datafusion::arrow::compute::SortOptions;
use datafusion::common::config::{ConfigNonZeroUsize, ConfigOptions};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Result, internal_err};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{LexOrdering, PhysicalSortExpr};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::execution_plan::{ChildrenPropertiesMode, ReplaceChildrenOptions};
use datafusion::physical_plan::joins::{HashJoinExec, PartitionMode, SortMergeJoinExec};
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties, PhysicalExpr};
use std::sync::Arc;

/// The setting, `on` or `off`, by which routers tell nodes.
pub const HASH_JOIN: &str = "tessera.hash_join";
/// The setting by which routers tell nodes the rows of a batch in such plans.
pub const BATCH_ROWS: &str = "tessera.batch_rows";
/// Rows of a batch unless told otherwise.
pub const BATCH_ROWS_DEFAULT: usize = 256;
/// Rows of a batch where even those were too much: everything below is a quarter, and takes longer.
pub const BATCH_ROWS_LEAST: usize = 64;
/// What each sort keeps back for merging, for each row of a batch: a sort must hold at least one batch, and merging spilled
/// ones two of each file. DataFusion's 10 MiB is much for a query that has little.
const SORT_RESERVATION_BYTES: usize = 2 << 10;
/// Batches that a scan decodes at once: 8,192 rows of the default, a page of the file.
const SCAN_BATCHES: usize = 32;

/// Makes a session take as little memory as it can, at the price of time. Batches have `rows` rows.
pub fn configure(options: &mut ConfigOptions, rows: usize) {
    let rows = rows.max(1);
    options.optimizer.prefer_hash_join = false;
    options.execution.sort_spill_reservation_bytes = SORT_RESERVATION_BYTES * rows;
    // Batches are not joined before they are sorted: of the pieces of what was joined, each counts as the whole, once more.
    options.execution.sort_in_place_threshold_bytes = 0;
    // The older aggregates keep memory back for their last batches; the newer fail when those do not fit any more.
    options.execution.enable_migration_aggregate = false;
    if let Ok(rows) = ConfigNonZeroUsize::try_new(rows) {
        options.execution.batch_size = rows;
    }
}

/// Whether a session was [`configure`]d so.
pub fn configured(options: &ConfigOptions) -> bool {
    !options.optimizer.prefer_hash_join
}

/// Rows that a scan may decode at once; `None` where memory is not short.
pub fn scan_rows(options: &ConfigOptions) -> Option<usize> {
    configured(options).then(|| options.execution.batch_size.get() * SCAN_BATCHES)
}

/// The physical rule. Put it before the one that lets joins yield.
#[derive(Debug)]
pub struct FrugalPlans;

impl PhysicalOptimizerRule for FrugalPlans {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, options: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        if !configured(options) {
            return Ok(plan);
        }
        let changed = plan.transform_up(|node| match node.downcast_ref::<HashJoinExec>() {
            Some(join) if can_change(join) => Ok(Transformed::yes(sort_merge(join)?)),
            _ => Ok(Transformed::no(node)),
        })?;
        let compact =
            changed
                .data
                .transform_up(|node| match node.is::<SortExec>() || node.is::<SortMergeJoinExec>() {
                    true => Ok(Transformed::yes(compact_below(
                        node,
                        options.execution.batch_size.get(),
                    )?)),
                    false => Ok(Transformed::no(node)),
                })?;
        Ok(compact.data)
    }

    fn name(&self) -> &str {
        "frugal_plans"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

fn can_change(join: &HashJoinExec) -> bool {
    let partitions = |side: &Arc<dyn ExecutionPlan>| side.output_partitioning().partition_count();
    let alone = partitions(join.left()) == 1 && partitions(join.right()) == 1;
    let spread = *join.partition_mode() == PartitionMode::Partitioned;
    !join.null_aware && join.fetch().is_none() && (alone || spread)
}

fn sort_merge(join: &HashJoinExec) -> Result<Arc<dyn ExecutionPlan>> {
    let (left, right): (Vec<_>, Vec<_>) = join.on().iter().cloned().unzip();
    let merged: Arc<dyn ExecutionPlan> = Arc::new(SortMergeJoinExec::try_new(
        sorted(join.left(), left)?,
        sorted(join.right(), right)?,
        join.on().to_vec(),
        join.filter().cloned(),
        *join.join_type(),
        vec![SortOptions::default(); join.on().len()],
        join.null_equality(),
    )?);
    let Some(projection) = join.projection.as_deref() else {
        return Ok(merged);
    };
    let schema = merged.schema();
    let column = |index: &usize| {
        let name = schema.field(*index).name();
        (
            Arc::new(Column::new(name, *index)) as Arc<dyn PhysicalExpr>,
            name.clone(),
        )
    };
    let columns: Vec<_> = projection.iter().map(column).collect();
    Ok(Arc::new(ProjectionExec::try_new(columns, merged)?))
}

fn compact_below(node: Arc<dyn ExecutionPlan>, rows: usize) -> Result<Arc<dyn ExecutionPlan>> {
    let compact = |input: &Arc<dyn ExecutionPlan>| -> Arc<dyn ExecutionPlan> {
        Arc::new(YieldExec::compacting(input.clone(), rows))
    };
    let inputs = node.children().into_iter().map(compact).collect();
    node.replace_children(inputs, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
}

fn sorted(side: &Arc<dyn ExecutionPlan>, keys: Vec<Arc<dyn PhysicalExpr>>) -> Result<Arc<dyn ExecutionPlan>> {
    let keys = keys
        .into_iter()
        .map(|key| PhysicalSortExpr::new(key, SortOptions::default()));
    let Some(order) = LexOrdering::new(keys) else {
        return internal_err!("a hash join has keys");
    };
    Ok(Arc::new(
        SortExec::new(order, side.clone()).with_preserve_partitioning(true),
    ))
}
