//! Sorts where an operator's input cannot, or can no longer, be shown to be in the order it needs.
//!
//! ```text
//!   as planned:   Window PARTITION BY u.x      in stages:   Window PARTITION BY u.x
//!                   Sort t.a                                  Sort u.x               <- inserted here
//!                     Join t.a = u.x                            rows from the stage below, of which only columns are known
//! ```
//!
//! The planner leaves a column out of a sort when it is constant or equal to another one. What proves that may lie in
//! the stage below, and facts about columns do not travel: a window then refuses to run, or asserts. Only windows look at
//! their input's order again when they run; other operators were told by the plan. So [`ensure_windows`] is for plans that
//! were cut in stages, on the router and on workers.
//!
//! [`EnsureOrder`] is for plans that DataFusion's own rules made: they move sorts below joins and forget there what was
//! constant above, and their last check refuses the plan ("does not satisfy order requirements").

use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::error::Result;
use datafusion::physical_expr::{LexOrdering, OrderingRequirements};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::windows::{BoundedWindowAggExec, WindowAggExec};
use datafusion::physical_plan::{
    ChildrenPropertiesMode, ExecutionPlan, ExecutionPlanProperties, ReplaceChildrenOptions,
};
use std::sync::Arc;

/// `plan` with a sort below each window whose required order its input does not show.
///
/// # Errors
/// DataFusion's, from building an operator anew; none is expected.
pub fn ensure_windows(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let is_window = |node: &dyn ExecutionPlan| node.is::<BoundedWindowAggExec>() || node.is::<WindowAggExec>();
    ensure(plan, is_window)
}

/// The physical rule: put it right before DataFusion's `SanityCheckPlan`.
#[derive(Debug)]
pub struct EnsureOrder;

impl PhysicalOptimizerRule for EnsureOrder {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        ensure(plan, |_| true)
    }

    fn name(&self) -> &str {
        "ensure_order"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

fn ensure(
    plan: Arc<dyn ExecutionPlan>,
    is_meant: impl Fn(&dyn ExecutionPlan) -> bool,
) -> Result<Arc<dyn ExecutionPlan>> {
    let changed = plan.transform_up(|node| match is_meant(node.as_ref()) {
        true => sorted(node),
        false => Ok(Transformed::no(node)),
    })?;
    Ok(changed.data)
}

fn sorted(node: Arc<dyn ExecutionPlan>) -> Result<Transformed<Arc<dyn ExecutionPlan>>> {
    let requirements = node.required_input_ordering();
    if requirements.iter().all(Option::is_none) {
        return Ok(Transformed::no(node));
    }
    let mut changed = false;
    let mut inputs = vec![];
    for (input, requirement) in node.children().into_iter().zip(requirements) {
        let requirement = requirement.map(OrderingRequirements::into_single);
        let missing = match requirement {
            Some(r) if !input.equivalence_properties().ordering_satisfy_requirement(r.clone())? => Some(r),
            _ => None,
        };
        changed |= missing.is_some();
        inputs.push(match missing {
            Some(requirement) => sort(input, LexOrdering::from(requirement)),
            None => input.clone(),
        });
    }
    if !changed {
        return Ok(Transformed::no(node));
    }
    let options = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
    node.replace_children(inputs, options).map(Transformed::yes)
}

fn sort(input: &Arc<dyn ExecutionPlan>, order: LexOrdering) -> Arc<dyn ExecutionPlan> {
    // A sort that was right where it was planned is a part of this one.
    let below = match input.downcast_ref::<SortExec>() {
        Some(sort) if sort.fetch().is_none() => sort.input().clone(),
        _ => input.clone(),
    };
    Arc::new(SortExec::new(order, below).with_preserve_partitioning(true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::physical_plan::displayable;
    use datafusion::physical_plan::empty::EmptyExec;
    use datafusion::prelude::{SessionConfig, SessionContext};

    /// The plan of a query, below its window rows of which nothing is known.
    async fn forgetful(sql: &str) -> Arc<dyn ExecutionPlan> {
        let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(1));
        let run = async |sql: &str| context.sql(sql).await.expect("planned");
        for table in ["CREATE TABLE t (a INT, b INT)", "CREATE TABLE u (x INT, y INT)"] {
            run(table).await.collect().await.expect("created");
        }
        let plan = run(sql).await.create_physical_plan().await.expect("planned");
        let forget = |node: Arc<dyn ExecutionPlan>| match node.name().ends_with("JoinExec") {
            true => Ok(Transformed::yes(
                Arc::new(EmptyExec::new(node.schema())) as Arc<dyn ExecutionPlan>
            )),
            false => Ok(Transformed::no(node)),
        };
        // As a decoder builds it: from the leaves up, each from what its children say.
        plan.transform_down(forget).expect("rebuilt").data
    }

    async fn check(sql: &str, expected: &str) {
        let plan = ensure_windows(forgetful(sql).await).expect("rewritten");
        let text = displayable(plan.as_ref()).indent(false).to_string();
        let sorts: Vec<_> = text
            .lines()
            .filter(|line| line.contains("SortExec"))
            .map(str::trim)
            .collect();
        assert_eq!(sorts, [expected], "{text}");
    }

    #[tokio::test]
    async fn a_partition_column_that_was_equal_to_another_is_sorted_by() {
        check(
            "SELECT rank() OVER (PARTITION BY x ORDER BY a, b) FROM t JOIN u ON a = x",
            "SortExec: expr=[x@2 ASC NULLS LAST, a@0 ASC NULLS LAST, b@1 ASC NULLS LAST], preserve_partitioning=[true]",
        )
        .await;
    }

    #[tokio::test]
    async fn a_sort_that_is_enough_stays() {
        check(
            "SELECT rank() OVER (PARTITION BY b ORDER BY y) FROM t JOIN u ON a = x",
            "SortExec: expr=[b@0 ASC NULLS LAST, y@1 ASC NULLS LAST], preserve_partitioning=[false]",
        )
        .await;
    }
}
