//! A join inside a subquery, for all values of a domain.
//!
//! ```text
//!   A x B, only B reads the domain      A x push(B): every row of B knows its value
//!   A left join B                       push(A), as its rows stay without a match; push(B) if B reads, equal in d
//!   A full join B                       both, and the value is that of either
//! ```

use super::domain::{Domain, Names, depends, reads, replace};
use super::push::{Pushed, push as push_side, refused};
use super::shape::{join as joined, named, pairs, project};
use datafusion::common::{Column, JoinType, NullEquality, Result};
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, Join, LogicalPlan, Operator, binary_expr, when};
use std::sync::Arc;

/// See the module's text.
pub(super) fn push(join: Join, domain: &Domain, names: &mut Names) -> Result<Pushed> {
    use JoinType::*;
    if join.null_aware {
        return Err(refused("a NOT IN that is a join already"));
    }
    let (left_reads, right_reads) = (depends(&join.left, domain)?, depends(&join.right, domain)?);
    let (with_left, with_right) = match join.join_type {
        Inner => (left_reads || !right_reads, right_reads),
        Left | LeftSemi | LeftAnti | LeftMark => (true, right_reads),
        Right | RightSemi | RightAnti | RightMark => (left_reads, true),
        Full => (true, true),
    };
    let null_safe = join.null_equality == NullEquality::NullEqualsNull;
    let mut side = |plan: &LogicalPlan, with: bool| match with {
        true => push_side(plan.clone(), domain, names).map(|(plan, d)| (plan, Some(d))),
        false => Ok((plan.clone(), None)),
    };
    let (left, left_d) = side(&join.left, with_left)?;
    let (right, right_d) = side(&join.right, with_right)?;
    let keeps_left = !matches!(join.join_type, Right | RightSemi | RightAnti | RightMark);
    let d = match keeps_left {
        true => left_d.clone().or(right_d.clone()),
        false => right_d.clone().or(left_d.clone()),
    };
    let Some(d) = d else {
        return Err(refused("this join"));
    };
    let mut on = vec![];
    let mut filters = vec![];
    for (l, r) in join.on {
        // A key may only read its own side.
        if reads(&l, domain) || reads(&r, domain) {
            let op = match null_safe {
                true => Operator::IsNotDistinctFrom,
                false => Operator::Eq,
            };
            filters.push(binary_expr(replace(l, domain, &d)?, op, replace(r, domain, &d)?));
        } else {
            on.push((l, r));
        }
    }
    if let Some(filter) = join.filter {
        filters.push(replace(filter, domain, &d)?);
    }
    let mut null_safe = null_safe;
    if let (Some(left_d), Some(right_d)) = (&left_d, &right_d) {
        let equal = pairs(left_d, right_d);
        if on.is_empty() || null_safe || !domain.is_nullable() {
            null_safe |= on.is_empty() && domain.is_nullable();
            on.extend(equal);
        } else {
            let same = |(l, r)| binary_expr(l, Operator::IsNotDistinctFrom, r);
            filters.extend(equal.into_iter().map(same));
        }
    }
    let widths = (join.left.schema().fields().len(), left.schema().fields().len());
    let plan = joined(left, right, on, conjunction(filters), join.join_type, null_safe)?;
    output(plan, &join.schema, join.join_type, widths, (d, right_d), names)
}

/// The join's own columns, then the domain's.
fn output(
    plan: LogicalPlan,
    schema: &Arc<datafusion::common::DFSchema>,
    join_type: JoinType,
    (left, pushed): (usize, usize),
    (d, right_d): (Vec<Column>, Option<Vec<Column>>),
    names: &mut Names,
) -> Result<Pushed> {
    use JoinType::*;
    let width = schema.fields().len();
    let own: Vec<usize> = match join_type {
        Inner | Left | Right | Full => (0..left).chain(pushed..pushed + width - left).collect(),
        // The mark comes last, after the domain's columns.
        LeftMark => (0..width - 1).chain([plan.schema().fields().len() - 1]).collect(),
        RightMark => return Err(refused("a join of this kind")),
        LeftSemi | LeftAnti | RightSemi | RightAnti => (0..width).collect(),
    };
    let from = plan.schema().clone();
    let mut exprs: Vec<Expr> = own
        .into_iter()
        .enumerate()
        .map(|(i, p)| named(Expr::Column(Column::from(from.qualified_field(p))), schema, i))
        .collect();
    if join_type != Full {
        exprs.extend(d.iter().cloned().map(Expr::Column));
        return Ok((project(exprs, plan)?, d));
    }
    let either = names.several(d.len());
    for ((left, right), name) in d.into_iter().zip(right_d.into_iter().flatten()).zip(&either) {
        let (left, right) = (Expr::Column(left), Expr::Column(right));
        exprs.push(when(left.clone().is_null(), right).otherwise(left)?.alias(&name.name));
    }
    Ok((project(exprs, plan)?, either))
}
