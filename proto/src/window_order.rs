//! On a worker: windows whose input can no longer be shown to be sorted sort it themselves.
//!
//! ```text
//!   router:   Window PARTITION BY u.x          worker:   Window PARTITION BY u.x
//!               Sort t.a                                   Sort u.x               <- inserted here
//!                 Join t.a = u.x                             rows from the stage below, of which only columns are known
//! ```
//!
//! The planner leaves a column out of a sort when it is constant or equal to another one. What proves that may lie in
//! the stage below, and facts about columns do not travel: a window then refuses to run, or asserts. Only windows look at
//! their input's order again when they run; other operators were told by the plan.

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::error::Result;
use datafusion::physical_expr::LexOrdering;
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
pub fn ensure(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    Ok(plan.transform_up(sorted)?.data)
}

fn sorted(node: Arc<dyn ExecutionPlan>) -> Result<Transformed<Arc<dyn ExecutionPlan>>> {
    let is_window = node.is::<BoundedWindowAggExec>() || node.is::<WindowAggExec>();
    let requirement = node.required_input_ordering().into_iter().next().flatten();
    let input = node.children().first().map(|input| (*input).clone());
    let (true, Some(requirement), Some(input)) = (is_window, requirement, input) else {
        return Ok(Transformed::no(node));
    };
    let requirement = requirement.into_single();
    let properties = input.equivalence_properties();
    if properties.ordering_satisfy_requirement(requirement.clone())? {
        return Ok(Transformed::no(node));
    }
    // A sort that was right on the router is a part of this one.
    let below = match input.downcast_ref::<SortExec>() {
        Some(sort) if sort.fetch().is_none() => sort.input().clone(),
        _ => input,
    };
    let sort = SortExec::new(LexOrdering::from(requirement), below).with_preserve_partitioning(true);
    let options = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
    node.replace_children(vec![Arc::new(sort)], options)
        .map(Transformed::yes)
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
        let plan = ensure(forgetful(sql).await).expect("rewritten");
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
