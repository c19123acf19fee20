//! Where a row would stand among others, if it were there.
//!
//! ```text
//!   among 1 2 2 5     rank(2)  2     dense_rank(5)  3     percent_rank(2)  1/4     cume_dist(2)  4/5
//!                     behind what is before it            among what there is      with itself, behind its equals
//! ```
//!
//! Only `dense_rank` keeps rows: the different ones that are before its own.

use super::Kind;
use datafusion::arrow::array::{Array, ArrayRef, AsArray, BinaryArray, Int64Array};
use datafusion::arrow::compute::SortOptions;
use datafusion::arrow::datatypes::{DataType, Int64Type};
use datafusion::arrow::row::{RowConverter, SortField};
use datafusion::common::utils::SingleRowListArrayBuilder;
use datafusion::common::{Result, ScalarValue, exec_err};
use datafusion::logical_expr::Accumulator;
use std::cmp::Ordering;
use std::collections::HashSet;
use std::sync::Arc;

/// Bytes that a row in the set takes besides its own: pointer, length, and the table's spare places.
const ROW_BYTES: usize = 32;

/// The accumulator.
#[derive(Debug)]
pub(super) struct HypotheticalRank {
    kind: Kind,
    converter: RowConverter,
    columns: usize,
    before: i64,
    equal: i64,
    all: i64,
    /// Different rows before it, for `dense_rank`.
    rows: HashSet<Box<[u8]>>,
    rows_bytes: usize,
}

impl HypotheticalRank {
    pub(super) fn new(kind: Kind, columns: &[DataType], order: &[SortOptions]) -> Result<Self> {
        let fields = columns.iter().zip(order);
        let fields = fields.map(|(of, order)| SortField::new_with_options(of.clone(), *order));
        Ok(Self {
            kind,
            converter: RowConverter::new(fields.collect())?,
            columns: columns.len(),
            before: 0,
            equal: 0,
            all: 0,
            rows: HashSet::new(),
            rows_bytes: 0,
        })
    }

    fn keep(&mut self, row: &[u8]) {
        if !self.rows.contains(row) {
            self.rows_bytes += row.len() + ROW_BYTES;
            self.rows.insert(row.into());
        }
    }
}

impl Accumulator for HypotheticalRank {
    /// Arguments are the order, the columns, and the row's values.
    fn update_batch(&mut self, columns: &[ArrayRef]) -> Result<()> {
        if columns.len() != 1 + 2 * self.columns {
            return exec_err!("a rank of {} columns", columns.len());
        }
        let (there, given) = columns[1..].split_at(self.columns);
        let (there, given) = (
            self.converter.convert_columns(there)?,
            self.converter.convert_columns(given)?,
        );
        for (row, given) in there.iter().zip(given.iter()) {
            self.all += 1;
            match row.cmp(&given) {
                Ordering::Less => {
                    self.before += 1;
                    if self.kind == Kind::DenseRank {
                        self.keep(row.as_ref());
                    }
                }
                Ordering::Equal => self.equal += 1,
                Ordering::Greater => {}
            }
        }
        Ok(())
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let [counts @ .., rows] = states else {
            return exec_err!("a rank without states");
        };
        let sum = |at: usize| -> i64 {
            let counts = counts.get(at).and_then(|counts| counts.as_primitive_opt::<Int64Type>());
            counts.map_or(0, |counts: &Int64Array| counts.iter().flatten().sum())
        };
        self.before += sum(0);
        self.equal += sum(1);
        self.all += sum(2);
        let Some(lists) = rows.as_list_opt::<i32>() else {
            return exec_err!("rows in {}", rows.data_type());
        };
        for rows in lists.iter().flatten() {
            rows.as_binary::<i32>().iter().flatten().for_each(|row| self.keep(row));
        }
        Ok(())
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let rows: BinaryArray = self.rows.iter().map(|row| Some(row.as_ref())).collect();
        let rows = SingleRowListArrayBuilder::new(Arc::new(rows)).with_nullable(true);
        let count = |n| ScalarValue::Int64(Some(n));
        Ok(vec![
            count(self.before),
            count(self.equal),
            count(self.all),
            rows.build_list_scalar(),
        ])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let all = self.all as f64;
        Ok(match self.kind {
            Kind::Rank => ScalarValue::Int64(Some(self.before + 1)),
            Kind::DenseRank => ScalarValue::Int64(Some(self.rows.len() as i64 + 1)),
            Kind::PercentRank if self.all == 0 => ScalarValue::Float64(Some(0.0)),
            Kind::PercentRank => ScalarValue::Float64(Some(self.before as f64 / all)),
            _ => ScalarValue::Float64(Some((self.before + self.equal + 1) as f64 / (all + 1.0))),
        })
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.converter.size() + self.rows_bytes
    }
}
