//! The outer values that a subquery is evaluated for, once each.
//!
//! ```text
//!   outer row o, subquery reads o.id, o.cust        D = SELECT DISTINCT id AS __unnest_1, cust AS __unnest_2 FROM outer
//! ```
//!
//! D is computed from the outer side a second time and joined back by value, so it may hold more values than the outer side has,
//! never fewer. Limits are left out for that reason; what could give other rows the second time is refused.

use crate::shard_local::expressions::is_order_independent;
use datafusion::arrow::datatypes::FieldRef;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, ExprSchema, Result};
use datafusion::logical_expr::expr::Alias;
use datafusion::logical_expr::{
    Distinct, Expr, Limit, LogicalPlan, LogicalPlanBuilder, Sort, SubqueryAlias, Volatility, WindowFrameUnits,
    WindowFunctionDefinition,
};
use std::sync::Arc;
use tessera_proto::Error;

/// Operators of all copies of outer sides in one statement: nested subqueries multiply them.
const COPIED_MAX: usize = 5_000;

/// Names for the columns that unnesting adds.
#[derive(Debug, Default)]
pub(super) struct Names {
    next: usize,
    copied: usize,
}

impl Names {
    /// A column that nothing else is called.
    pub(super) fn fresh(&mut self) -> Column {
        self.next += 1;
        Column::new_unqualified(format!("__unnest_{}", self.next))
    }

    pub(super) fn several(&mut self, count: usize) -> Vec<Column> {
        (0..count).map(|_| self.fresh()).collect()
    }
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Domain {
    /// Columns of the outer side that the subquery reads.
    pub(super) refs: Vec<Column>,
    /// Their fields, in the same order.
    pub(super) fields: Vec<FieldRef>,
    outer: LogicalPlan,
}

impl Domain {
    /// What `subquery` reads of `outer`; nothing, perhaps.
    pub(super) fn new(outer: &LogicalPlan, subquery: &LogicalPlan) -> Result<Self> {
        let (mut refs, mut fields) = (vec![], vec![]);
        for (field, column) in outer_references(subquery)? {
            if outer.schema().maybe_index_of_column(&column).is_some() && !refs.contains(&column) {
                refs.push(column);
                fields.push(field);
            }
        }
        let outer = outer.clone();
        Ok(Self { refs, fields, outer })
    }

    /// Position of an outer reference in the domain.
    pub(super) fn position(&self, column: &Column) -> Option<usize> {
        self.refs.iter().position(|c| c == column)
    }

    /// Whether some outer value can be NULL: it is equal to itself then.
    pub(super) fn is_nullable(&self) -> bool {
        let nullable = |c: &Column| {
            self.outer
                .schema()
                .field_from_column(c)
                .map_or(true, |f| f.is_nullable())
        };
        self.refs.iter().any(nullable)
    }

    /// One more copy of it: each value once.
    pub(super) fn copy(&self, names: &mut Names) -> Result<(LogicalPlan, Vec<Column>)> {
        let (source, refs) = source(self.outer.clone(), self.refs.clone());
        if let Some(what) = unrepeatable(&source)? {
            let message = "a correlated subquery is not supported over rows that may not come out the same twice";
            return Err(Error::unsupported(
                message,
                format!("the outer rows have {what}; store them with CREATE TABLE AS first"),
            )
            .into());
        }
        source.apply(|_| {
            names.copied += 1;
            Ok(TreeNodeRecursion::Continue)
        })?;
        if names.copied > COPIED_MAX {
            return Err(Error::new("54001", "subqueries are nested too deeply")
                .with_hint("write some of them as joins, or as tables of their own")
                .into());
        }
        let columns = names.several(refs.len());
        let exprs: Vec<Expr> = refs
            .into_iter()
            .zip(&columns)
            .map(|(column, fresh)| Expr::Column(column).alias(&fresh.name))
            .collect();
        let plan = LogicalPlanBuilder::from(source).project(exprs)?.distinct()?.build()?;
        Ok((plan, columns))
    }
}

/// Outer references of any level in a plan without subqueries.
pub(super) fn outer_references(plan: &LogicalPlan) -> Result<Vec<(FieldRef, Column)>> {
    let mut found = vec![];
    plan.apply(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|e| {
                if let Expr::OuterReferenceColumn(field, column) = e {
                    found.push((field.clone(), column.clone()));
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    Ok(found)
}

/// `outer`, or what is below it and has all values of `refs` that it has.
fn source(outer: LogicalPlan, refs: Vec<Column>) -> (LogicalPlan, Vec<Column>) {
    match outer {
        LogicalPlan::Sort(Sort { input, .. }) | LogicalPlan::Limit(Limit { input, .. }) => {
            source(Arc::unwrap_or_clone(input), refs)
        }
        LogicalPlan::Distinct(Distinct::All(input)) => source(Arc::unwrap_or_clone(input), refs),
        LogicalPlan::Filter(filter) if is_volatile(&filter.predicate) => {
            source(Arc::unwrap_or_clone(filter.input), refs)
        }
        LogicalPlan::SubqueryAlias(SubqueryAlias {
            ref input, ref schema, ..
        }) => match through(&refs, schema, |i| Some(Column::from(input.schema().qualified_field(i)))) {
            Some(refs) => source(input.as_ref().clone(), refs),
            None => (outer, refs),
        },
        LogicalPlan::Projection(ref projection) => {
            let below = |i: usize| column_of(&projection.expr[i]);
            match through(&refs, &projection.schema, below) {
                Some(refs) => source(projection.input.as_ref().clone(), refs),
                None => (outer, refs),
            }
        }
        other => (other, refs),
    }
}

fn through(refs: &[Column], schema: &DFSchema, below: impl Fn(usize) -> Option<Column>) -> Option<Vec<Column>> {
    refs.iter().map(|c| below(schema.maybe_index_of_column(c)?)).collect()
}

fn column_of(expr: &Expr) -> Option<Column> {
    match expr {
        Expr::Column(column) => Some(column.clone()),
        Expr::Alias(Alias { expr, .. }) => column_of(expr),
        _ => None,
    }
}

fn is_volatile(expr: &Expr) -> bool {
    let volatile = |e: &Expr| match e {
        Expr::ScalarFunction(f) => f.func.signature().volatility == Volatility::Volatile,
        _ => false,
    };
    expr.exists(|e| Ok(volatile(e))).unwrap_or(true)
}

/// What may make a plan give other rows when it runs again at the same snapshot.
pub(super) fn unrepeatable(plan: &LogicalPlan) -> Result<Option<&'static str>> {
    let mut found = None;
    plan.apply_with_subqueries(|node| {
        let schema = node.inputs().first().map(|input| input.schema().clone());
        let fixed = |e: &Expr| schema.as_ref().is_some_and(|schema| is_order_independent(e, schema));
        let here = match node {
            LogicalPlan::Limit(_) => Some("a LIMIT"),
            LogicalPlan::Distinct(Distinct::On(_)) => Some("DISTINCT ON"),
            LogicalPlan::Aggregate(a) if !a.aggr_expr.iter().all(fixed) => {
                Some("an aggregate that depends on the order of rows")
            }
            LogicalPlan::Window(w) if !w.window_expr.iter().all(is_fixed_window) => {
                Some("a window function that depends on the order of rows")
            }
            _ => None,
        };
        found = found.or(here);
        node.apply_expressions(|e| {
            if is_volatile(e) {
                found = Some("a volatile function");
            }
            Ok(TreeNodeRecursion::Continue)
        })
    })?;
    Ok(found)
}

fn is_fixed_window(expr: &Expr) -> bool {
    let Expr::WindowFunction(f) = expr.clone().unalias() else {
        return false;
    };
    // A frame of rows cuts between equals.
    let whole = f.params.order_by.is_empty() || f.params.window_frame.units != WindowFrameUnits::Rows;
    match &f.fun {
        WindowFunctionDefinition::WindowUDF(f) => {
            matches!(f.name(), "rank" | "dense_rank" | "percent_rank" | "cume_dist")
        }
        WindowFunctionDefinition::AggregateUDF(f) => {
            whole && matches!(f.name(), "count" | "min" | "max" | "bool_and" | "bool_or")
        }
    }
}

/// Outer references of the domain become its columns.
pub(super) fn replace(expr: Expr, domain: &Domain, columns: &[Column]) -> Result<Expr> {
    let replaced = expr.transform_up(|e| match &e {
        Expr::OuterReferenceColumn(_, column) => match domain.position(column) {
            Some(i) => Ok(Transformed::yes(Expr::Column(columns[i].clone()))),
            None => Ok(Transformed::no(e)),
        },
        _ => Ok(Transformed::no(e)),
    })?;
    Ok(replaced.data)
}

/// Whether a plan reads some value of the domain.
pub(super) fn depends(plan: &LogicalPlan, domain: &Domain) -> Result<bool> {
    let references = outer_references(plan)?;
    Ok(references.iter().any(|(_, column)| domain.position(column).is_some()))
}

/// Whether an expression does.
pub(super) fn reads(expr: &Expr, domain: &Domain) -> bool {
    let is_ref = |e: &Expr| matches!(e, Expr::OuterReferenceColumn(_, c) if domain.position(c).is_some());
    expr.exists(|e| Ok(is_ref(e))).unwrap_or(true)
}
