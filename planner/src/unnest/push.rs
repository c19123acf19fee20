//! A subquery evaluated for all values of a domain at once.
//!
//! ```text
//!   push(Q)                     columns of Q, then d: for each value of the domain the rows that Q has for it
//!   Q reads nothing of it       Q x D
//!   filter (Q), projection      over push(Q), d for the outer columns
//!   filter x = outer (Q)        Q with x as d, and no D: more values than D has do no harm, they find no outer row
//!   aggregate by g              by d, g; without GROUP BY: D left join that, counts 0, since no rows give one row
//!   window, limit               partitioned by d; a limit is a row_number
//!   union, join                 push of the sides, equal in d where both read the domain: join.rs
//! ```
//!
//! After Neumann and Kemper, Unnesting Arbitrary Queries, BTW 2015. Not here: recursion and grouping sets that read outer
//! columns (0A000).

use super::domain::{Domain, Names, depends, reads, replace};
use super::shape::{all, join, named, pairs, project, renamed, restore};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, JoinType, Result, ScalarValue};
use datafusion::functions_window::expr_fn::row_number;
use datafusion::logical_expr::expr::Sort as SortExpr;
use datafusion::logical_expr::utils::{conjunction, split_conjunction_owned};
use datafusion::logical_expr::{
    Aggregate, BinaryExpr, Distinct, DistinctOn, Expr, ExprFunctionExt, ExprSchemable, FetchType, Filter, Limit,
    LogicalPlan, LogicalPlanBuilder, Operator, Projection, SkipType, Sort, Union, Unnest, Values, Window, lit, when,
};
use std::sync::Arc;
use tessera_proto::Error;

/// A plan, and its columns that hold the domain's values.
pub(super) type Pushed = (LogicalPlan, Vec<Column>);

pub(super) fn refused(what: &str) -> datafusion::common::DataFusionError {
    Error::unsupported(
        format!("a correlated subquery is not supported over {what}"),
        "write it as a join, or compute the inner part in WITH",
    )
    .into()
}

/// See the module's text.
pub(super) fn push(plan: LogicalPlan, domain: &Domain, names: &mut Names) -> Result<Pushed> {
    if !depends(&plan, domain)? {
        let (values, columns) = domain.copy(names)?;
        if matches!(&plan, LogicalPlan::EmptyRelation(e) if e.produce_one_row && e.schema.fields().is_empty()) {
            return Ok((values, columns));
        }
        return Ok((join(plan, values, vec![], None, JoinType::Inner, false)?, columns));
    }
    match plan {
        LogicalPlan::Projection(projection) => self::projection(projection, domain, names),
        LogicalPlan::Filter(filter) => self::filter(filter, domain, names),
        LogicalPlan::SubqueryAlias(alias) => {
            let (input, d) = push(Arc::unwrap_or_clone(alias.input), domain, names)?;
            let width = alias.schema.fields().len();
            Ok((restore(input, &alias.schema, 0..width, &d)?, d))
        }
        // Rows of different outer values have no order among themselves.
        LogicalPlan::Sort(sort) if sort.fetch.is_none() => push(Arc::unwrap_or_clone(sort.input), domain, names),
        LogicalPlan::Aggregate(aggregate) => self::aggregate(aggregate, domain, names),
        LogicalPlan::Distinct(Distinct::All(input)) => {
            let (input, d) = push(Arc::unwrap_or_clone(input), domain, names)?;
            Ok((LogicalPlanBuilder::from(input).distinct()?.build()?, d))
        }
        LogicalPlan::Distinct(Distinct::On(on)) => distinct_on(on, domain, names),
        LogicalPlan::Window(window) => self::window(window, domain, names),
        LogicalPlan::Limit(limit) => self::limit(limit, domain, names),
        LogicalPlan::Union(union) => self::union(union, domain, names),
        LogicalPlan::Join(join) => super::join::push(join, domain, names),
        LogicalPlan::Values(values) => self::values(values, domain, names),
        LogicalPlan::Unnest(unnest) => self::unnest(unnest, domain, names),
        LogicalPlan::RecursiveQuery(_) => Err(refused("WITH RECURSIVE that reads its columns")),
        other => Err(refused(
            other.display().to_string().split([':', ' ']).next().unwrap_or("this"),
        )),
    }
}

fn projection(projection: Projection, domain: &Domain, names: &mut Names) -> Result<Pushed> {
    let (input, d) = push(Arc::unwrap_or_clone(projection.input), domain, names)?;
    let mut exprs = vec![];
    for (i, expr) in projection.expr.into_iter().enumerate() {
        exprs.push(named(replace(expr, domain, &d)?, &projection.schema, i));
    }
    exprs.extend(d.iter().cloned().map(Expr::Column));
    Ok((project(exprs, input)?, d))
}

fn filter(filter: Filter, domain: &Domain, names: &mut Names) -> Result<Pushed> {
    if !depends(&filter.input, domain)?
        && let Some(pushed) = equated(&filter, domain, names)?
    {
        return Ok(pushed);
    }
    let (input, d) = push(Arc::unwrap_or_clone(filter.input), domain, names)?;
    let predicate = replace(filter.predicate, domain, &d)?;
    Ok((LogicalPlan::Filter(Filter::try_new(predicate, Arc::new(input))?), d))
}

/// Where every outer value is equal to an expression of the subquery's own.
fn equated(filter: &Filter, domain: &Domain, names: &mut Names) -> Result<Option<Pushed>> {
    let schema = filter.input.schema();
    let mut inner: Vec<Option<Expr>> = vec![None; domain.refs.len()];
    let mut rest = vec![];
    for conjunct in split_conjunction_owned(filter.predicate.clone()) {
        let found = match &conjunct {
            Expr::BinaryExpr(BinaryExpr {
                left,
                op: Operator::Eq,
                right,
            }) => match (left.as_ref(), right.as_ref()) {
                (Expr::OuterReferenceColumn(_, c), e) | (e, Expr::OuterReferenceColumn(_, c)) => {
                    domain.position(c).map(|i| (i, e.clone()))
                }
                _ => None,
            },
            _ => None,
        };
        match found {
            Some((i, expr))
                if inner[i].is_none()
                    && !expr.contains_outer()
                    && expr.get_type(schema).is_ok_and(|t| t == *domain.fields[i].data_type()) =>
            {
                inner[i] = Some(expr);
            }
            _ => rest.push(conjunct),
        }
    }
    let Some(inner) = inner.into_iter().collect::<Option<Vec<Expr>>>() else {
        return Ok(None);
    };
    let mut kept = vec![];
    for conjunct in rest {
        let replaced = conjunct.transform_up(|e| match &e {
            Expr::OuterReferenceColumn(_, c) => match domain.position(c) {
                Some(i) => Ok(Transformed::yes(inner[i].clone())),
                None => Ok(Transformed::no(e)),
            },
            _ => Ok(Transformed::no(e)),
        })?;
        kept.push(replaced.data);
    }
    for expr in &inner {
        if expr.nullable(schema)? {
            kept.push(expr.clone().is_not_null());
        }
    }
    let mut input = filter.input.as_ref().clone();
    if let Some(predicate) = conjunction(kept) {
        input = LogicalPlan::Filter(Filter::try_new(predicate, Arc::new(input))?);
    }
    let d = names.several(inner.len());
    let mut exprs = all(schema);
    exprs.extend(inner.into_iter().zip(&d).map(|(e, name)| e.alias(&name.name)));
    Ok(Some((project(exprs, input)?, d)))
}

/// The groups of each outer value; a value without rows has none.
pub(super) fn groups(aggregate: Aggregate, domain: &Domain, names: &mut Names) -> Result<Pushed> {
    let grouping_set = |e: &Expr| matches!(e, Expr::GroupingSet(_));
    if aggregate.group_expr.iter().any(grouping_set) {
        return Err(refused("grouping sets"));
    }
    for expr in &aggregate.aggr_expr {
        if expr.column_refs().is_empty() && reads(expr, domain) {
            return Err(refused("an aggregate of outer columns alone"));
        }
    }
    let (mut input, d) = push(Arc::unwrap_or_clone(aggregate.input), domain, names)?;
    let mut groups: Vec<Expr> = d.iter().cloned().map(Expr::Column).collect();
    let mut computed = all(input.schema());
    for expr in aggregate.group_expr {
        if reads(&expr, domain) {
            let name = names.fresh();
            computed.push(replace(expr, domain, &d)?.unalias().alias(&name.name));
            groups.push(Expr::Column(name));
        } else {
            groups.push(expr);
        }
    }
    if computed.len() > input.schema().fields().len() {
        input = project(computed, input)?;
    }
    let mut aggregates = vec![];
    for expr in aggregate.aggr_expr {
        let replaced = replace(expr.clone(), domain, &d)?;
        aggregates.push(match replaced == expr {
            true => replaced,
            false => replaced.unalias().alias(names.fresh().name),
        });
    }
    let plan = LogicalPlan::Aggregate(Aggregate::try_new(Arc::new(input), groups, aggregates)?);
    let width = aggregate.schema.fields().len();
    let plan = restore(plan, &aggregate.schema, d.len()..d.len() + width, &d)?;
    Ok((plan, d))
}

fn aggregate(aggregate: Aggregate, domain: &Domain, names: &mut Names) -> Result<Pushed> {
    if !aggregate.group_expr.is_empty() {
        return groups(aggregate, domain, names);
    }
    let schema = aggregate.schema.clone();
    let defaults = defaults(&aggregate)?;
    let (plan, _) = groups(aggregate, domain, names)?;
    let (plan, columns) = renamed(plan, names)?;
    let (results, found) = columns.split_at(schema.fields().len());
    let (values, d) = domain.copy(names)?;
    let on = pairs(&d, found);
    let joined = join(values, plan, on, None, JoinType::Left, domain.is_nullable())?;
    let mut exprs = vec![];
    for (i, (column, default)) in results.iter().zip(defaults).enumerate() {
        exprs.push(named(or_default(column, default)?, &schema, i));
    }
    exprs.extend(d.iter().cloned().map(Expr::Column));
    Ok((project(exprs, joined)?, d))
}

/// What each aggregate gives for no rows.
pub(super) fn defaults(aggregate: &Aggregate) -> Result<Vec<ScalarValue>> {
    let schema = aggregate.input.schema();
    let one = |expr: &Expr| match expr.clone().unalias() {
        Expr::AggregateFunction(f) if f.func.name() == "count" => Ok(ScalarValue::Int64(Some(0))),
        Expr::AggregateFunction(f) => {
            // The type does not matter where it is NULL.
            let data_type = Expr::AggregateFunction(f.clone()).get_type(schema)?;
            f.func.default_value(&data_type)
        }
        _ => Err(refused("an aggregate of this form")),
    };
    aggregate.aggr_expr.iter().map(one).collect()
}

/// A result, or what no rows give where there was none.
pub(super) fn or_default(column: &Column, default: ScalarValue) -> Result<Expr> {
    let column = Expr::Column(column.clone());
    match default.is_null() {
        true => Ok(column),
        false => when(column.clone().is_null(), lit(default)).otherwise(column),
    }
}

fn distinct_on(on: DistinctOn, domain: &Domain, names: &mut Names) -> Result<Pushed> {
    let (input, d) = push(Arc::unwrap_or_clone(on.input), domain, names)?;
    let columns = || d.iter().cloned().map(Expr::Column);
    let with = |exprs: Vec<Expr>| {
        exprs
            .into_iter()
            .map(|e| replace(e, domain, &d))
            .collect::<Result<Vec<_>>>()
    };
    let by: Vec<Expr> = columns().chain(with(on.on_expr)?).collect();
    let mut select = vec![];
    for (i, expr) in with(on.select_expr)?.into_iter().enumerate() {
        select.push(named(expr, &on.schema, i));
    }
    select.extend(columns());
    let sort = match on.sort_expr {
        Some(sort) => {
            let first = columns().map(|c| SortExpr::new(c, true, false));
            Some(first.chain(sorts(sort, domain, &d)?).collect())
        }
        None => None,
    };
    let on = DistinctOn::try_new(by, select, sort, Arc::new(input))?;
    Ok((LogicalPlan::Distinct(Distinct::On(on)), d))
}

fn sorts(sort: Vec<SortExpr>, domain: &Domain, d: &[Column]) -> Result<Vec<SortExpr>> {
    let one = |s: SortExpr| Ok(SortExpr::new(replace(s.expr, domain, d)?, s.asc, s.nulls_first));
    sort.into_iter().map(one).collect()
}

fn window(window: Window, domain: &Domain, names: &mut Names) -> Result<Pushed> {
    let width = window.input.schema().fields().len();
    let (input, d) = push(Arc::unwrap_or_clone(window.input), domain, names)?;
    let mut exprs = vec![];
    for expr in window.window_expr {
        let partitioned = replace(expr, domain, &d)?.transform_down(|e| match e {
            Expr::WindowFunction(mut f) => {
                f.params.partition_by.extend(d.iter().cloned().map(Expr::Column));
                Ok(Transformed::yes(Expr::WindowFunction(f)))
            }
            other => Ok(Transformed::no(other)),
        })?;
        exprs.push(partitioned.data);
    }
    let all = width + d.len()..width + d.len() + exprs.len();
    let plan = LogicalPlan::Window(Window::try_new(exprs, Arc::new(input))?);
    Ok((restore(plan, &window.schema, (0..width).chain(all), &d)?, d))
}

fn limit(limit: Limit, domain: &Domain, names: &mut Names) -> Result<Pushed> {
    let (SkipType::Literal(skip), FetchType::Literal(fetch)) = (limit.get_skip_type()?, limit.get_fetch_type()?) else {
        return Err(refused("a LIMIT that is not constant"));
    };
    let below = |input: Arc<LogicalPlan>| Arc::new(LogicalPlan::Limit(Limit { input, ..limit.clone() }));
    match limit.input.as_ref() {
        LogicalPlan::Projection(p) => {
            let exprs = p.expr.clone();
            let plan = Projection::try_new_with_schema(exprs, below(p.input.clone()), p.schema.clone())?;
            return projection(plan, domain, names);
        }
        LogicalPlan::SubqueryAlias(alias) => {
            let mut alias = alias.clone();
            alias.input = below(alias.input);
            return push(LogicalPlan::SubqueryAlias(alias), domain, names);
        }
        _ => {}
    }
    let (sort, input) = match Arc::unwrap_or_clone(limit.input.clone()) {
        LogicalPlan::Sort(Sort {
            expr,
            input,
            fetch: None,
        }) => (expr, Arc::unwrap_or_clone(input)),
        other => (vec![], other),
    };
    let schema = input.schema().clone();
    let (input, d) = push(input, domain, names)?;
    let mut number = row_number().partition_by(d.iter().cloned().map(Expr::Column).collect());
    let sorts = sorts(sort, domain, &d)?;
    if !sorts.is_empty() {
        number = number.order_by(sorts);
    }
    let number = number.build()?;
    let plan = LogicalPlan::Window(Window::try_new(vec![number], Arc::new(input))?);
    let last = plan.schema().fields().len() - 1;
    let number = Expr::Column(Column::from(plan.schema().qualified_field(last)));
    let mut predicate = number.clone().gt(lit(skip as u64));
    if let Some(fetch) = fetch {
        predicate = predicate.and(number.lt_eq(lit(skip.saturating_add(fetch) as u64)));
    }
    let plan = LogicalPlan::Filter(Filter::try_new(predicate, Arc::new(plan))?);
    Ok((restore(plan, &schema, 0..schema.fields().len(), &d)?, d))
}

/// Branches under the same names, the domain's columns last.
fn union(union: Union, domain: &Domain, names: &mut Names) -> Result<Pushed> {
    let width = union.schema.fields().len();
    let columns = names.several(width + domain.refs.len());
    let mut inputs = vec![];
    for input in union.inputs {
        let (input, d) = push(Arc::unwrap_or_clone(input), domain, names)?;
        let own = input.schema().columns().into_iter().take(width).chain(d);
        let exprs = own.zip(&columns).map(|(c, name)| Expr::Column(c).alias(&name.name));
        inputs.push(Arc::new(project(exprs.collect(), input)?));
    }
    let plan = LogicalPlan::Union(Union::try_new_with_loose_types(inputs)?);
    let d = columns[width..].to_vec();
    Ok((restore(plan, &union.schema, 0..width, &d)?, d))
}

/// A row is what one value of the domain makes of it.
fn values(values: Values, domain: &Domain, names: &mut Names) -> Result<Pushed> {
    let d = names.several(domain.refs.len());
    let mut inputs = vec![];
    for row in values.values {
        let (input, columns) = domain.copy(names)?;
        let mut exprs = vec![];
        for (i, expr) in row.into_iter().enumerate() {
            exprs.push(named(replace(expr, domain, &columns)?, &values.schema, i));
        }
        let renamed = columns.into_iter().zip(&d);
        exprs.extend(renamed.map(|(c, name)| Expr::Column(c).alias(&name.name)));
        inputs.push(Arc::new(project(exprs, input)?));
    }
    if inputs.len() == 1 {
        return Ok((Arc::unwrap_or_clone(inputs.remove(0)), d));
    }
    Ok((LogicalPlan::Union(Union::try_new_with_loose_types(inputs)?), d))
}

fn unnest(unnest: Unnest, domain: &Domain, names: &mut Names) -> Result<Pushed> {
    let width = unnest.schema.fields().len();
    let (input, d) = push(Arc::unwrap_or_clone(unnest.input), domain, names)?;
    let plan = Unnest::try_new(Arc::new(input), unnest.exec_columns, unnest.options)?;
    Ok((restore(LogicalPlan::Unnest(plan), &unnest.schema, 0..width, &d)?, d))
}
