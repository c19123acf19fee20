//! `pg_stats`: what the planner believes of each column, under PostgreSQL's names.
//!
//! ```text
//!   tablename | attname | null_frac | n_distinct | most_common_vals | most_common_freqs
//!   orders    | status  |         0 |         10 | {closed,open}    | {0.95,0.02}
//! ```
//!
//! A column has a row once its table's nodes were asked: after ANALYZE, or a few seconds after the first rows. As in PostgreSQL,
//! `n_distinct` is negative where values come with the rows: their share of them. Values are shown as in UTC. NULL is what is not known here:
//! histograms, correlation, elements of arrays, and widths of types that have no fixed one.

use super::SystemSource;
use super::rows::{Kind, Value, row, table as build};
use crate::pg::array_text;
use Kind::{Bool, Int, Real, Reals, Text};
use datafusion::catalog::TableProvider;
use datafusion::common::{ColumnStatistics, ScalarValue};
use std::sync::Arc;
use tessera_proto::common_values::CommonValues;
use tessera_proto::table::{ColumnDef, TableDef};

/// Share of distinct values among the rows above which they are taken to come with the rows; PostgreSQL's.
const SCALES: f64 = 0.1;

pub(super) fn table(source: &SystemSource) -> Option<Arc<dyn TableProvider>> {
    let columns = [
        ("schemaname", Text),
        ("tablename", Text),
        ("attname", Text),
        ("inherited", Bool),
        ("null_frac", Real),
        ("avg_width", Int),
        ("n_distinct", Real),
        ("most_common_vals", Text),
        ("most_common_freqs", Reals),
        ("histogram_bounds", Text),
        ("correlation", Real),
        ("most_common_elems", Text),
        ("most_common_elem_freqs", Reals),
        ("elem_count_histogram", Reals),
    ];
    let mut rows = vec![];
    for def in source.view.named_tables() {
        let Some(known) = source.statistics.tables.get(&def.id) else {
            continue;
        };
        let Some(count) = known.statistics.num_rows.get_value().filter(|rows| **rows > 0) else {
            continue;
        };
        let visible = def.columns.iter().filter(|c| !c.hidden);
        let known_columns = known.statistics.column_statistics.iter().zip(known.common.iter());
        for (column, (statistics, common)) in visible.zip(known_columns) {
            rows.extend(column_row(def, column, *count as f64, statistics, common));
        }
    }
    build(&columns, &rows)
}

/// A column's row; `None` while nobody knows how many values it has.
fn column_row(
    def: &TableDef,
    column: &ColumnDef,
    rows: f64,
    known: &ColumnStatistics,
    common: &CommonValues,
) -> Option<Vec<Value>> {
    let nulls = known.null_count.get_value().map_or(0.0, |n| *n as f64);
    let distinct = match known.distinct_count.get_value() {
        Some(distinct) => *distinct as f64,
        None if nulls >= rows => 0.0,
        None => return None,
    };
    let (values, shares) = match common.is_empty() {
        true => (Value::Null, Value::Null),
        false => {
            let shares = common.iter().map(|(_, share)| share as f32).collect();
            (Value::from(text(common)), Value::Reals(shares))
        }
    };
    let n_distinct = if distinct > SCALES * rows {
        -distinct / rows
    } else {
        distinct
    };
    Some(row![
        def.schema.as_str(),
        def.name.as_str(),
        column.name.as_str(),
        false,
        Value::Real((nulls / rows).min(1.0) as f32),
        column.sql_type.arrow().primitive_width().map(|width| width as i64),
        Value::Real(n_distinct as f32),
        values,
        shares,
        Value::Null,
        Value::Null,
        Value::Null,
        Value::Null,
        Value::Null,
    ])
}

/// As the text of an array.
fn text(common: &CommonValues) -> Option<String> {
    let values = ScalarValue::iter_to_array(common.iter().map(|(value, _)| value.clone()));
    values.ok().and_then(|values| array_text(&values).ok())
}
