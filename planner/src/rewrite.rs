//! What PostgreSQL allows and DataFusion's SQL planner does not, or takes for something else, written in another way first.
//!
//! ```text
//!   FROM generate_series(1, 3)        FROM generate_series(1, 3) AS generate_series(generate_series)
//!   FROM generate_series(1, 3) AS i   FROM generate_series(1, 3) AS i(i)
//!   INTERVAL '1 day 02:03'            CAST('1 day 02:03' AS INTERVAL)       whoever binds reads it as PostgreSQL does
//!   SELECT k, k, *                    SELECT k, k AS "k 2", *               names of a projection must be unique
//! ```
//!
//! Clients see the names of the query as it was written ([`crate::names`]).

use crate::types::Length;
use datafusion::execution::SessionState;
use sqlparser::ast::{
    CastKind, DataType, Expr, Ident, Interval, ObjectName, Select, SelectItem, Statement, TableAlias,
    TableAliasColumnDef, TableFactor, Value, ValueWithSpan, VisitMut, VisitorMut,
};
use std::collections::HashSet;
use std::ops::ControlFlow;

/// Rewrites a statement in place; returns the names of functions in FROM, folded.
pub fn rewrite(statement: &mut Statement, state: &SessionState) -> Vec<String> {
    let mut rewriter = Rewriter {
        state,
        functions: vec![],
    };
    // Never breaks.
    let _ = statement.visit(&mut rewriter);
    rewriter.functions
}

struct Rewriter<'a> {
    state: &'a SessionState,
    functions: Vec<String>,
}

impl VisitorMut for Rewriter<'_> {
    type Break = ();

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<()> {
        make_unique(select);
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<()> {
        let TableFactor::Table {
            name,
            alias,
            args: Some(_),
            ..
        } = factor
        else {
            return ControlFlow::Continue(());
        };
        let Some(function) = name.0.last().and_then(|part| part.as_ident()).map(folded) else {
            return ControlFlow::Continue(());
        };
        if self.state.table_functions().contains_key(&function) {
            let alias = alias.get_or_insert_with(|| TableAlias {
                explicit: true,
                name: Ident::new(&function),
                columns: vec![],
                at: None,
            });
            if alias.columns.is_empty() {
                alias.columns.push(TableAliasColumnDef {
                    name: alias.name.clone(),
                    data_type: None,
                });
            }
            // DataFusion looks the function up as it is written.
            *name = ObjectName::from(vec![Ident::new(&function)]);
        }
        self.functions.push(function);
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        let Expr::Interval(Interval {
            value,
            leading_field: None,
            last_field: None,
            ..
        }) = expr
        else {
            return ControlFlow::Continue(());
        };
        if let Expr::Value(ValueWithSpan {
            value: Value::SingleQuotedString(_),
            ..
        }) = value.as_ref()
        {
            *expr = Expr::Cast {
                kind: CastKind::Cast,
                expr: value.clone(),
                data_type: DataType::Interval {
                    fields: None,
                    precision: None,
                },
                array: false,
                format: None,
            };
        }
        ControlFlow::Continue(())
    }
}

/// Names repeated items of a SELECT list.
fn make_unique(select: &mut Select) {
    // With one table in FROM, `a` and `t.a` are the same.
    let single = matches!(select.from.as_slice(), [only] if only.joins.is_empty());
    let is_wildcard = |item: &SelectItem| matches!(item, SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..));
    let wildcard = select.projection.iter().any(is_wildcard);
    let mut seen = HashSet::new();
    for (position, item) in select.projection.iter_mut().enumerate() {
        let (expr, key, is_column) = match item {
            SelectItem::ExprWithAlias { expr, alias } => (expr, format!("as {}", folded(alias)), false),
            SelectItem::UnnamedExpr(expr) => {
                let column = match expr {
                    Expr::Identifier(ident) => Some(folded(ident)),
                    Expr::CompoundIdentifier(parts) if single => parts.last().map(folded),
                    _ => None,
                };
                let is_column = matches!(expr, Expr::Identifier(_) | Expr::CompoundIdentifier(_));
                let key = column.unwrap_or_else(|| spelled(expr));
                (expr, key, is_column)
            }
            _ => continue,
        };
        if !seen.insert(key.clone()) || (wildcard && is_column) {
            *item = SelectItem::ExprWithAlias {
                expr: expr.clone(),
                alias: Ident::with_quote('"', format!("{key} {}", position + 1)),
            };
        }
    }
}

/// One spelling for expressions that DataFusion gives one name.
fn spelled(expr: &Expr) -> String {
    let cast = |inner: String, data_type: &DataType| match data_type {
        DataType::Text => format!("CAST({inner} AS text)"),
        sized if Length::of(sized).is_some() => format!("CAST({inner} AS text)"),
        other => format!("CAST({inner} AS {other})"),
    };
    match expr {
        Expr::Cast { expr, data_type, .. } => cast(expr.to_string(), data_type),
        Expr::TypedString(typed) => cast(typed.value.to_string(), &typed.data_type),
        other => other.to_string(),
    }
}

fn folded(ident: &Ident) -> String {
    match ident.quote_style {
        None => ident.value.to_lowercase(),
        Some(_) => ident.value.clone(),
    }
}
