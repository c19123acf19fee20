//! Which declared type a result column has, where it comes straight from a table: varchar(10) and not just text.
//!
//! ```text
//!   SELECT name, upper(name), id::char(3) FROM t     varchar(10), None, char(3)
//! ```

use super::prepare::definition;
use datafusion::common::Column;
use datafusion::logical_expr::{Expr, LogicalPlan};
use sqlparser::ast::{Expr as AstExpr, Query, SelectItem, SetExpr};
use tessera_planner::types::Length;
use tessera_proto::sql_type::SqlType;

/// One entry per output column.
pub(crate) fn declared(query: &Query, plan: &LogicalPlan) -> Vec<Option<SqlType>> {
    let columns = plan.schema().fields().len();
    let casts = casts(query);
    // An asterisk stands for several columns: then nothing is known of positions.
    let cast = |i: usize| casts.get(i).copied().flatten().filter(|_| casts.len() == columns);
    (0..columns).map(|i| cast(i).or_else(|| of(plan, i))).collect()
}

/// Types with a length that the items of SELECT are cast to.
fn casts(query: &Query) -> Vec<Option<SqlType>> {
    let SetExpr::Select(select) = query.body.as_ref() else {
        return vec![];
    };
    let item = |item: &SelectItem| {
        let (SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. }) = item else {
            return None;
        };
        let AstExpr::Cast { data_type, .. } = expr else {
            return None;
        };
        Some(match Length::of(data_type)? {
            Length::Varchar(n) => SqlType::Varchar(Some(n)),
            Length::Char(n) => SqlType::Char(n),
        })
    };
    select.projection.iter().map(item).collect()
}

fn of(plan: &LogicalPlan, index: usize) -> Option<SqlType> {
    match plan {
        LogicalPlan::TableScan(scan) => {
            let column = scan
                .projection
                .as_ref()
                .map_or(Some(index), |p| p.get(index).copied())?;
            definition(scan)?.columns.get(column).map(|c| c.sql_type)
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
