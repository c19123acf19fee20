//! Columns that a grouped primary key determines.
//!
//! ```text
//!   SELECT c.id, c.name, count(*) FROM c JOIN o ... GROUP BY c.id      ─▶  GROUP BY c.id, c.name
//! ```
//!
//! PostgreSQL allows columns of a table outside of aggregates when its whole primary key is grouped (SQL:1999, T301). The groups
//! stay the same, so those that the query names are grouped too. Also where an outer join pads the table: then all are NULL.
//!
//! Not here: keys of subqueries, views and UNIQUE constraints (PostgreSQL takes primary keys only), grouping sets.

use crate::catalog::{Catalog, Relation};
use sqlparser::ast::{
    Expr, GroupByExpr, Ident, ObjectName, OrderBy, Query, Select, SelectItem, SelectItemQualifiedWildcardKind, SetExpr,
    TableFactor, VisitMut, VisitorMut,
};
use std::collections::HashSet;
use std::ops::ControlFlow;

/// Completes GROUP BY anywhere in `query`.
pub(crate) fn complete(query: &mut Query, catalog: &dyn Catalog) {
    // Never breaks.
    let _ = query.visit(&mut Completer {
        catalog,
        with: HashSet::new(),
    });
}

struct Completer<'a> {
    catalog: &'a dyn Catalog,
    /// Names that WITH clauses seen so far give: they hide tables.
    with: HashSet<String>,
}

impl VisitorMut for Completer<'_> {
    type Break = ();

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<()> {
        let with = query.with.iter().flat_map(|with| &with.cte_tables);
        self.with.extend(with.map(|cte| folded(&cte.alias.name)));
        let order_by = query.order_by.clone();
        if let SetExpr::Select(select) = query.body.as_mut() {
            self.select(select, order_by.as_ref());
        }
        ControlFlow::Continue(())
    }
}

/// A table in FROM that has a primary key.
struct Keyed {
    name: String,
    columns: Vec<String>,
    key: Vec<String>,
}

impl Completer<'_> {
    fn select(&self, select: &mut Select, order_by: Option<&OrderBy>) {
        let GroupByExpr::Expressions(grouped, modifiers) = &select.group_by else {
            return;
        };
        let plain = grouped.iter().all(|e| !is_set(e));
        if grouped.is_empty() || !plain || !modifiers.is_empty() {
            return;
        }
        let factors = select
            .from
            .iter()
            .flat_map(|from| std::iter::once(&from.relation).chain(from.joins.iter().map(|join| &join.relation)));
        let factors: Vec<&TableFactor> = factors.collect();
        let alone = factors.len() == 1;
        let tables: Vec<Keyed> = factors.into_iter().filter_map(|f| self.keyed(f)).collect();
        let grouped = grouped.clone();
        let mut added = vec![];
        for table in &tables {
            let is = |expr: &Expr, column: &String| table.is(expr, column, alone);
            if !table.key.iter().all(|k| grouped.iter().any(|g| is(g, k))) {
                continue;
            }
            let named = named(select, order_by, table);
            let missing = table.columns.iter().filter(|c| !grouped.iter().any(|g| is(g, c)));
            for column in missing {
                let other = tables
                    .iter()
                    .any(|t| t.name != table.name && t.columns.contains(column));
                let used = named.iter().any(|n| match n {
                    Named::All => true,
                    Named::Qualified(name) => name == column,
                    Named::Bare(name) => name == column && (alone || !other),
                });
                if used {
                    added.push(Expr::CompoundIdentifier(vec![quoted(&table.name), quoted(column)]));
                }
            }
        }
        if let GroupByExpr::Expressions(grouped, _) = &mut select.group_by {
            grouped.extend(added);
        }
    }

    fn keyed(&self, factor: &TableFactor) -> Option<Keyed> {
        let TableFactor::Table {
            name,
            alias,
            args: None,
            ..
        } = factor
        else {
            return None;
        };
        let (schema, table) = parts(name)?;
        if schema.is_none() && self.with.contains(&table) {
            return None;
        }
        let Some(Relation::Table(def, _)) = self.catalog.resolve(schema.as_deref(), &table) else {
            return None;
        };
        let key = def
            .primary_key
            .iter()
            .map(|at| def.columns.get(*at).map(|c| c.name.clone()));
        let key = key.collect::<Option<Vec<_>>>().filter(|key| !key.is_empty())?;
        if alias.as_ref().is_some_and(|alias| !alias.columns.is_empty()) {
            return None;
        }
        Some(Keyed {
            name: alias.as_ref().map_or(table, |alias| folded(&alias.name)),
            columns: def.visible_schema().fields().iter().map(|f| f.name().clone()).collect(),
            key,
        })
    }
}

impl Keyed {
    fn is(&self, expr: &Expr, column: &str, alone: bool) -> bool {
        match expr {
            Expr::CompoundIdentifier(parts) => match parts.as_slice() {
                [.., table, name] => folded(table) == self.name && folded(name) == column,
                _ => false,
            },
            // With several tables a bare name may be another's; then it is left to fail as ambiguous, or not to be helped.
            Expr::Identifier(name) => folded(name) == column && (alone || self.columns.iter().any(|c| c == column)),
            _ => false,
        }
    }
}

/// A column as a query names it.
enum Named {
    All,
    Qualified(String),
    Bare(String),
}

/// What the SELECT list, HAVING and ORDER BY name of a table.
fn named(select: &Select, order_by: Option<&OrderBy>, table: &Keyed) -> Vec<Named> {
    struct Names<'a> {
        table: &'a str,
        found: Vec<Named>,
    }
    impl VisitorMut for Names<'_> {
        type Break = ();
        fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
            match expr {
                Expr::Identifier(name) => self.found.push(Named::Bare(folded(name))),
                Expr::CompoundIdentifier(parts) => {
                    if let [.., table, name] = parts.as_slice()
                        && folded(table) == self.table
                    {
                        self.found.push(Named::Qualified(folded(name)));
                    }
                }
                _ => {}
            }
            ControlFlow::Continue(())
        }
    }
    let mut names = Names {
        table: &table.name,
        found: vec![],
    };
    for item in &select.projection {
        match item {
            SelectItem::Wildcard(_) => names.found.push(Named::All),
            SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::ObjectName(name), _) => {
                if parts(name).is_some_and(|(_, name)| name == table.name) {
                    names.found.push(Named::All);
                }
            }
            item => drop(item.clone().visit(&mut names)),
        }
    }
    let _ = select.having.clone().visit(&mut names);
    let _ = order_by.cloned().visit(&mut names);
    names.found
}

fn is_set(expr: &Expr) -> bool {
    matches!(expr, Expr::Rollup(_) | Expr::Cube(_) | Expr::GroupingSets(_))
}

fn parts(name: &ObjectName) -> Option<(Option<String>, String)> {
    let names: Vec<String> = name.0.iter().filter_map(|part| part.as_ident()).map(folded).collect();
    match names.as_slice() {
        [table] => Some((None, table.clone())),
        [schema, table] => Some((Some(schema.clone()), table.clone())),
        _ => None,
    }
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
