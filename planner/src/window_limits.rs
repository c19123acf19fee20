//! LIMIT stays above the windows whose rows it counts.
//!
//! ```text
//!   Sort by a, m  fetch 4               Limit 4
//!     Window max(a) OVER () AS m   ->     Sort by a, m
//!       X                                   Window max(a) OVER () AS m
//!                                             X
//! ```
//!
//! DataFusion's physical rules move a sort below a window that keeps its order, and the sort's own limit with it: the window
//! then sees only the rows that the limit leaves. Found by seed 3707 of the random queries.

use datafusion::common::Result;
use datafusion::common::tree_node::Transformed;
use datafusion::logical_expr::{Limit, LogicalPlan, Sort, lit};
use std::sync::Arc;

/// `plan` without sorts with a limit above windows.
///
/// # Errors
/// None is expected.
pub fn split(plan: LogicalPlan) -> Result<LogicalPlan> {
    let split = plan.transform_down_with_subqueries(|node| match node {
        LogicalPlan::Sort(Sort {
            expr,
            input,
            fetch: Some(fetch),
        }) if is_over_window(&input) => {
            let sort = LogicalPlan::Sort(Sort {
                expr,
                input,
                fetch: None,
            });
            Ok(Transformed::yes(LogicalPlan::Limit(Limit {
                skip: None,
                fetch: Some(Box::new(lit(fetch as i64))),
                input: Arc::new(sort),
            })))
        }
        other => Ok(Transformed::no(other)),
    })?;
    Ok(split.data)
}

/// Whether a sort here could come below a window.
fn is_over_window(plan: &LogicalPlan) -> bool {
    match plan {
        LogicalPlan::Window(_) => true,
        LogicalPlan::Projection(_) | LogicalPlan::Filter(_) | LogicalPlan::SubqueryAlias(_) => {
            plan.inputs().into_iter().any(is_over_window)
        }
        _ => false,
    }
}
