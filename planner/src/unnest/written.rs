//! Subqueries that DataFusion's SQL planner has no form for, written in one that it has, before it sees them.
//!
//! ```text
//!   (a, b) IN (SELECT x, y ..)    __tessera_row(a, b) IN (SELECT __tessera_row(c1, c2) FROM (SELECT x, y ..) AS r(c1, c2))
//!   ARRAY(SELECT ..)              __tessera_array((SELECT ..))
//!   FROM o, unnest(o.a) AS u      FROM o, LATERAL (SELECT unnest(o.a) AS u) AS u
//!   FROM o, generate_series(1, o.n) AS g     the same of __tessera_series(1, o.n)
//! ```

use sqlparser::ast::{
    Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList, FunctionArguments, Ident, ObjectName, Query,
    SelectItem, SetExpr, TableAlias, TableAliasColumnDef, TableFactor, Visit, Visitor,
};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::Parser;
use std::ops::ControlFlow;
use tessera_proto::functions::{ARRAY_OF_ROWS, ROW, SERIES};

/// Rewrites one expression, not what is inside it.
pub fn expression(expr: &mut Expr) {
    match expr {
        Expr::InSubquery { expr, subquery, .. } => {
            if let Some(items) = row(expr) {
                let name = Ident::new("__tessera_rows");
                let columns: Vec<Ident> = (1..=items.len()).map(|i| Ident::new(format!("c{i}"))).collect();
                let outputs = columns
                    .iter()
                    .map(|c| Expr::CompoundIdentifier(vec![name.clone(), c.clone()]));
                let outputs = call(ROW, outputs.collect());
                if let Some(rows) = select_from(outputs, subquery, name, columns) {
                    **subquery = rows;
                    **expr = call(ROW, items);
                }
            }
        }
        Expr::Function(function) => {
            if let FunctionArguments::Subquery(query) = &function.args
                && function.name.to_string().eq_ignore_ascii_case("array")
            {
                *expr = call(ARRAY_OF_ROWS, vec![Expr::Subquery(query.clone())]);
            }
        }
        _ => {}
    }
}

/// Rewrites `unnest` and `generate_series` in FROM that read columns.
pub fn table(factor: &mut TableFactor) {
    let (call, alias, name) = match factor {
        TableFactor::UNNEST {
            alias,
            array_exprs,
            with_offset: false,
            with_ordinality: false,
            ..
        } => (array_exprs.clone(), alias, "unnest"),
        TableFactor::Table {
            name,
            alias,
            args: Some(args),
            with_ordinality: false,
            ..
        } => match (function(name), items(&args.args)) {
            (Some(name), Some(items)) => (items, alias, name),
            _ => return,
        },
        TableFactor::Function { name, args, alias, .. } => match (function(name), items(args)) {
            (Some(name), Some(items)) => (items, alias, name),
            _ => return,
        },
        _ => return,
    };
    if !call.iter().any(reads_columns) || (name == "unnest" && call.len() != 1) {
        return;
    }
    let array = match (name, call) {
        ("unnest", call) => call,
        (_, call) => vec![self::call(SERIES, call)],
    };
    if let Some(rows) = lateral(self::call("unnest", array), alias.clone(), name) {
        *factor = rows;
    }
}

fn function(name: &ObjectName) -> Option<&'static str> {
    let written = name.to_string();
    let known = ["unnest", "generate_series"];
    known.into_iter().find(|known| written.eq_ignore_ascii_case(known))
}

fn items(args: &[FunctionArg]) -> Option<Vec<Expr>> {
    let item = |arg: &FunctionArg| match arg {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(expr.clone()),
        _ => None,
    };
    args.iter().map(item).collect()
}

/// A function's rows as a LATERAL subquery with one column, named as PostgreSQL does.
fn lateral(call: Expr, alias: Option<TableAlias>, function: &str) -> Option<TableFactor> {
    let name = alias
        .as_ref()
        .map_or_else(|| Ident::new(function), |alias| alias.name.clone());
    let column = alias
        .and_then(|alias| alias.columns.into_iter().next())
        .map(|column| column.name);
    let column = column.unwrap_or_else(|| name.clone());
    let mut query = template("SELECT 1 AS a")?;
    if let SetExpr::Select(select) = query.body.as_mut() {
        select.projection = vec![SelectItem::ExprWithAlias {
            expr: call,
            alias: column.clone(),
        }];
    }
    Some(TableFactor::Derived {
        lateral: true,
        subquery: Box::new(query),
        alias: Some(named(name, vec![column])),
        sample: None,
    })
}

/// `SELECT item FROM (query) AS name(columns)`.
fn select_from(item: Expr, query: &Query, name: Ident, columns: Vec<Ident>) -> Option<Query> {
    let mut outer = template("SELECT 1 FROM a")?;
    if let SetExpr::Select(select) = outer.body.as_mut() {
        select.projection = vec![SelectItem::UnnamedExpr(item)];
        select.from.first_mut()?.relation = TableFactor::Derived {
            lateral: false,
            subquery: Box::new(query.clone()),
            alias: Some(named(name, columns)),
            sample: None,
        };
    }
    Some(outer)
}

fn named(name: Ident, columns: Vec<Ident>) -> TableAlias {
    let column = |name| TableAliasColumnDef { name, data_type: None };
    TableAlias {
        explicit: true,
        name,
        columns: columns.into_iter().map(column).collect(),
        at: None,
    }
}

/// A query with nothing but defaults, to be filled.
fn template(sql: &str) -> Option<Query> {
    let mut parser = Parser::new(&PostgreSqlDialect {}).try_with_sql(sql).ok()?;
    parser.parse_query().ok().map(|query| *query)
}

struct Columns;

impl Visitor for Columns {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        match expr {
            Expr::Identifier(_) | Expr::CompoundIdentifier(_) => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    }
}

fn reads_columns(expr: &Expr) -> bool {
    expr.visit(&mut Columns).is_break()
}

/// The items of `(a, b)` or `ROW(a, b)`.
fn row(expr: &Expr) -> Option<Vec<Expr>> {
    match expr {
        Expr::Tuple(items) if items.len() > 1 => Some(items.clone()),
        Expr::Function(function) if function.name.to_string().eq_ignore_ascii_case("row") => {
            let FunctionArguments::List(list) = &function.args else {
                return None;
            };
            self::items(&list.args)
        }
        _ => None,
    }
}

fn call(name: &str, args: Vec<Expr>) -> Expr {
    let args = args
        .into_iter()
        .map(|e| FunctionArg::Unnamed(FunctionArgExpr::Expr(e)))
        .collect();
    Expr::Function(Function {
        name: ObjectName::from(vec![Ident::new(name)]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList {
            duplicate_treatment: None,
            args,
            clauses: vec![],
        }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: vec![],
    })
}
