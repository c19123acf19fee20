//! VALUES of plain constants and parameters, without planning: what drivers send row by row or by the thousand.
//!
//! ```text
//!   VALUES (1, 'a', NULL), (-2, 'b', $1)     column by column: numbers, strings, parameters ──▶ arrays ──▶ casts (cast.rs)
//! ```
//!
//! Anything else in a cell, or a column whose cells are of different kinds, leaves the statement to the planner, which
//! gives the same rows: this is a shortcut and nothing more.

use super::cast;
use datafusion::arrow::array::{ArrayRef, BooleanArray, RecordBatch, StringViewArray, new_null_array};
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::scalar::ScalarValue;
use sqlparser::ast::{Expr, Query, SetExpr, UnaryOperator, Value};
use std::sync::Arc;
use tessera_proto::sql_type::SqlType;
use tessera_proto::table::{ColumnDef, TableDef};

/// One constant.
enum Cell<'a> {
    Null,
    Text(&'a str),
    Number(String),
    Bool(bool),
    Param(&'a ScalarValue),
}

/// The rows in target order; `None` leaves them to the planner.
pub(super) fn constants(
    table: &TableDef,
    targets: &[usize],
    query: &Query,
    params: &[ScalarValue],
) -> Option<RecordBatch> {
    let plain =
        query.with.is_none() && query.order_by.is_none() && query.limit_clause.is_none() && query.fetch.is_none();
    let SetExpr::Values(values) = query.body.as_ref() else {
        return None;
    };
    let width = targets.len();
    if !plain || values.rows.is_empty() || width == 0 {
        return None;
    }
    let mut columns: Vec<Vec<Cell>> = (0..width).map(|_| Vec::with_capacity(values.rows.len())).collect();
    for row in &values.rows {
        if row.content.len() != width {
            return None;
        }
        for (column, expr) in columns.iter_mut().zip(&row.content) {
            column.push(cell(expr, params)?);
        }
    }
    let arrays = columns
        .iter()
        .zip(targets)
        .map(|(cells, target)| array(&table.columns[*target], cells))
        .collect::<Option<Vec<_>>>()?;
    let fields: Vec<Field> = arrays
        .iter()
        .zip(targets)
        .map(|(a, t)| Field::new(&table.columns[*t].name, a.data_type().clone(), true))
        .collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).ok()
}

fn cell<'a>(expr: &'a Expr, params: &'a [ScalarValue]) -> Option<Cell<'a>> {
    match expr {
        Expr::Nested(inner) => cell(inner, params),
        Expr::UnaryOp {
            op: UnaryOperator::Minus,
            expr,
        } => match cell(expr, &[])? {
            Cell::Number(number) if !number.starts_with('-') => Some(Cell::Number(format!("-{number}"))),
            _ => None,
        },
        Expr::Value(value) => match &value.value {
            Value::Null => Some(Cell::Null),
            Value::Boolean(value) => Some(Cell::Bool(*value)),
            Value::SingleQuotedString(text) | Value::EscapedStringLiteral(text) => Some(Cell::Text(text)),
            Value::Number(text, _) => Some(Cell::Number(text.clone())),
            Value::Placeholder(name) => {
                let number: usize = name.strip_prefix('$')?.parse().ok()?;
                let value = params.get(number.checked_sub(1)?)?;
                Some(if value.is_null() {
                    Cell::Null
                } else {
                    Cell::Param(value)
                })
            }
            _ => None,
        },
        _ => None,
    }
}

fn array(column: &ColumnDef, cells: &[Cell]) -> Option<ArrayRef> {
    let first = cells.iter().find(|c| !matches!(c, Cell::Null));
    match first {
        None => Some(new_null_array(&column.sql_type.arrow(), cells.len())),
        // Each constant becomes the column's type by itself: a quoted one may stand beside a number.
        Some(Cell::Text(_) | Cell::Number(_)) => {
            let text = |c: &Cell| match c {
                Cell::Null => Some(None),
                Cell::Text(text) => Some(Some(text.to_string())),
                Cell::Number(number) if fits(column.sql_type, number) => Some(Some(number.clone())),
                _ => None,
            };
            Some(Arc::new(cells.iter().map(text).collect::<Option<StringViewArray>>()?))
        }
        Some(Cell::Bool(_)) if column.sql_type == SqlType::Bool => {
            let value = |c: &Cell| match c {
                Cell::Null => Some(None),
                Cell::Bool(value) => Some(Some(*value)),
                _ => None,
            };
            Some(Arc::new(cells.iter().map(value).collect::<Option<BooleanArray>>()?))
        }
        Some(Cell::Param(sample)) => parameters(column, cells, &sample.data_type()),
        Some(_) => None,
    }
}

/// Whether a number's text means the same to the column's parser as the number does.
fn fits(sql_type: SqlType, number: &str) -> bool {
    let digits = number.bytes().all(|b| b.is_ascii_digit() || b == b'-');
    match sql_type {
        SqlType::Int2 | SqlType::Int4 | SqlType::Int8 => digits,
        SqlType::Numeric { .. } => digits || !number.contains(['e', 'E']),
        SqlType::Float4 | SqlType::Float8 => true,
        _ => false,
    }
}

fn parameters(column: &ColumnDef, cells: &[Cell], data_type: &DataType) -> Option<ArrayRef> {
    cast::check_assignable(column, data_type, true).ok()?;
    let null = ScalarValue::try_from(data_type).ok()?;
    let value = |c: &Cell| match c {
        Cell::Null => Some(null.clone()),
        Cell::Param(value) if value.data_type() == *data_type => Some((*value).clone()),
        _ => None,
    };
    let values = cells.iter().map(value).collect::<Option<Vec<_>>>()?;
    ScalarValue::iter_to_array(values).ok()
}
