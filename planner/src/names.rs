//! Column names of a result as PostgreSQL gives them; DataFusion names a column by its whole expression.
//!
//! ```text
//!   SELECT count(*), a + 1, x::int, CASE .. END, t.b, *      count  ?column?  x  case  b  (the table's columns)
//! ```
//!
//! Names are read off the query's first SELECT list. What stands between two wildcards keeps DataFusion's name, because
//! there nobody can tell which column belongs to which item.

use crate::unique::MARK;
use datafusion::arrow::datatypes::{Field, Schema, SchemaRef};
use sqlparser::ast::{Expr, Ident, Query, SelectItem, SetExpr};
use std::sync::Arc;

/// Names for the columns of `schema`, which is the result of `query`.
pub fn result_names(query: &Query, schema: &Schema) -> Vec<String> {
    let mut names: Vec<String> = schema.fields().iter().map(|f| without_mark(f.name())).collect();
    let Some(items) = select_list(&query.body) else {
        return names;
    };
    for (position, item) in items.iter().enumerate() {
        match item_name(item) {
            Some(name) if position < names.len() => names[position] = name,
            _ => break,
        }
    }
    // From the other end, down to the last wildcard.
    let last_wildcard = items.iter().rposition(|item| item_name(item).is_none());
    if let Some(wildcard) = last_wildcard {
        let after = items.len() - wildcard - 1;
        let Some(start) = names.len().checked_sub(after) else {
            return names;
        };
        for (item, slot) in items[wildcard + 1..].iter().zip(&mut names[start..]) {
            if let Some(name) = item_name(item) {
                *slot = name;
            }
        }
    }
    names
}

/// Names of a query's columns, read off its SELECT list; `None` where it has wildcards.
pub(crate) fn item_names(query: &Query) -> Option<Vec<String>> {
    select_list(&query.body)?.iter().map(item_name).collect()
}

/// `schema` with the columns named as the client of `query` sees them.
pub fn result_schema(query: &Query, schema: &Schema) -> SchemaRef {
    let names = result_names(query, schema);
    let fields: Vec<Field> = schema
        .fields()
        .iter()
        .zip(names)
        .map(|(field, name)| field.as_ref().clone().with_name(name))
        .collect();
    Arc::new(Schema::new(fields))
}

fn select_list(body: &SetExpr) -> Option<&[SelectItem]> {
    match body {
        SetExpr::Select(select) => Some(&select.projection),
        SetExpr::Query(query) => select_list(&query.body),
        SetExpr::SetOperation { left, .. } => select_list(left),
        _ => None,
    }
}

/// A name as it was before [`crate::unique`] made it one that is there once.
fn without_mark(name: &str) -> String {
    match name.rsplit_once(MARK) {
        Some((name, position)) if position.bytes().all(|b| b.is_ascii_digit()) => name.to_owned(),
        _ => name.to_owned(),
    }
}

/// `None` for wildcards.
pub(crate) fn item_name(item: &SelectItem) -> Option<String> {
    match item {
        SelectItem::ExprWithAlias { alias, .. } => Some(folded(alias)),
        SelectItem::UnnamedExpr(expr) => Some(name_of(expr).unwrap_or_else(|| "?column?".to_owned())),
        _ => None,
    }
}

/// PostgreSQL's `FigureColname`.
fn name_of(expr: &Expr) -> Option<String> {
    Some(match expr {
        Expr::Identifier(ident) => folded(ident),
        Expr::CompoundIdentifier(parts) => folded(parts.last()?),
        Expr::Nested(inner) | Expr::Collate { expr: inner, .. } => name_of(inner)?,
        Expr::Cast { expr, data_type, .. } => name_of(expr).unwrap_or_else(|| type_name(&data_type.to_string())),
        Expr::Function(function) => folded(function.name.0.last()?.as_ident()?),
        Expr::Case { else_result, .. } => else_result
            .as_deref()
            .and_then(name_of)
            .unwrap_or_else(|| "case".to_owned()),
        Expr::Exists { .. } => "exists".to_owned(),
        Expr::Array(_) => "array".to_owned(),
        Expr::Extract { .. } => "extract".to_owned(),
        Expr::Substring { .. } => "substring".to_owned(),
        Expr::Trim { .. } => "btrim".to_owned(),
        Expr::Position { .. } => "position".to_owned(),
        Expr::Ceil { .. } => "ceil".to_owned(),
        Expr::Floor { .. } => "floor".to_owned(),
        Expr::Overlay { .. } => "overlay".to_owned(),
        Expr::TypedString(typed) => type_name(&typed.data_type.to_string()),
        Expr::Interval(_) => "interval".to_owned(),
        Expr::Value(value) if matches!(value.value, sqlparser::ast::Value::Boolean(_)) => "bool".to_owned(),
        Expr::Subquery(query) => match select_list(&query.body)?.first()? {
            SelectItem::UnnamedExpr(expr) => name_of(expr)?,
            SelectItem::ExprWithAlias { alias, .. } => folded(alias),
            _ => return None,
        },
        _ => return None,
    })
}

/// PostgreSQL's internal names of common types.
fn type_name(written: &str) -> String {
    let lower = written.to_lowercase();
    let base = lower.split('(').next().unwrap_or(&lower).trim();
    match base {
        "int" | "integer" => "int4",
        "bigint" => "int8",
        "smallint" => "int2",
        "boolean" => "bool",
        "real" => "float4",
        "double precision" | "double" | "float" => "float8",
        "decimal" | "dec" => "numeric",
        "character varying" => "varchar",
        "char" | "character" => "bpchar",
        "timestamp with time zone" => "timestamptz",
        "timestamp without time zone" => "timestamp",
        other => other,
    }
    .to_owned()
}

fn folded(ident: &Ident) -> String {
    if ident.quote_style.is_some() {
        ident.value.clone()
    } else {
        ident.value.to_lowercase()
    }
}
