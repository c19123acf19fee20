//! Subqueries that DataFusion's own rules do not turn into joins.
//!
//! ```text
//!   optimise ──no subquery left──> as it is
//!      │ one left, or refused
//!      └──> rewrite (here) ──> optimise again            outer o, subquery Q, D = the distinct values of o that Q reads
//!
//!   o, LATERAL Q        o join push(Q over D)            domain.rs  D
//!   expression of Q     a column beside o's               push.rs, join.rs  Q over D
//!   WHERE EXISTS, IN    o semi join push(Q over D)        value.rs, attach.rs  where the result goes
//! ```
//!
//! After Neumann and Kemper, Unnesting Arbitrary Queries, BTW 2015: the inner subqueries first, since here an outer reference is
//! known by its name alone. What DataFusion does well keeps its plan, since it is asked first.
//!
//! Not here: subqueries in VALUES and LIMIT, and D from rows that may not come out the same twice (0A000).

mod attach;
mod domain;
mod join;
mod on;
mod push;
mod shape;
#[cfg(test)]
mod tests;
mod theirs;
mod value;
pub mod written;

use attach::matched;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, DFSchemaRef, JoinType, Result};
use datafusion::logical_expr::expr::{Exists, InSubquery};
use datafusion::logical_expr::utils::{conjunction, split_conjunction_owned};
use datafusion::logical_expr::{Aggregate, Expr, Filter, LogicalPlan, Projection, Sort, Subquery, Window};
use domain::{Names, outer_references};
use push::refused;
use shape::{named, project, restore};
use std::sync::Arc;
pub use theirs::is_theirs;
use value::{any_columns, array, array_subquery, attach as attach_value, is_subquery, rows, single};

/// Whether a plan has subqueries in expressions, or outer references: what cannot run.
pub fn is_nested(plan: &LogicalPlan) -> bool {
    let mut nested = false;
    let walked = plan.apply(|node| {
        nested |= matches!(node, LogicalPlan::Subquery(_));
        node.apply_expressions(|expr| {
            nested |= has_subquery(expr) || expr.contains_outer();
            Ok(TreeNodeRecursion::Continue)
        })
    });
    nested || walked.is_err()
}

fn subquery_of(expr: &Expr) -> Option<&Subquery> {
    match expr {
        Expr::ScalarSubquery(s) => Some(s),
        Expr::Exists(exists) => Some(&exists.subquery),
        Expr::InSubquery(i) => Some(&i.subquery),
        Expr::SetComparison(c) => Some(&c.subquery),
        _ => None,
    }
}

/// Scalar subqueries that read nothing of the outer rows and might have several rows: DataFusion's rule would join them all.
///
/// # Errors
/// None is expected.
pub fn guard(plan: LogicalPlan) -> Result<LogicalPlan> {
    let guarded = plan.transform_up_with_subqueries(|node| {
        node.map_expressions(|expr| {
            expr.transform_down(|e| match e {
                Expr::ScalarSubquery(s)
                    if s.outer_ref_columns.is_empty()
                        && !attach::is_at_most_one_row(&s.subquery)
                        && outer_references(&s.subquery)?.is_empty() =>
                {
                    let subquery = Arc::new(single(Arc::unwrap_or_clone(s.subquery))?);
                    Ok(Transformed::yes(Expr::ScalarSubquery(Subquery { subquery, ..s })))
                }
                other if array_subquery(&other).is_some() => {
                    Ok(Transformed::new(other, false, TreeNodeRecursion::Jump))
                }
                other => Ok(Transformed::no(other)),
            })
        })
    })?;
    Ok(guarded.data)
}

/// The same rows without subqueries.
///
/// # Errors
/// 0A000 for what has no join of this kind, 54001 for too many copies of outer sides.
pub fn rewrite(plan: LogicalPlan) -> Result<LogicalPlan> {
    let rewritten = Unnester::default().plan(plan)?;
    match outer_references(&rewritten)?.first() {
        None => Ok(rewritten),
        Some((_, column)) => {
            let message = format!(
                "subquery uses column \"{}\" of an outer query that has no such column there",
                column.flat_name()
            );
            Err(tessera_proto::Error::new("42803", message)
                .with_hint("a grouped query has its GROUP BY columns only")
                .into())
        }
    }
}

fn has_subquery(expr: &Expr) -> bool {
    expr.exists(|e| Ok(is_subquery(e))).unwrap_or(true)
}

#[derive(Default)]
struct Unnester {
    names: Names,
    /// Columns of the queries around the one at hand, the outermost first.
    scopes: Vec<DFSchemaRef>,
}

impl Unnester {
    fn plan(&mut self, plan: LogicalPlan) -> Result<LogicalPlan> {
        match plan {
            LogicalPlan::Subquery(s) => return self.plan(Arc::unwrap_or_clone(s.subquery)),
            LogicalPlan::Join(join) => return self.join(join),
            _ => {}
        }
        let plan = plan.map_children(|input| Ok(Transformed::yes(self.plan(input)?)))?.data;
        let mut nested = false;
        plan.apply_expressions(|e| {
            nested |= has_subquery(e);
            Ok(TreeNodeRecursion::Continue)
        })?;
        if !nested {
            return Ok(plan);
        }
        match plan {
            LogicalPlan::Filter(filter) => self.filter(filter),
            LogicalPlan::Projection(projection) => self.projection(projection),
            LogicalPlan::Sort(sort) => self.sort(sort),
            LogicalPlan::Aggregate(aggregate) => self.aggregate(aggregate),
            LogicalPlan::Window(window) => self.window(window),
            // The physical planner says that there is none in this place.
            other => Ok(other),
        }
    }

    /// What is inside a subquery beside rows of `schema`.
    fn nested(&mut self, schema: DFSchemaRef, plan: LogicalPlan) -> Result<LogicalPlan> {
        self.scopes.push(schema);
        let plan = self.plan(plan);
        self.scopes.pop();
        plan
    }

    /// Subqueries in `expr` become columns of `input`.
    fn extract(&mut self, input: LogicalPlan, expr: Expr) -> Result<(LogicalPlan, Expr)> {
        let mut input = Some(input);
        let extracted = expr.transform_down(|e| {
            let Some(outer) = input.take() else {
                return Ok(Transformed::no(e));
            };
            let (plan, value) = if let Some(plan) = array_subquery(&e) {
                let plan = self.nested(outer.schema().clone(), plan.clone())?;
                array(outer, plan, &mut self.names)?
            } else if is_subquery(&e) {
                let (outer, e) = self.inner(outer, e)?;
                attach_value(outer, e, &mut self.names)?
            } else {
                input = Some(outer);
                return Ok(Transformed::no(e));
            };
            input = Some(plan);
            Ok(Transformed::new(value, true, TreeNodeRecursion::Jump))
        })?;
        let input = input.ok_or_else(|| refused("this expression"))?;
        Ok((input, extracted.data))
    }

    /// Subqueries inside a subquery, and in what is compared with it.
    fn inner(&mut self, outer: LogicalPlan, expr: Expr) -> Result<(LogicalPlan, Expr)> {
        let schema = outer.schema().clone();
        let mut unnest = |mut s: Subquery| -> Result<Subquery> {
            s.subquery = Arc::new(self.nested(schema.clone(), Arc::unwrap_or_clone(s.subquery))?);
            Ok(s)
        };
        Ok(match expr {
            Expr::ScalarSubquery(s) => (outer, Expr::ScalarSubquery(unnest(s)?)),
            Expr::Exists(Exists { subquery, negated }) => {
                let subquery = unnest(subquery)?;
                (outer, Expr::Exists(Exists { subquery, negated }))
            }
            Expr::InSubquery(mut i) => {
                i.subquery = unnest(i.subquery)?;
                let (outer, expr) = self.extract(outer, *i.expr)?;
                i.expr = Box::new(expr);
                (outer, Expr::InSubquery(i))
            }
            Expr::SetComparison(mut c) => {
                c.subquery = unnest(c.subquery)?;
                let (outer, expr) = self.extract(outer, *c.expr)?;
                c.expr = Box::new(expr);
                (outer, Expr::SetComparison(c))
            }
            other => (outer, other),
        })
    }

    fn filter(&mut self, filter: Filter) -> Result<LogicalPlan> {
        let schema = filter.input.schema().clone();
        let conjuncts = split_conjunction_owned(filter.predicate);
        let (nested, plain): (Vec<_>, Vec<_>) = conjuncts.into_iter().partition(has_subquery);
        let mut input = Arc::unwrap_or_clone(filter.input);
        // Fewer outer rows, and none that the others would keep from an error.
        if let Some(predicate) = conjunction(plain) {
            input = LogicalPlan::Filter(Filter::try_new(predicate, Arc::new(input))?);
        }
        for conjunct in nested {
            input = self.conjunct(input, conjunct)?;
        }
        restore(input, &schema, 0..schema.fields().len(), &[])
    }

    fn conjunct(&mut self, input: LogicalPlan, conjunct: Expr) -> Result<LogicalPlan> {
        let conjunct = match conjunct {
            Expr::Not(inner) => match *inner {
                Expr::Exists(Exists { subquery, negated }) => Expr::Exists(Exists {
                    subquery,
                    negated: !negated,
                }),
                Expr::InSubquery(i) => Expr::InSubquery(InSubquery {
                    negated: !i.negated,
                    ..i
                }),
                other => Expr::Not(Box::new(other)),
            },
            other => other,
        };
        let joined = match &conjunct {
            Expr::Exists(Exists { subquery, negated }) => {
                let plan = any_columns(self.nested(input.schema().clone(), subquery.subquery.as_ref().clone())?);
                let join_type = if *negated {
                    JoinType::LeftAnti
                } else {
                    JoinType::LeftSemi
                };
                matched(input.clone(), plan, vec![], join_type, &mut self.names)?
            }
            Expr::InSubquery(InSubquery {
                expr,
                subquery,
                negated: false,
            }) if !has_subquery(expr) => {
                let plan = self.nested(input.schema().clone(), subquery.subquery.as_ref().clone())?;
                let (xs, plan) = rows(expr.as_ref().clone(), plan)?;
                let equal = xs.into_iter().enumerate().map(|(i, x)| (x, i)).collect();
                matched(input.clone(), plan, equal, JoinType::LeftSemi, &mut self.names)?
            }
            _ => None,
        };
        if let Some(joined) = joined {
            return Ok(joined);
        }
        let (input, predicate) = self.extract(input, conjunct)?;
        Ok(LogicalPlan::Filter(Filter::try_new(predicate, Arc::new(input))?))
    }

    fn projection(&mut self, projection: Projection) -> Result<LogicalPlan> {
        let mut input = Arc::unwrap_or_clone(projection.input);
        let mut exprs = vec![];
        for (i, expr) in projection.expr.into_iter().enumerate() {
            let (extended, expr) = self.extract(input, expr)?;
            input = extended;
            exprs.push(named(expr, &projection.schema, i));
        }
        project(exprs, input)
    }

    /// ORDER BY may name columns that the SELECT list leaves out: then the values are computed below it.
    fn sort(&mut self, sort: Sort) -> Result<LogicalPlan> {
        let schema = sort.input.schema().clone();
        let mut input = Arc::unwrap_or_clone(sort.input);
        let mut keys = vec![];
        for mut key in sort.expr {
            let is_below = !reads_only(&key.expr, input.schema())?;
            if let (true, LogicalPlan::Projection(list)) = (is_below, &input) {
                let (below, value) = self.extract(list.input.as_ref().clone(), key.expr)?;
                let name = self.names.fresh();
                let mut exprs = list.expr.clone();
                exprs.push(value.alias(&name.name));
                input = project(exprs, below)?;
                key.expr = Expr::Column(name);
            } else {
                (input, key.expr) = self.extract(input, key.expr)?;
            }
            keys.push(key);
        }
        let sorted = LogicalPlan::Sort(Sort {
            expr: keys,
            input: Arc::new(input),
            fetch: sort.fetch,
        });
        restore(sorted, &schema, 0..schema.fields().len(), &[])
    }

    fn aggregate(&mut self, aggregate: Aggregate) -> Result<LogicalPlan> {
        let mut input = Arc::unwrap_or_clone(aggregate.input);
        let (mut groups, mut aggregates) = (vec![], vec![]);
        for expr in aggregate.group_expr {
            let (extended, expr) = self.extract(input, expr)?;
            input = extended;
            groups.push(expr);
        }
        for expr in aggregate.aggr_expr {
            let (extended, expr) = self.extract(input, expr)?;
            input = extended;
            aggregates.push(expr);
        }
        let plan = LogicalPlan::Aggregate(Aggregate::try_new(Arc::new(input), groups, aggregates)?);
        restore(plan, &aggregate.schema, 0..aggregate.schema.fields().len(), &[])
    }

    fn window(&mut self, window: Window) -> Result<LogicalPlan> {
        let width = window.input.schema().fields().len();
        let mut input = Arc::unwrap_or_clone(window.input);
        let mut exprs = vec![];
        for expr in window.window_expr {
            let (extended, expr) = self.extract(input, expr)?;
            input = extended;
            exprs.push(expr);
        }
        let first = input.schema().fields().len();
        let windows = first..first + exprs.len();
        let plan = LogicalPlan::Window(Window::try_new(exprs, Arc::new(input))?);
        restore(plan, &window.schema, (0..width).chain(windows), &[])
    }
}

/// Whether a subquery's expression can be computed beside rows of `schema`.
fn reads_only(expr: &Expr, schema: &DFSchema) -> Result<bool> {
    let mut columns: Vec<Column> = expr.column_refs().into_iter().cloned().collect();
    expr.apply(|e| {
        let Some(subquery) = subquery_of(e) else {
            return Ok(TreeNodeRecursion::Continue);
        };
        columns.extend(subquery.outer_ref_columns.iter().filter_map(|e| match e {
            Expr::OuterReferenceColumn(_, column) => Some(column.clone()),
            _ => None,
        }));
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(columns.iter().all(|c| schema.maybe_index_of_column(c).is_some()))
}
