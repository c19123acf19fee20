//! Key filters within plans: their names found, and taken out again.
//!
//! ```text
//!   Filter: a > 1 AND __in_keys(k, 0, 0.1)          Filter: a > 1
//!     TableScan: t filters=[__in_keys(k, 0, 0.1)]     TableScan: t           numbers {0}, share 0.1
//! ```

use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::utils::{conjunction, split_conjunction};
use datafusion::logical_expr::{Expr, Filter, Join, LogicalPlan, TableScan};
use std::collections::BTreeMap;
use std::sync::Arc;
use tessera_proto::key_filter::placeholder;

/// Filters in a plan, by number, with the share of rows that each is believed to keep.
pub fn filters(plan: &LogicalPlan) -> BTreeMap<u32, f64> {
    let mut found = BTreeMap::new();
    // Never fails.
    let _ = plan.apply(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|e| {
                found.extend(placeholder(e).map(|(_, number, share)| (number, share)));
                Ok(TreeNodeRecursion::Continue)
            })
        })
    });
    found
}

/// The plan without key filters: it may give more rows.
///
/// # Errors
/// DataFusion's, from building the new plan; none is expected.
pub fn without(plan: LogicalPlan) -> Result<LogicalPlan> {
    let stripped = plan.transform_up(|node| {
        Ok(match node {
            LogicalPlan::Filter(filter) if is_named(&filter.predicate) => {
                Transformed::yes(match rest([&filter.predicate]) {
                    Some(predicate) => LogicalPlan::Filter(Filter::try_new(predicate, filter.input)?),
                    None => Arc::unwrap_or_clone(filter.input),
                })
            }
            LogicalPlan::TableScan(scan) if scan.filters.iter().any(is_named) => {
                let filters = scan.filters.iter().filter(|f| !is_named(f)).cloned().collect();
                Transformed::yes(LogicalPlan::TableScan(TableScan { filters, ..scan }))
            }
            LogicalPlan::Join(join) if join.filter.as_ref().is_some_and(is_named) => {
                let filter = rest(&join.filter);
                Transformed::yes(LogicalPlan::Join(Join { filter, ..join }))
            }
            node => Transformed::no(node),
        })
    })?;
    Ok(stripped.data)
}

fn is_named(expr: &Expr) -> bool {
    expr.exists(|e| Ok(placeholder(e).is_some())).unwrap_or(false)
}

fn rest<'a>(predicates: impl IntoIterator<Item = &'a Expr>) -> Option<Expr> {
    let all = predicates.into_iter().flat_map(split_conjunction);
    conjunction(all.filter(|e| !is_named(e)).cloned())
}
