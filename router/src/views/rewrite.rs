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
    FunctionArguments, Ident, JoinOperator, ObjectName, ObjectNamePart, Query, Select, SelectItem, SetExpr,
    TableFactor, TableWithJoins, Value, Visit, VisitMut, Visitor, VisitorMut,
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
            if is_called(&f, "array_to_string") && first_argument(&f).is_some_and(is_access_list) {
                // Access lists are NULL in every row, and text here, not an array.
                return Expr::Value(Value::Null.into());
            }
            if is_called(&f, "current_user") || is_called(&f, "session_user") {
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

fn is_called(function: &Function, name: &str) -> bool {
    function.name.to_string().eq_ignore_ascii_case(name)
}

fn first_argument(function: &Function) -> Option<&Expr> {
    match &function.args {
        FunctionArguments::List(list) => match list.args.first()? {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(expr),
            _ => None,
        },
        _ => None,
    }
}

/// `datacl`, `relacl`, ...
fn is_access_list(expr: &Expr) -> bool {
    column_name(expr).is_some_and(|name| name.ends_with("acl"))
}

/// Bare name of a column, with or without a table in front.
fn column_name(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Identifier(name) => Some(&name.value),
        Expr::CompoundIdentifier(path) => path.last().map(|name| name.value.as_str()),
        _ => None,
    }
}

/// psql's two correlated subqueries over one column: its default, and its collation (always the default one here).
fn scalar_subquery(query: &Query) -> Option<Expr> {
    let SetExpr::Select(select) = query.body.as_ref() else {
        return None;
    };
    let [SelectItem::UnnamedExpr(item)] = select.projection.as_slice() else {
        return None;
    };
    let relations: Vec<_> = select.from.iter().filter_map(|t| relation_name(&t.relation)).collect();
    let relations: Vec<_> = relations.iter().map(String::as_str).collect();
    let filter = select.selection.as_ref()?;
    match (relations.as_slice(), item) {
        (["pg_attrdef"], Expr::Function(f)) if f.name.to_string().ends_with("pg_get_expr") => {
            let table = table_of(filter, "attrelid")?;
            Some(Expr::CompoundIdentifier(vec![table, Ident::new(DEFAULT_COLUMN)]))
        }
        (["pg_collation", "pg_type"], item) if column_name(item) == Some("collname") => {
            table_of(filter, "attcollation").map(|_| Expr::Value(Value::Null.into()))
        }
        _ => None,
    }
}

/// The alias in front of a column that a filter compares.
fn table_of(filter: &Expr, column: &str) -> Option<Ident> {
    let found = sqlparser::ast::visit_expressions(filter, |expr| match expr {
        Expr::CompoundIdentifier(path) if path.len() == 2 && path[1].value == column => {
            ControlFlow::Break(path[0].clone())
        }
        _ => ControlFlow::Continue(()),
    });
    found.break_value()
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
            let no_input =
                select.from.iter().any(joins_nothing) || select.selection.as_ref().is_some_and(wants_foreign_keys);
            no_input && select.having.is_none() && !aggregates(select)
        }
        SetExpr::SetOperation { left, right, .. } => body_is_empty(left) && body_is_empty(right),
        SetExpr::Query(query) => body_is_empty(&query.body),
        _ => false,
    }
}

/// Whether a chain of joins has no rows because an empty catalog is in it. A right or full join would bring rows back.
fn joins_nothing(chain: &TableWithJoins) -> bool {
    let empty = |factor: &TableFactor| relation_name(factor).is_some_and(|n| EMPTY.contains(&n.as_str()));
    let mut nothing = empty(&chain.relation);
    for join in &chain.joins {
        nothing = match join.join_operator {
            JoinOperator::Join(_) | JoinOperator::Inner(_) | JoinOperator::CrossJoin(_) => {
                nothing || empty(&join.relation)
            }
            JoinOperator::Left(_) | JoinOperator::LeftOuter(_) => nothing,
            _ => return false,
        };
    }
    nothing
}

/// Whether a filter keeps only foreign keys, of which there are none: `contype = 'f'` on its own or under AND.
fn wants_foreign_keys(filter: &Expr) -> bool {
    match filter {
        Expr::Nested(inner) => wants_foreign_keys(inner),
        Expr::BinaryOp {
            left,
            op: BinaryOperator::And,
            right,
        } => wants_foreign_keys(left) || wants_foreign_keys(right),
        Expr::BinaryOp {
            left,
            op: BinaryOperator::Eq,
            right,
        } => {
            let f = |e: &Expr| matches!(e, Expr::Value(v) if v.value == Value::SingleQuotedString("f".into()));
            column_name(left) == Some("contype") && f(right)
        }
        _ => false,
    }
}

/// Aggregates that have a row even over nothing.
const AGGREGATES: [&str; 13] = [
    "count",
    "sum",
    "min",
    "max",
    "avg",
    "every",
    "bool_and",
    "bool_or",
    "string_agg",
    "array_agg",
    "json_agg",
    "bit_and",
    "bit_or",
];

/// Whether the columns aggregate, outside subqueries.
fn aggregates(select: &Select) -> bool {
    #[derive(Default)]
    struct Finder {
        depth: usize,
    }
    impl Visitor for Finder {
        type Break = ();
        fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
            self.depth += 1;
            ControlFlow::Continue(())
        }
        fn post_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
            self.depth -= 1;
            ControlFlow::Continue(())
        }
        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
            let found = matches!(expr, Expr::Function(f) if self.depth == 0
                && f.name.0.last().is_some_and(|n| AGGREGATES.contains(&n.to_string().to_lowercase().as_str())));
            if found {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        }
    }
    select.projection.visit(&mut Finder::default()).is_break()
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

#[cfg(test)]
mod tests {
    use super::*;
    use sqlparser::ast::Statement;
    use sqlparser::dialect::PostgreSqlDialect;
    use sqlparser::parser::Parser;

    fn rewritten(sql: &str) -> String {
        let mut statements = Parser::parse_sql(&PostgreSqlDialect {}, sql).expect(sql);
        let Some(Statement::Query(mut query)) = statements.pop() else {
            panic!("{sql}")
        };
        rewrite(&mut query);
        query.to_string()
    }

    #[test]
    fn what_has_rows_keeps_them() {
        for sql in [
            "SELECT array_to_string(ARRAY[1, 2], ',')",
            "SELECT conname FROM pg_constraint WHERE contype = 'p' OR contype = 'f'",
            "SELECT conname FROM pg_constraint WHERE NOT (contype = 'f')",
            "SELECT c.relname FROM pg_trigger t RIGHT JOIN pg_class c ON t.oid = c.oid",
            "SELECT c.relname FROM pg_class c LEFT JOIN pg_trigger t ON t.oid = c.oid",
            "SELECT string_agg(tgname, ',') FROM pg_trigger",
            "SELECT relname, (SELECT count(*) FROM pg_attrdef) FROM pg_class",
            "SELECT (SELECT collname FROM pg_collation WHERE oid = 950) FROM pg_class",
        ] {
            assert_eq!(rewritten(sql), sql);
        }
    }

    #[test]
    fn what_psql_asks_can_be_planned() {
        let check = |sql: &str, expected: &str| assert_eq!(rewritten(sql), expected);
        check(
            "SELECT tgname, 1 FROM pg_catalog.pg_trigger t ORDER BY 1",
            "SELECT NULL AS c0, NULL AS c1 WHERE false",
        );
        check(
            "SELECT pubname, (SELECT string_agg(a, ',') FROM b) FROM pg_publication",
            "SELECT NULL AS c0, NULL AS c1 WHERE false",
        );
        check(
            "SELECT conname FROM pg_constraint WHERE (conrelid = 1 AND contype = 'f')",
            "SELECT NULL AS c0 WHERE false",
        );
        check(
            "SELECT pg_catalog.array_to_string(d.datacl, E'\\n') FROM pg_database d",
            "SELECT NULL FROM pg_database d",
        );
        check(
            "SELECT (SELECT pg_catalog.pg_get_expr(d.adbin, d.adrelid) FROM pg_catalog.pg_attrdef d WHERE d.adrelid = x.attrelid) FROM pg_attribute x",
            "SELECT x.tessera_default FROM pg_attribute x",
        );
    }
}
