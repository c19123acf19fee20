//! How many rows of a relation its filter leaves.
//!
//! ```text
//!   n_name = 'PERU' AND n_regionkey < 3      1 / distinct(n_name)  x  3 of the 5 between min and max      of 25 rows
//! ```
//!
//! DataFusion's estimate knows intervals of numbers and takes a fifth of the rows for everything else, a text that equals a
//! constant above all. Conditions count as independent. Values count as evenly spread: nothing is known of the most common.
//!
//! Source: Selinger et al., "Access Path Selection in a Relational Database Management System", SIGMOD 1979.

use datafusion::arrow::datatypes::DataType;
use datafusion::common::stats::Precision;
use datafusion::common::{DFSchema, ScalarValue, Statistics};
use datafusion::logical_expr::expr::InList;
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{BinaryExpr, Expr, Filter, LogicalPlan, Operator};

/// What a condition leaves of which nothing is known.
const UNKNOWN: f64 = 0.2;

/// The filter of a relation, below what only names or drops columns.
pub fn filter(relation: &LogicalPlan) -> Option<&Filter> {
    match relation {
        LogicalPlan::Filter(filter) => Some(filter),
        LogicalPlan::Projection(p) if p.expr.iter().all(|e| matches!(e, Expr::Column(_))) => filter(&p.input),
        LogicalPlan::SubqueryAlias(alias) => filter(&alias.input),
        _ => None,
    }
}

/// Rows that `filter` leaves, given what is known of its input; `None` if that is not how many rows it has.
pub fn rows(filter: &Filter, input: &Statistics) -> Option<f64> {
    let rows = *input.num_rows.get_value()? as f64;
    let columns = Columns {
        schema: filter.input.schema(),
        statistics: input,
        rows,
    };
    let share: f64 = split_conjunction(&filter.predicate)
        .into_iter()
        .map(|c| columns.share(c))
        .product();
    Some(rows * share)
}

struct Columns<'a> {
    schema: &'a DFSchema,
    statistics: &'a Statistics,
    rows: f64,
}

impl Columns<'_> {
    /// The share of rows for which a condition is true, from 0 to 1.
    fn share(&self, condition: &Expr) -> f64 {
        let share = match condition {
            Expr::Not(inner) => 1.0 - self.share(inner),
            Expr::IsNull(inner) => self.nulls(inner).unwrap_or(UNKNOWN),
            Expr::IsNotNull(inner) => 1.0 - self.nulls(inner).unwrap_or(0.0),
            Expr::InList(InList { expr, list, negated }) => {
                let within = self
                    .distinct(expr)
                    .map_or(UNKNOWN, |d| (list.len() as f64 / d).min(1.0));
                if *negated { 1.0 - within } else { within }
            }
            Expr::BinaryExpr(BinaryExpr { left, op, right }) => match (op, left.as_ref(), right.as_ref()) {
                (Operator::And, l, r) => self.share(l) * self.share(r),
                (Operator::Or, l, r) => {
                    let (l, r) = (self.share(l), self.share(r));
                    l + r - l * r
                }
                (op, Expr::Literal(value, _), column) => {
                    op.swap().map_or(UNKNOWN, |op| self.compared(column, op, value))
                }
                (op, column, Expr::Literal(value, _)) => self.compared(column, *op, value),
                _ => UNKNOWN,
            },
            _ => UNKNOWN,
        };
        share.clamp(0.0, 1.0)
    }

    fn compared(&self, column: &Expr, op: Operator, value: &ScalarValue) -> f64 {
        let equal = || self.distinct(column).map(|distinct| 1.0 / distinct);
        let below = || self.below(column, value);
        let share = match op {
            Operator::Eq => equal(),
            Operator::NotEq => equal().map(|share| 1.0 - share),
            Operator::Lt | Operator::LtEq => below(),
            Operator::Gt | Operator::GtEq => below().map(|share| 1.0 - share),
            _ => None,
        };
        share.unwrap_or(UNKNOWN)
    }

    /// Where `value` stands between the least and the greatest.
    fn below(&self, column: &Expr, value: &ScalarValue) -> Option<f64> {
        let known = &self.statistics.column_statistics[self.column(column)?];
        let (min, max) = (
            number(known.min_value.get_value()?)?,
            number(known.max_value.get_value()?)?,
        );
        let value = number(value)?;
        match max > min {
            true => Some(((value - min) / (max - min)).clamp(0.0, 1.0)),
            false => Some(if value > min { 1.0 } else { 0.0 }),
        }
    }

    fn distinct(&self, column: &Expr) -> Option<f64> {
        let known = &self.statistics.column_statistics[self.column(column)?];
        let distinct = *known.distinct_count.get_value()? as f64;
        Some(distinct.clamp(1.0, self.rows.max(1.0)))
    }

    fn nulls(&self, column: &Expr) -> Option<f64> {
        match self.statistics.column_statistics[self.column(column)?].null_count {
            Precision::Exact(nulls) | Precision::Inexact(nulls) => Some(nulls as f64 / self.rows.max(1.0)),
            Precision::Absent => None,
        }
    }

    fn column(&self, expr: &Expr) -> Option<usize> {
        let Expr::Column(column) = expr else { return None };
        let index = self.schema.maybe_index_of_column(column)?;
        (index < self.statistics.column_statistics.len()).then_some(index)
    }
}

/// On a scale with the other values of its type.
fn number(value: &ScalarValue) -> Option<f64> {
    let days = match value.data_type() {
        DataType::Date32 => &value.cast_to(&DataType::Int32).ok()?,
        DataType::Timestamp(..) => &value.cast_to(&DataType::Int64).ok()?,
        _ => value,
    };
    match days.cast_to(&DataType::Float64).ok()? {
        ScalarValue::Float64(number) => number.filter(|n| n.is_finite()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::datatypes::{Field, Schema};
    use datafusion::common::ColumnStatistics;
    use datafusion::logical_expr::{col, in_list, lit, table_scan};
    use std::sync::Arc;

    fn check(condition: Expr, expected: f64) {
        let fields = vec![
            Field::new("name", DataType::Utf8View, true),
            Field::new("n", DataType::Int32, true),
            Field::new("d", DataType::Date32, true),
        ];
        let scan = table_scan(Some("t"), &Schema::new(fields), None)
            .unwrap()
            .build()
            .unwrap();
        let column = |distinct, range: Option<(ScalarValue, ScalarValue)>| ColumnStatistics {
            distinct_count: Precision::Inexact(distinct),
            null_count: Precision::Inexact(100),
            min_value: range
                .clone()
                .map_or(Precision::Absent, |(min, _)| Precision::Inexact(min)),
            max_value: range.map_or(Precision::Absent, |(_, max)| Precision::Inexact(max)),
            ..ColumnStatistics::new_unknown()
        };
        let (int, date) = (|n| ScalarValue::Int32(Some(n)), |n| ScalarValue::Date32(Some(n)));
        let statistics = Statistics {
            num_rows: Precision::Inexact(1_000),
            total_byte_size: Precision::Absent,
            column_statistics: vec![
                column(25, None),
                column(100, Some((int(0), int(200)))),
                column(10, Some((date(9_000), date(9_100)))),
            ],
        };
        let plan = LogicalPlan::Filter(Filter::try_new(condition.clone(), Arc::new(scan)).unwrap());
        let found = rows(filter(&plan).unwrap(), &statistics).unwrap();
        assert!(
            (found - expected).abs() < 1e-6,
            "{condition}: {found} instead of {expected}"
        );
    }

    #[test]
    fn shares_of_rows() {
        let text = || lit(ScalarValue::Utf8View(Some("PERU".into())));
        check(col("t.name").eq(text()), 40.0);
        check(text().eq(col("t.name")), 40.0);
        check(col("t.name").not_eq(text()), 960.0);
        check(in_list(col("t.name"), vec![text(), text(), text()], false), 120.0);
        check(in_list(col("t.name"), vec![text(); 30], true), 0.0);
        check(col("t.n").lt(lit(50)), 250.0);
        check(lit(50).lt(col("t.n")), 750.0);
        check(col("t.n").gt_eq(lit(500)), 0.0);
        check(col("t.d").lt(lit(ScalarValue::Date32(Some(9_030)))), 300.0);
        check(col("t.name").eq(text()).and(col("t.n").lt(lit(50))), 10.0);
        check(col("t.n").lt(lit(100)).or(col("t.n").gt(lit(100))), 750.0);
        check(col("t.name").is_null(), 100.0);
        check(col("t.name").is_not_null(), 900.0);
        check(col("t.name").like(text()), 200.0);
        check(col("t.n").lt(col("t.n")), 200.0);
    }
}
