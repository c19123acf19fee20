//! The most common values of a column somewhere in a plan: those of the stored column that it comes from.
//!
//! ```text
//!   Filter: s.n > 4            s.status of the filter's input
//!     SubqueryAlias: s           -> orders.status as s.status
//!       TableScan: orders          -> column 2 of the stub: open 0.02, closed 0.95
//! ```
//!
//! Columns that only got another name, or a wider type, are followed through what keeps or drops whole rows. Rows dropped by
//! conditions on other columns leave shares as they were, as far as columns are independent; conditions on the column itself do
//! not, and are told. Not followed: aggregates, windows, set operations, the padded side of outer joins.

use crate::shard_local::key::key_column;
use datafusion::common::{DFSchema, JoinType};
use datafusion::datasource::source_as_provider;
use datafusion::logical_expr::{Expr, Join, LogicalPlan, TableScan};
use std::any::Any;
use tessera_proto::common_values::{CommonValues, TableCommonValues};
use tessera_proto::fragment::StubTable;

/// A stored column that has common values.
#[derive(Debug, Clone)]
pub struct Origin {
    table: TableCommonValues,
    at: usize,
    /// Some condition between the table and here is on this column.
    pub is_restricted: bool,
}

impl Origin {
    /// Its common values, in the type that it is stored with.
    pub fn common(&self) -> &CommonValues {
        &self.table[self.at]
    }
}

/// Where the value of `expr`, over the output of `plan`, is stored; `None` if it is not, or nothing is known there.
pub fn origin(expr: &Expr, plan: &LogicalPlan) -> Option<Origin> {
    let (mut plan, mut is_restricted) = (plan, false);
    let mut at = key_column(expr, plan.schema())?;
    // A loop, for plans may be deeper than a stack bears.
    loop {
        plan = match plan {
            LogicalPlan::TableScan(scan) => {
                let (table, at) = stored(scan, at)?;
                return Some(Origin {
                    table,
                    at,
                    is_restricted,
                });
            }
            LogicalPlan::Projection(projection) => {
                at = key_column(projection.expr.get(at)?, projection.input.schema())?;
                &projection.input
            }
            LogicalPlan::SubqueryAlias(alias) => &alias.input,
            LogicalPlan::Filter(filter) => {
                is_restricted |= is_in(at, &filter.predicate, filter.input.schema());
                &filter.input
            }
            LogicalPlan::Sort(sort) => &sort.input,
            LogicalPlan::Join(join) => {
                let side = side(join, &mut at)?;
                let keys = join.on.iter().flat_map(|(l, r)| [l, r]);
                is_restricted |= keys.chain(&join.filter).any(|expr| is_in(at, expr, side.schema()));
                side
            }
            LogicalPlan::Extension(extension) => super::input_of(extension)?,
            _ => return None,
        };
    }
}

/// Whether an expression has the column at a position of a schema.
fn is_in(at: usize, expr: &Expr, schema: &DFSchema) -> bool {
    let mut columns = expr.column_refs().into_iter();
    columns.any(|column| schema.maybe_index_of_column(column) == Some(at))
}

/// The side of a join that a column of its output is from, with its position there; not where the join pads that side.
fn side<'a>(join: &'a Join, at: &mut usize) -> Option<&'a LogicalPlan> {
    use JoinType::*;
    let lefts = join.left.schema().fields().len();
    match join.join_type {
        Inner | Left | LeftSemi | LeftAnti | LeftMark if *at < lefts => Some(&join.left),
        Inner | Right if *at >= lefts => {
            *at -= lefts;
            Some(&join.right)
        }
        RightSemi | RightAnti => Some(&join.right),
        _ => None,
    }
}

fn stored(scan: &TableScan, at: usize) -> Option<(TableCommonValues, usize)> {
    let at = match &scan.projection {
        Some(columns) => *columns.get(at)?,
        None => at,
    };
    let provider = source_as_provider(&scan.source).ok()?;
    let table = (provider.as_ref() as &dyn Any).downcast_ref::<StubTable>()?;
    let known = table.common.get(at).is_some_and(|common| !common.is_empty());
    known.then(|| (table.common.clone(), at))
}
