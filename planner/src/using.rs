//! `JOIN ... USING` and `NATURAL JOIN`: which side a merged column comes from, and where it stands.
//!
//! ```text
//!   a LEFT JOIN b USING (k)      SELECT *   ─▶  a.k, the rest of a, the rest of b
//!   a RIGHT JOIN b USING (k)     k          ─▶  b.k
//!   a FULL JOIN b USING (k)      k          ─▶  coalesce(a.k, b.k) AS k,  ON a.k = b.k
//! ```
//!
//! DataFusion takes the column whose qualified name sorts first for `*`, and the left one for a name alone: with outer joins that
//! is the padded side as often as not, so rows had NULL where PostgreSQL has the key. Here wildcards over such joins are written
//! out, and where a side other than the left may be the one that counts, all such joins of the FROM clause become `ON`, with
//! names alone replaced. PostgreSQL's rules: documentation, 7.2.1.1.
//!
//! Not here: a merged name used inside a subquery of such a FROM clause as an outer reference (42702, loudly).

use sqlparser::ast::{
    BinaryOperator, Cte, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList, FunctionArguments,
    GroupByExpr, Ident, JoinConstraint, JoinOperator, ObjectName, OrderBy, OrderByKind, Query, Select, SelectItem,
    SetExpr, TableFactor, TableWithJoins, VisitMut, VisitorMut, With,
};
use std::collections::HashMap;
use std::ops::ControlFlow;
use tessera_proto::{Error, Result};

/// Names of a query's columns, in order.
pub(crate) type Columns<'a> = &'a dyn Fn(&Query) -> Result<Vec<String>>;

/// Writes out such joins anywhere in `query`. `columns` binds a query; it is asked for each table of such a join.
///
/// # Errors
/// 42703, 42702 for columns in USING that are missing or ambiguous; what `columns` fails with.
pub(crate) fn rewrite(query: &mut Query, columns: Columns<'_>) -> Result<()> {
    let mut rewriter = Rewriter {
        columns,
        scopes: vec![],
    };
    match query.visit(&mut rewriter) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(error) => Err(error),
    }
}

struct Rewriter<'a> {
    columns: Columns<'a>,
    /// Queries around, outermost first.
    scopes: Vec<Scope>,
}

/// What a query's WITH clause makes visible.
struct Scope {
    with: Option<With>,
    /// How many of its queries are written out already.
    done: usize,
}

impl VisitorMut for Rewriter<'_> {
    type Break = Error;

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<Error> {
        self.scopes.push(Scope {
            with: query.with.clone(),
            done: 0,
        });
        ControlFlow::Continue(())
    }

    /// From the inside out, so that what is asked for its columns has no such joins any more, or no wildcards over them.
    fn post_visit_query(&mut self, query: &mut Query) -> ControlFlow<Error> {
        if let Err(error) = self.body(&mut query.body, query.order_by.as_mut()) {
            return ControlFlow::Break(error);
        }
        self.scopes.pop();
        // Those of WITH come first.
        if let Some(around) = self.scopes.last_mut()
            && let Some(with) = &mut around.with
            && let Some(cte) = with.cte_tables.get_mut(around.done)
        {
            *cte.query = query.clone();
            around.done += 1;
        }
        ControlFlow::Continue(())
    }
}

/// A column that a FROM clause offers.
#[derive(Debug, Clone)]
struct Offered {
    name: String,
    value: Expr,
}

/// What a part of a FROM clause offers.
#[derive(Debug, Default)]
struct Offers {
    /// As `*` shows them.
    columns: Vec<Offered>,
    /// Names that stand for a merged column.
    merged: HashMap<String, Expr>,
    /// A name alone may mean another column than the left one.
    not_left: bool,
}

impl Rewriter<'_> {
    fn body(&self, body: &mut SetExpr, order_by: Option<&mut OrderBy>) -> Result<()> {
        match body {
            SetExpr::Select(select) => self.select(select, order_by),
            // A query in brackets comes by itself.
            SetExpr::SetOperation { left, right, .. } => {
                self.body(left, None)?;
                self.body(right, None)
            }
            _ => Ok(()),
        }
    }

    fn select(&self, select: &mut Select, order_by: Option<&mut OrderBy>) -> Result<()> {
        if !select.from.iter().any(merges) {
            return Ok(());
        }
        let mut all = Offers::default();
        for from in &select.from {
            let offers = self.offers(from)?;
            all.columns.extend(offers.columns);
            all.merged.extend(offers.merged);
            all.not_left |= offers.not_left;
        }
        expand_wildcards(select, &all.columns);
        if all.not_left {
            for from in &mut select.from {
                self.to_on(from)?;
            }
            let output = outputs(select);
            replace_in(select, &all.merged)?;
            if let Some(order_by) = order_by {
                replace_in_order(order_by, &all.merged, &output)?;
            }
        }
        Ok(())
    }

    /// Columns of a FROM item, with its joins.
    fn offers(&self, from: &TableWithJoins) -> Result<Offers> {
        let mut left = self.factor(&from.relation)?;
        for join in &from.joins {
            let right = self.factor(&join.relation)?;
            left = joined(left, right, &join.join_operator)?;
        }
        Ok(left)
    }

    fn factor(&self, factor: &TableFactor) -> Result<Offers> {
        if let TableFactor::NestedJoin {
            table_with_joins,
            alias: None,
        } = factor
        {
            return self.offers(table_with_joins);
        }
        let Some(qualifier) = qualifier(factor) else {
            return Err(Error::unsupported(
                format!("JOIN ... USING and NATURAL JOIN with {factor} are not supported"),
                "give it a name with AS, or write the condition with ON",
            ));
        };
        let names = (self.columns)(&self.all_of(factor)?)?;
        let columns = names.into_iter().map(|name| Offered {
            value: Expr::CompoundIdentifier(vec![qualifier.clone(), quoted(&name)]),
            name,
        });
        Ok(Offers {
            columns: columns.collect(),
            ..Offers::default()
        })
    }

    /// `SELECT * FROM factor`, with what is visible here.
    fn all_of(&self, factor: &TableFactor) -> Result<Query> {
        let mut with: Option<With> = None;
        for scope in self.scopes.iter().filter_map(|scope| scope.with.as_ref()) {
            let all = with.get_or_insert_with(|| With {
                cte_tables: vec![],
                ..scope.clone()
            });
            let hidden = |cte: &Cte| scope.cte_tables.iter().any(|c| c.alias.name == cte.alias.name);
            all.cte_tables.retain(|cte| !hidden(cte));
            all.cte_tables.extend(scope.cte_tables.iter().cloned());
            all.recursive |= scope.recursive;
        }
        // A recursive one has the columns of its first part, which does not name it.
        for cte in with.iter_mut().flat_map(|with| &mut with.cte_tables) {
            if let SetExpr::SetOperation { left, .. } = cte.query.body.as_ref() {
                cte.query.body = left.clone();
                cte.query.order_by = None;
            }
        }
        let mut query = select_all(factor.clone())?;
        query.with = with;
        Ok(query)
    }

    /// Replaces USING and NATURAL by conditions.
    fn to_on(&self, from: &mut TableWithJoins) -> Result<()> {
        if let TableFactor::NestedJoin { table_with_joins, .. } = &mut from.relation {
            self.to_on(table_with_joins)?;
        }
        let mut left = self.factor(&from.relation)?;
        for join in &mut from.joins {
            if let TableFactor::NestedJoin { table_with_joins, .. } = &mut join.relation {
                self.to_on(table_with_joins)?;
            }
            let right = self.factor(&join.relation)?;
            let operator = join.join_operator.clone();
            let pairs = pairs(&left, &right, &operator)?;
            if let Some(constraint) = constraint_mut(&mut join.join_operator) {
                if let JoinConstraint::On(condition) = constraint {
                    replace(condition, &left.merged)?;
                } else if !matches!(constraint, JoinConstraint::None) {
                    let equal = pairs.into_iter().map(|(_, left, right)| equal(left, right));
                    *constraint = JoinConstraint::On(equal.reduce(and).unwrap_or_else(truth));
                }
            }
            left = joined(left, right, &operator)?;
        }
        Ok(())
    }
}

/// Whether any join of it merges columns.
fn merges(from: &TableWithJoins) -> bool {
    let nested = |factor: &TableFactor| match factor {
        TableFactor::NestedJoin {
            table_with_joins,
            alias: None,
        } => merges(table_with_joins),
        _ => false,
    };
    let named = |operator: &JoinOperator| {
        let constraint = constraint(operator);
        matches!(constraint, Some(JoinConstraint::Using(_) | JoinConstraint::Natural))
    };
    nested(&from.relation)
        || from
            .joins
            .iter()
            .any(|join| named(&join.join_operator) || nested(&join.relation))
}

/// The columns that a join merges: name, left value, right value; empty without USING.
fn pairs(left: &Offers, right: &Offers, operator: &JoinOperator) -> Result<Vec<(String, Expr, Expr)>> {
    let names: Vec<String> = match constraint(operator) {
        Some(JoinConstraint::Using(names)) => names.iter().filter_map(last).collect(),
        Some(JoinConstraint::Natural) => {
            let there = |name: &String| right.columns.iter().any(|c| c.name == *name);
            let names = left.columns.iter().map(|c| c.name.clone());
            names.filter(there).collect()
        }
        _ => vec![],
    };
    let pair = |name: String| {
        let (l, r) = (only(left, &name, "left")?, only(right, &name, "right")?);
        Ok((name, l, r))
    };
    names.into_iter().map(pair).collect()
}

fn only(side: &Offers, name: &str, which: &str) -> Result<Expr> {
    let mut found = side.columns.iter().filter(|c| c.name == name);
    match (found.next(), found.next()) {
        (Some(column), None) => Ok(column.value.clone()),
        (Some(_), Some(_)) => Err(Error::new(
            "42702",
            format!("common column name \"{name}\" appears more than once in {which} table"),
        )),
        (None, _) => Err(Error::new(
            "42703",
            format!("column \"{name}\" specified in USING clause does not exist in {which} table"),
        )),
    }
}

fn joined(left: Offers, right: Offers, operator: &JoinOperator) -> Result<Offers> {
    let pairs = pairs(&left, &right, operator)?;
    let mut not_left = left.not_left || right.not_left;
    let mut merged: HashMap<String, Expr> = left.merged.into_iter().chain(right.merged).collect();
    let mut columns = vec![];
    for (name, l, r) in &pairs {
        let value = match operator {
            JoinOperator::Right(_) | JoinOperator::RightOuter(_) => r.clone(),
            JoinOperator::FullOuter(_) => coalesce(l.clone(), r.clone()),
            _ => l.clone(),
        };
        not_left |= value != *l;
        merged.insert(name.clone(), value.clone());
        columns.push(Offered {
            name: name.clone(),
            value,
        });
    }
    let rest = left.columns.into_iter().chain(right.columns);
    columns.extend(rest.filter(|c| !pairs.iter().any(|(name, ..)| *name == c.name)));
    Ok(Offers {
        columns,
        merged,
        not_left,
    })
}

/// Columns named beside a wildcard, which has them too, get names of their own; clients see those of the query as written.
fn expand_wildcards(select: &mut Select, columns: &[Offered]) {
    let is_wildcard = |item: &SelectItem| matches!(item, SelectItem::Wildcard(_));
    if !select.projection.iter().any(is_wildcard) {
        return;
    }
    let mut items = vec![];
    for (position, item) in std::mem::take(&mut select.projection).into_iter().enumerate() {
        match item {
            SelectItem::Wildcard(_) => items.extend(columns.iter().map(|column| match &column.value {
                Expr::CompoundIdentifier(_) => SelectItem::UnnamedExpr(column.value.clone()),
                value => SelectItem::ExprWithAlias {
                    expr: value.clone(),
                    alias: quoted(&column.name),
                },
            })),
            SelectItem::UnnamedExpr(expr @ (Expr::Identifier(_) | Expr::CompoundIdentifier(_))) => {
                let alias = quoted(&format!("{expr} {}", position + 1));
                items.push(SelectItem::ExprWithAlias { expr, alias });
            }
            other => items.push(other),
        }
    }
    select.projection = items;
}

/// Names of the SELECT list that ORDER BY may mean.
fn outputs(select: &Select) -> Vec<String> {
    let name = |item: &SelectItem| match item {
        SelectItem::ExprWithAlias { alias, .. } => Some(folded(alias)),
        SelectItem::UnnamedExpr(Expr::Identifier(ident)) => Some(folded(ident)),
        SelectItem::UnnamedExpr(Expr::CompoundIdentifier(parts)) => parts.last().map(folded),
        _ => None,
    };
    select.projection.iter().filter_map(name).collect()
}

fn replace_in(select: &mut Select, merged: &HashMap<String, Expr>) -> Result<()> {
    for item in &mut select.projection {
        if let SelectItem::UnnamedExpr(Expr::Identifier(ident)) = item
            && let Some(value) = merged.get(&folded(ident))
        {
            *item = SelectItem::ExprWithAlias {
                expr: value.clone(),
                alias: quoted(&folded(ident)),
            };
            continue;
        }
        replace(item, merged)?;
    }
    replace(&mut select.distinct, merged)?;
    replace(&mut select.selection, merged)?;
    if let GroupByExpr::Expressions(exprs, _) = &mut select.group_by {
        replace(exprs, merged)?;
    }
    replace(&mut select.having, merged)?;
    replace(&mut select.named_window, merged)?;
    replace(&mut select.qualify, merged)
}

/// ORDER BY sees the names of the SELECT list first.
fn replace_in_order(order_by: &mut OrderBy, merged: &HashMap<String, Expr>, output: &[String]) -> Result<()> {
    let OrderByKind::Expressions(exprs) = &mut order_by.kind else {
        return Ok(());
    };
    for by in exprs {
        let named = matches!(&by.expr, Expr::Identifier(ident) if output.contains(&folded(ident)));
        if !named {
            replace(&mut by.expr, merged)?;
        }
    }
    Ok(())
}

/// Names alone that stand for merged columns, outside of subqueries.
fn replace(part: &mut impl VisitMut, merged: &HashMap<String, Expr>) -> Result<()> {
    struct Names<'a> {
        merged: &'a HashMap<String, Expr>,
        queries: usize,
    }
    impl VisitorMut for Names<'_> {
        type Break = ();
        fn pre_visit_query(&mut self, _: &mut Query) -> ControlFlow<()> {
            self.queries += 1;
            ControlFlow::Continue(())
        }
        fn post_visit_query(&mut self, _: &mut Query) -> ControlFlow<()> {
            self.queries -= 1;
            ControlFlow::Continue(())
        }
        // After its parts: what is put in must not be looked at again.
        fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
            if let Expr::Identifier(ident) = expr
                && self.queries == 0
                && let Some(value) = self.merged.get(&folded(ident))
            {
                *expr = value.clone();
            }
            ControlFlow::Continue(())
        }
    }
    // Never breaks.
    let _ = part.visit(&mut Names { merged, queries: 0 });
    Ok(())
}

fn constraint(operator: &JoinOperator) -> Option<&JoinConstraint> {
    match operator {
        JoinOperator::Join(c)
        | JoinOperator::Inner(c)
        | JoinOperator::Left(c)
        | JoinOperator::LeftOuter(c)
        | JoinOperator::Right(c)
        | JoinOperator::RightOuter(c)
        | JoinOperator::FullOuter(c)
        | JoinOperator::CrossJoin(c) => Some(c),
        // Not PostgreSQL's; the parser refuses them.
        _ => None,
    }
}

fn constraint_mut(operator: &mut JoinOperator) -> Option<&mut JoinConstraint> {
    match operator {
        JoinOperator::Join(c)
        | JoinOperator::Inner(c)
        | JoinOperator::Left(c)
        | JoinOperator::LeftOuter(c)
        | JoinOperator::Right(c)
        | JoinOperator::RightOuter(c)
        | JoinOperator::FullOuter(c)
        | JoinOperator::CrossJoin(c) => Some(c),
        _ => None,
    }
}

/// The name by which columns of a table are qualified.
fn qualifier(factor: &TableFactor) -> Option<Ident> {
    let alias = match factor {
        TableFactor::Table { alias, .. }
        | TableFactor::Derived { alias, .. }
        | TableFactor::Function { alias, .. }
        | TableFactor::TableFunction { alias, .. }
        | TableFactor::UNNEST { alias, .. }
        | TableFactor::NestedJoin { alias, .. } => alias.as_ref(),
        _ => None,
    };
    match (alias, factor) {
        (Some(alias), _) => Some(alias.name.clone()),
        (None, TableFactor::Table { name, .. }) => name.0.last().and_then(|part| part.as_ident()).cloned(),
        _ => None,
    }
}

fn select_all(factor: TableFactor) -> Result<Query> {
    let parsed = tessera_parser::parse("SELECT * FROM t")
        .ok()
        .and_then(|mut all| all.pop());
    let Some(tessera_parser::Statement::Query(mut query)) = parsed.map(|parsed| parsed.statement) else {
        return Err(Error::internal("SELECT * FROM t is not a query"));
    };
    if let SetExpr::Select(select) = query.body.as_mut()
        && let Some(from) = select.from.first_mut()
    {
        from.relation = factor;
    }
    Ok(*query)
}

fn last(name: &ObjectName) -> Option<String> {
    name.0.last().and_then(|part| part.as_ident()).map(folded)
}

fn equal(left: Expr, right: Expr) -> Expr {
    binary(left, BinaryOperator::Eq, right)
}

fn and(left: Expr, right: Expr) -> Expr {
    binary(left, BinaryOperator::And, right)
}

fn binary(left: Expr, op: BinaryOperator, right: Expr) -> Expr {
    Expr::BinaryOp {
        left: Box::new(left),
        op,
        right: Box::new(right),
    }
}

fn truth() -> Expr {
    Expr::value(sqlparser::ast::Value::Boolean(true))
}

fn coalesce(left: Expr, right: Expr) -> Expr {
    let argument = |expr| FunctionArg::Unnamed(FunctionArgExpr::Expr(expr));
    Expr::Function(Function {
        name: ObjectName::from(vec![Ident::new("coalesce")]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList {
            duplicate_treatment: None,
            args: vec![argument(left), argument(right)],
            clauses: vec![],
        }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: vec![],
    })
}

fn quoted(name: &str) -> Ident {
    Ident::with_quote('"', name)
}

fn folded(ident: &Ident) -> String {
    match ident.quote_style {
        None => ident.value.to_lowercase(),
        Some(_) => ident.value.clone(),
    }
}
