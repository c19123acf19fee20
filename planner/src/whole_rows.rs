//! A table's name where JSON is built of its rows, as the row.
//!
//! ```text
//!   SELECT row_to_json(c) FROM c                 row_to_json(named_struct('id', c.id, 'name', c.name))
//!   SELECT json_agg(s) FROM (SELECT ...) s       the columns as the subquery names them
//! ```
//!
//! A column of the name comes first, as in PostgreSQL. Not here: rows of subqueries whose SELECT list has an asterisk, whose
//! columns are not known yet, and rows anywhere but in these functions.

use crate::names::item_names;
use crate::rewrite::call;
use datafusion::common::TableReference;
use datafusion::logical_expr::TableSource;
use sqlparser::ast::{
    Expr, FunctionArg, FunctionArgExpr, FunctionArguments, Ident, ObjectName, Query, Select, Statement, TableFactor,
    Value, VisitMut, VisitorMut,
};
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Functions that take rows.
const FUNCTIONS: [&str; 6] = [
    "to_json",
    "row_to_json",
    "json_build_object",
    "json_build_array",
    "__json_element",
    "__json_member",
];

/// Puts rows in the place of tables' names; `tables` are those of the statement.
pub(crate) fn expand(statement: &mut Statement, tables: &HashMap<TableReference, Arc<dyn TableSource>>) {
    let mut rows = Rows {
        tables,
        queries: vec![],
        scopes: vec![],
    };
    // Never breaks.
    let _ = statement.visit(&mut rows);
}

struct Rows<'a> {
    tables: &'a HashMap<TableReference, Arc<dyn TableSource>>,
    /// Of WITH: name and columns.
    queries: Vec<(String, Option<Vec<String>>)>,
    /// What FROM names, of the outermost SELECT first.
    scopes: Vec<Vec<(Ident, Vec<String>)>>,
}

impl VisitorMut for Rows<'_> {
    type Break = ();

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<()> {
        for cte in query.with.iter().flat_map(|with| &with.cte_tables) {
            let columns = match cte.alias.columns.is_empty() {
                true => item_names(&cte.query),
                false => Some(cte.alias.columns.iter().map(|column| folded(&column.name)).collect()),
            };
            self.queries.push((folded(&cte.alias.name), columns));
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<()> {
        let joined = select.from.iter().flat_map(|from| {
            let joins = from.joins.iter().map(|join| &join.relation);
            std::iter::once(&from.relation).chain(joins)
        });
        let scope = joined.filter_map(|factor| self.row_of(factor)).collect();
        self.scopes.push(scope);
        ControlFlow::Continue(())
    }

    fn post_visit_select(&mut self, _: &mut Select) -> ControlFlow<()> {
        self.scopes.pop();
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if let Expr::Function(function) = expr
            && let Some(name) = function.name.0.last().and_then(|part| part.as_ident())
            && FUNCTIONS.iter().any(|known| name.value.eq_ignore_ascii_case(known))
            && let FunctionArguments::List(list) = &mut function.args
        {
            for arg in &mut list.args {
                if let FunctionArg::Unnamed(FunctionArgExpr::Expr(arg)) = arg
                    && let Some(row) = self.row_named(arg)
                {
                    *arg = row;
                }
            }
        }
        ControlFlow::Continue(())
    }
}

impl Rows<'_> {
    /// The name of something in FROM, and its columns.
    fn row_of(&self, factor: &TableFactor) -> Option<(Ident, Vec<String>)> {
        match factor {
            TableFactor::Table {
                name,
                alias,
                args: None,
                ..
            } => {
                let columns = self.columns_of(name)?;
                let own = name.0.last()?.as_ident()?;
                match alias {
                    Some(alias) if !alias.columns.is_empty() => None,
                    Some(alias) => Some((alias.name.clone(), columns)),
                    None => Some((own.clone(), columns)),
                }
            }
            TableFactor::Derived {
                subquery,
                alias: Some(alias),
                ..
            } => {
                let columns = match alias.columns.is_empty() {
                    true => item_names(subquery)?,
                    false => alias.columns.iter().map(|column| folded(&column.name)).collect(),
                };
                Some((alias.name.clone(), columns))
            }
            _ => None,
        }
    }

    fn columns_of(&self, name: &ObjectName) -> Option<Vec<String>> {
        let parts = name.0.iter().map(|part| part.as_ident().map(folded));
        let parts = parts.collect::<Option<Vec<_>>>()?;
        if let [only] = parts.as_slice()
            && let Some((_, columns)) = self.queries.iter().rev().find(|(name, _)| name == only)
        {
            return columns.clone();
        }
        let reference = match parts.as_slice() {
            [table] => TableReference::bare(table.as_str()),
            [schema, table] => TableReference::partial(schema.as_str(), table.as_str()),
            _ => return None,
        };
        let schema = self.tables.get(&reference)?.schema();
        Some(schema.fields().iter().map(|field| field.name().clone()).collect())
    }

    /// The row that a name alone stands for.
    fn row_named(&self, arg: &Expr) -> Option<Expr> {
        let Expr::Identifier(name) = arg else { return None };
        let name = folded(name);
        let all = || self.scopes.iter().rev().flatten();
        if all().any(|(_, columns)| columns.contains(&name)) {
            return None;
        }
        let (table, columns) = all().find(|(table, _)| folded(table) == name)?;
        let members = columns.iter().flat_map(|column| {
            let key = Expr::Value(Value::SingleQuotedString(column.clone()).into());
            let value = Expr::CompoundIdentifier(vec![table.clone(), Ident::with_quote('"', column)]);
            [key, value]
        });
        Some(call("named_struct", members.collect()))
    }
}

fn folded(ident: &Ident) -> String {
    match ident.quote_style {
        None => ident.value.to_lowercase(),
        Some(_) => ident.value.clone(),
    }
}
