//! PostgreSQL-only syntax of catalog queries, turned into what DataFusion plans.
//!
//! ```text
//!   c.relname OPERATOR(pg_catalog.~) '^(t)$' COLLATE pg_catalog.default     c.relname ~ '^(t)$'
//!   pg_catalog.format_type(..)                                              format_type(..)
//!   conrelid::pg_catalog.regclass                                           tessera_regclass_name(conrelid)
//!   (SELECT pg_get_expr(..) FROM pg_attrdef d WHERE ..)                     a.tessera_default
//!   SELECT .. FROM pg_trigger ..                                            no rows: there are no triggers
//! ```
//!
//! Only for queries whose relations are all computed; user queries are never rewritten.

use super::pg_catalog::{DEFAULT_COLUMN, EMPTY};
use sqlparser::ast::{
    BinaryOperator, CastKind, DataType, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList,
    FunctionArguments, Ident, ObjectName, ObjectNamePart, Query, Select, SelectItem, SetExpr, TableFactor, Value,
    VisitMut, VisitorMut,
};
use std::ops::ControlFlow;

/// Rewrites a query over computed tables in place.
pub fn rewrite(query: &mut Query) {
    empty_out(query);
    let _ = query.visit(&mut Rewriter);
}

struct Rewriter;

impl VisitorMut for Rewriter {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if let Expr::Subquery(query) = expr
            && let Some(replacement) = scalar_subquery(query)
        {
            *expr = replacement;
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        let taken = std::mem::replace(expr, Expr::Value(Value::Null.into()));
        *expr = simplify(taken);
        ControlFlow::Continue(())
    }
}

fn simplify(expr: Expr) -> Expr {
    match expr {
        Expr::Collate { expr, .. } => *expr,
        Expr::BinaryOp {
            left,
            op: BinaryOperator::PGCustomBinaryOperator(path),
            right,
        } => {
            let op = custom_operator(path.last().map(String::as_str))
                .unwrap_or(BinaryOperator::PGCustomBinaryOperator(path));
            Expr::BinaryOp { left, op, right }
        }
        Expr::Function(mut f) => {
            strip_schema(&mut f.name);
            if f.name.to_string().eq_ignore_ascii_case("array_to_string") {
                // Only ever of access lists, and there are none.
                return Expr::Value(Value::Null.into());
            }
            if f.name.to_string().eq_ignore_ascii_case("current_user")
                || f.name.to_string().eq_ignore_ascii_case("session_user")
            {
                return call("tessera_current_user", vec![]);
            }
            Expr::Function(f)
        }
        Expr::Cast {
            kind,
            expr,
            data_type,
            array,
            format,
        } => match catalog_type(&data_type).as_deref() {
            Some("regclass") if is_literal(&expr) => call("tessera_regclass_oid", vec![*expr]),
            Some("regclass") => call("tessera_regclass_name", vec![*expr]),
            Some("regtype") => call(
                "format_type",
                vec![*expr, Expr::Value(Value::Number("-1".into(), false).into())],
            ),
            Some("regproc" | "regnamespace" | "regrole" | "name" | "text") => cast(*expr, DataType::Text),
            Some("oid" | "xid" | "int8") => cast(*expr, DataType::BigInt(None)),
            _ => Expr::Cast {
                kind,
                expr,
                data_type,
                array,
                format,
            },
        },
        other => other,
    }
}

fn custom_operator(name: Option<&str>) -> Option<BinaryOperator> {
    Some(match name? {
        "~" => BinaryOperator::PGRegexMatch,
        "~*" => BinaryOperator::PGRegexIMatch,
        "!~" => BinaryOperator::PGRegexNotMatch,
        "!~*" => BinaryOperator::PGRegexNotIMatch,
        "=" => BinaryOperator::Eq,
        "<>" => BinaryOperator::NotEq,
        _ => return None,
    })
}

/// The bare name of a type that DataFusion does not know.
fn catalog_type(data_type: &DataType) -> Option<String> {
    match data_type {
        DataType::Custom(name, _) => name.0.last().map(|part| part.to_string().to_lowercase()),
        DataType::Regclass => Some("regclass".into()),
        _ => None,
    }
}

fn is_literal(expr: &Expr) -> bool {
    matches!(expr, Expr::Value(v) if matches!(v.value, Value::SingleQuotedString(_)))
}

fn cast(expr: Expr, data_type: DataType) -> Expr {
    Expr::Cast {
        kind: CastKind::Cast,
        expr: Box::new(expr),
        data_type,
        array: false,
        format: None,
    }
}

fn call(name: &str, args: Vec<Expr>) -> Expr {
    let args = args
        .into_iter()
        .map(|a| FunctionArg::Unnamed(FunctionArgExpr::Expr(a)))
        .collect();
    Expr::Function(Function {
        name: ObjectName(vec![ObjectNamePart::Identifier(Ident::new(name))]),
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

fn strip_schema(name: &mut ObjectName) {
    if name.0.len() == 2 && name.0[0].to_string().eq_ignore_ascii_case("pg_catalog") {
        name.0.remove(0);
    }
}

/// psql's correlated subqueries over one column: its default, and its collation (always the default one here).
fn scalar_subquery(query: &Query) -> Option<Expr> {
    let SetExpr::Select(select) = query.body.as_ref() else {
        return None;
    };
    match first_relation(select)?.as_str() {
        "pg_attrdef" => Some(Expr::CompoundIdentifier(vec![
            Ident::new("a"),
            Ident::new(DEFAULT_COLUMN),
        ])),
        "pg_collation" => Some(Expr::Value(Value::Null.into())),
        _ => None,
    }
}

/// Bare lower-case name of the first relation in FROM.
fn first_relation(select: &Select) -> Option<String> {
    relation_name(&select.from.first()?.relation)
}

fn relation_name(factor: &TableFactor) -> Option<String> {
    match factor {
        TableFactor::Table { name, .. } => name.0.last().map(|part| part.to_string().to_lowercase()),
        _ => None,
    }
}

/// Replaces the body of a query that cannot have rows: it inner-joins a catalog of something Tessera does not have, or asks
/// for foreign keys. Such queries use syntax that DataFusion cannot plan, and nobody needs it planned.
fn empty_out(query: &mut Query) {
    if !body_is_empty(&query.body) {
        return;
    }
    let Some(columns) = column_count(&query.body) else {
        return;
    };
    let nulls = vec!["NULL"; columns].join(", ");
    let replacement = sqlparser::parser::Parser::parse_sql(
        &sqlparser::dialect::PostgreSqlDialect {},
        &format!("SELECT {} WHERE false", names(&nulls)),
    );
    if let Ok(mut statements) = replacement
        && let Some(sqlparser::ast::Statement::Query(empty)) = statements.pop()
    {
        *query = *empty;
    }
}

/// DataFusion wants every column named differently.
fn names(nulls: &str) -> String {
    nulls
        .split(", ")
        .enumerate()
        .map(|(i, null)| format!("{null} AS c{i}"))
        .collect::<Vec<_>>()
        .join(", ")
}

fn body_is_empty(body: &SetExpr) -> bool {
    match body {
        SetExpr::Select(select) => {
            let empty_relation = select
                .from
                .iter()
                .any(|t| relation_name(&t.relation).is_some_and(|n| EMPTY.contains(&n.as_str())))
                || select.from.iter().any(|t| {
                    t.joins
                        .iter()
                        .any(|j| is_inner(j) && relation_name(&j.relation).is_some_and(|n| EMPTY.contains(&n.as_str())))
                });
            let foreign_keys = select
                .selection
                .as_ref()
                .is_some_and(|w| w.to_string().contains("contype = 'f'"));
            (empty_relation || foreign_keys) && !aggregates(select)
        }
        SetExpr::SetOperation { left, right, .. } => body_is_empty(left) && body_is_empty(right),
        SetExpr::Query(query) => body_is_empty(&query.body),
        _ => false,
    }
}

fn is_inner(join: &sqlparser::ast::Join) -> bool {
    matches!(
        join.join_operator,
        sqlparser::ast::JoinOperator::Join(_) | sqlparser::ast::JoinOperator::Inner(_)
    )
}

/// An aggregate without GROUP BY has a row even over nothing.
fn aggregates(select: &Select) -> bool {
    let text = select
        .projection
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(",")
        .to_lowercase();
    ["count(", "sum(", "min(", "max(", "bool_or(", "array_agg("]
        .iter()
        .any(|f| text.contains(f))
}

fn column_count(body: &SetExpr) -> Option<usize> {
    match body {
        SetExpr::Select(select) => {
            let wild = |item: &SelectItem| matches!(item, SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..));
            (!select.projection.iter().any(wild)).then_some(select.projection.len())
        }
        SetExpr::SetOperation { left, .. } => column_count(left),
        SetExpr::Query(query) => column_count(&query.body),
        _ => None,
    }
}
