//! The value of a subquery in an expression, as one more column of the outer rows.
//!
//! ```text
//!   (Q)              first_value(q), count(*) over Q     count > 1: 21000
//!   EXISTS (Q)       count(*) > 0
//!   ARRAY(Q)         array_agg(q ORDER BY Q's order), {} for no rows
//!   x op ANY (Q)     true if bool_or(x op q), else NULL if bool_or((x op q) IS NULL), else false
//!   x op ALL (Q)     the same of the opposite operator, negated
//!   x IN (Q)         as = ANY; of one column, by hashing: is there an equal q, any q at all, a NULL among them
//! ```
//!
//! All are aggregates without GROUP BY: [`attach`](super::attach) knows how to put those beside the outer rows.

use super::attach::{is_at_most_one_row, is_one_row, one_row, with_column};
use super::domain::{Domain, Names, unrepeatable};
use super::push::{push, refused};
use super::shape::{all, join, pairs, project, renamed};
use datafusion::common::{Column, ExprSchema, JoinType, Result, ScalarValue};
use datafusion::functions_aggregate::expr_fn::{array_agg, bool_or, count, first_value};
use datafusion::functions_window::expr_fn::row_number;
use datafusion::logical_expr::expr::{InSubquery, ScalarFunction, SetComparison, SetQuantifier};
use datafusion::logical_expr::type_coercion::binary::comparison_coercion;
use datafusion::logical_expr::{
    Aggregate, Expr, ExprFunctionExt, ExprSchemable, Filter, Limit, LogicalPlan, LogicalPlanBuilder, Operator,
    Projection, Sort, Window, binary_expr, cast, lit, when,
};
use std::sync::Arc;
use tessera_proto::functions::{ARRAY_OF_ROWS, ROW, single_row};

/// Whether an expression is a subquery's value.
pub(super) fn is_subquery(expr: &Expr) -> bool {
    matches!(
        expr,
        Expr::ScalarSubquery(_) | Expr::Exists(_) | Expr::InSubquery(_) | Expr::SetComparison(_)
    )
}

/// Whether an expression only stands for one that DataFusion has no name for.
pub(super) fn is_marker(expr: &Expr) -> bool {
    matches!(expr, Expr::ScalarFunction(f) if f.func.name() == ROW || f.func.name() == ARRAY_OF_ROWS)
}

/// The outer rows with the value of `expr`, a subquery without subqueries inside.
pub(super) fn attach(outer: LogicalPlan, expr: Expr, names: &mut Names) -> Result<(LogicalPlan, Expr)> {
    match expr {
        Expr::ScalarSubquery(s) => scalar(outer, Arc::unwrap_or_clone(s.subquery), names),
        Expr::Exists(exists) => {
            let (plan, found) = self::exists(outer, Arc::unwrap_or_clone(exists.subquery.subquery), names)?;
            Ok((plan, negated(found, exists.negated)))
        }
        Expr::InSubquery(InSubquery {
            expr,
            subquery,
            negated: not,
        }) => {
            let plan = Arc::unwrap_or_clone(subquery.subquery);
            let (plan, found) = self::is_in(outer, *expr, plan, names)?;
            Ok((plan, negated(found, not)))
        }
        Expr::SetComparison(SetComparison {
            expr,
            subquery,
            op,
            quantifier,
        }) => {
            let plan = Arc::unwrap_or_clone(subquery.subquery);
            match quantifier {
                SetQuantifier::Any if op == Operator::Eq => is_in(outer, *expr, plan, names),
                SetQuantifier::Any => any(outer, vec![*expr], plan, op, names),
                SetQuantifier::All if op == Operator::NotEq => {
                    let (plan, found) = is_in(outer, *expr, plan, names)?;
                    Ok((plan, negated(found, true)))
                }
                SetQuantifier::All => {
                    let opposite = op.negate().ok_or_else(|| refused("this operator with ALL"))?;
                    let (plan, found) = any(outer, vec![*expr], plan, opposite, names)?;
                    Ok((plan, negated(found, true)))
                }
            }
        }
        other => Ok((outer, other)),
    }
}

fn negated(expr: Expr, negated: bool) -> Expr {
    if negated { Expr::Not(Box::new(expr)) } else { expr }
}

fn aggregated(plan: LogicalPlan, aggregates: Vec<Expr>) -> Result<LogicalPlan> {
    let named = |(i, e): (usize, Expr)| e.alias(format!("__unnest_aggregate_{i}"));
    let aggregates = aggregates.into_iter().enumerate().map(named).collect();
    Ok(LogicalPlan::Aggregate(Aggregate::try_new(
        Arc::new(plan),
        vec![],
        aggregates,
    )?))
}

fn first_column(plan: &LogicalPlan) -> Expr {
    Expr::Column(Column::from(plan.schema().qualified_field(0)))
}

fn scalar(outer: LogicalPlan, plan: LogicalPlan, names: &mut Names) -> Result<(LogicalPlan, Expr)> {
    if is_one_row(&plan) {
        let (plan, columns) = one_row(outer, plan, names)?;
        return Ok((plan, Expr::Column(columns[0].clone())));
    }
    let (plan, columns) = one_row(outer, single(plan)?, names)?;
    Ok((plan, Expr::Column(columns[0].clone())))
}

/// The value of a scalar subquery as one row: NULL for no rows, 21000 for several.
pub(super) fn single(plan: LogicalPlan) -> Result<LogicalPlan> {
    let value = first_value(first_column(&plan), vec![]);
    let checked = !is_at_most_one_row(&plan);
    let mut aggregates = vec![value];
    if checked {
        aggregates.push(count(lit(1)));
    }
    let plan = aggregated(plan, aggregates)?;
    let columns = plan.schema().columns();
    let value = Expr::Column(columns[0].clone());
    match checked {
        true => project(
            vec![single_row(value, Expr::Column(columns[1].clone())).alias("__unnest_single")],
            plan,
        ),
        false => Ok(plan),
    }
}

fn exists(outer: LogicalPlan, plan: LogicalPlan, names: &mut Names) -> Result<(LogicalPlan, Expr)> {
    let plan = any_columns(plan);
    if is_one_row(&plan) {
        return Ok((outer, lit(true)));
    }
    let (plan, columns) = one_row(outer, aggregated(plan, vec![count(lit(1))])?, names)?;
    Ok((plan, Expr::Column(columns[0].clone()).gt(lit(0i64))))
}

/// What has rows when `plan` has.
pub(super) fn any_columns(plan: LogicalPlan) -> LogicalPlan {
    use datafusion::logical_expr::{Distinct, FetchType, SkipType};
    match plan {
        LogicalPlan::Projection(Projection { input, .. }) | LogicalPlan::Sort(Sort { input, fetch: None, .. }) => {
            any_columns(Arc::unwrap_or_clone(input))
        }
        LogicalPlan::Distinct(Distinct::All(input)) => any_columns(Arc::unwrap_or_clone(input)),
        LogicalPlan::Limit(limit)
            if matches!(limit.get_skip_type(), Ok(SkipType::Literal(0)))
                && matches!(limit.get_fetch_type(), Ok(FetchType::Literal(Some(1..) | None))) =>
        {
            any_columns(Arc::unwrap_or_clone(limit.input))
        }
        other => other,
    }
}

/// `x op ANY`: of rows, all columns must compare so.
fn any(
    outer: LogicalPlan,
    xs: Vec<Expr>,
    plan: LogicalPlan,
    op: Operator,
    names: &mut Names,
) -> Result<(LogicalPlan, Expr)> {
    let mut outer = outer;
    let mut holds = None;
    for (i, x) in xs.into_iter().enumerate() {
        let (with, column) = with_column(outer, x, names)?;
        outer = with;
        let field = outer.schema().field_from_column(&column)?.clone();
        let x = Expr::OuterReferenceColumn(field, column);
        let y = Expr::Column(Column::from(plan.schema().qualified_field(i)));
        let compared = binary_expr(x, op, y);
        holds = Some(match holds {
            Some(before) => Expr::and(before, compared),
            None => compared,
        });
    }
    let holds = holds.ok_or_else(|| refused("a row without columns"))?;
    let unknown = bool_or(holds.clone().is_null());
    let plan = aggregated(plan, vec![bool_or(holds), unknown])?;
    let (plan, columns) = one_row(outer, plan, names)?;
    let column = |i: usize| Expr::Column(columns[i].clone());
    let value = when(column(0).is_true(), lit(true))
        .when(column(1).is_true(), lit(ScalarValue::Boolean(None)))
        .otherwise(lit(false))?;
    Ok((plan, value))
}

/// The columns of a row that IN compares, and those of the subquery.
pub(super) fn rows(expr: Expr, plan: LogicalPlan) -> Result<(Vec<Expr>, LogicalPlan)> {
    let Expr::ScalarFunction(ScalarFunction { func, args }) = &expr else {
        return Ok((vec![expr], plan));
    };
    if func.name() != ROW {
        return Ok((vec![expr], plan));
    }
    if let LogicalPlan::Projection(projection) = &plan
        && let [only] = projection.expr.as_slice()
        && let Expr::ScalarFunction(inner) = only.clone().unalias()
        && inner.func.name() == ROW
        && inner.args.len() == args.len()
    {
        return Ok((args.clone(), project(inner.args, projection.input.as_ref().clone())?));
    }
    Err(refused("rows of this form"))
}

fn is_in(outer: LogicalPlan, x: Expr, plan: LogicalPlan, names: &mut Names) -> Result<(LogicalPlan, Expr)> {
    let (mut xs, plan) = rows(x, plan)?;
    if xs.len() > 1 || unrepeatable(&plan)?.is_some() {
        return any(outer, xs, plan, Operator::Eq, names);
    }
    let x = xs.remove(0);
    let (outer, x) = with_column(outer, x, names)?;
    let y = first_column(&plan);
    // Equal after the cast to a common type is equal: one row for all such.
    let types = (
        outer.schema().field_from_column(&x)?.data_type().clone(),
        y.get_type(plan.schema())?,
    );
    let y = match comparison_coercion(&types.0, &types.1) {
        Some(common) if common != types.1 => cast(y, common),
        _ => y,
    };
    let plan = project(vec![y.alias("__unnest_y")], plan)?;
    let counts = aggregated(plan.clone(), vec![count(lit(1)), count(first_column(&plan))])?;
    let (outer, counts) = one_row(outer, counts, names)?;
    let known = first_column(&plan).is_not_null();
    let plan = LogicalPlan::Filter(Filter::try_new(known, Arc::new(plan))?);
    let domain = Domain::new(&outer, &plan)?;
    let (plan, d) = match domain.refs.is_empty() {
        true => (plan, vec![]),
        false => push(plan, &domain, names)?,
    };
    let y = first_column(&plan);
    let exprs: Vec<Expr> = [y].into_iter().chain(d.into_iter().map(Expr::Column)).collect();
    let plan = LogicalPlanBuilder::from(project(exprs, plan)?).distinct()?.build()?;
    let (plan, columns) = renamed(plan, names)?;
    let (plan, mark) = with_column(plan, lit(true), names)?;
    let mut exprs = all(outer.schema());
    let left: Vec<Column> = [x.clone()].into_iter().chain(domain.refs.clone()).collect();
    let joined = join(
        outer,
        plan,
        pairs(&left, &columns),
        None,
        JoinType::Left,
        domain.is_nullable(),
    )?;
    exprs.push(Expr::Column(mark.clone()));
    let plan = project(exprs, joined)?;
    let column = |c: &Column| Expr::Column(c.clone());
    let value = when(column(&mark).is_true(), lit(true))
        .when(column(&counts[0]).eq(lit(0i64)), lit(false))
        .when(
            column(&x).is_null().or(column(&counts[1]).lt(column(&counts[0]))),
            lit(ScalarValue::Boolean(None)),
        )
        .otherwise(lit(false))?;
    Ok((plan, value))
}

/// The subquery of `ARRAY(Q)`, where `expr` is one.
pub(super) fn array_subquery(expr: &Expr) -> Option<&LogicalPlan> {
    match expr {
        Expr::ScalarFunction(f) if f.func.name() == ARRAY_OF_ROWS => match f.args.as_slice() {
            [Expr::ScalarSubquery(s)] => Some(&s.subquery),
            _ => None,
        },
        _ => None,
    }
}

/// `ARRAY(Q)`.
pub(super) fn array(outer: LogicalPlan, plan: LogicalPlan, names: &mut Names) -> Result<(LogicalPlan, Expr)> {
    let (plan, number) = numbered(plan, names)?;
    let value = first_column(&plan);
    let data_type = value.get_type(plan.schema())?;
    let value = match number {
        Some(number) => array_agg(value)
            .order_by(vec![Expr::Column(number).sort(true, false)])
            .build()?,
        None => array_agg(value),
    };
    let (plan, columns) = one_row(outer, aggregated(plan, vec![value])?, names)?;
    let empty = ScalarValue::List(ScalarValue::new_list_nullable(&[], &data_type));
    let column = Expr::Column(columns[0].clone());
    Ok((plan, when(column.clone().is_null(), lit(empty)).otherwise(column)?))
}

/// `plan` with a column, its last, that numbers its rows in the order that it gives them, if it does.
fn numbered(plan: LogicalPlan, names: &mut Names) -> Result<(LogicalPlan, Option<Column>)> {
    match plan {
        LogicalPlan::Projection(p) => {
            let (input, number) = numbered(Arc::unwrap_or_clone(p.input), names)?;
            let exprs = p.expr.into_iter().chain(number.clone().map(Expr::Column)).collect();
            Ok((project(exprs, input)?, number))
        }
        LogicalPlan::Limit(limit) => {
            let (input, number) = numbered(Arc::unwrap_or_clone(limit.input), names)?;
            let mut input = LogicalPlanBuilder::from(input);
            if let Some(number) = &number {
                input = input.sort(vec![Expr::Column(number.clone()).sort(true, false)])?;
            }
            let input = Arc::new(input.build()?);
            let (skip, fetch) = (limit.skip, limit.fetch);
            Ok((LogicalPlan::Limit(Limit { skip, fetch, input }), number))
        }
        LogicalPlan::Sort(Sort { expr, input, .. }) => {
            let number = row_number().order_by(expr).build()?;
            let mut exprs = all(input.schema());
            let plan = LogicalPlan::Window(Window::try_new(vec![number], input)?);
            let name = names.fresh();
            let last = plan.schema().fields().len() - 1;
            exprs.push(Expr::Column(Column::from(plan.schema().qualified_field(last))).alias(&name.name));
            Ok((project(exprs, plan)?, Some(name)))
        }
        other => Ok((other, None)),
    }
}
