//! What is believed of the rows of a subplan, before anything ran.
//!
//! ```text
//!   Filter: status = 'closed'           EstimateExec  95,000 rows      selectivity.rs: of what the scan has
//!     TableScan: orders        ──▶        FilterExec  20,000 rows      DataFusion: a fifth, for it knows no common values
//!                                           StubExec 100,000 rows      what the nodes told
//! ```
//!
//! The subplan is planned over the stub tables without optimiser rules and its root is asked. Rows of filters are ours
//! (`selectivity.rs`); everything else, rows of joins and least and greatest values behind a filter too, is DataFusion's. All of it
//! is inexact, because what the nodes do with the plan is theirs.
//!
//! Not here: the cost of orders of joins (`join_order`), which asks for each relation and knows skewed keys (`shares.rs`).

pub mod origin;
pub mod selectivity;
pub mod shares;
#[cfg(test)]
pub mod tests;

use async_trait::async_trait;
use datafusion::catalog::Session;
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchemaRef, Result, Statistics, internal_err};
use datafusion::execution::{SendableRecordBatchStream, SessionState, TaskContext};
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{
    Expr, Extension, Filter, LogicalPlan, UserDefinedLogicalNode, UserDefinedLogicalNodeCore,
};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::statistics::{ChildStats, StatisticsArgs, StatisticsContext};
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use datafusion::physical_planner::{DefaultPhysicalPlanner, ExtensionPlanner, PhysicalPlanner};
use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

/// What the planner believes about the rows of a subplan over stub tables. `bare` is a session without physical optimiser
/// rules. Wrong statistics cost time, missing ones must not cost the query, so whatever fails here means "unknown".
pub async fn statistics(plan: &LogicalPlan, bare: &SessionState) -> Statistics {
    estimate(plan, bare).await.unwrap_or_else(|error| {
        tracing::debug!(%error, "no statistics for a subplan");
        Statistics::new_unknown(plan.schema().as_arrow())
    })
}

async fn estimate(plan: &LogicalPlan, bare: &SessionState) -> Result<Statistics> {
    let marked = mark(plan.clone())?;
    let physical = DefaultPhysicalPlanner::with_extension_planners(vec![Arc::new(EstimatePlanner)])
        .create_physical_plan(&marked, bare)
        .await?;
    let statistics = StatisticsContext::new().compute(physical.as_ref(), &StatisticsArgs::new())?;
    Ok(statistics.as_ref().clone().to_inexact())
}

/// A plan with a node of ours above each one that we estimate.
fn mark(plan: LogicalPlan) -> Result<LogicalPlan> {
    let marked = plan.transform_up(|node| {
        Ok(match node {
            LogicalPlan::Filter(_) => {
                let node = Arc::new(EstimateNode(node));
                Transformed::yes(LogicalPlan::Extension(Extension { node }))
            }
            other => Transformed::no(other),
        })
    })?;
    Ok(marked.data)
}

/// Stands above what we estimate.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct EstimateNode(LogicalPlan);

impl PartialOrd for EstimateNode {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        self.0.partial_cmp(&other.0)
    }
}

impl UserDefinedLogicalNodeCore for EstimateNode {
    fn name(&self) -> &str {
        "Estimate"
    }
    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.0]
    }
    fn schema(&self) -> &DFSchemaRef {
        self.0.schema()
    }
    fn expressions(&self) -> Vec<Expr> {
        vec![]
    }
    fn fmt_for_explain(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("Estimate")
    }
    fn with_exprs_and_inputs(&self, _: Vec<Expr>, inputs: Vec<LogicalPlan>) -> Result<Self> {
        match <[LogicalPlan; 1]>::try_from(inputs) {
            Ok([input]) => Ok(Self(input)),
            Err(_) => internal_err!("an estimate has one input"),
        }
    }
}

/// What a node of ours stands above.
fn input_of(extension: &Extension) -> Option<&LogicalPlan> {
    let node = extension.node.as_any().downcast_ref::<EstimateNode>()?;
    Some(&node.0)
}

struct EstimatePlanner;

#[async_trait]
impl ExtensionPlanner for EstimatePlanner {
    async fn plan_extension(
        &self,
        _: &dyn PhysicalPlanner,
        node: &dyn UserDefinedLogicalNode,
        _: &[&LogicalPlan],
        inputs: &[Arc<dyn ExecutionPlan>],
        _: &dyn Session,
        _: &PhysicalPlanningContext,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let (Some(node), [planned]) = (node.as_any().downcast_ref::<EstimateNode>(), inputs) else {
            return Ok(None);
        };
        let (LogicalPlan::Filter(filter), Some(exec)) = (&node.0, planned.downcast_ref::<FilterExec>()) else {
            return Ok(Some(planned.clone()));
        };
        Ok(Some(Arc::new(EstimateExec {
            filter: filter.clone(),
            input: exec.input().clone(),
            planned: planned.clone(),
        })))
    }
}

/// A filter with our estimate of its rows. Never run.
#[derive(Debug)]
struct EstimateExec {
    filter: Filter,
    /// What it filters.
    input: Arc<dyn ExecutionPlan>,
    /// The filter as DataFusion planned it, above the same input.
    planned: Arc<dyn ExecutionPlan>,
}

impl DisplayAs for EstimateExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("EstimateExec")
    }
}

impl ExecutionPlan for EstimateExec {
    fn name(&self) -> &str {
        "EstimateExec"
    }
    fn properties(&self) -> &Arc<PlanProperties> {
        self.planned.properties()
    }
    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.planned, &self.input]
    }
    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        internal_err!("estimates are not optimised")
    }
    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }
    fn execute(&self, _: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        internal_err!("an estimate was run")
    }
    /// Of both: by default DataFusion asks no child.
    fn child_stats_requests(&self, partition: Option<usize>) -> Vec<ChildStats> {
        vec![ChildStats::At(partition); 2]
    }
    fn statistics_from_inputs(&self, inputs: &[Arc<Statistics>], _: &StatisticsArgs) -> Result<Arc<Statistics>> {
        let [planned, input] = inputs else {
            return internal_err!("an estimate has two inputs");
        };
        // A condition that contradicts itself.
        if planned.num_rows == Precision::Exact(0) {
            return Ok(planned.clone());
        }
        Ok(match selectivity::rows(&self.filter, input) {
            Some(rows) => Arc::new(with_rows(planned, rows, input)),
            None => planned.clone(),
        })
    }
}

/// `known` of a filter's rows, if there are so many.
fn with_rows(known: &Statistics, rows: f64, input: &Statistics) -> Statistics {
    let all = input.num_rows.get_value().map_or(rows, |all| *all as f64);
    let share = if all > 0.0 { (rows / all).min(1.0) } else { 0.0 };
    // As PostgreSQL does: a row, if there are any to choose from.
    let rows = rows.round().max(all.min(1.0)) as usize;
    let scaled = |size: &Precision<usize>| match size.get_value() {
        Some(size) => Precision::Inexact((*size as f64 * share).ceil() as usize),
        None => Precision::Absent,
    };
    let mut known = known.clone().to_inexact();
    known.num_rows = Precision::Inexact(rows);
    known.total_byte_size = scaled(&input.total_byte_size);
    for (column, before) in known.column_statistics.iter_mut().zip(&input.column_statistics) {
        let capped = |count: &Precision<usize>| count.min(&Precision::Inexact(rows));
        column.byte_size = scaled(&before.byte_size);
        column.distinct_count = capped(&column.distinct_count);
        column.null_count = capped(&column.null_count);
    }
    known
}
