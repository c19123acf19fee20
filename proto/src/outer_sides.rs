//! Outer joins forget what was constant in the side whose rows they pad with NULLs.
//!
//! ```text
//!   Sort a.k, b.x                    Sort a.k, b.x           with a.k taken for constant: Sort b.x
//!     Join RIGHT                       Join RIGHT
//!       Filter a.k = 7          ->       OuterSideExec       a.k is 7 in its rows, 7 or NULL above the join
//!         a                                Filter a.k = 7
//!       b                                    a
//!                                        b
//! ```
//!
//! DataFusion's joins keep the constants of both sides, and expressions that are equal in rows of one (coalesce(x, 0) and x are
//! not when padded). Sorts above then leave columns out: wrong windows, wrong order, a TopK that ends too soon. Found by
//! seed 4725 of the random queries. Only sides that have such facts get the operator; it passes batches on untouched.

use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{JoinType, Result, Statistics, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::EquivalenceProperties;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::execution_plan::{CardinalityEffect, ChildrenPropertiesMode, ReplaceChildrenOptions};
use datafusion::physical_plan::filter_pushdown::{
    ChildPushdownResult, FilterDescription, FilterPushdownPhase, FilterPushdownPropagation,
};
use datafusion::physical_plan::joins::{HashJoinExec, NestedLoopJoinExec, SortMergeJoinExec, SymmetricHashJoinExec};
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::statistics::{ChildStats, StatisticsArgs};
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PhysicalExpr, PlanProperties};
use std::fmt;
use std::sync::Arc;

/// The physical rule. Put it after the one that chooses joins and before those that place sorts.
#[derive(Debug)]
pub struct ForgetInOuterSides;

impl PhysicalOptimizerRule for ForgetInOuterSides {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(plan.transform_up(wrap)?.data)
    }

    fn name(&self) -> &str {
        "forget_in_outer_sides"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

fn wrap(node: Arc<dyn ExecutionPlan>) -> Result<Transformed<Arc<dyn ExecutionPlan>>> {
    let (Some(join), [left, right]) = (join_type(node.as_ref()), &node.children()[..]) else {
        return Ok(Transformed::no(node));
    };
    let (pads_left, pads_right) = match join {
        JoinType::Left => (false, true),
        JoinType::Right => (true, false),
        JoinType::Full => (true, true),
        _ => return Ok(Transformed::no(node)),
    };
    let side = |side: &Arc<dyn ExecutionPlan>, padded: bool| -> Arc<dyn ExecutionPlan> {
        match padded && !side.is::<OuterSideExec>() && knows_too_much(side.as_ref()) {
            true => Arc::new(OuterSideExec::new(side.clone())),
            false => side.clone(),
        }
    };
    let sides = [side(left, pads_left), side(right, pads_right)];
    if Arc::ptr_eq(&sides[0], left) && Arc::ptr_eq(&sides[1], right) {
        return Ok(Transformed::no(node));
    }
    let options = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
    node.replace_children(sides.to_vec(), options).map(Transformed::yes)
}

fn join_type(node: &dyn ExecutionPlan) -> Option<JoinType> {
    let hash = node.downcast_ref::<HashJoinExec>().map(|join| *join.join_type());
    let nested = || node.downcast_ref::<NestedLoopJoinExec>().map(|join| *join.join_type());
    let merge = || {
        node.downcast_ref::<SortMergeJoinExec>()
            .map(SortMergeJoinExec::join_type)
    };
    let symmetric = || {
        node.downcast_ref::<SymmetricHashJoinExec>()
            .map(|join| *join.join_type())
    };
    hash.or_else(nested).or_else(merge).or_else(symmetric)
}

fn knows_too_much(side: &dyn ExecutionPlan) -> bool {
    let known = side.properties().equivalence_properties();
    let computed = known
        .eq_group()
        .iter()
        .any(|class| class.iter().any(|expr| !expr.is::<Column>()));
    computed || !known.constants().is_empty()
}

/// A padded side: the rows of its input, of which less is known.
#[derive(Debug, Clone)]
pub struct OuterSideExec {
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

impl OuterSideExec {
    /// Over `input`.
    pub fn new(input: Arc<dyn ExecutionPlan>) -> Self {
        let known = input.properties().equivalence_properties();
        let mut kept = EquivalenceProperties::new(input.schema());
        for class in known.eq_group().iter() {
            // Columns that are equal are so when all of them are NULL.
            let columns: Vec<_> = class.iter().filter(|expr| expr.is::<Column>()).collect();
            for pair in columns.windows(2) {
                // Refused only for an expression that the schema does not have.
                let _ = kept.add_equal_conditions(pair[0].clone(), pair[1].clone());
            }
        }
        kept.add_orderings(known.oeq_class().iter().cloned());
        let properties = input.properties().as_ref().clone().with_eq_properties(kept);
        Self {
            input,
            properties: Arc::new(properties),
        }
    }
}

impl DisplayAs for OuterSideExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("OuterSideExec")
    }
}

impl ExecutionPlan for OuterSideExec {
    fn name(&self) -> &str {
        "OuterSideExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        let [input] = &children[..] else {
            return internal_err!("OuterSideExec has one input");
        };
        Ok(Arc::new(Self::new(input.clone())))
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        self.input.execute(partition, context)
    }

    fn child_stats_requests(&self, partition: Option<usize>) -> Vec<ChildStats> {
        vec![ChildStats::At(partition)]
    }

    fn statistics_from_inputs(&self, inputs: &[Arc<Statistics>], _: &StatisticsArgs) -> Result<Arc<Statistics>> {
        let [input] = inputs else {
            return internal_err!("OuterSideExec has one input");
        };
        Ok(input.clone())
    }

    fn supports_limit_pushdown(&self) -> bool {
        true
    }

    fn cardinality_effect(&self) -> CardinalityEffect {
        CardinalityEffect::Equal
    }

    fn try_swapping_with_projection(&self, projection: &ProjectionExec) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let below = self.input.try_swapping_with_projection(projection)?;
        Ok(below.map(|input| Arc::new(Self::new(input)) as Arc<dyn ExecutionPlan>))
    }

    fn gather_filters_for_pushdown(
        &self,
        _: FilterPushdownPhase,
        parent_filters: Vec<Arc<dyn PhysicalExpr>>,
        _: &ConfigOptions,
    ) -> Result<FilterDescription> {
        FilterDescription::from_children(parent_filters, &self.children())
    }

    fn handle_child_pushdown_result(
        &self,
        _: FilterPushdownPhase,
        result: ChildPushdownResult,
        _: &ConfigOptions,
    ) -> Result<FilterPushdownPropagation<Arc<dyn ExecutionPlan>>> {
        Ok(FilterPushdownPropagation::if_all(result))
    }
}
