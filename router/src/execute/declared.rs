//! Which declared type a result column has, where it comes straight from a table: varchar(10) and not just text.
//!
//! ```text
//!   SELECT name, upper(name) FROM t     varchar(10), None
//! ```

use super::prepare::stub;
use datafusion::common::Column;
use datafusion::logical_expr::{Expr, LogicalPlan};
use tessera_proto::sql_type::SqlType;

/// One entry per output column.
pub(crate) fn declared(plan: &LogicalPlan) -> Vec<Option<SqlType>> {
    (0..plan.schema().fields().len()).map(|i| of(plan, i)).collect()
}

fn of(plan: &LogicalPlan, index: usize) -> Option<SqlType> {
    match plan {
        LogicalPlan::TableScan(scan) => {
            let column = scan
                .projection
                .as_ref()
                .map_or(Some(index), |p| p.get(index).copied())?;
            stub(scan)?.def.columns.get(column).map(|c| c.sql_type)
        }
        LogicalPlan::Projection(projection) => of_expr(projection.expr.get(index)?, &projection.input),
        LogicalPlan::Aggregate(aggregate) => of_expr(aggregate.group_expr.get(index)?, &aggregate.input),
        LogicalPlan::SubqueryAlias(alias) => of(&alias.input, index),
        LogicalPlan::Filter(filter) => of(&filter.input, index),
        LogicalPlan::Sort(sort) => of(&sort.input, index),
        LogicalPlan::Limit(limit) => of(&limit.input, index),
        LogicalPlan::Distinct(datafusion::logical_expr::Distinct::All(input)) => of(input, index),
        LogicalPlan::Window(window) => {
            let inputs = window.input.schema().fields().len();
            (index < inputs).then(|| of(&window.input, index)).flatten()
        }
        LogicalPlan::Join(join) => {
            // Semi and anti joins show one side only; marks add a column of their own, which has no declared type.
            let left = join.left.schema().fields().len();
            let shown = plan.schema().fields().len();
            let column = Column::from(plan.schema().qualified_field(index));
            let side = if index < left && shown >= left {
                &join.left
            } else {
                &join.right
            };
            of(side, side.schema().maybe_index_of_column(&column)?)
        }
        // A union's branches may differ in declared type.
        _ => None,
    }
}

fn of_expr(expr: &Expr, input: &LogicalPlan) -> Option<SqlType> {
    match expr {
        Expr::Alias(alias) => of_expr(&alias.expr, input),
        Expr::Column(column) => of(input, input.schema().maybe_index_of_column(column)?),
        _ => None,
    }
}
