//! Lets joins yield, so that a cancelled or late query gives its core back.
//!
//! ```text
//!   CooperativeExec            counts batches that come out, and gives the runtime a turn now and then
//!     HashJoinExec
//!       build side
//!       YieldExec              gives the runtime a turn at every batch that goes in: a join whose condition drops all pairs
//!         probe side           puts nothing out, and would not stop until it is done
//! ```
//!
//! A nested-loop join compares each batch with the whole build side, so it gets smaller ones. Used on routers and nodes.

use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Result, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::execution_plan::{ChildrenPropertiesMode, ReplaceChildrenOptions};
use datafusion::physical_plan::joins::{
    CrossJoinExec, HashJoinExec, NestedLoopJoinExec, SortMergeJoinExec, SymmetricHashJoinExec,
};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PhysicalExpr, PlanProperties};
use futures::StreamExt;
use std::fmt;
use std::sync::Arc;

/// Rows that go into a nested-loop join at once: against a million rows on the other side, about a second.
const NESTED_LOOP_ROWS: usize = 1_024;

/// The physical rule. Put it last: it must see the joins that other rules leave.
#[derive(Debug)]
pub struct YieldInJoins;

impl PhysicalOptimizerRule for YieldInJoins {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(plan.transform_up(wrap)?.data)
    }

    fn name(&self) -> &str {
        "yield_in_joins"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

fn wrap(node: Arc<dyn ExecutionPlan>) -> Result<Transformed<Arc<dyn ExecutionPlan>>> {
    let nested = node.is::<NestedLoopJoinExec>() || node.is::<CrossJoinExec>();
    let joins =
        nested || node.is::<HashJoinExec>() || node.is::<SortMergeJoinExec>() || node.is::<SymmetricHashJoinExec>();
    let [build, probe] = node.children()[..] else {
        return Ok(Transformed::no(node));
    };
    if !joins {
        return Ok(Transformed::no(node));
    }
    let rows = if nested { NESTED_LOOP_ROWS } else { usize::MAX };
    let probe: Arc<dyn ExecutionPlan> = Arc::new(YieldExec::new(probe.clone(), rows));
    let sides = vec![build.clone(), probe];
    let options = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
    let join = node.replace_children(sides, options)?;
    Ok(Transformed::yes(Arc::new(CooperativeExec::new(join))))
}

/// Passes batches on, at most `rows` rows at once, each after giving the runtime a turn.
#[derive(Debug, Clone)]
pub struct YieldExec {
    input: Arc<dyn ExecutionPlan>,
    rows: usize,
}

impl YieldExec {
    /// Over `input`.
    pub fn new(input: Arc<dyn ExecutionPlan>, rows: usize) -> Self {
        Self {
            input,
            rows: rows.max(1),
        }
    }

    /// Most rows of a batch.
    pub fn rows(&self) -> usize {
        self.rows
    }
}

impl DisplayAs for YieldExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("YieldExec")
    }
}

impl ExecutionPlan for YieldExec {
    fn name(&self) -> &str {
        "YieldExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        let [input] = &children[..] else {
            return internal_err!("YieldExec has one input");
        };
        Ok(Arc::new(Self::new(input.clone(), self.rows)))
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let rows = self.rows;
        let input = self.input.execute(partition, context)?;
        let pieces = input.flat_map(move |batch| {
            let pieces: Vec<_> = match batch {
                Ok(batch) if batch.num_rows() > rows => (0..batch.num_rows())
                    .step_by(rows)
                    .map(|start| Ok(batch.slice(start, rows.min(batch.num_rows() - start))))
                    .collect(),
                whole => vec![whole],
            };
            futures::stream::iter(pieces)
        });
        let polite = pieces.then(async |piece| {
            tokio::task::yield_now().await;
            piece
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), polite)))
    }
}
